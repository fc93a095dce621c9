//! The state machine of an update: `step(state, event, now) -> (state, actions)`. Pure and exhaustive.
//!
//! ```text
//!  Idle --Requested--> Waiting --PolicyAllows--> Checking --ImageAccepted--> Disabling --SlotDisabled--> Writing
//!   ^                    |                          |                            |                          |
//!   |<-------------------+----------- Failed / Cancelled (downloadfailed) -------+------------------+  SlotWritten
//!   |                                                                                               |       v
//!   |                                                                                               +-- Verifying
//!   |                                                                                                       |
//!   |<--SlotDisabled-- Abandoning <--Failed-- Rebooting <--SlotArmed-- Arming <---------SlotMatches---------+
//!   |                                             :                 (with files to carry over, CarryingOver: below)
//!   |                                      (reboot; update::boot decides)
//!   |                                             :
//!   |<--MarkedGood-- Confirming <--Healthy-- Trial --Unhealthy--> RollingBack --SlotDisabled--> (reboot)
//! ```
//!
//! With files to carry over, `Verifying --CarryOverDue--> CarryingOver --SlotArmed--> Rebooting` takes the place of
//! `Arming`: in it the files are copied, then the slot is armed. From the first file on, the slot is no longer what the
//! image's digest says, so that a restart in this state begins with writing it again.
//!
//! Where the policy does not let the device reboot yet, `Verifying --RebootMustWait--> Holding`: nothing is armed, for
//! however long. `Holding --RebootAllowed-->` reads the slot back once more, since anyone may have written to it meanwhile, and
//! then goes on as `Verifying` does.
//!
//! Someone on the device may go back to what the other slot holds: `Idle --ReturnRequested--> Returning --SlotArmed-->
//! Rebooting`. Nothing is written then; the caller vouches that the slot was confirmed once and not written since. It is
//! tried like a new version: the confirmed slot stays confirmed until the other one is healthy. It is a person's word, so
//! that the policy is not asked.
//!
//! What it guarantees, and `tests::no_path_arms_an_unverified_slot_and_every_path_ends` shows for
//! every sequence of events:
//! - `ArmSlot` is only ever asked for after this update's `WriteSlot` and `VerifySlot` both succeeded, or for a slot
//!   that someone goes back to;
//! - the target slot is disabled in the bootloader before its first byte is written;
//! - `MarkGood` is only asked for from a trial boot that was found healthy, or that someone on the device vouches for;
//! - from every situation the update ends within a few reboots, even if no health check ever passes.
//!
//! The caller makes the new state durable **before** it runs the actions; every action is safe to run
//! again, because after a power cut [`super::boot::resume`] runs the actions of the surviving state.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    digest::Sha256,
    failure::Failure,
    policy::Consent,
    ports::SLOT_IS_CONFIRMED,
    request::Request,
    slot::Slot,
    status::{Stage, Times},
};

/// One update, from its acceptance to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its id: the caller's, or made by us.
    pub id: String,
    /// What was asked for.
    pub request: Request,
    /// The slot to write: the one that did not run at acceptance.
    pub target: Slot,
    /// The version that ran at acceptance.
    pub from_version: Option<String>,
    /// When each stage was reached.
    #[serde(default)]
    pub times: Times,
    /// What people said about it.
    #[serde(default)]
    pub consent: Consent,
}

/// What the image's header says, after every check that needs no more than the header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// The version in the manifest, or the one the request claims for a plain image.
    pub version: Option<String>,
    /// Raw bytes; `None` for a plain compressed image, whose size shows at its end.
    pub size: Option<u64>,
    /// How many of them, the first ones, go to the slot's boot partition.
    #[serde(default)]
    pub boot_size: u64,
    /// Digest of the manifest's bytes; `None` for a plain image. A file whose header changed between
    /// check and download is refused by it.
    pub manifest: Option<Sha256>,
    /// The manifest's security epoch; 0 for a plain image.
    pub security_epoch: u64,
}

/// What must be found in the slot when it is read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Bytes from the start of the slot.
    pub size: u64,
    /// Their digest.
    pub sha256: Sha256,
}

/// A job whose image was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    /// The job.
    pub job: Job,
    /// Its image.
    pub image: ImageFacts,
}

/// A job whose image is in the slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// The job.
    pub job: Job,
    /// Its image.
    pub image: ImageFacts,
    /// What was written.
    pub content: Content,
}

