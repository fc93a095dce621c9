//! Time and chance: the stamps, numbers and keys that the hub makes up.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, prelude::BASE64_STANDARD};
use ring::rand::{SecureRandom, SystemRandom};

/// What the hub shows where there is no date.
pub(crate) const NO_DATE: &str = "0001-01-01T00:00:00Z";

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    since_epoch().as_secs()
}

/// Time since 1970.
pub(crate) fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Now, as the hub writes it: ISO 8601, UTC, seven decimals.
pub(crate) fn stamp() -> String {
    format!("{:.7}", jiff::Timestamp::now())
}

/// Now, as it stands in a tracking id.
pub(crate) fn tracking_stamp() -> String {
    jiff::Timestamp::now()
        .strftime("%m/%d/%Y %H:%M:%S")
        .to_string()
}

/// `N` random bytes.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the operating system has random numbers");
    bytes
}

/// A new symmetric key: 32 random bytes in base64.
pub(crate) fn new_key() -> String {
    BASE64_STANDARD.encode(random::<32>())
}

/// A new etag of an identity: base64 of a decimal number.
pub(crate) fn new_identity_etag() -> String {
    BASE64_STANDARD.encode(u32::from_be_bytes(random::<4>()).to_string())
}

/// 32 hexadecimal digits.
pub(crate) fn new_tracking_id() -> String {
    format!("{:032X}", u128::from_be_bytes(random::<16>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_has_seven_decimals() {
        let stamp = stamp();
        assert_eq!(stamp.len(), "2024-01-01T00:00:00.0000000Z".len(), "{stamp}");
        assert!(stamp.ends_with('Z'));
    }
}
