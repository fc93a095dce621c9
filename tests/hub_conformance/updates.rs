//! Updates from the call to the last word, as a back end sees them.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    hub::Hub,
    scene::{GOOD, IMAGE, Scene, Setup, reported, section},
};

/// The member that each stage brings, in the order of [`GOOD`].
const TIMES: [&str; 5] = [
    "startedWaitingTime",
    "startedDownloadingTime",
    "downloadCompleteTime",
    "startedApplyingImage",
    "lastFirmwareUpdate",
];

pub(crate) async fn an_update_shows_each_stage_in_order_and_queries_find_its_end(hub: Arc<Hub>) {
    // The product's own pace, so that polls can see each stage.
    let setup = Setup {
        settings: "[report]\nreconnect_jitter = \"100ms\"\n",
        ..Setup::default()
    };
    let mut scene = Scene::connected(&hub, setup).await;
    let first = scene.twin().await;
    assert!(section(&first).is_null(), "no update yet: {first:#}");
    assert_eq!(reported(&first)["iothubDM"]["firmwareVersion"], "1.0.0");
    assert_eq!(reported(&first)["firmware"]["fwUpdateStatus"], "current");

    let back_end = tokio::spawn(poll_words(Arc::clone(&hub), scene.id.clone()));
    let id = scene.start(&scene.url(IMAGE)).await;
    let end = scene.until_end(&id).await;
    scene.assert_complete(&end);
    let words = back_end.await.unwrap();
    let mut rest = GOOD.iter();
    assert!(
        words.iter().all(|word| rest.any(|good| good == word)),
        "{words:?}"
    );
    let seen = words.join(" ");
    hub.notes.note("words that polls of the twin saw", seen);

    let times = TIMES.map(|name| {
        end[name]
            .as_str()
            .unwrap_or_else(|| panic!("{name}: {end:#}"))
    });
    assert!(times.is_sorted(), "{times:?}");
    let form = |time: &&str| time.len() == 24 && time.ends_with('Z');
    assert!(times.iter().all(form), "{times:?}");
    // However slowly one polls: the hub's own stamps prove a patch for each stage, in order.
    let twin = scene.twin().await;
    let stamps = &reported(&twin)["$metadata"]["iothubDM"]["firmwareUpdate"];
    let stamps = TIMES.map(|name| stamp(&stamps[name]["$lastUpdated"]));
    assert!(
        stamps.windows(2).all(|pair| pair[0] < pair[1]),
        "{stamps:?}"
    );

    assert_eq!(reported(&twin)["iothubDM"]["firmwareVersion"], "1.1.0");
    assert_eq!(reported(&twin)["firmware"]["currentFwVersion"], "1.1.0");
    assert_eq!(reported(&twin)["firmware"]["pendingFwVersion"], "");
    assert_eq!(reported(&twin)["firmware"]["fwUpdateStatus"], "current");
    assert_eq!(reported(&twin)["fwupdated"]["bootedSlot"], "b");
    found_by_query(&scene).await;
}

/// The words that a back end sees which looks at the twin now and then, up to the last one.
async fn poll_words(hub: Arc<Hub>, id: String) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    while words.last().is_none_or(|last| last != "applyComplete") {
        sleep(hub.pace.poll).await;
        let twin = hub.service.twin(&id).await;
        if let Some(word) = section(&twin)["status"].as_str()
            && words.last().is_none_or(|last| last != word)
        {
            words.push(word.to_owned());
        }
    }
    words
}

fn stamp(text: &Value) -> Timestamp {
    let text = text
        .as_str()
        .unwrap_or_else(|| panic!("a time, not {text}"));
    text.parse().expect("a time")
}

/// Waits until the fleet's query finds the device among those that are done.
async fn found_by_query(scene: &Scene) {
    let Scene { hub, id, .. } = scene;
    let query = format!(
        "SELECT deviceId, properties.reported.iothubDM.firmwareVersion AS version FROM devices \
         WHERE properties.reported.iothubDM.firmwareUpdate.status = 'applyComplete' AND deviceId = '{id}'"
    );
    let began = Instant::now();
    loop {
        let rows = hub.service.query(&query).await.expect("a query");
        if rows == json!([{"deviceId": id, "version": "1.1.0"}]) {
            let lag = began.elapsed().as_secs();
            hub.notes.note(
                "a query finds the end of an update after",
                format_args!("{lag} s"),
            );
            return;
        }
        assert!(began.elapsed() < hub.pace.patience, "{rows:#}");
        sleep(hub.pace.ask).await;
    }
}

