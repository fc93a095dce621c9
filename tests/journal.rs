//! The journal, by the real journald and journalctl: the story of an update under its id, fields and ids of events,
//! and the catalog that explains them. journald runs beside the system's own, with a `/run` of the test's.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use fwupdated::update::events;
use serde_json::{Value, json};
use support::{
    promtool,
    rig::{Device, Rig, noise, program, run},
    skipped,
};

const MIB: usize = 1 << 20;
const CATALOG: &str = include_str!("../systemd/fwupdated.catalog");

/// A journald whose socket lies where programs in its namespace look for it.
struct Journal {
    dir: PathBuf,
    daemon: Child,
}

fn end(daemon: &mut Child) {
    let _ = daemon.kill();
    let _ = daemon.wait();
}

impl Drop for Journal {
    fn drop(&mut self) {
        end(&mut self.daemon);
    }
}

/// A line of the journal.
type Entry = BTreeMap<String, Value>;

impl Journal {
    /// `None` where there is no root or no journald, which is said.
    fn start(dir: &Path) -> Option<Self> {
        const JOURNALD: &str = "/usr/lib/systemd/systemd-journald";
        if !nix::unistd::Uid::effective().is_root() || !Path::new(JOURNALD).exists() {
            skipped("the journal: needs root and systemd-journald");
            return None;
        }
        let dir = dir.join("journal");
        fs::create_dir_all(dir.join("systemd/journal")).unwrap();
        let mut words = Self::launcher(&dir).into_iter();
        let daemon = Command::new(words.next().unwrap())
            .args(words)
            .arg(JOURNALD)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let journal = Self { dir, daemon };
        let began = Instant::now();
        while !journal.dir.join("systemd/journal/socket").exists() {
            assert!(began.elapsed() < Duration::from_secs(30), "no journald");
            sleep(Duration::from_millis(20));
        }
        Some(journal)
    }

    /// Starts a program as systemd does: its standard error is the journal's.
    fn launcher(dir: &Path) -> Vec<String> {
        let script = format!(
            "mount --bind {} /run && export JOURNAL_STREAM=$(stat -Lc %d:%i /proc/self/fd/2) && exec \"$@\"",
            dir.display()
        );
        ["unshare", "--mount", "sh", "-c", &script, "sh"]
            .map(str::to_owned)
            .into()
    }

    fn journalctl(&self) -> Command {
        let mut command = Command::new("journalctl");
        command
            .args(["--no-pager", "--directory"])
            .arg(self.dir.join("log/journal"));
        command
    }

    /// What matches, oldest first.
    fn entries(&self, matches: &[&str]) -> Vec<Entry> {
        let output = self
            .journalctl()
            .args(["-o", "json"])
            .args(matches)
            .output();
        let output = output.expect("journalctl starts");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Waits until one of the daemon's lines is `event`.
    fn until(&self, event: &str) {
        let began = Instant::now();
        while self.entries(&[&format!("MESSAGE_ID={event}")]).is_empty() {
            assert!(began.elapsed() < Duration::from_secs(30), "no {event}");
            sleep(Duration::from_millis(50));
        }
    }
}

/// The names of the events, in order.
fn story(entries: &[Entry]) -> Vec<&'static str> {
    let ids = entries.iter().filter_map(|entry| entry.get("MESSAGE_ID"));
    ids.map(|id| {
        let known = events::ALL.iter().find(|(_, known)| id == known);
        known.unwrap_or_else(|| panic!("{id} is no event")).0
    })
    .collect()
}

