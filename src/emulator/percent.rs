//! Percent-encoding and the `k=v&k2=v2` bags of topics, user names and tokens.
//!
//! A space is `%20`; a plus sign is itself. Nothing here fails on odd input: a sequence that is not
//! valid stays as it was written, as the hub does.

/// `text` with everything but `A-Z a-z 0-9 - _ . ~` percent-encoded.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// `text` with its percent-encoded bytes decoded; bytes that are not UTF-8 become U+FFFD.
pub(crate) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| bytes.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| Some(hex_digit(hex[0])? << 4 | hex_digit(hex[1])?));
        match escaped {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

fn hex_digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

/// The members of a bag, decoded, in order. `key` alone has no value, `key=` has an empty one.
pub(crate) fn bag(text: &str) -> Vec<(String, Option<String>)> {
    text.split('&')
        .filter(|member| !member.is_empty())
        .map(|member| match member.split_once('=') {
            Some((key, value)) => (decode(key), Some(decode(value))),
            None => (decode(member), None),
        })
        .collect()
}

/// The value of `key` in a bag; `None` when it is absent or has no value.
pub(crate) fn bag_value(text: &str, key: &str) -> Option<String> {
    bag(text)
        .into_iter()
        .find_map(|(name, value)| if name == key { value } else { None })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_bag_keeps_order_and_knows_null_from_empty() {
        let parsed = bag("%24.mid=id-0&%24.ct=application%2Fjson&flag&empty=&k%20v=a%2Fb%26c%3Dd");
        let expected = [
            ("$.mid", Some("id-0")),
            ("$.ct", Some("application/json")),
            ("flag", None),
            ("empty", Some("")),
            ("k v", Some("a/b&c=d")),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned)))
            .collect();
        assert_eq!(parsed, expected);
    }

    #[test]
    fn a_plus_sign_is_not_a_space_and_a_torn_escape_stays() {
        assert_eq!(decode("a+b%2"), "a+b%2");
        assert_eq!(decode("%zz%41"), "%zzA");
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes_to_itself(text in ".*") {
            prop_assert_eq!(decode(&encode(&text)), text);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = bag(&text);
        }
    }
}
