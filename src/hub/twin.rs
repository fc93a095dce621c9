//! The twin's reported section: the document made from a [`Status`], and the hub's merge rules.
//!
//! Guarantees: the status words and paths are those of the samples (`docs/reference/twin.md`); no
//! member but `iothubDM.firmwareUpdate.status` is called `status`; the section stays under 4 KB by the
//! hub's way of counting, whatever the inputs; it holds no secrets, as [`Status`] holds none.
//!
//! In a *wanted* document a member that is `null` must not be in the twin. [`difference`] makes the
//! patch, in which `null` stands only where a stale member must be deleted.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::update::{
    failure::Failure,
    slot::Slot,
    status::{Stage, Status, UpdateReport, Wear, iso_millis},
};

/// Longest texts reported, in characters: together they keep the section under 4 KB.
const MAX_MESSAGE: usize = 512;
const MAX_DETAIL: usize = 256;
const MAX_URI: usize = 1024;
const MAX_WORD: usize = 64;

/// The largest integer a twin holds.
const MAX_INTEGER: u64 = 4_503_599_627_370_495;

/// The members of `firmware` that are ours; the section may hold others, which we leave alone.
const FIRMWARE_MEMBERS: [&str; 6] = [
    "currentFwVersion",
    "pendingFwVersion",
    "fwUpdateStatus",
    "fwUpdateSubstatus",
    "lastFwUpdateStartTime",
    "lastFwUpdateEndTime",
];

/// The reported section that says what `status` says.
#[must_use]
pub fn reported(status: &Status) -> Value {
    json!({
        "iothubDM": {
            "firmwareUpdate": firmware_update(status),
            "firmwareVersion": word(status.firmware_version.as_deref()),
        },
        "firmware": firmware(status),
        "fwupdated": fwupdated(status),
    })
}

/// `iothubDM.firmwareUpdate`: samples A to E. Without an update there is no `status` at all.
fn firmware_update(status: &Status) -> Value {
    let last = time(status.last_success);
    let Some(update) = &status.update else {
        return match last {
            Value::Null => Value::Null,
            last => json!({"lastFirmwareUpdate": last}),
        };
    };
    // Before its end the sample's section knows no error.
    let error = update.error.as_ref().filter(|_| update.stage.is_final());
    let progress = &update.progress;
    let count = |bytes: u64| bytes.min(MAX_INTEGER);
    json!({
        "fwPackageUri": clip(&update.uri, MAX_URI),
        "status": update.stage.word(),
        "error": error.map(|error| failure(error, MAX_MESSAGE)),
        "startedWaitingTime": time(update.times.waiting),
        "startedDownloadingTime": time(update.times.downloading),
        "downloadCompleteTime": time(update.times.download_complete),
        "startedApplyingImage": time(update.times.applying),
        "lastFirmwareUpdate": last,
        "updateId": clip(&update.id, MAX_WORD),
        "fwVersion": word(update.version.as_deref()),
        "progress": {
            "stage": update.stage,
            "percent": progress.percent(),
            "bytesDone": count(progress.bytes_done),
            "bytesTotal": count(progress.bytes_total),
            "bytesDownloaded": count(progress.bytes_downloaded),
            "bytesReused": count(progress.bytes_reused),
            "bytesWritten": count(progress.bytes_written),
        },
        "wear": wear(update),
    })
}

/// What a finished update did to the medium. Said once: while it goes on nobody needs it, and patches stay
/// small. Absent when the slot was not written.
fn wear(update: &UpdateReport) -> Value {
    let wear = &update.progress.wear;
    if !update.stage.is_final() || *wear == Wear::default() {
        return Value::Null;
    }
    let count = |number: u64| number.min(MAX_INTEGER);
    json!({
        "bytesSkipped": count(wear.bytes_skipped),
        "bytesZeroed": count(wear.bytes_zeroed),
        "bytesDiscarded": count(wear.bytes_discarded),
        "bytesUnreadable": count(wear.bytes_unreadable),
        "writes": count(wear.writes),
        "syncs": count(wear.syncs),
    })
}

