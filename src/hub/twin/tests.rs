//! The reported section: its shape for each stage, its size, and the hub's rules of merging.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::update::{
    failure::Class,
    request::Origin,
    status::{HubStatus, Progress, SlotState, SlotStatus, Times},
};

const STAGES: [Stage; 9] = [
    Stage::Waiting,
    Stage::Downloading,
    Stage::DownloadComplete,
    Stage::Applying,
    Stage::Rebooting,
    Stage::Trial,
    Stage::ApplyComplete,
    Stage::DownloadFailed,
    Stage::ApplyFailed,
];

fn at(second: i64) -> Option<Timestamp> {
    Some(Timestamp::from_second(1_800_000_000 + second).unwrap())
}

fn idle() -> Status {
    let good = SlotStatus {
        state: SlotState::Good,
        version: Some("1.3.0".to_owned()),
    };
    Status {
        daemon_version: "0.1.0".to_owned(),
        firmware_version: Some("1.3.0".to_owned()),
        booted_slot: Some(Slot::A),
        slots: BTreeMap::from([(Slot::A, good), (Slot::B, SlotStatus::default())]),
        bootloader: "uboot".to_owned(),
        unsigned_allowed: false,
        hub: HubStatus::default(),
        update: None,
        last_success: None,
        problem: None,
    }
}

fn updating(stage: Stage) -> Status {
    let failed = matches!(stage, Stage::DownloadFailed | Stage::ApplyFailed);
    let update = UpdateReport {
        id: "u1".to_owned(),
        origin: Origin::Method,
        uri: "https://store.example/a.img".to_owned(),
        target: Slot::B,
        version: Some("1.4.0".to_owned()),
        from_version: Some("1.3.0".to_owned()),
        stage,
        detail: None,
        progress: Progress {
            bytes_done: 42,
            bytes_total: 100,
            ..Progress::default()
        },
        times: Times {
            waiting: at(0),
            downloading: at(1),
            ..Times::default()
        },
        error: failed.then(|| Failure::new("image-signature", Class::Final, "no key of ours")),
    };
    Status {
        update: Some(update),
        last_success: at(-1000),
        ..idle()
    }
}

#[test]
fn a_download_is_reported_as_the_samples_do() {
    assert_eq!(
        without_nulls(&reported(&updating(Stage::Downloading))),
        json!({
            "iothubDM": {
                "firmwareUpdate": {
                    "fwPackageUri": "https://store.example/a.img",
                    "status": "downloading",
                    "startedWaitingTime": "2027-01-15T08:00:00.000Z",
                    "startedDownloadingTime": "2027-01-15T08:00:01.000Z",
                    "lastFirmwareUpdate": "2027-01-15T07:43:20.000Z",
                    "updateId": "u1",
                    "fwVersion": "1.4.0",
                    "progress": {
                        "stage": "downloading", "percent": 42, "bytesDone": 42, "bytesTotal": 100,
                        "bytesDownloaded": 0, "bytesReused": 0, "bytesWritten": 0
                    }
                },
                "firmwareVersion": "1.3.0"
            },
            "firmware": {
                "currentFwVersion": "1.3.0", "pendingFwVersion": "1.4.0",
                "fwUpdateStatus": "downloading", "fwUpdateSubstatus": "Start downloading",
                "lastFwUpdateStartTime": "2027-01-15T08:00:01.000Z", "lastFwUpdateEndTime": ""
            },
            "fwupdated": {
                "version": "0.1.0", "bootedSlot": "a", "bootloader": "uboot",
                "slots": {"a": {"state": "good", "version": "1.3.0"}, "b": {"state": "unknown"}}
            }
        })
    );
}

