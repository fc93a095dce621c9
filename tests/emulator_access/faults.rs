//! Each fault does what it says, as often as it says, to the device it is for, and says so in the wire log.

use std::time::{Duration, Instant};

use iothub_emulator::{Emulator, Kind, Options};
use rumqttc::{ConnectReturnCode, Packet, QoS, Subscribe, SubscribeReasonCode};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::client::{Client, LONG, METHODS, TWIN, connect, service};

const ACCEPTED: Option<ConnectReturnCode> = Some(ConnectReturnCode::Success);
const READ: &str = "$iothub/twin/res/200/?$rid=1";

async fn emulator() -> Emulator {
    let options = Options::default().device("pi-01").device("pi-02");
    Emulator::start(options).await.unwrap()
}

async fn inject(emulator: &Emulator, fault: &str) {
    emulator.inject(fault.parse().unwrap()).await.unwrap();
}

async fn opens(emulator: &Emulator, device: &str) -> Option<ConnectReturnCode> {
    Client::refusal(emulator, None, connect(emulator, device)).await
}

/// The `$version` in the topic of a desired change, and whether the payload is JSON.
async fn push(client: &mut Client) -> (u64, bool) {
    let (topic, payload) = client.message().await;
    let version = topic.rsplit_once("$version=").unwrap().1;
    let is_json = serde_json::from_slice::<Value>(&payload).is_ok();
    (version.parse().unwrap(), is_json)
}

#[tokio::test]
async fn connects_are_refused_or_just_closed_for_the_device_they_are_meant_for() {
    let emulator = emulator().await;
    inject(&emulator, "refuse-connects=2,code=5,device=pi-01").await;
    inject(&emulator, "close-connects=1,device=pi-01").await;
    assert_eq!(opens(&emulator, "pi-02").await, ACCEPTED);
    let refused = Some(ConnectReturnCode::NotAuthorized);
    for expected in [refused, refused, None, ACCEPTED] {
        assert_eq!(opens(&emulator, "pi-01").await, expected);
    }
    assert_eq!(emulator.refusals("pi-01"), 3);
}

#[tokio::test]
async fn a_start_can_be_with_faults() {
    let options = Options {
        faults: vec!["refuse-connects=1,code=4".parse().unwrap()],
        ..Options::default().device("pi-01")
    };
    let emulator = Emulator::start(options).await.unwrap();
    let refused = Some(ConnectReturnCode::BadUserNamePassword);
    assert_eq!(opens(&emulator, "pi-01").await, refused);
    assert_eq!(opens(&emulator, "pi-01").await, ACCEPTED);

    let options = Options {
        faults: vec!["drop,device=nobody".parse().unwrap()],
        ..Options::default()
    };
    let error = Emulator::start(options).await.unwrap_err();
    assert_eq!(error.code(), "emulator-fault");
}

#[tokio::test]
async fn a_failed_subscription_is_none() {
    let emulator = emulator().await;
    inject(&emulator, "fail-subscribes=1").await;
    let mut client = Client::open(&emulator, "pi-01").await;
    let mut subscribe = Subscribe::new(TWIN, QoS::AtLeastOnce);
    subscribe.pkid = 1;
    client.send(Packet::Subscribe(subscribe)).await;
    match client.next().await {
        Some(Packet::SubAck(ack)) => assert_eq!(ack.return_codes, [SubscribeReasonCode::Failure]),
        other => panic!("{other:?}"),
    }
    client.publish("$iothub/twin/GET/?$rid=1", " ").await;
    client.is_quiet().await;
    client.subscribe(&[TWIN]).await;
    assert_eq!(client.read_twin("1").await.0, READ);
}

#[tokio::test]
async fn reads_and_patches_fail_with_status_and_retry_after() {
    let emulator = emulator().await;
    let mut client = Client::up(&emulator, "pi-01").await;
    inject(&emulator, "fail-twin-reads=1,status=503").await;
    inject(&emulator, "fail-twin-patches=1,retry-after=9,device=pi-01").await;
    let (topic, body) = client.read_twin("1").await;
    assert_eq!(topic, "$iothub/twin/res/503/?$rid=1");
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["errorCode"], 503_000);
    assert_eq!(client.read_twin("1").await.0, READ);
    let refused = "$iothub/twin/res/429/?$rid=p&retry-after=9";
    assert_eq!(client.report(&json!({ "a": 1 })).await, refused);
    let taken = "$iothub/twin/res/204/?$rid=p&$version=2";
    assert_eq!(client.report(&json!({ "a": 1 })).await, taken);
    // The older call still does the same.
    emulator.fail_twin_patches(1, 500);
    assert_eq!(
        client.report(&json!({})).await,
        "$iothub/twin/res/500/?$rid=p"
    );
}

