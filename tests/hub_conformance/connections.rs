//! What a connection can suffer, and that the device makes another one and misses nothing.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    client::{Client, Login},
    hub::Hub,
    scene::{IMAGE, Scene, Setup, reported},
};

/// For the close of a connection that someone else took over.
const KICKED: Duration = Duration::from_secs(60);

pub(crate) async fn another_client_with_the_same_identity_is_named_and_survived(hub: Arc<Hub>) {
    let setup = Setup {
        hub: "reconnect_max = \"1s\"",
        ..Setup::default()
    };
    let mut scene = Scene::connected(&hub, setup).await;
    let (id, key) = (scene.id.clone(), scene.keys.primary.clone());
    // It takes the kept session away as well: the daemon is heard again only if it subscribes again.
    let other = Login {
        clean_session: true,
        ..Login::new(&id, &key)
    };
    let mark = scene.mark();
    let mut turns = 0;
    while !scene.device.log()[mark..].contains("hub-identity-conflict") {
        turns += 1;
        assert!(turns < 20, "two clients, and nobody says so");
        let mut client = Client::up(&hub, &other).await;
        // The daemon comes back, and so ends this one.
        assert!(
            client.ends_within(KICKED).await,
            "the older of two connections stays"
        );
    }
    hub.notes.note(
        "a second client with the same identity",
        "ends the first one's connection",
    );
    let log = scene
        .until_logged(mark, "another client uses this device id")
        .await;
    assert!(log.contains(&id), "{log}");
    scene.until_it_answers().await;
    let start = scene.start(&scene.url(IMAGE)).await;
    let end = scene.until_end(&start).await;
    scene.assert_complete(&end);
}

pub(crate) async fn a_reset_connection_is_made_again_with_everything_that_was_missed(
    hub: Arc<Hub>,
) {
    let (mut scene, relay) = Scene::behind_a_relay(&hub, Setup::default()).await;
    for _ in 0..3 {
        let mark = scene.mark();
        relay.reset();
        scene.until_logged(mark, "no hub connection").await;
        // Answering means that it has subscribed again.
        scene.until_it_answers().await;
    }
    relay.set_down(true);
    scene.until_it_is_offline().await;
    let uri = scene.url(IMAGE);
    let desired = json!({"firmware": {"fwVersion": "1.1.0", "fwPackageURI": uri}});
    let patch = json!({"properties": {"desired": desired}});
    hub.service.patch_twin(&scene.id, &patch).await;
    relay.set_down(false);
    scene
        .until("the version desired meanwhile", |twin| {
            (reported(twin)["firmware"]["currentFwVersion"] == "1.1.0").then_some(())
        })
        .await;
}

pub(crate) async fn a_silent_connection_is_noticed_and_made_again(hub: Arc<Hub>) {
    let setup = Setup {
        hub: "reconnect_max = \"2s\"\nkeep_alive = \"10s\"",
        ..Setup::default()
    };
    let (mut scene, relay) = Scene::behind_a_relay(&hub, setup).await;
    let mark = scene.mark();
    relay.silence();
    scene.until_logged(mark, "no hub connection").await;
    scene.until_it_answers().await;
    let id = scene.start(&scene.url(IMAGE)).await;
    let end = scene.until_end(&id).await;
    scene.assert_complete(&end);
}

pub(crate) async fn an_update_goes_on_without_the_hub_and_its_end_arrives(hub: Arc<Hub>) {
    let (mut scene, relay) = Scene::behind_a_relay(&hub, Setup::default()).await;
    scene.server.throttle(Some(64 << 10));
    let id = scene.start(&scene.url(IMAGE)).await;
    scene.until_word(&id, "downloading").await;
    relay.set_down(true);
    scene.server.throttle(None);
    scene
        .until_device("confirmed slot without a hub", |device| {
            let confirmed = device.variable("fwupdated_slot").as_deref() == Some("b");
            (confirmed && device.variable("fwupdated_trial").is_none()).then_some(())
        })
        .await;
    relay.set_down(false);
    let end = scene.until_end(&id).await;
    scene.assert_complete(&end);
}

pub(crate) async fn a_device_that_stops_says_goodbye_and_one_that_starts_goes_on(hub: Arc<Hub>) {
    let mut scene = Scene::connected(&hub, Setup::default()).await;
    scene.server.throttle(Some(64 << 10));
    let id = scene.start(&scene.url(IMAGE)).await;
    scene.until_word(&id, "downloading").await;
    scene.device.stop();
    // With a DISCONNECT the hub knows at once; otherwise a call would wait for an answer that never comes.
    let reply = scene
        .call("firmwareUpdateStatus", Value::Null, (10, 0))
        .await;
    hub.notes.note(
        "a call right after the device's DISCONNECT",
        reply.summary(),
    );
    scene.until_it_is_offline().await;
    let twin = scene.twin().await;
    assert_eq!(super::scene::section(&twin)["status"], "downloading");
    scene.server.throttle(None);
    scene.device.start();
    let end = scene.until_end(&id).await;
    scene.assert_complete(&end);
}
