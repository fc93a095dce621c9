//! The hub task: carries methods and desired properties to the updater, and the published status to the
//! twin. It only reads the status; it can never influence an update but by the commands anyone may send.
//! It never waits for the updater, which may be waiting for a medium in trouble.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tracing::{debug, warn};

use super::{
    logging::answered,
    supervise::raised,
    updater::{Command, Published},
};
use crate::{
    config::Config,
    hub::{
        method::{self, Answer, Methods},
        reporter::{Change, Event as ReporterEvent, Pace, Reporter, Wanted},
        session::{HubEvent, MethodCall, SessionHandle, random_jitter},
        twin::{self, Run},
    },
    update::{
        failure::Failure,
        status::{HubStatus, Progress, Status, UpdateReport},
    },
};

/// How long the last words may take at a stop, at the usual pace and then without. systemd waits longer; a
/// reboot should not.
const FAREWELL: Duration = Duration::from_secs(2);
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Changes of the desired section that wait for the updater. Beyond, the whole is read again.
const MAX_CHANGES: usize = 32;

/// The hub task's own data.
pub struct Link {
    methods: Arc<Methods>,
    session: SessionHandle,
    /// The connection that patches go by.
    connection: u64,
    events: mpsc::Receiver<HubEvent>,
    commands: mpsc::Sender<Command>,
    /// What the updater has no room for yet.
    waiting: VecDeque<Command>,
    published: watch::Receiver<Published>,
    reporter: Reporter,
    /// Final reports handed to the reporter already, by update id.
    handed_over: Vec<String>,
    /// The update whose stages are being handed over, and how many of them were.
    shown: (String, usize),
    /// The run whose end the twin showed at the last connect.
    told: Option<Run>,
    /// The last status handed over, to tell a change of stage from progress.
    last: Option<Status>,
    hub: HubStatus,
}

impl Link {
    /// A link over `session`, for the device that `hub` names.
    pub fn new(
        config: &Config,
        (session, events): (SessionHandle, mpsc::Receiver<HubEvent>),
        commands: mpsc::Sender<Command>,
        published: watch::Receiver<Published>,
        hub: HubStatus,
    ) -> Self {
        let jitter = random_jitter();
        let reporter = Reporter::new(Pace::from(&config.report), jitter, Vec::new());
        let methods = Arc::new(Methods {
            update_names: config.hub.method_names.clone(),
            allow_reboot: config.hub.allow_reboot_method,
        });
        Self {
            methods,
            session,
            connection: 0,
            events,
            commands,
            waiting: VecDeque::new(),
            published,
            reporter,
            handed_over: Vec::new(),
            shown: (String::new(), 0),
            told: None,
            last: None,
            hub,
        }
    }

