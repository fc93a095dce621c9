//! The updater task: the one owner of the state machine.
//!
//! Everyone else sends it a [`Command`] and watches what it publishes. For each event it asks
//! [`step`](crate::update::machine::step), makes the new state durable, publishes it, and only then starts
//! the actions, which run as tasks of their own ([`super::actions`]) and come back as events. So it answers at once, whatever
//! an action is doing.
//!
//! Here is its loop; what others ask is in `requests` and, what only someone on the device may, in `local`; how a state
//! becomes durable in `durable`, what is shown in `publish`.

mod durable;
mod local;
mod publish;
mod requests;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tracing::{Instrument as _, Span, error, info, warn};

use super::{
    actions::{Actions, Context, Report},
    board::{Board, os_version},
    control_names::{SlotInfo, WhichSlot},
    logging,
    meter::Meter,
    saved::Saved,
    store::Store,
    supervise::{Heartbeat, raised},
};
use crate::{
    config::Config,
    hub::{desired::DesiredTracker, method::Answer},
    platform::{fetch::Fetcher, local_file::LocalFile, watchdog},
    update::{
        boot::{self, Resumed},
        events,
        failure::{Class, Failure},
        machine::{Event, State},
        ports::BootState,
        request::Request,
        status::{HubStatus, SlotState, Status, UpdateReport},
    },
};

