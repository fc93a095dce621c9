//! The state machine, step by step: every stage, every way to fail, and what must never follow what.

use std::collections::{HashSet, VecDeque};

use super::*;
use crate::update::{
    boot,
    failure::Class,
    ports::{BootState, BootedFrom, PendingTrial},
    request::Origin,
    status::{Progress, UpdateReport},
};

fn job() -> Job {
    Job {
        id: "u1".into(),
        request: Request::new("https://store/x.img.zst".parse().unwrap(), Origin::Method),
        target: Slot::B,
        from_version: None,
        times: Times::default(),
        consent: Consent::default(),
    }
}

fn facts() -> ImageFacts {
    ImageFacts {
        version: Some("2".into()),
        size: Some(9),
        boot_size: 0,
        manifest: None,
        security_epoch: 0,
    }
}

fn content() -> Content {
    Content {
        size: 9,
        sha256: Sha256::of(b"x"),
    }
}

fn failure() -> Failure {
    Failure::new("test", Class::Final, "it failed")
}

/// Back to what slot b holds.
fn returning() -> Written {
    let (mut job, image, content) = (job(), facts(), content());
    job.request.uri = crate::update::uri::PackageUri::in_slot(Slot::B);
    Written {
        job,
        image,
        content,
    }
}

/// Of a good run, up to its reboot.
fn up_to_the_reboot() -> Vec<Event> {
    vec![
        Event::Requested(job()),
        Event::PolicyAllows,
        Event::ImageAccepted(facts()),
        Event::SlotDisabled,
        Event::SlotWritten(content()),
        Event::SlotMatches,
        Event::SlotArmed {
            boot_id: "boot-0".into(),
        },
    ]
}

fn every_event() -> Vec<Event> {
    let mut events = up_to_the_reboot();
    events.extend([
        Event::ReturnRequested(returning()),
        Event::CarryOverDue,
        Event::CarriedOver,
        Event::RebootMustWait,
        Event::RebootAllowed {
            past_inhibitors: true,
        },
        Event::Approved { now: true },
        Event::Deferred {
            until: Timestamp::MAX,
        },
        Event::Healthy,
        Event::Unhealthy(failure()),
        Event::MarkedGood,
        Event::Failed(failure()),
        Event::Failed(refusal()),
        Event::Cancelled(failure()),
    ]);
    events
}

fn refusal() -> Failure {
    Failure::new(SLOT_IS_CONFIRMED, Class::Final, "it is confirmed")
}

/// What is true of the board, tracked beside the machine by an independent, naive model.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Board {
    booted: Slot,
    boot: u32,
    confirmed: Slot,
    trial: bool,
    /// Slot b was written since the last time it was disabled or found bad, and then read back.
    written: bool,
    verified: bool,
    /// Some of the files to be carried over are in it, but not all.
    half_carried: bool,
    /// The boot script would not choose slot b.
    disabled: bool,
    healthy: bool,
    /// The last update ended as failed.
    given_up: bool,
}

impl Board {
    fn new() -> Self {
        Self {
            booted: Slot::A,
            boot: 0,
            confirmed: Slot::A,
            trial: false,
            written: false,
            verified: false,
            half_carried: false,
            disabled: false,
            healthy: false,
            given_up: false,
        }
    }

    fn last(&self) -> Option<UpdateReport> {
        self.given_up.then(|| UpdateReport {
            id: "u1".into(),
            origin: Origin::Method,
            uri: String::new(),
            target: Slot::B,
            version: None,
            from_version: None,
            stage: Stage::ApplyFailed,
            detail: None,
            progress: Progress::default(),
            times: Times::default(),
            error: Some(failure()),
        })
    }

    fn boot_state(&self) -> BootState {
        let trial = PendingTrial {
            slot: Slot::B,
            tries_left: 2,
            job: Some("u1".into()),
        };
        BootState {
            confirmed: self.confirmed,
            trial: self.trial.then_some(trial),
        }
    }

