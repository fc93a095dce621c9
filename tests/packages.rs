//! Installed packages at work: the daemon of a package does an update, with the hub and the image server out here.
//!
//! `container ROOT NEW`: under a real systemd, system bus and polkit, with the package's own unit, sandbox, policies and
//! scripts; the package is upgraded to NEW in the middle of the update. `foreign QEMU ROOT`: a package of another
//! architecture, run by QEMU's user mode.
//! Not a test for `cargo test`, since both need a root file system, which `tests/packaging/run.sh` makes first.

#[path = "packaging/local_control.rs"]
mod local_control;
mod support;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use fwupdated::update::{events, slot::Slot};
use serde_json::{Value, json};
use support::rig::{Device, PATIENCE, Rig, noise, run};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// Bytes a second of each connection to the image server: an update lasts long enough for an upgrade.
const LINE: u64 = 256 << 10;

/// How long systemd and a foreign processor may take for what a device does at once.
const SETTINGS: &str = "[health]\nhook_dir = \"/etc/fwupdated/health.d\"\ndeadline = \"2m\"\ninterval = \"500ms\"\nunits = []\n";

#[tokio::main]
async fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["container", root, new] => container(Path::new(root), Path::new(new)).await,
        ["foreign", qemu, root] => foreign(qemu, root).await,
        _ => panic!("usage: packages container ROOT NEW | foreign QEMU ROOT"),
    }
}

/// Says it at once: a run takes a while.
fn say(what: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "packages: {what}").and_then(|()| out.flush());
}

/// A hub, an image server and a device that is not switched on yet.
async fn scene() -> (TempDir, Rig, Device) {
    // Not in /tmp, of which the unit gives the daemon one of its own, and where this checkout may be.
    let prefix = "fwupdated-test-";
    let dir = tempfile::Builder::new()
        .prefix(prefix)
        .tempdir_in("/var/lib");
    let dir = dir.unwrap();
    let rig = Rig::start(dir.path()).await;
    let slot = 24 * MIB as u64;
    let device = Device::new(&rig, &dir.path().join("device"), slot, "1.0.0", SETTINGS);
    (dir, rig, device)
}

/// Starts an update to 2.0.0; gives its id and the image's bytes.
async fn update(rig: &Rig) -> (String, Vec<u8>, u64) {
    let image = rig.build("2.0.0", noise(16 * MIB, 7), &[]);
    let size = fs::metadata(&image.file).unwrap().len();
    let uri = rig.serve(&image);
    let (status, body) = rig.invoke(json!({ "fwPackageUri": uri })).await;
    assert_eq!(status, 200, "{body}");
    (
        body["updateId"].as_str().unwrap().to_owned(),
        image.raw,
        size,
    )
}

fn assert_complete(device: &Device, section: &Value, raw: &[u8]) {
    device.assert_complete(section);
    assert!(device.holds(Slot::B, raw), "the slot holds the image");
    assert_eq!(device.variable("fwupdated_slot").as_deref(), Some("b"));
}

/// A command inside of the container.
struct Inside(PathBuf);

impl Inside {
    fn command(&self, words: &[&str]) -> Command {
        let init = fs::read_to_string(&self.0).expect("the container runs");
        let mut command = Command::new("nsenter");
        command
            .args(["--target", init.trim(), "--all", "--wd=/", "--"])
            .args(words);
        command
    }

    fn run(&self, words: &[&str]) -> String {
        let Output { stdout, .. } = run(&mut self.command(words));
        String::from_utf8(stdout).unwrap()
    }

