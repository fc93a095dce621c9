//! Every way in which the device reaches its hub, against the emulator: each kind of identity, provisioning,
//! gateway, WebSocket, proxy, and what happens when any of it changes or fails.

#[path = "hub_identity/scene.rs"]
mod scene;
mod support;
#[path = "hub_identity/tls_front.rs"]
mod tls_front;

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use iothub_emulator::{Emulator, Options};
use scene::{DEVICE, Scene, hides, holds};
use serde_json::json;
use support::{
    connect_proxy::{ConnectProxy, Rules},
    rig::{fwupdatectl, run},
};
use tls_front::TlsFront;
use tokio_rustls::rustls::{self, ProtocolVersion};

const WEBSOCKET: &str = "transport = \"websocket\"";

/// The connection string of the device that has a key.
fn key_string(emulator: &Emulator) -> String {
    emulator.ready().devices[DEVICE].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_symmetric_key_connects_over_both_transports() {
    let scene = Scene::start().await;
    scene.put_connection_string(&key_string(&scene.emulator));
    for (lines, transport) in [("", "mqtt"), (WEBSOCKET, "websocket")] {
        let mut live = scene.live(&scene.config(lines, ""));
        live.connects_by(transport, "symmetric-key").await;
        live.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_connect_over_both_transports_by_thumbprint_and_by_ca() {
    let scene = Scene::start().await;
    let certificate = scene.emulator.issue_certificate("x-01").unwrap();
    scene.put_certificate(&certificate);
    scene.put_connection_string(&scene.x509_string("x-01"));
    let lines = scene.certificate_lines();
    for by_ca in [false, true] {
        match by_ca {
            true => scene.register_ca_device("x-01"),
            false => scene.register_thumbprints("x-01", &certificate.sha256_thumbprint, ""),
        }
        for (more, transport) in [("", "mqtt"), (WEBSOCKET, "websocket")] {
            let mut live = scene.live(&scene.config(&format!("{lines}{more}"), ""));
            live.connects_by(transport, "x509").await;
            live.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_systemd_credential_comes_before_the_file() {
    let scene = Scene::start().await;
    scene.put_connection_string("HostName=localhost;DeviceId=other;SharedAccessKey=QUFBQQ==");
    let folder = scene.path("credentials");
    fs::create_dir(&folder).unwrap();
    scene.register_ca_device("x-01");
    let certificate = scene.emulator.issue_certificate("x-01").unwrap();
    for (name, content) in [
        ("connection_string", &scene.x509_string("x-01")),
        ("device_certificate", &certificate.certificate),
        ("device_key", &certificate.private_key),
    ] {
        fs::write(folder.join(name), content).unwrap();
    }
    let mut live = scene.live_as(&scene.config("", ""), Some(folder), |_| {});
    live.connects_by("mqtt", "x509").await;
    assert_eq!(live.handle.known().device_id.as_deref(), Some("x-01"));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_with_a_certificate_has_its_code_and_the_right_one_is_noticed() {
    let scene = Scene::start().await;
    scene.register_ca_device("x-01");
    scene.put_connection_string(&scene.x509_string("x-01"));
    let certificate = scene.emulator.issue_certificate("x-01").unwrap();
    let fresh = |lines: &str| scene.live(&scene.config(lines, ""));
    let lines = scene.certificate_lines();

    fresh("").fails_with("hub-certificate-missing").await;
    fresh(&lines).fails_with("hub-certificate-unreadable").await;
    scene.put("device.pem", &certificate.certificate);
    fresh(&lines).fails_with("hub-certificate-unreadable").await;
    scene.put("device.key", "no key");
    fresh(&lines).fails_with("hub-private-key-invalid").await;
    let other = scene.emulator.issue_certificate("x-02").unwrap();
    scene.put("device.key", &other.private_key);
    fresh(&lines).fails_with("hub-private-key-mismatch").await;
    // A pair, but not the one that the hub wants.
    scene.put_certificate(&other);
    fresh(&lines).fails_with("hub-certificate-refused").await;
    let expired = scene.emulator.issue_certificate_for("x-01", -60).unwrap();
    scene.put_certificate(&expired);
    let mut live = fresh(&lines);
    let failure = live.fails_with("hub-certificate-expired").await;
    assert!(failure.message.contains("renew it"), "{failure}");
    // Renewed, it counts without a restart.
    scene.put_certificate(&certificate);
    live.connected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_renewed_while_connected_is_used_at_a_quiet_moment_without_a_disconnect() {
    let scene = Scene::start().await;
    let old = scene.emulator.issue_certificate("x-01").unwrap();
    let new = scene.emulator.issue_certificate("x-01").unwrap();
    scene.register_thumbprints("x-01", &old.sha256_thumbprint, &new.sha1_thumbprint);
    scene.put_connection_string(&scene.x509_string("x-01"));
    scene.put_certificate(&old);
    let mut live = scene.live(&scene.config(&scene.certificate_lines(), ""));
    assert_eq!(live.connected().await, []);
    // The key alone fits nothing: the connection that stands is not touched.
    scene.put("device.key", &new.private_key);
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(scene.emulator.connections("x-01"), 1);
    scene.put("device.pem", &new.certificate);
    assert_eq!(live.connected().await, [], "no disconnect in between");
    // The old one is worth nothing any more, and the device does not mind.
    scene.register_thumbprints("x-01", &new.sha256_thumbprint, "");
    scene.emulator.drop_connection("x-01");
    live.connected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_ends_the_long_pause_after_a_refusal() {
    let scene = Scene::start().await;
    let right = key_string(&scene.emulator);
    let wrong = right.split("SharedAccessKey=").next().unwrap();
    scene.put_connection_string(&format!("{wrong}SharedAccessKey=d3Jvbmctd3Jvbmc="));
    let mut live = scene.live_as(&scene.config("", ""), None, |options| {
        options.reconnect_max = Duration::from_secs(3600);
    });
    live.fails_with("hub-credentials-refused").await;
    scene.put_connection_string(&right);
    live.connected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_goes_away_does_not_cost_the_next_connection() {
    let scene = Scene::start().await;
    scene.put_connection_string(&key_string(&scene.emulator));
    let mut live = scene.live(&scene.config("", ""));
    live.connected().await;
    scene.put_connection_string("HostName=half");
    scene.emulator.drop_connection(DEVICE);
    live.fails_with("hub-connection-lost").await;
    assert_eq!(live.connected().await, []);
    fs::remove_file(scene.path("connection-string")).unwrap();
    scene.emulator.drop_connection(DEVICE);
    live.connected().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn provisioning_works_by_key_and_by_certificate_over_both_transports() {
    let scene = Scene::start().await;
    for (lines, transport) in [("", "mqtt"), (WEBSOCKET, "websocket")] {
        // By the certificate, which names the device: no registration id is configured.
        let name = format!("x-{transport}");
        scene.put_certificate(&scene.emulator.issue_certificate(&name).unwrap());
        let by_certificate = scene.config(
            &format!("{}{lines}", scene.certificate_lines()),
            &scene.provisioning(""),
        );
        let mut live = scene.live(&by_certificate);
        live.connects_by(transport, "x509").await;
        assert_eq!(live.handle.known().device_id.as_ref(), Some(&name));
        live.stop().await;

        let mut live = scene.live(&scene.config(lines, &scene.key_provisioning()));
        live.connects_by(transport, "symmetric-key").await;
        assert_eq!(live.handle.known().device_id.as_deref(), Some(DEVICE));
        live.stop().await;
        fs::remove_file(scene.path("state/assignment.json")).unwrap();
    }
    assert_eq!(scene.emulator.registrations(DEVICE), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_is_asked_once_for_all_starts_and_again_when_the_hub_refuses() {
    let scene = Scene::start().await;
    let config = scene.config("", &scene.key_provisioning());
    for _ in 0..3 {
        let mut live = scene.live(&config);
        assert_eq!(live.connected().await, []);
        live.stop().await;
    }
    assert_eq!(scene.emulator.registrations(DEVICE), 1);
    assert!(holds(&scene.path("state"), "assignment.json"));

    let mut live = scene.live(&config);
    live.connected().await;
    scene.emulator.delete_device(DEVICE).unwrap();
    let failures = live.connected().await;
    let refused = failures.iter().any(|f| f.code == "hub-credentials-refused");
    assert!(refused, "{failures:?}");
    assert_eq!(scene.emulator.registrations(DEVICE), 2);
    // Another name at the service is another device: what was kept is not its own.
    live.stop().await;
    scene.put("provisioning-key", &scene.emulator.derived_key("pi-02"));
    let other = scene.key_provisioning().replace(DEVICE, "pi-02");
    scene.put("provisioning-key", &scene.emulator.derived_key("pi-02"));
    let mut live = scene.live(&scene.config("", &other));
    assert_eq!(live.connected().await, []);
    assert_eq!(scene.emulator.registrations("pi-02"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_assignment_is_used_while_the_service_gives_no_new_one() {
    let scene = Scene::start().await;
    let config = scene.config("", &scene.key_provisioning());
    let mut live = scene.live(&config);
    live.connected().await;
    let fault = "fail-registrations=100,status=401".parse().unwrap();
    scene.emulator.inject(fault).await.unwrap();
    scene.emulator.refuse_connects_with(2, 5);
    scene.emulator.drop_connection(DEVICE);
    let failures = live.connected().await;
    assert!(failures.len() >= 2, "{failures:?}");
    live.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_that_is_not_reached_ten_times_in_a_row_is_asked_for_again() {
    let scene = Scene::start().await;
    let config = scene.config("", &scene.key_provisioning());
    // It was moved: the assignment names a host that is not there any more.
    let scope = &scene.emulator.ready().dps.as_ref().unwrap().id_scope;
    let kept = json!({"idScope": scope, "registrationId": DEVICE, "hub": "gone.invalid", "deviceId": DEVICE});
    fs::create_dir_all(scene.path("state")).unwrap();
    fs::write(scene.path("state/assignment.json"), kept.to_string()).unwrap();
    let mut live = scene.live_as(&config, None, |options| {
        options.reconnect_max = Duration::from_millis(50);
    });
    let failures = live.connected().await;
    assert_eq!(failures.len(), 10, "{failures:?}");
    assert!(failures.iter().all(|f| f.code == "hub-unreachable"));
    assert_eq!(scene.emulator.registrations(DEVICE), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_assignment_costs_a_registration_and_nothing_else() {
    let scene = Scene::start().await;
    let config = scene.config("", &scene.key_provisioning());
    fs::create_dir_all(scene.path("state")).unwrap();
    for damaged in [&b"{\"idScope\":"[..], b"", b"\xff\xfe", b"[1]"] {
        fs::write(scene.path("state/assignment.json"), damaged).unwrap();
        let mut live = scene.live(&config);
        assert_eq!(live.connected().await, []);
        live.stop().await;
    }
    assert_eq!(scene.emulator.registrations(DEVICE), 4);
    // One that cannot be kept counts all the same, until a restart.
    fs::remove_file(scene.path("state/assignment.json")).unwrap();
    fs::create_dir(scene.path("state/assignment.json")).unwrap();
    let mut live = scene.live(&config);
    live.connected().await;
    scene.emulator.drop_connection(DEVICE);
    live.connected().await;
    assert_eq!(scene.emulator.registrations(DEVICE), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_throttles_refuses_and_disables_each_with_its_code() {
    let scene = Scene::start().await;
    let config = scene.config("", &scene.key_provisioning());
    let inject = |text: &str| scene.emulator.inject(text.parse().unwrap());
    inject("fail-registrations=1,status=429,retry-after=1")
        .await
        .unwrap();
    let mut live = scene.live(&config);
    assert_eq!(live.connected().await, [], "waited for, not failed");
    live.stop().await;
    fs::remove_file(scene.path("state/assignment.json")).unwrap();

    inject("fail-registrations=1,status=404").await.unwrap();
    let mut live = scene.live(&config);
    live.fails_with("dps-rejected").await;
    live.connected().await;
    live.stop().await;
    fs::remove_file(scene.path("state/assignment.json")).unwrap();

    scene.put("provisioning-key", "d3Jvbmctd3Jvbmc=");
    let mut live = scene.live(&config);
    let failure = live.fails_with("dps-refused").await;
    assert!(failure.message.contains(DEVICE), "{failure}");
    hides(&format!("{failure:?}"), &["d3Jvbmctd3Jvbmc", "sig="]);
    scene.put("provisioning-key", "no base64!");
    scene.live(&config).fails_with("dps-configuration").await;
    // Nobody there.
    scene.put("provisioning-key", "d3Jvbmctd3Jvbmc=");
    let nowhere = config.replace("host = \"localhost\"", "host = \"nowhere.invalid\"");
    let failure = scene.live(&nowhere).fails_with("dps-unreachable").await;
    assert!(failure.message.contains("nowhere.invalid"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_string_comes_before_provisioning() {
    let scene = Scene::start().await;
    scene.put_connection_string(&key_string(&scene.emulator));
    let config = scene.config("", &scene.key_provisioning());
    let mut live = scene.live(&config);
    live.connected().await;
    assert_eq!(scene.emulator.registrations(DEVICE), 0);
    live.stop().await;
    let daemon = scene.daemon(&config);
    daemon
        .says("[provisioning] is not used: there is a connection string in")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_is_reached_by_its_own_name_and_the_hub_named_in_the_credentials() {
    let hub = "myhub.azure-devices.example";
    let mut options = Options::default().device(DEVICE);
    hub.clone_into(&mut options.hub_name);
    let scene = Scene::with(options).await;
    let ready = scene.emulator.ready();
    let front = TlsFront::start(
        &rustls::version::TLS13,
        "localhost",
        "127.0.0.1",
        (ready.mqtt_port, &ready.ca_file),
    );
    let front = front.await.unwrap();
    let ca = scene.put("front.pem", &front.ca);
    let text = key_string(&scene.emulator);
    assert!(text.contains(hub), "the credentials name the hub");
    let lines = format!("mqtt_port = {}", front.address.port());
    let config = scene.config(&lines, "").replace(
        &ready.ca_file.display().to_string(),
        &ca.display().to_string(),
    );
    // By the connection string, then by the configuration.
    scene.put_connection_string(&format!("{text};GatewayHostName=localhost"));
    let mut live = scene.live(&config);
    live.connects_by("mqtt", "symmetric-key").await;
    assert_eq!(live.handle.known().hub.as_deref(), Some(hub));
    live.stop().await;
    scene.put_connection_string(&text);
    let with_gateway = config.replace("[hub]\n", "[hub]\ngateway_host = \"localhost\"\n");
    scene
        .live(&with_gateway)
        .connects_by("mqtt", "symmetric-key")
        .await;
    let by_name = (ProtocolVersion::TLSv1_3, Some("localhost".to_owned()));
    assert_eq!(front.seen(), [by_name.clone(), by_name]);
    // The gateway's certificate is for its name, and for no other.
    let by_address = with_gateway.replace("= \"localhost\"", "= \"127.0.0.1\"");
    scene.live(&by_address).fails_with("hub-tls").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hub_of_one_tls_version_and_one_address_family_is_reached() {
    let scene = Scene::start().await;
    scene.put_connection_string(&key_string(&scene.emulator));
    let ready = scene.emulator.ready();
    for (version, expected) in [
        (&rustls::version::TLS12, ProtocolVersion::TLSv1_2),
        (&rustls::version::TLS13, ProtocolVersion::TLSv1_3),
    ] {
        for (listen, host) in [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")] {
            let behind = (ready.mqtt_port, ready.ca_file.as_path());
            let Some(front) = TlsFront::start(version, listen, listen, behind).await else {
                support::skipped(format_args!("no {listen} on this machine"));
                continue;
            };
            let ca = scene.put("front.pem", &front.ca);
            let lines = format!(
                "gateway_host = \"{host}\"\nmqtt_port = {}",
                front.address.port()
            );
            let config = scene.config(&lines, "").replace(
                &ready.ca_file.display().to_string(),
                &ca.display().to_string(),
            );
            scene
                .live(&config)
                .connects_by("mqtt", "symmetric-key")
                .await;
            assert_eq!(front.seen(), [(expected, None)]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_leads_to_hub_and_service_over_both_transports_and_its_password_stays_secret() {
    let scene = Scene::start().await;
    let password = "me:hunter2-hunter2";
    let header = "Basic bWU6aHVudGVyMi1odW50ZXIy";
    let proxy = ConnectProxy::start(Rules {
        authorization: Some(header.to_owned()),
        only_port: None,
    });
    let proxy = proxy.await;
    let file = scene.put("proxy-authorization", &format!("{password}\n"));
    let ready = scene.emulator.ready();
    for (lines, transport, port) in [
        ("", "mqtt", ready.mqtt_port),
        (WEBSOCKET, "websocket", ready.https_port),
    ] {
        let lines = format!(
            "{lines}\nproxy = \"{}\"\nproxy_authorization_file = \"{}\"",
            proxy.url(),
            file.display()
        );
        let before = proxy.asked().len();
        let mut live = scene.live(&scene.config(&lines, &scene.key_provisioning()));
        live.connects_by(transport, "symmetric-key").await;
        live.stop().await;
        let target = format!("localhost:{port}");
        assert_eq!(proxy.asked()[before..], [target.clone(), target]);
        fs::remove_file(scene.path("state/assignment.json")).unwrap();
    }
    // Another password, and none.
    let key = scene.emulator.derived_key(DEVICE);
    let text = format!("HostName=localhost;DeviceId={DEVICE};SharedAccessKey={key}");
    scene.put_connection_string(&text);
    scene.put("proxy-authorization", "me:wrong-password");
    let wrong = format!(
        "proxy = \"{}\"\nproxy_authorization_file = \"{}\"",
        proxy.url(),
        file.display()
    );
    let mut live = scene.live(&scene.config(&wrong, ""));
    let failure = live.fails_with("hub-proxy-authorization").await;
    hides(&format!("{failure:?}"), &["wrong-password"]);
    scene.put("proxy-authorization", password);
    live.connected().await;
    scene.put("proxy-authorization", "hunter2-hunter2");
    let failure = scene
        .live(&scene.config(&wrong, ""))
        .fails_with("hub-proxy-authorization-file")
        .await;
    hides(&format!("{failure:?}"), &["hunter2-hunter2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_proxy_and_one_that_leads_nowhere_have_their_codes() {
    let scene = Scene::start().await;
    scene.put_connection_string(&key_string(&scene.emulator));
    let ready = scene.emulator.ready();
    let proxy = ConnectProxy::start(Rules {
        only_port: Some(ready.https_port),
        ..Rules::default()
    });
    let proxy = proxy.await;
    let lines = format!("proxy = \"{}\"", proxy.url());
    let failure = scene
        .live(&scene.config(&lines, ""))
        .fails_with("hub-proxy-refused")
        .await;
    assert!(failure.message.contains("websocket"), "{failure}");
    // By itself it finds the way.
    let auto = format!("{lines}\ntransport = \"auto\"");
    let mut live = scene.live(&scene.config(&auto, ""));
    let failures = live.connected().await;
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert_eq!(live.handle.known().transport, Some("websocket"));

    let no_proxy = format!("proxy = \"http://127.0.0.1:{}\"", ready.mqtt_port);
    scene
        .live(&scene.config(&no_proxy, ""))
        .fails_with("hub-proxy-failed")
        .await;
    let nobody = "proxy = \"http://nowhere.invalid:3128\"";
    let failure = scene
        .live(&scene.config(nobody, ""))
        .fails_with("hub-unreachable")
        .await;
    assert!(failure.message.contains("nowhere.invalid"), "{failure}");
    // MQTT is no WebSocket.
    let no_websocket = format!("{WEBSOCKET}\nmqtt_port = 1");
    let config = scene.config(&no_websocket, "").replace(
        &format!("websocket_port = {}", ready.https_port),
        &format!("websocket_port = {}", ready.mqtt_port),
    );
    scene.live(&config).fails_with("hub-websocket").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_takes_the_way_that_leads_to_the_hub_and_keeps_it() {
    let scene = Scene::start().await;
    scene.put_connection_string(&key_string(&scene.emulator));
    let closed = {
        let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        taken.local_addr().unwrap().port()
    };
    let lines = format!("transport = \"auto\"\nmqtt_port = {closed}");
    let mut live = scene.live(&scene.config(&lines, ""));
    let failures = live.connected().await;
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert_eq!(failures[0].code, "hub-unreachable");
    assert_eq!(live.handle.known().transport, Some("websocket"));
    scene.emulator.drop_connection(DEVICE);
    let failures = live.connected().await;
    assert_eq!(failures.len(), 1, "only the loss: {failures:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_notices_an_identity_that_appears_and_shows_how_it_connects() {
    let scene = Scene::start().await;
    let daemon = scene.daemon(&scene.config("", ""));
    daemon.says("hub-identity-missing").await;
    let status = || {
        let mut command = fwupdatectl();
        command
            .arg("status")
            .arg("--socket")
            .arg(scene.path("control"));
        String::from_utf8(run(&mut command).stdout).unwrap()
    };
    assert!(status().contains("no identity"), "{}", status());
    scene.put_connection_string(&key_string(&scene.emulator));
    scene.until_connected(DEVICE).await;
    daemon
        .says("connected to localhost as pi-01 (mqtt, symmetric-key)")
        .await;
    let shown = status();
    assert!(
        shown.contains("connected to localhost as pi-01 (mqtt, symmetric-key)"),
        "{shown}"
    );
    let complaints = daemon.log().matches("hub-identity-missing").count();
    assert_eq!(complaints, 1, "calm in the log\n{}", daemon.log());
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_keeps_its_assignment_over_restarts_and_its_secrets_to_itself() {
    let scene = Scene::start().await;
    let config = scene.config("", &scene.key_provisioning());
    let key_file = scene.path("provisioning-key");
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o644)).unwrap();
    for start in 0..3 {
        let config = match start {
            2 => config.replace("[hub]\n", &format!("[hub]\n{WEBSOCKET}\n")),
            _ => config.clone(),
        };
        let daemon = scene.daemon(&config);
        scene.until_connected(DEVICE).await;
        let transport = if start == 2 { "websocket" } else { "mqtt" };
        daemon
            .says(&format!("as pi-01 ({transport}, symmetric-key)"))
            .await;
        daemon.stop();
    }
    assert_eq!(scene.emulator.registrations(DEVICE), 1);
    let kept = scene.path("state/assignment.json");
    let mode = fs::metadata(&kept).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
    let log = fs::read_to_string(scene.path("daemon.log")).unwrap();
    assert!(log.contains("hub-secret-readable"), "{log}");
    let key = scene.emulator.derived_key(DEVICE);
    let state = fs::read_to_string(kept).unwrap();
    for text in [log, state] {
        hides(&text, &[&key, "SharedAccessSignature", "sig="]);
    }
}

/// Runs a shell line of the how-to in the scene's folder.
fn shell(scene: &Scene, line: &str) -> String {
    let mut command = std::process::Command::new("sh");
    command.arg("-ec").arg(line).current_dir(scene.dir.path());
    String::from_utf8(run(&mut command).stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_openssl_makes_as_the_how_to_says_connects_with_keys_of_every_form() {
    let scene = Scene::start().await;
    let probe = std::process::Command::new("openssl")
        .arg("version")
        .output();
    if probe.is_err() {
        support::skipped(format_args!("openssl is not installed"));
        return;
    }
    scene.put_connection_string(&scene.x509_string("x-01"));
    let config = scene.config(&scene.certificate_lines(), "");
    // Self-signed: the how-to's line, then the other kinds of keys and forms of PEM.
    let ec = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 3650 -subj /CN=x-01 \
              -keyout device.key -out device.pem 2>/dev/null";
    let rsa = "openssl req -x509 -newkey rsa:2048 -noenc -days 3650 -subj /CN=x-01 \
               -keyout device.key -out device.pem 2>/dev/null";
    let sec1 = "openssl ec -in device.key -out sec1 2>/dev/null && mv sec1 device.key";
    let pkcs1 =
        "openssl rsa -traditional -in device.key -out pkcs1 2>/dev/null && mv pkcs1 device.key";
    for (lines, begins) in [
        (vec![ec], "-----BEGIN PRIVATE KEY"),
        (vec![ec, sec1], "-----BEGIN EC PRIVATE KEY"),
        (vec![rsa], "-----BEGIN PRIVATE KEY"),
        (vec![rsa, pkcs1], "-----BEGIN RSA PRIVATE KEY"),
    ] {
        for line in lines {
            shell(&scene, line);
        }
        let key = fs::read_to_string(scene.path("device.key")).unwrap();
        assert!(key.starts_with(begins), "{begins}");
        let print =
            "openssl x509 -in device.pem -noout -fingerprint -sha256 | cut -d= -f2 | tr -d :";
        scene.register_thumbprints("x-01", shell(&scene, print).trim(), "");
        scene.live(&config).connects_by("mqtt", "x509").await;
    }
    // By a CA with one in between: the chain goes along.
    shell(
        &scene,
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 30 -subj /CN=root \
           -keyout root.key -out root.pem 2>/dev/null
         openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj /CN=between \
           -keyout ca.key -out ca.csr 2>/dev/null
         printf 'basicConstraints=critical,CA:TRUE\\nkeyUsage=keyCertSign' >ca.ext
         openssl x509 -req -in ca.csr -CA root.pem -CAkey root.key -CAcreateserial -days 30 -extfile ca.ext \
           -out ca.pem 2>/dev/null
         openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj /CN=x-01 \
           -keyout device.key -out device.csr 2>/dev/null
         printf 'extendedKeyUsage=clientAuth' >device.ext
         openssl x509 -req -in device.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 \
           -extfile device.ext -out leaf.pem 2>/dev/null
         cat leaf.pem ca.pem >device.pem",
    );
    let version_1 = "openssl x509 -req -in device.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 365 \
                     -out version-1.pem 2>/dev/null";
    let root = fs::read_to_string(scene.path("root.pem")).unwrap();
    scene.emulator.register_device_ca(&root).unwrap();
    scene.register_ca_device("x-01");
    scene.live(&config).connects_by("mqtt", "x509").await;
    // Without any extension OpenSSL 3.0 makes certificates of version 1: that is the server's
    // to judge, and this one does not take it.
    shell(&scene, version_1);
    shell(&scene, "mv version-1.pem device.pem");
    let print = "openssl x509 -in device.pem -noout -fingerprint -sha256 | cut -d= -f2 | tr -d :";
    scene.register_thumbprints("x-01", shell(&scene, print).trim(), "");
    scene
        .live(&config)
        .fails_with("hub-certificate-refused")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_how_to_s_line_derives_the_key_that_the_service_expects() {
    let scene = Scene::start().await;
    let group = &scene.emulator.ready().dps.as_ref().unwrap().group_key;
    scene.put("group-key", group);
    let page = include_str!("../docs/how-to/give-a-device-its-identity.md");
    let line = page.split("$ printf %s pi-01").nth(1).unwrap();
    let line = line.split("```").next().unwrap();
    let derived = shell(&scene, &format!("printf %s pi-01{line}"));
    assert_eq!(derived.trim(), scene.emulator.derived_key("pi-01"));
}
