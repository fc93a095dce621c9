//! What a start of the daemon means: the surviving state, held against the slot that booted and the
//! bootloader's decision. Pure.
//!
//! - the expected slot runs: go on where the state says (a trial goes to the health gate);
//! - the old slot runs although the new one was armed: a rollback, reported as such;
//! - anything else: nothing destructive happens, and it is said.

use jiff::Timestamp;

use super::{
    failure::{Class, Failure},
    machine::{Action, Content, Event, ImageFacts, Job, Prepared, State, Written, step},
    policy::Consent,
    ports::{BootState, BootedFrom, PendingTrial},
    request::{Origin, Request},
    slot::Slot,
    status::{Times, UpdateReport},
    uri::PackageUri,
};

/// What to do at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resumed {
    /// The state to persist.
    pub state: State,
    /// The actions to run then.
    pub actions: Vec<Action>,
    /// A trial is pending for a slot that does not run, and no update of ours explains it: end it, so
    /// that no reboot surprises anyone.
    pub clear_stale_trial: Option<Slot>,
    /// What was found, for the journal, when it is more than "nothing under way".
    pub finding: Option<String>,
}

/// The state of an update whose slot was armed and never tried, because the power was lost before the bootloader was
/// told ([`super::ports::Bootloader::trial_not_started`]): the slot is read back and armed once more.
#[must_use]
pub fn armed_anew(state: &State, booted: &BootedFrom, carries_over: bool) -> State {
    match state {
        State::Rebooting { written, armed_in }
            if booted.slot != written.job.target && *armed_in != booted.boot_id =>
        {
            let written = written.clone();
            match carries_over {
                _ if written.job.request.uri.is_in_slot() => State::Returning(written),
                true => State::CarryingOver(written),
                false => State::Arming(written),
            }
        }
        other => other.clone(),
    }
}

