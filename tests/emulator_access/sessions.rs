//! The hub's rules for a connection: what it keeps, what it acknowledges, and what makes it close.

use std::time::Duration;

use iothub_emulator::{Emulator, Options};
use rumqttc::{
    ConnectReturnCode, LastWill, Packet, Publish, QoS, Subscribe, SubscribeReasonCode, Unsubscribe,
};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::client::{Client, DESIRED, LONG, METHODS, TWIN, connect, connect_with_key};

const EVENTS: &str = "devices/pi-01/messages/events/";

async fn emulator() -> Emulator {
    Emulator::start(Options::default().device("pi-01").device("pi-02"))
        .await
        .unwrap()
}

fn publish(topic: &str, qos: QoS, id: u16) -> Publish {
    let mut publish = Publish::new(topic, qos, "{}");
    publish.pkid = id;
    publish
}

#[tokio::test]
async fn what_the_hub_does_not_allow_closes_the_connection() {
    let emulator = emulator().await;
    let subscribe = |filter: &str| {
        let mut subscribe = Subscribe::new(filter, QoS::AtMostOnce);
        subscribe.pkid = 1;
        Packet::Subscribe(subscribe)
    };
    let unsubscribe = |filter: &str| {
        let mut unsubscribe = Unsubscribe::new(filter);
        unsubscribe.pkid = 1;
        Packet::Unsubscribe(unsubscribe)
    };
    let cases = [
        subscribe("#"),
        subscribe("$iothub/methods/#"),
        subscribe("devices/pi-02/messages/devicebound/#"),
        unsubscribe("devices/pi-01/#"),
        Packet::Publish(publish("somewhere", QoS::AtMostOnce, 0)),
        Packet::Publish(publish(
            "devices/pi-02/messages/events/",
            QoS::AtLeastOnce,
            1,
        )),
        Packet::Publish(publish(
            "$iothub/twin/PATCH/properties/desired/?$rid=1",
            QoS::AtMostOnce,
            0,
        )),
        Packet::Publish(publish(EVENTS, QoS::ExactlyOnce, 1)),
        Packet::Connect(connect(&emulator, "pi-01")),
        Packet::PingResp,
    ];
    for packet in cases {
        let shown = format!("{packet:?}");
        let mut client = Client::open(&emulator, "pi-01").await;
        client.send(packet).await;
        assert_eq!(client.next().await, None, "{shown}");
        let gone = |emulator: &Emulator| !emulator.is_connected("pi-01");
        assert!(emulator.wait_until(LONG, gone).await, "{shown}");
    }
}

#[tokio::test]
async fn a_malformed_packet_and_one_over_256_kb_close_the_connection() {
    let emulator = emulator().await;
    let mut client = Client::open(&emulator, "pi-01").await;
    // Type 15 does not exist.
    client.send_bytes(&[0xf0, 0x00]).await;
    client.is_closed().await;

    let mut client = Client::open(&emulator, "pi-01").await;
    client.publish(EVENTS, vec![b'x'; 200 * 1024]).await;
    let arrived = |emulator: &Emulator| emulator.telemetry("pi-01").len() == 1;
    assert!(emulator.wait_until(LONG, arrived).await);
    client.publish(EVENTS, vec![b'x'; 256 * 1024 + 1]).await;
    client.is_closed().await;
    assert_eq!(emulator.telemetry("pi-01").len(), 1);
}

#[tokio::test]
async fn other_protocol_levels_and_an_empty_client_id_are_refused_by_their_codes() {
    let emulator = emulator().await;
    let mut client = Client::dial(&emulator, None).await;
    // A CONNECT of MQTT 3.1: protocol level 3.
    let connect_3 = [
        0x10, 0x10, 0x00, 0x04, b'M', b'Q', b'T', b'T', 0x03, 0x02, 0x00, 0x3c, 0x00, 0x04, b'p',
        b'i', b'0', b'1',
    ];
    client.send_bytes(&connect_3).await;
    match client.next().await {
        Some(Packet::ConnAck(ack)) => {
            assert_eq!(ack.code, ConnectReturnCode::RefusedProtocolVersion);
        }
        other => panic!("{other:?}"),
    }
    client.is_closed().await;

    let mut nameless = connect(&emulator, "pi-01");
    nameless.client_id.clear();
    let code = Client::refusal(&emulator, None, nameless).await;
    assert_eq!(code, Some(ConnectReturnCode::BadClientId));
}

