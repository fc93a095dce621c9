//! Configurations: what they set, take back and count.

use iothub_emulator::Options;
use reqwest::Method;
use serde_json::{Value, json};

use crate::rig::{Device, Hub, send, well};

fn configuration(id: &str, condition: &str, priority: u32, version: &str) -> Value {
    json!({
        "id": id,
        "schemaVersion": "1.0",
        "labels": { "made": "by hand" },
        "content": { "deviceContent": { "properties.desired.firmware": { "fwVersion": version } } },
        "targetCondition": condition,
        "priority": priority,
        "metrics": { "queries": {
            "current": format!("SELECT deviceId FROM devices WHERE configurations.[[{id}]].status = 'Applied' AND properties.reported.v = '{version}'"),
        } },
    })
}

fn desired(hub: &Hub, device: &str) -> Value {
    let mut desired = hub.emulator.twin(device)["properties"]["desired"].clone();
    desired
        .as_object_mut()
        .unwrap()
        .retain(|key, _| !key.starts_with('$'));
    desired
}

fn statuses(hub: &Hub, device: &str) -> Value {
    hub.emulator.twin(device)["configurations"].clone()
}

#[tokio::test]
async fn a_configuration_is_applied_to_whom_it_targets_and_counts_them() {
    let hub = Hub::with(&["a", "b", "c"]).await;
    for device in ["a", "b"] {
        hub.tag(device, json!({ "devicetype": "chiller" })).await;
    }
    let device = Device::connect(&hub, "a", well).await;
    let path = "/configurations/chillers";
    let answer = hub
        .put(
            path,
            configuration("chillers", "tags.devicetype='chiller'", 20, "2"),
        )
        .await;
    assert_eq!(
        answer.header("etag"),
        format!("\"{}\"", answer.body["etag"].as_str().unwrap())
    );
    let made = answer.ok();
    for (member, value) in [
        ("id", json!("chillers")),
        ("schemaVersion", json!("1.0")),
        ("labels", json!({ "made": "by hand" })),
        ("priority", json!(20)),
        ("targetCondition", json!("tags.devicetype='chiller'")),
        (
            "content",
            json!({ "deviceContent": { "properties.desired.firmware": { "fwVersion": "2" } } }),
        ),
    ] {
        assert_eq!(made[member], value, "{member}");
    }
    assert!(made["createdTimeUtc"].as_str().unwrap().ends_with('Z'));

    assert_eq!(
        device.pushed(1).await,
        [json!({ "firmware": { "fwVersion": "2" }, "$version": 2 })]
    );
    let all = |made: &Value| made["systemMetrics"]["results"]["appliedCount"] == 2;
    let made = hub.until(path, all).await;
    assert_eq!(
        made["systemMetrics"]["results"],
        json!({ "targetedCount": 2, "appliedCount": 2 })
    );
    assert_eq!(made["metrics"]["results"], json!({ "current": 0 }));
    assert_eq!(
        statuses(&hub, "b"),
        json!({ "chillers": { "status": "Applied" } })
    );
    assert_eq!(statuses(&hub, "c"), Value::Null);
    for query in ["targetedCount", "appliedCount"] {
        let query = made["systemMetrics"]["queries"][query].as_str().unwrap();
        assert_eq!(hub.query(query).await.len(), 2, "{query}");
    }

    device.report(json!({ "v": "2" })).await;
    let made = hub.get(path).await.ok();
    assert_eq!(made["metrics"]["results"], json!({ "current": 1 }));
    let list = hub.get("/configurations?top=5").await.ok();
    assert_eq!(list[0]["id"], "chillers");
}

#[tokio::test]
async fn who_is_targeted_no_longer_loses_the_setting_and_nothing_else() {
    let hub = Hub::with(&["a", "b"]).await;
    hub.tag("a", json!({ "ring": 1 })).await;
    let theirs = json!({ "properties": { "desired": { "theirs": true } } });
    hub.patch("/twins/a", theirs).await.ok();
    hub.put(
        "/configurations/c",
        configuration("c", "tags.ring = 1", 1, "2"),
    )
    .await
    .ok();
    hub.until("/twins/a", |twin| {
        twin["configurations"]["c"]["status"] == "Applied"
    })
    .await;
    assert_eq!(
        desired(&hub, "a"),
        json!({ "firmware": { "fwVersion": "2" }, "theirs": true })
    );
    let device = Device::connect(&hub, "a", well).await;

    hub.tag("a", json!({ "ring": 2 })).await;
    hub.tag("b", json!({ "ring": 1 })).await;
    assert_eq!(device.pushed(1).await[0]["firmware"], Value::Null);
    hub.until("/twins/b", |twin| {
        twin["configurations"]["c"]["status"] == "Applied"
    })
    .await;
    assert_eq!(desired(&hub, "a"), json!({ "theirs": true }));
    assert_eq!(statuses(&hub, "a"), Value::Null);
    assert_eq!(
        desired(&hub, "b"),
        json!({ "firmware": { "fwVersion": "2" } })
    );

    hub.delete("/configurations/c").await.ok();
    hub.emulator.apply_configurations().await;
    assert_eq!(desired(&hub, "b"), json!({}));
}

