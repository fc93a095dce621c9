//! Steps of the machine: each new state is on disk before its actions run, and an end before it is told.

use jiff::Timestamp;
use tracing::{Span, error, info, warn};

use super::{Updater, blocking};
use crate::update::{
    events,
    failure::{Class, Failure},
    machine::{self, Action, Event, Finished, Refused, State},
    status::{Progress, SlotState, Stage},
};

impl Updater {
    /// Steps the machine.
    pub(super) async fn apply(&mut self, event: Event) -> Result<(), Refused> {
        let (state, actions) = machine::step(&self.saved.machine, event, Timestamp::now())?;
        self.enter(state, actions).await;
        Ok(())
    }

    /// Makes `state` durable, publishes it, and starts `actions`.
    pub(super) async fn enter(&mut self, state: State, actions: Vec<Action>) {
        let (mut state, mut actions) = (state, actions);
        loop {
            let was_idle = self.saved.machine == State::Idle;
            let before = event(&self.saved.machine);
            self.saved.machine = state;
            self.detail = None;
            // What ran for the state before is no longer wanted.
            self.actions.interrupt();
            let finished = actions.iter().find_map(|action| match action {
                Action::Finish(finished) => Some(finished.clone()),
                _ => None,
            });
            if let State::Disabling(prepared) = &self.saved.machine {
                // From here on what was in it is gone, whatever becomes of the update.
                let (target, version) = (prepared.job.target, prepared.image.version.clone());
                self.saved.set_slot(target, SlotState::Writing, version);
            }
            if let State::Verifying(_) = self.saved.machine {
                // Everything is in the slot: whoever has the file on a stick may take it out.
                self.actions.file(None);
            }
            if let Some(finished) = &finished {
                self.finish(finished);
            } else if let Some(event) = event(&self.saved.machine)
                && Some(event) != before
                && let (Some(stage), Some(job)) =
                    (self.saved.machine.stage(), self.saved.machine.job())
            {
                let image = self.saved.machine.image();
                let version = image.map_or(&job.request.version, |image| &image.version);
                info!(
                    message_id = event,
                    fwupdated_update_id = job.id,
                    fwupdated_stage = stage.word(),
                    fwupdated_slot = job.target.name(),
                    fwupdated_version = version.as_deref(),
                    "update {}: {}",
                    job.id,
                    describe(&self.saved.machine)
                );
            }
            let saved = self.save().await;
            let accepted = matches!(self.saved.machine, State::Waiting(_) | State::Returning(_));
            if !saved && was_idle && accepted {
                // Accepted means durable. What cannot be saved never was an update, and leaves no report.
                self.saved.machine = State::Idle;
                self.publish();
                return;
            }
            // The confirmation itself is durable in the bootloader; every other end a restart could take back.
            self.untold_end =
                !saved && (finished.as_ref()).is_some_and(|end| end.stage != Stage::ApplyComplete);
            if finished.is_none()
                && !saved
                && let Some(failure) = self.must_be_durable()
            {
                // Running the actions of a state that would not survive a power cut could end in a slot
                // that nobody knows about. Giving up is safe: nothing is armed yet.
                let step = machine::step(
                    &self.saved.machine,
                    Event::Failed(failure),
                    Timestamp::now(),
                );
                (state, actions) = step.expect("every state but idle accepts a failure");
                continue;
            }
            self.publish();
            for action in actions {
                self.actions.start(action, &self.saved);
            }
            break;
        }
        // Looked at by the loop, not here: a start that fails ends up here again.
        self.look_at_desired |= self.saved.machine == State::Idle;
    }

    /// The failure of the save, in those states whose actions rely on it.
    pub(super) fn must_be_durable(&self) -> Option<Failure> {
        match &self.saved.machine {
            // The boot decision finds these out again from the bootloader and the booted slot; holding a
            // healthy slot back from its confirmation would be worse.
            State::Idle
            | State::Trial(_)
            | State::Confirming(_)
            | State::RollingBack { .. }
            | State::Abandoning { .. } => None,
            State::Waiting(_)
            | State::Checking(_)
            | State::Disabling(_)
            | State::Writing(_)
            | State::Verifying(_)
            | State::Holding(_)
            | State::Arming(_)
            | State::CarryingOver(_)
            | State::Returning(_)
            | State::Rebooting { .. } => Some(self.unsaved_failure()),
        }
    }

    pub(super) fn unsaved_failure(&self) -> Failure {
        self.unsaved.clone().unwrap_or_else(|| {
            Failure::new(
                "state-write-failed",
                Class::Wait,
                "the state directory cannot be written",
            )
        })
    }

