//! What others ask of the updater: an update, its end, a reboot, the twin's desired version.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{Command, PREFLIGHT_LIMIT, TRY_AGAIN, Updater, blocking};
use crate::{
    config::raw::RawDuration,
    daemon::preflight,
    hub::{desired, method::Answer},
    platform::local_file::LocalFile,
    update::{
        events,
        failure::{Class, Failure},
        machine::{self, Action, Event, Job, Refused, State},
        policy::{self, Consent},
        request::{Origin, Request},
        slot::Slot,
        status::{Times, seconds},
        uri::PackageUri,
    },
};

impl Updater {
    pub(super) async fn handle(&mut self, command: Command) {
        // A caller that no longer waits for its answer changes nothing.
        match command {
            Command::Install { request, reply } => {
                let (answer, _) = self.install(request).await;
                let _ = reply.send(answer);
            }
            Command::InstallFile {
                request,
                file,
                reply,
            } => {
                let _ = reply.send(self.install_file(request, file).await);
            }
            Command::MarkGood { reply } => {
                let _ = reply.send(self.mark_good().await);
            }
            Command::MarkBad { which, reply } => {
                let _ = reply.send(self.mark_bad(which).await);
            }
            Command::GoBack { reply } => {
                let _ = reply.send(self.go_back().await);
            }
            Command::Slots { reply } => {
                let _ = reply.send(self.slots().await);
            }
            Command::Cancel { reply } => {
                let failure = Failure::new(
                    "cancelled",
                    Class::Final,
                    "the update was cancelled on request",
                );
                let answer = match self.apply(Event::Cancelled(failure)).await {
                    // It is at a halt, but would go on after a restart.
                    Ok(()) if self.untold_end => Answer::unavailable(&self.unsaved_failure()),
                    Ok(()) => Answer::done("update cancelled"),
                    Err(Refused::TooLate) => conflict(
                        "too-late",
                        "the new slot is armed or running; it can only be rolled back",
                    ),
                    Err(Refused::Busy | Refused::OutOfOrder) => {
                        conflict("nothing-to-cancel", "no update is under way")
                    }
                };
                let _ = reply.send(answer);
            }
            Command::Approve { id, now, reply } => {
                let _ = reply.send(self.approve(id.as_deref(), now).await);
            }
            Command::Defer { id, by, reply } => {
                let _ = reply.send(self.defer(id.as_deref(), by).await);
            }
            Command::Rollback { reply } => {
                let _ = reply.send(self.reject().await);
            }
            Command::Reboot { reply } => {
                let answer = match (&self.board, self.saved.machine.job()) {
                    // The reboot that the update waits for.
                    (Ok(_), Some(_)) if matches!(self.saved.machine, State::Holding(_)) => {
                        self.approve(None, true).await
                    }
                    (_, Some(_)) => self.busy(),
                    (Err(failure), None) => Answer::unavailable(failure),
                    (Ok(_), None) => {
                        self.actions.start(Action::Reboot, &self.saved);
                        Answer::done("rebooting")
                    }
                };
                let _ = reply.send(answer);
            }
            Command::Delivered { run } => {
                let known = self.saved.outbox.len();
                self.saved.outbox.retain(|report| report.run() != run);
                // After a start the hub confirms what it confirmed before.
                if self.saved.outbox.len() < known {
                    self.save().await;
                    self.publish();
                }
            }
            Command::Desired(desired) => {
                self.desired.handle_whole(&desired);
                self.follow_desired().await;
            }
            Command::DesiredPatch { version, patch } => {
                self.desired.handle_patch(version, &patch);
                self.follow_desired().await;
            }
            Command::Hub(hub) => {
                self.hub = hub;
                self.publish();
            }
        }
    }

    /// Lets the update that waits go on.
    async fn approve(&mut self, id: Option<&str>, now: bool) -> Answer {
        let job = match self.waiting(id) {
            Ok(job) => job.id.clone(),
            Err(answer) => return answer,
        };
        self.said(Event::Approved { now }, format!("update {job}: approved"))
            .await
    }

