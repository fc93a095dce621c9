//! Twins: what the service writes, what the device reports, and what each of them sees of it.

use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::rig::{Device, Hub, send, well};

#[tokio::test]
async fn a_new_twin_is_as_the_hub_makes_it() {
    let hub = Hub::with(&["a"]).await;
    let answer = hub.get("/twins/a").await;
    assert_eq!(answer.header("etag"), "\"AAAAAAAAAAE=\"");
    let twin = answer.ok();
    for (member, value) in [
        ("deviceId", json!("a")),
        ("etag", json!("AAAAAAAAAAE=")),
        ("status", json!("enabled")),
        ("statusReason", Value::Null),
        ("statusUpdateTime", json!("0001-01-01T00:00:00Z")),
        ("connectionState", json!("Disconnected")),
        ("lastActivityTime", json!("0001-01-01T00:00:00Z")),
        ("cloudToDeviceMessageCount", json!(0)),
        ("authenticationType", json!("sas")),
        (
            "x509Thumbprint",
            json!({ "primaryThumbprint": null, "secondaryThumbprint": null }),
        ),
        ("modelId", json!("")),
        ("version", json!(2)),
        ("capabilities", json!({ "iotEdge": false })),
        ("tags", Value::Null),
    ] {
        assert_eq!(twin[member], value, "{member}");
    }
    assert_eq!(twin.get("tags"), None, "left out when empty");
    assert_eq!(twin["properties"]["reported"]["$version"], 1);
    let device = hub.get("/devices/a").await.ok();
    assert_eq!(twin["deviceEtag"], device["etag"]);
    assert_ne!(twin["deviceEtag"], twin["etag"]);
}

#[tokio::test]
async fn versions_and_etags_grow_with_what_they_stand_for() {
    let hub = Hub::with(&["a"]).await;
    let device = Device::connect(&hub, "a", well).await;
    let marks = || {
        let twin = hub.emulator.twin("a");
        let (desired, reported) = (
            &twin["properties"]["desired"],
            &twin["properties"]["reported"],
        );
        (
            twin["version"].as_u64().unwrap(),
            twin["etag"].as_str().unwrap().to_owned(),
            desired["$version"].as_u64().unwrap(),
            reported["$version"].as_u64().unwrap(),
        )
    };
    let (version, first, ..) = marks();
    device.report(json!({ "x": 1 })).await;
    assert_eq!(marks(), (version, first.clone(), 1, 2), "not with reported");
    hub.tag("a", json!({ "t": 1 })).await;
    let (after_tags, second, desired, _) = marks();
    assert_eq!((after_tags, desired), (version + 1, 1));
    assert_ne!(second, first);
    hub.patch("/twins/a", json!({ "properties": { "desired": {} } }))
        .await
        .ok();
    let (after_desired, third, desired, _) = marks();
    assert_eq!(
        (after_desired, desired),
        (version + 2, 2),
        "also when nothing changes"
    );
    assert_ne!(third, second);
    let update = hub
        .request(Method::PUT, "/devices/a")
        .header("If-Match", "*");
    send(update.json(&json!({ "deviceId": "a", "statusReason": "why" })))
        .await
        .ok();
    let (after_identity, fourth, ..) = marks();
    assert_eq!(
        (after_identity, fourth),
        (version + 3, third),
        "with the device, but not the etag"
    );
}

#[tokio::test]
async fn the_service_merges_replaces_and_clears() {
    let hub = Hub::with(&["a"]).await;
    let device = Device::connect(&hub, "a", well).await;
    let body = json!({ "tags": { "a": 1, "b": { "c": 2 } }, "properties": { "desired": { "x": { "y": 1, "z": 2 } } } });
    hub.patch("/twins/a", body).await.ok();
    let body = json!({ "tags": { "a": null, "b": { "d": 3 } }, "properties": { "desired": { "x": { "y": null } } } });
    let twin = hub.patch("/twins/a", body).await.ok();
    assert_eq!(twin["tags"], json!({ "b": { "c": 2, "d": 3 } }));
    assert_eq!(twin["properties"]["desired"]["x"], json!({ "z": 2 }));

    let twin = hub
        .put("/twins/a", json!({ "tags": { "only": true } }))
        .await
        .ok();
    assert_eq!(twin["tags"], json!({ "only": true }));
    assert_eq!(
        twin["properties"]["desired"]["x"],
        json!({ "z": 2 }),
        "left out: left alone"
    );
    hub.put(
        "/twins/a",
        json!({ "properties": { "desired": { "new": 1 } } }),
    )
    .await
    .ok();
    let twin = hub.patch("/twins/a", json!({ "tags": null })).await.ok();
    assert_eq!(twin.get("tags"), None);
    assert_eq!(
        device.pushed(3).await,
        [
            json!({ "x": { "y": 1, "z": 2 }, "$version": 2 }),
            json!({ "x": { "y": null }, "$version": 3 }),
            json!({ "new": 1, "$version": 4 }),
        ]
    );
}

