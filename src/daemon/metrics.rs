//! What Prometheus sees: a page in its text format (exposition format 0.0.4), made of the published status alone, in a
//! file for node_exporter's textfile collector.
//!
//! The page is pure ([`render`]); the file is written whole, only when the page has changed, and at most every
//! `metrics.interval`. No label holds a secret, an address or an update's id, and each value is bounded, so that the
//! number of series stays small. `docs/reference/metrics.md` lists them; a test compares.

use std::{fmt::Write as _, path::Path};

use jiff::Timestamp;
use tokio::sync::watch;
use tracing::warn;

use super::{
    supervise::raised,
    updater::{Published, blocking},
};
use crate::{
    config::MetricsConfig,
    platform::state_file::replace_unsynced,
    update::{
        events,
        failure::{Class, Failure},
        status::{Stage, Status, UpdateReport},
    },
};

/// Longest value of a label, characters.
const MAX_LABEL: usize = 128;

/// Every stage, by the name that its sample has.
const STAGES: [(Stage, &str); 9] = [
    (Stage::Waiting, "waiting"),
    (Stage::Downloading, "downloading"),
    (Stage::DownloadComplete, "download-complete"),
    (Stage::Applying, "applying"),
    (Stage::Rebooting, "rebooting"),
    (Stage::Trial, "trial"),
    (Stage::ApplyComplete, "complete"),
    (Stage::DownloadFailed, "download-failed"),
    (Stage::ApplyFailed, "rolled-back"),
];

/// What only watching tells.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    connects: u64,
    since: Option<Timestamp>,
}

impl Seen {
    /// Looks at the next status.
    pub fn look(&mut self, status: &Status) {
        if status.hub.connected && status.hub.since != self.since {
            self.connects += 1;
            self.since = status.hub.since;
        }
    }
}

/// The page, while the daemon runs or (`up` is false) after it has stopped.
#[must_use]
pub fn render(published: &Published, seen: &Seen, up: bool) -> String {
    let Published { status, outbox, .. } = published;
    let mut page = Page::default();
    page.gauge(
        "fwupdated_up",
        "1 while the daemon runs, 0 after it was stopped.",
    );
    page.one(flag(up));
    page.gauge("fwupdated_build_info", "The daemon's version.");
    page.sample(&[("version", &status.daemon_version)], 1.0);
    page.gauge(
        "fwupdated_firmware_info",
        "The slot that runs and the version in it.",
    );
    let booted = status.booted_slot.map_or("unknown", |slot| slot.name());
    let version = status.firmware_version.as_deref().unwrap_or_default();
    page.sample(&[("slot", booted), ("version", version)], 1.0);
    page.gauge("fwupdated_slot_info", "What is known of each slot.");
    for (slot, known) in &status.slots {
        let version = known.version.as_deref().unwrap_or_default();
        let labels = [
            ("slot", slot.name()),
            ("state", known.state.word()),
            ("version", version),
        ];
        page.sample(&labels, 1.0);
    }
    page.gauge(
        "fwupdated_unsigned_allowed",
        "1 while images that nobody signed are installed.",
    );
    page.one(flag(status.unsigned_allowed));
    page.gauge(
        "fwupdated_problem",
        "1 for what keeps updates from working, by its error code.",
    );
    if let Some(problem) = &status.problem {
        page.sample(&[("code", &problem.code)], 1.0);
    }

    page.gauge("fwupdated_hub_connected", "1 while the hub is connected.");
    page.one(flag(up && status.hub.connected));
    page.counter(
        "fwupdated_hub_connects_total",
        "Connections to the hub since the daemon started.",
    );
    page.one(seen.connects as f64);
    page.gauge(
        "fwupdated_hub_error",
        "1 for the reason why there is no connection, by its error code.",
    );
    if let Some(error) = &status.hub.error {
        page.sample(&[("code", &error.code)], 1.0);
    }
    page.gauge(
        "fwupdated_reports_waiting",
        "Ends of updates that the hub has not acknowledged.",
    );
    page.one(outbox.len() as f64);

    let update = status.update.as_ref();
    page.gauge(
        "fwupdated_update_stage",
        "1 for the stage of the update under way, or of the last one; 0 for the others.",
    );
    for (stage, name) in STAGES {
        let here = update.is_some_and(|update| update.stage == stage);
        page.sample(&[("stage", name)], flag(here));
    }
    page.gauge(
        "fwupdated_last_success_timestamp_seconds",
        "When the last successful update was confirmed.",
    );
    if let Some(time) = status.last_success {
        page.one(seconds(time));
    }
    render_update(&mut page, update);
    page.text
}