/// `firmware`: sample F, whose fleet queries rely on the words of `fwUpdateStatus`. Where that sample
/// has nothing to say it says "".
fn firmware(status: &Status) -> Value {
    let text = |time: Option<Timestamp>| time.map(iso_millis).unwrap_or_default();
    let update = status.update.as_ref();
    let pending = update
        .filter(|update| !update.stage.is_final())
        .and_then(|update| update.version.as_deref());
    let (word, substatus) = update.map_or(("current", String::new()), sample_f);
    let current = status.firmware_version.as_deref();
    json!({
        "currentFwVersion": clip(current.unwrap_or_default(), MAX_WORD),
        "pendingFwVersion": clip(pending.unwrap_or_default(), MAX_WORD),
        "fwUpdateStatus": word,
        "fwUpdateSubstatus": clip(&substatus, MAX_DETAIL),
        "lastFwUpdateStartTime": text(update.and_then(|u| u.times.downloading.or(u.times.waiting))),
        "lastFwUpdateEndTime": text(update.and_then(|u| u.times.ended)),
    })
}

/// The words of sample F for `update`: status and substatus.
fn sample_f(update: &UpdateReport) -> (&'static str, String) {
    let (word, usual) = match (update.stage, &update.error) {
        (Stage::Waiting | Stage::ApplyComplete, _) => ("current", ""),
        (Stage::ApplyFailed, _) => {
            let version = update.from_version.as_deref().unwrap_or("unknown");
            return ("rolledback", format!("Rolled back to: {version}"));
        }
        // Also while an update is on its way back to the old slot: the sample says `error` first.
        (_, Some(error)) => return ("error", error.message.clone()),
        (Stage::Downloading, _) => ("downloading", "Start downloading"),
        (Stage::DownloadComplete, _) => ("verifying", "Start verifying download"),
        (Stage::Applying, _) => ("applying", "Start applying image"),
        (Stage::Rebooting, _) => ("rebooting", "Start reboot"),
        (Stage::Trial, _) => ("rebooting", "Finished reboot"),
        (Stage::DownloadFailed, None) => ("error", ""),
    };
    (
        word,
        update.detail.clone().unwrap_or_else(|| usual.to_owned()),
    )
}

/// `fwupdated`: what the samples have no place for.
fn fwupdated(status: &Status) -> Value {
    let mut slots = Map::new();
    for slot in Slot::ALL {
        let known = status.slots.get(&slot).map(
            |content| json!({"state": content.state, "version": word(content.version.as_deref())}),
        );
        slots.insert(slot.name().to_owned(), known.unwrap_or_default());
    }
    json!({
        "version": clip(&status.daemon_version, MAX_WORD),
        "bootedSlot": status.booted_slot,
        "slots": slots,
        "bootloader": clip(&status.bootloader, MAX_WORD),
        "unsignedAllowed": status.unsigned_allowed.then_some(true),
        "problem": status.problem.as_ref().map(|problem| failure(problem, MAX_DETAIL)),
    })
}

fn failure(failure: &Failure, longest: usize) -> Value {
    json!({"code": clip(&failure.code, MAX_WORD), "message": clip(&failure.message, longest)})
}

fn time(time: Option<Timestamp>) -> Value {
    time.map(iso_millis).into()
}

fn word(text: Option<&str>) -> Value {
    text.map(|text| clip(text, MAX_WORD)).into()
}

/// At most `longest` characters of `text`, on one line; `…` ends what was cut.
fn clip(text: &str, longest: usize) -> String {
    let one_line = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    if text.chars().count() <= longest {
        return one_line.collect();
    }
    one_line.take(longest - 1).chain(['…']).collect()
}

/// What of a twin's `reported` section is ours to change and to delete from.
#[must_use]
pub fn owned(reported: &Value) -> Value {
    let mut ours = Map::new();
    let mut keep = |section: &str, members: &[&str]| {
        if let Some(Value::Object(found)) = reported.get(section) {
            let kept = members.iter().filter_map(|name| found.get_key_value(*name));
            let kept = kept.map(|(name, value)| (name.clone(), value.clone()));
            ours.insert(section.to_owned(), Value::Object(kept.collect()));
        }
    };
    keep("iothubDM", &["firmwareUpdate", "firmwareVersion"]);
    keep("firmware", &FIRMWARE_MEMBERS);
    if let Some(section) = reported.get("fwupdated") {
        ours.insert("fwupdated".to_owned(), section.clone());
    }
    Value::Object(ours)
}

/// Which run of which update a reported section shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The update's id.
    pub update_id: String,
    /// When it was accepted, which tells two runs with one id apart.
    pub started: Option<String>,
}