pub(crate) async fn a_download_that_fails_says_why_and_the_next_update_takes_the_error_away(
    hub: Arc<Hub>,
) {
    let mut scene = Scene::connected(&hub, Setup::default()).await;
    // As long as addresses may be, so that the section is as large as it gets.
    let absent = format!("/{}.img", "absent".repeat(310));
    let id = scene
        .start(&format!("{}?sig=hidden", scene.url(&absent)))
        .await;
    let end = scene.until_end(&id).await;
    assert_eq!(end["status"], "downloadfailed", "{end:#}");
    assert_eq!(end["error"]["code"], "image-not-found", "{end:#}");
    assert!(end["error"]["message"].is_string(), "{end:#}");
    assert!(end["lastFirmwareUpdate"].is_null(), "{end:#}");
    let twin = scene.twin().await;
    assert_eq!(reported(&twin)["firmware"]["fwUpdateStatus"], "error");
    assert!(!twin.to_string().contains("hidden"), "{twin:#}");

    scene.server.throttle(Some(64 << 10));
    let id = scene.start(&scene.url(IMAGE)).await;
    scene.until_word(&id, "downloading").await;
    let twin = scene.twin().await;
    let section = section(&twin);
    for gone in ["error", "downloadCompleteTime", "startedApplyingImage"] {
        assert!(section.get(gone).is_none(), "{gone}: {section:#}");
    }
    scene.server.throttle(None);
    let end = scene.until_end(&id).await;
    scene.assert_complete(&end);
}

pub(crate) async fn an_update_can_be_cancelled_until_its_slot_is_armed(hub: Arc<Hub>) {
    // A trial that lasts until the hub's answers have come and gone.
    let setup = Setup {
        settings: "[health]\nhook_dir = \"{dir}/health.d\"\ndeadline = \"3m\"\ninterval = \"500ms\"\n",
        ..Setup::default()
    };
    let mut scene = Scene::connected(&hub, setup).await;
    scene.server.throttle(Some(16 << 10));
    let id = scene.start(&scene.url(IMAGE)).await;
    scene.until_word(&id, "downloading").await;
    let (status, body) = scene.invoke("firmwareUpdateCancel", Value::Null).await;
    assert_eq!(status, 200, "{body}");
    let end = scene.until_end(&id).await;
    assert_eq!(end["status"], "downloadfailed", "{end:#}");
    assert_eq!(end["error"]["code"], "cancelled", "{end:#}");
    let (status, body) = scene.invoke("firmwareUpdateCancel", Value::Null).await;
    assert_eq!((status, &body["code"]), (409, &json!("nothing-to-cancel")));

    // On its trial it can only be rolled back.
    scene.server.throttle(None);
    scene.device.add_health_check("10-not-yet", "exit 1");
    let id = scene.start(&scene.url(IMAGE)).await;
    scene
        .until("trial", |twin| {
            (section(twin)["progress"]["stage"] == "trial").then_some(())
        })
        .await;
    let (status, body) = scene.invoke("firmwareUpdateCancel", Value::Null).await;
    assert_eq!((status, &body["code"]), (409, &json!("too-late")));
    let (status, body) = scene.invoke("firmwareUpdateRollback", Value::Null).await;
    assert_eq!(status, 200, "{body}");
    let end = scene.until_end(&id).await;
    assert_eq!(end["status"], "applyFailed", "{end:#}");
    assert_eq!(end["error"]["code"], "rollback-requested", "{end:#}");
}

pub(crate) async fn a_slot_that_is_not_healthy_is_rolled_back_and_said(hub: Arc<Hub>) {
    let mut scene = Scene::connected(&hub, Setup::default()).await;
    scene
        .device
        .add_health_check("10-app", "echo the app does not answer\nexit 1");
    let uri = scene.url(IMAGE);
    let id = scene.start(&uri).await;
    let end = scene.until_end(&id).await;
    assert_eq!(end["status"], "applyFailed", "{end:#}");
    assert_eq!(end["error"]["code"], "health-check-failed", "{end:#}");
    let message = end["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("the app does not answer"), "{message}");
    let twin = scene.twin().await;
    assert_eq!(reported(&twin)["iothubDM"]["firmwareVersion"], "1.0.0");
    assert_eq!(reported(&twin)["firmware"]["fwUpdateStatus"], "rolledback");
    assert_eq!(reported(&twin)["fwupdated"]["bootedSlot"], "a");
    let again = json!({"fwPackageUri": uri, "fwVersion": "1.1.0"});
    let (status, body) = scene.invoke("firmwareUpdate", again).await;
    assert_eq!((status, &body["code"]), (403, &json!("known-bad")));
}
