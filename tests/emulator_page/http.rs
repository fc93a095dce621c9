//! What the page's port says to others than its own page: other sites, slow readers, programs.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Instant,
};

use iothub_emulator::Options;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{emulator, page_url, plain_device::PlainDevice, start, support::rig::PATIENCE};

#[tokio::test(flavor = "multi_thread")]
async fn other_sites_can_neither_read_the_page_nor_use_it() {
    let emulator = emulator(&["sensor"]).await;
    let _device = PlainDevice::connect(&emulator, "sensor").await;
    let url = page_url(&emulator);
    let client = reqwest::Client::new();
    for path in ["", "events", "devices/sensor", "about"] {
        let get = client.get(format!("{url}{path}"));
        let rebound = get
            .header("Host", "evil.example:8080")
            .send()
            .await
            .unwrap();
        assert_eq!(rebound.status(), StatusCode::FORBIDDEN, "{path}");
    }
    for path in ["devices/sensor/drop", "outage?seconds=5", "up"] {
        let foreign = client.post(format!("{url}{path}")).send().await.unwrap();
        assert_eq!(foreign.status(), StatusCode::FORBIDDEN, "{path}");
        // What a browser asks first, before it sends a foreign page's request with such a header.
        let preflight = client
            .request(reqwest::Method::OPTIONS, format!("{url}{path}"))
            .header("Origin", "http://evil.example")
            .header("Access-Control-Request-Method", "POST")
            .header("Access-Control-Request-Headers", "x-emulator-page");
        let preflight = preflight.send().await.unwrap();
        assert!(!preflight.status().is_success(), "{path}");
        let allowed = preflight.headers().get("access-control-allow-origin");
        assert_eq!(allowed, None);
    }
    assert!(emulator.is_connected("sensor"));
    assert_eq!(emulator.connections("sensor"), 1);

    let page = client.get(&url).send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none';"), "{policy}");
    assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
    let own = client.post(format!("{url}devices/sensor/drop"));
    let own = own.header("X-Emulator-Page", "1").send().await.unwrap();
    assert_eq!(own.status(), StatusCode::OK);
    let unknown = client
        .get(format!("{url}devices/nobody"))
        .send()
        .await
        .unwrap();
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_no_key_and_no_signature() {
    let emulator = emulator(&["sensor"]).await;
    let device = PlainDevice::connect(&emulator, "sensor").await;
    let uri = "https://store.example/a.img?sv=1&sig=VERYSECRET&se=2";
    let update =
        json!({ "fwPackageUri": uri, "status": "downloadfailed", "error": { "message": uri } });
    device
        .report(
            &emulator,
            json!({ "iothubDM": { "firmwareUpdate": update } }),
        )
        .await;
    emulator
        .patch_desired("sensor", &json!({ "firmware": { "fwPackageURI": uri } }))
        .unwrap();
    let url = page_url(&emulator);
    let detail = reqwest::get(format!("{url}devices/sensor")).await.unwrap();
    let detail = detail.text().await.unwrap();
    assert!(detail.contains("sig=***"), "{detail}");
    let mut shown = detail;
    let mut events = Events::open(&url).await;
    shown.push_str(&events.next().await.to_string());
    let connection_string = &emulator.ready().devices["sensor"];
    let key = connection_string.rsplit_once("SharedAccessKey=").unwrap().1;
    for secret in ["VERYSECRET", key, "SharedAccessSignature"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stalls_misses_states_but_not_the_last_and_holds_up_nobody() {
    let emulator = emulator(&["sensor", "quiet"]).await;
    let device = PlainDevice::connect(&emulator, "sensor").await;
    let mut events = Events::open(&page_url(&emulator)).await;
    let snapshot = events.next().await;
    assert_eq!(snapshot["event"], "snapshot");
    assert_eq!(snapshot["data"]["devices"].as_array().unwrap().len(), 2);
    // Nobody reads while this goes on.
    let began = Instant::now();
    for n in 1..=300 {
        let patch = json!({ "iothubDM": { "firmwareVersion": n.to_string() } });
        device.report(&emulator, patch).await;
    }
    let mut deltas = 0;
    loop {
        let delta = events.next().await;
        assert_eq!(delta["event"], "delta");
        deltas += 1;
        let devices = delta["data"]["devices"].as_array().unwrap();
        assert!(
            devices.iter().all(|device| device["id"] == "sensor"),
            "{delta}"
        );
        if devices.iter().any(|device| device["firmware"] == "300") {
            break;
        }
    }
    let most = began.elapsed().as_millis() / 200 + 2;
    assert!(
        deltas <= most,
        "{deltas} events, at most {most} at one in 200 ms"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_lets_other_machines_in_keeps_its_page_to_this_one() {
    let options = Options {
        listen: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        page_port: Some(0),
        ..Options::default()
    };
    let emulator = start(options).await;
    let url = page_url(&emulator);
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    let without = start(Options::default()).await;
    assert_eq!(without.ready().page_url, None, "no page unless asked for");
}

/// The page's event stream, read by hand.
struct Events {
    stream: TcpStream,
    text: String,
}

impl Events {
    async fn open(url: &str) -> Self {
        let host = url.trim_start_matches("http://").trim_end_matches('/');
        let mut stream = TcpStream::connect(host).await.unwrap();
        let request = format!("GET /events HTTP/1.1\r\nHost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let text = String::new();
        Self { stream, text }
    }

    /// The next event, `{"event":…,"data":…}`.
    async fn next(&mut self) -> Value {
        loop {
            if let Some((event, rest)) = self
                .text
                .split_once("\n\n")
                .map(|(event, rest)| (event.to_owned(), rest.to_owned()))
            {
                self.text = rest;
                let field = |name: &str| {
                    let prefix = format!("{name}: ");
                    event
                        .lines()
                        .find_map(|line| line.strip_prefix(&prefix).map(str::to_owned))
                };
                if let (Some(name), Some(data)) = (field("event"), field("data")) {
                    let data: Value = serde_json::from_str(&data).unwrap();
                    return json!({ "event": name, "data": data });
                }
                continue;
            }
            let mut bytes = vec![0; 64 * 1024];
            let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut bytes));
            let length = read.await.expect("an event").unwrap();
            assert!(length > 0, "the stream ended");
            // Heads of chunks and of the answer stand on lines of their own, between events.
            self.text
                .push_str(std::str::from_utf8(&bytes[..length]).unwrap());
        }
    }
}