    /// Waits until a command says something with `text` in it.
    async fn until(&self, words: &[&str], text: &str) -> String {
        let began = Instant::now();
        loop {
            let output = self.command(words).output().expect("nsenter starts");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            if said.contains(text) {
                return said;
            }
            assert!(began.elapsed() < PATIENCE, "no {text:?} in {said}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Shows the container's journal when the test fails.
struct Journal(PathBuf);

impl Drop for Journal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let folder = self.0.join("var/log/journal");
            let mut command = Command::new("journalctl");
            command.arg("--directory").arg(folder);
            let _ = command.args(["--no-pager", "--lines=60"]).status();
        }
    }
}

/// systemd boots ROOT, in which the older package is installed.
async fn container(root: &Path, new: &Path) {
    let _journal = Journal(root.to_owned());
    let (_dir, rig, mut device) = scene().await;
    let folder = device.dir.clone();
    device.launcher = [
        "tests/packaging/container.sh".into(),
        root.to_owned(),
        folder.clone(),
    ]
    .map(|word: PathBuf| word.to_str().unwrap().to_owned())
    .to_vec();
    // What it is to read must be in there too.
    let mut config = fs::read_to_string(device.config()).unwrap();
    let hub_ca = rig.emulator.ready().ca_file.clone();
    for (name, file) in [
        ("hub-ca.pem", hub_ca),
        ("image-ca.pem", rig.server.ca_file()),
    ] {
        let copy = folder.join(name);
        fs::copy(&file, &copy).unwrap();
        config = config.replace(file.to_str().unwrap(), copy.to_str().unwrap());
    }
    // The package's own socket, and the bus.
    let socket = format!("socket = \"{}/control\"\nbus = false\n", folder.display());
    assert!(config.contains(&socket), "{config}");
    config = config.replace(&socket, "");
    local_control::prepare(root);
    fs::write(root.join("etc/fwupdated/conf.d/10-device.toml"), config).unwrap();
    // What the unit says about a state directory elsewhere.
    let drop_in = root.join("etc/systemd/system/fwupdated.service.d");
    fs::create_dir_all(&drop_in).unwrap();
    let text = format!("[Service]\nReadWritePaths={}\n", folder.display());
    fs::write(drop_in.join("device.conf"), text).unwrap();
    let inside = Inside(folder.join("init"));

    device.boot();
    device.until_connected(&rig).await;
    let status = inside
        .until(&["systemctl", "status", "fwupdated"], "hub connected, idle")
        .await;
    assert!(status.contains("slot a (1.0.0)"), "{status}");
    say("systemd runs the installed daemon; it is connected");

    rig.server.throttle(Some(LINE));
    local_control::who_may_what(&inside, root, &rig, &mut device).await;

    let (id, raw, size) = update(&rig).await;
    device
        .until("a fifth of the download", |_| {
            let percent = rig.section()["progress"]["percent"].as_u64();
            percent.filter(|percent| *percent >= 20)
        })
        .await;
    let status_text = ["systemctl", "show", "--property=StatusText", "fwupdated"];
    let said = inside.until(&status_text, "B/s").await;
    assert!(
        said.contains(&format!("update {id} to slot b: downloading")),
        "{said}"
    );
    assert!(said.contains(" % at "), "{said}");
    let main_pid = ["systemctl", "show", "--property=MainPID", "fwupdated"];
    let before = inside.run(&main_pid);
    fs::copy(new, root.join("new.deb")).unwrap();
    inside.run(&["dpkg", "--install", "/new.deb"]);
    assert_ne!(before, inside.run(&main_pid), "the new daemon runs");
    say("upgraded in the middle of the download");
    rig.server.throttle(None);

    let section = device.until_final(&rig, &id).await;
    assert_complete(&device, &section, &raw);
    let downloaded = section["progress"]["bytesDownloaded"].as_u64().unwrap();
    assert!(
        downloaded < size / 4 * 5,
        "{downloaded} of {size} bytes downloaded"
    );
    say("the update went on where it was, rebooted, and is confirmed");

    inside
        .until(&["systemctl", "status", "fwupdated"], "slot b (")
        .await;
    let journal = inside.run(&["journalctl", "--no-pager", "--unit=fwupdated"]);
    for told in ["slot b is confirmed", "SIGTERM: stopping", &id] {
        assert!(
            journal.contains(told),
            "{told:?} is not in the journal:\n{journal}"
        );
    }
    for wrong in ["timed out", "Failed with result", "code=exited, status="] {
        assert!(!journal.contains(wrong), "{journal}");
    }
    let failed = inside.run(&["systemctl", "--failed", "--plain", "--no-legend"]);
    assert!(!failed.contains("fwupdated"), "{failed}");
    // nsenter leaves it in a folder that has no name in there.
    let verify = "cd / && systemd-analyze verify --man=no fwupdated.service fwupdated-trial.timer 2>&1; true";
    let said = inside.run(&["sh", "-c", verify]);
    assert!(!said.contains("fwupdated"), "{said}");
    let last = format!("idle; last update {id}: applyComplete\"");
    inside
        .until(&["systemctl", "status", "--full", "fwupdated"], &last)
        .await;
    let history = inside.run(&["fwupdatectl", "history", "-n", "1"]);
    assert!(
        history.contains(&id) && history.contains("applyComplete"),
        "{history}"
    );
    // The story of two daemons, one of them upgraded, and of two boots.
    let of_update = format!("FWUPDATED_UPDATE_ID={id}");
    let entries = inside.run(&["journalctl", "-o", "json", &of_update]);
    let entries = entries.lines().map(serde_json::from_str::<Value>);
    let mut told = entries.map(|entry| entry.expect("a line of JSON"));
    for event in [
        events::UPDATE_ACCEPTED,
        events::UPDATE_RESUMED,
        events::SLOT_ARMED,
        events::REBOOTING,
        events::TRIAL_BEGAN,
        events::UPDATE_COMPLETE,
    ] {
        let found = told.any(|entry| entry["MESSAGE_ID"] == event);
        assert!(found, "{event} is not in the journal, or not in its place");
    }
    let end = format!("MESSAGE_ID={}", events::UPDATE_COMPLETE);
    let explained = inside.run(&["journalctl", "-x", "-b", &end, &of_update]);
    let subject = format!("Subject: Update {id} is complete");
    assert!(explained.contains(&subject), "{explained}");
    say("status, history, journal and catalog tell the story");
    device.stop();
    say("shut down cleanly");
}

/// Programs of another architecture, from a package that was unpacked into `root`.
async fn foreign(qemu: &str, root: &str) {
    let (dir, rig, mut device) = scene().await;
    // In place of the program that was built for this machine.
    let launcher = dir.path().join("launcher");
    let text = format!("#!/bin/sh\nshift\nexec {qemu} -L {root} {root}/usr/bin/fwupdated \"$@\"\n");
    fs::write(&launcher, text).unwrap();
    fs::set_permissions(
        &launcher,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    device.launcher = vec![launcher.to_str().unwrap().to_owned()];
    let config = device.config();
    let ctl = |words: &[&str]| {
        let mut command = Command::new(qemu);
        command
            .args(["-L", root])
            .arg(format!("{root}/usr/bin/fwupdatectl"));
        command.args(words).arg("--config").arg(&config);
        let output = command.output().expect("QEMU starts");
        let said = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), said)
    };

    device.boot();
    device.until_connected(&rig).await;
    let (code, said) = ctl(&["doctor"]);
    say(&format!("fwupdatectl doctor, by {qemu}:\n{said}"));
    // 5: something could not be looked at, as on any machine that is no device.
    assert!(matches!(code, Some(0 | 5)), "{code:?}");
    for well in ["configuration", "daemon", "slots", "hub"] {
        let line = said
            .lines()
            .find(|line| line.contains(&format!(" {well} ")));
        assert!(
            line.is_some_and(|line| line.starts_with("ok ")),
            "{well}: {said}"
        );
    }

    let (id, raw, _) = update(&rig).await;
    let section = device.until_final(&rig, &id).await;
    assert_complete(&device, &section, &raw);
    device.stop();
    say("an update is confirmed");
}
