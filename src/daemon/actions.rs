//! Runs the machine's actions as tasks and hands their outcome back as events.
//!
//! One action runs at a time. Interrupting it raises its [`Cancel`]; what it still says after that is
//! thrown away, and the next one that touches the slot waits until its thread has let go of it.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::Instant,
};
use tracing::{Instrument as _, info, warn};

use super::{
    admission::{Device, admit},
    board::Board,
    health,
    install::{Inspected, Installer},
    logging,
    meter::{Cancel, Canceller, Meter, cancellation},
    moments,
    moments::Moment,
    policy::{self, reboot::Gate},
    saved::{Baseline, Saved},
    source::local::HandedOver,
    updater::{Published, blocking},
};
use crate::{
    config::{BootloaderKind, Config},
    image::delta::OldPayload,
    platform::{
        carry_over::carry_over, fetch::Fetcher, local_file::LocalFile, logind, reboot::Purpose,
        slot_writer::SlotWriter,
    },
    update::{
        boot, events,
        failure::{Class, Failure},
        machine::{Action, Event, Job, Prepared, State, Written},
        slot::Slot,
        uri::PackageUri,
    },
};

/// A reboot that was accepted but has not happened after this long will not happen.
const REBOOT_LIMIT: Duration = Duration::from_secs(15 * 60);
/// How long a healthy slot is tried to be marked good before it is given up: a user who holds the lock of the
/// environment, or a medium with a hiccup, must not roll it back. The trial's timer leaves room for it.
const MARK_GOOD_PATIENCE: Duration = Duration::from_secs(5 * 60);
/// Longest pause between two attempts of that.
const MARK_GOOD_PAUSE: Duration = Duration::from_secs(10);

/// What an action says.
#[derive(Debug)]
pub enum Report {
    /// Its outcome.
    Event(Event),
    /// What it waits for.
    Detail(String),
    /// How things stand before the trial boot.
    Baseline(Baseline),
}

/// Starts actions and listens to them.
pub struct Actions {
    context: Option<Arc<Context>>,
    meter: Arc<Meter>,
    inspected: Inspected,
    file: HandedOver,
    reports: mpsc::UnboundedReceiver<(u64, Report)>,
    sender: mpsc::UnboundedSender<(u64, Report)>,
    generation: u64,
    running: Option<(Canceller, JoinHandle<()>)>,
    /// An interrupted action whose thread may still hold the slot.
    ending: Option<JoinHandle<()>>,
}

/// What actions work with.
pub struct Context {
    /// Configuration.
    pub config: Arc<Config>,
    /// The board.
    pub board: Arc<Board>,
    /// Downloads.
    pub fetcher: Fetcher,
    /// The device's name, to spread a fleet.
    pub seed: String,
    /// For the health gate's question whether the hub is connected.
    pub published: watch::Receiver<Published>,
}

/// One action's surroundings.
#[derive(Clone)]
struct Run {
    context: Arc<Context>,
    meter: Arc<Meter>,
    inspected: Inspected,
    file: HandedOver,
    cancel: Cancel,
    say: mpsc::UnboundedSender<(u64, Report)>,
    generation: u64,
    /// What the action is for.
    machine: State,
    /// How things stood before the trial boot.
    baseline: Option<Baseline>,
    /// What was installed in the running slot, if that is known.
    installed: Option<OldPayload>,
}

impl Actions {
    /// Nothing runs yet, and nothing does without a context (a board that cannot be updated).
    pub fn new(meter: Arc<Meter>) -> Self {
        let (sender, reports) = mpsc::unbounded_channel();
        Self {
            context: None,
            meter,
            inspected: Inspected::default(),
            file: HandedOver::default(),
            reports,
            sender,
            generation: 0,
            running: None,
            ending: None,
        }
    }

    /// Gives the actions what they work with.
    pub fn equip(&mut self, context: Context) {
        self.context = Some(Arc::new(context));
    }

    /// The file that the update under way is to be read from; `None` when there is none any more, which closes it.
    pub fn file(&self, file: Option<(PackageUri, LocalFile)>) {
        self.file.keep(file);
    }

    /// The counters of the installation.
    pub fn meter(&self) -> Arc<Meter> {
        self.meter.clone()
    }

    /// The next word of the action that runs. Pends for ever when none does.
    pub async fn next(&mut self) -> Report {
        loop {
            // `self.sender` lives as long as the receiver, so the channel never closes.
            let Some((generation, report)) = self.reports.recv().await else {
                return std::future::pending().await;
            };
            if generation == self.generation {
                return report;
            }
        }
    }

