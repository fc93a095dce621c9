//! The registry: bulk requests as the Node and Python SDKs send them, lists, and modules.

use serde_json::{Value, json};

use crate::rig::{Device, Hub, LIMIT, well};

fn failures(body: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let errors = body["errors"].as_array().unwrap().iter();
    errors
        .map(|error| (text(&error["deviceId"]), text(&error["errorCode"])))
        .collect()
}

#[tokio::test]
async fn a_bulk_request_of_node_creates_updates_and_removes() {
    let hub = Hub::with(&[]).await;
    // `Registry.addDevices`, `updateDevices(…, true)` and `removeDevices(…, false)`.
    let keys = json!({ "type": "sas", "symmetricKey": { "primaryKey": "", "secondaryKey": "" } });
    let add = json!([
        { "status": "disabled", "id": "n1", "importMode": "create", "authentication": keys },
        { "id": "n2", "importMode": "create", "authentication": keys },
    ]);
    let done = hub.post("/devices", add.clone()).await.ok();
    assert_eq!(
        done,
        json!({ "isSuccessful": true, "errors": [], "warnings": [] })
    );
    let made = hub.get("/devices/n1").await.ok();
    assert_eq!(made["status"], "disabled");
    assert!(
        !made["authentication"]["symmetricKey"]["primaryKey"]
            .as_str()
            .unwrap()
            .is_empty()
    );

    let again = hub.post("/devices", add).await;
    assert_eq!(again.status, 400);
    assert_eq!(
        again.header("iothub-errorcode"),
        "BulkRegistryOperationFailure"
    );
    assert_eq!(again.body["isSuccessful"], false);
    let exists = |id: &str| (id.to_owned(), "DeviceAlreadyExists".to_owned());
    assert_eq!(failures(&again.body), [exists("n1"), exists("n2")]);
    assert!(again.body["errors"][0]["errorStatus"].is_string());

    let update = json!([{ "id": "n1", "status": "enabled", "importMode": "Update", "authentication": keys }]);
    hub.post("/devices", update).await.ok();
    let updated = hub.get("/devices/n1").await.ok();
    assert_eq!(updated["status"], "enabled");
    assert_ne!(updated["etag"], made["etag"]);

    let remove = json!([
        { "id": "n1", "etag": made["etag"], "importMode": "DeleteIfMatchETag", "authentication": keys },
        { "id": "n2", "etag": "*", "importMode": "DeleteIfMatchETag", "authentication": keys },
    ]);
    let removed = hub.post("/devices", remove).await;
    assert_eq!(
        failures(&removed.body),
        [("n1".to_owned(), "PreconditionFailed".to_owned())]
    );
    assert_eq!(
        hub.get("/devices/n1").await.status,
        200,
        "it stands in nobody else's way"
    );
    assert_eq!(
        hub.get("/devices/n2").await.old_error(),
        (404, "DeviceNotFound")
    );
}

#[tokio::test]
async fn a_bulk_request_of_python_makes_devices_with_their_twins() {
    let hub = Hub::with(&["old"]).await;
    // `bulk_create_or_update_devices` with ExportImportDevice objects.
    let body = json!([
        { "id": "p1", "importMode": "create", "status": "enabled", "tags": { "site": "lab" },
          "authentication": { "symmetricKey": { "primaryKey": "AAAAAAAAAAAAAAAAAAAAAA==", "secondaryKey": "AAAAAAAAAAAAAAAAAAAAAA==" }, "type": "sas" },
          "properties": { "desired": { "interval": 5 } } },
        { "id": "old", "importMode": "updateTwin", "tags": { "site": "roof" }, "properties": { "desired": { "interval": 9 } } },
        { "id": "none", "importMode": "updateTwin", "tags": {} },
        { "id": "p2", "importMode": "create", "tags": { "bad.name": 1 } },
        { "id": "p3", "importMode": "replace" },
        { "id": "twice", "importMode": "create" },
        { "id": "twice", "importMode": "delete" },
        { "importMode": "create" },
    ]);
    let answer = hub.post("/devices", body).await;
    assert_eq!(answer.status, 400);
    let failed = |id: &str, code: &str| (id.to_owned(), code.to_owned());
    assert_eq!(
        failures(&answer.body),
        [
            failed("none", "DeviceNotFound"),
            failed("p2", "ArgumentInvalid"),
            failed("p3", "ArgumentInvalid"),
            failed("twice", "DeviceDefinedMultipleTimes"),
            failed("twice", "DeviceDefinedMultipleTimes"),
            failed("", "ArgumentInvalid"),
        ]
    );
    let twin = hub.get("/twins/p1").await.ok();
    assert_eq!(twin["tags"], json!({ "site": "lab" }));
    assert_eq!(twin["properties"]["desired"]["interval"], 5);
    let twin = hub.get("/twins/old").await.ok();
    assert_eq!(
        (
            &twin["tags"]["site"],
            &twin["properties"]["desired"]["interval"]
        ),
        (&json!("roof"), &json!(9))
    );
    assert_eq!(
        hub.get("/devices/p2").await.status,
        404,
        "no device without its twin"
    );

    let stale = json!([{ "id": "old", "importMode": "updateTwinIfMatchETag", "twinETag": "AAAAAAAAAAE=", "tags": {} }]);
    let stale = hub.post("/devices", stale).await;
    assert_eq!(failures(&stale.body), [failed("old", "PreconditionFailed")]);
}