    /// Puts the update that waits off.
    async fn defer(&mut self, id: Option<&str>, by: Duration) -> Answer {
        let job = match self.waiting(id) {
            Ok(job) => job,
            Err(answer) => return answer,
        };
        let (rules, now) = (&self.config.policy.rules, Timestamp::now());
        let by = by.max(Duration::from_secs(1));
        let Some(until) = policy::deferred_until(rules, job, by, now) else {
            let why = if job.request.force {
                "it was asked for with force".to_owned()
            } else {
                let limit = RawDuration(rules.max_deferral);
                format!("policy.max_deferral allows {limit} from its acceptance, which are over")
            };
            let text = format!("update {} cannot be put off: {why}", job.id);
            return Answer::conflict(&Failure::new("deferral-refused", Class::Final, text));
        };
        let text = format!("update {}: put off until {}", job.id, seconds(until));
        self.said(Event::Deferred { until }, text).await
    }

    /// The update that waits for its start or its reboot, if it is the one that is meant.
    fn waiting(&self, id: Option<&str>) -> Result<&Job, Answer> {
        let (State::Waiting(_) | State::Holding(_), Some(job)) =
            (&self.saved.machine, self.saved.machine.job())
        else {
            let text = match self.saved.machine.stage() {
                None => "no update is under way".to_owned(),
                Some(stage) => format!("the update under way does not wait ({})", stage.word()),
            };
            return Err(conflict("nothing-waits", &text));
        };
        match id {
            Some(id) if id != job.id => Err(conflict(
                "other-update",
                &format!("the update that waits is {}, not {id}", job.id),
            )),
            _ => Ok(job),
        }
    }

    /// Hears a person's `word` about the update that waits.
    async fn said(&mut self, word: Event, text: String) -> Answer {
        let machine = &self.saved.machine;
        // What was said before does not begin the wait, or what follows it, anew.
        if machine::step(machine, word.clone(), Timestamp::now())
            .is_ok_and(|(state, _)| state == *machine)
        {
            return Answer::done(&text);
        }
        match self.apply(word).await {
            // What is not durable was not heard, and has ended the update.
            Ok(()) if self.saved.machine != State::Idle => {
                let job = self.saved.machine.job();
                info!(
                    fwupdated_update_id = job.map(|job| job.id.as_str()),
                    "{text}"
                );
                Answer::done(&text)
            }
            Ok(()) | Err(_) => Answer::unavailable(&self.unsaved_failure()),
        }
    }

    /// The same for a file of this device, which is read from now on if the request is accepted.
    async fn install_file(&mut self, request: Request, file: LocalFile) -> Answer {
        let idle = self.saved.machine.job().is_none();
        if idle {
            self.actions.file(Some((request.uri.clone(), file)));
        }
        let (answer, _) = self.install(request).await;
        if idle && answer.status != 200 {
            self.actions.file(None);
        }
        answer
    }

    /// Checks a request and starts it. Never waits for the network. With an answer other than 200, also why.
    pub(super) async fn install(&mut self, request: Request) -> (Answer, Option<Failure>) {
        if let Some(job) = self.saved.machine.job() {
            // What the caller leaves open is not another wish.
            let open_or = |same: bool, asked: bool| !asked || same;
            let same = job.request.uri == request.uri
                && open_or(
                    request.update_id.as_deref() == Some(&job.id),
                    request.update_id.is_some(),
                )
                && open_or(
                    job.request.sha256 == request.sha256,
                    request.sha256.is_some(),
                )
                && open_or(
                    job.request.version == request.version,
                    request.version.is_some(),
                );
            return (
                if same {
                    Answer::started(&job.id)
                } else {
                    self.busy()
                },
                None,
            );
        }
        let target = match self.preflight(&request).await {
            Ok(target) => target,
            Err(refused) => return refused,
        };
        let id = request.update_id.clone().unwrap_or_else(new_id);
        let (from_version, times) = (self.running_version(), Times::default());
        let job = Job {
            id: id.clone(),
            target,
            from_version,
            times,
            consent: Consent::default(),
            request,
        };
        let (uri, origin) = (&job.request.uri, job.request.origin);
        info!(
            message_id = events::UPDATE_ACCEPTED,
            fwupdated_update_id = id,
            fwupdated_slot = target.name(),
            fwupdated_version = job.request.version.as_deref(),
            "update {id}: {uri} -> slot {target}, asked for by {origin}"
        );
        match self.apply(Event::Requested(job)).await {
            Ok(()) if self.saved.machine.job().is_some() => (Answer::started(&id), None),
            Ok(()) | Err(_) => unavailable(self.unsaved_failure()),
        }
    }

