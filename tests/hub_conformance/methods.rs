//! Direct methods: every form of the payload, every status, and calls that overlap.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    hub::Hub,
    scene::{IMAGE, Scene, Setup},
};

/// Slow enough that an update does not end before the test has looked at it.
const SLOW: u64 = 16 << 10;

pub(crate) async fn a_payload_in_any_of_the_samples_forms_starts_the_update_and_a_wrong_one_gets_400(
    hub: Arc<Hub>,
) {
    let mut scene = Scene::connected(&hub, Setup::default()).await;
    scene.server.throttle(Some(SLOW));
    let uri = scene.url(IMAGE);
    for (method, payload) in [
        ("firmwareUpdate", json!({"fwPackageUri": uri, "more": 1})),
        (
            "firmwareUpdate",
            json!(json!({"fwPackageUri": uri}).to_string()),
        ),
        ("firmwareUpdate", json!(uri)),
        ("InitiateFirmwareUpdate", json!({"FwPackageURI": uri})),
    ] {
        let (status, body) = scene.invoke(method, payload.clone()).await;
        assert_eq!(status, 200, "{payload}: {body}");
        assert_eq!(body["message"], "FirmwareUpdate started");
        let id = body["updateId"].as_str().expect("an update id").to_owned();
        let (status, body) = scene.invoke("firmwareUpdateCancel", json!({})).await;
        assert_eq!(status, 200, "{payload}: {body}");
        scene.until_end(&id).await;
    }
    for (payload, code) in [
        (Value::Null, "payload-kind"),
        (json!(5), "payload-kind"),
        (json!([uri]), "payload-kind"),
        (json!({}), "payload-no-uri"),
        (json!(""), "payload-no-uri"),
        (json!({"fwPackageUri": null}), "payload-no-uri"),
        (json!({"fwPackageUri": 5}), "payload-type"),
        (
            json!({"fwPackageUri": uri, "FWPACKAGEURI": uri}),
            "payload-ambiguous",
        ),
        (
            json!({"fwPackageUri": uri, "fwPackageSha256": "12"}),
            "payload-digest",
        ),
        (json!("not a url"), "url-malformed"),
        (json!("ftp://localhost/a.img"), "url-scheme"),
        (json!("http://localhost/a.img"), "url-insecure"),
    ] {
        let (status, body) = scene.invoke("firmwareUpdate", payload.clone()).await;
        assert_eq!(
            (status, &body["code"]),
            (400, &json!(code)),
            "{payload}: {body}"
        );
        assert!(body["message"].is_string(), "{payload}: {body}");
    }
}

pub(crate) async fn overlapping_calls_each_get_their_own_answer_while_an_update_runs(
    hub: Arc<Hub>,
) {
    let mut scene = Scene::connected(&hub, Setup::default()).await;
    scene.server.throttle(Some(SLOW));
    let uri = scene.url(IMAGE);
    let id = scene.start(&uri).await;
    scene.until_word(&id, "downloading").await;
    let other = json!({"fwPackageUri": scene.url("/other.img")});
    // Enough of them that request ids have letters, where they count in hexadecimal.
    for _ in 0..2 {
        let calls = [
            ("firmwareUpdateStatus", Value::Null),
            ("noSuchMethod", json!({})),
            ("firmwareUpdate", json!(uri)),
            ("firmwareUpdate", other.clone()),
            ("firmwareUpdateRollback", json!({})),
            ("reboot", json!({})),
            ("firmwareupdate", json!(uri)),
            ("firmwareUpdate", Value::Null),
        ];
        let answers = calls.map(|(method, payload)| scene.invoke(method, payload));
        let answers = join_all(answers).await;
        let short = |(status, body): &(i64, Value)| (*status, body["code"].clone());
        let short: Vec<_> = answers.iter().map(short).collect();
        let expected = [
            (200, Value::Null),
            (501, json!("method-unknown")),
            (200, Value::Null),
            (409, json!("update-busy")),
            (409, json!("nothing-to-roll-back")),
            (403, json!("method-disabled")),
            // Names are case-sensitive.
            (501, json!("method-unknown")),
            (400, json!("payload-kind")),
        ];
        assert_eq!(short, expected, "{answers:#?}");
        assert_eq!(
            answers[0].1["update"]["id"],
            id.as_str(),
            "{:#}",
            answers[0].1
        );
        assert_eq!(
            answers[2].1["updateId"],
            id.as_str(),
            "the same package is the same update"
        );
        assert_eq!(answers[3].1["updateId"], id.as_str(), "busy with what");
    }
    scene.server.throttle(None);
    let end = scene.until_end(&id).await;
    scene.assert_complete(&end);
}

pub(crate) async fn a_call_waits_for_a_device_that_comes_later(hub: Arc<Hub>) {
    let mut scene = Scene::prepare(&hub, Setup::default()).await;
    let nobody = hub.new_name();
    let reply = hub
        .service
        .invoke(&nobody, "reboot", &Value::Null, (10, 0))
        .await;
    // Hubs say it in either form: by the number, or in the older one by the name alone.
    assert_eq!(reply.status, 404, "{reply:?}");
    assert!(
        ["404001", "DeviceNotFound"].contains(&reply.error().as_str()),
        "{reply:?}"
    );
    let reply = scene
        .call("firmwareUpdateStatus", Value::Null, (10, 0))
        .await;
    assert_eq!(
        (reply.status, reply.error().as_str()),
        (404, "404103"),
        "{reply:?}"
    );

    let waiting = tokio::spawn({
        let (hub, id) = (Arc::clone(&hub), scene.id.clone());
        let payload = json!({"fwPackageUri": scene.url(IMAGE)});
        async move {
            hub.service
                .invoke(&id, "firmwareUpdate", &payload, (30, 120))
                .await
        }
    });
    sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished(), "the call waits");
    scene.device.boot();
    let answer = waiting.await.unwrap().expect("a call that waits");
    assert_eq!(answer["status"], 200, "{answer}");
    let id = answer["payload"]["updateId"]
        .as_str()
        .expect("an update id");
    let end = scene.until_end(id).await;
    scene.assert_complete(&end);
}
