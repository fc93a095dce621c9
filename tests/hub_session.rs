//! The connection to the hub over real TLS and MQTT, against a scripted hub on the loopback.

#[path = "hub_session/garbage.rs"]
mod garbage;
#[path = "hub_session/overload.rs"]
mod overload;
#[path = "hub_session/peer.rs"]
mod peer;
#[path = "hub_session/renewal.rs"]
mod renewal;
#[path = "hub_session/silence.rs"]
mod silence;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use fwupdated::{
    config::{Config, HubConfig},
    hub::{
        method::Answer,
        provisioning::{Assignment, Enrollment},
        session::{
            FixedIdentity, HubEvent, Identity, IdentitySource, MethodCall, Session, SessionHandle,
            SessionOptions,
        },
    },
    update::failure::Failure,
};
use peer::{DEVICE, HUB, KEY, Peer};
use rumqttc::ConnectReturnCode;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

/// Longer than anything here takes on a busy machine.
const LONG: Duration = Duration::from_secs(20);

type Events = mpsc::Receiver<HubEvent>;

fn options(peer: &Peer) -> SessionOptions {
    options_of(KEY, &peer.tls, peer.address.port())
}

fn options_of(key: &str, tls: &Arc<rustls::ClientConfig>, port: u16) -> SessionOptions {
    let text = format!("HostName={HUB};DeviceId={DEVICE};SharedAccessKey={key}");
    let config = HubConfig {
        gateway_host: Some("localhost".to_owned()),
        mqtt_port: port,
        keep_alive: Duration::from_secs(60),
        token_lifetime: Duration::from_secs(3600),
        reconnect_max: Duration::from_millis(100),
        ..Config::built_in().hub
    };
    SessionOptions {
        start_delay: Duration::ZERO,
        client: "fwupdated/test".to_owned(),
        ..SessionOptions::new(text.parse().unwrap(), Arc::clone(tls), &config)
    }
}

async fn next(events: &mut Events) -> HubEvent {
    timeout(LONG, events.recv())
        .await
        .expect("an event comes")
        .expect("the session lives")
}

