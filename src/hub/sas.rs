//! Symmetric keys, the SAS tokens that they sign, and the clock that tokens need.
//!
//! Guarantees: a key never leaves this file but as the signature of a token; no `Debug` output shows a key
//! or a token. Formats: Azure IoT Hub's and the Device Provisioning Service's SAS tokens.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;

use super::percent;

/// 2026-01-01T00:00:00Z in Unix seconds: no build of this program is older, so an earlier clock is
/// not set.
pub(super) const EPOCH_OF_THE_BUILD: i64 = 1_767_225_600;

/// The text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not base64 of a key; copy it again, whole (it often ends in `=`)")]
pub struct NotAKey;

/// A symmetric key. `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct SymmetricKey(Vec<u8>);

impl SymmetricKey {
    /// The key that `text` is the base64 of; white space around it is ignored.
    ///
    /// # Errors
    /// [`NotAKey`].
    pub fn from_base64(text: &str) -> Result<Self, NotAKey> {
        let key = STANDARD.decode(text.trim()).map_err(|_| NotAKey)?;
        (!key.is_empty()).then_some(Self(key)).ok_or(NotAKey)
    }

    /// The token for `resource` (not yet percent-encoded) that expires at `expires` (Unix seconds), by the
    /// policy `policy` or by the device's own key.
    #[must_use]
    pub fn sign(&self, resource: &str, expires: i64, policy: Option<&str>) -> SasToken {
        let resource = percent::encode(resource);
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.0);
        let signature = ring::hmac::sign(&key, format!("{resource}\n{expires}").as_bytes());
        let signature = percent::encode(&STANDARD.encode(signature));
        let mut text = format!("SharedAccessSignature sr={resource}&sig={signature}&se={expires}");
        if let Some(policy) = policy {
            text.push_str("&skn=");
            text.push_str(policy);
        }
        SasToken { text, expires }
    }
}

impl fmt::Debug for SymmetricKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SymmetricKey(hidden)")
    }
}

/// A SAS token: the CONNECT password. `Debug` hides it.
#[derive(Clone)]
pub struct SasToken {
    text: String,
    expires: i64,
}

impl SasToken {
    /// The token itself: only for the CONNECT packet.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.text
    }

    /// When the hub stops taking it, in Unix seconds.
    #[must_use]
    pub fn expires(&self) -> i64 {
        self.expires
    }
}

impl fmt::Debug for SasToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SasToken(expires {})", self.expires)
    }
}

/// The clock shows a time before this program was built: a token made now would be refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the clock is not set (it shows {0}); waiting for time synchronisation")]
pub struct ClockNotSet(pub Timestamp);

/// Whether `now` can be the true time.
///
/// # Errors
/// [`ClockNotSet`] when it is before the build's epoch, 2026-01-01.
pub fn check_clock(now: Timestamp) -> Result<(), ClockNotSet> {
    if now.as_second() < EPOCH_OF_THE_BUILD {
        Err(ClockNotSet(now))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

    #[test]
    fn tokens_are_those_of_the_published_vectors() {
        let key = SymmetricKey::from_base64(KEY).unwrap();
        assert_eq!(
            key.sign("myhub.azure-devices.net", 1_700_000_000, Some("service"))
                .secret(),
            "SharedAccessSignature sr=myhub.azure-devices.net\
             &sig=sJAIZTF5oG40VHrie96heZ865%2BnR4QavBvHnzxZm8rk%3D&se=1700000000&skn=service"
        );
        // The device key that the published group key gives to `pi-01`.
        let key =
            SymmetricKey::from_base64("zNWyUAF+tvKhuUBBtICaIu069QlXARJJEQL4RENkIQY=\n").unwrap();
        assert_eq!(
            key.sign(
                "0ne00000001/registrations/pi-01",
                1_700_000_000,
                Some("registration")
            )
            .secret(),
            "SharedAccessSignature sr=0ne00000001%2Fregistrations%2Fpi-01\
             &sig=1L9L0SZ2fJVCrM%2Buol94l5OWVhbPiiEZXg3k2ysMomU%3D&se=1700000000&skn=registration"
        );
    }

    #[test]
    fn what_is_no_key_is_refused_and_never_shown() {
        for text in ["", " \n", "Q", "not base64!"] {
            assert_eq!(SymmetricKey::from_base64(text), Err(NotAKey), "{text}");
        }
        let key = SymmetricKey::from_base64(KEY).unwrap();
        let shown = format!("{key:?} {:?}", key.sign("h/devices/d", 1, None));
        assert!(!shown.contains("0123") && !shown.contains("MDEy") && !shown.contains("sig"));
    }
}