#[tokio::test]
async fn answers_come_late_never_or_spoilt() {
    let emulator = emulator().await;
    let mut client = Client::up(&emulator, "pi-01").await;
    inject(&emulator, "corrupt-twins=1").await;
    let (topic, payload) = client.read_twin("1").await;
    assert_eq!(topic, READ);
    assert!(serde_json::from_slice::<Value>(&payload).is_err());

    inject(&emulator, "swallow-twin-answers=1").await;
    client.patch("lost", &json!({ "a": 1 })).await;
    client.is_quiet().await;
    assert_eq!(emulator.twin("pi-01")["properties"]["reported"]["a"], 1);

    inject(&emulator, "delay-twin-answers=400,count=1").await;
    let start = Instant::now();
    assert_eq!(client.read_twin("1").await.0, READ);
    assert!(start.elapsed() >= Duration::from_millis(400));
    assert_eq!(emulator.faults()["faults"], json!([]));
}

#[tokio::test]
async fn a_connection_is_lost_before_or_after_its_patch_was_applied() {
    let emulator = emulator().await;
    for (fault, version) in [("drop-before-patch=1", 1), ("drop-after-patch=1", 2)] {
        let mut client = Client::up(&emulator, "pi-01").await;
        inject(&emulator, fault).await;
        client.patch("1", &json!({ "a": 1 })).await;
        assert_eq!(client.next().await, None, "{fault}");
        let reported = &emulator.twin("pi-01")["properties"]["reported"];
        assert_eq!(reported["$version"], version, "{fault}");
    }
}

#[tokio::test]
async fn a_connection_is_lost_at_the_nth_packet() {
    let emulator = emulator().await;
    let mut client = Client::open(&emulator, "pi-01").await;
    let mut other = Client::open(&emulator, "pi-02").await;
    inject(&emulator, "drop-after-packets=3,device=pi-01").await;
    for client in [&mut client, &mut other] {
        for _ in 0..2 {
            client.send(Packet::PingReq).await;
            assert_eq!(client.next().await, Some(Packet::PingResp));
        }
        client.send(Packet::PingReq).await;
    }
    assert_eq!(client.next().await, None);
    assert_eq!(other.next().await, Some(Packet::PingResp));
}

#[tokio::test]
async fn pushes_are_lost_repeated_stale_or_spoilt() {
    let emulator = emulator().await;
    let mut client = Client::up(&emulator, "pi-01").await;
    let change = |number: u64| {
        emulator
            .patch_desired("pi-01", &json!({ "n": number }))
            .unwrap();
    };
    inject(&emulator, "swallow-desired=1").await;
    change(2);
    change(3);
    assert_eq!(push(&mut client).await, (3, true));
    inject(&emulator, "repeat-desired=1").await;
    change(4);
    assert_eq!(
        [push(&mut client).await, push(&mut client).await],
        [(4, true); 2]
    );
    inject(&emulator, "stale-desired=1").await;
    change(5);
    assert_eq!(push(&mut client).await, (5, true));
    assert_eq!(push(&mut client).await, (4, true));
    inject(&emulator, "corrupt-desired=1").await;
    change(6);
    assert_eq!(push(&mut client).await, (6, false));
    change(7);
    assert_eq!(push(&mut client).await, (7, true));
    client.is_quiet().await;
}

#[tokio::test]
async fn methods_come_late_and_their_answers_get_lost() {
    let emulator = emulator().await;
    let mut client = Client::up(&emulator, "pi-01").await;
    inject(&emulator, "delay-methods=400,count=1").await;
    inject(&emulator, "swallow-method-answers=1").await;
    let (port, (http, token)) = (emulator.ready().https_port, service(&emulator));
    let call = async || {
        let body = json!({ "methodName": "m", "responseTimeoutInSeconds": 5 });
        let url = format!("https://localhost:{port}/twins/pi-01/methods?api-version=2021-04-12");
        let request = http.post(url).header("Authorization", &token);
        request
            .body(body.to_string())
            .send()
            .await
            .unwrap()
            .status()
            .as_u16()
    };
    let start = Instant::now();
    let mut answer = async |rid: &str| {
        assert_eq!(
            client.message().await.0,
            format!("$iothub/methods/POST/m/?$rid={rid}")
        );
        let came = start.elapsed();
        client
            .publish(&format!("$iothub/methods/res/200/?$rid={rid}"), "1")
            .await;
        came
    };
    let (status, came) = tokio::join!(call(), answer("1"));
    assert_eq!(status, 504);
    assert!(came >= Duration::from_millis(400), "{came:?}");
    let (status, _) = tokio::join!(call(), answer("2"));
    assert_eq!(status, 200);
}

