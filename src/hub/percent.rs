//! Percent-encoding as the hub wants it: everything but `A-Z a-z 0-9 - _ . ~` is encoded, a space is
//! `%20` and `+` is only a plus sign.

/// `text` with every byte but the unreserved ones (RFC 3986) as `%XX`.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for nibble in [byte >> 4, byte & 15] {
                let digit = char::from_digit(u32::from(nibble), 16).expect("a nibble is below 16");
                out.push(digit.to_ascii_uppercase());
            }
        }
    }
    out
}

/// The text that `encoded` stands for; `None` when the bytes are not UTF-8. A `%` that no two hex
/// digits follow stands for itself.
#[must_use]
pub fn decode(encoded: &str) -> Option<String> {
    let bytes = encoded.as_bytes();
    let digit = |at: usize| bytes.get(at).and_then(|&c| char::from(c).to_digit(16));
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).expect("two hex digits fit a byte"));
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values_are_encoded_as_the_sdks_do() {
        assert_eq!(encode("dtmi:a:b;1"), "dtmi%3Aa%3Ab%3B1");
        assert_eq!(encode("a b+~_.-"), "a%20b%2B~_.-");
        assert_eq!(decode("100%").as_deref(), Some("100%"));
        assert_eq!(decode("%zz%4").as_deref(), Some("%zz%4"));
        assert_eq!(decode("%ff"), None);
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded_again(text in any::<String>()) {
            prop_assert_eq!(decode(&encode(&text)), Some(text));
        }

        #[test]
        fn no_text_makes_the_decoder_panic(text in any::<String>()) {
            let _ = decode(&text);
        }
    }
}
