//! The page, read strictly by the rules of the exposition format, and the reference page.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::*;
use crate::update::{
    request::Origin,
    slot::Slot,
    status::{HubStatus, Progress, SlotState, SlotStatus, Times},
};

fn published(update: Option<UpdateReport>) -> Published {
    let slot = |state, version: &str| SlotStatus {
        state,
        version: Some(version.to_owned()),
    };
    Published {
        status: Status {
            daemon_version: "0.1.0".to_owned(),
            firmware_version: Some("1.0".to_owned()),
            booted_slot: Some(Slot::A),
            slots: [
                (Slot::A, slot(SlotState::Good, "1.0")),
                (Slot::B, slot(SlotState::Bad, "1.1 \"x\"\\\n")),
            ]
            .into(),
            bootloader: "uboot".to_owned(),
            unsigned_allowed: false,
            hub: HubStatus {
                connected: true,
                since: Some(Timestamp::UNIX_EPOCH),
                ..HubStatus::default()
            },
            update,
            last_success: None,
            problem: None,
        },
        outbox: Vec::new(),
        trail: Vec::new(),
    }
}

fn report() -> UpdateReport {
    let at = |seconds: i64| Some(Timestamp::from_second(1_700_000_000 + seconds).unwrap());
    UpdateReport {
        id: "the-id".to_owned(),
        origin: Origin::Method,
        uri: "https://store.example/x.img".to_owned(),
        target: Slot::B,
        version: Some("1.1".to_owned()),
        from_version: Some("1.0".to_owned()),
        stage: Stage::ApplyFailed,
        detail: Some("a detail".to_owned()),
        progress: Progress {
            bytes_total: 4_294_967_296_000,
            bytes_downloaded: 7,
            ..Progress::default()
        },
        times: Times {
            waiting: at(0),
            downloading: at(10),
            download_complete: at(40),
            // The clock was set back.
            applying: at(35),
            ended: at(95),
        },
        error: Some(Failure::new("trial-boot-failed", Class::Final, "words")),
    }
}

/// The samples of a page: name and labels as written, and the value. Panics where the format is broken.
fn read(page: &str) -> BTreeMap<String, f64> {
    let (mut families, mut samples) = (BTreeMap::new(), BTreeMap::new());
    let mut helped = "";
    let mut current = "";
    assert!(page.ends_with('\n'));
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(help.ends_with('.'), "{line}");
            helped = name;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(name, helped, "{line}");
            assert!(["gauge", "counter"].contains(&kind), "{line}");
            // What promtool asks for.
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            assert!(families.insert(name, kind).is_none(), "{name} twice");
            current = name;
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = match series.split_once('{') {
                Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
                None => (series, ""),
            };
            assert_eq!(name, current, "{line}");
            assert!(
                name.starts_with("fwupdated_")
                    && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
                "{line}"
            );
            // No bare quote: each belongs to a label or is escaped.
            let bare = labels.replace("\\\\", "").replace("\\\"", "");
            assert_eq!(
                bare.matches('"').count(),
                2 * bare.matches("=\"").count(),
                "{line}"
            );
            let value: f64 = value.parse().unwrap();
            assert!(value.is_finite() && value >= 0.0, "{line}");
            assert!(samples.insert(series.to_owned(), value).is_none(), "{line}");
        }
    }
    samples
}

fn page(published: &Published) -> String {
    let mut seen = Seen::default();
    seen.look(&published.status);
    render(published, &seen, true)
}

#[test]
fn an_update_is_told_with_its_bytes_durations_and_reason_and_without_its_id_or_address() {
    let page = page(&published(Some(report())));
    let samples = read(&page);
    for (series, value) in [
        ("fwupdated_up", 1.0),
        ("fwupdated_hub_connected", 1.0),
        ("fwupdated_hub_connects_total", 1.0),
        ("fwupdated_firmware_info{slot=\"a\",version=\"1.0\"}", 1.0),
        ("fwupdated_update_stage{stage=\"rolled-back\"}", 1.0),
        ("fwupdated_update_stage{stage=\"waiting\"}", 0.0),
        ("fwupdated_update_size_bytes", 4_294_967_296_000.0),
        ("fwupdated_update_downloaded_bytes", 7.0),
        ("fwupdated_update_error{code=\"trial-boot-failed\"}", 1.0),
        (
            "fwupdated_update_accepted_timestamp_seconds",
            1_700_000_000.0,
        ),
        (
            "fwupdated_update_stage_duration_seconds{stage=\"waiting\"}",
            10.0,
        ),
        (
            "fwupdated_update_stage_duration_seconds{stage=\"downloading\"}",
            30.0,
        ),
        (
            "fwupdated_update_stage_duration_seconds{stage=\"download-complete\"}",
            0.0,
        ),
        (
            "fwupdated_update_stage_duration_seconds{stage=\"applying\"}",
            60.0,
        ),
    ] {
        assert_eq!(samples.get(series), Some(&value), "{series}\n{page}");
    }
    for hidden in ["the-id", "store.example", "a detail", "words"] {
        assert!(!page.contains(hidden), "{page}");
    }
}