/// The update under way, or the last one.
fn render_update(page: &mut Page, update: Option<&UpdateReport>) {
    page.gauge(
        "fwupdated_update_info",
        "Versions and target slot of that update.",
    );
    if let Some(update) = update {
        let labels = [
            ("from_version", update.from_version.as_deref()),
            ("slot", Some(update.target.name())),
            ("version", update.version.as_deref()),
        ];
        page.sample(
            &labels.map(|(name, value)| (name, value.unwrap_or_default())),
            1.0,
        );
    }
    page.gauge(
        "fwupdated_update_error",
        "1 for the reason why that update failed, by its error code.",
    );
    if let Some(error) = update.and_then(|update| update.error.as_ref()) {
        page.sample(&[("code", &error.code)], 1.0);
    }
    let progress = update.map(|update| update.progress);
    for (name, help, bytes) in [
        (
            "fwupdated_update_size_bytes",
            "Raw size of that update's image; 0 while it is unknown.",
            progress.map(|it| it.bytes_total),
        ),
        (
            "fwupdated_update_done_bytes",
            "Of them, in place and verified, or read back.",
            progress.map(|it| it.bytes_done),
        ),
        (
            "fwupdated_update_downloaded_bytes",
            "Received from the network for that update.",
            progress.map(|it| it.bytes_downloaded),
        ),
        (
            "fwupdated_update_reused_bytes",
            "Of the raw image, found on the device and not downloaded.",
            progress.map(|it| it.bytes_reused),
        ),
        (
            "fwupdated_update_written_bytes",
            "Written to the slot for that update.",
            progress.map(|it| it.bytes_written),
        ),
        (
            "fwupdated_update_unreadable_bytes",
            "Of the slot, could not be read: its medium is failing.",
            progress.map(|it| it.wear.bytes_unreadable),
        ),
    ] {
        page.gauge(name, help);
        if let Some(bytes) = bytes {
            page.one(bytes as f64);
        }
    }
    let times = update.map(|update| &update.times);
    page.gauge(
        "fwupdated_update_accepted_timestamp_seconds",
        "When that update was accepted.",
    );
    if let Some(time) = times.and_then(|times| times.waiting) {
        page.one(seconds(time));
    }
    page.gauge(
        "fwupdated_update_ended_timestamp_seconds",
        "When that update ended, well or not.",
    );
    if let Some(time) = times.and_then(|times| times.ended) {
        page.one(seconds(time));
    }
    page.gauge(
        "fwupdated_update_stage_duration_seconds",
        "How long that update was in each stage that it has left.",
    );
    let Some(times) = times else { return };
    let reached = [
        ("waiting", times.waiting),
        ("downloading", times.downloading),
        ("download-complete", times.download_complete),
        ("applying", times.applying),
    ];
    for (number, (stage, began)) in reached.iter().enumerate() {
        let later = reached[number + 1..].iter().find_map(|(_, time)| *time);
        if let Some((began, left)) = began.zip(later.or(times.ended)) {
            // A clock that was set back makes no negative duration.
            let duration = (seconds(left) - seconds(began)).max(0.0);
            page.sample(&[("stage", stage)], duration);
        }
    }
}

fn flag(is_so: bool) -> f64 {
    f64::from(u8::from(is_so))
}

fn seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}

/// The text in the making.
#[derive(Default)]
struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    fn gauge(&mut self, name: &'static str, help: &str) {
        self.family(name, "gauge", help);
    }

    fn counter(&mut self, name: &'static str, help: &str) {
        self.family(name, "counter", help);
    }

    /// Begins a metric, whose samples follow. One without samples keeps its head, as the format allows.
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        self.put(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn one(&mut self, value: f64) {
        self.sample(&[], value);
    }

    fn sample(&mut self, labels: &[(&str, &str)], value: f64) {
        let name = self.name;
        let labels: Vec<_> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        match labels.is_empty() {
            true => self.put(format_args!("{name} {value}\n")),
            false => self.put(format_args!("{name}{{{}}} {value}\n", labels.join(","))),
        }
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        self.text.write_fmt(text).expect("a text takes everything");
    }
}

/// A label's value: bounded, one line, with what the format wants escaped.
fn escaped(value: &str) -> String {
    let shown = value.chars().take(MAX_LABEL).filter(|c| !c.is_control());
    shown
        .flat_map(|c| {
            let escape = matches!(c, '\\' | '"').then_some('\\');
            escape.into_iter().chain([c])
        })
        .collect()
}

/// Keeps the file current until `stop` is raised. Does nothing without one.
pub async fn keep_file(
    config: MetricsConfig,
    mut published: watch::Receiver<Published>,
    mut stop: watch::Receiver<bool>,
) {
    let Some(file) = config.textfile else {
        return;
    };
    let mut seen = Seen::default();
    let mut writer = Writer::default();
    loop {
        let now = published.borrow_and_update().clone();
        seen.look(&now.status);
        writer.write(&file, render(&now, &seen, true)).await;
        tokio::select! {
            () = raised(&mut stop) => break,
            () = tokio::time::sleep(config.interval) => {}
        }
        tokio::select! {
            () = raised(&mut stop) => break,
            changed = published.changed() => if changed.is_err() { break },
        }
    }
    let last = published.borrow().clone();
    writer.write(&file, render(&last, &seen, false)).await;
}

/// What was written and said last.
#[derive(Default)]
struct Writer {
    written: String,
    said: Option<Failure>,
}

impl Writer {
    async fn write(&mut self, file: &Path, page: String) {
        if page == self.written {
            return;
        }
        let (path, text) = (file.to_owned(), page.clone());
        let written = blocking(move || {
            replace_unsynced(&path, text.as_bytes(), 0o644).map_err(|error| {
                let text = format!(
                    "the metrics cannot be written to {}: {error}; see metrics.textfile, and ReadWritePaths= of the unit",
                    path.display()
                );
                Failure::new("metrics-write-failed", Class::Wait, text)
            })
        });
        match written.await {
            Ok(()) => {
                self.written = page;
                self.said = None;
            }
            // Not for the update's sake; tried again at the next change.
            Err(failure) if self.said.as_ref() != Some(&failure) => {
                warn!(
                    message_id = events::PROBLEM_FOUND,
                    fwupdated_error_code = failure.code,
                    "{failure}"
                );
                self.said = Some(failure);
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