/// Where an update stands. Serialised in the state file; each variant's data is all that its actions need.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "camelCase")]
pub enum State {
    /// Nothing under way.
    #[default]
    Idle,
    /// The policy has not yet allowed it.
    Waiting(Job),
    /// The image's header is fetched and checked; the slot is untouched.
    Checking(Job),
    /// The bootloader is told never to boot the target slot.
    Disabling(Prepared),
    /// The slot is written.
    Writing(Prepared),
    /// The slot is read back.
    Verifying(Written),
    /// The slot holds what it must and nothing is armed: the reboot is waited for, then the slot is read back once more.
    Holding(Written),
    /// The bootloader is told to try the slot.
    Arming(Written),
    /// Files of the running system are copied into the slot; then the bootloader is told to try it.
    CarryingOver(Written),
    /// The bootloader is told to try what the slot holds already.
    Returning(Written),
    /// Armed; the reboot was asked for during boot `armed_in`.
    Rebooting {
        /// The update.
        #[serde(flatten)]
        written: Written,
        /// Kernel boot id of the boot that armed the slot.
        armed_in: String,
    },
    /// Runs from the new slot, unconfirmed.
    Trial(Written),
    /// Healthy; the bootloader is told so.
    Confirming(Written),
    /// The trial failed; the bootloader is told, and the reboot into the old slot follows.
    RollingBack {
        /// The update.
        #[serde(flatten)]
        written: Written,
        /// Why.
        failure: Failure,
    },
    /// Runs from the old slot; the armed target is disabled, then the update ends as failed.
    Abandoning {
        /// The update.
        #[serde(flatten)]
        written: Written,
        /// Why.
        failure: Failure,
    },
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A request passed its preflight.
    Requested(Job),
    /// Someone on the device goes back to what the other slot holds, which passed its preflight.
    ReturnRequested(Written),
    /// The policy lets the update go on.
    PolicyAllows,
    /// Someone lets what waits go on.
    Approved {
        /// Without waiting for anything else.
        now: bool,
    },
    /// Someone puts what waits off.
    Deferred {
        /// Until then.
        until: Timestamp,
    },
    /// The header was fetched and passed every check.
    ImageAccepted(ImageFacts),
    /// The bootloader will not boot the target.
    SlotDisabled,
    /// Everything is on the medium.
    SlotWritten(Content),
    /// The slot was read back and holds what it must.
    SlotMatches,
    /// The same, and files of the running system are to be copied into it.
    CarryOverDue,
    /// The slot was read back and holds what it must, but the policy does not let the device reboot yet.
    RebootMustWait,
    /// The policy lets the device reboot.
    RebootAllowed {
        /// In spite of programs that inhibit it.
        past_inhibitors: bool,
    },
    /// They are in it, and on the medium.
    CarriedOver,
    /// The bootloader will try the target; asked during this boot.
    SlotArmed {
        /// Kernel boot id.
        boot_id: String,
    },
    /// Every health check passed.
    Healthy,
    /// The trial is over: a check failed until the deadline, or someone asked to roll back.
    Unhealthy(Failure),
    /// The bootloader confirmed the slot.
    MarkedGood,
    /// The action of the present state failed.
    Failed(Failure),
    /// Someone asked to give up.
    Cancelled(Failure),
}

/// Something to do. Each is safe to repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Wait until the policy allows the update: `PolicyAllows` or `Failed`.
    AwaitPolicy(Job),
    /// Fetch and check the header: `ImageAccepted` or `Failed`.
    CheckImage(Job),
    /// Tell the bootloader never to boot this slot: `SlotDisabled` or `Failed`.
    DisableSlot(Slot),
    /// Download and write: `SlotWritten` or `Failed`.
    WriteSlot(Prepared),
    /// Read back and compare: `SlotMatches`, `CarryOverDue`, `RebootMustWait` or `Failed`.
    VerifySlot(Written),
    /// Wait until the policy lets the device reboot: `RebootAllowed`.
    AwaitReboot(Written),
    /// Copy files of the running system into the slot, all or none: `CarriedOver` or `Failed`.
    CarryOver(Written),
    /// Tell the bootloader to try the slot: `SlotArmed` or `Failed`.
    ArmSlot(Written),
    /// Reboot: nothing, or `Failed`.
    Reboot,
    /// Run the health gate: `Healthy` or `Unhealthy`.
    WatchHealth(Written),
    /// Confirm the slot: `MarkedGood` or `Failed`.
    MarkGood(Slot),
    /// The update is over: record it.
    Finish(Finished),
}

/// The end of an update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finished {
    /// The job, with the time of its end.
    pub job: Job,
    /// Its image, if it got that far.
    pub image: Option<ImageFacts>,
    /// What was written, if it got that far.
    pub content: Option<Content>,
    /// How it ended: a final stage.
    pub stage: Stage,
    /// Why it failed; `None` for [`Stage::ApplyComplete`].
    pub failure: Option<Failure>,
}