#[tokio::test]
async fn a_hundred_devices_are_taken_and_one_more_is_not() {
    let hub = Hub::with(&[]).await;
    let devices = |count: u32| -> Value {
        (0..count)
            .map(|n| json!({ "id": format!("d{n:03}"), "importMode": "create" }))
            .collect()
    };
    assert_eq!(
        hub.post("/devices", devices(101)).await.error(),
        (413_002, "TooManyDevices")
    );
    assert_eq!(
        hub.post("/devices", devices(0)).await.error(),
        (400_004, "ArgumentInvalid")
    );
    assert_eq!(
        hub.post("/devices", json!({})).await.error(),
        (400_004, "ArgumentInvalid")
    );
    hub.post("/devices", devices(100)).await.ok();
    // Node asks for the list with the slash.
    for (path, count) in [("/devices", 100), ("/devices/", 100), ("/devices?top=7", 7)] {
        assert_eq!(
            hub.get(path).await.ok().as_array().unwrap().len(),
            count,
            "{path}"
        );
    }
    for bad in ["0", "1001", "x"] {
        assert_eq!(
            hub.get(&format!("/devices?top={bad}")).await.error(),
            (400_004, "ArgumentInvalid")
        );
    }
    let statistics = hub.get("/statistics/devices").await.ok();
    assert_eq!(
        statistics,
        json!({ "totalDeviceCount": 100, "enabledDeviceCount": 100, "disabledDeviceCount": 0 })
    );
}

#[tokio::test]
async fn a_bulk_request_that_disables_a_device_closes_its_connection() {
    let hub = Hub::with(&["a"]).await;
    let _device = Device::connect(&hub, "a", well).await;
    hub.post(
        "/devices",
        json!([{ "id": "a", "importMode": "update", "status": "disabled" }]),
    )
    .await
    .ok();
    assert!(
        hub.emulator
            .wait_until(LIMIT, |emulator| !emulator.is_connected("a"))
            .await
    );
}

#[tokio::test]
async fn modules_are_answered_clearly() {
    let hub = Hub::with(&["a"]).await;
    assert_eq!(hub.get("/devices/a/modules").await.ok(), json!([]));
    assert_eq!(
        hub.get("/devices/none/modules").await.old_error(),
        (404, "DeviceNotFound")
    );
    let call = json!({ "methodName": "m" });
    for answer in [
        hub.get("/devices/a/modules/m").await,
        hub.delete("/devices/a/modules/m").await,
        hub.get("/twins/a/modules/m").await,
        hub.patch("/twins/a/modules/m", json!({})).await,
        hub.post("/twins/a/modules/m/methods", call).await,
    ] {
        assert_eq!(answer.error(), (404_010, "ModuleNotFound"));
    }
    let put = hub
        .put("/devices/a/modules/m", json!({ "moduleId": "m" }))
        .await;
    assert_eq!(put.error(), (400_004, "ArgumentInvalid"));
    assert!(put.message().contains("no modules"), "{}", put.message());
}