    /// What runs is no longer wanted.
    pub fn interrupt(&mut self) {
        self.generation += 1;
        if let Some((canceller, task)) = self.running.take() {
            canceller.cancel();
            let before = self.ending.take();
            self.ending = Some(tokio::spawn(async move {
                if let Some(before) = before {
                    let _ = before.await;
                }
                let _ = task.await;
            }));
        }
    }

    /// Waits until an interrupted action has let go of the slot; false when it has not by `deadline`.
    pub async fn settled(&mut self, deadline: Instant) -> bool {
        if let Some(ending) = &mut self.ending {
            if tokio::time::timeout_at(deadline, ending).await.is_err() {
                return false;
            }
            self.ending = None;
        }
        true
    }

    /// Interrupts and waits, for a bounded time: a thread may be within a slow write.
    pub async fn stop(&mut self) {
        self.interrupt();
        if let Some(ending) = self.ending.take() {
            let _ = tokio::time::timeout(Duration::from_secs(20), ending).await;
        }
    }

    /// Starts `action`. [`Action::Finish`] is the updater's own.
    pub fn start(&mut self, action: Action, saved: &Saved) {
        if !matches!(action, Action::DisableSlot(_) | Action::WriteSlot(_)) {
            // A header is of use only between the check and the download that follows it.
            self.inspected.lock().expect("no panic while held").take();
        }
        let Some(context) = self.context.clone() else {
            return;
        };
        if matches!(action, Action::Finish(_)) {
            return;
        }
        self.interrupt();
        let (canceller, cancel) = cancellation();
        let (meter, say, generation) = (self.meter.clone(), self.sender.clone(), self.generation);
        let running = saved.slots.get(&context.board.booted.slot);
        let installed = running
            .and_then(|record| record.content)
            .map(|content| OldPayload {
                size: content.size,
                sha256: content.sha256,
            });
        let run = Run {
            context,
            meter,
            inspected: self.inspected.clone(),
            file: self.file.clone(),
            cancel,
            say,
            generation,
            machine: saved.machine.clone(),
            baseline: saved.baseline.clone(),
            installed,
        };
        let ending = self.ending.take();
        let memory = (
            saved.security_epoch,
            saved.known_bad.clone(),
            version_of_booted(&run.context, saved),
        );
        let job = saved.machine.job();
        let about = logging::within(job.map(|job| job.id.as_str()));
        let work = async move {
            if let Some(ending) = ending {
                let _ = ending.await;
            }
            run.perform(action, memory).await;
        };
        let task = tokio::spawn(work.instrument(about));
        self.running = Some((canceller, task));
    }
}

type Memory = (u64, Vec<super::saved::KnownBad>, Option<String>);

fn version_of_booted(context: &Context, saved: &Saved) -> Option<String> {
    let known = saved
        .slots
        .get(&context.board.booted.slot)
        .and_then(|record| record.version.clone());
    known.or_else(|| super::board::os_version(&context.config.control.os_release))
}

impl Run {
    /// What a reboot is for.
    fn purpose(&self) -> Purpose {
        match &self.machine {
            State::RollingBack { .. } => Purpose::Rollback,
            State::Rebooting { written, .. } => Purpose::Trial {
                past_inhibitors: written.job.consent.past_inhibitors,
            },
            _ => Purpose::Request,
        }
    }

    fn report(&self, report: Report) {
        // The updater is gone only when the process ends.
        let _ = self.say.send((self.generation, report));
    }

    async fn perform(self, action: Action, memory: Memory) {
        let event = match action {
            Action::AwaitPolicy(job) => self.await_policy(&job).await,
            Action::CheckImage(job) => self.check_image(job, memory).await,
            Action::DisableSlot(slot) => self.disable(slot).await,
            Action::WriteSlot(prepared) => self.write(prepared).await,
            Action::VerifySlot(written) => self.verify(written).await,
            Action::AwaitReboot(written) => self.await_reboot(&written.job).await,
            Action::CarryOver(written) => self.carry_over(written).await,
            Action::ArmSlot(written) => self.arm(written).await,
            // Nothing of it needs to end well: the reboot happens by itself, or is asked for again.
            Action::Reboot => tokio::select! {
                event = self.reboot() => event,
                () = self.cancel.cancelled() => return,
            },
            Action::WatchHealth(written) => self.watch_health(&written).await,
            Action::MarkGood(slot) => self.mark_good(slot).await,
            Action::Finish(_) => return,
        };
        self.report(Report::Event(event.unwrap_or_else(Event::Failed)));
    }

