//! What a start of the daemon means: the surviving state, held against the slot that booted and the
//! bootloader's decision. Pure.
//!
//! - the expected slot runs: go on where the state says (a trial goes to the health gate);
//! - the old slot runs although the new one was armed: a rollback, reported as such;
//! - anything else: nothing destructive happens, and it is said.

use jiff::Timestamp;

use super::{
    failure::{Class, Failure},
    machine::{Action, Content, Event, ImageFacts, Job, State, Written, step},
    ports::{BootState, BootedFrom},
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
pub fn armed_anew(state: &State, booted: &BootedFrom) -> State {
    match state {
        State::Rebooting { written, armed_in }
            if booted.slot != written.job.target && *armed_in != booted.boot_id =>
        {
            State::Arming(written.clone())
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

        // The arming write was the last thing asked for; it may have happened.
        State::Arming(w) if in_target => trial_or_unexplained(w, booted, boot, id),
        // Someone may have written to the slot since it was read back.
        State::Arming(w) => go(
            state.clone(),
            vec![Action::VerifySlot(w)],
            format!("update {id}: reading the slot back once more before it is armed"),
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
                    "slot {} did not come up: the bootloader fell back to slot {}, which runs{or}; look at the new \
                     slot's console output, then build a repaired image",
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
    let id = trial.job.clone().unwrap_or_else(|| "unknown".to_owned());
    let written = adopted(&id, trial.slot, now);
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
fn adopted(id: &str, slot: Slot, now: Timestamp) -> Written {
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
        },
        image: ImageFacts {
            version: None,
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
mod tests {
    use super::*;
    use crate::update::{ports::PendingTrial, status::Stage};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn written() -> Written {
        let mut written = adopted("u1", Slot::B, NOW);
        written.image.version = Some("2.0.0".to_owned());
        written
    }

    fn prepared() -> crate::update::machine::Prepared {
        let Written { job, image, .. } = written();
        crate::update::machine::Prepared { job, image }
    }

    fn failure() -> Failure {
        Failure::new("health-check-failed", Class::Final, "it is not healthy")
    }

    fn rebooting() -> State {
        State::Rebooting {
            written: written(),
            armed_in: "boot-1".to_owned(),
        }
    }

    /// Starts in boot 2, from `slot`.
    fn start(state: &State, slot: Slot, confirmed: Slot, trial: bool) -> Resumed {
        let booted = BootedFrom {
            slot,
            boot_id: "boot-2".to_owned(),
        };
        let trial = trial.then(|| PendingTrial {
            slot: Slot::B,
            tries_left: 2,
            job: Some("u1".to_owned()),
        });
        resume(state, &booted, &BootState { confirmed, trial }, None, NOW)
    }

    fn end(resumed: &Resumed) -> (&Stage, Option<&str>) {
        match &resumed.actions[..] {
            [Action::Finish(end)] => (
                &end.stage,
                end.failure.as_ref().map(|failure| failure.code.as_str()),
            ),
            other => panic!("it did not end: {other:?}"),
        }
    }

    #[test]
    fn before_the_slot_is_armed_the_update_goes_on_where_it_stopped() {
        let writing = State::Writing(prepared());
        let resumed = start(&writing, Slot::A, Slot::A, false);
        // The slot is disabled again before it is written: the environment may have been restored meanwhile.
        assert_eq!(resumed.state, State::Disabling(prepared()));
        assert_eq!(resumed.actions, [Action::DisableSlot(Slot::B)]);
        let verifying = State::Verifying(written());
        let resumed = start(&verifying, Slot::A, Slot::A, false);
        assert_eq!(resumed.state, verifying);
        assert_eq!(resumed.actions, [Action::VerifySlot(written())]);
    }

    #[test]
    fn what_was_armed_and_never_started_is_armed_anew_after_a_reboot_only() {
        let boot = |slot, id: &str| BootedFrom {
            slot,
            boot_id: id.to_owned(),
        };
        let anew = armed_anew(&rebooting(), &boot(Slot::A, "boot-2"));
        assert_eq!(anew, State::Arming(written()));
        let resumed = start(&anew, Slot::A, Slot::A, true);
        assert_eq!(resumed.actions, [Action::VerifySlot(written())]);
        for same in [boot(Slot::A, "boot-1"), boot(Slot::B, "boot-2")] {
            assert_eq!(armed_anew(&rebooting(), &same), rebooting());
        }
        let trial = State::Trial(written());
        assert_eq!(armed_anew(&trial, &boot(Slot::A, "boot-2")), trial);
    }

    #[test]
    fn a_target_that_runs_unexpectedly_is_never_written() {
        for state in [
            State::Waiting(written().job),
            State::Checking(written().job),
            State::Disabling(prepared()),
            State::Writing(prepared()),
            State::Verifying(written()),
        ] {
            let resumed = start(&state, Slot::B, Slot::B, false);
            assert_eq!(resumed.state, State::Idle);
            assert_eq!(
                end(&resumed),
                (&Stage::DownloadFailed, Some("boot-disagreement"))
            );
        }
    }

    #[test]
    fn an_armed_slot_that_runs_goes_to_the_health_gate() {
        for state in [
            State::Arming(written()),
            rebooting(),
            State::Trial(written()),
        ] {
            let resumed = start(&state, Slot::B, Slot::A, true);
            assert_eq!(resumed.state, State::Trial(written()), "{state:?}");
            assert_eq!(resumed.actions, [Action::WatchHealth(written())]);
        }
    }

    #[test]
    fn the_old_slot_after_a_reboot_is_a_rollback_and_the_reason_is_told() {
        for (state, code) in [
            (rebooting(), "trial-boot-failed"),
            (State::Trial(written()), "trial-not-confirmed"),
            (State::Confirming(written()), "trial-not-confirmed"),
        ] {
            let resumed = start(&state, Slot::A, Slot::A, false);
            let State::Abandoning { failure, .. } = &resumed.state else {
                panic!("{:?}", resumed.state);
            };
            assert_eq!(failure.code, code);
            assert_eq!(resumed.actions, [Action::DisableSlot(Slot::B)]);
        }
    }

    #[test]
    fn the_old_slot_after_the_new_one_was_confirmed_is_somebody_else_s_doing() {
        let resumed = start(&State::Confirming(written()), Slot::A, Slot::B, false);
        let State::Abandoning { failure, .. } = &resumed.state else {
            panic!("{:?}", resumed.state);
        };
        assert_eq!(failure.code, "boot-disagreement");
    }

    #[test]
    fn a_restart_before_the_reboot_happened_asks_for_it_again() {
        let state = State::Rebooting {
            written: written(),
            armed_in: "boot-2".to_owned(),
        };
        let resumed = start(&state, Slot::A, Slot::A, true);
        assert_eq!(
            (&resumed.state, &resumed.actions[..]),
            (&state, &[Action::Reboot][..])
        );
    }

    #[test]
    fn a_confirmation_whose_answer_was_lost_completes_the_update() {
        let resumed = start(&State::Confirming(written()), Slot::B, Slot::B, false);
        assert_eq!(end(&resumed), (&Stage::ApplyComplete, None));
        // Not confirmed: whether it is healthy now is asked again.
        let resumed = start(&State::Confirming(written()), Slot::B, Slot::A, true);
        assert_eq!(resumed.actions, [Action::WatchHealth(written())]);
    }

    #[test]
    fn a_rollback_that_did_not_happen_is_asked_for_again_and_one_that_did_is_reported() {
        let state = State::RollingBack {
            written: written(),
            failure: failure(),
        };
        let resumed = start(&state, Slot::B, Slot::A, true);
        assert_eq!(
            (&resumed.state, &resumed.actions[..]),
            (&state, &[Action::DisableSlot(Slot::B)][..])
        );
        let resumed = start(&state, Slot::A, Slot::A, false);
        assert!(matches!(&resumed.state, State::Abandoning { failure: f, .. } if *f == failure()));
    }

    #[test]
    fn a_trial_that_no_state_file_knows_of_is_checked_and_a_stale_one_is_ended() {
        let resumed = start(&State::Idle, Slot::B, Slot::A, true);
        let State::Trial(adopted) = &resumed.state else {
            panic!("{:?}", resumed.state);
        };
        assert_eq!(
            (adopted.job.id.as_str(), adopted.job.target),
            ("u1", Slot::B)
        );
        let resumed = start(&State::Idle, Slot::A, Slot::A, true);
        assert_eq!(resumed.clear_stale_trial, Some(Slot::B));
        assert_eq!((resumed.state, resumed.actions), (State::Idle, vec![]));
    }

    #[test]
    fn an_ordinary_start_does_nothing() {
        let resumed = start(&State::Idle, Slot::A, Slot::A, false);
        assert_eq!((resumed.state, resumed.actions), (State::Idle, vec![]));
        assert_eq!((resumed.clear_stale_trial, resumed.finding), (None, None));
    }
}
