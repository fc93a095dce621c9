//! A hub, or a network, that says nothing any more.

use std::time::Instant;

use super::{peer::Mute, *};

/// Nothing waits longer for a hub that is silent, but for the scheduling of a busy machine.
const NOTICED: Duration = Duration::from_secs(45);

/// The code of the next failure, however long it takes to notice.
async fn noticed(events: &mut Events) -> String {
    let event = timeout(NOTICED, events.recv())
        .await
        .expect("it is noticed");
    match event.expect("the session lives") {
        HubEvent::Disconnected { failure } => failure.code,
        other => panic!("{other:?}"),
    }
}

/// A session that meets silence from `mute` on: what it says, and that it comes back when the hub does.
async fn meets(mute: Mute, code: &str) {
    let peer = Peer::start().await;
    peer.with(|state| state.script.mute = Some(mute));
    let (_handle, mut events) = Session::spawn(SessionOptions {
        reconnect_max: Duration::from_secs(3),
        ..options(&peer)
    });
    assert_eq!(noticed(&mut events).await, code, "{mute:?}");
    peer.with(|state| state.script.mute = None);
    connected(&mut events).await;
}

#[tokio::test]
async fn a_hub_that_takes_connections_and_says_nothing_is_given_up_at_each_step() {
    tokio::join!(
        meets(Mute::BeforeTls, "hub-timeout"),
        meets(Mute::BeforeConnAck, "hub-timeout"),
        meets(Mute::BeforeSubAck, "hub-subscribe"),
        meets(Mute::BeforeTwin, "hub-twin-silent"),
    );
}

#[tokio::test]
async fn a_dead_connection_is_noticed_by_a_ping_within_one_and_a_half_keep_alives() {
    let peer = Peer::start().await;
    let (_handle, mut events) = Session::spawn(SessionOptions {
        keep_alive: Duration::from_secs(10),
        ..options(&peer)
    });
    connected(&mut events).await;
    peer.mute();
    let since = Instant::now();
    assert_eq!(noticed(&mut events).await, "hub-silent");
    // One and a half, and what a busy machine may add.
    assert!(
        since.elapsed() < Duration::from_secs(20),
        "{:?}",
        since.elapsed()
    );
    peer.with(|state| state.script.mute = None);
    connected(&mut events).await;
}

#[tokio::test]
async fn a_dead_connection_is_noticed_sooner_while_a_patch_waits() {
    let peer = Peer::start().await;
    let (handle, mut events) = Session::spawn(SessionOptions {
        keep_alive: Duration::from_secs(230),
        ..options(&peer)
    });
    let (connection, ..) = connected(&mut events).await;
    peer.mute();
    handle.patch(connection, "p1", &json!({"a": 1}));
    assert_eq!(noticed(&mut events).await, "hub-silent");
    peer.with(|state| state.script.mute = None);
    connected(&mut events).await;
}

#[tokio::test]
async fn a_patch_that_is_not_answered_does_not_end_a_connection_on_which_something_comes() {
    let peer = Peer::start().await;
    peer.with(|state| state.script.patch_status = [0].into());
    let (handle, mut events) = Session::spawn(SessionOptions {
        keep_alive: Duration::from_secs(10),
        ..options(&peer)
    });
    let (connection, ..) = connected(&mut events).await;
    handle.patch(connection, "p1", &json!({"a": 1}));
    for version in 2..10 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        peer.desire(json!({"a": version}));
        let event = next(&mut events).await;
        assert!(matches!(event, HubEvent::Desired { .. }), "{event:?}");
    }
}