    /// Checks the promises when `action` is asked for.
    fn check(&mut self, action: &Action, path: &[String]) {
        match action {
            Action::WriteSlot(_) => {
                assert_eq!(
                    self.booted,
                    Slot::A,
                    "the running slot would be written: {path:?}"
                );
                assert!(self.disabled, "written while it may boot: {path:?}");
                (self.written, self.verified) = (false, false);
            }
            Action::CarryOver(_) => {
                assert_eq!(self.booted, Slot::A, "carried into what runs: {path:?}");
                assert!(self.written && self.verified && !self.trial, "{path:?}");
                self.half_carried = true;
            }
            Action::ArmSlot(_) => {
                assert!(self.written && self.verified, "armed unverified: {path:?}");
                assert!(!self.half_carried, "armed half carried over: {path:?}");
                assert_eq!(self.booted, Slot::A, "armed the running slot: {path:?}");
            }
            Action::MarkGood(slot) => {
                assert_eq!(*slot, Slot::B);
                assert_eq!(
                    self.booted,
                    Slot::B,
                    "confirmed a slot that does not run: {path:?}"
                );
                assert!(self.healthy, "confirmed without health: {path:?}");
            }
            Action::Finish(finished) => {
                self.given_up = finished.failure.is_some();
                let complete = finished.stage == Stage::ApplyComplete;
                assert_eq!(complete, finished.failure.is_none());
                assert!(finished.stage.is_final());
                if complete {
                    assert_eq!(
                        (self.booted, self.confirmed),
                        (Slot::B, Slot::B),
                        "{path:?}"
                    );
                    assert!(!self.trial);
                }
            }
            Action::AwaitPolicy(_)
            | Action::CheckImage(_)
            | Action::DisableSlot(_)
            | Action::VerifySlot(_)
            | Action::AwaitReboot(_)
            | Action::Reboot
            | Action::WatchHealth(_) => {}
        }
    }

    /// What an event says about the board. `None`: this event cannot come now (the machine did
    /// not ask for what it answers), so the walk does not offer it.
    fn after(&self, event: &Event, pending: &[Action]) -> Option<Self> {
        let mut next = self.clone();
        let asked = |wanted: fn(&Action) -> bool| pending.iter().any(wanted).then_some(());
        match event {
            // The preflight (see `daemon::preflight`) refuses these before the machine hears of them.
            Event::Requested(_) if self.booted == Slot::B || self.trial => return None,
            // Likewise, and a slot that is not whole.
            Event::ReturnRequested(_) => {
                let whole = self.written && self.verified && !self.half_carried;
                if self.booted == Slot::B || self.trial || !whole {
                    return None;
                }
            }
            Event::Requested(_)
            | Event::Cancelled(_)
            | Event::Approved { .. }
            | Event::Deferred { .. } => {}
            Event::PolicyAllows => asked(|a| matches!(a, Action::AwaitPolicy(_)))?,
            Event::ImageAccepted(_) => asked(|a| matches!(a, Action::CheckImage(_)))?,
            Event::SlotDisabled => {
                asked(|a| matches!(a, Action::DisableSlot(_)))?;
                // The port refuses that.
                if self.confirmed == Slot::B {
                    return None;
                }
                (next.disabled, next.trial) = (true, false);
            }
            Event::SlotWritten(_) => {
                asked(|a| matches!(a, Action::WriteSlot(_)))?;
                (next.written, next.half_carried) = (true, false);
            }
            Event::SlotMatches | Event::CarryOverDue => {
                asked(|a| matches!(a, Action::VerifySlot(_)))?;
                // With only some of the files it could not match.
                if next.half_carried {
                    return None;
                }
                next.verified = next.written;
            }
            // While the reboot is waited for, anyone may write to the slot: what was read back counts no longer.
            Event::RebootMustWait => {
                asked(|a| matches!(a, Action::VerifySlot(_)))?;
                if self.half_carried || self.trial {
                    return None;
                }
                next.verified = false;
            }
            Event::RebootAllowed { .. } => asked(|a| matches!(a, Action::AwaitReboot(_)))?,
            Event::CarriedOver => {
                asked(|a| matches!(a, Action::CarryOver(_)))?;
                next.half_carried = false;
            }
            Event::SlotArmed { .. } => {
                asked(|a| matches!(a, Action::ArmSlot(_)))?;
                (next.disabled, next.trial) = (false, true);
            }
            Event::Healthy => {
                asked(|a| matches!(a, Action::WatchHealth(_)))?;
                next.healthy = true;
            }
            Event::Unhealthy(_) => asked(|a| matches!(a, Action::WatchHealth(_)))?,
            Event::MarkedGood => {
                asked(|a| matches!(a, Action::MarkGood(_)))?;
                (next.confirmed, next.trial) = (Slot::B, false);
            }
            Event::Failed(failure) => {
                if pending.is_empty() {
                    return None;
                }
                let refused = pending.iter().any(|a| matches!(a, Action::DisableSlot(_)))
                    && self.confirmed == Slot::B;
                if (failure.code == SLOT_IS_CONFIRMED) != refused {
                    return None;
                }
            }
        }
        Some(next)
    }