    /// Runs until `stop` is raised, then tells the hub what it does not know yet, for a moment, and says
    /// goodbye.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            self.turn();
            tokio::select! {
                () = raised(&mut stop) => break,
                more = self.wait() => if !more { break },
            }
        }
        // First at the usual pace, so that a back end that polls sees each stage; then as fast as the hub takes
        // it. What does not get through now is reported after the next start.
        if tokio::time::timeout(FAREWELL, self.settle()).await.is_err() {
            self.reporter.hurry();
            let _ = tokio::time::timeout(LAST_WORDS, self.settle()).await;
        }
        self.session.shutdown().await;
    }

    /// Returns when the hub knows everything, or cannot be told.
    async fn settle(&mut self) {
        loop {
            self.turn();
            if !self.hub.connected || self.reporter.is_settled() || !self.wait().await {
                break;
            }
        }
    }

    /// Hands over and sends what can be.
    fn turn(&mut self) {
        self.hand_over();
        if self.reporter.poll_read(now()) {
            debug!("reading the twin: what the hub has is not certain");
            self.session.read_twin(self.connection);
        }
        while let Some(patch) = self.reporter.poll_transmit(now()) {
            debug!(rid = patch.rid, "reported patch: {}", patch.body);
            self.session.patch(self.connection, &patch.rid, &patch.body);
        }
        self.tell_delivered();
    }

    /// Takes in the next thing that happens. False when nothing more can.
    async fn wait(&mut self) -> bool {
        let wake = self.reporter.poll_timeout();
        let commands = self.commands.clone();
        tokio::select! {
            // The status itself is looked at in the next turn. An updater that has stopped says no more, but
            // what it said last must still be told.
            _ = self.published.changed(), if self.published.has_changed().is_ok() => {}
            event = self.events.recv() => match event {
                Some(event) => self.hear(event),
                None => return false,
            },
            room = commands.reserve(), if !self.waiting.is_empty() => match (room, self.waiting.pop_front()) {
                (Ok(room), Some(command)) => room.send(command),
                // The updater is gone only when the process ends.
                _ => self.waiting.clear(),
            },
            () = sleep_until(wake) => self.reporter.handle_timeout(now()),
        }
        true
    }

    fn tell_delivered(&mut self) {
        while let Some(event) = self.reporter.poll_event() {
            match event {
                ReporterEvent::Delivered { update_id: run }
                | ReporterEvent::GivenUp { update_id: run } => {
                    self.send(Command::Delivered { run });
                }
                ReporterEvent::Rejected { status, .. } => {
                    warn!(
                        "the hub refused a reported patch with status {status}; it is not repeated"
                    );
                }
            }
        }
    }

    /// Gives the reporter what is new: final reports of earlier updates in order, then the stages of the
    /// present one, each after the one before has arrived, then the present status. Without a connection
    /// only the newest counts.
    fn hand_over(&mut self) {
        let Published {
            status,
            outbox,
            trail,
        } = self.published.borrow_and_update().clone();
        // Until the updater has taken a delivered report off, it must not be handed over again.
        self.handed_over
            .retain(|run| outbox.iter().any(|report| report.run() == *run));
        let present = status.update.as_ref().map(UpdateReport::run);
        let present = present.unwrap_or_default();
        for report in outbox.iter().filter(|report| report.run() != present) {
            self.hand_over_final(&status, report);
        }
        if self.shown.0 != present {
            self.shown = (present, 0);
        }
        let has_ended = status.update.as_ref().is_some_and(|u| u.stage.is_final());
        let is_told = has_ended && outbox.iter().all(|report| report.run() != self.shown.0);
        while self.shown.1 < trail.len() {
            let passed = &trail[self.shown.1];
            let last = self.shown.1 + 1 == trail.len();
            if self.hub.connected && trail.len() > 1 && !self.reporter.stages_are_settled() {
                return;
            }
            // That an update failed is shown before it was rolled back, also when it is told late.
            let failed = !is_told && passed.error.is_some() && !passed.stage.is_final();
            if failed || (self.hub.connected && !last) {
                let then = Status {
                    update: Some(passed.clone()),
                    ..status.clone()
                };
                let document = twin::reported(&then);
                let is_told = self.told.is_some() && Run::of(&document) == self.told;
                if !is_told {
                    self.want(document, Change::Stage, None);
                    if !self.hub.connected {
                        return;
                    }
                }
            }
            self.shown.1 += 1;
        }
        if let Some(report) = outbox.iter().find(|report| report.run() == self.shown.0) {
            self.hand_over_final(&status, report);
        }
        // The connection's own state is not reported: the hub knows it.
        let status = Status {
            hub: HubStatus::default(),
            ..status
        };
        if self.last.as_ref() == Some(&status) {
            return;
        }
        let still = |s: &Status| Status {
            update: s.update.as_ref().map(without_progress),
            ..s.clone()
        };
        let stage = self
            .last
            .as_ref()
            .is_none_or(|last| still(last) != still(&status));
        let change = if stage {
            Change::Stage
        } else {
            Change::Progress
        };
        self.want(twin::reported(&status), change, None);
        self.last = Some(status);
    }

    /// Hands over the last word of an update, once.
    fn hand_over_final(&mut self, status: &Status, report: &UpdateReport) {
        let run = report.run();
        if self.handed_over.contains(&run) {
            return;
        }
        self.handed_over.push(run.clone());
        let then = Status {
            update: Some(report.clone()),
            ..status.clone()
        };
        self.want(twin::reported(&then), Change::Stage, Some(run));
    }

    fn want(&mut self, document: Value, change: Change, terminal: Option<String>) {
        self.reporter.set_wanted(Wanted {
            document,
            change,
            terminal,
        });
    }

    fn hear(&mut self, event: HubEvent) {
        match event {
            HubEvent::Connected {
                connection,
                reported,
                desired,
            } => {
                self.connection = connection;
                self.told = twin::ended(&reported);
                // Before the reporter compares: it must know everything that the twin may show.
                self.hand_over();
                self.reporter.handle_connected(&reported, now());
                self.connection_changed(true, None);
                self.send(Command::Desired(desired));
            }
            HubEvent::Disconnected { failure } => {
                self.reporter.handle_disconnected();
                self.connection_changed(false, Some(failure));
            }
            HubEvent::Method(call) => self.answer(call),
            HubEvent::Desired { version, patch } => {
                self.send(Command::DesiredPatch { version, patch });
            }
            HubEvent::TwinRead { reported, desired } => {
                self.reporter.handle_read(&reported);
                self.send(Command::Desired(desired));
            }
            HubEvent::TwinAnswer {
                rid,
                status,
                retry_after,
                version,
            } => {
                self.reporter
                    .handle_answer(&rid, status, retry_after, version, now());
            }
        }
    }

    /// Hands `command` over as soon as the updater has room. What it makes pointless does not wait.
    fn send(&mut self, command: Command) {
        let is_change = |waiting: &Command| matches!(waiting, Command::DesiredPatch { .. });
        match &command {
            Command::Hub(_) => {
                self.waiting
                    .retain(|waiting| !matches!(waiting, Command::Hub(_)));
            }
            Command::Desired(_) => {
                self.waiting.retain(|waiting| {
                    !is_change(waiting) && !matches!(waiting, Command::Desired(_))
                });
            }
            Command::DesiredPatch { .. } => {
                let changes = self.waiting.iter().filter(|waiting| is_change(waiting));
                if changes.count() >= MAX_CHANGES {
                    self.waiting.retain(|waiting| !is_change(waiting));
                    self.session.read_twin(self.connection);
                    return;
                }
            }
            _ => {}
        }
        self.waiting.push_back(command);
    }

    fn connection_changed(&mut self, connected: bool, error: Option<Failure>) {
        let since = if self.hub.connected == connected && self.hub.since.is_some() {
            self.hub.since
        } else {
            Some(jiff::Timestamp::now())
        };
        // The identity may have changed, and so may the way to the hub. What is not known stays as it was.
        let known = self.session.known();
        let before = std::mem::take(&mut self.hub);
        self.hub = HubStatus {
            connected,
            host: known.hub.or(before.host),
            device_id: known.device_id.or(before.device_id),
            transport: known.transport.map(str::to_owned),
            authentication: known
                .authentication
                .map(str::to_owned)
                .or(before.authentication),
            since,
            error,
        };
        self.send(Command::Hub(self.hub.clone()));
    }

    /// Answers a method from a task of its own, so that a slow answer delays nothing else. One that is too slow is
    /// the session's to give.
    fn answer(&self, call: MethodCall) {
        let (methods, commands) = (self.methods.clone(), self.commands.clone());
        let status = self.published.borrow().status.clone();
        tokio::spawn(async move {
            let MethodCall {
                name,
                payload,
                mut reply,
            } = call;
            let shown = name.escape_debug().to_string();
            tokio::select! {
                answer = ask(&methods, &commands, &status, &name, &payload) => {
                    match answer.status {
                        // Nothing that a person wants to read of.
                        200 if methods.only_asks(&name) => debug!("method {shown} was answered"),
                        _ => answered(format_args!("method {shown}"), &answer),
                    }
                    reply.send(answer);
                }
                () = reply.is_late() => {
                    warn!("method {shown} was not answered in time; its caller was told so");
                }
            }
        });
    }
}

async fn ask(
    methods: &Methods,
    commands: &mpsc::Sender<Command>,
    status: &Status,
    name: &str,
    payload: &[u8],
) -> Answer {
    let (reply, answer) = oneshot::channel();
    let command = match method::parse(methods, name, payload) {
        Err(answer) => return answer,
        Ok(method::Command::Status) => return Answer::status(status),
        Ok(method::Command::Update(request)) => Command::Install { request, reply },
        Ok(method::Command::Cancel) => Command::Cancel { reply },
        Ok(method::Command::Approve) => Command::Approve {
            id: None,
            now: false,
            reply,
        },
        Ok(method::Command::Rollback) => Command::Rollback { reply },
        Ok(method::Command::Reboot) => Command::Reboot { reply },
    };
    let sent = commands.send(command).await;
    match answer.await {
        Ok(answer) if sent.is_ok() => answer,
        _ => Answer::unavailable(&Failure::stopping()),
    }
}

fn without_progress(report: &UpdateReport) -> UpdateReport {
    UpdateReport {
        progress: Progress::default(),
        ..report.clone()
    }
}

/// The reporter counts on a monotonic clock.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

async fn sleep_until(deadline: Option<std::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}