#[test]
fn labels_are_escaped_and_bounded() {
    let mut published = published(None);
    let slot = published.status.slots.get_mut(&Slot::A).unwrap();
    slot.version = Some("x".repeat(10_000));
    let page = page(&published);
    read(&page);
    assert!(page.contains("version=\"1.1 \\\"x\\\"\\\\\""), "{page}");
    assert!(page.contains(&"x".repeat(MAX_LABEL)) && page.len() < 10_000);
}

#[test]
fn a_device_without_updates_has_no_values_of_one_and_one_that_has_stopped_is_not_up() {
    let published = published(None);
    let samples = read(&render(&published, &Seen::default(), false));
    assert_eq!(samples["fwupdated_up"], 0.0);
    assert_eq!(samples["fwupdated_hub_connected"], 0.0);
    let of_one = ["_bytes", "_timestamp_seconds", "_duration_seconds"];
    assert!(
        !samples
            .keys()
            .any(|series| of_one.iter().any(|end| series.contains(end))),
        "{samples:#?}"
    );
}

#[test]
fn each_connection_is_counted_once() {
    let mut seen = Seen::default();
    let mut status = published(None).status;
    for (connected, since, expected) in [
        (true, 0, 1),
        (true, 0, 1),
        (false, 5, 1),
        (true, 9, 2),
        // Lost and made again between two looks.
        (true, 12, 3),
    ] {
        status.hub.connected = connected;
        status.hub.since = Some(Timestamp::from_second(since).unwrap());
        seen.look(&status);
        assert_eq!(seen.connects, expected, "{since}");
    }
}

#[test]
fn the_reference_lists_each_metric_with_its_type_and_labels() {
    let mut told = published(Some(report()));
    let failure = Failure::new("x", Class::Wait, "x");
    told.status.problem = Some(failure.clone());
    told.status.hub.error = Some(failure);
    told.status.last_success = Some(Timestamp::UNIX_EPOCH);
    let page = page(&told);
    let samples = read(&page);
    let expected: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| {
            let mut series = samples.keys().filter(|series| {
                series
                    .strip_prefix(name)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
            });
            let series = series
                .next()
                .unwrap_or_else(|| panic!("{name} has no sample"));
            let labels = series[name.len()..].split("=\"").filter_map(|part| {
                let name = part.rsplit(['{', ',']).next()?;
                (part.len() > name.len()).then(|| format!("`{name}`"))
            });
            let labels = labels.collect::<Vec<_>>().join(", ");
            format!("| `{name}` | {kind} | {labels} |").replace("|  |", "| |")
        })
        .collect();
    let reference = include_str!("../../../docs/reference/metrics.md");
    let listed: BTreeSet<_> = reference
        .lines()
        .filter(|line| line.starts_with("| `fwupdated_"))
        .map(|line| line.splitn(5, '|').take(4).collect::<Vec<_>>().join("|") + "|")
        .collect();
    assert_eq!(listed, expected);
}

#[tokio::test]
async fn the_file_is_written_whole_when_something_changes_and_says_so_when_the_daemon_stops() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("fwupdated.prom");
    let config = MetricsConfig {
        textfile: Some(file.clone()),
        interval: Duration::from_millis(20),
    };
    let (publish, watch) = watch::channel(published(None));
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let task = tokio::spawn(keep_file(config, watch, stopped));
    let text = || std::fs::read_to_string(&file).unwrap_or_default();
    let until = async |what: &str| {
        while !text().contains(what) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    until("fwupdated_up 1").await;
    read(&text());
    publish.send_modify(|published| published.status.update = Some(report()));
    until("stage=\"rolled-back\"} 1").await;
    stop.send_replace(true);
    task.await.unwrap();
    assert!(text().contains("fwupdated_up 0"), "{}", text());
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
}
