//! The updater task: the one owner of the state machine.
//!
//! Everyone else sends it a [`Command`] and watches what it publishes. For each event it asks
//! [`machine::step`], makes the new state durable, publishes it, and only then starts the actions, which
//! run as tasks of their own ([`super::actions`]) and come back as events. So it answers at once, whatever
//! an action is doing.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tracing::{error, info, warn};

use super::{
    actions::{Actions, Context, Report},
    board::{Board, os_version},
    meter::Meter,
    preflight,
    saved::Saved,
    store::Store,
    supervise::{Heartbeat, raised},
};
use crate::{
    config::Config,
    hub::{
        desired::{self, DesiredTracker},
        method::Answer,
    },
    platform::fetch::Fetcher,
    update::{
        boot,
        failure::{Class, Failure},
        machine::{self, Action, Event, Finished, Job, Refused, State},
        request::{Origin, Request},
        status::{HubStatus, Progress, SlotState, Stage, Status, Times, UpdateReport},
        uri::PackageUri,
    },
};

/// How often progress is published while an image is installed, and a failed save is tried again.
const TICK: Duration = Duration::from_millis(500);
/// A preflight touches files only; one that takes longer means a medium in trouble, and the caller of a
/// method is answered within a second.
const PREFLIGHT_LIMIT: Duration = Duration::from_millis(800);
/// How often a board that cannot be used is looked at again: a partition may appear late, an environment
/// be restored, and a trial that waits for it must not be lost.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// How often a desired version that the device cannot take now is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(10);

/// What others ask of the updater.
#[derive(Debug)]
pub enum Command {
    /// Start an update.
    Install {
        /// What to install.
        request: Request,
        /// The answer.
        reply: oneshot::Sender<Answer>,
    },
    /// Give up the update under way.
    Cancel {
        /// The answer.
        reply: oneshot::Sender<Answer>,
    },
    /// Reject the trial boot under way.
    Rollback {
        /// The answer.
        reply: oneshot::Sender<Answer>,
    },
    /// Reboot the device.
    Reboot {
        /// The answer.
        reply: oneshot::Sender<Answer>,
    },
    /// The hub has acknowledged the final report of this update.
    Delivered {
        /// [`UpdateReport::run`].
        run: String,
    },
    /// The twin's desired section was read.
    Desired(Value),
    /// The twin's desired section changed.
    DesiredPatch {
        /// Its version now.
        version: u64,
        /// The change.
        patch: Value,
    },
    /// The hub connection changed.
    Hub(HubStatus),
}

/// What everyone watches.
#[derive(Debug, Clone)]
pub struct Published {
    /// The present state of everything.
    pub status: Status,
    /// Final reports the hub has not acknowledged, oldest first.
    pub outbox: Vec<UpdateReport>,
    /// The stages that the present (or last) update has reached under this daemon, oldest first. At most
    /// one entry a stage, so that whoever reads late can still show each.
    pub trail: Vec<UpdateReport>,
}

/// The task's own data.
pub struct Updater {
    config: Arc<Config>,
    fetcher: Fetcher,
    board: Result<Arc<Board>, Failure>,
    /// When the board was last looked at.
    looked: Instant,
    store: Store,
    saved: Saved,
    meter: Arc<Meter>,
    detail: Option<String>,
    trail: Vec<UpdateReport>,
    hub: HubStatus,
    desired: DesiredTracker,
    actions: Actions,
    commands: mpsc::Receiver<Command>,
    published: watch::Sender<Published>,
    /// The state could not be saved; tried again at each tick.
    unsaved: Option<Failure>,
    /// Why the desired version cannot be taken now, and when it is tried again.
    held_up: Option<(Failure, Instant)>,
    /// An update has ended: the desired version may be due.
    look_at_desired: bool,
    /// The end of an update that the state file does not hold yet. Until it does, nobody is told: a restart would
    /// take it back.
    untold_end: bool,
    heartbeat: Heartbeat,
}

impl Updater {
    /// An updater with what survived. It looks at the board when it runs.
    pub fn new(
        config: Arc<Config>,
        fetcher: Fetcher,
        store: Store,
        saved: Saved,
        hub: HubStatus,
        actions: Actions,
        commands: mpsc::Receiver<Command>,
    ) -> (Self, watch::Receiver<Published>) {
        let text = "fwupdated looks at its slots and the bootloader";
        let board = Err(Failure::new("starting", Class::Wait, text));
        let meter = actions.meter();
        meter.restore(&saved.progress);
        let initial = Published {
            status: status(&config, &board, &saved, &hub, None, None, &meter),
            outbox: saved.outbox.clone(),
            trail: Vec::new(),
        };
        let (published, receiver) = watch::channel(initial);
        let (detail, trail, unsaved, held_up) = (None, Vec::new(), None, None);
        let desired = DesiredTracker::new(saved.desired.clone());
        let updater = Self {
            config,
            fetcher,
            board,
            looked: Instant::now(),
            store,
            saved,
            meter,
            detail,
            trail,
            hub,
            desired,
            actions,
            commands,
            published,
            unsaved,
            held_up,
            look_at_desired: false,
            untold_end: false,
            heartbeat: Heartbeat::default(),
        };
        (updater, receiver)
    }

