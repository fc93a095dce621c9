//! The registration against a service that answers rightly, slowly, wrongly or not at all.

use proptest::prelude::*;

use super::*;
use crate::hub::sas::SymmetricKey;

const SECOND: Duration = Duration::from_secs(1);

fn enrollment() -> Enrollment {
    let key = SymmetricKey::from_base64("zNWyUAF+tvKhuUBBtICaIu069QlXARJJEQL4RENkIQY=").unwrap();
    Enrollment {
        id_scope: "0ne00000001".to_owned(),
        registration_id: "pi-01".to_owned(),
        payload: None,
        secret: Secret::Key(key),
    }
}

fn start() -> (Registration, Instant) {
    let now = Instant::now();
    (
        Registration::new(&enrollment(), LONGEST, Jitter::seeded(1), now),
        now,
    )
}

fn answer(registration: &mut Registration, topic: &str, body: &Value, now: Instant) {
    let topic = format!("$dps/registrations/res/{topic}");
    registration.handle_message(&topic, body.to_string().as_bytes(), now);
}

fn assigned(hub: &str, device: &str) -> Value {
    json!({"operationId": "4.a", "status": "assigned", "registrationState": {
        "registrationId": "pi-01", "assignedHub": hub, "deviceId": device, "status": "assigned",
        "substatus": "initialAssignment", "payload": null}})
}

fn code(registration: &Registration) -> Option<&'static str> {
    Some(registration.outcome()?.as_ref().err()?.code())
}

#[test]
fn connect_names_scope_registration_and_client() {
    let enrollment = enrollment();
    assert_eq!(
        enrollment.user_name("fwupdated/0.1.0"),
        "0ne00000001/registrations/pi-01/api-version=2019-03-31&ClientVersion=fwupdated%2F0.1.0"
    );
    let now = "2026-06-01T00:00:00Z".parse().unwrap();
    let token = enrollment.password(now, SECOND * 3600).unwrap().unwrap();
    let form = "SharedAccessSignature sr=0ne00000001%2Fregistrations%2Fpi-01&sig=";
    assert!(token.secret().starts_with(form));
    assert!(token.secret().ends_with("&skn=registration"));
}

#[test]
fn it_registers_polls_when_told_and_ends_with_the_assignment() {
    let (mut registration, now) = start();
    let request = registration.poll_transmit(now).unwrap();
    assert_eq!(
        request.topic,
        "$dps/registrations/PUT/iotdps-register/?$rid=1"
    );
    assert_eq!(request.body, r#"{"registrationId":"pi-01"}"#);
    assert_eq!(registration.poll_transmit(now), None, "one at a time");
    let assigning = json!({"operationId": "4.a/b", "status": "assigning"});
    answer(
        &mut registration,
        "202/?$rid=1&retry-after=3",
        &assigning,
        now,
    );
    assert_eq!(registration.poll_timeout(), Some(now + SECOND * 3));
    assert_eq!(registration.poll_transmit(now + SECOND * 2), None);
    let now = now + SECOND * 3;
    let request = registration.poll_transmit(now).unwrap();
    assert_eq!(
        request.topic,
        "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId=4.a%2Fb"
    );
    answer(&mut registration, "202/?$rid=2", &assigning, now);
    let now = now + POLL_INTERVAL;
    registration.poll_transmit(now).unwrap();
    // What belongs to an earlier request is passed over.
    answer(&mut registration, "200/?$rid=2", &assigned("x", "y"), now);
    assert_eq!(registration.outcome(), None);
    let body = assigned("myhub.azure-devices.net", "pi-01");
    answer(&mut registration, "200/?$rid=3", &body, now);
    let assignment = registration.outcome().unwrap().as_ref().unwrap();
    assert_eq!(assignment.hub, "myhub.azure-devices.net");
    assert_eq!(assignment.device_id, "pi-01");
    assert_eq!(registration.poll_timeout(), None);
}

#[test]
fn a_payload_is_sent_along() {
    let enrollment = Enrollment {
        payload: Some(json!({"model": "pi4"})),
        ..enrollment()
    };
    let now = Instant::now();
    let mut registration = Registration::new(&enrollment, LONGEST, Jitter::seeded(1), now);
    let body = registration.poll_transmit(now).unwrap().body;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        body,
        json!({"registrationId": "pi-01", "payload": {"model": "pi4"}})
    );
}

