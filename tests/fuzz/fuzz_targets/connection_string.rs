//! Any text in the place of a connection string: an identity that can connect, or a refusal that repeats no secret.
#![no_main]

use fwupdated::hub::credentials::{Credentials, check_device_id};
use libfuzzer_sys::fuzz_target;

/// What stands in no message of ours.
const SECRET: &str = "Zq7Jx4Zq7Jx4Zq7Jx4";

fuzz_target!(|text: &str| {
    for text in [
        text.to_owned(),
        format!("{text}{SECRET}"),
        format!("{text};SharedAccessKey={SECRET}!"),
    ] {
        match text.parse::<Credentials>() {
            Ok(credentials) => {
                assert!(check_device_id(credentials.device_id()).is_ok());
                assert!(!credentials.hub().contains('/'));
                let now = "2026-06-01T00:00:00Z".parse().unwrap();
                let lifetime = std::time::Duration::from_secs(3600);
                assert!(credentials.password(now, lifetime).is_ok());
            }
            Err(error) => assert!(!format!("{error} {error:?}").contains(SECRET)),
        }
    }
});
