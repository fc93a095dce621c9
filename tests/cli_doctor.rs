//! `fwupdatectl doctor` on a whole installation: well as it should be, then with each thing broken.

mod support;

use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Command,
};

use fwupdated::update::slot::Slot;
use serde_json::Value;
use support::{
    bus::Bus,
    rig::{Device, Rig, fwupdatectl, program, run},
    skipped,
};

struct Findings {
    code: i32,
    document: Value,
}

impl Findings {
    fn of(mut command: Command) -> Self {
        let output = command.arg("doctor").arg("--json").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        Self {
            code: output.status.code().unwrap(),
            document: serde_json::from_str(&text).unwrap_or_else(|error| {
                panic!(
                    "{error}: {text}\n{}",
                    String::from_utf8_lossy(&output.stderr)
                )
            }),
        }
    }

    fn on(device: &Device) -> Self {
        Self::with(&device.config())
    }

    fn with(config: &Path) -> Self {
        let mut command = fwupdatectl();
        command.arg("--config").arg(config);
        Self::of(command)
    }

    fn all(&self) -> &[Value] {
        self.document["findings"].as_array().unwrap()
    }

    /// The worst of `topic`.
    fn about(&self, topic: &str) -> &Value {
        let order = |it: &Value| {
            let level = it["level"].as_str().unwrap();
            ["ok", "unknown", "warning", "error"]
                .iter()
                .position(|one| *one == level)
                .unwrap()
        };
        let of_topic = self.all().iter().filter(|it| it["topic"] == topic);
        of_topic
            .max_by_key(|it| order(it))
            .unwrap_or_else(|| panic!("nothing about {topic}"))
    }

    #[track_caller]
    fn expect(&self, code: i32, topic: &str, level: &str, text: &str) {
        let found = self.about(topic);
        assert_eq!(found["level"], level, "{:#}", self.document);
        assert!(found["text"].as_str().unwrap().contains(text), "{found:#}");
        assert_eq!(self.code, code, "{:#}", self.document);
        if level != "ok" {
            let says = found["advice"].is_string() || found["code"].is_string();
            assert!(says || level == "unknown", "no remedy: {found:#}");
        }
    }
}

/// A device whose files are as an installation makes them.
fn device(rig: &Rig, dir: &Path) -> Device {
    let device = Device::new(rig, dir, 4 << 20, "1.0.0", "");
    let secret = dir.join("connection-string");
    fs::set_permissions(secret, PermissionsExt::from_mode(0o600)).unwrap();
    device
}

