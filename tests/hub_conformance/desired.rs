//! Updates by desired properties, as the sample of 2018 has them.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    hub::Hub,
    scene::{IMAGE, Scene, Setup, reported, section},
};

/// How long nothing must happen.
const QUIET: Duration = Duration::from_secs(3);

/// Every word of `firmware.fwUpdateStatus` in a good update, in order.
const WORDS: [&str; 6] = [
    "current",
    "downloading",
    "verifying",
    "applying",
    "rebooting",
    "current",
];

async fn desire(scene: &Scene, version: &str, path: &str) {
    let firmware = json!({"fwVersion": version, "fwPackageURI": scene.url(path)});
    let patch = json!({"properties": {"desired": {"firmware": firmware}}});
    scene.hub.service.patch_twin(&scene.id, &patch).await;
}

fn requests(scene: &Scene, path: &str) -> usize {
    let requests = scene.server.requests();
    requests
        .iter()
        .filter(|request| request.path == path)
        .count()
}

/// Starts the daemon again and gives it time to act on a desired version that it should not act on.
async fn restart_and_wait(scene: &mut Scene) {
    scene.device.stop();
    scene.device.start();
    scene.until_it_answers().await;
    sleep(QUIET).await;
}

pub(crate) async fn a_desired_version_reaches_a_device_that_was_offline_and_is_installed_once(
    hub: Arc<Hub>,
) {
    let mut scene = Scene::prepare(&hub, Setup::default()).await;
    desire(&scene, "1.1.0", IMAGE).await;
    scene.device.boot();
    let mut words: Vec<String> = Vec::new();
    scene
        .until("the desired version", |twin| {
            let firmware = &reported(twin)["firmware"];
            let word = firmware["fwUpdateStatus"].as_str()?;
            if words.last().is_none_or(|last| last != word) {
                words.push(word.to_owned());
            }
            (firmware["currentFwVersion"] == "1.1.0" && word == "current").then_some(())
        })
        .await;
    let mut rest = WORDS.iter();
    assert!(
        words.iter().all(|word| rest.any(|good| good == word)),
        "{words:?}"
    );
    let end = section(&scene.twin().await).clone();
    scene.assert_complete(&end);

    // Neither a restart nor the same content once more starts it again.
    let asked = requests(&scene, IMAGE);
    restart_and_wait(&mut scene).await;
    desire(&scene, "1.1.0", IMAGE).await;
    sleep(QUIET).await;
    assert_eq!(requests(&scene, IMAGE), asked);
    assert_eq!(section(&scene.twin().await)["updateId"], end["updateId"]);
}

pub(crate) async fn the_newest_of_several_desired_versions_wins_and_a_bad_one_is_not_tried_again(
    hub: Arc<Hub>,
) {
    let mut scene = Scene::connected(&hub, Setup::default()).await;
    scene.server.throttle(Some(64 << 10));
    let id = scene.start(&scene.url(IMAGE)).await;
    scene.until_word(&id, "downloading").await;
    desire(&scene, "8.0.0", "/absent-8.img").await;
    desire(&scene, "9.0.0", "/absent-9.img").await;
    scene.server.throttle(None);
    // The first update's end stands only until the next one begins: a slow poll may miss it.
    let bad = |twin: &Value| {
        let firmware = &reported(twin)["firmware"];
        (section(twin)["updateId"] != id.as_str() && firmware["fwUpdateStatus"] == "error")
            .then(|| section(twin).clone())
    };
    let end = scene.until("the end of the newest", bad).await;
    assert_eq!(end["status"], "downloadfailed", "{end:#}");
    let uri = end["fwPackageUri"].as_str().unwrap_or_default();
    assert!(uri.ends_with("/absent-9.img"), "{end:#}");
    assert_eq!(
        requests(&scene, "/absent-8.img"),
        0,
        "the older one is tried"
    );
    assert_eq!(
        reported(&scene.twin().await)["firmware"]["currentFwVersion"],
        "1.1.0"
    );

    let asked = requests(&scene, "/absent-9.img");
    assert!(asked > 0);
    restart_and_wait(&mut scene).await;
    assert_eq!(
        requests(&scene, "/absent-9.img"),
        asked,
        "a bad one is tried again"
    );
}