#[test]
fn what_the_medium_suffered_is_said_once_at_the_end() {
    let wear = |stage, wear| {
        let mut status = updating(stage);
        status.update.as_mut().unwrap().progress.wear = wear;
        reported(&status)["iothubDM"]["firmwareUpdate"]["wear"].clone()
    };
    let some = Wear {
        bytes_skipped: 8192,
        bytes_discarded: 1 << 30,
        writes: 12,
        syncs: 4,
        ..Wear::default()
    };
    assert_eq!(wear(Stage::Downloading, some), Value::Null);
    assert_eq!(
        wear(Stage::ApplyComplete, some),
        json!({
            "bytesSkipped": 8192, "bytesZeroed": 0, "bytesDiscarded": 1 << 30, "bytesUnreadable": 0,
            "writes": 12, "syncs": 4
        })
    );
    assert_eq!(
        wear(Stage::ApplyFailed, some)["writes"],
        json!(12),
        "a failed update wears too"
    );
    // Refused before anything was written.
    assert_eq!(wear(Stage::DownloadFailed, Wear::default()), Value::Null);
}

#[test]
fn each_stage_has_the_words_of_both_contracts() {
    let words = STAGES.map(|stage| {
        let document = reported(&updating(stage));
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (
            text(&document["iothubDM"]["firmwareUpdate"]["status"]),
            text(&document["firmware"]["fwUpdateStatus"]),
        )
    });
    let words: Vec<_> = words
        .iter()
        .map(|(a, f)| (a.as_str(), f.as_str()))
        .collect();
    assert_eq!(
        words,
        [
            ("waiting", "current"),
            ("downloading", "downloading"),
            ("downloadComplete", "verifying"),
            ("applying", "applying"),
            ("applying", "rebooting"),
            ("applying", "rebooting"),
            ("applyComplete", "current"),
            ("downloadfailed", "error"),
            ("applyFailed", "rolledback"),
        ]
    );
}

#[test]
fn an_update_on_its_way_back_is_an_error_in_the_one_contract_and_nothing_new_in_the_other() {
    let mut status = updating(Stage::Rebooting);
    let text = "the app does not answer";
    let failure = Failure::new("health-check-failed", Class::Final, text);
    status.update.as_mut().unwrap().error = Some(failure);
    let document = reported(&status);
    let section = &document["iothubDM"]["firmwareUpdate"];
    assert_eq!(section["status"], "applying");
    assert!(section["error"].is_null());
    assert_eq!(document["firmware"]["fwUpdateStatus"], "error");
    assert_eq!(document["firmware"]["fwUpdateSubstatus"], text);
}

#[test]
fn a_new_run_deletes_the_error_and_times_of_the_last_but_keeps_the_last_success() {
    let mut failed = updating(Stage::DownloadFailed);
    let times = &mut failed.update.as_mut().unwrap().times;
    (times.download_complete, times.applying) = (at(2), at(3));
    let mut next = updating(Stage::Waiting);
    next.update.as_mut().unwrap().times = Times {
        waiting: at(100),
        ..Times::default()
    };
    let acknowledged = without_nulls(&reported(&failed));
    let patch = difference(&acknowledged, &reported(&next)).unwrap();
    let section = &patch["iothubDM"]["firmwareUpdate"];
    for stale in ["error", "downloadCompleteTime", "startedApplyingImage"] {
        assert_eq!(section.get(stale), Some(&Value::Null), "{stale}");
    }
    for kept in ["lastFirmwareUpdate", "updateId", "fwPackageUri"] {
        assert_eq!(section.get(kept), None, "{kept}");
    }
}

#[test]
fn nulls_are_sent_only_to_delete() {
    let patch = difference(&json!({}), &reported(&updating(Stage::Waiting))).unwrap();
    assert_eq!(patch, without_nulls(&patch));
}