/// The device's configuration with `old` in it replaced, in a file of its own.
fn changed(device: &Device, old: &str, new: &str) -> std::path::PathBuf {
    let text = fs::read_to_string(device.config()).unwrap();
    let other = text.replace(old, new);
    assert_ne!(text, other);
    let file = device.dir.join("changed.toml");
    fs::write(&file, other).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_device_is_well_and_each_thing_that_breaks_is_named_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut device = device(&rig, &dir.path().join("device"));
    device.boot();
    device.until_connected(&rig).await;

    let well = Findings::on(&device);
    for finding in well.all() {
        assert_eq!(finding["level"], "ok", "{:#}", well.document);
    }
    assert_eq!((well.code, &well.document["worst"]), (0, &"ok".into()));
    well.expect(0, "hub", "ok", "the daemon is connected");
    let looked = Findings::on(&device);
    assert_eq!(
        looked.document,
        Findings::on(&device).document,
        "looking changes nothing"
    );

    let secret = device.dir.join("connection-string");
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o644)).unwrap();
    Findings::on(&device).expect(0, "secrets", "warning", "every user");
    fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();

    let key = device.dir.join("keys.d/operator.pub");
    let kept = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    Findings::on(&device).expect(1, "keys", "error", "no key is trusted");
    fs::write(&key, kept).unwrap();
    let unsigned = changed(&device, "[trust]\n", "[trust]\nunsigned = \"allow\"\n");
    Findings::with(&unsigned).expect(0, "keys", "warning", "unsigned");

    let grown = fs::OpenOptions::new()
        .write(true)
        .open(device.slot_file(Slot::B))
        .unwrap();
    grown.set_len(5 << 20).unwrap();
    Findings::on(&device).expect(0, "slots", "warning", "differ in size");
    grown.set_len(4 << 20).unwrap();

    // One copy of the environment, then the other.
    let env = device.dir.join("uboot.env");
    let bytes = fs::read(&env).unwrap();
    let damaged = |places: &[usize]| {
        let mut bytes = bytes.clone();
        places.iter().for_each(|&place| bytes[place] ^= 1);
        fs::write(&env, bytes).unwrap();
        Findings::on(&device)
    };
    damaged(&[100]).expect(0, "environment", "warning", "the other copy is in force");
    let both = damaged(&[100, 0x4000 + 100]);
    both.expect(1, "environment", "error", "wrong CRC");
    both.expect(1, "boot", "unknown", "not known");
    fs::write(&env, &bytes).unwrap();
    let map = device.dir.join("fw_env.config");
    let lines = fs::read_to_string(&map).unwrap();
    fs::write(&map, "/nowhere 0x0 0x4000\n").unwrap();
    Findings::on(&device).expect(1, "environment", "error", "cannot be read");
    fs::write(&map, "").unwrap();
    let nowhere = Findings::on(&device);
    assert_eq!(nowhere.about("environment")["code"], "env-config");
    fs::write(&map, lines).unwrap();
    Findings::on(&device).expect(0, "environment", "ok", "two copies");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_daemon_it_tries_the_way_to_the_hub_itself_and_says_how_far_it_leads() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut device = device(&rig, &dir.path().join("device"));
    device.boot();
    device.until_connected(&rig).await;
    device.stop();

    let alone = Findings::on(&device);
    assert_eq!(alone.about("daemon")["code"], "control-no-daemon");
    alone.expect(1, "hub", "ok", "takes TLS connections (mqtt)");
    // The device's own session at the hub was not touched: nobody said CONNECT.
    assert!(!rig.emulator.is_connected(support::rig::DEVICE));

    let port = rig.emulator.ready().mqtt_port;
    let hub = |old: &str, new: &str| Findings::with(&changed(&device, old, new));
    let ca = rig.emulator.ready().ca_file.display().to_string();
    let other_ca = rig.server.ca_file().display().to_string();
    let untrusted = hub(&ca, &other_ca);
    untrusted.expect(1, "hub", "error", "ended at TLS");
    assert_eq!(untrusted.about("hub")["code"], "hub-tls");
    let unknown = hub("[hub]\n", "[hub]\ngateway_host = \"no-such-hub.invalid\"\n");
    unknown.expect(1, "hub", "error", "ended at name resolution");
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let refused = hub(
        &format!("mqtt_port = {port}"),
        &format!("mqtt_port = {}", closed.port()),
    );
    refused.expect(1, "hub", "error", "ended at TCP");
    let proxy = hub("[hub]\n", &format!("[hub]\nproxy = \"http://{closed}\"\n"));
    proxy.expect(1, "hub", "error", "ended at TCP");

    // Switched by hand behind the daemon's back.
    let set = |slot: &str| {
        device
            .env()
            .update(|env| env.set("fwupdated_slot", slot))
            .unwrap()
    };
    set("b").unwrap();
    Findings::on(&device).expect(1, "boot", "error", "no trial explains it");
    set("left").unwrap();
    assert_eq!(
        Findings::on(&device).about("boot")["code"],
        "bootloader-invalid"
    );
    set("a").unwrap();

    fs::write(device.dir.join("state/state.json"), "{\"version\":").unwrap();
    Findings::on(&device).expect(1, "state", "error", "is damaged");
    fs::remove_file(device.dir.join("state/state.json")).unwrap();
    Findings::on(&device).expect(1, "state", "warning", "never ran here");

    fs::remove_file(device.slot_file(Slot::B)).unwrap();
    assert_eq!(Findings::on(&device).about("slots")["code"], "slot-missing");
    let none = changed(&device, "rootfs = ", "#rootfs = ");
    Findings::with(&none).expect(1, "slots", "error", "no slots are configured");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_holds_the_spare_slot_is_named() {
    if !nix::unistd::geteuid().is_root() {
        skipped("loop devices need root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut device = device(&rig, &dir.path().join("device"));
    device.boot();
    device.until_connected(&rig).await;
    let spare = device.slot_file(Slot::B);
    let attached = run(Command::new("losetup")
        .args(["--find", "--show"])
        .arg(&spare));
    let attached = String::from_utf8(attached.stdout).unwrap();
    let held = Findings::on(&device);
    run(Command::new("losetup").args(["--detach", attached.trim()]));
    held.expect(1, "slots", "error", attached.trim());
    Findings::on(&device).expect(0, "slots", "ok", "slot a runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_hears_what_could_not_be_looked_at_and_never_that_all_is_well() {
    const NOBODY: u32 = 65534;
    if !nix::unistd::geteuid().is_root() {
        skipped("only root can become another user");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut device = device(&rig, &dir.path().join("device"));
    device.boot();
    device.until_connected(&rig).await;
    for open in [dir.path(), &device.dir] {
        fs::set_permissions(open, PermissionsExt::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(
        device.dir.join("uboot.env"),
        PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    // The folder that the tests are built in may be closed to others.
    let own = dir.path().join("fwupdatectl");
    fs::copy(program("fwupdatectl"), &own).unwrap();
    let mut command = Command::new(&own);
    command
        .uid(NOBODY)
        .gid(NOBODY)
        .arg("--config")
        .arg(device.config());
    let found = Findings::of(command);
    for topic in ["daemon", "environment", "boot", "state", "hub"] {
        assert_eq!(
            found.about(topic)["level"],
            "unknown",
            "{:#}",
            found.document
        );
    }
    found.expect(5, "slots", "ok", "slot a runs");
    found.expect(5, "environment", "unknown", "only be read by root");
}

#[test]
fn a_configuration_that_was_asked_for_and_is_wrong_is_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("x.toml");
    fs::write(&config, "[hub]\nport = 1\n").unwrap();
    let output = fwupdatectl()
        .arg("--config")
        .arg(&config)
        .arg("doctor")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("[config-unknown-key]"));
}

/// What systemd-timedated says of the clock.
struct TimeDate(bool);

#[zbus::interface(name = "org.freedesktop.timedate1")]
impl TimeDate {
    #[zbus(property, name = "NTPSynchronized")]
    fn ntp_synchronized(&self) -> bool {
        self.0
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_nobody_sets_is_warned_about() {
    for (synchronised, level) in [(true, "ok"), (false, "warning")] {
        let dir = tempfile::tempdir().unwrap();
        let bus = Bus::start(dir.path());
        let path = "/org/freedesktop/timedate1";
        let _timedated = bus
            .serve("org.freedesktop.timedate1", path, TimeDate(synchronised))
            .await;
        let config = dir.path().join("empty.toml");
        fs::write(&config, "").unwrap();
        let mut command = fwupdatectl();
        command
            .arg("--config")
            .arg(config)
            .env("DBUS_SYSTEM_BUS_ADDRESS", &bus.address);
        let found = Findings::of(command);
        found.expect(1, "clock", level, "synchronised");
    }
}
