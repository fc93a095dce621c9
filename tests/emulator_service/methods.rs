//! Direct methods: both timeouts, limits, and what is passed on as it is.

use std::time::Duration;

use serde_json::{Value, json};

use crate::rig::{Device, Hub, well};

fn call(name: &str) -> Value {
    json!({ "methodName": name, "payload": null, "responseTimeoutInSeconds": 30, "connectTimeoutInSeconds": 0 })
}

#[tokio::test]
async fn status_and_payload_are_the_devices_own() {
    let hub = Hub::with(&["a"]).await;
    let device = Device::connect(&hub, "a", |name, _| match name {
        "text" => Some((200, "\"FirmwareUpdate started\"".to_owned())),
        "empty" => Some((-7, String::new())),
        _ => Some((200, "no JSON".to_owned())),
    })
    .await;
    let answer = hub.post("/twins/a/methods", call("text")).await.ok();
    assert_eq!(
        answer,
        json!({ "status": 200, "payload": "FirmwareUpdate started" })
    );
    let answer = hub.post("/twins/a/methods", call("empty")).await.ok();
    assert_eq!(answer, json!({ "status": -7, "payload": null }));
    let bad = hub.post("/twins/a/methods", call("bad")).await;
    assert_eq!(bad.error(), (502_000, "GenericBadGateway"));
    // Python leaves out what is not set and sends a text for no payload.
    hub.post(
        "/twins/a/methods",
        json!({ "methodName": "text", "payload": "" }),
    )
    .await
    .ok();
    assert_eq!(
        device.methods().last().unwrap(),
        &("text".to_owned(), json!(""))
    );
}

#[tokio::test]
async fn a_device_that_is_not_there_is_404103_at_once_or_when_the_connect_timeout_ends() {
    let hub = Hub::with(&["a"]).await;
    let answer = hub.post("/twins/a/methods", call("m")).await;
    assert_eq!(answer.error(), (404_103, "DeviceNotOnline"));
    assert_eq!(answer.message(), "Timed out waiting for device to connect.");
    let inner = answer.inner();
    assert_eq!(inner["info"], json!({ "timeout": "00:00:00" }));
    let mut waits = call("m");
    waits["connectTimeoutInSeconds"] = 1.into();
    let answer = hub.post("/twins/a/methods", waits).await;
    let inner = answer.inner();
    assert_eq!(inner["info"], json!({ "timeout": "00:00:01" }));
    assert_eq!(
        hub.post("/twins/none/methods", call("m")).await.old_error(),
        (404, "DeviceNotFound")
    );
}

#[tokio::test]
async fn a_connect_timeout_waits_for_a_device_that_comes() {
    let hub = Hub::with(&["a"]).await;
    let mut waits = call("m");
    waits["connectTimeoutInSeconds"] = 60.into();
    let (answer, _device) = tokio::join!(hub.post("/twins/a/methods", waits), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Device::connect(&hub, "a", well).await
    });
    assert_eq!(answer.ok()["status"], 200);
}

#[tokio::test]
async fn a_device_that_does_not_answer_or_goes_away_is_504101() {
    let hub = Hub::with(&["a"]).await;
    let device = Device::connect(&hub, "a", |_, _| None).await;
    let mut short = call("m");
    short["responseTimeoutInSeconds"] = 5.into();
    let (answer, _) = tokio::join!(hub.post("/twins/a/methods", short), device.called(1));
    assert_eq!(answer.error(), (504_101, "GatewayTimeout"));
    assert_eq!(
        answer.message(),
        "Timed out waiting for the response from device."
    );
    let (answer, _) = tokio::join!(hub.post("/twins/a/methods", call("m")), async {
        device.called(2).await;
        hub.emulator.drop_connection("a")
    });
    assert_eq!(
        answer.error(),
        (504_101, "GatewayTimeout"),
        "the connection broke meanwhile"
    );
}

#[tokio::test]
async fn what_is_out_of_bounds_is_refused() {
    let hub = Hub::with(&["a"]).await;
    let _device = Device::connect(&hub, "a", |_, _| {
        Some((200, format!("\"{}\"", "x".repeat(130 * 1024))))
    })
    .await;
    let with = |member: &str, value: Value| {
        let mut call = call("m");
        call[member] = value;
        call
    };
    for (body, expected) in [
        (with("responseTimeoutInSeconds", json!(4)), 400_004),
        (with("responseTimeoutInSeconds", json!(301)), 400_004),
        (with("connectTimeoutInSeconds", json!(301)), 400_004),
        (with("methodName", json!("m".repeat(101))), 400_004),
        (with("methodName", json!("")), 400_004),
        (json!([1]), 400_004),
        (with("payload", json!("x".repeat(128 * 1024))), 413_001),
        (call("too long an answer"), 502_000),
    ] {
        assert_eq!(hub.post("/twins/a/methods", body).await.error().0, expected);
    }
}

#[tokio::test]
async fn a_device_that_answers_nothing_is_not_given_calls_without_end() {
    let hub = Hub::with(&["a"]).await;
    let device = Device::connect(&hub, "a", |_, _| None).await;
    {
        let calls = (0..50).map(|_| hub.post("/twins/a/methods", call("m")));
        let mut calls = Box::pin(futures_util::future::join_all(calls));
        tokio::select! {
            _ = &mut calls => panic!("nobody answers"),
            _ = device.called(50) => {}
        }
        let refused = tokio::select! {
            _ = &mut calls => panic!("nobody answers"),
            refused = hub.post("/twins/a/methods", call("m")) => refused,
        };
        assert_eq!(
            refused.error(),
            (403_800, "DeviceMaximumInflightMethodExceeded")
        );
    }
    // The callers have hung up: their calls count no more.
    let start = std::time::Instant::now();
    let mut short = call("m");
    short["responseTimeoutInSeconds"] = 5.into();
    while hub.post("/twins/a/methods", short.clone()).await.error().0 != 504_101 {
        assert!(start.elapsed() < crate::rig::LIMIT);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