fn messages(entries: &[Entry]) -> Vec<&str> {
    let texts = entries.iter().map(|entry| entry["MESSAGE"].as_str());
    texts.map(|text| text.expect("it is text")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_update_s_id_finds_its_whole_story_before_and_after_the_reboot() {
    let dir = tempfile::tempdir().unwrap();
    let Some(journal) = Journal::start(dir.path()) else {
        return;
    };
    let rig = Rig::start(dir.path()).await;
    let good = rig.build("1.1.0", noise(2 * MIB, 2), &[]);
    let bad = rig.build("1.2.0", noise(2 * MIB, 3), &[]);
    let metrics = dir.path().join("fwupdated.prom");
    let settings = format!(
        "[metrics]\ntextfile = \"{}\"\ninterval = \"1s\"\n",
        metrics.display()
    );
    let folder = dir.path().join("device");
    let mut device = Device::new(&rig, &folder, 4 * MIB as u64, "1.0.0", &settings);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(device.dir.join("connection-string"), mode).unwrap();
    device.launcher = Journal::launcher(&journal.dir);
    device.log_filter = "info".to_owned();
    device.boot();
    device.until_connected(&rig).await;
    let (status, body) = rig
        .invoke(json!({ "fwPackageUri": rig.serve(&good), "updateId": "first" }))
        .await;
    assert_eq!(status, 200, "{body}");
    let section = device.until_final(&rig, "first").await;
    assert_eq!(section["status"], "applyComplete", "{section}");
    let before = [
        "UPDATE_ACCEPTED",
        "UPDATE_WAITING",
        "IMAGE_CHECKED",
        "DOWNLOAD_STARTED",
        "DOWNLOAD_COMPLETE",
        "SLOT_VERIFIED",
        "SLOT_ARMED",
        "REBOOTING",
        "STOPPED",
        "SLOT_FOUND",
        "UPDATE_RESUMED",
        "TRIAL_BEGAN",
    ];
    let first = journal.entries(&["FWUPDATED_UPDATE_ID=first"]);
    let ends_well = ["HEALTHY", "UPDATE_COMPLETE"];
    assert_eq!(story(&first), [&before[..], &ends_well].concat());
    let of = |event: &str| {
        let id = events::ALL
            .iter()
            .find(|(name, _)| *name == event)
            .unwrap()
            .1;
        first
            .iter()
            .find(|entry| entry.get("MESSAGE_ID") == Some(&json!(id)))
            .unwrap()
    };
    for (event, stage) in [
        ("DOWNLOAD_STARTED", "downloading"),
        ("UPDATE_COMPLETE", "applyComplete"),
    ] {
        let entry = of(event);
        assert_eq!(entry["FWUPDATED_STAGE"], stage);
        assert_eq!(entry["FWUPDATED_SLOT"], "b");
        assert_eq!(entry["FWUPDATED_VERSION"], "1.1.0");
        assert_eq!(entry["SYSLOG_IDENTIFIER"], "fwupdated");
    }

    device.add_health_check("10-never", "echo no good; exit 1");
    let (status, body) = rig
        .invoke(json!({ "fwPackageUri": rig.serve(&bad), "updateId": "second" }))
        .await;
    assert_eq!(status, 200, "{body}");
    let section = device.until_final(&rig, "second").await;
    assert_eq!(section["status"], "applyFailed", "{section}");
    let second = journal.entries(&["FWUPDATED_UPDATE_ID=second"]);
    let ends_badly = [
        "HEALTH_FAILED",
        "ROLLING_BACK",
        "STOPPED",
        "SLOT_FOUND",
        "UPDATE_RESUMED",
        "UPDATE_ROLLED_BACK",
    ];
    assert_eq!(story(&second), [&before[..], &ends_badly].concat());
    let end = second.last().unwrap();
    assert_eq!(
        end["FWUPDATED_ERROR_CODE"], "health-check-failed",
        "{end:?}"
    );
    assert_eq!(end["PRIORITY"], "3");

    device.stop();
    let page = fs::read_to_string(metrics).unwrap();
    for line in [
        "fwupdated_up 0",
        "fwupdated_update_stage{stage=\"rolled-back\"} 1",
        "fwupdated_update_error{code=\"health-check-failed\"} 1",
    ] {
        assert!(page.lines().any(|it| it == line), "no {line}\n{page}");
    }
    promtool::check(&["metrics"], &page);
    let all = journal.entries(&["SYSLOG_IDENTIFIER=fwupdated"]);
    for entry in &all {
        // No line about an update lacks its id.
        let text = entry["MESSAGE"].as_str().unwrap();
        for id in ["first", "second"] {
            let about = text.contains(&format!("update {id}"));
            assert!(!about || entry["FWUPDATED_UPDATE_ID"] == id, "{entry:?}");
        }
        // No field of ours can be taken for one of the journal's.
        for name in entry.keys() {
            let ours = name.starts_with("FWUPDATED_") || name.starts_with("SPAN_");
            let usual = [
                "MESSAGE",
                "MESSAGE_ID",
                "PRIORITY",
                "TARGET",
                "CODE_FILE",
                "CODE_LINE",
                "SYSLOG_IDENTIFIER",
            ];
            assert!(
                ours || name.starts_with('_') || usual.contains(&&**name),
                "{name}: {entry:?}"
            );
        }
    }
    // What is not about an update is little.
    let other: Vec<_> = all
        .into_iter()
        .filter(|entry| !entry.contains_key("FWUPDATED_UPDATE_ID"))
        .collect();
    let fine = [
        "fwupdated ",
        "slot a runs",
        "control socket ",
        "connected to ",
        "SIGTERM",
        "stopped",
    ];
    for text in messages(&other) {
        assert!(fine.iter().any(|fine| text.starts_with(fine)), "{text}");
    }

    // The catalog, with what the entry says in its text.
    run(Command::new("journalctl")
        .arg("--update-catalog")
        .arg(format!("--root={}", catalog_root(dir.path()).display())));
    let script = format!(
        "mount --bind {}/root/var/lib/systemd /var/lib/systemd && exec \"$@\"",
        dir.path().display()
    );
    let explained = run(Command::new("unshare")
        .args(["--mount", "sh", "-c", &script, "sh", "journalctl"])
        .args(["--no-pager", "--catalog", "FWUPDATED_UPDATE_ID=second"])
        .arg("--directory")
        .arg(journal.dir.join("log/journal")));
    let explained = String::from_utf8(explained.stdout).unwrap();
    assert!(
        explained.contains("Subject: Update second was rolled back: health-check-failed"),
        "{explained}"
    );
}

/// A root with our catalog alone.
fn catalog_root(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    let folder = root.join("usr/lib/systemd/catalog");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("fwupdated.catalog"), CATALOG).unwrap();
    root
}

#[test]
fn the_catalog_explains_each_event_and_nothing_else() {
    let mut explained = BTreeSet::new();
    for entry in CATALOG.split("\n-- ").skip(1) {
        let (id, rest) = entry.split_once('\n').unwrap();
        let (header, text) = rest.split_once("\n\n").unwrap();
        assert!(explained.insert(id), "{id} twice");
        for line in ["Subject: ", "Defined-By: fwupdated", "Documentation: man:"] {
            assert!(
                header.lines().any(|it| it.starts_with(line)),
                "{id}: no {line}"
            );
        }
        assert!(text.trim().len() > 10, "{id} says nothing");
        let fields = entry.split('@').skip(1).step_by(2);
        for field in fields {
            let known = ["UPDATE_ID", "ERROR_CODE", "SLOT"].map(|name| format!("FWUPDATED_{name}"));
            assert!(known.contains(&field.to_owned()), "{id}: {field}");
        }
    }
    let events: BTreeSet<_> = events::ALL.iter().map(|(_, id)| *id).collect();
    assert_eq!(explained, events);
}

#[test]
fn systemd_takes_the_catalog() {
    let dir = tempfile::tempdir().unwrap();
    let root = format!("--root={}", catalog_root(dir.path()).display());
    let said = run(Command::new("journalctl").args(["--update-catalog", &root]));
    assert_eq!(String::from_utf8_lossy(&said.stderr), "");
    let listed = run(Command::new("journalctl").args(["--list-catalog", &root]));
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.lines().count(), events::ALL.len(), "{listed}");
}