#[tokio::test]
async fn service_calls_fail_on_request_and_device_requests_do_not() {
    let emulator = emulator().await;
    let (port, (http, token)) = (emulator.ready().https_port, service(&emulator));
    let call = async |token: &str| {
        let url = format!("https://localhost:{port}/devices/pi-01?api-version=2021-04-12");
        let request = http.get(url).header("Authorization", token);
        request.send().await.unwrap()
    };
    inject(&emulator, "fail-requests=1,retry-after=4").await;
    let mut client = Client::up(&emulator, "pi-01").await;
    assert_eq!(client.read_twin("1").await.0, READ);
    // Who may not ask at all is told that, and uses nothing up.
    assert_eq!(call("junk").await.status(), 401);
    let refused = call(&token).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers()["retry-after"], "4");
    assert_eq!(refused.headers()["iothub-errorcode"], "ThrottlingException");
    assert_eq!(call(&token).await.status(), 200);
    inject(&emulator, "fail-requests=1,status=503").await;
    assert_eq!(call(&token).await.status(), 503);
}

#[tokio::test]
async fn an_impostor_kicks_the_device_again_and_again_until_it_leaves() {
    let emulator = emulator().await;
    let mut client = Client::up(&emulator, "pi-01").await;
    inject(&emulator, "impostor=300,seconds=2,device=pi-01").await;
    let mut kicks = 0;
    // Quiet for three of its turns: it is gone, and the device stays.
    while client.is_closed_within(Duration::from_millis(900)).await {
        kicks += 1;
        client = Client::open(&emulator, "pi-01").await;
    }
    assert!(kicks >= 3, "{kicks}");
    assert_eq!(client.read_twin("1").await.0, READ);
    assert_eq!(emulator.connections("pi-01"), kicks + 1);

    // While it is in, methods go to it and are never answered.
    inject(&emulator, "impostor=100000,device=pi-01").await;
    client.is_closed().await;
    assert!(emulator.is_connected("pi-01"));
    let device = emulator
        .inject("impostor=5".parse().unwrap())
        .await
        .unwrap_err();
    assert_eq!(device.kind(), Kind::ArgumentInvalid);
    inject(&emulator, "impostor=0,device=pi-01").await;
    Client::open(&emulator, "pi-01").await.is_quiet().await;
}

#[tokio::test]
async fn everything_drops_goes_away_and_forgets_for_one_or_for_all() {
    let emulator = emulator().await;
    let mut one = Client::up(&emulator, "pi-01").await;
    let mut two = Client::up(&emulator, "pi-02").await;
    inject(&emulator, "drop,device=pi-01").await;
    one.is_closed().await;
    two.is_quiet().await;
    let mut one = Client::open(&emulator, "pi-01").await;
    inject(&emulator, "forget-session,device=pi-01").await;
    inject(&emulator, "drop").await;
    one.is_closed().await;
    two.is_closed().await;
    let mut one = Client::open(&emulator, "pi-01").await;
    let mut two = Client::open(&emulator, "pi-02").await;
    for device in ["pi-01", "pi-02"] {
        emulator.patch_desired(device, &json!({ "n": 1 })).unwrap();
    }
    one.is_quiet().await;
    assert_eq!(push(&mut two).await, (2, true));
    inject(&emulator, "expire-tokens").await;
    two.is_closed().await;
    assert_eq!(opens(&emulator, "pi-02").await, ACCEPTED);
}