#[tokio::test]
async fn every_qos_1_publish_is_acknowledged_in_order_and_qos_2_subscriptions_become_1() {
    let emulator = emulator().await;
    let mut client = Client::open(&emulator, "pi-01").await;
    let mut subscribe = Subscribe::new(TWIN, QoS::ExactlyOnce);
    subscribe.pkid = 9;
    client.send(Packet::Subscribe(subscribe)).await;
    match client.next().await {
        Some(Packet::SubAck(ack)) => assert_eq!(
            ack.return_codes,
            [SubscribeReasonCode::Success(QoS::AtLeastOnce)]
        ),
        other => panic!("{other:?}"),
    }
    let patch = "$iothub/twin/PATCH/properties/reported/?$rid=a";
    for (topic, id) in [
        (EVENTS, 11),
        (patch, 300),
        ("$iothub/methods/res/200/?$rid=77", 2),
        ("$iothub/twin/GET/?$rid=b", 65535),
        (EVENTS, 1),
    ] {
        client
            .send(Packet::Publish(publish(topic, QoS::AtLeastOnce, id)))
            .await;
    }
    let (mut acknowledged, mut answered) = (Vec::new(), Vec::new());
    while acknowledged.len() < 5 || answered.len() < 2 {
        match client.next().await {
            Some(Packet::PubAck(ack)) => acknowledged.push(ack.pkid),
            Some(Packet::Publish(answer)) => answered.push(answer.topic),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(acknowledged, [11, 300, 2, 65535, 1]);
    assert_eq!(
        answered,
        [
            "$iothub/twin/res/204/?$rid=a&$version=2",
            "$iothub/twin/res/200/?$rid=b"
        ]
    );
}

#[tokio::test]
async fn a_retained_message_is_no_retained_message_but_says_so() {
    let emulator = emulator().await;
    let mut client = Client::open(&emulator, "pi-01").await;
    let mut retained = publish("devices/pi-01/messages/events/a=b", QoS::AtLeastOnce, 1);
    retained.retain = true;
    client.send(Packet::Publish(retained)).await;
    assert!(matches!(client.next().await, Some(Packet::PubAck(_))));
    let kept = emulator.telemetry("pi-01");
    assert_eq!(
        kept[0]["properties"],
        json!({ "a": "b", "mqtt-retain": "true" })
    );
}

#[tokio::test]
async fn a_kept_session_restores_subscriptions_and_a_clean_one_drops_them() {
    let emulator = emulator().await;
    let mut client = Client::open(&emulator, "pi-01").await;
    client.subscribe(&[TWIN, METHODS, DESIRED]).await;
    let unsubscribe = Packet::Unsubscribe({
        let mut unsubscribe = Unsubscribe::new(METHODS);
        unsubscribe.pkid = 5;
        unsubscribe
    });
    client.send(unsubscribe).await;
    assert!(matches!(client.next().await, Some(Packet::UnsubAck(ack)) if ack.pkid == 5));
    client.send(Packet::Disconnect).await;
    client.is_closed().await;

    // Offline means lost: this push never comes.
    emulator
        .patch_desired("pi-01", &json!({ "missed": 1 }))
        .unwrap();
    let mut client = Client::open(&emulator, "pi-01").await;
    client.is_quiet().await;
    emulator
        .patch_desired("pi-01", &json!({ "seen": null }))
        .unwrap();
    let (topic, payload) = client.message().await;
    assert_eq!(topic, "$iothub/twin/PATCH/properties/desired/?$version=3");
    assert_eq!(payload, br#"{"$version":3,"seen":null}"#);
    let (topic, _) = client.read_twin("1").await;
    assert_eq!(topic, "$iothub/twin/res/200/?$rid=1");
    assert!(emulator.invoke("pi-01", "m", json!(null)).await.is_err());

    let mut clean = connect(&emulator, "pi-01");
    clean.clean_session = true;
    let mut client = Client::open_with(&emulator, None, clean).await;
    emulator
        .patch_desired("pi-01", &json!({ "deaf": 1 }))
        .unwrap();
    client.is_quiet().await;
    client.subscribe(&[DESIRED]).await;
    // What a clean session subscribes to is not kept for the next.
    let mut client = Client::open(&emulator, "pi-01").await;
    emulator
        .patch_desired("pi-01", &json!({ "deaf": 2 }))
        .unwrap();
    client.is_quiet().await;
}

#[tokio::test]
async fn an_older_connection_is_closed_only_by_one_that_may_come_in() {
    let emulator = emulator().await;
    let mut first = Client::up(&emulator, "pi-01").await;
    let wrong = connect_with_key(&emulator, "pi-01", "AAAAAAAAAAAAAAAAAAAAAA==");
    let refused = Client::refusal(&emulator, None, wrong).await;
    assert_eq!(refused, Some(ConnectReturnCode::NotAuthorized));
    first.is_quiet().await;
    let (topic, _) = first.read_twin("1").await;
    assert_eq!(topic, "$iothub/twin/res/200/?$rid=1");

    let mut second = Client::open(&emulator, "pi-01").await;
    first.is_closed().await;
    second.is_quiet().await;
    assert_eq!(emulator.connections("pi-01"), 2);
}

#[tokio::test]
async fn a_will_is_published_after_a_loss_and_not_after_a_disconnect() {
    let emulator = emulator().await;
    let with_will = |topic: &str| {
        let mut hello = connect(&emulator, "pi-01");
        hello.last_will = Some(LastWill::new(topic, "gone", QoS::AtLeastOnce, false));
        hello
    };
    let mut client = Client::open_with(&emulator, None, with_will(EVENTS)).await;
    client.send(Packet::Disconnect).await;
    client.is_closed().await;
    let gone = |emulator: &Emulator| !emulator.is_connected("pi-01");
    assert!(emulator.wait_until(LONG, gone).await);
    assert!(emulator.telemetry("pi-01").is_empty());

    drop(Client::open_with(&emulator, None, with_will(EVENTS)).await);
    let published = |emulator: &Emulator| !emulator.telemetry("pi-01").is_empty();
    assert!(emulator.wait_until(LONG, published).await);
    let will = &emulator.telemetry("pi-01")[0];
    assert_eq!(will["body"], "gone");
    assert_eq!(will["properties"]["iothub-MessageType"], "Will");

    let foreign = with_will("devices/pi-02/messages/events/");
    let refused = Client::refusal(&emulator, None, foreign).await;
    assert_ne!(refused, Some(ConnectReturnCode::Success));
}

#[tokio::test]
async fn silence_for_one_and_a_half_keep_alives_closes_and_any_packet_counts() {
    let emulator = emulator().await;
    let quick = |seconds| {
        let mut hello = connect(&emulator, "pi-01");
        hello.keep_alive = seconds;
        hello
    };
    let start = Instant::now();
    let mut client = Client::open_with(&emulator, None, quick(1)).await;
    for _ in 0..3 {
        sleep(Duration::from_millis(700)).await;
        client.publish(EVENTS, "x").await;
    }
    client.send(Packet::PingReq).await;
    assert_eq!(client.next().await, Some(Packet::PingResp));
    client.is_closed().await;
    assert!(
        start.elapsed() >= Duration::from_millis(3500),
        "{:?}",
        start.elapsed()
    );

    // Keep-alive 0 is not "at once".
    let mut client = Client::open_with(&emulator, None, quick(0)).await;
    sleep(Duration::from_secs(2)).await;
    client.send(Packet::PingReq).await;
    assert_eq!(client.next().await, Some(Packet::PingResp));
}

#[tokio::test]
async fn request_ids_of_methods_are_hexadecimal_and_start_again_with_each_connection() {
    let emulator = emulator().await;
    for _ in 0..2 {
        let mut client = Client::up(&emulator, "pi-01").await;
        for number in 1..=17_u32 {
            let answered = async {
                let (topic, _) = client.message().await;
                assert_eq!(topic, format!("$iothub/methods/POST/m/?$rid={number:x}"));
                let answer = format!("$iothub/methods/res/200/?$rid={number:x}");
                client.publish(&answer, number.to_string()).await;
            };
            let (answer, ()) = tokio::join!(emulator.invoke("pi-01", "m", json!(null)), answered);
            assert_eq!(answer.unwrap().payload, json!(number));
        }
        client.send(Packet::Disconnect).await;
    }
}