#[tokio::test]
async fn a_twin_that_was_read_can_be_sent_back() {
    let hub = Hub::with(&["a"]).await;
    let device = Device::connect(&hub, "a", well).await;
    device.report(json!({ "state": "on" })).await;
    hub.patch(
        "/twins/a",
        json!({ "tags": { "t": 1 }, "properties": { "desired": { "d": 1 } } }),
    )
    .await
    .ok();
    let mut twin = hub.get("/twins/a").await.ok();
    twin["properties"]["reported"]["state"] = "forged".into();
    twin["tags"]["t"] = 2.into();
    let twin = hub.patch("/twins/a", twin).await.ok();
    assert_eq!(twin["tags"]["t"], 2);
    assert_eq!(
        twin["properties"]["reported"]["state"], "on",
        "reported is the device's"
    );
    assert_eq!(twin["properties"]["desired"]["d"], 1);
}

#[tokio::test]
async fn limits_are_those_of_the_hub_for_both_sides() {
    let hub = Hub::with(&["a"]).await;
    let device = Device::connect(&hub, "a", well).await;
    let nested = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!({ "k": inner }));
    let sized = |bytes: usize| -> Value {
        // Members of a name with 4 characters and a text with 996.
        let members = (0..bytes / 1000).map(|n| (format!("m{n:03}"), "x".repeat(996).into()));
        let mut members: Map<String, Value> = members.collect();
        if !bytes.is_multiple_of(1000) {
            members.insert("r".into(), "x".repeat(bytes % 1000 - 1).into());
        }
        members.into()
    };
    let bad = [
        json!({ "a.b": 1 }),
        json!({ "a b": 1 }),
        json!({ "$a": 1 }),
        json!({ "a\u{1}": 1 }),
        json!({ "a\u{9f}": 1 }),
        json!({ "k".repeat(1025): 1 }),
        json!({ "a": "x".repeat(4097) }),
        json!({ "a": [1, null] }),
        json!({ "a": [[{ "b": [null] }]] }),
        json!({ "a": 4_503_599_627_370_496_i64 }),
        json!({ "a": -4_503_599_627_370_497_i64 }),
        nested(12),
    ];
    let good = [
        json!({ "ключ": 1 }),
        json!({ "k".repeat(1024): 1 }),
        json!({ "a": "x".repeat(4096) }),
        json!({ "a": [1, [true, { "b": "c" }]] }),
        json!({ "a": 4_503_599_627_370_495_i64, "b": -4_503_599_627_370_496_i64, "c": 0.5 }),
        nested(11),
    ];
    for (members, fine) in bad
        .iter()
        .map(|m| (m, false))
        .chain(good.iter().map(|m| (m, true)))
    {
        let status = if fine { 200 } else { 400 };
        for body in [
            json!({ "tags": members }),
            json!({ "properties": { "desired": members } }),
        ] {
            let answer = hub.put("/twins/a", body).await;
            assert_eq!(answer.status, status, "{members}");
        }
        let (topic, body) = device.report(members.clone()).await;
        let expected = if fine {
            "$iothub/twin/res/204/"
        } else {
            "$iothub/twin/res/400/"
        };
        assert!(topic.starts_with(expected), "{members}: {topic} {body}");
    }
    hub.put(
        "/twins/a",
        json!({ "tags": {}, "properties": { "desired": {} } }),
    )
    .await
    .ok();
    for (section, limit) in [("tags", 8192), ("desired", 32768)] {
        let body = |bytes: usize| match section {
            "tags" => json!({ "tags": sized(bytes) }),
            _ => json!({ "properties": { "desired": sized(bytes) } }),
        };
        assert_eq!(
            hub.put("/twins/a", body(limit)).await.status,
            200,
            "{section}"
        );
        let refused = hub.put("/twins/a", body(limit + 1)).await;
        assert_eq!(
            refused.error(),
            (403_100, "DeviceModelMaxPropertiesExceeded"),
            "{section}"
        );
    }
    let clear: Map<String, Value> = good
        .iter()
        .flat_map(|members| members.as_object().unwrap().keys())
        .map(|key| (key.clone(), Value::Null))
        .collect();
    device.report(clear.into()).await;
    let (topic, _) = device.report(sized(32768)).await;
    assert!(topic.starts_with("$iothub/twin/res/204/"), "{topic}");
    let (topic, body) = device.report(json!({ "z": 1 })).await;
    assert!(topic.starts_with("$iothub/twin/res/403/"), "{topic}");
    assert_eq!(body["errorCode"], 403_100);
    for member in ["trackingId", "message", "timestampUtc"] {
        assert!(body[member].is_string(), "{member}");
    }
}
