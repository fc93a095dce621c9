//! A device without a board: the daemon's own hub session, link task and reporter, and behind them a
//! simulated updater that goes through the stages of an update on a timetable, reboots included.
//!
//! Like the real one it keeps its state over a reboot, holds the last word of an update until the hub has it,
//! and takes one update at a time.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use fwupdated::{
    config::Config,
    daemon::{
        link::Link,
        supervise::raised,
        updater::{Command, Published},
    },
    hub::{
        method::Answer,
        session::{Session, SessionOptions},
    },
    update::{
        failure::{Class, Failure},
        request::Request,
        slot::Slot,
        status::{HubStatus, Progress, SlotState, SlotStatus, Stage, Status, Times, UpdateReport},
    },
};
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};

/// How often the updater publishes progress at most; twenty times in a long download, which is more often than
/// the reporter sends it.
const TICK: Duration = Duration::from_millis(500);
/// What the image holds, as the twin shows it.
const IMAGE: u64 = 512 << 20;

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timetable {
    /// Each stage but the download.
    pub(crate) stage: Duration,
    /// The download.
    pub(crate) download: Duration,
    /// From the end of the daemon to its next start.
    pub(crate) reboot: Duration,
}

/// What all devices count together.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Devices that are connected.
    pub(crate) connected: AtomicUsize,
    /// Times that a connection stood.
    pub(crate) connects: AtomicUsize,
    /// Of these, connections that took the place of one whose token was about to expire.
    pub(crate) renewals: AtomicUsize,
    /// Last words that the hub has.
    pub(crate) delivered: AtomicUsize,
    /// Updates that were accepted, as `device/update`.
    accepted: Mutex<BTreeSet<String>>,
}

impl Tally {
    /// Whether `device` has ever accepted `update`: what a caller who got no answer must know.
    pub(crate) fn has_accepted(&self, device: &str, update: &str) -> bool {
        let accepted = self.accepted.lock().expect("nobody panics with it");
        accepted.contains(&format!("{device}/{update}"))
    }

    fn accept(&self, device: &str, update: &str) {
        let mut accepted = self.accepted.lock().expect("nobody panics with it");
        accepted.insert(format!("{device}/{update}"));
    }
}

/// How an update ends, which the image's address says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Complete,
    BadImage,
    Unhealthy,
}

impl Fate {
    /// The address of an image with this fate.
    pub(crate) fn address(self, number: usize) -> String {
        format!("https://images.example/{self:?}-{number}.img.zst")
    }

    fn of(request: &Request) -> Self {
        let path = request.uri.secret().path();
        let is = |fate: &Self| path.contains(&format!("{fate:?}"));
        let failing = [Self::BadImage, Self::Unhealthy];
        failing.into_iter().find(is).unwrap_or(Self::Complete)
    }

    /// The last word of such an update.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Complete => "applyComplete",
            Self::BadImage => "downloadfailed",
            Self::Unhealthy => "applyFailed",
        }
    }
}

/// A device: what survives its reboots, and what ends with each.
pub(crate) struct Device {
    host: String,
    id: String,
    options: SessionOptions,
    config: Arc<Config>,
    timetable: Timetable,
    tally: Arc<Tally>,
    slot: Slot,
    fate: Fate,
    /// The target was booted.
    tried: bool,
    update: Option<UpdateReport>,
    outbox: Vec<UpdateReport>,
    trail: Vec<UpdateReport>,
    hub: HubStatus,
    /// When the next step of the update is due.
    due: Option<Instant>,
    /// When the download began.
    began: Instant,
}

/// What comes after a step.
enum Next {
    Go,
    Reboot,
}

impl Device {
    /// A device `id` of the hub `host`.
    pub(crate) fn new(
        (host, id): (String, String),
        options: SessionOptions,
        config: Arc<Config>,
        timetable: Timetable,
        tally: Arc<Tally>,
    ) -> Self {
        Self {
            host,
            id,
            options,
            config,
            timetable,
            tally,
            slot: Slot::A,
            fate: Fate::Complete,
            tried: false,
            update: None,
            outbox: Vec::new(),
            trail: Vec::new(),
            hub: HubStatus::default(),
            due: None,
            began: Instant::now(),
        }
    }

