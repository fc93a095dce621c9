//! What a hub answers to a service that asks for unusual things. As `probe_refusals`: noted rather than asserted.

use std::sync::Arc;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{hub::Hub, scene::without_bookkeeping};

pub(crate) async fn what_a_hub_answers_to_unusual_calls_of_a_service(hub: Arc<Hub>) {
    let (id, _) = hub.register().await;
    let service = &hub.service;
    let path = format!("/twins/{id}");
    let first =
        json!({"tags": {"site": "lab"}, "properties": {"desired": {"a": {"b": 1, "c": 2}}}});
    let twin = service.patch_twin(&id, &first).await;
    let version = twin["properties"]["desired"]["$version"]
        .as_u64()
        .expect("a $version");
    // Null deletes, and each write makes a version.
    let twin = service
        .patch_twin(&id, &json!({"properties": {"desired": {"a": {"b": null}}}}))
        .await;
    let desired = &twin["properties"]["desired"];
    assert_eq!(without_bookkeeping(desired), json!({"a": {"c": 2}}));
    assert_eq!(desired["$version"], version + 1);

    let whole = json!({"properties": {"desired": {"d": 4}}});
    let twin = service
        .call(Method::PUT, &path, &[], Some(&whole))
        .await
        .expect("replacing a twin");
    assert_eq!(
        without_bookkeeping(&twin["properties"]["desired"]),
        json!({"d": 4})
    );
    let kept = twin["tags"]["site"] == "lab";
    hub.notes.note(
        "tags that a PUT of a twin leaves out",
        if kept { "stay" } else { "go" },
    );
    let foreign = json!({"properties": {"reported": {"x": 1}}});
    let reply = service
        .call(Method::PATCH, &path, &[], Some(&foreign))
        .await;
    hub.notes.note(
        "reported properties in a write of a service",
        reply.summary(),
    );
    let stale = [("if-match", "\"AAAAAAAAAAA=\"")];
    let reply = service
        .call(Method::PATCH, &path, &stale, Some(&first))
        .await;
    hub.notes
        .note("a write of a twin with a stale etag", reply.summary());

    for (what, seconds) in [("offline", (10, 0)), ("for which 5 s are waited", (10, 5))] {
        let began = Instant::now();
        let reply = service.invoke(&id, "probe", &Value::Null, seconds).await;
        assert_eq!(reply.status, 404, "{reply:?}");
        let seen = format!("{} in {} s", reply.summary(), began.elapsed().as_secs());
        hub.notes
            .note(format_args!("a method of a device {what}"), seen);
    }
    let reply = service.invoke(&id, "probe", &Value::Null, (4, 0)).await;
    hub.notes
        .note("a method with a response timeout of 4 s", reply.summary());
    let reply = service
        .invoke(&hub.new_name(), "probe", &Value::Null, (10, 0))
        .await;
    hub.notes
        .note("a method of an unknown device", reply.summary());
    queries(&hub, &id).await;
    hub.delete_now(&format!("/devices/{id}"));
}

async fn queries(hub: &Hub, id: &str) {
    hub.until_indexed(id, &format!("deviceId = '{id}'")).await;
    for (what, select, condition) in [
        (
            "STARTSWITH",
            "deviceId",
            format!("STARTSWITH(deviceId, '{id}')"),
        ),
        (
            "!= on a missing path",
            "deviceId",
            format!("tags.none != 'x' AND deviceId = '{id}'"),
        ),
        (
            "NOT IS_DEFINED",
            "deviceId",
            format!("NOT IS_DEFINED(tags.none) AND deviceId = '{id}'"),
        ),
        ("TOP", "TOP 1 deviceId", format!("deviceId = '{id}'")),
        ("COUNT", "COUNT() AS n", format!("deviceId = '{id}'")),
        ("a mistake", "FROM", String::new()),
    ] {
        let query = format!("SELECT {select} FROM devices WHERE {condition}");
        let reply = hub.service.query(&query).await;
        let seen = match reply.status {
            200 => {
                let rows = reply.body.as_array().map_or(0, Vec::len);
                format!("{} rows, {}", rows, reply.header("x-ms-item-type"))
            }
            _ => reply.summary(),
        };
        hub.notes.note(format_args!("a query with {what}"), seen);
        sleep(hub.pace.ask).await;
    }
}
