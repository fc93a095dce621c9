//! The local interface on a real bus (`dbus-daemon`), and the verbs of `fwupdatectl`, with the real daemon on
//! file-backed slots.

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
};

use futures_util::StreamExt as _;
use fwupdated::update::slot::Slot;
use serde_json::{Value, json};
use support::{
    bus::Bus,
    rig::{Device, Image, Rig, fwupdatectl, noise},
    skipped,
};
use tempfile::TempDir;

const MIB: usize = 1 << 20;
/// Neither root nor in any group of ours.
const NOBODY: &str = "65534";
const MANAGER: [&str; 3] = [
    "org.fwupdated1",
    "/org/fwupdated1",
    "org.fwupdated1.Manager",
];

/// A device that runs version 1.0.0, with a daemon on a bus of its own.
struct Scene {
    rig: Rig,
    device: Device,
    bus: Bus,
    _dir: TempDir,
}

impl Scene {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Other users look for the bus and the socket below it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let rig = Rig::start(dir.path()).await;
        let bus = Bus::start(dir.path());
        let size = 8 * MIB as u64;
        let mut device = Device::new(&rig, &dir.path().join("device"), size, "1.0.0", "");
        let text = fs::read_to_string(device.config()).unwrap();
        fs::write(device.config(), text.replace("bus = false", "bus = true")).unwrap();
        let address = format!("DBUS_SYSTEM_BUS_ADDRESS={}", anyone_at(&bus));
        device.launcher = vec!["env".to_owned(), address];
        device.boot();
        device.until_connected(&rig).await;
        let mut scene = Self {
            rig,
            device,
            bus,
            _dir: dir,
        };
        scene.until_on_the_bus().await;
        scene
    }

    async fn until_on_the_bus(&mut self) {
        let bus = self.bus.address.clone();
        let named = |_: &mut Device| {
            let status = busctl(&bus, &["status", MANAGER[0]]).output().unwrap();
            status.status.success().then_some(())
        };
        self.device.until("name on the bus", named).await;
    }

    fn busctl(&self, arguments: &[&str]) -> Command {
        busctl(&self.bus.address, arguments)
    }

    fn property(&self, name: &str) -> String {
        let [service, path, interface] = MANAGER;
        let arguments = ["get-property", service, path, interface, name];
        let output = self.busctl(&arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// `fwupdatectl` on this device.
    fn ctl(&self, arguments: &[&str]) -> Command {
        let mut command = fwupdatectl();
        command.arg("--config").arg(self.device.config());
        command.env("DBUS_SYSTEM_BUS_ADDRESS", &self.bus.address);
        command.args(arguments);
        command
    }

    /// What is signalled of the property `Stage`, from now on.
    async fn stages(&self) -> Arc<Mutex<Vec<String>>> {
        let builder = zbus::connection::Builder::address(self.bus.address.as_str());
        let connection = builder.build().await.unwrap();
        let [service, path, interface] = MANAGER;
        let proxy = zbus::Proxy::new(&connection, service, path, interface);
        let proxy = proxy.await.unwrap();
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let all = Arc::clone(&heard);
        let mut changes = proxy.receive_property_changed::<String>("Stage").await;
        tokio::spawn(async move {
            while let Some(change) = changes.next().await {
                if let Ok(stage) = change.get().await {
                    all.lock().unwrap().push(stage);
                }
            }
        });
        heard
    }

    fn image(&self, version: &str, seed: u64) -> Image {
        self.rig.build(version, noise(4 * MIB, seed), &[])
    }

    /// Runs `fwupdatectl` with words that must be taken, and lives on until the update has ended.
    async fn carry_out(&mut self, arguments: &[&str]) -> Value {
        let (code, out, err) = told(&mut self.ctl(arguments));
        assert_eq!(code, 0, "{out}{err}\n{}", self.device.log());
        let id = out.trim().rsplit_once("update ").unwrap().1.to_owned();
        self.device.until_final(&self.rig, &id).await
    }
}

/// The address without the bus's id, by which the daemon would not know one that takes its place.
fn anyone_at(bus: &Bus) -> &str {
    bus.address.split(",guid=").next().unwrap()
}

fn busctl(bus: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("busctl");
    command.arg(format!("--address={bus}")).args(arguments);
    command
}

/// The same as user nobody, in no group.
fn as_nobody(command: &Command) -> Command {
    let mut other = Command::new("setpriv");
    other.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
    other.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => other.env(name, value),
            None => other.env_remove(name),
        };
    }
    other
}