    /// Lives until `stop` is raised.
    pub(crate) async fn live(mut self, mut stop: watch::Receiver<bool>) {
        while let Next::Reboot = self.boot(&mut stop).await {
            sleep(self.timetable.reboot).await;
            // The fleet was spread at its start; from now on a device starts like any other.
            self.options.start_delay = Duration::from_secs(1);
        }
    }

    /// From a start of the daemon to its end.
    async fn boot(&mut self, stop: &mut watch::Receiver<bool>) -> Next {
        self.trail.clear();
        self.hub = HubStatus {
            host: Some(self.host.clone()),
            device_id: Some(self.id().to_owned()),
            ..HubStatus::default()
        };
        let (publisher, published) = watch::channel(self.published());
        let (commands, mut inbox) = mpsc::channel(32);
        let (down, link_stop) = watch::channel(false);
        let session = Session::spawn(self.options.clone());
        let link = Link::new(&self.config, session, commands, published, self.hub.clone());
        let link = tokio::spawn(link.run(link_stop));
        let next = loop {
            tokio::select! {
                () = raised(stop) => break Next::Go,
                Some(command) = inbox.recv() => self.handle(command),
                () = due(self.due) => if let Next::Reboot = self.step() {
                    break Next::Reboot;
                },
            }
            publisher.send_replace(self.published());
        };
        publisher.send_replace(self.published());
        down.send_replace(true);
        self.farewell(link, inbox).await;
        if self.hub.connected {
            self.tally.connected.fetch_sub(1, Relaxed);
        }
        next
    }

    /// The link says its last words, and still has commands for the updater.
    async fn farewell(&mut self, mut link: JoinHandle<()>, mut inbox: mpsc::Receiver<Command>) {
        loop {
            tokio::select! {
                ended = &mut link => return ended.expect("the link task does not panic"),
                Some(command) = inbox.recv() => self.handle(command),
            }
        }
    }

    fn id(&self) -> &str {
        &self.id
    }

    fn handle(&mut self, command: Command) {
        // A caller that no longer waits for its answer changes nothing.
        match command {
            Command::Install { request, reply } => drop(reply.send(self.install(&request))),
            Command::Cancel { reply }
            | Command::Approve { reply, .. }
            | Command::Defer { reply, .. }
            | Command::Rollback { reply }
            | Command::Reboot { reply } => {
                let text = "a simulated device has nothing of the kind";
                drop(reply.send(Answer::conflict(&Failure::new(
                    "simulated",
                    Class::Final,
                    text,
                ))));
            }
            Command::Delivered { run } => {
                let before = self.outbox.len();
                self.outbox.retain(|report| report.run() != run);
                self.tally
                    .delivered
                    .fetch_add(before - self.outbox.len(), Relaxed);
            }
            Command::Desired(_)
            | Command::DesiredPatch { .. }
            // Only someone on the device asks for these.
            | Command::InstallFile { .. }
            | Command::MarkGood { .. }
            | Command::MarkBad { .. }
            | Command::GoBack { .. }
            | Command::Slots { .. } => {}
            Command::Hub(hub) => {
                if hub.connected && !self.hub.connected {
                    self.tally.connected.fetch_add(1, Relaxed);
                } else if self.hub.connected && !hub.connected {
                    self.tally.connected.fetch_sub(1, Relaxed);
                }
                let renewed = hub.connected && self.hub.connected;
                let count =
                    |counter: &AtomicUsize, yes| counter.fetch_add(usize::from(yes), Relaxed);
                count(&self.tally.connects, hub.connected);
                count(&self.tally.renewals, renewed);
                self.hub = hub;
            }
        }
    }

    fn install(&mut self, request: &Request) -> Answer {
        if let Some(update) = self
            .update
            .as_ref()
            .filter(|update| !update.stage.is_final())
        {
            let same = request.update_id.as_deref() == Some(&update.id);
            return match same {
                true => Answer::started(&update.id),
                false => Answer::busy(update),
            };
        }
        let id = request
            .update_id
            .clone()
            .expect("the fleet names its updates");
        // A caller who got no answer may ask again, even after the end.
        if self.tally.has_accepted(self.id(), &id) {
            return Answer::started(&id);
        }
        self.tally.accept(self.id(), &id);
        let answer = Answer::started(&id);
        (self.fate, self.tried) = (Fate::of(request), false);
        self.update = Some(UpdateReport {
            id,
            origin: request.origin,
            uri: request.uri.to_string(),
            target: self.slot.other(),
            version: request.version.clone(),
            from_version: Some("1.0.0".to_owned()),
            stage: Stage::Waiting,
            detail: None,
            progress: Progress::default(),
            times: Times {
                waiting: Some(Timestamp::now()),
                ..Times::default()
            },
            error: None,
        });
        self.due = Some(Instant::now() + self.timetable.stage);
        answer
    }