    /// The local checks of a request while nothing is under way: the slot to write, or the answer and why.
    pub(super) async fn preflight(
        &mut self,
        request: &Request,
    ) -> Result<Slot, (Answer, Option<Failure>)> {
        let board = match &self.board {
            Ok(board) => board.clone(),
            Err(failure) => return Err(unavailable(failure.clone())),
        };
        let deadline = Instant::now() + PREFLIGHT_LIMIT;
        if !self.actions.settled(deadline).await {
            return Err(unavailable(storage_slow()));
        }
        let check = {
            let config = self.config.clone();
            let (request, saved, store) = (request.clone(), self.saved.clone(), self.store.clone());
            blocking(move || preflight::check(&request, &config, &board, &saved, &store))
        };
        match tokio::time::timeout_at(deadline, check).await {
            Ok(Ok(target)) => Ok(target),
            Ok(Err(refusal)) => Err((refusal.answer(), Some(refusal.failure))),
            Err(_) => Err(unavailable(storage_slow())),
        }
    }

    pub(super) fn busy(&self) -> Answer {
        match &self.status().update {
            Some(report) => Answer::busy(report),
            None => Answer::unavailable(&self.unsaved_failure()),
        }
    }

    /// Acts on the desired property when nothing is under way; else it waits, and the newest wins.
    pub(super) async fn follow_desired(&mut self) {
        let busy = self.saved.machine != State::Idle || self.board.is_err();
        let was_held_up = self.held_up.take().is_some();
        let Some(due) = self.desired.due(self.running_version().as_deref(), busy) else {
            if was_held_up {
                self.publish();
            }
            return;
        };
        let before = std::mem::replace(&mut self.saved.desired, due.acted.clone());
        match due.action {
            desired::Action::UpToDate => info!("the twin's desired firmware runs already"),
            desired::Action::Refuse(error) => {
                let failure = Failure::from(&error);
                warn!(
                    message_id = events::REQUEST_REFUSED,
                    fwupdated_error_code = failure.code,
                    "the twin's desired firmware is refused: {failure}"
                );
                let request = Request::new(PackageUri::unknown(), Origin::Desired);
                self.saved.refuse(
                    &request,
                    new_id(),
                    self.running_version(),
                    failure,
                    Timestamp::now(),
                );
            }
            desired::Action::Start(request) => {
                info!("the twin's desired firmware asks for {}", request.uri);
                let (answer, refused) = self.install(request.clone()).await;
                if answer.status == 200 {
                    self.desired.done(due.acted);
                    return;
                }
                warn!(
                    message_id = events::REQUEST_REFUSED,
                    fwupdated_error_code = answer.body["code"].as_str(),
                    "the twin's desired firmware cannot be installed now: {}",
                    answer.body
                );
                let may_pass = |failure: &Failure| failure.class != Class::Final;
                if answer.status == 503 || refused.as_ref().is_some_and(may_pass) {
                    // Not the request's fault: it stays due.
                    self.saved.desired = before;
                    let again = Instant::now() + TRY_AGAIN;
                    self.held_up = refused.map(|failure| (failure, again));
                    self.look_at_desired = false;
                    self.publish();
                    return;
                }
                let failure = refused.unwrap_or_else(|| {
                    Failure::new(
                        "desired-refused",
                        Class::Final,
                        "the desired firmware was refused",
                    )
                });
                self.saved.refuse(
                    &request,
                    new_id(),
                    self.running_version(),
                    failure,
                    Timestamp::now(),
                );
            }
        }
        self.desired.done(due.acted);
        self.save().await;
        self.publish();
    }
}

fn unavailable(failure: Failure) -> (Answer, Option<Failure>) {
    (Answer::unavailable(&failure), Some(failure))
}

pub(super) fn storage_slow() -> Failure {
    let text = "the device's storage answers too slowly to start an update; try again later";
    Failure::new("storage-slow", Class::Wait, text)
}

fn conflict(code: &str, text: &str) -> Answer {
    Answer::conflict(&Failure::new(code, Class::Wait, text))
}

/// A name that no two updates share: the time and 32 random bits.
pub(super) fn new_id() -> String {
    let mut random = [0_u8; 4];
    let filled = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random);
    filled.expect("the kernel has random numbers");
    let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    format!("{time}-{:08x}", u32::from_be_bytes(random))
}