    pub(super) fn finish(&mut self, finished: &Finished) {
        let report = self.saved.finish(finished, self.meter.progress());
        self.meter.restore(&Progress::default());
        self.actions.file(None);
        match &report.error {
            None => info!(
                message_id = events::UPDATE_COMPLETE,
                fwupdated_update_id = report.id,
                fwupdated_stage = report.stage.word(),
                fwupdated_slot = report.target.name(),
                fwupdated_version = report.version.as_deref(),
                "update {}: complete, slot {} is confirmed",
                report.id,
                report.target
            ),
            Some(failure) => error!(
                message_id = match report.stage {
                    Stage::ApplyFailed => events::UPDATE_ROLLED_BACK,
                    _ => events::UPDATE_FAILED,
                },
                fwupdated_update_id = report.id,
                fwupdated_stage = report.stage.word(),
                fwupdated_error_code = failure.code,
                fwupdated_slot = report.target.name(),
                fwupdated_version = report.version.as_deref(),
                "update {}: {}: {failure}",
                report.id,
                report.stage.word()
            ),
        }
        let (store, about) = (self.store.clone(), Span::current());
        // The history is for people; an update does not fail for want of it.
        tokio::task::spawn_blocking(move || {
            if let Err(failure) = store.append_history(&report) {
                let _about = about.enter();
                warn!(
                    fwupdated_error_code = failure.code,
                    "the history cannot be written: {failure}"
                );
            }
        });
    }

    /// Saves; on failure it is tried again at each tick.
    pub(super) async fn save(&mut self) -> bool {
        self.saved.progress = self.meter.progress();
        self.saved.status = Some(self.status());
        let (store, saved) = (self.store.clone(), self.saved.clone());
        match blocking(move || store.save(&saved)).await {
            Ok(()) => {
                if self.unsaved.take().is_some() {
                    info!("the state can be saved again");
                }
                self.untold_end = false;
                true
            }
            Err(failure) => {
                if self.unsaved.as_ref() != Some(&failure) {
                    error!(
                        message_id = events::PROBLEM_FOUND,
                        fwupdated_error_code = failure.code,
                        "{failure}"
                    );
                }
                self.unsaved = Some(failure);
                false
            }
        }
    }
}

/// What the journal calls entering `state`.
fn event(state: &State) -> Option<&'static str> {
    match state {
        // On the way to what is said.
        State::Idle | State::Disabling(_) | State::Abandoning { .. } => None,
        State::Waiting(_) => Some(events::UPDATE_WAITING),
        State::Checking(_) => Some(events::IMAGE_CHECKED),
        State::Writing(_) => Some(events::DOWNLOAD_STARTED),
        State::Verifying(_) => Some(events::DOWNLOAD_COMPLETE),
        State::Holding(_) | State::Arming(_) | State::CarryingOver(_) => {
            Some(events::SLOT_VERIFIED)
        }
        State::Rebooting { .. } => Some(events::REBOOTING),
        State::Trial(_) => Some(events::TRIAL_BEGAN),
        State::Confirming(_) => Some(events::HEALTHY),
        State::RollingBack { .. } => Some(events::ROLLING_BACK),
        State::Returning(_) => Some(events::GOING_BACK),
    }
}

/// The state in words, for the journal.
fn describe(state: &State) -> String {
    match state {
        State::Idle => "nothing under way".to_owned(),
        State::Waiting(_) => "waiting for the policy".to_owned(),
        State::Checking(job) => format!("checking {}", job.request.uri),
        State::Disabling(p) | State::Writing(p) => {
            let version = p.image.version.as_deref().unwrap_or("of unknown version");
            format!("downloading {version} to slot {}", p.job.target)
        }
        State::Verifying(w) => format!("everything is on slot {}; reading it back", w.job.target),
        State::Holding(w) => {
            format!("slot {} is verified; waiting for the reboot", w.job.target)
        }
        State::Arming(w) => format!("slot {} is verified; arming it", w.job.target),
        State::CarryingOver(w) => {
            format!(
                "slot {} is verified; carrying files over, then arming it",
                w.job.target
            )
        }
        State::Returning(w) => format!("going back to slot {}; arming it", w.job.target),
        State::Rebooting { written, .. } => {
            format!("rebooting into slot {} on trial", written.job.target)
        }
        State::Trial(w) => format!("slot {} runs on trial; checking its health", w.job.target),
        State::Confirming(w) => format!("slot {} is healthy; confirming it", w.job.target),
        State::RollingBack { written, .. } => {
            format!("rolling back from slot {}", written.job.target)
        }
        State::Abandoning { written, .. } => format!("giving up slot {}", written.job.target),
    }
}