    /// The update's next step.
    fn step(&mut self) -> Next {
        let (stage_time, download) = (self.timetable.stage, self.timetable.download);
        let tick = (download / 20).max(TICK);
        self.due = Some(Instant::now() + stage_time);
        let Some(update) = &mut self.update else {
            self.due = None;
            return Next::Go;
        };
        let now = Some(Timestamp::now());
        match (update.stage, self.fate) {
            (Stage::Waiting, Fate::BadImage) => {
                self.end(Stage::DownloadFailed, Some("signature-invalid"));
            }
            (Stage::Waiting, _) => {
                update.stage = Stage::Downloading;
                update.times.downloading = now;
                update.progress.bytes_total = IMAGE;
                self.began = Instant::now();
                self.due = Some(self.began + tick);
            }
            (Stage::Downloading, _) if self.began.elapsed() < download => {
                let share = self.began.elapsed().div_duration_f64(download);
                let done = (IMAGE as f64 * share) as u64;
                let progress = &mut update.progress;
                (progress.bytes_done, progress.bytes_downloaded) = (done, done / 3);
                progress.bytes_written = done;
                self.due = Some(Instant::now() + tick);
            }
            (Stage::Downloading, _) => {
                update.stage = Stage::DownloadComplete;
                update.progress.bytes_done = IMAGE;
                update.times.download_complete = now;
            }
            (Stage::DownloadComplete, _) => {
                update.stage = Stage::Applying;
                update.times.applying = now;
            }
            (Stage::Applying, _) => {
                update.stage = Stage::Rebooting;
                return Next::Reboot;
            }
            (Stage::Rebooting, _) if !self.tried => {
                (self.slot, self.tried) = (update.target, true);
                update.stage = Stage::Trial;
            }
            (Stage::Rebooting, _) => {
                self.slot = self.slot.other();
                self.end(Stage::ApplyFailed, Some("health-check-failed"));
            }
            (Stage::Trial, Fate::Unhealthy) => {
                update.stage = Stage::Rebooting;
                return Next::Reboot;
            }
            (Stage::Trial, _) => self.end(Stage::ApplyComplete, None),
            (Stage::ApplyComplete | Stage::DownloadFailed | Stage::ApplyFailed, _) => {
                self.due = None;
            }
        }
        Next::Go
    }

    fn end(&mut self, stage: Stage, error: Option<&str>) {
        self.due = None;
        let Some(update) = &mut self.update else {
            return;
        };
        update.stage = stage;
        update.times.ended = Some(Timestamp::now());
        update.error =
            error.map(|code| Failure::new(code, Class::Final, "as the simulation was told"));
        self.outbox.push(update.clone());
    }

    fn published(&mut self) -> Published {
        if let Some(update) = &self.update {
            self.trail.retain(|passed| passed.run() == update.run());
            match self.trail.last_mut() {
                Some(last) if last.stage.word() == update.stage.word() => *last = update.clone(),
                _ => self.trail.push(update.clone()),
            }
        }
        let slot = SlotStatus {
            state: SlotState::Good,
            version: Some("1.0.0".to_owned()),
        };
        let status = Status {
            daemon_version: env!("CARGO_PKG_VERSION").to_owned(),
            firmware_version: Some("1.0.0".to_owned()),
            booted_slot: Some(self.slot),
            slots: Slot::ALL.map(|each| (each, slot.clone())).into(),
            bootloader: "file".to_owned(),
            unsigned_allowed: false,
            hub: self.hub.clone(),
            update: self.update.clone(),
            last_success: None,
            problem: None,
        };
        Published {
            status,
            outbox: self.outbox.clone(),
            trail: self.trail.clone(),
        }
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