/// The state and the actions with which the daemon goes on. `last` is the last finished
/// update; requests that were refused are none.
#[must_use]
pub fn resume(
    state: &State,
    booted: &BootedFrom,
    boot: &BootState,
    last: Option<&UpdateReport>,
    now: Timestamp,
) -> Resumed {
    let Some(job) = state.job() else {
        return idle(booted, boot, last, now);
    };
    let is_of_another = |trial: &&PendingTrial| {
        let id = trial.job.as_deref().map(|tag| from_tag(tag).0);
        trial.slot == booted.slot && id.is_some_and(|id| id != job.id)
    };
    if boot.trial.as_ref().filter(is_of_another).is_some() {
        // No update starts while a trial is pending: the state file is of an earlier life of this slot.
        return idle(booted, boot, last, now);
    }
    let in_target = booted.slot == job.target;
    let id = &job.id;
    let go = |state: State, actions: Vec<Action>, finding: String| Resumed {
        state,
        actions,
        clear_stale_trial: None,
        finding: Some(finding),
    };
    match state.clone() {
        State::Idle => idle(booted, boot, last, now),

        // Not armed yet: the target must not be the slot that runs now.
        State::Waiting(_)
        | State::Checking(_)
        | State::Disabling(_)
        | State::Writing(_)
        | State::Verifying(_)
        | State::Holding(_)
            if in_target =>
        {
            let failure = disagreement(booted.slot, "it was about to be written");
            let (state, actions) = step(state, Event::Failed(failure), now)
                .expect("these states all accept a failure");
            go(
                state,
                actions,
                format!("update {id}: its target slot runs; giving up"),
            )
        }
        State::Waiting(job) => go(
            state.clone(),
            vec![Action::AwaitPolicy(job)],
            format!("update {id} still waits"),
        ),
        State::Checking(job) => go(
            state.clone(),
            vec![Action::CheckImage(job)],
            format!("update {id}: checking its image again"),
        ),
        State::Disabling(p) => {
            let action = Action::DisableSlot(p.job.target);
            go(
                state.clone(),
                vec![action],
                format!("update {id}: disabling its target slot again"),
            )
        }
        State::Writing(p) => {
            // Disabled before the state said `Writing`; asked again because it costs nothing when true.
            let state = State::Disabling(p.clone());
            let action = Action::DisableSlot(p.job.target);
            go(
                state,
                vec![action],
                format!("update {id}: the download goes on where it stopped"),
            )
        }
        State::Verifying(w) => go(
            state.clone(),
            vec![Action::VerifySlot(w)],
            format!("update {id}: reading the slot back again"),
        ),
        // Nothing is armed; before it is, the slot is read back once more.
        State::Holding(w) => go(
            state.clone(),
            vec![Action::AwaitReboot(w)],
            format!("update {id}: the slot is written and verified; waiting for the reboot"),
        ),

        // The arming write was the last thing asked for; it may have happened.
        State::Arming(w) if in_target => trial_or_unexplained(w, booted, boot, id),
        // Someone may have written to the slot since it was read back.
        State::Arming(w) => go(
            state.clone(),
            vec![Action::VerifySlot(w)],
            format!("update {id}: reading the slot back once more before it is armed"),
        ),

        // Armed last, if at all.
        State::CarryingOver(w) if in_target => trial_or_unexplained(w, booted, boot, id),
        // Some files may be in the slot, so that its digest says nothing any more; and it may be armed.
        State::CarryingOver(Written { job, image, .. }) => {
            let action = Action::DisableSlot(job.target);
            go(
                State::Disabling(Prepared { job, image }),
                vec![action],
                format!("update {id}: writing the slot again, since files were being carried over"),
            )
        }

        // The same, and there is no image that the slot could be compared with, or written from.
        State::Returning(w) if in_target => trial_or_unexplained(w, booted, boot, id),
        State::Returning(w) => go(
            state.clone(),
            vec![Action::ArmSlot(w)],
            format!("update {id}: arming the slot again that is gone back to"),
        ),

        State::Rebooting { written, .. } if in_target => {
            trial_or_unexplained(written, booted, boot, id)
        }
        State::Rebooting { armed_in, .. } if armed_in == booted.boot_id => go(
            state.clone(),
            vec![Action::Reboot],
            format!("update {id}: asking for the reboot again"),
        ),
        State::Rebooting { written, .. } => {
            // A bootloader that counts has ended the trial. One that does not leaves it as it was when the reboot
            // began, and then that is all that is known.
            let or = match boot.trial {
                Some(_) => {
                    " (or power was lost before the device was down, or its kernel does not pass the tryboot flag on)"
                }
                None => "",
            };
            let failure = Failure::new(
                "trial-boot-failed",
                Class::Final,
                format!(
                    "slot {} did not come up as far as fwupdated, or could not say so: the bootloader fell back to \
                     slot {}, which runs{or}; look at the new slot's console output, then build a repaired image",
                    written.job.target, booted.slot
                ),
            );
            abandon(
                written,
                failure,
                format!("update {id}: rolled back by the bootloader"),
            )
        }

        State::Trial(written) if in_target => trial_or_unexplained(written, booted, boot, id),
        // Found healthy or not: the confirmation never came to be, and the tries were used up.
        State::Trial(written) | State::Confirming(written)
            if !in_target && boot.confirmed == booted.slot =>
        {
            let failure = Failure::new(
                "trial-not-confirmed",
                Class::Final,
                format!(
                    "slot {} booted but was not confirmed before the device restarted (crash, watchdog or power \
                     loss), and the bootloader fell back to slot {}",
                    written.job.target, booted.slot
                ),
            );
            abandon(
                written,
                failure,
                format!("update {id}: rolled back before it was confirmed"),
            )
        }

        // Found healthy, and the bootloader holds the confirmation: only the end was not recorded.
        State::Confirming(_) if in_target && boot.confirmed == booted.slot => {
            let (state, actions) = step(state, Event::MarkedGood, now)
                .expect("a slot that is being confirmed accepts it");
            go(
                state,
                actions,
                format!("update {id}: slot {} was confirmed", booted.slot),
            )
        }
        // Found healthy in an earlier run of this boot or of one before; the health gate decides again
        // after a reboot, since what was healthy then may not be now.
        State::Confirming(written) if in_target => trial_or_unexplained(written, booted, boot, id),
        State::Trial(written) | State::Confirming(written) => {
            let failure = disagreement(
                booted.slot,
                &format!("slot {} was confirmed", written.job.target),
            );
            abandon(
                written,
                failure,
                format!("update {id}: back in the old slot"),
            )
        }

        State::RollingBack { written, .. } if in_target => {
            let action = Action::DisableSlot(written.job.target);
            go(
                state.clone(),
                vec![action],
                format!("update {id}: rolling back again"),
            )
        }
        State::Abandoning { written, failure } if in_target => {
            let action = Action::DisableSlot(written.job.target);
            let state = State::RollingBack { written, failure };
            go(
                state,
                vec![action],
                format!("update {id} was given up but its slot booted; rolling back"),
            )
        }
        State::RollingBack { written, failure } | State::Abandoning { written, failure } => {
            abandon(
                written,
                failure,
                format!("update {id}: back in slot {}", booted.slot),
            )
        }
    }
}

/// What the bootloader keeps of an update: its id and, behind a blank, its version, so that a new slot that has no
/// state file still knows what it is. A version with other characters than usual stays away: a boot script may read it.
#[must_use]
pub fn job_tag(written: &Written) -> String {
    let id = &written.job.id;
    let usual = |c: char| c.is_ascii_alphanumeric() || "._+~:-".contains(c);
    match &written.image.version {
        Some(version) if version.chars().all(usual) => format!("{id} {version}"),
        _ => id.clone(),
    }
}

