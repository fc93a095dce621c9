//! Any answers of a provisioning service, at any time: the registration ends, in time, and names a host or says why.
#![no_main]

use std::time::{Duration, Instant};

use fwupdated::hub::{
    backoff::Jitter,
    credentials::Secret,
    provisioning::{Enrollment, LONGEST, Registration},
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|answers: Vec<(u8, String, Vec<u8>)>| {
    let enrollment = Enrollment {
        id_scope: "0ne00000001".to_owned(),
        registration_id: "pi-01".to_owned(),
        payload: None,
        secret: Secret::Certificate,
    };
    let began = Instant::now();
    let mut now = began;
    let mut registration = Registration::new(&enrollment, LONGEST, Jitter::seeded(1), now);
    let mut sent = 0;
    for (seconds, tail, payload) in answers {
        now += Duration::from_secs(seconds.into());
        registration.handle_timeout(now);
        sent += u32::from(registration.poll_transmit(now).is_some());
        registration.handle_message(&tail, &payload, now);
        for status in [200, 202, 429] {
            let topic = format!("$dps/registrations/res/{status}/?$rid={sent}&{tail}");
            registration.handle_message(&topic, &payload, now);
        }
    }
    while let Some(at) = registration.poll_timeout() {
        now = now.max(at);
        registration.handle_timeout(now);
        registration.poll_transmit(now);
    }
    match registration.outcome().expect("it ended") {
        Ok(assignment) => assert!(assignment.credentials(Secret::Certificate).is_ok()),
        Err(error) => assert!(error.to_string().len() < 2000),
    }
    assert!(now >= began && (now <= began + LONGEST || sent > 0));
});
