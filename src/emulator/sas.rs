//! Shared access signatures: the tokens of devices and of service tools.
//!
//! The signature is checked over the resource exactly as it was received, because clients differ in
//! what they encode; scope is compared after decoding, by whole path segments.

use base64::{Engine, prelude::BASE64_STANDARD};
use ring::hmac;

use crate::percent;

/// A token, taken apart but not yet trusted.
#[derive(Clone)]
pub(crate) struct Token {
    raw_resource: String,
    resource: String,
    signature: Vec<u8>,
    expiry_text: String,
    /// Seconds since 1970.
    pub(crate) expiry: u64,
    /// The hub policy that signed it; `None` when a device's own key did.
    pub(crate) policy: Option<String>,
}

/// Why a token is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("the token does not start with 'SharedAccessSignature '")]
    Scheme,
    #[error("the token has no resource (sr)")]
    Resource,
    #[error("the token has no signature (sig) in base64")]
    Signature,
    #[error("the token has no expiry (se) in seconds")]
    Expiry,
}

impl Token {
    pub(crate) fn parse(text: &str) -> Result<Self, Malformed> {
        let fields = text
            .strip_prefix("SharedAccessSignature ")
            .ok_or(Malformed::Scheme)?;
        let raw = |name: &str| {
            fields.split('&').find_map(|field| {
                let (key, value) = field.split_once('=')?;
                (key.trim() == name).then_some(value)
            })
        };
        let raw_resource = raw("sr").ok_or(Malformed::Resource)?;
        let signature = raw("sig")
            .and_then(|encoded| BASE64_STANDARD.decode(percent::decode(encoded)).ok())
            .ok_or(Malformed::Signature)?;
        let expiry_text = raw("se").ok_or(Malformed::Expiry)?;
        Ok(Self {
            raw_resource: raw_resource.to_owned(),
            resource: percent::decode(raw_resource),
            signature,
            expiry: expiry_text.parse().map_err(|_| Malformed::Expiry)?,
            expiry_text: expiry_text.to_owned(),
            policy: raw("skn").map(percent::decode).filter(|p| !p.is_empty()),
        })
    }

    /// Whether `key` (base64) made this signature. Takes the same time for every wrong signature.
    pub(crate) fn signed_by(&self, key: &str) -> bool {
        let Ok(key) = BASE64_STANDARD.decode(key) else {
            return false;
        };
        let message = format!("{}\n{}", self.raw_resource, self.expiry_text);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
        hmac::verify(&key, message.as_bytes(), &self.signature).is_ok()
    }

    /// Whether the token's resource is `hub` (a port may follow) or a path within it that leads to,
    /// or through, `path`.
    pub(crate) fn covers(&self, hub: &str, path: &[&str]) -> bool {
        let mut segments = self.resource.split('/');
        let host = segments.next().unwrap_or_default();
        let rest: Vec<&str> = segments.filter(|segment| !segment.is_empty()).collect();
        without_port(host).eq_ignore_ascii_case(hub) && path.starts_with(&rest)
    }