    async fn await_policy(&self, job: &Job) -> Result<Event, Failure> {
        let config = &self.context.config;
        let say = |text| self.report(Report::Detail(text));
        tokio::select! {
            allowed = policy::wait(&config.policy, &self.context.seed, job, say) => allowed.map(|()| Event::PolicyAllows),
            () = self.cancel.cancelled() => Err(super::meter::stopped()),
        }
    }

    async fn check_image(
        &self,
        job: Job,
        (security_epoch, known_bad, version): Memory,
    ) -> Result<Event, Failure> {
        let (context, installer) = (self.context.clone(), self.installer());
        self.listen_to_retries();
        blocking(move || {
            let (offer, facts) = installer.inspect(&job.request)?;
            let slot = context
                .board
                .slots
                .inactive()
                .map_err(|error| Failure::from(&error))?;
            let capacity = |path: &std::path::Path| {
                let writer = SlotWriter::open(path).map_err(|error| Failure::from(&error))?;
                Ok::<_, Failure>(writer.capacity())
            };
            let device = Device {
                trust: &context.config.trust,
                compatible: &context.board.compatible,
                version: version.as_deref(),
                security_epoch,
                capacity: capacity(slot.path())?,
                boot: slot.boot().map(capacity).transpose()?,
                known_bad: &known_bad,
            };
            admit(&offer, &job.request, &device).map_err(|refusal| Failure::from(&refusal))?;
            Ok(Event::ImageAccepted(facts))
        })
        .await
    }

