//! Any topic with any payload, as a hub might send it: each is read as far as it makes sense. First line: the
//! topic; the rest: the payload.
#![no_main]

use fwupdated::hub::{
    desired::{Acted, DesiredTracker},
    method::{self, Methods},
    topics::{self, Incoming},
};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    let split = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (topic, payload) = bytes.split_at(split);
    let payload = payload.get(1..).unwrap_or_default();
    let Ok(topic) = std::str::from_utf8(topic) else {
        return;
    };
    match topics::parse(topic) {
        Some(Incoming::Method { name, rid }) => {
            // The id comes back as it was, and cannot lead elsewhere.
            assert!(topics::method_answer(200, &rid).ends_with(&format!("?$rid={rid}")));
            assert!(!rid.contains(['+', '#']));
            let methods = Methods {
                update_names: vec![name.clone()],
                allow_reboot: true,
            };
            if let Err(answer) = method::parse(&methods, &name, payload) {
                assert_eq!(answer.status, 400);
                assert!(answer.body["code"].is_string());
            }
        }
        Some(Incoming::TwinAnswer { retry_after, .. }) => {
            assert!(retry_after.is_none_or(|wait| wait.as_secs() <= 300));
        }
        Some(Incoming::Desired { version }) => {
            if let Ok(change) = serde_json::from_slice::<Value>(payload) {
                let mut tracker = DesiredTracker::new(Acted::default());
                tracker.handle_whole(&change);
                tracker.handle_patch(version.unwrap_or(1), &change);
                if let Some(due) = tracker.due(Some("1.0.0"), false) {
                    tracker.done(due.acted);
                    assert_eq!(tracker.due(Some("1.0.0"), false), None, "asked for once");
                }
            }
        }
        None => {}
    }
});
