//! The document in `state.json`: everything that survives a power cut, and how it becomes a [`Status`].
//!
//! `status` inside it is a copy for people and for `fwupdatectl` when the daemon does not run; the
//! daemon itself never reads it back.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    hub::desired::Acted,
    update::{
        digest::Sha256,
        failure::Failure,
        machine::{Content, Finished, Job, State},
        policy::Consent,
        request::Request,
        slot::Slot,
        status::{Progress, SlotState, SlotStatus, Stage, Status, Times, UpdateReport},
    },
};

/// Version of the document's schema. Readers move a newer one aside, and take from it what they understand. So that an
/// older fwupdated can, after a rollback, a member keeps its name and meaning for ever: what means something else gets
/// another name. `tests/fixtures/state/` has documents of each version, which every later one must read.
pub const SCHEMA: u32 = 1;

/// Final reports waiting for the hub. More than these cannot pile up without a hub for that many updates.
const OUTBOX_LIMIT: usize = 16;

/// Images remembered as bad.
const KNOWN_BAD_LIMIT: usize = 32;

/// What survives.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// Schema version.
    pub version: u32,
    /// Where the update under way stands.
    pub machine: State,
    /// Counts of the update under way when this was saved.
    #[serde(default)]
    pub progress: Progress,
    /// The last finished update.
    #[serde(default)]
    pub last: Option<UpdateReport>,
    /// The last update that was more than a refused request.
    #[serde(default)]
    pub last_run: Option<UpdateReport>,
    /// When the last successful update was confirmed.
    #[serde(default)]
    pub last_success: Option<Timestamp>,
    /// Final reports that the hub has not yet acknowledged, oldest first.
    #[serde(default)]
    pub outbox: Vec<UpdateReport>,
    /// What is known of each slot.
    #[serde(default)]
    pub slots: BTreeMap<Slot, SlotRecord>,
    /// Images that booted and were not confirmed.
    #[serde(default)]
    pub known_bad: Vec<KnownBad>,
    /// The highest security epoch that was ever confirmed. Never goes down.
    #[serde(default)]
    pub security_epoch: u64,
    /// How things stood before the trial boot of the update under way.
    #[serde(default)]
    pub baseline: Option<Baseline>,
    /// What was made of the twin's desired property `firmware`.
    #[serde(default)]
    pub desired: Acted,
    /// For `fwupdatectl` without the daemon.
    #[serde(default, deserialize_with = "what_is_understood")]
    pub status: Option<Status>,
    /// Why the daemon started afresh, shown until it starts again.
    #[serde(skip)]
    pub lost: Option<Failure>,
}

/// Only shown, never acted on: words that this version does not know must not cost the rest of the document.
fn what_is_understood<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Status>, D::Error> {
    let document = Value::deserialize(from)?;
    Ok(serde_json::from_value(document).ok())
}

/// How things stood in the old slot: what was broken then is not the new slot's fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Baseline {
    /// The units that had failed; `None` when systemd could not be asked.
    pub failed_units: Option<Vec<String>>,
    /// Whether the hub was connected.
    pub hub_connected: bool,
}

/// What is known of a slot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlotRecord {
    /// Its state.
    pub state: SlotState,
    /// The version in it.
    pub version: Option<String>,
    /// What was written when it was installed, if that is known: a static delta starts from there.
    pub content: Option<Content>,
    /// The security epoch of what is in it; 0 where that is not known.
    pub security_epoch: u64,
}

/// An image that booted and was not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownBad {
    /// Its version.
    pub version: Option<String>,
    /// Digest of its raw bytes.
    pub payload: Sha256,
    /// Why.
    pub failure: Failure,
}

impl Default for Saved {
    fn default() -> Self {
        Self {
            version: SCHEMA,
            machine: State::Idle,
            progress: Progress::default(),
            last: None,
            last_run: None,
            last_success: None,
            outbox: Vec::new(),
            slots: BTreeMap::new(),
            known_bad: Vec::new(),
            security_epoch: 0,
            baseline: None,
            desired: Acted::default(),
            status: None,
            lost: None,
        }
    }
}

impl Saved {
    /// What is understood of a document that is not understood as a whole: each member by itself, of lists each entry.
    /// The update under way is not among it, since half of that is worse than what the bootloader says.
    #[must_use]
    pub fn salvage(document: &Value) -> Self {
        fn member<T: DeserializeOwned + Default>(document: &Value, name: &str) -> T {
            T::deserialize(&document[name]).unwrap_or_default()
        }
        fn entries<T: DeserializeOwned>(document: &Value, name: &str) -> Vec<T> {
            let entries = document[name].as_array().into_iter().flatten();
            entries
                .filter_map(|entry| T::deserialize(entry).ok())
                .collect()
        }
        Self {
            last: member(document, "last"),
            last_run: member(document, "lastRun"),
            last_success: member(document, "lastSuccess"),
            outbox: entries(document, "outbox"),
            slots: member(document, "slots"),
            known_bad: entries(document, "knownBad"),
            security_epoch: member(document, "securityEpoch"),
            desired: member(document, "desired"),
            baseline: member(document, "baseline"),
            ..Self::default()
        }
    }