/// The event does not fit the state; nothing changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// Another update is under way.
    Busy,
    /// Too late to cancel: the slot is armed, or running.
    TooLate,
    /// Nothing is under way that this could be about (a late answer of a cancelled action, say).
    OutOfOrder,
}

impl State {
    /// The job under way.
    #[must_use]
    pub fn job(&self) -> Option<&Job> {
        match self {
            Self::Idle => None,
            Self::Waiting(job) | Self::Checking(job) => Some(job),
            Self::Disabling(Prepared { job, .. }) | Self::Writing(Prepared { job, .. }) => {
                Some(job)
            }
            Self::Verifying(w)
            | Self::Holding(w)
            | Self::Arming(w)
            | Self::CarryingOver(w)
            | Self::Returning(w)
            | Self::Trial(w)
            | Self::Confirming(w) => Some(&w.job),
            Self::Rebooting { written, .. }
            | Self::RollingBack { written, .. }
            | Self::Abandoning { written, .. } => Some(&written.job),
        }
    }

    /// Why the update under way is being given up, if it is.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::RollingBack { failure, .. } | Self::Abandoning { failure, .. } => Some(failure),
            _ => None,
        }
    }

    /// The image under way, once its header was accepted.
    #[must_use]
    pub fn image(&self) -> Option<&ImageFacts> {
        match self {
            Self::Idle | Self::Waiting(_) | Self::Checking(_) => None,
            Self::Disabling(p) | Self::Writing(p) => Some(&p.image),
            Self::Verifying(w)
            | Self::Holding(w)
            | Self::Arming(w)
            | Self::CarryingOver(w)
            | Self::Returning(w)
            | Self::Trial(w)
            | Self::Confirming(w) => Some(&w.image),
            Self::Rebooting { written, .. }
            | Self::RollingBack { written, .. }
            | Self::Abandoning { written, .. } => Some(&written.image),
        }
    }

    /// The stage to report; `None` when idle.
    #[must_use]
    pub fn stage(&self) -> Option<Stage> {
        Some(match self {
            Self::Idle => return None,
            Self::Waiting(_) | Self::Checking(_) => Stage::Waiting,
            Self::Disabling(_) | Self::Writing(_) => Stage::Downloading,
            Self::Verifying(_) | Self::Holding(_) => Stage::DownloadComplete,
            Self::Arming(_) | Self::CarryingOver(_) | Self::Returning(_) => Stage::Applying,
            Self::Rebooting { .. } | Self::RollingBack { .. } | Self::Abandoning { .. } => {
                Stage::Rebooting
            }
            Self::Trial(_) | Self::Confirming(_) => Stage::Trial,
        })
    }
}

impl Job {
    fn stamped(mut self, stamp: impl FnOnce(&mut Times)) -> Self {
        stamp(&mut self.times);
        self
    }

    /// The last word counts.
    fn hear(&mut self, word: &Event) {
        (self.consent.now, self.consent.deferred_until) = match word {
            Event::Deferred { until } => (false, Some(*until)),
            word => (matches!(word, Event::Approved { now: true }), None),
        };
    }

    fn failed(self, stage: Stage, failure: Failure, now: Timestamp) -> (State, Vec<Action>) {
        let job = self.stamped(|t| t.ended = Some(now));
        let finished = Finished {
            job,
            image: None,
            content: None,
            stage,
            failure: Some(failure),
        };
        (State::Idle, vec![Action::Finish(finished)])
    }
}

impl Prepared {
    fn failed(self, failure: Failure, now: Timestamp) -> (State, Vec<Action>) {
        let job = self.job.stamped(|t| t.ended = Some(now));
        let image = Some(self.image);
        let finished = Finished {
            job,
            image,
            content: None,
            stage: Stage::DownloadFailed,
            failure: Some(failure),
        };
        (State::Idle, vec![Action::Finish(finished)])
    }
}

impl Written {
    fn finished(
        self,
        stage: Stage,
        failure: Option<Failure>,
        now: Timestamp,
    ) -> (State, Vec<Action>) {
        let job = self.job.stamped(|t| t.ended = Some(now));
        let (image, content) = (Some(self.image), Some(self.content));
        (
            State::Idle,
            vec![Action::Finish(Finished {
                job,
                image,
                content,
                stage,
                failure,
            })],
        )
    }
}