#[tokio::test]
async fn the_highest_priority_wins_and_when_it_goes_the_next_takes_over() {
    let hub = Hub::with(&["a"]).await;
    hub.put("/configurations/low", configuration("low", "*", 1, "low"))
        .await
        .ok();
    hub.put(
        "/configurations/high",
        configuration("high", "deviceId = 'a'", 9, "high"),
    )
    .await
    .ok();
    hub.emulator.apply_configurations().await;
    assert_eq!(
        desired(&hub, "a"),
        json!({ "firmware": { "fwVersion": "high" } })
    );
    assert_eq!(
        statuses(&hub, "a"),
        json!({ "high": { "status": "Applied" }, "low": { "status": "Targeted" } })
    );
    let low = hub.get("/configurations/low").await.ok();
    assert_eq!(
        low["systemMetrics"]["results"],
        json!({ "targetedCount": 1, "appliedCount": 0 })
    );
    hub.delete("/configurations/high").await.ok();
    hub.emulator.apply_configurations().await;
    assert_eq!(
        desired(&hub, "a"),
        json!({ "firmware": { "fwVersion": "low" } })
    );
}

#[tokio::test]
async fn what_is_applied_stays_applied_and_costs_no_writes() {
    let hub = Hub::with(&["a"]).await;
    hub.put("/configurations/c", configuration("c", "*", 1, "2"))
        .await
        .ok();
    hub.emulator.apply_configurations().await;
    let version = hub.emulator.twin("a")["version"].clone();
    hub.emulator.apply_configurations().await;
    assert_eq!(hub.emulator.twin("a")["version"], version);
    let other = json!({ "properties": { "desired": { "firmware": { "fwVersion": "3" } } } });
    hub.patch("/twins/a", other).await.ok();
    let back = |twin: &Value| twin["properties"]["desired"]["firmware"]["fwVersion"] == "2";
    hub.until("/twins/a", back).await;
}

#[tokio::test]
async fn a_new_device_that_is_targeted_gets_it() {
    let hub = Hub::with(&[]).await;
    hub.put("/configurations/c", configuration("c", "*", 1, "2"))
        .await
        .ok();
    hub.put("/devices/new", json!({ "deviceId": "new" }))
        .await
        .ok();
    hub.until("/twins/new", |twin| {
        twin["configurations"]["c"]["status"] == "Applied"
    })
    .await;
}

#[tokio::test]
async fn etags_guard_updates_and_deletes() {
    let hub = Hub::with(&[]).await;
    let path = "/configurations/c";
    let body = |priority| configuration("c", "*", priority, "2");
    let put = |body: Value, etag: &str| {
        send(
            hub.request(Method::PUT, path)
                .header("If-Match", etag)
                .json(&body),
        )
    };
    assert_eq!(
        put(body(1), "\"*\"").await.error(),
        (404_000, "GenericNotFound")
    );
    let etag = hub.put(path, body(1)).await.ok()["etag"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        hub.put(path, body(2)).await.error(),
        (409_000, "GenericConflict")
    );
    let new = put(body(2), &format!("\"{etag}\"")).await.ok();
    assert_eq!(new["priority"], 2);
    assert_eq!(
        put(body(3), &format!("\"{etag}\"")).await.error(),
        (412_001, "PreconditionFailed")
    );
    assert_eq!(put(body(3), "*").await.ok()["priority"], 3);
    let changed = put(configuration("c", "*", 3, "other content"), "*").await;
    assert_eq!(changed.error().0, 400_004);
    assert!(
        changed.message().contains("cannot be changed"),
        "{}",
        changed.message()
    );
    let delete = |etag: String| send(hub.request(Method::DELETE, path).header("If-Match", etag));
    assert_eq!(delete(format!("\"{etag}\"")).await.status, 412);
    let gone = delete("\"*\"".to_owned()).await;
    assert_eq!((gone.status, gone.body), (204, Value::Null));
    assert_eq!(hub.get(path).await.error(), (404_000, "GenericNotFound"));
}

#[tokio::test]
async fn queries_can_be_tested_before_they_are_used() {
    let hub = Hub::with(&[]).await;
    let body = json!({
        "targetCondition": "tags.site = ",
        "customMetricQueries": { "good": "SELECT deviceId FROM devices", "bad": "SELECT deviceId" },
    });
    let tested = hub.post("/configurations/testQueries", body).await.ok();
    assert!(
        tested["targetConditionError"]
            .as_str()
            .unwrap()
            .contains("character 13"),
        "{tested}"
    );
    assert!(tested["customMetricQueryErrors"]["bad"].is_string());
    let bad = hub
        .put(
            "/configurations/c",
            configuration("c", "tags.site =", 1, "2"),
        )
        .await;
    assert_eq!(bad.error(), (400_004, "ArgumentInvalid"));
}

#[tokio::test]
async fn configurations_and_what_they_set_are_kept_over_a_restart() {
    let state = tempfile::tempdir().unwrap();
    let options = || Options {
        state: Some(state.path().to_owned()),
        ..Options::default()
    };
    let hub = Hub::start(options().device("a")).await;
    hub.put("/configurations/c", configuration("c", "*", 1, "2"))
        .await
        .ok();
    hub.until("/twins/a", |twin| {
        twin["configurations"]["c"]["status"] == "Applied"
    })
    .await;
    hub.emulator.stop().await;

    let hub = Hub::start(options()).await;
    assert_eq!(hub.get("/configurations/c").await.ok()["priority"], 1);
    assert_eq!(statuses(&hub, "a"), json!({ "c": { "status": "Applied" } }));
    hub.delete("/configurations/c").await.ok();
    hub.emulator.apply_configurations().await;
    assert_eq!(desired(&hub, "a"), json!({}), "it knows what to take back");
}