    /// Records the end of an update and returns its report.
    pub fn finish(&mut self, finished: &Finished, progress: Progress) -> UpdateReport {
        let version = finished.image.as_ref().and_then(|i| i.version.clone());
        let mut report = report(&finished.job, finished.stage, version.clone(), progress);
        report.error = finished.failure.clone();
        if self.outbox.len() >= OUTBOX_LIMIT {
            // A slot that was given up or confirmed says more than a download that never came to one.
            let failed = |report: &UpdateReport| report.stage == Stage::DownloadFailed;
            let least = self.outbox.iter().position(failed).unwrap_or(0);
            self.outbox.remove(least);
        }
        self.outbox.push(report.clone());
        self.last = Some(report.clone());
        if finished.image.is_some() {
            self.baseline = None;
            self.last_run = self.last.clone();
        }
        let went_back = finished.job.request.uri.is_in_slot();
        match (finished.stage, &finished.content) {
            (Stage::ApplyComplete, _) => {
                self.last_success = finished.job.times.ended;
                let epoch = finished.image.as_ref().map_or(0, |i| i.security_epoch);
                self.security_epoch = self.security_epoch.max(epoch);
                self.set_slot(finished.job.target, SlotState::Good, version);
                if let Some(slot) = self.slots.get_mut(&finished.job.target) {
                    slot.content = finished.content.filter(|content| content.size > 0);
                    slot.security_epoch = epoch;
                }
            }
            // Nothing was written to the slot that was gone back to, so no image is to blame; it is only for what it did.
            (Stage::ApplyFailed, _)
                if went_back && !(finished.failure.as_ref()).is_some_and(slot_is_to_blame) => {}
            (Stage::ApplyFailed, _) if went_back => {
                self.set_slot(finished.job.target, SlotState::Bad, version);
            }
            (Stage::ApplyFailed, Some(Content { sha256, .. })) => {
                if let Some(failure) = &finished.failure
                    && rolled_back_after_a_boot(failure)
                {
                    self.remember_bad(KnownBad {
                        version: version.clone(),
                        payload: *sha256,
                        failure: failure.clone(),
                    });
                }
                self.set_slot(finished.job.target, SlotState::Bad, version);
            }
            // Without an image the slot was never touched.
            _ if finished.image.is_some() => {
                self.set_slot(finished.job.target, SlotState::Bad, version)
            }
            _ => {}
        }
        report
    }

    /// Records a request that never became an update, so that its refusal is reported like any other end.
    pub fn refuse(
        &mut self,
        request: &Request,
        id: String,
        from_version: Option<String>,
        failure: Failure,
        now: Timestamp,
    ) {
        let times = Times {
            waiting: Some(now),
            ended: Some(now),
            ..Times::default()
        };
        let target = self.last.as_ref().map_or(Slot::B, |last| last.target);
        let job = Job {
            id,
            request: request.clone(),
            target,
            from_version,
            times,
            consent: Consent::default(),
        };
        let (stage, failure) = (Stage::DownloadFailed, Some(failure));
        self.finish(
            &Finished {
                job,
                image: None,
                content: None,
                stage,
                failure,
            },
            Progress::default(),
        );
    }

    fn remember_bad(&mut self, bad: KnownBad) {
        self.known_bad.retain(|known| known.payload != bad.payload);
        if self.known_bad.len() == KNOWN_BAD_LIMIT {
            self.known_bad.remove(0);
        }
        self.known_bad.push(bad);
    }

    /// Records what is known of `slot`; what was in it before counts no longer.
    pub fn set_slot(&mut self, slot: Slot, state: SlotState, version: Option<String>) {
        let content = None;
        self.slots.insert(
            slot,
            SlotRecord {
                state,
                version,
                content,
                security_epoch: 0,
            },
        );
    }

    /// Both slots as shown outside, the update under way included.
    #[must_use]
    pub fn slot_statuses(&self) -> BTreeMap<Slot, SlotStatus> {
        let mut shown: BTreeMap<Slot, SlotStatus> = Slot::ALL
            .into_iter()
            .map(|slot| {
                let record = self.slots.get(&slot).cloned().unwrap_or_default();
                (
                    slot,
                    SlotStatus {
                        state: record.state,
                        version: record.version,
                    },
                )
            })
            .collect();
        let live = match &self.machine {
            State::Idle | State::Waiting(_) | State::Checking(_) => None,
            State::Disabling(_) | State::Writing(_) | State::Verifying(_) => {
                Some(SlotState::Writing)
            }
            State::Holding(_)
            | State::Arming(_)
            | State::CarryingOver(_)
            | State::Returning(_)
            | State::Rebooting { .. } => Some(SlotState::Verified),
            State::Trial(_) | State::Confirming(_) => Some(SlotState::Trial),
            State::RollingBack { .. } | State::Abandoning { .. } => Some(SlotState::Bad),
        };
        if let (Some(state), Some(job)) = (live, self.machine.job()) {
            let version = self.machine.image().and_then(|i| i.version.clone());
            shown.insert(job.target, SlotStatus { state, version });
        }
        shown
    }