    /// What tells this token from another; not the secret itself, but kept in memory only.
    pub(crate) fn fingerprint(&self) -> Vec<u8> {
        self.signature.clone()
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

/// A token for `resource` (not encoded) signed by `key` (base64) until `expiry` (seconds since 1970);
/// `None` when the key is not base64.
pub fn sign(resource: &str, key: &str, expiry: u64, policy: Option<&str>) -> Option<String> {
    let key = BASE64_STANDARD.decode(key).ok()?;
    let resource = percent::encode(resource);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let signature = hmac::sign(&key, format!("{resource}\n{expiry}").as_bytes());
    let signature = percent::encode(&BASE64_STANDARD.encode(signature));
    let mut token = format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}");
    if let Some(policy) = policy {
        token.push_str("&skn=");
        token.push_str(&percent::encode(policy));
    }
    Some(token)
}

/// The key of the device with this registration id in an enrollment group with key `group_key` (base64);
/// `None` when that is not base64. Registration ids are lower case.
pub fn derive_key(group_key: &str, registration_id: &str) -> Option<String> {
    let key = BASE64_STANDARD.decode(group_key).ok()?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    Some(BASE64_STANDARD.encode(hmac::sign(&key, registration_id.as_bytes())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

    #[test]
    fn the_published_vectors_are_reproduced() {
        assert_eq!(
            sign(
                "myhub.azure-devices.net/devices/pi-01",
                KEY,
                1_700_000_000,
                None
            )
            .unwrap(),
            "SharedAccessSignature sr=myhub.azure-devices.net%2Fdevices%2Fpi-01&\
             sig=IrNH6jlgHTq5kL6ZLPEyta5fEzpUQky6SJtnAbv5rGY%3D&se=1700000000"
        );
        assert_eq!(
            sign(
                "myhub.azure-devices.net",
                KEY,
                1_700_000_000,
                Some("service")
            )
            .unwrap(),
            "SharedAccessSignature sr=myhub.azure-devices.net&\
             sig=sJAIZTF5oG40VHrie96heZ865%2BnR4QavBvHnzxZm8rk%3D&se=1700000000&skn=service"
        );
    }

    fn token(resource: &str) -> Token {
        Token::parse(&sign(resource, KEY, 1_700_000_000, None).unwrap()).unwrap()
    }

    #[test]
    fn field_order_is_free_and_unknown_fields_are_ignored() {
        let token = Token::parse(
            "SharedAccessSignature x=1&se=1700000000&skn=service&\
             sig=sJAIZTF5oG40VHrie96heZ865%2BnR4QavBvHnzxZm8rk%3D&sr=myhub.azure-devices.net",
        )
        .unwrap();
        assert!(token.signed_by(KEY));
        assert_eq!(token.policy.as_deref(), Some("service"));
        assert!(!token.signed_by(&BASE64_STANDARD.encode([7; 32])));
    }

    #[test]
    fn the_published_vectors_of_provisioning_are_reproduced() {
        let key = derive_key(KEY, "pi-01").unwrap();
        assert_eq!(key, "zNWyUAF+tvKhuUBBtICaIu069QlXARJJEQL4RENkIQY=");
        let resource = "0ne00000001/registrations/pi-01";
        assert_eq!(
            sign(resource, &key, 1_700_000_000, Some("registration")).unwrap(),
            "SharedAccessSignature sr=0ne00000001%2Fregistrations%2Fpi-01&\
             sig=1L9L0SZ2fJVCrM%2Buol94l5OWVhbPiiEZXg3k2ysMomU%3D&se=1700000000&skn=registration"
        );
    }

    #[test]
    fn a_resource_signed_without_encoding_its_port_is_accepted_too() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &BASE64_STANDARD.decode(KEY).unwrap());
        for resource in ["localhost:8443", "localhost%3A8443"] {
            let signature = hmac::sign(&key, format!("{resource}\n1700000000").as_bytes());
            let signature = percent::encode(&BASE64_STANDARD.encode(signature));
            let text =
                format!("SharedAccessSignature sr={resource}&sig={signature}&se=1700000000&skn=s");
            let token = Token::parse(&text).unwrap();
            assert!(token.signed_by(KEY));
            assert!(token.covers("localhost", &["devices", "a"]));
        }
    }

    #[test]
    fn scope_goes_by_whole_segments() {
        let all = token("h/devices");
        assert!(all.covers("h", &["devices", "a"]));
        let one = token("H/devices/a");
        assert!(one.covers("h", &["devices", "a"]));
        assert!(one.covers("h", &["devices", "a", "modules", "m"]));
        assert!(!one.covers("h", &["devices", "ab"]));
        assert!(!one.covers("h", &["devices", "A"]));
        assert!(
            !one.covers("h", &[]),
            "a device's token is not the service's"
        );
        assert!(!one.covers("other", &["devices", "a"]));
    }

    #[test]
    fn each_missing_field_is_named() {
        let of = |text: &str| Token::parse(text).err();
        assert_eq!(of("Bearer x"), Some(Malformed::Scheme));
        assert_eq!(of("SharedAccessSignature se=1"), Some(Malformed::Resource));
        assert_eq!(
            of("SharedAccessSignature sr=h&sig=%%%&se=1"),
            Some(Malformed::Signature)
        );
        assert_eq!(
            of("SharedAccessSignature sr=h&sig=AAAA&se=soon"),
            Some(Malformed::Expiry)
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(SharedAccessSignature )?.*") {
            let _ = Token::parse(&text);
        }

        #[test]
        fn a_signed_token_is_read_back(resource in "[a-z.]{1,20}(/[!-~]{1,9}){0,3}", expiry: u32) {
            let text = sign(&resource, KEY, expiry.into(), None).unwrap();
            let token = Token::parse(&text).unwrap();
            prop_assert!(token.signed_by(KEY));
            prop_assert_eq!(token.expiry, u64::from(expiry));
        }
    }
}