/// Id and version in a [`job_tag`].
fn from_tag(tag: &str) -> (&str, Option<&str>) {
    match tag.split_once(' ') {
        Some((id, version)) => (id, Some(version)),
        None => (tag, None),
    }
}

/// What a reset by the hardware watchdog explains: `by` is the watchdog that the kernel says ended the last boot.
pub fn explain_reset(resumed: &mut Resumed, by: &str) {
    let State::Abandoning { failure, .. } = &mut resumed.state else {
        return;
    };
    let says = format!("; the last reset was by the watchdog {by}");
    let fell_back = ["trial-boot-failed", "trial-not-confirmed"].contains(&failure.code.as_str());
    // A later start of the daemon finds it said.
    if fell_back && !failure.message.ends_with(&says) {
        failure.message.push_str(&says);
    }
}

/// Nothing was under way as far as the state file knows.
fn idle(
    booted: &BootedFrom,
    boot: &BootState,
    last: Option<&UpdateReport>,
    now: Timestamp,
) -> Resumed {
    let nothing = Resumed {
        state: State::Idle,
        actions: vec![],
        clear_stale_trial: None,
        finding: None,
    };
    let Some(trial) = &boot.trial else {
        return nothing;
    };
    if trial.slot != booted.slot {
        let finding = format!(
            "a trial of slot {} is pending that no update explains; ending it, slot {} stays",
            trial.slot, boot.confirmed
        );
        return Resumed {
            clear_stale_trial: Some(trial.slot),
            finding: Some(finding),
            ..nothing
        };
    }
    // This boot is a trial, but the state file does not know of it: it lies on the other slot's file
    // system, or was lost. The bootloader's variables carry the job's id.
    let tag = trial.job.as_deref().unwrap_or("unknown");
    let (id, version) = from_tag(tag);
    let written = adopted(id, version.map(str::to_owned), trial.slot, now);
    let given_up = last
        .filter(|l| l.id == id && l.stage.is_final())
        .and_then(|l| l.error.clone());
    match given_up {
        Some(failure) => {
            let finding = format!("update {id} was given up but its slot booted; rolling back");
            let actions = vec![Action::DisableSlot(trial.slot)];
            Resumed {
                state: State::RollingBack { written, failure },
                actions,
                finding: Some(finding),
                ..nothing
            }
        }
        None => {
            let finding = format!(
                "trial boot of update {id}, known only from the bootloader; checking its health"
            );
            let actions = vec![Action::WatchHealth(written.clone())];
            Resumed {
                state: State::Trial(written),
                actions,
                finding: Some(finding),
                ..nothing
            }
        }
    }
}

/// The target runs. With a trial pending for it (or already confirmed) that is the trial boot;
/// without either someone else switched slots.
fn trial_or_unexplained(
    written: Written,
    booted: &BootedFrom,
    boot: &BootState,
    id: &str,
) -> Resumed {
    let on_trial = boot.trial.as_ref().is_some_and(|t| t.slot == booted.slot);
    let finding = if on_trial {
        format!("update {id}: trial boot of slot {}", booted.slot)
    } else if boot.confirmed == booted.slot {
        // Confirmed by us just before the state could be saved, or by hand: health decides the report.
        format!(
            "update {id}: slot {} runs and is confirmed already",
            booted.slot
        )
    } else {
        format!(
            "update {id}: slot {} runs although the bootloader holds neither a trial nor a confirmation of it",
            booted.slot
        )
    };
    Resumed {
        state: State::Trial(written.clone()),
        actions: vec![Action::WatchHealth(written)],
        clear_stale_trial: None,
        finding: Some(finding),
    }
}

fn abandon(written: Written, failure: Failure, finding: String) -> Resumed {
    let actions = vec![Action::DisableSlot(written.job.target)];
    let state = State::Abandoning { written, failure };
    Resumed {
        state,
        actions,
        clear_stale_trial: None,
        finding: Some(finding),
    }
}

fn disagreement(booted: Slot, instead: &str) -> Failure {
    Failure::new(
        "boot-disagreement",
        Class::Final,
        format!(
            "slot {booted} runs although {instead}; someone else changed the boot slot. Nothing was written; \
             check the bootloader's variables with fw_printenv and start the update again"
        ),
    )
}

/// The update of a trial boot that only the bootloader knows of. What its image was is not known.
fn adopted(id: &str, version: Option<String>, slot: Slot, now: Timestamp) -> Written {
    Written {
        job: Job {
            id: id.to_owned(),
            request: Request::new(PackageUri::unknown(), Origin::Local),
            target: slot,
            from_version: None,
            times: Times {
                applying: Some(now),
                ..Times::default()
            },
            consent: Consent::default(),
        },
        image: ImageFacts {
            version,
            size: None,
            boot_size: 0,
            manifest: None,
            security_epoch: 0,
        },
        content: Content {
            size: 0,
            sha256: super::digest::Sha256::of(b""),
        },
    }
}

#[cfg(test)]
mod tests;