    /// The report of the update under way, else of the last one.
    #[must_use]
    pub fn current_report(
        &self,
        progress: Progress,
        detail: Option<String>,
    ) -> Option<UpdateReport> {
        let (Some(job), Some(stage)) = (self.machine.job(), self.machine.stage()) else {
            return self.last.clone();
        };
        let version = self.machine.image().and_then(|i| i.version.clone());
        Some(UpdateReport {
            detail,
            error: self.machine.failure().cloned(),
            ..report(job, stage, version, progress)
        })
    }
}

/// The slot that was gone back to booted, or should have, and was rejected: by the boot or by someone.
fn slot_is_to_blame(failure: &Failure) -> bool {
    rolled_back_after_a_boot(failure) || failure.code == "rollback-requested"
}

/// The trial boot itself went wrong, as opposed to an arming or a reboot that failed.
fn rolled_back_after_a_boot(failure: &Failure) -> bool {
    matches!(
        failure.code.as_str(),
        "trial-boot-failed" | "trial-not-confirmed" | "health-check-failed"
    )
}

fn report(job: &Job, stage: Stage, version: Option<String>, progress: Progress) -> UpdateReport {
    UpdateReport {
        id: job.id.clone(),
        origin: job.request.origin,
        uri: job.request.uri.to_string(),
        target: job.target,
        version: version.or_else(|| job.request.version.clone()),
        from_version: job.from_version.clone(),
        stage,
        detail: None,
        progress,
        times: job.times.clone(),
        error: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::machine::ImageFacts;

    #[test]
    fn a_status_of_another_version_costs_nothing_else() {
        let mut document = serde_json::to_value(Saved {
            security_epoch: 7,
            ..Saved::default()
        })
        .unwrap();
        document["status"] = serde_json::json!({"update": {"stage": "polishing"}});
        let saved: Saved = serde_json::from_value(document).unwrap();
        assert_eq!((saved.security_epoch, saved.status), (7, None));
    }

    #[test]
    fn what_is_in_a_slot_is_known_from_its_confirmation_until_it_is_written_again() {
        let content = Content {
            size: 4096,
            sha256: Sha256::of(b"rootfs"),
        };
        let mut saved = Saved::default();
        let mut ends = |stage, image: Option<ImageFacts>| {
            let origin = crate::update::request::Origin::Method;
            let finished = Finished {
                job: Job {
                    id: "1".to_owned(),
                    request: Request::new("https://h/x".parse().unwrap(), origin),
                    target: Slot::B,
                    from_version: None,
                    times: Times::default(),
                    consent: Consent::default(),
                },
                image,
                content: Some(content),
                stage,
                failure: None,
            };
            saved.finish(&finished, Progress::default());
            saved.slots.get(&Slot::B).and_then(|slot| slot.content)
        };
        let image = ImageFacts {
            version: None,
            size: Some(4096),
            boot_size: 0,
            manifest: None,
            security_epoch: 0,
        };
        assert_eq!(
            ends(Stage::ApplyComplete, Some(image.clone())),
            Some(content)
        );
        assert_eq!(ends(Stage::DownloadFailed, None), Some(content));
        assert_eq!(ends(Stage::ApplyFailed, Some(image)), None);

        // A file of an earlier version says nothing of it.
        let record: SlotRecord = serde_json::from_str(r#"{"state": "good"}"#).unwrap();
        assert_eq!(record.content, None);
    }

    #[test]
    fn a_full_outbox_keeps_what_became_of_slots() {
        let report = |id: usize, stage| UpdateReport {
            id: id.to_string(),
            origin: crate::update::request::Origin::Method,
            uri: String::new(),
            target: Slot::B,
            version: None,
            from_version: None,
            stage,
            detail: None,
            progress: Progress::default(),
            times: Times::default(),
            error: None,
        };
        let mut saved = Saved::default();
        saved.outbox.push(report(0, Stage::ApplyComplete));
        for id in 1..OUTBOX_LIMIT {
            saved.outbox.push(report(id, Stage::DownloadFailed));
        }
        let request = Request::new(
            "https://h/x".parse().unwrap(),
            crate::update::request::Origin::Desired,
        );
        let failure = Failure::new("x", crate::update::failure::Class::Final, "x");
        saved.refuse(
            &request,
            "new".to_owned(),
            None,
            failure,
            Timestamp::UNIX_EPOCH,
        );
        let ids: Vec<_> = saved
            .outbox
            .iter()
            .map(|report| report.id.as_str())
            .collect();
        assert_eq!(
            (saved.outbox.len(), ids[0], ids[1]),
            (OUTBOX_LIMIT, "0", "2")
        );
        assert_eq!(ids.last(), Some(&"new"));
    }
}
