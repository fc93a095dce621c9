//! Any text in the place of a connection string: refused without being repeated, or an identity that can connect.
#![no_main]

use fwupdated::hub::credentials::{Credentials, check_device_id};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match text.parse::<Credentials>() {
        Ok(credentials) => {
            assert!(check_device_id(credentials.device_id()).is_ok());
            assert!(!credentials.hub().contains('/'));
            let now = "2026-06-01T00:00:00Z".parse().unwrap();
            let lifetime = std::time::Duration::from_secs(3600);
            assert!(credentials.password(now, lifetime).is_ok());
        }
        Err(error) => assert!(text.len() < 20 || !format!("{error} {error:?}").contains(text)),
    }
});
