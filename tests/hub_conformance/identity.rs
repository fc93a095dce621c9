//! Keys and tokens: refused, changed, renewed.

use std::{sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    client::{Client, Login},
    hub::Hub,
    scene::{Scene, Setup},
};

/// How long a hub is watched for whether it ends a connection whose key is no longer right.
const WATCHED: Duration = Duration::from_secs(5);

/// For the daemon to come back and end another client's connection.
const KICKED: Duration = Duration::from_secs(60);

/// A key that nobody has.
pub(crate) fn new_key() -> String {
    let mut key = [0; 32];
    SystemRandom::new().fill(&mut key).unwrap();
    STANDARD.encode(key)
}

pub(crate) async fn a_wrong_key_is_refused_in_words_that_do_not_show_it(hub: Arc<Hub>) {
    let mut scene = Scene::prepare(&hub, Setup::default()).await;
    let wrong = new_key();
    scene.write_key(&wrong);
    scene.device.boot();
    let log = scene.until_logged(0, "hub-credentials-refused").await;
    assert!(log.contains("compare the connection string"), "{log}");
    // It goes on trying.
    let mark = scene.mark();
    let log = scene.until_logged(mark, "next attempt in").await;
    assert!(!log.contains("WARN"), "the same reason is said once: {log}");
    assert!(!scene.device.log().contains(&wrong));
    let right = scene.keys.primary.clone();
    scene.write_key(&right);
    // The file is read again before each attempt.
    scene.until_it_answers().await;
}

pub(crate) async fn a_device_moves_from_its_primary_to_its_secondary_key(hub: Arc<Hub>) {
    let mut scene = Scene::connected(&hub, Setup::default()).await;
    let (old, new) = (scene.keys.clone(), new_key());
    let mark = scene.mark();
    let change = |identity: &mut Value| {
        identity["authentication"]["symmetricKey"]["primaryKey"] = json!(new);
    };
    scene.keys = hub.service.change_identity(&scene.id, change).await;
    assert_eq!(scene.keys.secondary, old.secondary);
    let id = scene.id.clone();
    sleep(WATCHED).await;
    let ended = scene.device.log()[mark..].contains("no hub connection");
    let seen = if ended {
        "ends at once"
    } else {
        "stays for now"
    };
    hub.notes.note("a connection whose key was changed", seen);
    let refused = Client::refused(&hub, &Login::new(&id, &old.primary)).await;
    hub.notes.note("CONNECT with a key of yesterday", refused);
    scene.write_key(&old.secondary);
    scene.until_it_answers().await;
    // Where the old connection stood, the next one can only be made with the new key.
    let mark = scene.mark();
    let mut other = Client::up(&hub, &Login::new(&id, &old.secondary)).await;
    scene.until_logged(mark, "no hub connection").await;
    assert!(other.ends_within(KICKED).await, "the daemon comes back");
    scene.until_it_answers().await;
    let log = scene.device.log();
    assert!(!log.contains(&old.primary), "the old key is in the log");
}

pub(crate) async fn a_disabled_device_waits_its_longest_step_and_comes_back_when_enabled(
    hub: Arc<Hub>,
) {
    let setup = Setup {
        hub: "reconnect_max = \"4s\"",
        ..Setup::default()
    };
    let mut scene = Scene::connected(&hub, setup).await;
    let mark = scene.mark();
    hub.service.set_enabled(&scene.id, false).await;
    let log = scene.until_logged(mark, "hub-credentials-refused").await;
    let refused = log
        .lines()
        .find(|line| line.contains("hub-credentials-refused"));
    let refused = refused.expect("the line that was found");
    let pause = refused.split("next attempt in ").nth(1);
    let pause = pause.and_then(|rest| rest.split(" s").next()?.parse::<f32>().ok());
    let pause = pause.unwrap_or_else(|| panic!("no pause in {refused}"));
    assert!((2.0..=4.0).contains(&pause), "{refused}");
    let reply = scene
        .call("firmwareUpdateStatus", Value::Null, (10, 0))
        .await;
    assert!(reply.status >= 400, "{reply:?}");
    hub.notes
        .note("a method of a disabled device", reply.summary());
    hub.service.set_enabled(&scene.id, true).await;
    scene.until_it_answers().await;
}

pub(crate) async fn a_token_is_renewed_without_a_lost_call_or_a_warning(hub: Arc<Hub>) {
    let setup = Setup {
        hub: "reconnect_max = \"2s\"\ntoken_lifetime = \"5m\"",
        ..Setup::default()
    };
    let scene = Scene::connected(&hub, setup).await;
    let mark = scene.mark();
    let began = Instant::now();
    let mut calls = 0;
    // It renews after 80 to 85 % of the 5 minutes.
    while began.elapsed() < Duration::from_secs(275) {
        let reply = scene
            .call("firmwareUpdateStatus", Value::Null, (10, 10))
            .await;
        assert_eq!(reply.status, 200, "call {calls}: {reply:?}");
        calls += 1;
        sleep(Duration::from_secs(1)).await;
    }
    let log = scene.device.log().split_off(mark);
    assert!(log.contains("renewing the hub connection"), "{log}");
    assert!(
        !log.contains("WARN") && !log.contains("no hub connection"),
        "{log}"
    );
}