    /// The board as the pending action may have left it although its answer was lost.
    fn effects_of_a_lost_answer(&self, pending: &[Action]) -> Vec<Self> {
        let mut boards = vec![self.clone()];
        for action in pending {
            let mut next = self.clone();
            match action {
                Action::DisableSlot(_) if self.confirmed == Slot::A => {
                    (next.disabled, next.trial) = (true, false);
                }
                Action::ArmSlot(_) => (next.disabled, next.trial) = (false, true),
                Action::MarkGood(_) => (next.confirmed, next.trial) = (Slot::B, false),
                _ => continue,
            }
            boards.push(next);
        }
        boards
    }

    /// The boards after a power cut: the boot script picks the slot; a trial may also be used up.
    fn after_power_cut(&self) -> Vec<Self> {
        let boot = (self.boot + 1).min(3);
        let healthy = false;
        let confirmed = Self {
            booted: self.confirmed,
            boot,
            healthy,
            ..self.clone()
        };
        if !self.trial {
            return vec![confirmed];
        }
        let on_trial = Self {
            booted: Slot::B,
            boot,
            healthy,
            ..self.clone()
        };
        let used_up = Self {
            trial: false,
            ..confirmed
        };
        vec![on_trial, used_up]
    }
}

/// What the board does next when nothing is lost any more but no check passes: the event, or a reboot.
fn worst_answer(board: &Board, pending: &[Action]) -> Option<Event> {
    Some(match pending.last()? {
        Action::AwaitPolicy(_) => Event::PolicyAllows,
        Action::CheckImage(_) => Event::ImageAccepted(facts()),
        Action::DisableSlot(_) if board.confirmed == Slot::B => Event::Failed(refusal()),
        Action::DisableSlot(_) => Event::SlotDisabled,
        Action::WriteSlot(_) => Event::SlotWritten(content()),
        Action::VerifySlot(_) => Event::SlotMatches,
        Action::AwaitReboot(_) => Event::RebootAllowed {
            past_inhibitors: false,
        },
        Action::CarryOver(_) => Event::CarriedOver,
        Action::ArmSlot(_) => Event::SlotArmed {
            boot_id: format!("boot-{}", board.boot),
        },
        Action::WatchHealth(_) => Event::Unhealthy(failure()),
        Action::MarkGood(_) => Event::MarkedGood,
        Action::Reboot | Action::Finish(_) => return None,
    })
}

/// From here on nothing is lost and no health check passes: the update must end, within few reboots.
fn assert_it_ends(state: &State, board: &Board, pending: &[Action], path: &[String]) {
    let now = Timestamp::UNIX_EPOCH;
    let (mut state, mut board, mut pending) = (state.clone(), board.clone(), pending.to_vec());
    let mut reboots = 0;
    while state != State::Idle {
        let next = worst_answer(&board, &pending)
            .and_then(|event| board.after(&event, &pending).map(|after| (event, after)));
        (state, pending) = match next {
            Some((event, after)) => {
                board = after;
                step(&state, event, now).expect("the machine asked for this answer")
            }
            None => {
                reboots += 1;
                assert!(reboots <= 3, "reboots without end in {state:?}: {path:?}");
                board = board.after_power_cut().swap_remove(0);
                // A real boot has an id of its own; the walk counts only to three.
                board.boot += reboots * 10;
                let booted = BootedFrom {
                    slot: board.booted,
                    boot_id: format!("boot-{}", board.boot),
                };
                let last = board.last();
                let resumed =
                    boot::resume(&state, &booted, &board.boot_state(), last.as_ref(), now);
                (resumed.state, resumed.actions)
            }
        };
    }
}