#[test]
fn a_device_that_nobody_has_set_up_says_so_once_and_is_silent_then() {
    let dir = tempfile::tempdir().unwrap();
    let Some(journal) = Journal::start(dir.path()) else {
        return;
    };
    let config = dir.path().join("fwupdated.toml");
    let folder = dir.path().display();
    fs::write(
        &config,
        format!(
            "[hub]\nconnection_string_file = \"{folder}/connection-string\"\nreconnect_max = \"1s\"\n\
             [state]\ndirectory = \"{folder}/state\"\n[control]\nsocket = \"{folder}/control\"\n"
        ),
    )
    .unwrap();
    let mut words = Journal::launcher(&journal.dir).into_iter();
    let mut daemon = Command::new(words.next().unwrap())
        .args(words)
        .arg(program("fwupdated"))
        .arg("--config")
        .arg(&config)
        .spawn()
        .unwrap();
    journal.until(events::IDENTITY_MISSING);
    let of_ours = || journal.entries(&["SYSLOG_IDENTIFIER=fwupdated"]);
    let said = of_ours();
    // Several attempts, and several looks at the board.
    sleep(Duration::from_secs(7));
    let later = of_ours();
    end(&mut daemon);
    let texts = messages(&later);
    assert_eq!(said.len(), later.len(), "{texts:#?}");
    let mut story = story(&later);
    // Where the test's folder lies is of no interest here.
    story.retain(|event| !["STARTED"].contains(event));
    story.sort_unstable();
    story.dedup();
    assert_eq!(story, ["IDENTITY_MISSING", "PROBLEM_FOUND"], "{texts:#?}");
    for remedy in [
        "run `fwupdatectl config init`, or set slots.a.rootfs and slots.b.rootfs",
        "Put the device connection string there",
    ] {
        assert_eq!(
            texts.iter().filter(|text| text.contains(remedy)).count(),
            1,
            "{texts:#?}"
        );
    }
    assert!(texts.len() <= 6, "{texts:#?}");
}