    /// Beats while [`Updater::run`] does not hang.
    #[must_use]
    pub fn heartbeat(&self) -> Heartbeat {
        self.heartbeat.clone()
    }

    /// Runs until `stop` is raised; then interrupts what is under way and waits for it. The next start goes
    /// on from the saved state.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        self.resume().await;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.heartbeat.beat();
            tokio::select! {
                () = raised(&mut stop) => break,
                Some(command) = self.commands.recv() => self.handle(command).await,
                report = self.actions.next() => self.hear(report).await,
                _ = tick.tick() => self.tick().await,
            }
            if std::mem::take(&mut self.look_at_desired) {
                self.follow_desired().await;
            }
        }
        self.actions.stop().await;
        match self.saved.machine.job() {
            Some(job) => info!("stopped; update {} goes on at the next start", job.id),
            None => info!("stopped"),
        }
    }

    /// Looks at the board; when it can be used, the boot decision.
    async fn resume(&mut self) {
        let config = self.config.clone();
        let look = move || {
            let board = Board::open(&config)?;
            let boot_state = board.boot_state()?;
            Ok::<_, Failure>((board, boot_state))
        };
        let found = blocking(look).await;
        self.looked = Instant::now();
        let (board, boot_state) = match found {
            Ok(found) => found,
            Err(failure) => {
                if self.board.as_ref().err() != Some(&failure) {
                    error!(
                        fwupdated_error_code = failure.code,
                        "updates are not possible: {failure}"
                    );
                }
                self.board = Err(failure);
                self.publish();
                return;
            }
        };
        self.adopt(board.clone());
        let now = Timestamp::now();
        let resumed = boot::resume(
            &self.saved.machine,
            &board.booted,
            &boot_state,
            self.saved.last_run.as_ref(),
            now,
        );
        info!(
            "slot {} runs{}",
            board.booted.slot,
            boot_state.trial.as_ref().map_or(String::new(), |t| format!(
                "; a trial of slot {} is pending",
                t.slot
            ))
        );
        if let Some(finding) = &resumed.finding {
            info!("{finding}");
        }
        if let Some(slot) = resumed.clear_stale_trial {
            let asked = board.clone();
            if let Err(failure) =
                blocking(move || asked.with_bootloader(|b| b.mark_bad(slot))).await
            {
                warn!(
                    fwupdated_error_code = failure.code,
                    "the stale trial of slot {slot} cannot be ended: {failure}"
                );
            }
        }
        self.enter(resumed.state, resumed.actions).await;
    }

    /// From now on updates are possible, on this board.
    fn adopt(&mut self, board: Arc<Board>) {
        // The first start of a device: what runs is what was installed by hand, and it runs.
        let running = || super::saved::SlotRecord {
            state: SlotState::Good,
            version: os_version(&self.config.control.os_release),
        };
        let slots = &mut self.saved.slots;
        slots.entry(board.booted.slot).or_insert_with(running);
        let device = self.hub.device_id.clone();
        self.actions.equip(Context {
            config: self.config.clone(),
            board: board.clone(),
            fetcher: self.fetcher.clone(),
            seed: device.unwrap_or_else(|| board.booted.boot_id.clone()),
            published: self.published.subscribe(),
        });
        self.board = Ok(board);
    }

    async fn handle(&mut self, command: Command) {
        // A caller that no longer waits for its answer changes nothing.
        match command {
            Command::Install { request, reply } => {
                let (answer, _) = self.install(request).await;
                let _ = reply.send(answer);
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
            Command::Rollback { reply } => {
                let failure = Failure::new(
                    "rollback-requested",
                    Class::Final,
                    "the trial was rejected on request",
                );
                let answer = match self.apply(Event::Unhealthy(failure)).await {
                    Ok(()) => Answer::done("rolling back"),
                    Err(_) => conflict(
                        "nothing-to-roll-back",
                        "no trial boot is under way; to go back to an older version, install it",
                    ),
                };
                let _ = reply.send(answer);
            }
            Command::Reboot { reply } => {
                let answer = match (&self.board, self.saved.machine.job()) {
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

    /// Checks a request and starts it. Never waits for the network. With an answer other than 200, also why.
    async fn install(&mut self, request: Request) -> (Answer, Option<Failure>) {
        let unavailable = |failure: Failure| (Answer::unavailable(&failure), Some(failure));
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
        let board = match &self.board {
            Ok(board) => board.clone(),
            Err(failure) => return unavailable(failure.clone()),
        };
        let deadline = Instant::now() + PREFLIGHT_LIMIT;
        let slow = || {
            let text =
                "the device's storage answers too slowly to start an update; try again later";
            Failure::new("storage-slow", Class::Wait, text)
        };
        if !self.actions.settled(deadline).await {
            return unavailable(slow());
        }
        let check = {
            let config = self.config.clone();
            let (request, saved, store) = (request.clone(), self.saved.clone(), self.store.clone());
            blocking(move || preflight::check(&request, &config, &board, &saved, &store))
        };
        let target = match tokio::time::timeout_at(deadline, check).await {
            Ok(Ok(target)) => target,
            Ok(Err(refusal)) => {
                return (refusal.answer(), Some(refusal.failure));
            }
            Err(_) => return unavailable(slow()),
        };
        let id = request.update_id.clone().unwrap_or_else(new_id);
        let (from_version, times) = (self.running_version(), Times::default());
        let job = Job {
            id: id.clone(),
            target,
            from_version,
            times,
            request,
        };
        let (uri, origin) = (&job.request.uri, job.request.origin);
        info!(
            fwupdated_update_id = id,
            "update {id}: {uri} -> slot {target}, asked for by {origin}"
        );
        match self.apply(Event::Requested(job)).await {
            Ok(()) if self.saved.machine.job().is_some() => (Answer::started(&id), None),
            Ok(()) | Err(_) => unavailable(self.unsaved_failure()),
        }
    }

    fn busy(&self) -> Answer {
        match &self.status().update {
            Some(report) => Answer::busy(report),
            None => Answer::unavailable(&self.unsaved_failure()),
        }
    }

    /// Acts on the desired property when nothing is under way; else it waits, and the newest wins.
    async fn follow_desired(&mut self) {
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

    async fn hear(&mut self, report: Report) {
        match report {
            Report::Event(event) => {
                if let Event::Failed(failure) | Event::Unhealthy(failure) = &event {
                    warn!(fwupdated_error_code = failure.code, "{failure}");
                }
                if let Err(refused) = self.apply(event).await {
                    error!("an event came out of order ({refused:?}); ignored");
                }
            }
            Report::Detail(detail) => {
                if self.detail.as_ref() != Some(&detail) {
                    info!("{detail}");
                }
                self.detail = Some(detail);
                self.publish();
            }
        }
    }

    async fn tick(&mut self) {
        let was_unsaved = self.unsaved.is_some();
        if was_unsaved {
            self.save().await;
        }
        if self.board.is_err() && self.looked.elapsed() >= LOOK_AGAIN {
            self.resume().await;
        }
        let due = |(_, again): &(Failure, Instant)| *again <= Instant::now();
        if self.held_up.as_ref().is_some_and(due) {
            self.follow_desired().await;
        }
        if self.saved.machine != State::Idle || was_unsaved {
            self.publish();
        }
    }

    /// Steps the machine.
    async fn apply(&mut self, event: Event) -> Result<(), Refused> {
        let (state, actions) = machine::step(&self.saved.machine, event, Timestamp::now())?;
        self.enter(state, actions).await;
        Ok(())
    }

    /// Makes `state` durable, publishes it, and starts `actions`.
    async fn enter(&mut self, state: State, actions: Vec<Action>) {
        let (mut state, mut actions) = (state, actions);
        loop {
            let before = self.saved.machine.stage();
            self.saved.machine = state;
            self.detail = None;
            // What ran for the state before is no longer wanted.
            self.actions.interrupt();
            let finished = actions.iter().find_map(|action| match action {
                Action::Finish(finished) => Some(finished.clone()),
                _ => None,
            });
            if let Some(finished) = &finished {
                self.finish(finished);
            } else if let Some(stage) = self.saved.machine.stage()
                && Some(stage) != before
                && let Some(job) = self.saved.machine.job()
            {
                info!(
                    fwupdated_update_id = job.id,
                    fwupdated_stage = stage.word(),
                    "update {}: {}",
                    job.id,
                    describe(&self.saved.machine)
                );
            }
            let saved = self.save().await;
            if !saved && before.is_none() && matches!(self.saved.machine, State::Waiting(_)) {
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
    fn must_be_durable(&self) -> Option<Failure> {
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
            | State::Arming(_)
            | State::Rebooting { .. } => Some(self.unsaved_failure()),
        }
    }

    fn unsaved_failure(&self) -> Failure {
        self.unsaved.clone().unwrap_or_else(|| {
            Failure::new(
                "state-write-failed",
                Class::Wait,
                "the state directory cannot be written",
            )
        })
    }

    fn finish(&mut self, finished: &Finished) {
        let report = self.saved.finish(finished, self.meter.progress());
        self.meter.restore(&Progress::default());
        match &report.error {
            None => info!(
                fwupdated_update_id = report.id,
                fwupdated_stage = report.stage.word(),
                "update {}: complete, slot {} is confirmed",
                report.id,
                report.target
            ),
            Some(failure) => {
                error!(
                    fwupdated_update_id = report.id,
                    fwupdated_stage = report.stage.word(),
                    fwupdated_error_code = failure.code,
                    "update {}: {}: {failure}",
                    report.id,
                    report.stage.word()
                );
            }
        }
        let store = self.store.clone();
        // The history is for people; an update does not fail for want of it.
        tokio::task::spawn_blocking(move || {
            if let Err(failure) = store.append_history(&report) {
                warn!(
                    fwupdated_error_code = failure.code,
                    "the history cannot be written: {failure}"
                );
            }
        });
    }

    /// Saves; on failure it is tried again at each tick.
    async fn save(&mut self) -> bool {
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
                    error!(fwupdated_error_code = failure.code, "{failure}");
                }
                self.unsaved = Some(failure);
                false
            }
        }
    }

    fn running_version(&self) -> Option<String> {
        self.status().firmware_version
    }

    fn status(&self) -> Status {
        let detail = self.detail.clone();
        let held_up = self.held_up.as_ref().map(|(failure, _)| failure);
        let unsaved = self.unsaved.as_ref().or(held_up);
        status(
            &self.config,
            &self.board,
            &self.saved,
            &self.hub,
            detail,
            unsaved,
            &self.meter,
        )
    }

    fn publish(&mut self) {
        let mut status = self.status();
        let mut outbox = self.saved.outbox.clone();
        if self.untold_end {
            let told = self.published.borrow();
            status.update.clone_from(&told.status.update);
            outbox.clone_from(&told.outbox);
        }
        if let Some(report) = &status.update {
            self.trail.retain(|passed| passed.run() == report.run());
            match self.trail.last_mut() {
                Some(last) if last.stage.word() == report.stage.word() => *last = report.clone(),
                _ => self.trail.push(report.clone()),
            }
        }
        let next = Published {
            status,
            outbox,
            trail: self.trail.clone(),
        };
        self.published.send_if_modified(|published| {
            let changed = published.status != next.status || published.outbox != next.outbox;
            *published = next;
            changed
        });
    }
}

fn conflict(code: &str, text: &str) -> Answer {
    Answer::conflict(&Failure::new(code, Class::Wait, text))
}

/// A name that no two updates share: the time and 32 random bits.
fn new_id() -> String {
    let mut random = [0_u8; 4];
    let filled = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut random);
    filled.expect("the kernel has random numbers");
    let time = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
    format!("{time}-{:08x}", u32::from_be_bytes(random))
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
        State::Arming(w) => format!("slot {} is verified; arming it", w.job.target),
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

fn status(
    config: &Config,
    board: &Result<Arc<Board>, Failure>,
    saved: &Saved,
    hub: &HubStatus,
    detail: Option<String>,
    unsaved: Option<&Failure>,
    meter: &Meter,
) -> Status {
    let slots = saved.slot_statuses();
    let booted_slot = board.as_ref().ok().map(|board| board.booted.slot);
    let from_slot = booted_slot.and_then(|slot| slots.get(&slot)?.version.clone());
    Status {
        daemon_version: env!("CARGO_PKG_VERSION").to_owned(),
        firmware_version: from_slot.or_else(|| os_version(&config.control.os_release)),
        booted_slot,
        slots,
        bootloader: match config.bootloader.kind {
            crate::config::BootloaderKind::Uboot => "uboot".to_owned(),
            crate::config::BootloaderKind::File => "file".to_owned(),
        },
        unsigned_allowed: config.trust.allow_unsigned,
        hub: hub.clone(),
        update: saved.current_report(meter.progress(), detail),
        last_success: saved.last_success,
        problem: board
            .as_ref()
            .err()
            .or(unsaved)
            .or(saved.lost.as_ref())
            .cloned(),
    }
}

/// Runs `work` on a thread that may block.
///
/// # Errors
/// Those of `work`; a panic in it becomes a failure instead of taking the daemon down.
pub async fn blocking<T: Send + 'static, E: From<Failure> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| {
            Err(Failure::new(
                "internal",
                Class::Final,
                format!("a thread ended unexpectedly ({error}); report this as a bug"),
            )
            .into())
        })
}