/// Breadth first over (state, board, pending actions), which covers every sequence of events,
/// restarts and power cuts, not only those of a given length: the set is finite.
#[test]
fn no_path_arms_an_unverified_slot_and_every_path_ends() {
    let now = Timestamp::UNIX_EPOCH;
    let mut seen = HashSet::new();
    let mut queue = VecDeque::from([(
        State::Idle,
        Board::new(),
        Vec::<Action>::new(),
        Vec::<String>::new(),
    )]);
    let (mut steps, mut completed, mut failed, mut deepest) = (0_u32, 0_u32, 0_u32, 0_usize);
    while let Some((state, board, pending, path)) = queue.pop_front() {
        deepest = deepest.max(path.len());
        let mut next = Vec::new();
        for event in every_event() {
            let Some(after) = board.after(&event, &pending) else {
                continue;
            };
            let name = format!("{event:?}")
                .split(['(', ' '])
                .next()
                .unwrap()
                .to_owned();
            let failed = matches!(event, Event::Failed(_));
            let Ok((new_state, actions)) = step(&state, event, now) else {
                continue;
            };
            // What failed may have taken effect all the same.
            let afters = match failed {
                true => after.effects_of_a_lost_answer(&pending),
                false => vec![after],
            };
            for after in afters {
                next.push((name.clone(), new_state.clone(), after, actions.clone()));
            }
        }
        // The daemon is killed and started again; then the same with a power cut.
        let lost = board.effects_of_a_lost_answer(&pending);
        let cut = lost
            .iter()
            .flat_map(Board::after_power_cut)
            .collect::<Vec<_>>();
        for (name, boards) in [("restart", lost), ("power cut", cut)] {
            for after in boards {
                let booted = BootedFrom {
                    slot: after.booted,
                    boot_id: format!("boot-{}", after.boot),
                };
                let resumed = boot::resume(
                    &state,
                    &booted,
                    &after.boot_state(),
                    after.last().as_ref(),
                    now,
                );
                next.push((name.to_owned(), resumed.state, after, resumed.actions));
            }
        }
        for (name, new_state, mut after, actions) in next {
            steps += 1;
            let mut path = path.clone();
            path.push(name);
            for action in &actions {
                after.check(action, &path);
                if let Action::Finish(f) = action {
                    if f.failure.is_none() {
                        completed += 1
                    } else {
                        failed += 1
                    }
                }
            }
            // A slot that may boot is either confirmed or was written and verified.
            if after.trial {
                assert!(
                    after.verified && after.written && !after.half_carried,
                    "a trial of an unverified slot: {path:?}"
                );
            }
            // The walk ends at the end of the first successful update: both slots then swap roles.
            let key = (
                format!("{new_state:?}"),
                after.clone(),
                format!("{actions:?}"),
            );
            if (after.confirmed == Slot::A || new_state != State::Idle) && seen.insert(key) {
                assert_it_ends(&new_state, &after, &actions, &path);
                queue.push_back((new_state, after, actions, path));
            }
        }
    }
    println!(
        "{steps} steps, {} situations, deepest {deepest}, {completed} completed, {failed} failed",
        seen.len()
    );
    assert!(
        completed > 0 && failed > 0 && deepest >= 10,
        "the walk did not reach the ends"
    );
}

#[test]
fn the_good_path_reaches_complete_only_after_the_trial() {
    let now = Timestamp::UNIX_EPOCH;
    let mut state = State::Idle;
    let mut stages = Vec::new();
    for event in up_to_the_reboot() {
        state = step(&state, event, now).unwrap().0;
        stages.push(state.stage().unwrap().word());
    }
    stages.dedup();
    assert_eq!(
        stages,
        ["waiting", "downloading", "downloadComplete", "applying"]
    );
    let booted = BootedFrom {
        slot: Slot::B,
        boot_id: "boot-1".into(),
    };
    let trial = PendingTrial {
        slot: Slot::B,
        tries_left: 2,
        job: Some("u1".into()),
    };
    let boot_state = BootState {
        confirmed: Slot::A,
        trial: Some(trial),
    };
    state = boot::resume(&state, &booted, &boot_state, None, now).state;
    assert!(matches!(state, State::Trial(_)));
    state = step(&state, Event::Healthy, now).unwrap().0;
    let (state, actions) = step(&state, Event::MarkedGood, now).unwrap();
    assert_eq!(state, State::Idle);
    let [Action::Finish(finished)] = actions.as_slice() else {
        panic!("{actions:?}")
    };
    assert_eq!(
        (finished.stage, &finished.failure),
        (Stage::ApplyComplete, &None)
    );
}

