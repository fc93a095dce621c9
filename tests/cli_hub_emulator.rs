//! `fwupdatectl hub` by the real program against the emulator, with a device over real MQTT.

use std::{collections::BTreeMap, process::Stdio, sync::Arc, time::Duration};

use iothub_emulator::{Emulator, Options};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS, TlsConfiguration, Transport};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStderr, ChildStdout, Command},
    sync::mpsc,
    task::JoinHandle,
};

/// The longest that any step may take.
const LIMIT: Duration = Duration::from_secs(30);

/// A device of the test's own: it answers each method with `answer` and reports what it is told to.
struct Device {
    reports: mpsc::UnboundedSender<Value>,
    running: JoinHandle<()>,
}

impl Device {
    async fn connect(emulator: &Emulator, answer: Value) -> Self {
        let ready = emulator.ready();
        let parts: BTreeMap<&str, &str> = ready.devices["pi-01"]
            .split(';')
            .filter_map(|part| part.split_once('='))
            .collect();
        let host = parts["HostName"];
        let token = iothub_emulator::sign(
            &format!("{host}/devices/pi-01"),
            parts["SharedAccessKey"],
            4_000_000_000,
            None,
        )
        .unwrap();
        let tls = fwupdated::platform::tls::client_config(Some(&ready.ca_file)).unwrap();
        let mut options = MqttOptions::new("pi-01", "localhost", ready.mqtt_port);
        options
            .set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::clone(&tls))))
            .set_credentials(format!("{host}/pi-01/?api-version=2021-04-12"), token)
            .set_clean_session(false);
        let (reports, mut to_report) = mpsc::unbounded_channel::<Value>();
        let (client, mut events) = AsyncClient::new(options, 50);
        let running = tokio::spawn(async move {
            let mut unanswered: Option<Value> = None;
            let mut connected = false;
            loop {
                let event = tokio::select! {
                    event = events.poll() => event,
                    Some(report) = to_report.recv(), if connected && unanswered.is_none() => {
                        send_report(&client, &report);
                        unanswered = Some(report);
                        continue;
                    }
                };
                match event {
                    Ok(Event::Incoming(Packet::ConnAck(_))) => {
                        for topic in ["$iothub/methods/POST/#", "$iothub/twin/res/#"] {
                            client.try_subscribe(topic, QoS::AtMostOnce).unwrap();
                        }
                        connected = true;
                        if let Some(report) = &unanswered {
                            send_report(&client, report);
                        }
                    }
                    Ok(Event::Incoming(Packet::Publish(message))) => {
                        let topic = std::str::from_utf8(message.topic.as_ref()).unwrap();
                        if let Some((_, rid)) = topic
                            .split_once("/?$rid=")
                            .filter(|(t, _)| t.contains("/POST/"))
                        {
                            let topic = format!("$iothub/methods/res/200/?$rid={rid}");
                            client
                                .try_publish(topic, QoS::AtMostOnce, false, answer.to_string())
                                .unwrap();
                        } else {
                            unanswered = None;
                        }
                    }
                    Ok(_) => {}
                    Err(_) => {
                        connected = false;
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        });
        let device = Self { reports, running };
        assert!(
            emulator
                .wait_until(LIMIT, |emulator| emulator.is_connected("pi-01"))
                .await
        );
        device
    }

    /// Reports `section` and waits until the hub has it, across reconnects.
    async fn report(&self, emulator: &Emulator, section: Value) {
        let word = section["status"].clone();
        self.reports
            .send(json!({"iothubDM": {"firmwareUpdate": section}}))
            .unwrap();
        let there = |emulator: &Emulator| {
            emulator.twin("pi-01")["properties"]["reported"]["iothubDM"]["firmwareUpdate"]["status"]
                == word
        };
        assert!(emulator.wait_until(LIMIT, there).await);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn send_report(client: &AsyncClient, report: &Value) {
    client
        .try_publish(
            "$iothub/twin/PATCH/properties/reported/?$rid=1",
            QoS::AtMostOnce,
            false,
            report.to_string(),
        )
        .unwrap();
}

fn command(emulator: &Emulator, arguments: &[&str]) -> Command {
    let ready = emulator.ready();
    let mut command = Command::new(env!("CARGO_BIN_EXE_fwupdatectl"));
    command
        .arg("hub")
        .args(arguments)
        .arg("--ca-file")
        .arg(&ready.ca_file)
        .env_clear()
        .env(
            "FWUPDATED_HUB_CONNECTION_STRING",
            &ready.service_connection_string,
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn run(emulator: &Emulator, arguments: &[&str]) -> (i32, String, String) {
    let output = tokio::time::timeout(LIMIT, command(emulator, arguments).output())
        .await
        .unwrap()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// A run of `invoke --watch`, line by line.
struct Watch {
    child: Child,
    out: Lines<BufReader<ChildStdout>>,
    err: Lines<BufReader<ChildStderr>>,
}

impl Watch {
    fn start(emulator: &Emulator) -> Self {
        let mut child = command(
            emulator,
            &["invoke", "pi-01", "--uri", "https://store/x", "--watch"],
        )
        .spawn()
        .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap()).lines();
        let err = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, out, err }
    }

    async fn expect(&mut self, part: &str) {
        let line = tokio::time::timeout(LIMIT, self.out.next_line())
            .await
            .expect("in time")
            .unwrap();
        let line = line.unwrap_or_default();
        assert!(line.contains(part), "expected {part}, found {line}");
    }

    async fn expect_note(&mut self, part: &str) {
        let line = tokio::time::timeout(LIMIT, self.err.next_line())
            .await
            .expect("in time")
            .unwrap();
        let line = line.unwrap_or_default();
        assert!(line.contains(part), "expected {part}, found {line}");
    }

    async fn code(mut self) -> i32 {
        tokio::time::timeout(LIMIT, self.child.wait())
            .await
            .unwrap()
            .unwrap()
            .code()
            .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_is_followed_through_an_outage_of_the_hub() {
    let emulator = Emulator::start(Options::default().device("pi-01"))
        .await
        .unwrap();
    let answer = json!({"message": "FirmwareUpdate started", "updateId": "run-2"});
    let device = Device::connect(&emulator, answer).await;
    device
        .report(
            &emulator,
            json!({"updateId": "run-1", "status": "applyComplete"}),
        )
        .await;
    let mut watch = Watch::start(&emulator);
    watch
        .expect(
            "pi-01 answered 200: {\"message\":\"FirmwareUpdate started\",\"updateId\":\"run-2\"}",
        )
        .await;
    device
        .report(&emulator, json!({"updateId": "run-2", "status": "waiting"}))
        .await;
    watch.expect("Z  waiting").await;
    let progress = json!({"stage": "downloading", "percent": 42, "bytesDone": 42_000_000, "bytesTotal": 100_000_000});
    device
        .report(
            &emulator,
            json!({"status": "downloading", "progress": progress}),
        )
        .await;
    watch
        .expect("Z  downloading        42 %  42.0 MB of 100.0 MB")
        .await;
    emulator.set_down(true);
    watch.expect_note("still watching").await;
    emulator.set_down(false);
    watch.expect_note("the hub answers again").await;
    device
        .report(&emulator, json!({"status": "applying"}))
        .await;
    watch.expect("Z  applying").await;
    device
        .report(&emulator, json!({"status": "applyComplete"}))
        .await;
    watch.expect("Z  applyComplete").await;
    watch.expect("pi-01: the update is complete").await;
    assert_eq!(watch.code().await, 0);
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_of_a_device_of_the_samples_ends_with_1() {
    let emulator = Emulator::start(Options::default().device("pi-01"))
        .await
        .unwrap();
    let device = Device::connect(&emulator, json!("Firmware update started.")).await;
    device
        .report(
            &emulator,
            json!({"status": "apply firmware image complete"}),
        )
        .await;
    let mut watch = Watch::start(&emulator);
    watch.expect("pi-01 answered 200").await;
    device
        .report(&emulator, json!({"status": "downloading"}))
        .await;
    watch.expect("Z  downloading").await;
    device
        .report(&emulator, json!({"status": "Download image failed"}))
        .await;
    watch.expect("Z  Download image failed").await;
    watch.expect("pi-01: the update failed").await;
    assert_eq!(watch.code().await, 1);
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_offline_or_unknown_is_told_apart() {
    let emulator = Emulator::start(Options::default().device("pi-01"))
        .await
        .unwrap();
    let (code, _, err) = run(&emulator, &["invoke", "pi-01", "--uri", "https://store/x"]).await;
    assert!(
        code == 3 && err.contains("[hub-device-offline]"),
        "{code} {err}"
    );
    let (code, _, err) = run(
        &emulator,
        &["invoke", "pi-99", "--uri", "https://store/x", "--watch"],
    )
    .await;
    assert!(
        code == 2 && err.contains("[hub-device-not-found]"),
        "{code} {err}"
    );
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fleet_is_listed_and_asked() {
    let mut options = Options::default();
    for number in 1..=120 {
        options = options.device(&format!("pi-{number:02}"));
    }
    let emulator = Emulator::start(options).await.unwrap();
    let device = Device::connect(&emulator, Value::Null).await;
    device
        .report(
            &emulator,
            json!({"status": "applyComplete", "lastFirmwareUpdate": "2026-01-31T12:34:56.789Z"}),
        )
        .await;
    let (code, out, err) = run(&emulator, &["list"]).await;
    assert_eq!(code, 0, "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 121, "every page is read");
    assert_eq!(
        lines[0],
        "DEVICE  CONNECTION    UPDATE         VERSION  LAST UPDATED"
    );
    assert_eq!(
        lines[1],
        "pi-01   Connected     applyComplete  -        2026-01-31T12:34:56.789Z"
    );
    assert_eq!(lines[2], "pi-02   Disconnected  -              -        -");
    let condition = "properties.reported.iothubDM.firmwareUpdate.status = 'applyComplete'";
    let (_, out, _) = run(&emulator, &["list", "--where", condition, "--json"]).await;
    assert_eq!(out.lines().count(), 1, "{out}");
    let (code, out, _) = run(
        &emulator,
        &[
            "query",
            "SELECT deviceId FROM devices WHERE deviceId = 'pi-07'",
        ],
    )
    .await;
    assert_eq!((code, out.as_str()), (0, "{\"deviceId\":\"pi-07\"}\n"));
    let (code, _, err) = run(&emulator, &["query", "SELECT FROM WHERE"]).await;
    assert!(
        code == 2 && err.contains("[hub-bad-request]"),
        "{code} {err}"
    );
    let (code, out, _) = run(&emulator, &["twin", "pi-01", "--reported"]).await;
    let reported: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &reported["iothubDM"]["firmwareUpdate"]["status"]),
        (0, &json!("applyComplete"))
    );
    emulator.stop().await;
}