#[tokio::test]
async fn faults_are_set_listed_and_ended_by_hand_and_stand_in_the_wire_log() {
    let directory = tempfile::tempdir().unwrap();
    let wire_log = directory.path().join("wire.log");
    let emulator = Emulator::start(Options {
        wire_log: Some(wire_log.clone()),
        ..Options::default().device("pi-01")
    })
    .await
    .unwrap();
    let (http, _) = service(&emulator);
    let base = format!("https://localhost:{}/emulator", emulator.ready().https_port);
    let post = async |path: &str| {
        let answer = http.post(format!("{base}{path}")).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let get = async |path: &str| {
        let answer = http.get(format!("{base}{path}")).send().await.unwrap();
        answer.text().await.unwrap()
    };
    for (path, status, part) in [
        ("/fail-twin-reads?count=2&status=503&device=pi-01", 204, ""),
        ("/delay-methods?milliseconds=5", 204, ""),
        ("/throttle?size=S1:2", 204, ""),
        ("/explode?count=1", 404, "there is no fault 'explode'"),
        ("/outage", 400, "'outage' needs 'seconds'"),
        (
            "/refuse-connects?count=1&code=9",
            400,
            "a CONNACK code, 1 to 5, not '9'",
        ),
        ("/throttle?size=B1", 400, "'B1' is no throttle"),
        (
            "/impostor?milliseconds=1&device=nobody",
            404,
            "not registered",
        ),
    ] {
        let (got, text) = post(path).await;
        assert_eq!(got, status, "{path}: {text}");
        assert!(text.contains(part), "{path}: {text}");
    }
    let mut client = Client::up(&emulator, "pi-01").await;
    assert_eq!(
        client.read_twin("1").await.0,
        "$iothub/twin/res/503/?$rid=1"
    );
    let shown: Value = serde_json::from_str(&get("/faults").await).unwrap();
    assert_eq!(
        shown,
        json!({
            "down": false,
            "faults": [
                { "fault": "fail-twin-reads", "left": 1, "status": 503, "device": "pi-01" },
                { "fault": "delay-methods", "milliseconds": 5 },
            ],
            "throttle": { "throttle": "S1:2", "refused": {} },
        })
    );
    assert_eq!(post("/calm").await.0, 204);
    assert_eq!(post("/throttle?size=off").await.0, 204);
    assert_eq!(client.read_twin("1").await.0, READ);
    let help = get("").await;
    for line in [
        "POST /emulator/refuse-connects?count=N[&code=N][&device=ID]",
        "POST /emulator/chaos?milliseconds=N[&seconds=N][&seed=N]",
        "PUT  /emulator/dps/enrollments/ID",
    ] {
        assert!(help.contains(line), "{line}\n{help}");
    }
    let manual = include_str!("../../docs/how-to/use-the-emulator.md");
    let mut listed = 0;
    for line in help.lines().skip_while(|line| !line.starts_with("Faults.")) {
        if let Some(usage) = line.strip_prefix("POST /emulator/") {
            let name = usage.split(['?', '[']).next().unwrap();
            assert!(
                manual.contains(&format!("`{name}`")),
                "{name} is not in the manual"
            );
            listed += 1;
        }
    }
    assert!(listed > 20, "{help}");
    let wire = std::fs::read_to_string(&wire_log).unwrap();
    for line in [
        "pi-01 -- fault set: fail-twin-reads=2,status=503,device=pi-01",
        "pi-01 -- fault: fail-twin-reads",
    ] {
        assert!(wire.contains(line), "{line}\n{wire}");
    }
}

/// A device that does what a right one must: whatever happens it connects again, and its last report arrives.
async fn stubborn_report(emulator: &Emulator, number: u64) {
    let patch = json!({ "n": number });
    loop {
        sleep(Duration::from_millis(30)).await;
        let hello = connect(emulator, "pi-01");
        let Some(mut client) = Client::attempt(emulator, hello).await else {
            continue;
        };
        if client.try_subscribe(&[TWIN, METHODS]).await.is_none() {
            continue;
        }
        client.patch("p", &patch).await;
        while let Some(packet) = client.try_next(Duration::from_secs(2)).await {
            if let Packet::Publish(publish) = packet
                && publish.topic.starts_with("$iothub/twin/res/204/?$rid=p")
            {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_device_survives_chaos_and_calm_ends_it() {
    let emulator = emulator().await;
    inject(&emulator, "chaos=200,seed=42").await;
    for number in 1..=12 {
        stubborn_report(&emulator, number).await;
        let reported = &emulator.twin("pi-01")["properties"]["reported"]["n"];
        assert_eq!(*reported, json!(number));
    }
    inject(&emulator, "calm").await;
    // One that it began may still run: the expiry of tokens waits up to a second for the next one of the clock.
    sleep(Duration::from_millis(1500)).await;
    let mut client = Client::up(&emulator, "pi-01").await;
    assert_eq!(client.read_twin("1").await.0, READ);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(emulator.faults()["faults"], json!([]));
    assert!(
        emulator
            .wait_until(LONG, |emulator| emulator.is_connected("pi-01"))
            .await
    );
}