#[test]
fn files_are_carried_over_between_the_read_back_and_the_arming() {
    let now = Timestamp::UNIX_EPOCH;
    let mut state = State::Idle;
    let mut events = up_to_the_reboot();
    let armed = events.pop().unwrap();
    assert_eq!(events.pop(), Some(Event::SlotMatches));
    for event in events {
        state = step(&state, event, now).unwrap().0;
    }
    let (carrying, actions) = step(&state, Event::CarryOverDue, now).unwrap();
    assert!(
        matches!(&actions[..], [Action::CarryOver(_)]),
        "{actions:?}"
    );
    let (arming, actions) = step(&carrying, Event::CarriedOver, now).unwrap();
    assert!(matches!(&actions[..], [Action::ArmSlot(_)]), "{actions:?}");
    let (rebooting, _) = step(&arming, armed, now).unwrap();
    assert!(matches!(rebooting, State::Rebooting { .. }));
    // The same after a restart, when the slot may be armed already: from the start.
    let armed = State::Arming(Written {
        job: job(),
        image: facts(),
        content: content(),
    });
    let (state, actions) = step(&armed, Event::CarryOverDue, now).unwrap();
    assert!(matches!(state, State::Disabling(_)));
    assert_eq!(actions, [Action::DisableSlot(Slot::B)]);
    // The slot may be half changed: it is disabled before the update ends.
    let (given_up, actions) = step(&carrying, Event::Failed(failure()), now).unwrap();
    assert!(matches!(given_up, State::Abandoning { .. }));
    assert_eq!(actions, [Action::DisableSlot(Slot::B)]);
}

/// Up to the read-back, and what it leads to when the policy does not let the device reboot.
fn held() -> State {
    let now = Timestamp::UNIX_EPOCH;
    let mut state = State::Idle;
    for event in up_to_the_reboot().into_iter().take(5) {
        state = step(&state, event, now).unwrap().0;
    }
    assert!(matches!(state, State::Verifying(_)));
    let (held, actions) = step(&state, Event::RebootMustWait, now).unwrap();
    assert!(
        matches!(&actions[..], [Action::AwaitReboot(_)]),
        "{actions:?}"
    );
    held
}

#[test]
fn a_reboot_that_must_wait_is_waited_for_unarmed_and_the_slot_is_read_back_again_before_it_is_armed()
 {
    let now = Timestamp::UNIX_EPOCH;
    let allowed = Event::RebootAllowed {
        past_inhibitors: false,
    };
    let held = held();
    // A restart, or a power cut, goes on waiting.
    let booted = BootedFrom {
        slot: Slot::A,
        boot_id: "boot-1".into(),
    };
    let unarmed = BootState {
        confirmed: Slot::A,
        trial: None,
    };
    let resumed = boot::resume(&held, &booted, &unarmed, None, now);
    assert_eq!(resumed.state, held);
    assert!(matches!(&resumed.actions[..], [Action::AwaitReboot(_)]));

    let (reading, actions) = step(&held, allowed, now).unwrap();
    assert!(
        matches!(&actions[..], [Action::VerifySlot(_)]),
        "{actions:?}"
    );
    // A program inhibits the reboot after all: it is waited for once more.
    let (again, actions) = step(&reading, Event::RebootMustWait, now).unwrap();
    assert!(matches!(
        (&again, &actions[..]),
        (State::Holding(_), [Action::AwaitReboot(_)])
    ));
    let (arming, actions) = step(&reading, Event::SlotMatches, now).unwrap();
    assert!(matches!(
        (&arming, &actions[..]),
        (State::Arming(_), [Action::ArmSlot(_)])
    ));
    let (carrying, actions) = step(&reading, Event::CarryOverDue, now).unwrap();
    assert!(matches!(
        (&carrying, &actions[..]),
        (State::CarryingOver(_), [Action::CarryOver(_)])
    ));
    // What someone wrote to the slot meanwhile ends the update, with nothing to disarm.
    let (state, actions) = step(&reading, Event::Failed(failure()), now).unwrap();
    assert_eq!(state, State::Idle);
    assert!(matches!(&actions[..], [Action::Finish(f)] if f.stage == Stage::DownloadFailed));
}