    /// Runs `work` with the proof that `target` is not the running slot.
    async fn with_slot<T: Send + 'static>(
        &self,
        target: Slot,
        work: impl FnOnce(&Installer, &crate::platform::slots::InactiveSlot) -> Result<T, Failure>
        + Send
        + 'static,
    ) -> Result<T, Failure> {
        let context = self.context.clone();
        let installer = self.installer();
        self.listen_to_retries();
        blocking(move || {
            let slot = context
                .board
                .slots
                .inactive()
                .map_err(|error| Failure::from(&error))?;
            if slot.slot() != target {
                let text =
                    format!("slot {target} was to be written, but it runs; restart the daemon");
                return Err(Failure::new("boot-disagreement", Class::Final, text));
            }
            work(&installer, &slot)
        })
        .await
    }

    fn installer(&self) -> Installer {
        Installer {
            fetcher: self.context.fetcher.clone(),
            connections: self.context.config.fetch.connections,
            installed: self.installed,
            trust: self.context.config.trust.clone(),
            meter: self.meter.clone(),
            cancel: self.cancel.clone(),
            inspected: self.inspected.clone(),
            file: self.file.clone(),
        }
    }

    /// Shows why a download is at a halt, while this action runs.
    fn listen_to_retries(&self) {
        let mut retries = self.context.fetcher.retrying();
        let run = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    changed = retries.changed() => if changed.is_err() { return },
                    () = run.cancel.cancelled() => return,
                }
                let retry = retries.borrow_and_update().clone();
                if let Some(retry) = retry {
                    let pause = retry.pause.as_secs_f32();
                    run.report(Report::Detail(format!(
                        "trying again in {pause:.1} s: {}",
                        retry.reason
                    )));
                }
            }
        });
    }

    async fn write(&self, prepared: Prepared) -> Result<Event, Failure> {
        self.allowed(Moment::PreInstall).await?;
        let target = prepared.job.target;
        let written = self.with_slot(target, move |installer, slot| {
            installer.write(&prepared, slot)
        });
        written.await.map(Event::SlotWritten)
    }

    async fn verify(&self, written: Written) -> Result<Event, Failure> {
        let (target, update) = (written.job.target, written.clone());
        let is_held = matches!(self.machine, State::Holding(_));
        if is_held {
            let text = "reading the slot back once more, before the reboot";
            self.report(Report::Detail(text.to_owned()));
        }
        let verified = self.with_slot(target, move |installer, slot| {
            installer.verify(&written, slot)
        });
        verified.await?;
        // Asked before the wait.
        if !is_held {
            self.allowed(Moment::PostInstall).await?;
        }
        if !self.may_reboot(&update).await? {
            return Ok(Event::RebootMustWait);
        }
        self.take_baseline().await;
        Ok(match self.context.config.carry_over.paths.is_empty() {
            true => Event::SlotMatches,
            false => Event::CarryOverDue,
        })
    }

    /// Whether the slot may be armed and the device reboot now; users are warned before.
    async fn may_reboot(&self, written: &Written) -> Result<bool, Failure> {
        let mut gate = Gate::new(&self.context.config.policy, &written.job);
        match self.machine {
            // It was allowed, and the slot may be armed.
            State::Arming(_) => return Ok(true),
            State::Holding(_) => {}
            _ => return Ok(gate.is_open().await),
        }
        let say = |text| self.report(Report::Detail(text));
        if let Some(at) = gate.warn_users(written.image.version.as_deref(), say).await {
            tokio::select! {
                () = tokio::time::sleep(self.context.config.policy.reboot_notice) => {}
                () = self.cancel.cancelled() => {
                    // The warning is no more than one.
                    if let Err(error) = logind::withdraw_warning(at).await {
                        let failure = Failure::from(&error);
                        warn!(fwupdated_error_code = failure.code, "{failure}");
                    }
                    return Err(super::meter::stopped());
                }
            }
        }
        Ok(!gate.is_inhibited().await)
    }

    async fn await_reboot(&self, job: &Job) -> Result<Event, Failure> {
        let say = |text| self.report(Report::Detail(text));
        let mut gate = Gate::new(&self.context.config.policy, job);
        tokio::select! {
            past_inhibitors = gate.wait(say) => Ok(Event::RebootAllowed { past_inhibitors }),
            () = self.cancel.cancelled() => Err(super::meter::stopped()),
        }
    }

    /// How things stand is heard before the event that follows, and durable with it: before anything is armed.
    async fn take_baseline(&self) {
        let connected = self.context.published.borrow().status.hub.connected;
        let baseline = health::baseline(&self.context.config.health, connected).await;
        self.report(Report::Baseline(baseline));
    }

    async fn carry_over(&self, written: Written) -> Result<Event, Failure> {
        let paths = self.context.config.carry_over.paths.clone();
        let carried = self.with_slot(written.job.target, move |_, slot| {
            carry_over(&paths, slot).map_err(|error| Failure::from(&error))
        });
        let carried = carried.await?;
        info!(
            "carried over {} files, folders and links, {} bytes of content",
            carried.entries, carried.bytes
        );
        for path in carried.left_out {
            warn!(
                "{} is a socket, pipe or device and was not carried over",
                path.display()
            );
        }
        Ok(Event::CarriedOver)
    }

    async fn disable(&self, slot: Slot) -> Result<Event, Failure> {
        let board = self.context.board.clone();
        blocking(move || board.with_bootloader(|bootloader| bootloader.mark_bad(slot))).await?;
        // Whatever an earlier run left behind: no reboot by anyone may try this slot now. Within a trial nothing can be
        // left, and the way back does not wait for a logind that may be sick.
        let way_back = self.purpose() == Purpose::Rollback;
        if self.context.config.bootloader.kind == BootloaderKind::Tryboot && !way_back {
            self.context.board.rebooter.withdraw().await;
        }
        if matches!(self.machine, State::Abandoning { .. }) {
            self.tell(Moment::RolledBack).await;
        }
        Ok(Event::SlotDisabled)
    }

    /// Runs the programs for `moment`; each of them may stop the update.
    async fn allowed(&self, moment: Moment) -> Result<(), Failure> {
        let ran = moments::run(&self.context.config.hooks, moment, &self.machine);
        tokio::select! {
            result = ran => result,
            () = self.cancel.cancelled() => Err(super::meter::stopped()),
        }
    }

    /// Runs the programs for `moment`, which change nothing any more.
    async fn tell(&self, moment: Moment) {
        if let Err(failure) = self.allowed(moment).await {
            warn!(fwupdated_error_code = failure.code, "{failure}; going on");
        }
    }

    async fn arm(&self, written: Written) -> Result<Event, Failure> {
        if matches!(self.machine, State::Returning(_)) {
            // A person's word: nothing is waited for, but whoever else is there hears of it.
            let mut gate = Gate::new(&self.context.config.policy, &written.job);
            tokio::select! {
                announced = gate.announce_return(written.image.version.as_deref()) => announced?,
                () = self.cancel.cancelled() => return Err(super::meter::stopped()),
            }
            self.take_baseline().await;
        }
        let board = self.context.board.clone();
        let tries = self.context.config.bootloader.tries;
        let boot_id = board.booted.boot_id.clone();
        let target = written.job.target;
        blocking(move || {
            board.with_bootloader(|bootloader| {
                bootloader.arm_trial(target, tries, &boot::job_tag(&written))
            })
        })
        .await?;
        info!(
            message_id = events::SLOT_ARMED,
            fwupdated_slot = target.name(),
            "slot {target} is armed: the bootloader gives it {tries} boots to prove itself"
        );
        Ok(Event::SlotArmed { boot_id })
    }

    async fn reboot(&self) -> Result<Event, Failure> {
        let purpose = self.purpose();
        let argument = match purpose {
            Purpose::Trial { .. } => {
                self.tell(Moment::PreReboot).await;
                let board = self.context.board.clone();
                blocking(move || board.with_bootloader(|bootloader| bootloader.start_trial()))
                    .await?
            }
            Purpose::Request | Purpose::Rollback => None,
        };
        let rebooter = &self.context.board.rebooter;
        let error = match rebooter.reboot(purpose, argument).await {
            Ok(()) => {
                tokio::time::sleep(REBOOT_LIMIT).await;
                let text = format!(
                    "the reboot was accepted but has not happened within {} minutes; see `systemctl list-jobs`",
                    REBOOT_LIMIT.as_secs() / 60
                );
                Failure::new("reboot-did-not-happen", Class::Wait, text)
            }
            Err(error) => Failure::from(&error),
        };
        if argument.is_some() {
            rebooter.withdraw().await;
        }
        tokio::time::sleep(rebooter.pause()).await;
        Err(error)
    }

    async fn watch_health(&self, written: &Written) -> Result<Event, Failure> {
        let context = &self.context;
        let say = |text| self.report(Report::Detail(text));
        let connected = context.published.clone();
        let connected = move || connected.borrow().status.hub.connected;
        let (config, board) = (&context.config.health, &context.board);
        let trial = health::Trial {
            written,
            running: board.booted.slot,
            baseline: self.baseline.as_ref(),
        };
        let result = tokio::select! {
            result = health::watch_health(config, &trial, board.boot_start, connected, say) => result,
            () = self.cancel.cancelled() => return Err(super::meter::stopped()),
        };
        Ok(match result {
            Ok(()) => Event::Healthy,
            Err(failure) => Event::Unhealthy(failure),
        })
    }

    async fn mark_good(&self, slot: Slot) -> Result<Event, Failure> {
        let began = Instant::now();
        let mut failures = 0;
        loop {
            let board = self.context.board.clone();
            let marked =
                blocking(move || board.with_bootloader(|bootloader| bootloader.mark_good(slot)))
                    .await;
            let Err(failure) = marked else {
                self.tell(Moment::Confirmed).await;
                return Ok(Event::MarkedGood);
            };
            failures += 1;
            let Some(pause) = mark_good_pause(failures, began.elapsed()) else {
                return Err(failure);
            };
            self.report(Report::Detail(format!(
                "marking slot {slot} good failed, trying again: {failure}"
            )));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.cancel.cancelled() => return Err(super::meter::stopped()),
            }
        }
    }
}

/// The pause before a healthy slot is tried to be marked good again; `None` when patience is over.
fn mark_good_pause(failures: u32, elapsed: Duration) -> Option<Duration> {
    let pause = Duration::from_secs(1 << failures.saturating_sub(1).min(10));
    let left = MARK_GOOD_PATIENCE.saturating_sub(elapsed);
    (!left.is_zero()).then(|| pause.min(MARK_GOOD_PAUSE).min(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_healthy_slot_is_given_up_only_after_minutes_of_trying_to_mark_it_good() {
        // As long as another holder of the lock is waited for.
        for attempt in [Duration::ZERO, Duration::from_secs(3)] {
            let (mut elapsed, mut failures) = (attempt, 1);
            while let Some(pause) = mark_good_pause(failures, elapsed) {
                assert!(!pause.is_zero() && pause <= MARK_GOOD_PAUSE, "{pause:?}");
                elapsed += pause + attempt;
                failures += 1;
            }
            let patience = MARK_GOOD_PATIENCE..MARK_GOOD_PATIENCE + Duration::from_secs(4);
            assert!(patience.contains(&elapsed), "{elapsed:?}");
            assert!((20..50).contains(&failures), "{failures} attempts");
        }
    }
}