#[test]
fn without_any_update_there_is_no_status_and_a_stale_one_is_deleted() {
    let document = reported(&idle());
    assert!(
        without_nulls(&document)["iothubDM"]
            .get("firmwareUpdate")
            .is_none()
    );
    let left_by_another_agent = json!({"iothubDM": {"firmwareUpdate": {"status": "waiting"}}});
    let patch = difference(&owned(&left_by_another_agent), &document).unwrap();
    assert_eq!(patch["iothubDM"].get("firmwareUpdate"), Some(&Value::Null));

    let mut once = idle();
    once.last_success = at(0);
    let section = &reported(&once)["iothubDM"]["firmwareUpdate"];
    assert_eq!(
        *section,
        json!({"lastFirmwareUpdate": "2027-01-15T08:00:00.000Z"})
    );
}

#[test]
fn what_others_report_is_left_alone() {
    let theirs = json!({
        "$version": 7,
        "telemetry": {"interval": 5},
        "iothubDM": {"reboot": {"lastReboot": "x"}, "firmwareVersion": "0"},
        "firmware": {"bootloader": "2020.01", "currentFwVersion": "0"}
    });
    let mut twin = theirs.clone();
    let patch = difference(&owned(&theirs), &reported(&idle())).unwrap();
    merge(&mut twin, &patch);
    assert_eq!(twin["telemetry"], theirs["telemetry"]);
    assert_eq!(twin["iothubDM"]["reboot"], theirs["iothubDM"]["reboot"]);
    assert_eq!(twin["firmware"]["bootloader"], "2020.01");
    assert_eq!(twin["firmware"]["currentFwVersion"], "1.3.0");
    assert_eq!(owned(&twin), without_nulls(&reported(&idle())));
}

/// Every member called `status`, by its path.
fn status_members(value: &Value, path: &str, found: &mut Vec<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        if name.eq_ignore_ascii_case("status") {
            found.push(path.clone());
        }
        status_members(value, &path, found);
    }
}

/// Size by the hub's rule: keys and texts by characters, numbers 8, booleans 4.
fn size(value: &Value) -> usize {
    match value {
        Value::Null => 0,
        Value::Bool(_) => 4,
        Value::Number(_) => 8,
        Value::String(text) => text.chars().count(),
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(members) => {
            let member = |(name, value): (&String, &Value)| name.chars().count() + size(value);
            members.iter().map(member).sum()
        }
    }
}

#[test]
fn nothing_but_the_status_is_called_status_in_any_stage() {
    for stage in STAGES {
        let mut status = updating(stage);
        status.problem = Some(Failure::new("env-unreadable", Class::Wait, "x"));
        let mut found = Vec::new();
        status_members(&reported(&status), "", &mut found);
        assert_eq!(found, [".iothubDM.firmwareUpdate.status"]);
    }
}

#[test]
fn the_longest_document_is_under_4_kb_and_on_one_line_each() {
    let long = "\n\u{7}ü\"".repeat(5000);
    for stage in STAGES {
        let mut status = updating(stage);
        let failure = Some(Failure::new(&long, Class::Final, long.clone()));
        let update = status.update.as_mut().unwrap();
        let times = Times {
            waiting: at(0),
            downloading: at(0),
            download_complete: at(0),
            applying: at(0),
            ended: at(0),
        };
        (update.id, update.uri) = (long.clone(), long.clone());
        (update.version, update.from_version) = (Some(long.clone()), Some(long.clone()));
        (update.detail, update.error, update.times) = (Some(long.clone()), failure.clone(), times);
        update.progress.bytes_total = u64::MAX;
        status.problem = failure;
        status.unsigned_allowed = true;
        status.daemon_version.clone_from(&long);
        status.bootloader.clone_from(&long);
        status.firmware_version = Some(long.clone());
        for slot in Slot::ALL {
            status.slots.insert(
                slot,
                SlotStatus {
                    state: SlotState::Verified,
                    version: Some(long.clone()),
                },
            );
        }
        let document = reported(&status);
        assert!(size(&document) < 4096, "{}", size(&document));
        assert!(!document.to_string().contains("\\n"));
        let message = document["iothubDM"]["firmwareUpdate"]["error"]["message"].as_str();
        assert_eq!(message.is_some(), stage.is_final());
        if let Some(message) = message {
            assert_eq!(message.chars().count(), 512);
            assert!(message.ends_with('…'));
        }
        assert_eq!(
            document["iothubDM"]["firmwareUpdate"]["progress"]["bytesTotal"],
            json!(MAX_INTEGER)
        );
    }
}