/// The state that follows `event` at `now`, and the actions to run once that state is durable, in order.
///
/// # Errors
/// [`Refused`] when `event` does not fit `state`; the state stays as it is.
pub fn step(state: &State, event: Event, now: Timestamp) -> Result<(State, Vec<Action>), Refused> {
    use {Action as A, Event as E, State as S};
    Ok(match (state.clone(), event) {
        (S::Idle, E::Requested(job)) => {
            let job = job.stamped(|t| {
                *t = Times {
                    waiting: Some(now),
                    ..Times::default()
                }
            });
            (S::Waiting(job.clone()), vec![A::AwaitPolicy(job)])
        }
        (S::Idle, E::ReturnRequested(mut written)) => {
            written.job.times = Times {
                waiting: Some(now),
                applying: Some(now),
                ..Times::default()
            };
            (S::Returning(written.clone()), vec![A::ArmSlot(written)])
        }
        (S::Waiting(mut job), E::PolicyAllows) => {
            // Said about the start alone.
            (job.consent.now, job.consent.deferred_until) = (false, None);
            (S::Checking(job.clone()), vec![A::CheckImage(job)])
        }
        // What waits is asked about anew.
        (S::Waiting(mut job), word @ (E::Approved { .. } | E::Deferred { .. })) => {
            job.consent.start |= matches!(word, E::Approved { .. });
            job.hear(&word);
            (S::Waiting(job.clone()), vec![A::AwaitPolicy(job)])
        }
        (S::Holding(mut written), word @ (E::Approved { .. } | E::Deferred { .. })) => {
            written.job.consent.reboot |= matches!(word, E::Approved { .. });
            written.job.hear(&word);
            (S::Holding(written.clone()), vec![A::AwaitReboot(written)])
        }
        (S::Checking(job), E::ImageAccepted(image)) => {
            let job = job.stamped(|t| t.downloading = Some(now));
            let target = job.target;
            (
                S::Disabling(Prepared { job, image }),
                vec![A::DisableSlot(target)],
            )
        }
        (S::Disabling(prepared), E::SlotDisabled) => {
            (S::Writing(prepared.clone()), vec![A::WriteSlot(prepared)])
        }
        (S::Writing(Prepared { job, image }), E::SlotWritten(content)) => {
            let job = job.stamped(|t| t.download_complete = Some(now));
            let written = Written {
                job,
                image,
                content,
            };
            (S::Verifying(written.clone()), vec![A::VerifySlot(written)])
        }
        (S::Verifying(written) | S::Holding(written), E::RebootMustWait) => {
            (S::Holding(written.clone()), vec![A::AwaitReboot(written)])
        }
        (S::Holding(mut written), E::RebootAllowed { past_inhibitors }) => {
            written.job.consent.past_inhibitors = past_inhibitors;
            (S::Holding(written.clone()), vec![A::VerifySlot(written)])
        }
        (S::Verifying(mut written) | S::Holding(mut written), E::SlotMatches) => {
            written.job.times.applying = Some(now);
            (S::Arming(written.clone()), vec![A::ArmSlot(written)])
        }
        // Read back again after a restart.
        (S::Arming(written), E::SlotMatches) => {
            (S::Arming(written.clone()), vec![A::ArmSlot(written)])
        }
        // It may be armed already: then a power cut would boot it with half of the files.
        (S::Arming(Written { job, image, .. }), E::CarryOverDue) => {
            let target = job.target;
            (
                S::Disabling(Prepared { job, image }),
                vec![A::DisableSlot(target)],
            )
        }
        (S::Verifying(mut written) | S::Holding(mut written), E::CarryOverDue) => {
            written.job.times.applying = Some(now);
            (
                S::CarryingOver(written.clone()),
                vec![A::CarryOver(written)],
            )
        }
        (S::CarryingOver(written), E::CarriedOver) => {
            (S::CarryingOver(written.clone()), vec![A::ArmSlot(written)])
        }
        (
            S::Arming(written) | S::CarryingOver(written) | S::Returning(written),
            E::SlotArmed { boot_id },
        ) => (
            S::Rebooting {
                written,
                armed_in: boot_id,
            },
            vec![A::Reboot],
        ),
        (S::Trial(written), E::Healthy) => {
            let target = written.job.target;
            (S::Confirming(written), vec![A::MarkGood(target)])
        }
        (S::Trial(written), E::Unhealthy(failure)) => {
            let target = written.job.target;
            (
                S::RollingBack { written, failure },
                vec![A::DisableSlot(target)],
            )
        }
        (S::Confirming(written), E::MarkedGood) => {
            written.finished(Stage::ApplyComplete, None, now)
        }
        (S::RollingBack { written, failure }, E::SlotDisabled) => {
            (S::RollingBack { written, failure }, vec![A::Reboot])
        }
        (S::Abandoning { written, failure }, E::SlotDisabled) => {
            written.finished(Stage::ApplyFailed, Some(failure), now)
        }

        // Failures. Before the image was accepted the slot is as it was.
        (S::Waiting(job) | S::Checking(job), E::Failed(failure) | E::Cancelled(failure)) => {
            job.failed(Stage::DownloadFailed, failure, now)
        }
        // The slot is disabled, or as it was; the running one was never touched.
        (
            S::Disabling(prepared) | S::Writing(prepared),
            E::Failed(failure) | E::Cancelled(failure),
        ) => prepared.failed(failure, now),
        (
            S::Verifying(written) | S::Holding(written),
            E::Failed(failure) | E::Cancelled(failure),
        ) => written.finished(Stage::DownloadFailed, Some(failure), now),
        // The bootloader may hold the trial already: disarm before giving up.
        (
            S::Arming(written)
            | S::CarryingOver(written)
            | S::Returning(written)
            | S::Rebooting { written, .. },
            E::Failed(failure),
        ) => {
            let target = written.job.target;
            (
                S::Abandoning { written, failure },
                vec![A::DisableSlot(target)],
            )
        }
        // It runs but cannot be confirmed: without a mark-good the bootloader will fall back, so go now.
        (S::Confirming(written), E::Failed(failure)) => {
            let target = written.job.target;
            (
                S::RollingBack { written, failure },
                vec![A::DisableSlot(target)],
            )
        }
        // Confirmed after all (the answer of a mark-good was lost, or someone did it by hand): there is no way
        // back, and rebooting would only come here again, for ever.
        (S::RollingBack { written, failure }, E::Failed(second))
            if second.code == SLOT_IS_CONFIRMED =>
        {
            let target = written.job.target;
            let message = format!(
                "{}; but slot {target} is confirmed in the bootloader already, so it stays: install another version",
                failure.message
            );
            let failure = Failure { message, ..failure };
            written.finished(Stage::ApplyFailed, Some(failure), now)
        }
        // The bootloader could not be told, or the reboot was refused. The trial's tries still run out
        // by rebooting, so that remains the way back.
        (S::RollingBack { written, failure }, E::Failed(_)) => {
            (S::RollingBack { written, failure }, vec![A::Reboot])
        }
        // What was armed stays armed: safe, since it was verified, but it must be said.
        (S::Abandoning { written, failure }, E::Failed(second)) => {
            let failure = Failure {
                message: format!("{}; moreover: {second}", failure.message),
                ..failure
            };
            written.finished(Stage::ApplyFailed, Some(failure), now)
        }

        // Refusals, both sides spelled out: a new state or event does not compile until someone decides.
        (
            S::Waiting(_)
            | S::Checking(_)
            | S::Disabling(_)
            | S::Writing(_)
            | S::Verifying(_)
            | S::Holding(_)
            | S::Arming(_)
            | S::CarryingOver(_)
            | S::Returning(_)
            | S::Rebooting { .. }
            | S::Trial(_)
            | S::Confirming(_)
            | S::RollingBack { .. }
            | S::Abandoning { .. },
            E::Requested(_) | E::ReturnRequested(_),
        ) => return Err(Refused::Busy),
        (
            S::Arming(_)
            | S::CarryingOver(_)
            | S::Returning(_)
            | S::Rebooting { .. }
            | S::Trial(_)
            | S::Confirming(_)
            | S::RollingBack { .. }
            | S::Abandoning { .. },
            E::Cancelled(_),
        ) => return Err(Refused::TooLate),
        (
            S::Idle
            | S::Waiting(_)
            | S::Checking(_)
            | S::Disabling(_)
            | S::Writing(_)
            | S::Verifying(_)
            | S::Holding(_)
            | S::Arming(_)
            | S::CarryingOver(_)
            | S::Returning(_)
            | S::Rebooting { .. }
            | S::Trial(_)
            | S::Confirming(_)
            | S::RollingBack { .. }
            | S::Abandoning { .. },
            E::PolicyAllows
            | E::Approved { .. }
            | E::Deferred { .. }
            | E::ImageAccepted(_)
            | E::SlotDisabled
            | E::SlotWritten(_)
            | E::SlotMatches
            | E::CarryOverDue
            | E::RebootMustWait
            | E::RebootAllowed { .. }
            | E::CarriedOver
            | E::SlotArmed { .. }
            | E::Healthy
            | E::Unhealthy(_)
            | E::MarkedGood
            | E::Failed(_)
            | E::Cancelled(_),
        ) => return Err(Refused::OutOfOrder),
    })
}

#[cfg(test)]
mod tests;
