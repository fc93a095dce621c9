//! Queries over REST: pages, item types, and what a slow query must not do.

use std::time::{Duration, Instant};

use iothub_emulator::{DeviceSpec, Options};
use reqwest::Method;
use serde_json::{Value, json};

use crate::rig::{Answer, Hub, send};

async fn page(hub: &Hub, query: &str, length: usize, token: &str) -> Answer {
    let request = hub
        .request(Method::POST, "/devices/query")
        .header("x-ms-max-item-count", length)
        .json(&json!({ "query": query }));
    send(match token {
        "" => request,
        token => request.header("x-ms-continuation", token),
    })
    .await
}

#[tokio::test]
async fn the_item_type_says_what_the_rows_are() {
    let hub = Hub::with(&["a"]).await;
    for (query, item_type) in [
        ("SELECT * FROM devices", "Twin"),
        ("SELECT deviceId FROM devices", "Raw"),
        ("SELECT COUNT() FROM devices", "Raw"),
        ("SELECT * FROM devices.jobs", "DeviceJob"),
        ("SELECT * FROM devices.modules", "Twin"),
    ] {
        let answer = page(&hub, query, 10, "").await;
        assert_eq!(answer.header("x-ms-item-type"), item_type, "{query}");
    }
    let modules = hub
        .query("SELECT * FROM devices.modules WHERE moduleId = 'x'")
        .await;
    assert_eq!(modules, [Value::Null; 0], "there are none");
}

#[tokio::test]
async fn pages_stay_in_step_while_devices_come_and_go() {
    let hub = Hub::with(&["a", "b", "c", "d", "e"]).await;
    let query = "SELECT deviceId FROM devices";
    let first = page(&hub, query, 2, "").await;
    let token = first.header("x-ms-continuation").to_owned();
    assert_eq!(
        first.ok(),
        json!([{ "deviceId": "a" }, { "deviceId": "b" }])
    );
    hub.delete("/devices/a").await.ok();
    hub.put("/devices/aa", json!({ "deviceId": "aa" }))
        .await
        .ok();
    let second = page(&hub, query, 3, &token).await;
    assert_eq!(
        second.header("x-ms-continuation"),
        "",
        "the last page has none"
    );
    assert_eq!(
        second.ok(),
        json!([{ "deviceId": "c" }, { "deviceId": "d" }, { "deviceId": "e" }])
    );
    for (query, token) in [
        ("SELECT * FROM devices", token.as_str()),
        (query, "made up"),
        (query, "MA"),
    ] {
        assert_eq!(
            page(&hub, query, 2, token).await.error(),
            (400_004, "ArgumentInvalid")
        );
    }
}

#[tokio::test]
async fn a_query_that_cannot_be_read_says_where_and_why() {
    let hub = Hub::with(&["a"]).await;
    let answer = page(
        &hub,
        "SELECT * FROM devices WHERE tags.site == 'lab'",
        2,
        "",
    )
    .await;
    assert_eq!(answer.error(), (400_004, "ArgumentInvalid"));
    assert!(
        answer.message().contains("at character 40"),
        "{}",
        answer.message()
    );
    assert_eq!(
        hub.post("/devices/query", json!({})).await.error().0,
        400_004
    );
    assert_eq!(
        page(&hub, "SELECT * FROM devices", 1001, "")
            .await
            .error()
            .0,
        400_004
    );
}

#[tokio::test]
async fn while_a_query_runs_over_thousands_of_twins_the_hub_serves_others() {
    let devices = (0..5000).map(|n| DeviceSpec {
        id: format!("d{n:04}"),
        key: None,
    });
    let options = Options {
        devices: devices.collect(),
        ..Options::default()
    };
    let hub = Hub::start(options).await;
    let members: serde_json::Map<_, _> = (0..200)
        .map(|n| (format!("member{n}"), json!({ "a": n, "b": "x" })))
        .collect();
    for n in 0..50 {
        let path = format!("/twins/d{n:04}");
        hub.patch(&path, json!({ "properties": { "desired": members } }))
            .await
            .ok();
    }
    let query = "SELECT tags.x, COUNT() AS n FROM devices WHERE properties.desired.member1.a % 2 = 1 GROUP BY tags.x";
    let started = Instant::now();
    let (rows, longest) = tokio::join!(hub.query(query), async {
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            let asked = Instant::now();
            hub.get("/twins/d0001").await.ok();
            longest = longest.max(asked.elapsed());
        }
        longest
    });
    println_for_people(&format!(
        "query {:?}, longest other call {longest:?}",
        started.elapsed()
    ));
    assert_eq!(rows, [json!({ "n": 50 })]);
}

/// For `--nocapture`: how long things take is not asserted.
fn println_for_people(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{text}");
}