#[test]
fn two_runs_of_one_id_are_told_apart_by_their_start() {
    let run = |started: Option<&str>| Run {
        update_id: "u".to_owned(),
        started: started.map(str::to_owned),
    };
    assert!(run(Some("1")).is(&run(Some("1"))));
    assert!(!run(Some("1")).is(&run(Some("2"))));
    assert!(run(None).is(&run(Some("2"))));
    assert_eq!(Run::of(&reported(&idle())), None);
    let shown = Run::of(&reported(&updating(Stage::Waiting))).unwrap();
    assert!(shown.is(&run(None)) == (shown.update_id == "u"));
}

#[test]
fn merge_follows_the_hubs_rules() {
    let merged = |mut target: Value, patch: Value| {
        merge(&mut target, &patch);
        target
    };
    assert_eq!(
        merged(json!({"a": {"b": 1}}), json!({"a": {"c": 2}})),
        json!({"a": {"b": 1, "c": 2}})
    );
    assert_eq!(
        merged(json!({"a": {"b": 1}}), json!({"a": {"b": null}})),
        json!({"a": {}})
    );
    assert_eq!(
        merged(json!({"a": 1}), json!({"a": {"b": null, "c": 1}})),
        json!({"a": {"c": 1}})
    );
    assert_eq!(
        merged(json!({}), json!({"a": {"b": null}})),
        json!({"a": {}})
    );
    assert_eq!(
        merged(json!({"a": {"b": 1}}), json!({"a": [1, 2]})),
        json!({"a": [1, 2]})
    );
    assert_eq!(
        merged(json!({"a": [1]}), json!({"x": null})),
        json!({"a": [1]})
    );
}

fn member() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned)
}

fn document() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0..4_u8).prop_map(Value::from),
        "[xy]".prop_map(Value::from),
        Just(json!([1, {"a": 1}])),
    ];
    let tree = leaf.prop_recursive(3, 24, 3, |inner| {
        prop::collection::btree_map(member(), inner, 0..4)
            .prop_map(|members| Value::Object(members.into_iter().collect()))
    });
    prop::collection::btree_map(member(), tree, 0..4)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
}

proptest! {
    #[test]
    fn merging_the_difference_gives_what_was_wanted(a in document(), b in document()) {
        let mut twin = without_nulls(&a);
        match difference(&twin, &b) {
            Some(patch) => merge(&mut twin, &patch),
            None => prop_assert_eq!(&twin, &without_nulls(&b)),
        }
        prop_assert_eq!(twin, without_nulls(&b));
    }

    #[test]
    fn equal_documents_have_no_difference(a in document()) {
        prop_assert_eq!(difference(&a, &a), None);
        prop_assert_eq!(difference(&without_nulls(&a), &a), None);
    }

    #[test]
    fn a_restated_patch_is_right_whichever_of_the_lost_ones_were_applied(
        a in document(), lost in prop::collection::vec(document(), 1..4), wanted in document(),
        applied in prop::collection::vec(any::<bool>(), 4)
    ) {
        let acknowledged = without_nulls(&a);
        let mut twin = acknowledged.clone();
        for (patch, applied) in lost.iter().zip(applied) {
            if applied {
                merge(&mut twin, patch);
            }
        }
        let patch = restate(difference(&acknowledged, &wanted), &lost, &wanted);
        if let Some(patch) = &patch {
            merge(&mut twin, patch);
        }
        prop_assert_eq!(twin, without_nulls(&wanted));
    }
}