#[test]
fn a_person_s_last_word_counts_for_what_waits_and_for_nothing_else() {
    let now = Timestamp::UNIX_EPOCH;
    let until = Timestamp::MAX;
    let consent = |state: &State| state.job().unwrap().consent.clone();
    let waiting = State::Waiting(job());
    let (put_off, actions) = step(&waiting, Event::Deferred { until }, now).unwrap();
    assert!(matches!(&actions[..], [Action::AwaitPolicy(_)]));
    assert_eq!(consent(&put_off).deferred_until, Some(until));
    let (approved, actions) = step(&put_off, Event::Approved { now: true }, now).unwrap();
    assert!(matches!(&actions[..], [Action::AwaitPolicy(_)]));
    let start = Consent {
        start: true,
        now: true,
        ..Consent::default()
    };
    assert_eq!(consent(&approved), start);
    // That was about the start; the reboot waits for a word of its own.
    let (checking, _) = step(&approved, Event::PolicyAllows, now).unwrap();
    assert_eq!(
        consent(&checking),
        Consent {
            now: false,
            ..start
        }
    );

    let (put_off, actions) = step(&held(), Event::Deferred { until }, now).unwrap();
    assert!(matches!(&actions[..], [Action::AwaitReboot(_)]));
    let (approved, _) = step(&put_off, Event::Approved { now: false }, now).unwrap();
    let reboot = Consent {
        reboot: true,
        ..Consent::default()
    };
    assert_eq!(consent(&approved), reboot);

    for state in [State::Idle, State::Checking(job())] {
        for word in [Event::Deferred { until }, Event::Approved { now: true }] {
            assert_eq!(step(&state, word, now), Err(Refused::OutOfOrder));
        }
    }
}

#[test]
fn a_second_request_is_busy_in_every_state_but_idle_and_a_late_cancel_is_too_late() {
    let now = Timestamp::UNIX_EPOCH;
    let written = Written {
        job: job(),
        image: facts(),
        content: content(),
    };
    let prepared = Prepared {
        job: job(),
        image: facts(),
    };
    let failure = failure();
    let early = [
        State::Waiting(job()),
        State::Checking(job()),
        State::Disabling(prepared.clone()),
        State::Writing(prepared),
        State::Verifying(written.clone()),
        State::Holding(written.clone()),
    ];
    let late = [
        State::Arming(written.clone()),
        State::CarryingOver(written.clone()),
        State::Returning(written.clone()),
        State::Rebooting {
            written: written.clone(),
            armed_in: "boot-0".into(),
        },
        State::Trial(written.clone()),
        State::Confirming(written.clone()),
        State::RollingBack {
            written: written.clone(),
            failure: failure.clone(),
        },
        State::Abandoning {
            written,
            failure: failure.clone(),
        },
    ];
    for state in early.iter().chain(&late) {
        assert_eq!(
            step(state, Event::Requested(job()), now),
            Err(Refused::Busy)
        );
    }
    for state in &late {
        assert_eq!(
            step(state, Event::Cancelled(failure.clone()), now),
            Err(Refused::TooLate)
        );
    }
    for state in &early {
        let (next, actions) = step(state, Event::Cancelled(failure.clone()), now).unwrap();
        assert_eq!(next, State::Idle);
        assert!(matches!(&actions[..], [Action::Finish(f)] if f.stage == Stage::DownloadFailed));
    }
}

#[test]
fn every_state_survives_the_state_file() {
    let written = Written {
        job: job(),
        image: facts(),
        content: content(),
    };
    for state in [
        State::Idle,
        State::Waiting(job()),
        State::Writing(Prepared {
            job: job(),
            image: facts(),
        }),
        State::Rebooting {
            written: written.clone(),
            armed_in: "x".into(),
        },
        State::RollingBack {
            written: written.clone(),
            failure: failure(),
        },
        State::CarryingOver(written.clone()),
        State::Holding(Written {
            job: Job {
                consent: Consent {
                    start: true,
                    deferred_until: Some(Timestamp::UNIX_EPOCH),
                    ..Consent::default()
                },
                ..job()
            },
            ..written.clone()
        }),
        State::Returning(written.clone()),
        State::Trial(written),
    ] {
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(
            serde_json::from_str::<State>(&text).unwrap(),
            state,
            "{text}"
        );
    }
}

#[test]
fn going_back_arms_the_slot_without_writing_it_and_is_given_up_like_an_update() {
    let now = Timestamp::UNIX_EPOCH;
    let asked = Event::ReturnRequested(returning());
    let (state, actions) = step(&State::Idle, asked.clone(), now).unwrap();
    let [Action::ArmSlot(written)] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(written.job.times.applying, Some(now));
    assert_eq!(state.stage(), Some(Stage::Applying));
    assert_eq!(step(&state, asked, now), Err(Refused::Busy));
    let cancelled = Event::Cancelled(failure());
    assert_eq!(step(&state, cancelled, now), Err(Refused::TooLate));
    let (state, actions) = step(&state, Event::Failed(failure()), now).unwrap();
    assert!(matches!(state, State::Abandoning { .. }));
    assert_eq!(actions, [Action::DisableSlot(Slot::B)]);
}