fn told(command: &mut Command) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skipped("playing another user needs root");
    }
    root
}

/// Says yes to one action, whoever asks.
struct Polkit {
    asked: Arc<Mutex<Vec<(String, String, u32)>>>,
}

type Subject<'a> = (String, std::collections::HashMap<String, zbus::Variant<'a>>);

#[zbus::interface(name = "org.freedesktop.PolicyKit1.Authority")]
impl Polkit {
    async fn check_authorization(
        &self,
        subject: Subject<'_>,
        action: String,
        _details: std::collections::HashMap<String, String>,
        flags: u32,
        _cancellation: String,
    ) -> (bool, bool, std::collections::HashMap<String, String>) {
        let yes = action == "org.fwupdated1.manage";
        self.asked.lock().unwrap().push((subject.0, action, flags));
        (yes, false, std::collections::HashMap::new())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn anyone_reads_on_the_bus_and_who_is_not_allowed_is_refused_with_or_without_polkit() {
    if !is_root() {
        return;
    }
    let scene = Scene::start().await;
    let [service, path, interface] = MANAGER;

    // What the daemon says of itself on the bus is what is packaged.
    let introspect = ["introspect", "--xml-interface", service, path];
    let (code, xml, err) = told(&mut as_nobody(&scene.busctl(&introspect)));
    assert_eq!(code, 0, "{err}");
    let packaged = include_str!("../packaging/dbus/org.fwupdated1.xml");
    let begin = packaged.find("  <interface").unwrap();
    let end = packaged.rfind("</node>").unwrap();
    assert!(xml.contains(&packaged[begin..end]), "{xml}");
    assert_eq!(scene.property("RunningSlot"), "s \"a\"");
    assert_eq!(scene.property("FirmwareVersion"), "s \"1.0.0\"");
    assert_eq!(scene.property("HubConnected"), "b true");
    assert_eq!(scene.property("Stage"), "s \"\"");
    assert_eq!(scene.property("Progress"), "u 0");

    // Root acts without a question.
    let cancel = ["call", service, path, interface, "Cancel"];
    let (code, out, err) = told(&mut scene.busctl(&cancel));
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("nothing-to-cancel"), "{out}");

    // Another user reads, and acts on nothing.
    let get = ["get-property", service, path, interface, "Status"];
    let (code, out, _) = told(&mut as_nobody(&scene.busctl(&get)));
    assert_eq!(code, 0);
    assert!(out.contains("daemonVersion"), "{out}");
    let (code, out, _) = told(&mut as_nobody(&scene.ctl(&["slots"])));
    assert_eq!(code, 0, "{out}");
    for acting in [
        &["Cancel"][..],
        &["Approve", "sb", "", "false"],
        &["Defer", "st", "", "60"],
        &["Rollback"],
        &["MarkGood"],
        &["MarkBad", "s", "other"],
        &["Install", "s", "{}"],
    ] {
        let call = [&["call", service, path, interface], acting].concat();
        let (code, _, err) = told(&mut as_nobody(&scene.busctl(&call)));
        assert!(
            code != 0 && err.contains("Access denied"),
            "{acting:?}: {err}"
        );
    }
    let (code, _, err) = told(&mut as_nobody(&scene.ctl(&["cancel"])));
    assert_eq!(code, 4, "{err}");
    for words in [
        "org.fwupdated1.manage is not for this user: polkit cannot be asked",
        "be root or in the group fwupdated [control-not-allowed]",
    ] {
        assert!(err.contains(words), "{err}");
    }

    // With polkit its word counts, action by action.
    let asked = Arc::default();
    let polkit = Polkit {
        asked: Arc::clone(&asked),
    };
    let authority = "/org/freedesktop/PolicyKit1/Authority";
    let name = "org.freedesktop.PolicyKit1";
    let _polkit = scene.bus.serve(name, authority, polkit).await;
    let (code, _, err) = told(&mut as_nobody(&scene.ctl(&["cancel"])));
    assert_eq!(code, 4, "{err}");
    assert!(err.contains("[nothing-to-cancel]"), "{err}");
    let (code, _, err) = told(&mut as_nobody(&scene.ctl(&["mark-good"])));
    assert_eq!(code, 4, "{err}");
    assert!(
        err.contains("polkit says no") && err.contains("[control-not-allowed]"),
        "{err}"
    );
    let subject = "system-bus-name".to_owned();
    let expected = ["org.fwupdated1.manage", "org.fwupdated1.mark"];
    let expected = expected.map(|action| (subject.clone(), action.to_owned(), 1));
    assert_eq!(*asked.lock().unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_bus_the_daemon_starts_and_finds_the_bus_when_it_comes() {
    let mut scene = Scene::start().await;
    let dir = scene.device.dir.parent().unwrap().to_owned();
    drop(std::mem::replace(
        &mut scene.bus,
        Bus::start_at(&dir, "bus-2"),
    ));
    // The first bus is gone, and where it was nobody listens: the socket is enough.
    scene.device.boot();
    let ready = |device: &mut Device| device.log().contains("not on the system bus").then_some(());
    scene.device.until("word that there is no bus", ready).await;
    let (code, out, err) = told(&mut scene.ctl(&["status"]));
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("1.0.0 in slot a"), "{out}");
    let _ = fs::remove_file(dir.join("bus"));
    scene.bus = Bus::start(&dir);
    scene.until_on_the_bus().await;
    assert_eq!(scene.property("RunningSlot"), "s \"a\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_installed_with_every_check_and_its_changes_are_signalled() {
    if !is_root() {
        return;
    }
    let mut scene = Scene::start().await;
    let image = scene.image("1.1.0", 7);
    let stick = scene.device.dir.join("usb stick");
    fs::create_dir(&stick).unwrap();
    let file = stick.join("new.img.zst");
    let path = file.to_str().unwrap();

    // Forged: a bit of the payload, and one of the manifest.
    let good = fs::read(&image.file).unwrap();
    let before = fs::read(scene.device.slot_file(Slot::A)).unwrap();
    for (at, code) in [
        (good.len() / 2, "image-chunk-digest"),
        (200, "signature-bad"),
    ] {
        let mut forged = good.clone();
        forged[at] ^= 1;
        fs::write(&file, forged).unwrap();
        let section = scene.carry_out(&["install", path]).await;
        assert_eq!(section["status"], "downloadfailed", "{section:#}");
        assert_eq!(section["error"]["code"], code);
    }
    // Nothing keeps the medium from being taken out.
    let pid = scene.device.daemon.as_ref().unwrap().id();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    assert!(!links.into_iter().any(|link| link == file));

    // One that ends early, one that nobody signed, and none.
    fs::write(&file, &good[..good.len() / 2]).unwrap();
    let section = scene.carry_out(&["install", path]).await;
    assert_eq!(section["error"]["code"], "image-truncated", "{section:#}");
    fs::write(&file, noise(4 * MIB, 9)).unwrap();
    let section = scene.carry_out(&["install", path]).await;
    assert_eq!(section["error"]["code"], "image-unsigned", "{section:#}");
    let (code, _, err) = told(&mut scene.ctl(&["install", "/absent.img"]));
    assert!(code == 2 && err.contains("[local-file-open]"), "{err}");
    let (code, _, err) = told(&mut scene.ctl(&["install", stick.to_str().unwrap()]));
    assert!(code == 2 && err.contains("no regular file"), "{err}");
    assert_eq!(fs::read(scene.device.slot_file(Slot::A)).unwrap(), before);

    // The hub cannot name a file of the device.
    let uri = format!("file://{}", image.file.display());
    let (status, body) = scene.rig.invoke(json!({ "fwPackageUri": uri })).await;
    assert_eq!((status, &body["code"]), (400, &json!("url-scheme")));

    // Someone without rights watches over the bus, across the reboot; a program hears of each stage.
    fs::write(&file, &good).unwrap();
    let stages = scene.stages().await;
    let (code, out, err) = told(&mut scene.ctl(&["install", path]));
    assert_eq!(code, 0, "{out}{err}");
    let id = out.trim().rsplit_once("update ").unwrap().1.to_owned();
    let mut watch = as_nobody(&scene.ctl(&["status", "--watch", "--timeout", "2m"]));
    let watch = watch
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let section = scene.device.until_final(&scene.rig, &id).await;
    let seen = watch.wait_with_output().unwrap();
    let lines = String::from_utf8(seen.stdout).unwrap();
    assert_eq!(seen.status.code(), Some(0), "{lines}");
    assert!(lines.trim_end().ends_with("applyComplete"), "{lines}");
    let heard = stages.lock().unwrap().clone();
    for stage in ["downloading", "downloadComplete", "rebooting"] {
        assert!(heard.iter().any(|it| it == stage), "{stage} in {heard:?}");
    }
    assert_eq!(section["status"], "applyComplete", "{section:#}");
    assert_eq!(section["fwVersion"], "1.1.0");
    assert!(scene.device.holds(Slot::B, &image.raw));
    scene.until_on_the_bus().await;
    assert_eq!(scene.property("Stage"), "s \"applyComplete\"");
    assert_eq!(scene.property("RunningSlot"), "s \"b\"");
    assert_eq!(scene.property("Busy"), "b false");

    // A plain image needs the digest that the caller names, or a signature beside it.
    let raw = noise(4 * MIB, 11);
    let plain = stick.join("plain.img");
    fs::write(&plain, &raw).unwrap();
    let digest = fwupdated::update::digest::Sha256::of(&raw).to_string();
    let arguments = [
        "install",
        plain.to_str().unwrap(),
        "--version",
        "2.0.0",
        "--sha256",
        &digest,
    ];
    let section = scene.carry_out(&arguments).await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");
    assert!(scene.device.holds(Slot::A, &raw));
    let raw = noise(4 * MIB, 13);
    fs::write(&plain, &raw).unwrap();
    let mut sign = fwupdatectl();
    sign.args(["image", "sign"])
        .arg(&plain)
        .arg("--key")
        .arg(&scene.rig.key);
    support::rig::run(&mut sign);
    assert!(stick.join("plain.img.minisig").exists());
    let section = scene
        .carry_out(&["install", plain.to_str().unwrap(), "--version", "3.0.0"])
        .await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");
    assert!(scene.device.holds(Slot::B, &raw));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_install_from_a_file_goes_on_after_a_restart_or_fails_truthfully() {
    let mut scene = Scene::start().await;
    let image = scene.image("1.1.0", 7);
    for (there, end) in [(false, "downloadfailed"), (true, "applyComplete")] {
        let file = scene.device.dir.join("new.img.zst");
        fs::copy(&image.file, &file).unwrap();
        let later = scene.device.dir.join("policy.d");
        hold_up(&later);
        let (code, out, err) = told(&mut scene.ctl(&["install", file.to_str().unwrap()]));
        assert_eq!(code, 0, "{err}");
        let id = out.trim().rsplit_once("update ").unwrap().1.to_owned();
        scene.device.kill();
        if !there {
            fs::remove_file(&file).unwrap();
        }
        fs::remove_dir_all(&later).unwrap();
        scene.device.start();
        let section = scene.device.until_final(&scene.rig, &id).await;
        assert_eq!(section["status"], end, "{section:#}");
        if !there {
            assert_eq!(section["error"]["code"], "local-file-open", "{section:#}");
        }
    }
}

/// A policy that says later, for ever.
fn hold_up(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.join("10-later"), "#!/bin/sh\nexit 75\n").unwrap();
    fs::set_permissions(dir.join("10-later"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_is_confirmed_or_rejected_by_hand() {
    let mut scene = Scene::start().await;
    let check = scene.device.add_health_check("10-never", "exit 1");
    let patient = |device: &Device| {
        let text = fs::read_to_string(device.config()).unwrap();
        fs::write(
            device.config(),
            text.replace("deadline = \"8s\"", "deadline = \"10m\""),
        )
        .unwrap();
    };
    patient(&scene.device);
    let image = scene.image("1.1.0", 7);
    for (verb, end, code, slot) in [
        (
            &["mark-bad"][..],
            "applyFailed",
            json!("rollback-requested"),
            Slot::A,
        ),
        (
            &["rollback"],
            "applyFailed",
            json!("rollback-requested"),
            Slot::A,
        ),
        (&["mark-good"], "applyComplete", Value::Null, Slot::B),
    ] {
        let (code_of_none, _, err) = told(&mut scene.ctl(&["mark-good"]));
        assert!(
            code_of_none == 4 && err.contains("[nothing-to-confirm]"),
            "{err}"
        );
        let (code_of_install, out, err) =
            told(&mut scene.ctl(&["install", image.file.to_str().unwrap(), "--force"]));
        assert_eq!(code_of_install, 0, "{err}");
        let id = out.trim().rsplit_once("update ").unwrap().1.to_owned();
        scene
            .device
            .until("trial", |device| {
                (device.boots > 1 && device.running() == Slot::B && device.state() == "trial")
                    .then_some(())
            })
            .await;
        let slots = slots(&scene);
        assert_eq!(
            (&slots[1]["running"], &slots[1]["triesLeft"]),
            (&json!(true), &json!(2)),
            "{slots:#}"
        );
        assert_eq!(slots[0]["confirmed"], true);
        // The slot that everything falls back to is not given away.
        let (status, _, err) = told(&mut scene.ctl(&["mark-bad", "other"]));
        assert!(status == 4 && err.contains("update-busy"), "{err}");
        let (status, out, err) = told(&mut scene.ctl(verb));
        assert_eq!(status, 0, "{out}{err}");
        let section = scene.device.until_final(&scene.rig, &id).await;
        assert_eq!(
            (&section["status"], &section["error"]["code"]),
            (&json!(end), &code),
            "{section:#}"
        );
        assert_eq!(scene.device.running(), slot);
    }
    fs::remove_file(check).unwrap();
}

fn slots(scene: &Scene) -> Value {
    let (code, out, err) = told(&mut scene.ctl(&["slots", "--json"]));
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(&out).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_goes_back_to_what_was_confirmed_and_to_nothing_else() {
    let mut scene = Scene::start().await;
    let (code, _, err) = told(&mut scene.ctl(&["rollback"]));
    assert!(
        code == 4 && err.contains("[rollback-not-possible]"),
        "{err}"
    );
    let image = scene.image("1.1.0", 7);
    let section = scene
        .carry_out(&["install", image.file.to_str().unwrap()])
        .await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");

    let before = fs::read(scene.device.slot_file(Slot::A)).unwrap();
    let section = scene.carry_out(&["rollback"]).await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");
    assert_eq!(
        (&section["fwVersion"], &section["fwPackageUri"]),
        (&json!("1.0.0"), &json!("slot:a"))
    );
    assert_eq!(scene.device.running(), Slot::A);
    assert_eq!(
        scene.device.variable("fwupdated_slot").as_deref(),
        Some("a")
    );
    assert_eq!(fs::read(scene.device.slot_file(Slot::A)).unwrap(), before);

    // Forward again, to a slot that fails its health check now: the confirmed one stays, the other is not tried again.
    let check = scene.device.add_health_check("10-bad", "exit 1");
    let section = scene.carry_out(&["rollback"]).await;
    assert_eq!(section["status"], "applyFailed", "{section:#}");
    assert_eq!(section["error"]["code"], "health-check-failed");
    assert_eq!(scene.device.running(), Slot::A);
    let (code, _, err) = told(&mut scene.ctl(&["rollback"]));
    assert!(
        code == 4 && err.contains("[rollback-not-possible]"),
        "{err}"
    );
    // The image itself is not blamed: it can be installed.
    fs::remove_file(check).unwrap();
    let section = scene
        .carry_out(&["install", image.file.to_str().unwrap()])
        .await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");

    // A slot that was marked bad is not gone back to, the running one cannot be.
    let (code, _, err) = told(&mut scene.ctl(&["mark-bad"]));
    assert!(code == 4 && err.contains("[slot-is-confirmed]"), "{err}");
    let (code, out, err) = told(&mut scene.ctl(&["mark-bad", "other"]));
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("slot a is marked bad"), "{out}");
    assert_eq!(slots(&scene)[0]["state"], "bad");
    let (code, _, err) = told(&mut scene.ctl(&["rollback"]));
    assert!(
        code == 4 && err.contains("[rollback-not-possible]"),
        "{err}"
    );

    let (code, out, err) = told(&mut scene.ctl(&["history", "-n", "3"]));
    assert_eq!(code, 0, "{err}");
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines.len(), 4, "{out}");
    assert!(
        lines[1].contains("applyComplete") && lines[2].contains("health-check-failed"),
        "{out}"
    );
    // Without the daemon, the same and what the state file knows.
    scene.device.stop();
    assert_eq!(
        told(&mut scene.ctl(&["history", "-n", "3"])),
        (0, out, String::new())
    );
    let (code, out, err) = told(&mut scene.ctl(&["slots"]));
    assert!(
        code == 3 && err.contains("the daemon does not run"),
        "{err}"
    );
    assert!(out.contains("bad") && out.contains("running"), "{out}");
    let (code, _, err) = told(&mut scene.ctl(&["rollback"]));
    assert!(code == 3 && err.contains("[control-no-daemon]"), "{err}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_is_cancelled_while_it_waits_and_while_it_downloads() {
    let mut scene = Scene::start().await;
    let image = scene.image("1.1.0", 7);
    hold_up(&scene.device.dir.join("policy.d"));
    let (code, _, err) =
        told(&mut scene.ctl(&["install", image.file.to_str().unwrap(), "--id", "u1"]));
    assert_eq!(code, 0, "{err}");
    assert_eq!(told(&mut scene.ctl(&["cancel"])).0, 0);
    let section = scene.device.until_final(&scene.rig, "u1").await;
    assert_eq!(
        (&section["status"], &section["error"]["code"]),
        (&json!("downloadfailed"), &json!("cancelled"))
    );

    let uri = scene.rig.serve(&image);
    scene.rig.server.throttle(Some(100_000));
    let (code, _, err) = told(&mut scene.ctl(&["install", &uri, "--id", "u2", "--force"]));
    assert_eq!(code, 0, "{err}");
    let downloading = |device: &mut Device| (device.state() == "writing").then_some(());
    scene.device.until("download", downloading).await;
    assert_eq!(told(&mut scene.ctl(&["cancel"])).0, 0);
    let section = scene.device.until_final(&scene.rig, "u2").await;
    assert_eq!(section["error"]["code"], "cancelled");
    assert_eq!(scene.device.running(), Slot::A);
}