/// The next `Connected`: its number, reported and desired sections. Failures before it are skipped.
async fn connected(events: &mut Events) -> (u64, Value, Value) {
    loop {
        match next(events).await {
            HubEvent::Connected {
                connection,
                reported,
                desired,
            } => return (connection, reported, desired),
            HubEvent::Disconnected { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The code of the next failure.
async fn failure(events: &mut Events) -> String {
    match next(events).await {
        HubEvent::Disconnected { failure } => {
            // Words for people, none of the libraries' layers and manuals.
            for foreign in ["docs.rs", "Mqtt", "IO:", "serialization"] {
                assert!(!failure.message.contains(foreign), "{failure}");
            }
            failure.code
        }
        other => panic!("{other:?}"),
    }
}

async fn method(events: &mut Events) -> MethodCall {
    match next(events).await {
        HubEvent::Method(call) => call,
        other => panic!("{other:?}"),
    }
}

async fn up(peer: &Peer) -> (SessionHandle, Events, u64) {
    let (handle, mut events) = Session::spawn(options(peer));
    let (connection, ..) = connected(&mut events).await;
    (handle, events, connection)
}

fn answer(status: i32, body: Value) -> Answer {
    Answer { status, body }
}

#[tokio::test]
async fn it_says_connected_once_subscribed_and_the_twin_was_read() {
    let peer = Peer::start().await;
    peer.with(|state| {
        state.reported = json!({"a": 1, "$version": 5});
        state.desired = json!({"firmware": {"fwVersion": "2"}, "$version": 7});
    });
    let (handle, mut events) = Session::spawn(options(&peer));
    let (_, reported, desired) = connected(&mut events).await;
    assert_eq!(reported, json!({"a": 1, "$version": 5}));
    assert_eq!(desired["$version"], 7);
    peer.with(|state| {
        assert_eq!(state.seen.filters.concat().len(), 3);
        let connect = &state.seen.connects[0];
        assert!(!connect.clean_session);
        assert_eq!(
            (connect.client_id.as_str(), connect.keep_alive),
            (DEVICE, 60)
        );
    });
    handle.shutdown().await;
    peer.until("DISCONNECT", |state| state.seen.disconnects == 1)
        .await;
}

#[tokio::test]
async fn methods_are_answered_by_their_id_in_any_order_and_a_dropped_one_gets_500() {
    let peer = Peer::start().await;
    let (_handle, mut events, _) = up(&peer).await;
    let first = peer.call("firmwareUpdate", r#""https://h/x""#);
    let second = peer.call("reboot", "");
    let third = peer.call("lost", "null");
    let one = method(&mut events).await;
    assert_eq!(
        (one.name.as_str(), &one.payload[..]),
        ("firmwareUpdate", &b"\"https://h/x\""[..])
    );
    let two = method(&mut events).await;
    drop(method(&mut events).await);
    assert_eq!(timeout(LONG, third).await.unwrap().unwrap().0, 500);
    assert!(two.reply.send(answer(403, json!({"code": "no"}))));
    assert_eq!(
        timeout(LONG, second).await.unwrap().unwrap(),
        (403, json!({"code": "no"}))
    );
    assert!(one.reply.send(answer(200, json!("started"))));
    assert_eq!(
        timeout(LONG, first).await.unwrap().unwrap(),
        (200, json!("started"))
    );
}

#[tokio::test]
async fn patches_make_the_round_trip_and_those_for_an_earlier_connection_are_not_sent() {
    let peer = Peer::start().await;
    peer.with(|state| state.script.patch_status = [429, 204].into());
    let (handle, mut events, connection) = up(&peer).await;
    handle.patch(connection + 1, "stale", &json!({"a": 0}));
    handle.patch(connection, "p1", &json!({"a": 1}));
    match next(&mut events).await {
        HubEvent::TwinAnswer {
            rid,
            status: 429,
            retry_after,
            version: None,
        } => {
            assert_eq!(
                (rid.as_str(), retry_after),
                ("p1", Some(Duration::from_secs(1)))
            );
        }
        other => panic!("{other:?}"),
    }
    handle.patch(connection, "p2", &json!({"a": 1}));
    match next(&mut events).await {
        HubEvent::TwinAnswer {
            rid,
            status: 204,
            version,
            ..
        } => {
            assert_eq!((rid.as_str(), version), ("p2", Some(2)));
        }
        other => panic!("{other:?}"),
    }
    peer.with(|state| {
        assert_eq!(state.reported, json!({"a": 1, "$version": 2}));
        assert_eq!(state.seen.patches.len(), 2);
    });
}

#[tokio::test]
async fn after_a_drop_it_connects_again_subscribes_again_and_reads_the_twin_again() {
    let peer = Peer::start().await;
    let (_handle, mut events, first) = up(&peer).await;
    peer.with(|state| state.reported = json!({"b": 2, "$version": 9}));
    peer.close();
    assert_eq!(failure(&mut events).await, "hub-connection-lost");
    let (second, reported, _) = connected(&mut events).await;
    assert!(second > first);
    assert_eq!(reported["b"], 2);
    peer.with(|state| assert_eq!(state.seen.filters.len(), 2));
    let call = peer.call("m", "");
    method(&mut events).await.reply.send(answer(200, json!(1)));
    assert_eq!(timeout(LONG, call).await.unwrap().unwrap().0, 200);
}

#[tokio::test]
async fn refused_credentials_are_tried_again_until_they_are_right() {
    let peer = Peer::start().await;
    peer.with(|state| state.script.refuse_all = Some(ConnectReturnCode::NotAuthorized));
    let (_handle, mut events) = Session::spawn(options(&peer));
    for _ in 0..4 {
        assert_eq!(failure(&mut events).await, "hub-credentials-refused");
    }
    peer.with(|state| state.script.refuse_all = None);
    connected(&mut events).await;
}

#[tokio::test]
async fn after_a_refusal_it_waits_the_longest_step() {
    let peer = Peer::start().await;
    peer.with(|state| state.script.refuse_all = Some(ConnectReturnCode::BadUserNamePassword));
    let (_handle, mut events) = Session::spawn(SessionOptions {
        reconnect_max: Duration::from_secs(300),
        ..options(&peer)
    });
    assert_eq!(failure(&mut events).await, "hub-credentials-refused");
    let again = timeout(Duration::from_secs(3), events.recv()).await;
    assert!(again.is_err(), "the first short pauses are over: {again:?}");
    peer.with(|state| assert_eq!(state.seen.connects.len(), 1));
}

#[tokio::test]
async fn a_wrong_key_is_refused_and_never_shown() {
    let peer = Peer::start().await;
    let wrong = "d3Jvbmctd3Jvbmctd3Jvbmctd3Jvbmc=";
    let port = peer.address.port();
    let (_handle, mut events) = Session::spawn(options_of(wrong, &peer.tls, port));
    for _ in 0..3 {
        let HubEvent::Disconnected { failure } = next(&mut events).await else {
            panic!("refused");
        };
        assert_eq!(failure.code, "hub-credentials-refused");
        let shown = format!("{failure:?}");
        assert!(shown.contains(DEVICE) && !shown.contains("sig=") && !shown.contains(&wrong[..6]));
    }
}

#[tokio::test]
async fn every_refusal_has_its_code_and_none_ends_the_session() {
    let peer = Peer::start().await;
    peer.with(|state| {
        state.script.refuse = [
            ConnectReturnCode::ServiceUnavailable,
            ConnectReturnCode::BadClientId,
            ConnectReturnCode::BadUserNamePassword,
        ]
        .into();
        state.script.read_status = [429, 503, 200, 404].into();
    });
    let (_handle, mut events) = Session::spawn(options(&peer));
    assert_eq!(failure(&mut events).await, "hub-unavailable");
    assert_eq!(failure(&mut events).await, "hub-refused");
    assert_eq!(failure(&mut events).await, "hub-credentials-refused");
    // 429 and 503 to the twin read are waited for on the same connection.
    connected(&mut events).await;
    peer.with(|state| assert_eq!(state.seen.connects.len(), 4));
    peer.with(|state| state.script.no_subscriptions = true);
    peer.close();
    assert_eq!(failure(&mut events).await, "hub-connection-lost");
    assert_eq!(failure(&mut events).await, "hub-subscribe");
    peer.with(|state| state.script.no_subscriptions = false);
    while failure(&mut events).await != "hub-twin-refused" {}
    connected(&mut events).await;
}

/// An identity whose files are on a medium that stops answering after the first look.
struct Stalling {
    fixed: FixedIdentity,
    looks: AtomicUsize,
}

impl IdentitySource for Stalling {
    fn read(&self) -> Result<Identity, Failure> {
        if self.looks.fetch_add(1, Ordering::SeqCst) > 0 {
            std::thread::sleep(Duration::from_secs(12));
        }
        self.fixed.read()
    }

    fn keep(&self, _: &Enrollment, _: &Assignment) -> Result<(), Failure> {
        Ok(())
    }
}

#[tokio::test]
async fn an_identity_that_cannot_be_read_in_time_does_not_hold_the_next_connection_up() {
    let peer = Peer::start().await;
    let text = format!("HostName={HUB};DeviceId={DEVICE};SharedAccessKey={KEY}");
    let fixed = FixedIdentity::new(text.parse().unwrap(), Arc::clone(&peer.tls));
    let looks = AtomicUsize::new(0);
    let (_handle, mut events) = Session::spawn(SessionOptions {
        identity: Arc::new(Stalling { fixed, looks }),
        ..options(&peer)
    });
    connected(&mut events).await;
    peer.close();
    assert_eq!(failure(&mut events).await, "hub-connection-lost");
    connected(&mut events).await;
}

#[tokio::test]
async fn a_twin_that_cannot_be_read_does_not_cost_the_connection_nor_the_methods() {
    let peer = Peer::start().await;
    peer.with(|state| state.script.read_status = [403, 400].into());
    let (_handle, mut events) = Session::spawn(options(&peer));
    assert_eq!(failure(&mut events).await, "hub-twin-refused");
    let call = peer.call("m", "");
    loop {
        match next(&mut events).await {
            HubEvent::Method(call) => break assert!(call.reply.send(answer(200, json!(1)))),
            HubEvent::Disconnected { failure } => assert_eq!(failure.code, "hub-twin-refused"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(timeout(LONG, call).await.unwrap().unwrap().0, 200);
    loop {
        match next(&mut events).await {
            HubEvent::Connected { .. } => break,
            HubEvent::Disconnected { failure } => assert_eq!(failure.code, "hub-twin-refused"),
            other => panic!("{other:?}"),
        }
    }
    peer.with(|state| assert_eq!(state.seen.connects.len(), 1, "one connection for all"));
}

static CLOCK_IS_SET: AtomicBool = AtomicBool::new(false);

#[tokio::test]
async fn it_waits_for_the_clock_before_it_makes_a_token() {
    let peer = Peer::start().await;
    let clock = || {
        if CLOCK_IS_SET.load(Ordering::SeqCst) {
            jiff::Timestamp::now()
        } else {
            jiff::Timestamp::UNIX_EPOCH
        }
    };
    let (_handle, mut events) = Session::spawn(SessionOptions {
        clock,
        ..options(&peer)
    });
    assert_eq!(failure(&mut events).await, "hub-clock-not-set");
    peer.with(|state| assert!(state.seen.connects.is_empty()));
    CLOCK_IS_SET.store(true, Ordering::SeqCst);
    connected(&mut events).await;
}

static CLOCK_IS_RIGHT: AtomicBool = AtomicBool::new(false);

#[tokio::test]
async fn a_clock_that_is_set_ends_the_long_pause_after_a_refusal() {
    let peer = Peer::start().await;
    let clock = || {
        let now = jiff::Timestamp::now();
        if CLOCK_IS_RIGHT.load(Ordering::SeqCst) {
            now
        } else {
            now - jiff::SignedDuration::from_hours(48)
        }
    };
    let (_handle, mut events) = Session::spawn(SessionOptions {
        clock,
        reconnect_max: Duration::from_secs(3600),
        ..options(&peer)
    });
    assert_eq!(failure(&mut events).await, "hub-credentials-refused");
    CLOCK_IS_RIGHT.store(true, Ordering::SeqCst);
    connected(&mut events).await;
}

#[tokio::test]
async fn desired_changes_come_without_gaps() {
    let peer = Peer::start().await;
    let (_handle, mut events, _) = up(&peer).await;
    peer.desire(json!({"a": 1}));
    match next(&mut events).await {
        HubEvent::Desired { version: 2, patch } => assert_eq!(patch["a"], 1),
        other => panic!("{other:?}"),
    }
    let old = "$iothub/twin/PATCH/properties/desired/?$version=2";
    peer.publish(old, r#"{"a": 0}"#);
    peer.desire_silently(json!({"b": 2}));
    peer.desire(json!({"c": 3}));
    match next(&mut events).await {
        HubEvent::TwinRead { desired, .. } => {
            assert_eq!(desired, json!({"a": 1, "b": 2, "c": 3, "$version": 4}));
        }
        other => panic!("{other:?}"),
    }
    peer.desire(json!({"a": 5}));
    let event = next(&mut events).await;
    assert!(
        matches!(event, HubEvent::Desired { version: 5, .. }),
        "{event:?}"
    );
}

#[tokio::test]
async fn the_twin_is_read_again_when_asked_for() {
    let peer = Peer::start().await;
    let (handle, mut events, connection) = up(&peer).await;
    peer.with(|state| state.reported = json!({"theirs": 1, "$version": 9}));
    handle.read_twin(connection + 1);
    handle.read_twin(connection);
    match next(&mut events).await {
        HubEvent::TwinRead { reported, desired } => {
            assert_eq!(reported, json!({"theirs": 1, "$version": 9}));
            assert_eq!(desired["$version"], 1);
        }
        other => panic!("{other:?}"),
    }
    let none = timeout(Duration::from_millis(200), events.recv()).await;
    assert!(
        none.is_err(),
        "the other connection's is not read: {none:?}"
    );
}

#[tokio::test]
async fn a_twin_and_a_method_of_the_largest_size_pass() {
    let peer = Peer::start().await;
    let bulk = "x".repeat(200_000);
    peer.with(|state| state.reported = json!({"bulk": bulk, "$version": 1}));
    let (_handle, mut events) = Session::spawn(options(&peer));
    let (_, reported, _) = connected(&mut events).await;
    assert_eq!(reported["bulk"].as_str().unwrap().len(), 200_000);
    let _call = peer.call("m", &format!("\"{}\"", "y".repeat(128 * 1024)));
    assert_eq!(method(&mut events).await.payload.len(), 128 * 1024 + 2);
}

#[tokio::test]
async fn another_client_with_this_identity_is_named() {
    let peer = Peer::start().await;
    peer.with(|state| state.script.kick = 3);
    let (_handle, mut events) = Session::spawn(options(&peer));
    let mut codes = vec![];
    while codes.len() < 3 {
        if let HubEvent::Disconnected { failure } = next(&mut events).await {
            codes.push(failure.code);
        }
    }
    assert_eq!(
        codes,
        [
            "hub-connection-lost",
            "hub-connection-lost",
            "hub-identity-conflict"
        ]
    );
    connected(&mut events).await;
}

#[tokio::test]
async fn nothing_the_hub_sends_ends_the_session() {
    let peer = Peer::start().await;
    let (_handle, mut events, _) = up(&peer).await;
    for topic in [
        "x",
        "$iothub/methods/POST/m/?$rid=",
        "$iothub/methods/POST/%ff/?$rid=1",
        "$iothub/twin/res/x/?$rid=p",
        "$iothub/twin/res/204/?$rid=unknown",
        "devices/pi-01/messages/devicebound/%24.mid=1",
    ] {
        peer.publish(topic, vec![0xff, 0, b'{']);
    }
    peer.publish(
        "$iothub/twin/PATCH/properties/desired/?$version=2",
        "not json",
    );
    let event = next(&mut events).await;
    assert!(matches!(event, HubEvent::TwinRead { .. }), "{event:?}");
    let packets: [&[u8]; 7] = [
        &[0x00, 0x00],
        &[0x30, 0x05, 0x00, 0x09, b'a', b'b', b'c'],
        &[0x30, 0x04, 0x00, 0x02, 0xff, 0xfe],
        &[0x36, 0x05, 0x00, 0x01, b'a', 0x00, 0x01],
        &[0x90, 0x03, 0x00, 0x01, 0x80],
        &[0x30, 0xff, 0xff, 0xff, 0xff, 0x7f],
        &[0x40, 0x02, 0x00, 0x07],
    ];
    for packet in packets {
        peer.raw(packet);
        peer.close();
        while !matches!(next(&mut events).await, HubEvent::Disconnected { .. }) {}
        connected(&mut events).await;
    }
}

#[tokio::test]
async fn an_untrusted_certificate_and_a_closed_port_are_told_apart() {
    let (peer, stranger) = (Peer::start().await, Peer::start().await);
    let untrusting = options_of(KEY, &stranger.tls, peer.address.port());
    let (_handle, mut events) = Session::spawn(untrusting);
    assert_eq!(failure(&mut events).await, "hub-tls");

    let port = stranger.address.port();
    drop(stranger);
    let (_handle, mut events) = Session::spawn(options_of(KEY, &peer.tls, port));
    assert_eq!(failure(&mut events).await, "hub-unreachable");
}

#[tokio::test]
async fn a_stop_answers_open_methods_says_disconnect_and_is_quick() {
    let peer = Peer::start().await;
    let (handle, mut events, _) = up(&peer).await;
    let call = peer.call("m", "");
    let open = method(&mut events).await;
    timeout(Duration::from_secs(5), handle.shutdown())
        .await
        .unwrap();
    assert_eq!(timeout(LONG, call).await.unwrap().unwrap().0, 503);
    assert!(
        !open.reply.send(answer(200, json!(1))),
        "the caller is gone"
    );
    peer.until("DISCONNECT", |state| state.seen.disconnects == 1)
        .await;
    assert!(events.recv().await.is_none());
}

#[tokio::test]
async fn a_stop_while_it_cannot_connect_is_quick() {
    let peer = Peer::start().await;
    peer.with(|state| state.script.refuse_all = Some(ConnectReturnCode::NotAuthorized));
    let (handle, mut events) = Session::spawn(SessionOptions {
        reconnect_max: Duration::from_secs(3600),
        ..options(&peer)
    });
    assert_eq!(failure(&mut events).await, "hub-credentials-refused");
    timeout(Duration::from_secs(2), handle.shutdown())
        .await
        .unwrap();
}
