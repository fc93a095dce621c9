//! What a start means, situation by situation.

use super::*;
use crate::update::status::Stage;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn written() -> Written {
    adopted("u1", Some("2.0.0".to_owned()), Slot::B, NOW)
}

fn prepared() -> Prepared {
    let Written { job, image, .. } = written();
    Prepared { job, image }
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
fn a_slot_that_files_were_being_carried_into_is_disabled_and_written_again() {
    for trial in [false, true] {
        let resumed = start(&State::CarryingOver(written()), Slot::A, Slot::A, trial);
        assert_eq!(resumed.state, State::Disabling(prepared()));
        assert_eq!(resumed.actions, [Action::DisableSlot(Slot::B)]);
    }
}

#[test]
fn what_was_armed_and_never_started_is_armed_anew_after_a_reboot_only() {
    let boot = |slot, id: &str| BootedFrom {
        slot,
        boot_id: id.to_owned(),
    };
    let anew = armed_anew(&rebooting(), &boot(Slot::A, "boot-2"), false);
    assert_eq!(anew, State::Arming(written()));
    let resumed = start(&anew, Slot::A, Slot::A, true);
    assert_eq!(resumed.actions, [Action::VerifySlot(written())]);
    // With files carried over, the slot is no longer what its digest says: it is written again.
    let anew = armed_anew(&rebooting(), &boot(Slot::A, "boot-2"), true);
    let resumed = start(&anew, Slot::A, Slot::A, true);
    assert_eq!(resumed.state, State::Disabling(prepared()));
    for same in [boot(Slot::A, "boot-1"), boot(Slot::B, "boot-2")] {
        assert_eq!(armed_anew(&rebooting(), &same, false), rebooting());
    }
    let trial = State::Trial(written());
    assert_eq!(armed_anew(&trial, &boot(Slot::A, "boot-2"), false), trial);
}

#[test]
fn a_slot_that_is_gone_back_to_is_armed_again_and_neither_compared_nor_written() {
    let mut back = written();
    back.job.request.uri = crate::update::uri::PackageUri::in_slot(Slot::B);
    let armed = State::Rebooting {
        written: back.clone(),
        armed_in: "boot-1".to_owned(),
    };
    let booted = BootedFrom {
        slot: Slot::A,
        boot_id: "boot-2".to_owned(),
    };
    for carries_over in [false, true] {
        let anew = armed_anew(&armed, &booted, carries_over);
        assert_eq!(anew, State::Returning(back.clone()));
        for trial in [false, true] {
            let resumed = start(&anew, Slot::A, Slot::A, trial);
            assert_eq!(resumed.state, anew);
            assert_eq!(resumed.actions, [Action::ArmSlot(back.clone())]);
        }
    }
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
        State::CarryingOver(written()),
        State::Returning(written()),
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
fn a_slot_without_state_knows_its_update_and_its_version_from_the_bootloader() {
    let adopted = |tag: String| {
        let booted = BootedFrom {
            slot: Slot::B,
            boot_id: "boot-2".to_owned(),
        };
        let trial = Some(PendingTrial {
            slot: Slot::B,
            tries_left: 2,
            job: Some(tag),
        });
        let confirmed = Slot::A;
        let boot = BootState { confirmed, trial };
        match resume(&State::Idle, &booted, &boot, None, NOW).state {
            State::Trial(written) => (written.job.id, written.image.version),
            other => panic!("{other:?}"),
        }
    };
    let mut written = written();
    let known = |version: Option<&str>| ("u1".to_owned(), version.map(str::to_owned));
    assert_eq!(adopted(job_tag(&written)), known(Some("2.0.0")));
    for odd in ["$(reset)", "2 0", "\"2\"", "2;reset"] {
        written.image.version = Some(odd.to_owned());
        assert_eq!(adopted(job_tag(&written)), known(None), "{odd}");
    }
}

#[test]
fn a_state_file_of_an_earlier_life_of_the_slot_does_not_speak_for_the_trial() {
    // Slot b was updated from slot a, whose state file saw no more of it; now slot a is on trial.
    let booted = BootedFrom {
        slot: Slot::A,
        boot_id: "boot-9".to_owned(),
    };
    let trial = Some(PendingTrial {
        slot: Slot::A,
        tries_left: 2,
        job: Some("u2 3.0.0".to_owned()),
    });
    let confirmed = Slot::B;
    let boot = BootState { confirmed, trial };
    for stale in [
        rebooting(),
        State::Trial(written()),
        State::Waiting(written().job),
    ] {
        let resumed = resume(&stale, &booted, &boot, None, NOW);
        let State::Trial(adopted) = &resumed.state else {
            panic!("{stale:?}: {:?}", resumed.state);
        };
        assert_eq!(
            (adopted.job.id.as_str(), adopted.job.target),
            ("u2", Slot::A)
        );
        assert_eq!(adopted.image.version.as_deref(), Some("3.0.0"));
    }
}

#[test]
fn a_reset_by_the_watchdog_explains_a_fallback_and_nothing_else() {
    let message = |resumed: &Resumed| match &resumed.state {
        State::Abandoning { failure, .. } => failure.message.clone(),
        other => format!("{other:?}"),
    };
    let rolling_back = State::RollingBack {
        written: written(),
        failure: failure(),
    };
    for (state, told) in [
        (rebooting(), true),
        (State::Trial(written()), true),
        (rolling_back, false),
        (State::Idle, false),
    ] {
        let mut resumed = start(&state, Slot::A, Slot::A, false);
        explain_reset(&mut resumed, "watchdog0 (x)");
        let said = message(&resumed).contains("by the watchdog watchdog0 (x)");
        assert_eq!(said, told, "{state:?}");
        // The daemon starts again in the same boot.
        let mut again = start(&resumed.state, Slot::A, Slot::A, false);
        explain_reset(&mut again, "watchdog0 (x)");
        assert_eq!(message(&again), message(&resumed));
    }
}

#[test]
fn an_ordinary_start_does_nothing() {
    let resumed = start(&State::Idle, Slot::A, Slot::A, false);
    assert_eq!((resumed.state, resumed.actions), (State::Idle, vec![]));
    assert_eq!((resumed.clear_stale_trial, resumed.finding), (None, None));
}
