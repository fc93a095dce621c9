//! Refusals: numbers, names, both body shapes, headers; and answers without a body.

use reqwest::Method;
use serde_json::{Value, json};

use crate::rig::{Hub, send};

const JSON: &str = "application/json; charset=utf-8";

#[tokio::test]
async fn without_a_good_token_it_is_401_in_the_old_shape() {
    let hub = Hub::with(&["a"]).await;
    let path = "/twins/a?api-version=2021-04-12";
    let ready = hub.emulator.ready();
    let key = ready
        .service_connection_string
        .split_once("SharedAccessKey=")
        .unwrap()
        .1;
    let host = format!("localhost:{}", ready.https_port);
    let sign = |resource: &str, expiry, policy| {
        iothub_emulator::sign(resource, key, expiry, policy).unwrap()
    };
    for token in [
        None,
        Some("nonsense".to_owned()),
        Some(sign(&host, 1, Some("iothubowner"))),
        Some(sign(&host, 4_000_000_000, Some("nobody"))),
        Some(sign("elsewhere", 4_000_000_000, Some("iothubowner"))),
        Some(sign(&host, 4_000_000_000, None)),
    ] {
        let request = hub.bare(Method::GET, path);
        let answer = send(match &token {
            Some(token) => request.header("Authorization", token),
            None => request,
        })
        .await;
        assert_eq!(
            answer.old_error(),
            (401, "IotHubUnauthorizedAccess"),
            "{token:?}"
        );
        assert!(
            !answer.body.to_string().contains("sig="),
            "no token in an answer"
        );
    }
}

#[tokio::test]
async fn without_an_api_version_it_is_400_in_the_old_shape() {
    let hub = Hub::with(&["a"]).await;
    for path in [
        "/twins/a",
        "/twins/a?api-version=",
        "/twins/a?api-version=latest",
        "/jobs/v2/j",
        "/configurations",
    ] {
        let answer = send(hub.bare(Method::GET, path)).await;
        assert_eq!(
            answer.old_error(),
            (400, "InvalidProtocolVersion"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_device_that_is_not_there_is_404_in_the_old_shape_as_node_reads_it() {
    let hub = Hub::with(&[]).await;
    let call = json!({ "methodName": "m" });
    for answer in [
        hub.get("/devices/none").await,
        hub.delete("/devices/none").await,
        hub.get("/twins/none").await,
        hub.patch("/twins/none", json!({})).await,
        hub.post("/twins/none/methods", call).await,
    ] {
        assert_eq!(answer.old_error(), (404, "DeviceNotFound"));
    }
}

#[tokio::test]
async fn other_refusals_are_json_in_a_string_in_json() {
    let hub = Hub::with(&["a"]).await;
    let bad_json = || hub.request(Method::PATCH, "/twins/a").body("{\"tags\":");
    let large = || {
        hub.request(Method::PATCH, "/twins/a")
            .body("x".repeat(1024 * 1024 + 1))
    };
    let bad_path = || hub.request(Method::GET, "/devices/%FF");
    for (answer, expected) in [
        (hub.get("/nowhere").await, (404_000, "GenericNotFound")),
        (
            hub.post("/twins/a", json!({})).await,
            (405_000, "GenericMethodNotAllowed"),
        ),
        (
            hub.put("/devices/a", json!({ "deviceId": "a" })).await,
            (409_001, "DeviceAlreadyExists"),
        ),
        (send(bad_json()).await, (400_004, "ArgumentInvalid")),
        (send(large()).await, (413_001, "MessageTooLarge")),
        (send(bad_path()).await, (400_004, "ArgumentInvalid")),
    ] {
        assert_eq!(answer.error(), expected);
        assert_eq!(answer.header("content-type"), JSON);
    }
}

#[tokio::test]
async fn etags_are_understood_with_and_without_quotes() {
    let hub = Hub::with(&["a"]).await;
    let put = |etag: String| {
        send(
            hub.request(Method::PUT, "/devices/a")
                .header("If-Match", etag)
                .json(&json!({ "deviceId": "a" })),
        )
    };
    let patch = |etag: String| {
        send(
            hub.request(Method::PATCH, "/twins/a")
                .header("If-Match", etag)
                .json(&json!({ "tags": { "n": 1 } })),
        )
    };
    for _ in 0..2 {
        let device = hub.get("/devices/a").await;
        let etag = device.header("etag").to_owned();
        assert_eq!(
            etag,
            format!("\"{}\"", device.body["etag"].as_str().unwrap())
        );
        assert_eq!(put(etag.clone()).await.status, 200);
        assert_eq!(put(etag).await.error(), (412_001, "PreconditionFailed"));
        let twin = hub.get("/twins/a").await;
        let etag = twin.header("etag").trim_matches('"').to_owned();
        assert_eq!(patch(etag.clone()).await.status, 200);
        assert_eq!(patch(etag).await.error(), (412_001, "PreconditionFailed"));
    }
    for any in ["*", "\"*\""] {
        assert_eq!(put(any.to_owned()).await.status, 200);
        assert_eq!(patch(any.to_owned()).await.status, 200);
    }
    let missing = hub
        .request(Method::PUT, "/devices/none")
        .header("If-Match", "\"*\"");
    assert_eq!(
        send(missing.json(&json!({}))).await.old_error(),
        (404, "DeviceNotFound")
    );
}

#[tokio::test]
async fn a_delete_answers_204_with_nothing_more_and_the_connection_goes_on() {
    let hub = Hub::with(&["a", "b"]).await;
    for device in ["a", "b"] {
        let request = hub.request(Method::DELETE, &format!("/devices/{device}"));
        let answer = send(request.header("If-Match", "\"*\"")).await;
        assert_eq!((answer.status, &answer.body), (204, &Value::Null));
        assert_eq!(answer.header("content-length"), "");
        assert_eq!(answer.header("transfer-encoding"), "");
        assert!(!answer.header("x-ms-request-id").is_empty());
    }
    assert_eq!(hub.get("/devices").await.ok(), json!([]));
}