/// How often progress is published while an image is installed, and a failed save is tried again.
const TICK: Duration = Duration::from_millis(500);
/// How often the loop turns when nothing is under way and nothing is wrong: only to show that it does, well within
/// the watchdog's patience. Each turn is a wake-up of an idle device.
const CALM_TICK: Duration = Duration::from_secs(10);
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
    /// Start an update from a file of this device.
    InstallFile {
        /// What to install.
        request: Request,
        /// The file at its address, which someone on the device opened.
        file: LocalFile,
        /// The answer.
        reply: oneshot::Sender<Answer>,
    },
    /// Confirm the trial boot under way by hand.
    MarkGood {
        /// The answer.
        reply: oneshot::Sender<Answer>,
    },
    /// Reject the trial boot under way, or keep a slot from being booted.
    MarkBad {
        /// Which slot.
        which: WhichSlot,
        /// The answer.
        reply: oneshot::Sender<Answer>,
    },
    /// Reject the trial boot under way, or go back to what the other slot holds.
    GoBack {
        /// The answer.
        reply: oneshot::Sender<Answer>,
    },
    /// Tell what is known of each slot.
    Slots {
        /// The answer.
        reply: oneshot::Sender<Vec<SlotInfo>>,
    },
    /// Give up the update under way.
    Cancel {
        /// The answer.
        reply: oneshot::Sender<Answer>,
    },
    /// Let the update that waits go on.
    Approve {
        /// Which one must be meant; `None`: whichever waits.
        id: Option<String>,
        /// Without waiting for anything else.
        now: bool,
        /// The answer.
        reply: oneshot::Sender<Answer>,
    },
    /// Put the update that waits off.
    Defer {
        /// Which one must be meant; `None`: whichever waits.
        id: Option<String>,
        /// For so long.
        by: Duration,
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
    /// one entry a stage, and one for the failure of an update that was given up, so that whoever reads late
    /// can still show each.
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
    heartbeat: Arc<Heartbeat>,
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
            status: publish::status(&config, &board, &saved, &hub, None, None, &meter),
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
            heartbeat: Arc::default(),
        };
        (updater, receiver)
    }

    /// Beats while [`Updater::run`] does not hang.
    #[must_use]
    pub fn heartbeat(&self) -> Arc<Heartbeat> {
        self.heartbeat.clone()
    }

    /// Runs until `stop` is raised; then interrupts what is under way and waits for it. The next start goes
    /// on from the saved state.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        self.resume().await;
        let mut ticked = Instant::now();
        loop {
            self.heartbeat.beat();
            let pace = if self.is_calm() { CALM_TICK } else { TICK };
            tokio::select! {
                () = raised(&mut stop) => break,
                Some(command) = self.commands.recv() => self.handle(command).await,
                report = self.actions.next() => {
                    let span = self.span();
                    self.hear(report).instrument(span).await;
                }
                () = tokio::time::sleep_until(ticked + pace) => {
                    let span = self.span();
                    self.tick().instrument(span).await;
                    ticked = Instant::now();
                }
            }
            if std::mem::take(&mut self.look_at_desired) {
                self.follow_desired().await;
            }
        }
        self.actions.stop().await;
        match self.saved.machine.job() {
            Some(job) => info!(
                message_id = events::STOPPED,
                fwupdated_update_id = job.id,
                "stopped; update {} goes on at the next start",
                job.id
            ),
            None => info!(message_id = events::STOPPED, "stopped"),
        }
    }

    /// What is said within it is about the update under way.
    fn span(&self) -> Span {
        logging::within(self.saved.machine.job().map(|job| job.id.as_str()))
    }

    /// Looks at the board; when it can be used, the boot decision.
    async fn resume(&mut self) {
        let config = self.config.clone();
        let look = move || {
            let board = Board::open(&config)?;
            if let Err(failure) = board.with_bootloader(|b| b.running(board.booted.slot)) {
                warn!(fwupdated_error_code = failure.code, "{failure}");
            }
            let boot_state = board.boot_state()?;
            let not_started = board.with_bootloader(|bootloader| bootloader.trial_not_started())?;
            Ok::<_, Failure>((board, boot_state, not_started))
        };
        let found = blocking(look).await;
        self.looked = Instant::now();
        let (board, boot_state, not_started) = match found {
            Ok(found) => found,
            Err(failure) => {
                if self.board.as_ref().err() != Some(&failure) {
                    error!(
                        message_id = events::PROBLEM_FOUND,
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
        let machine = if not_started {
            let carries_over = !self.config.carry_over.paths.is_empty();
            boot::armed_anew(&self.saved.machine, &board.booted, carries_over)
        } else {
            self.saved.machine.clone()
        };
        let mut resumed = boot::resume(
            &machine,
            &board.booted,
            &boot_state,
            self.saved.last_run.as_ref(),
            now,
        );
        if let Some(watchdog) = watchdog::devices().iter().find(|it| it.ended_last_boot) {
            boot::explain_reset(&mut resumed, &watchdog.name);
        }
        let job = resumed.state.job();
        let about = logging::within(job.map(|job| job.id.as_str()));
        let going = self.go_on(&board, &boot_state, resumed);
        going.instrument(about).await;
    }

    /// Says what the start found, and goes on from there.
    async fn go_on(&mut self, board: &Arc<Board>, boot_state: &BootState, resumed: Resumed) {
        let slot = board.booted.slot;
        let trial = boot_state.trial.as_ref().map(|trial| trial.slot);
        info!(
            message_id = events::SLOT_FOUND,
            fwupdated_slot = slot.name(),
            "slot {slot} runs{}",
            trial.map_or(String::new(), |slot| format!(
                "; a trial of slot {slot} is pending"
            ))
        );
        if let Some(finding) = &resumed.finding {
            info!(
                message_id = resumed.state.job().map(|_| events::UPDATE_RESUMED),
                "{finding}"
            );
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
            ..super::saved::SlotRecord::default()
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

    async fn hear(&mut self, report: Report) {
        match report {
            Report::Event(event) => {
                match &event {
                    Event::Failed(failure) => {
                        warn!(fwupdated_error_code = failure.code, "{failure}");
                    }
                    Event::Unhealthy(failure) => warn!(
                        message_id = events::HEALTH_FAILED,
                        fwupdated_error_code = failure.code,
                        "{failure}"
                    ),
                    _ => {}
                }
                if let Err(refused) = self.apply(event).await {
                    error!("an event came out of order ({refused:?}); ignored");
                }
            }
            // Saved with the event that it comes before.
            Report::Baseline(baseline) => self.saved.baseline = Some(baseline),
            Report::Detail(detail) => {
                if self.detail.as_ref() != Some(&detail) {
                    info!("{detail}");
                }
                self.detail = Some(detail);
                self.publish();
            }
        }
    }

    /// True when the next tick has nothing to do, unless something happens before.
    fn is_calm(&self) -> bool {
        // While an update waits, for days perhaps, nothing moves either.
        matches!(
            self.saved.machine,
            State::Idle | State::Waiting(_) | State::Holding(_)
        ) && self.board.is_ok()
            && self.unsaved.is_none()
            && self.held_up.is_none()
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
}

/// Runs `work` on a thread that may block.
///
/// # Errors
/// Those of `work`; a panic in it becomes a failure instead of taking the daemon down.
pub async fn blocking<T: Send + 'static, E: From<Failure> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    let about = Span::current();
    tokio::task::spawn_blocking(move || about.in_scope(work))
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
