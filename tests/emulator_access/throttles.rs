//! The throttles of a hub of a given size: what a device and a service tool see of them.

use std::time::{Duration, Instant};

use iothub_emulator::{Emulator, Options};
use serde_json::{Value, json};

use super::client::{Client, LONG, service};

async fn emulator(throttle: &str) -> Emulator {
    let options = Options {
        throttle: Some(throttle.parse().unwrap()),
        ..Options::default().device("pi-01")
    };
    Emulator::start(options).await.unwrap()
}

#[tokio::test]
async fn service_calls_over_the_limit_get_429001_with_header_and_body() {
    let emulator = emulator("F1").await;
    let (http, token) = service(&emulator);
    let port = emulator.ready().https_port;
    let query = async || {
        let url = format!("https://localhost:{port}/devices/query?api-version=2021-04-12");
        let request = http.post(url).header("Authorization", &token);
        let body = json!({ "query": "SELECT * FROM devices" });
        request.body(body.to_string()).send().await.unwrap()
    };
    for _ in 0..20 {
        assert_eq!(query().await.status(), 200);
    }
    let refused = query().await;
    assert_eq!(refused.status(), 429);
    let headers = refused.headers();
    assert_eq!(headers["iothub-errorcode"], "ThrottlingException");
    let wait: u32 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=3).contains(&wait), "{wait}");
    assert!(headers.contains_key("x-ms-request-id"));
    let body: Value = refused.json().await.unwrap();
    let inner: Value = serde_json::from_str(body["Message"].as_str().unwrap()).unwrap();
    assert_eq!(inner["errorCode"], 429_001);

    // Other operations have limits of their own, and a caller without a right token uses none.
    let get = async |path: &str, token: &str| {
        let url = format!("https://localhost:{port}{path}?api-version=2021-04-12");
        let request = http.get(url).header("Authorization", token);
        request.send().await.unwrap().status().as_u16()
    };
    for _ in 0..150 {
        assert_eq!(get("/devices/pi-01", "junk").await, 401);
    }
    assert_eq!(get("/devices/pi-01", &token).await, 200);
    assert_eq!(get("/twins/pi-01", &token).await, 200);
    assert_eq!(
        emulator.faults()["throttle"]["refused"],
        json!({ "queries": 1 })
    );
    emulator.throttle(None);
    assert_eq!(query().await.status(), 200);
}

#[tokio::test]
async fn twin_requests_over_the_limit_get_429_and_when_to_come_again() {
    for (throttle, refused) in [
        ("S1", "$iothub/twin/res/429/?$rid=p&retry-after=1"),
        ("S1,no-retry-after", "$iothub/twin/res/429/?$rid=p"),
    ] {
        let emulator = emulator(throttle).await;
        let mut client = Client::up(&emulator, "pi-01").await;
        // Ten seconds' worth fit at once.
        for _ in 0..700 {
            client.patch("p", &json!({ "n": 1 })).await;
        }
        let (mut taken, mut turned_away) = (0, 0);
        while taken + turned_away < 700 {
            let (topic, _) = client.message().await;
            match topic.starts_with("$iothub/twin/res/204/") {
                true => taken += 1,
                false => {
                    assert_eq!(topic, refused);
                    turned_away += 1;
                }
            }
        }
        assert!(taken >= 500 && turned_away > 0, "{taken} of 700");
        let reported = &emulator.twin("pi-01")["properties"]["reported"];
        assert_eq!(reported["$version"], taken + 1);
    }
}

#[tokio::test]
async fn telemetry_over_the_limit_is_read_slower_and_never_lost() {
    let emulator = emulator("S1").await;
    let mut client = Client::open(&emulator, "pi-01").await;
    let start = Instant::now();
    // A thousand fit at once, then a hundred a second.
    for number in 0..1_100 {
        let text = number.to_string();
        client.publish("devices/pi-01/messages/events/", text).await;
    }
    let arrived = |emulator: &Emulator| {
        let kept = emulator.telemetry("pi-01");
        kept.last().is_some_and(|last| last["body"] == "1099")
    };
    assert!(emulator.wait_until(LONG, arrived).await);
    assert!(
        start.elapsed() >= Duration::from_millis(700),
        "{:?}",
        start.elapsed()
    );
    assert!(emulator.is_connected("pi-01"));
}
