//! State files of each version, frozen: every later fwupdated must read them, and an earlier one must find what it knows
//! in what a later one writes. A fixture is never changed; a new schema gets new ones.

use std::{fs, path::PathBuf};

use fwupdated::{
    config::StateConfig,
    daemon::{saved::Saved, store::Store},
    update::{machine::State, policy::Consent, slot::Slot, status::Stage},
};
use serde_json::Value;

/// The fixtures whose name begins like `prefix`: name and content.
fn fixtures(prefix: &str) -> Vec<(String, Value)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/state");
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .filter(|(name, _)| name.starts_with(prefix))
        .map(|(name, path)| {
            (
                name,
                serde_json::from_slice(&fs::read(path).unwrap()).unwrap(),
            )
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(!found.is_empty());
    found
}

/// A state directory that holds `document`.
struct Directory(tempfile::TempDir);

impl Directory {
    fn with(document: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("state.json"), document.to_string()).unwrap();
        Self(dir)
    }

    fn store(&self) -> Store {
        let directory = self.0.path().to_owned();
        Store::open(&StateConfig { directory }).unwrap()
    }
}

#[track_caller]
fn assert_what_lasts(saved: &Saved, name: &str) {
    assert_eq!(saved.security_epoch, 7, "{name}");
    let bad: Vec<_> = saved
        .known_bad
        .iter()
        .map(|bad| bad.version.as_deref())
        .collect();
    assert_eq!(bad, [Some("1.9.0")], "{name}");
    let outbox: Vec<_> = saved.outbox.iter().map(|report| report.stage).collect();
    assert_eq!(outbox, [Stage::ApplyFailed], "{name}");
    let slot = &saved.slots[&Slot::A];
    assert_eq!(slot.version.as_deref(), Some("1.0.0"), "{name}");
    assert_eq!(slot.content.unwrap().size, 1 << 30, "{name}");
    assert!(
        saved.last_success.is_some() && saved.last_run.is_some(),
        "{name}"
    );
}

#[test]
fn each_state_of_version_1_is_read_whole() {
    let states = [
        ("v1-carrying-over.json", "20260301T100000Z-0a1b2c3d"),
        ("v1-holding.json", "20260301T100000Z-0a1b2c3d"),
        ("v1-idle.json", ""),
        ("v1-rebooting.json", "20260301T100000Z-0a1b2c3d"),
        ("v1-rolling-back.json", "20260301T100000Z-0a1b2c3d"),
        ("v1-trial.json", "20260301T100000Z-0a1b2c3d"),
        ("v1-writing.json", "20260301T100000Z-0a1b2c3d"),
    ];
    let fixtures = fixtures("v1-");
    let names: Vec<_> = fixtures.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, states.map(|(name, _)| name));
    for ((name, document), (_, id)) in fixtures.iter().zip(states) {
        let saved = Directory::with(document).store().load().unwrap();
        assert_eq!(saved.lost, None, "{name}");
        assert_what_lasts(&saved, name);
        let job = saved.machine.job().map_or("", |job| &job.id);
        assert_eq!(job, id, "{name}");
        assert_eq!(saved.machine == State::Idle, id.is_empty(), "{name}");
    }
}

#[test]
fn what_people_said_is_read_and_where_nothing_is_said_nobody_said_anything() {
    let consent = |name: &str| {
        let (_, document) = fixtures(name).remove(0);
        let saved = Directory::with(&document).store().load().unwrap();
        saved.machine.job().unwrap().consent.clone()
    };
    let said = Consent {
        start: true,
        deferred_until: Some("2026-03-01T18:00:00Z".parse().unwrap()),
        ..Consent::default()
    };
    assert_eq!(consent("v1-holding"), said);
    assert_eq!(consent("v1-writing"), Consent::default());
}

/// What is in `old` and not, or otherwise, in `new`.
fn missing(old: &Value, new: &Value, place: &str, found: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (name, value) in old {
                let place = format!("{place}/{name}");
                match new.get(name) {
                    Some(there) => missing(value, there, &place, found),
                    None => found.push(place),
                }
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (at, (old, new)) in old.iter().zip(new).enumerate() {
                missing(old, new, &format!("{place}/{at}"), found);
            }
        }
        (old, new) if old == new => {}
        (old, new) => found.push(format!("{place}: {new} instead of {old}")),
    }
}

#[test]
fn what_version_1_knows_stands_where_it_stood_in_what_is_written_now() {
    for (name, document) in fixtures("v1-") {
        let directory = Directory::with(&document);
        let store = directory.store();
        store.save(&store.load().unwrap()).unwrap();
        let written = fs::read(directory.0.path().join("state.json")).unwrap();
        let mut found = Vec::new();
        missing(
            &document,
            &serde_json::from_slice(&written).unwrap(),
            "",
            &mut found,
        );
        assert!(
            found.is_empty(),
            "{name}: an older fwupdated would miss {found:#?}"
        );
    }
}

#[test]
fn of_a_newer_version_what_must_last_is_kept_and_the_file_too() {
    for (name, document) in fixtures("v2-") {
        let directory = Directory::with(&document);
        let store = directory.store();
        let saved = store.load().unwrap();
        assert_eq!(saved.lost.as_ref().unwrap().code, "state-too-new", "{name}");
        assert_eq!(saved.machine, State::Idle, "{name}");
        assert_what_lasts(&saved, &name);
        let kept = fs::read(directory.0.path().join("state.json.v2")).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&kept).unwrap(), document);
        // Once.
        store.save(&saved).unwrap();
        let again = store.load().unwrap();
        assert_eq!(again.lost, None, "{name}");
        assert_what_lasts(&again, &name);
    }
}