impl Run {
    /// The run that `document` shows; `None` when it shows none.
    #[must_use]
    pub fn of(document: &Value) -> Option<Self> {
        let update = &document["iothubDM"]["firmwareUpdate"];
        let text = |name: &str| update[name].as_str().map(str::to_owned);
        Some(Self {
            update_id: text("updateId")?,
            started: text("startedWaitingTime"),
        })
    }

    /// Whether both are one run. A time that is not known (state was lost) fits any.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let same_start = match (&self.started, &other.started) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => true,
        };
        self.update_id == other.update_id && same_start
    }
}

/// The run whose end a reported section shows, if it shows one.
#[must_use]
pub fn ended(reported: &Value) -> Option<Run> {
    let word = reported["iothubDM"]["firmwareUpdate"]["status"].as_str()?;
    let ends = [
        Stage::ApplyComplete,
        Stage::DownloadFailed,
        Stage::ApplyFailed,
    ];
    ends.iter()
        .any(|end| end.word() == word)
        .then(|| Run::of(reported))
        .flatten()
}

/// Applies `patch` to `target` by the hub's rules: objects merge member by member, `null` deletes,
/// anything else replaces; a `null` inside a new object is dropped.
pub fn merge(target: &mut Value, patch: &Value) {
    let (Value::Object(members), Value::Object(changes)) = (&mut *target, patch) else {
        *target = without_nulls(patch);
        return;
    };
    for (name, change) in changes {
        if change.is_null() {
            members.remove(name);
        } else {
            merge(members.entry(name.clone()).or_insert(Value::Null), change);
        }
    }
}

/// The patch that turns `acknowledged` into `wanted`; `None` when nothing is to be done. A member that
/// is `null` in `wanted` counts as absent; one that is only in `acknowledged` is deleted.
#[must_use]
pub fn difference(acknowledged: &Value, wanted: &Value) -> Option<Value> {
    match (acknowledged, wanted) {
        (Value::Object(old), Value::Object(new)) => {
            let gone = old
                .iter()
                .filter(|(name, value)| {
                    !value.is_null() && new.get(*name).is_none_or(Value::is_null)
                })
                .map(|(name, _)| (name.clone(), Value::Null));
            let changed = new.iter().filter(|(_, value)| !value.is_null());
            let changed = changed.filter_map(|(name, value)| {
                let change = match old.get(name).filter(|old| !old.is_null()) {
                    Some(old) => difference(old, value)?,
                    None => without_nulls(value),
                };
                Some((name.clone(), change))
            });
            let patch: Map<_, _> = gone.chain(changed).collect();
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        (old, new) if old == new => None,
        (_, new) => Some(without_nulls(new)),
    }
}

/// `patch`, and with it what makes `wanted` true wherever one of `uncertain` (patches that the hub may
/// or may not have applied, in any combination) touched the twin.
#[must_use]
pub fn restate(patch: Option<Value>, uncertain: &[Value], wanted: &Value) -> Option<Value> {
    let again = uncertain.iter().filter_map(|lost| touched(lost, wanted));
    patch.into_iter().chain(again).reduce(|mut all, next| {
        overlay(&mut all, next);
        all
    })
}

/// For every leaf of `uncertain` what `wanted` has there; `null` where it has nothing.
fn touched(uncertain: &Value, wanted: &Value) -> Option<Value> {
    match (uncertain, wanted) {
        (Value::Object(touched_members), Value::Object(members)) => {
            let again = touched_members.iter().filter_map(|(name, uncertain)| {
                let wanted = members.get(name).unwrap_or(&Value::Null);
                Some((name.clone(), touched(uncertain, wanted)?))
            });
            let again: Map<_, _> = again.collect();
            (!again.is_empty()).then_some(Value::Object(again))
        }
        (_, wanted) => Some(wanted.clone()),
    }
}

/// Lays the patch `over` onto the patch `under`; both lead to the same document, so that where they meet
/// they agree. `null`s stay: they delete.
fn overlay(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(members), Value::Object(over)) => {
            for (name, value) in over {
                match members.get_mut(&name) {
                    Some(member) => overlay(member, value),
                    None => {
                        members.insert(name, value);
                    }
                }
            }
        }
        (under, over) => *under = over,
    }
}

/// `value` without the members that are `null`, at any depth of objects.
#[must_use]
pub fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members.iter().filter(|(_, value)| !value.is_null());
            Value::Object(
                kept.map(|(name, value)| (name.clone(), without_nulls(value)))
                    .collect(),
            )
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests;