#[test]
fn throttling_is_waited_for_as_long_as_the_service_says() {
    let (mut registration, now) = start();
    registration.poll_transmit(now).unwrap();
    answer(
        &mut registration,
        "429/?$rid=1&retry-after=20",
        &json!({}),
        now,
    );
    assert_eq!(registration.poll_transmit(now + SECOND * 19), None);
    let now = now + SECOND * 20;
    let request = registration.poll_transmit(now).unwrap();
    assert!(request.topic.contains("iotdps-register"), "{request:?}");
    answer(&mut registration, "503/?$rid=2", &json!({}), now);
    assert_eq!(code(&registration), None);
    let due = registration.poll_timeout().unwrap();
    assert!(registration.poll_transmit(due).is_some());
}

#[test]
fn an_answer_that_does_not_come_is_asked_for_again_until_the_end() {
    let (mut registration, mut now) = start();
    let began = now;
    let mut requests = 0;
    while let Some(at) = registration.poll_timeout() {
        now = now.max(at);
        registration.handle_timeout(now);
        requests += usize::from(registration.poll_transmit(now).is_some());
    }
    assert_eq!(code(&registration), Some("dps-timeout"));
    assert_eq!(now, began + LONGEST);
    assert!((8..=20).contains(&requests), "{requests}");
}

#[test]
fn final_states_and_refusals_are_told_apart_in_the_services_words() {
    let state = |status: &str| {
        json!({"status": status, "operationId": "4.a", "registrationState": {"status": status,
            "errorCode": 400207, "errorMessage": "no\nhub"}})
    };
    for (topic, body, expected, says) in [
        (
            "200",
            state("failed"),
            "dps-failed",
            "no hub (error 400207)",
        ),
        ("200", state("disabled"), "dps-disabled", "enable it"),
        (
            "401",
            json!({"errorCode": 401002, "message": "Unauthorized"}),
            "dps-rejected",
            "status 401: Unauthorized (error 401002)",
        ),
        ("404", json!("?"), "dps-rejected", "no reason given"),
        ("200", json!({}), "dps-answer", "says nothing"),
        (
            "202",
            json!({"status": "assigning"}),
            "dps-answer",
            "no operation",
        ),
        (
            "200",
            assigned("a/b", "pi"),
            "dps-answer",
            "not a host name",
        ),
        ("200", assigned("hub", "a/b"), "dps-answer", "device id"),
    ] {
        let (mut registration, now) = start();
        registration.poll_transmit(now).unwrap();
        answer(&mut registration, &format!("{topic}/?$rid=1"), &body, now);
        assert_eq!(code(&registration), Some(expected), "{body}");
        let error = registration.outcome().unwrap().as_ref().unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        registration.handle_timeout(now + LONGEST);
        assert_eq!(code(&registration), Some(expected), "the end is the end");
    }
}

proptest! {
    /// Whatever comes whenever: no panic, one request at a time, and it ends in time.
    #[test]
    fn every_schedule_ends(
        steps in prop::collection::vec((0_u64..40, 0_u16..700, "[ -~]{0,12}", 0_usize..5), 0..60)
    ) {
        let (mut registration, mut now) = start();
        let began = now;
        let mut open = 0;
        for (seconds, status, text, kind) in steps {
            now += SECOND * u32::try_from(seconds).unwrap();
            registration.handle_timeout(now);
            if registration.poll_transmit(now).is_some() {
                open += 1;
                prop_assert!(registration.poll_transmit(now).is_none());
            }
            let body = match kind {
                0 => json!({"operationId": text, "status": "assigning"}),
                1 => assigned(&text, &text),
                2 => json!({"status": text, "errorCode": 1}),
                3 => json!([text]),
                _ => Value::Null,
            };
            let topic = format!("{status}/?$rid={}&retry-after={text}", registration.rid);
            answer(&mut registration, &topic, &body, now);
        }
        while let Some(at) = registration.poll_timeout() {
            now = now.max(at);
            registration.handle_timeout(now);
            open += u32::from(registration.poll_transmit(now).is_some());
        }
        prop_assert!(registration.outcome().is_some());
        prop_assert_eq!(open, registration.rid);
        prop_assert!(now <= began + LONGEST + SECOND * 40 * 60);
    }

    #[test]
    fn no_topic_panics(topic in "\\PC{0,60}", payload in prop::collection::vec(any::<u8>(), 0..60)) {
        let (mut registration, now) = start();
        registration.poll_transmit(now);
        registration.handle_message(&topic, &payload, now);
        registration.handle_message(&format!("$dps/registrations/res/{topic}"), &payload, now);
        prop_assert!(registration.outcome().is_none() || topic.contains("$rid"));
    }
}
