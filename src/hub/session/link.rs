//! One connection, from CONNECT to its end: subscriptions, twin reads, method calls, patches.
//!
//! Rules kept here: every connection has its own pump and buffers, so nothing of an earlier one (packets,
//! tokens, events) can leak into it; nothing here ever waits for the network, so packets go to the pump by
//! `try_send` only.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rumqttc::{Packet, Publish};
use serde_json::Value;
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinHandle},
    time::{sleep_until, timeout},
};
use tracing::{debug, info, warn};

use super::{
    Attempt, CLOCK_INTERVAL_STANDING, Command, HubEvent, Identity, MethodCall, SessionError, Task,
    calls::{self, ANSWER_LIMIT, Calls, MAX_OPEN},
    packets,
    pump::{self, Polled},
    silence::Silence,
};
use crate::{
    hub::{
        backoff::Backoff,
        credentials::check_clock,
        method::Answer,
        topics::{self, Incoming},
    },
    update::{events, failure::Failure},
};

/// How long the hub may take to answer a SUBSCRIBE, a twin read or a patch.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Shortest time between two reads of the twin on one connection, whatever seems to be missed.
const READ_INTERVAL: Duration = Duration::from_secs(1);

/// Largest answer to a method the hub takes.
const MAX_ANSWER: usize = 128 * 1024;

/// For the DISCONNECT to leave.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a new identity waits for a quiet moment at most.
const QUIET: Duration = Duration::from_secs(60);

/// A shorter life of a token would be renewed without a pause.
const LEAST_LIFE: Duration = Duration::from_millis(100);

/// Longest keep-alive: load balancers on the way cut idle connections after 4 minutes.
const MAX_KEEP_ALIVE: Duration = Duration::from_secs(230);

/// Packets between us and the pump. A flood of calls may be refused faster than the refusals leave.
const REQUESTS: usize = 512;

/// So much of it is not for refusals, whose callers beyond get none. More than can be open at a time fits, so
/// that it is full only when the network takes nothing.
const NO_REFUSALS: usize = 4 * MAX_OPEN;

/// How a connection ended.
pub(super) enum End {
    /// We were asked to stop.
    Shutdown,
    /// The token is about to expire, or the identity changed: connect again at once.
    Renew,
    /// Something failed.
    Failed(SessionError),
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Connecting,
    Subscribing,
    /// The twin is read for the first time.
    Reading,
    Up,
}

/// When to connect again without need.
#[derive(Debug, Clone, Copy)]
struct Renewal {
    /// At the first quiet moment from then on.
    at: Instant,
    /// Then in any case.
    force: Instant,
}

type Look = Result<Result<Identity, Failure>, JoinError>;

/// A twin read that was asked for and not answered.
struct Read {
    rid: String,
    deadline: Instant,
}

/// One connection.
pub(super) struct Link<'a> {
    task: &'a mut Task,
    attempt: &'a Attempt,
    requests: mpsc::Sender<Packet>,
    polled: mpsc::Receiver<Polled>,
    silence: Silence,
    phase: Phase,
    /// When CONNACK came.
    since: Option<Instant>,
    subscribe_deadline: Option<Instant>,
    read: Option<Read>,
    /// When to read the twin (again).
    read_at: Option<Instant>,
    read_backoff: Backoff,
    reads: u32,
    last_read: Option<Instant>,
    /// Version of the desired section that the consumer knows.
    desired: u64,
    /// Highest version that was pushed while a read was under way.
    pushed: u64,
    calls: Calls,
    /// Patches that were sent and not answered, and until when an answer may come.
    patches: Vec<(String, Instant)>,
    /// None with a certificate, until something else asks for it.
    renewal: Option<Renewal>,
    next_tick: Instant,
    /// When to look at the identity again.
    identity_at: Instant,
    /// A look under way.
    identity: Option<JoinHandle<Result<Identity, Failure>>>,
}

impl<'a> Link<'a> {
    /// Holds a connection until it ends. Also tells how long it stood, if it ever did.
    pub(super) async fn run(task: &'a mut Task, attempt: &'a Attempt) -> (End, Option<Duration>) {
        let (requests, request_receiver) = mpsc::channel(REQUESTS);
        let (polled_sender, polled) = mpsc::channel(8);
        let keep_alive = task.options.keep_alive;
        let keep_alive = keep_alive.clamp(Duration::from_secs(1), MAX_KEEP_ALIVE);
        let connect = packets::connect(
            attempt.credentials.device_id(),
            attempt.credentials.user_name(&task.options.client),
            attempt.password.as_ref(),
            keep_alive,
        );
        let endpoint = attempt.endpoint.clone();
        let pump = pump::run(endpoint, connect, request_receiver, polled_sender);
        let _pump = AbortOnDrop(tokio::spawn(pump));
        let now = Instant::now();
        let life = task.options.token_lifetime.max(LEAST_LIFE);
        let renew_after = task.jitter.between(life.mul_f64(0.80), life.mul_f64(0.85));
        let renewal = attempt.password.is_some().then(|| Renewal {
            at: now + renew_after,
            force: now + life.mul_f64(0.95),
        });
        let mut link = Link {
            requests,
            polled,
            silence: Silence::new(keep_alive),
            phase: Phase::Connecting,
            since: None,
            subscribe_deadline: None,
            read: None,
            read_at: None,
            read_backoff: Backoff::new(Duration::from_secs(2), Duration::from_secs(60)),
            reads: 0,
            last_read: None,
            desired: 0,
            pushed: 0,
            calls: Calls::default(),
            patches: Vec::new(),
            renewal,
            next_tick: now + CLOCK_INTERVAL_STANDING,
            identity_at: now + task.options.identity_check,
            identity: None,
            attempt,
            task,
        };
        let end = match link.hold().await {
            Ok(end) => end,
            Err(error) => End::Failed(error),
        };
        if let End::Shutdown | End::Renew = end {
            link.disconnect(matches!(end, End::Shutdown)).await;
        }
        (end, link.since.map(|since| since.elapsed()))
    }

    async fn hold(&mut self) -> Result<End, SessionError> {
        loop {
            let now = Instant::now();
            self.timers(now)?;
            if self.must_renew(now) {
                return Ok(End::Renew);
            }
            let wake = tokio::time::Instant::from_std(self.next_timer(now));
            tokio::select! {
                polled = self.polled.recv() => self.handle(polled)?,
                Some((rid, answer)) = self.calls.next(), if !self.calls.is_empty() => {
                    self.answer(&rid, &answer)?;
                }
                command = self.task.commands.recv() => match command {
                    Some(Command::Patch { connection, rid, body }) if self.is_up(connection) => {
                        self.send_patch(rid, &body)?;
                    }
                    Some(Command::Read { connection }) if self.is_up(connection) => {
                        // One that is under way was perhaps asked for too early.
                        self.read_soon(Instant::now());
                    }
                    Some(Command::Patch { .. } | Command::Read { .. }) => {}
                    Some(Command::Shutdown) | None => return Ok(End::Shutdown),
                },
                handed = self.task.events.hand_over() => if handed.is_err() {
                    return Ok(End::Shutdown);
                },
                identity = look(&mut self.identity), if self.identity.is_some() => {
                    self.identity = None;
                    self.handle_identity(identity);
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Whether this is `connection`, and the consumer knows its twin.
    fn is_up(&self, connection: u64) -> bool {
        connection == self.task.connection && self.phase == Phase::Up
    }

    fn send_patch(&mut self, rid: String, body: &Bytes) -> Result<(), SessionError> {
        let now = Instant::now();
        self.send(topics::twin_patch(&rid), body.to_vec())?;
        self.silence.asked(now);
        self.patches.retain(|(_, until)| *until > now);
        self.patches.push((rid, now + ANSWER_TIMEOUT));
        Ok(())
    }

    /// A changed identity is used from the next quiet moment on. One that cannot be read, perhaps half
    /// replaced, costs nothing: this connection stands.
    fn handle_identity(&mut self, identity: Look) {
        match identity {
            Ok(Ok(identity)) if identity.stamp != self.attempt.stamp => {
                info!(
                    "the device's identity changed; renewing the hub connection at a quiet moment"
                );
                let now = Instant::now();
                self.renew(now, now + QUIET);
            }
            Ok(Ok(_)) => {}
            Ok(Err(failure)) => debug!("the device's identity cannot be read now: {failure}"),
            Err(error) => debug!("the look at the device's identity failed: {error}"),
        }
    }

    /// Asks for a new connection, sooner than was planned if need be.
    fn renew(&mut self, at: Instant, force: Instant) {
        let planned = self.renewal.unwrap_or(Renewal { at, force });
        self.renewal = Some(Renewal {
            at: planned.at.min(at),
            force: planned.force.min(force),
        });
    }

    /// True when the token should be renewed and nothing would be lost by it, or it must be.
    fn must_renew(&self, now: Instant) -> bool {
        let quiet = self.calls.is_empty()
            && self.patches.iter().all(|(_, until)| *until <= now)
            && self.read.is_none()
            && self.polled.is_empty();
        let renew = self.phase == Phase::Up
            && self
                .renewal
                .is_some_and(|renewal| now >= renewal.force || (quiet && now >= renewal.at));
        if renew {
            debug!(quiet, "renewing the hub connection");
        }
        renew
    }

    fn next_timer(&self, now: Instant) -> Instant {
        let renewal = self.renewal.map(|renewal| match now < renewal.at {
            true => renewal.at,
            false => renewal.force,
        });
        let read = self.read.as_ref().map(|read| read.deadline);
        let silent = self.silence.deadline();
        let identity = self.identity.is_none().then_some(self.identity_at);
        [
            self.subscribe_deadline,
            read,
            self.read_at,
            silent,
            identity,
        ]
        .into_iter()
        .chain([renewal.filter(|_| self.phase == Phase::Up)])
        .flatten()
        .fold(self.next_tick, Instant::min)
    }

    fn timers(&mut self, now: Instant) -> Result<(), SessionError> {
        self.keep_without_clock(now);
        if self
            .subscribe_deadline
            .is_some_and(|deadline| deadline <= now)
        {
            return Err(SessionError::Subscribe);
        }
        if self.read.as_ref().is_some_and(|read| read.deadline <= now) {
            return Err(SessionError::TwinSilent);
        }
        let silent = self.silence.deadline();
        if silent.is_some_and(|deadline| deadline <= now) && self.polled.is_empty() {
            if self.silence.is_tested() {
                return Err(SessionError::Silent {
                    at: self.attempt.endpoint.authority(),
                    seconds: self.silence.patience().as_secs(),
                });
            }
            let ping = self.requests.try_send(Packet::PingReq);
            ping.map_err(|_| SessionError::Stuck)?;
            self.silence.tested(now);
        }
        if self.read_at.is_some_and(|at| at <= now) {
            self.start_read(now)?;
        }
        if self.next_tick <= now {
            self.next_tick = now + CLOCK_INTERVAL_STANDING;
            if self.task.clock.jumped((self.task.options.clock)(), now) {
                // A certificate does not depend on our clock.
                if let Some(Renewal { force, .. }) = self.renewal {
                    info!("the clock was set; renewing the hub connection at a quiet moment");
                    self.renew(now, force);
                }
            }
        }
        if self.identity_at <= now && self.identity.is_none() {
            self.identity_at = now + self.task.options.identity_check;
            let source = self.task.who.source();
            self.identity = Some(tokio::spawn(async move { source.read().await }));
        }
        Ok(())
    }

    /// Without the time there is no token and so no way back: the connection that stands is kept as long as the hub
    /// keeps it.
    fn keep_without_clock(&mut self, now: Instant) {
        if let Some(renewal) = &mut self.renewal
            && renewal.at <= now
            && check_clock((self.task.options.clock)()).is_err()
        {
            renewal.at = now + CLOCK_INTERVAL_STANDING;
            renewal.force = renewal.force.max(renewal.at + QUIET);
        }
    }

    fn handle(&mut self, polled: Option<Polled>) -> Result<(), SessionError> {
        let now = Instant::now();
        match &polled {
            Some(Polled::PingSent) => self.silence.tested(now),
            Some(Polled::ConnAck | Polled::SubAck(_) | Polled::Publish(_) | Polled::Heard) => {
                self.silence.heard();
            }
            Some(Polled::DisconnectSent | Polled::CredentialsRefused | Polled::Ended(_)) | None => {
            }
        }
        match polled {
            // The pump ends only by a panic without a last word.
            None => return Err(SessionError::Client),
            Some(Polled::Ended(error)) => return Err(error),
            Some(Polled::CredentialsRefused) => {
                return Err(SessionError::refused(
                    &self.attempt.credentials,
                    self.attempt.certificate,
                    (self.task.options.clock)(),
                ));
            }
            Some(Polled::ConnAck) => {
                self.since = Some(now);
                self.phase = Phase::Subscribing;
                self.subscribe_deadline = Some(now + ANSWER_TIMEOUT);
                let subscribe = packets::subscribe(&topics::FILTERS);
                let sent = self.requests.try_send(subscribe);
                sent.map_err(|_| SessionError::Stuck)?;
                self.silence.asked(now);
            }
            Some(Polled::SubAck(granted)) => {
                self.subscribe_deadline = None;
                if granted != topics::FILTERS.len() {
                    return Err(SessionError::Subscribe);
                }
                if self.phase == Phase::Subscribing {
                    self.phase = Phase::Reading;
                    self.start_read(now)?;
                }
            }
            Some(Polled::Publish(publish)) => self.handle_publish(publish, now)?,
            Some(Polled::Heard | Polled::PingSent | Polled::DisconnectSent) => {}
        }
        Ok(())
    }

    fn handle_publish(&mut self, publish: Publish, now: Instant) -> Result<(), SessionError> {
        match topics::parse(&publish.topic) {
            Some(Incoming::Method { name, rid }) => self.handle_method(name, rid, publish, now),
            Some(Incoming::TwinAnswer {
                rid,
                status,
                version,
                retry_after,
            }) => {
                if self.read.take_if(|read| read.rid == rid).is_some() {
                    return self.handle_read(status, retry_after, &publish.payload, now);
                }
                let asked = self.patches.iter().position(|(asked, _)| *asked == rid);
                if let Some(asked) = asked
                    && !self.task.events.is_full()
                {
                    self.patches.swap_remove(asked);
                    self.task.events.push(HubEvent::TwinAnswer {
                        rid,
                        status,
                        retry_after,
                        version,
                    });
                }
                Ok(())
            }
            Some(Incoming::Desired { version }) => {
                self.handle_desired(version, &publish.payload, now);
                Ok(())
            }
            None => {
                debug!("a message on a topic that is none of ours was ignored");
                Ok(())
            }
        }
    }

    fn handle_method(
        &mut self,
        name: String,
        rid: String,
        publish: Publish,
        now: Instant,
    ) -> Result<(), SessionError> {
        // While calls overlap without end there is no quiet moment for a renewal: this makes one.
        let must_close = self
            .renewal
            .is_some_and(|renewal| now >= renewal.at && now + ANSWER_LIMIT >= renewal.force);
        if self.calls.is_full() || self.task.events.is_full() || must_close {
            if self.requests.capacity() <= NO_REFUSALS {
                debug!("more calls than can be refused; one was dropped");
                return Ok(());
            }
            return self.answer(&rid, &calls::overload());
        }
        self.task.events.push(HubEvent::Method(MethodCall {
            name,
            payload: publish.payload,
            reply: self.calls.open(rid),
        }));
        Ok(())
    }

    fn answer(&self, rid: &str, answer: &Answer) -> Result<(), SessionError> {
        let mut status = answer.status;
        let mut body = answer.body.to_string();
        if body.len() > MAX_ANSWER {
            let too_long = Answer::internal("the answer is longer than the hub allows");
            (status, body) = (too_long.status, too_long.body.to_string());
        }
        self.send(topics::method_answer(status, rid), body.into_bytes())
    }

    /// Reads the twin (again), at once or soon after the last time.
    fn read_soon(&mut self, now: Instant) {
        let earliest = self.last_read.map_or(now, |last| last + READ_INTERVAL);
        self.read_at.get_or_insert(earliest.max(now));
    }

    fn start_read(&mut self, now: Instant) -> Result<(), SessionError> {
        self.reads += 1;
        self.last_read = Some(now);
        self.read_at = None;
        self.pushed = 0;
        let rid = format!("read-{:x}", self.reads);
        // The official SDKs send a space: not every server likes an empty body.
        self.send(topics::twin_read(&rid), b" ".to_vec())?;
        self.silence.asked(now);
        self.read = Some(Read {
            rid,
            deadline: now + ANSWER_TIMEOUT,
        });
        Ok(())
    }

    fn handle_read(
        &mut self,
        status: u16,
        retry_after: Option<Duration>,
        payload: &[u8],
        now: Instant,
    ) -> Result<(), SessionError> {
        match status {
            200..=299 => {}
            408 | 429 | 500.. => {
                let pause = self.read_backoff.pause(&mut self.task.jitter);
                self.read_at = Some(now + pause.max(retry_after.unwrap_or_default()));
                return Ok(());
            }
            _ => {
                self.unread(&SessionError::TwinRefused(status), now);
                return Ok(());
            }
        }
        let mut twin: Value = match serde_json::from_slice(payload) {
            Ok(twin) => twin,
            Err(error) => {
                self.unread(&SessionError::TwinMalformed(error), now);
                return Ok(());
            }
        };
        let mut section = |name: &str| match twin.get_mut(name).map(Value::take) {
            Some(section @ Value::Object(_)) => section,
            _ => Value::Object(serde_json::Map::new()),
        };
        let (reported, desired) = (section("reported"), section("desired"));
        self.desired = desired["$version"].as_u64().unwrap_or_default();
        if self.desired < self.pushed {
            // A change overtook this answer.
            self.read_at = Some(now + self.read_backoff.pause(&mut self.task.jitter));
        } else {
            self.read_backoff.reset();
        }
        if self.phase == Phase::Up {
            if self.task.events.is_full() {
                self.read_at = Some(now + ANSWER_TIMEOUT);
            } else {
                self.task
                    .events
                    .push(HubEvent::TwinRead { reported, desired });
            }
            return Ok(());
        }
        self.phase = Phase::Up;
        let connection = self.task.connection;
        if self.task.said.take().is_some() || connection == 1 {
            let credentials = &self.attempt.credentials;
            info!(
                message_id = events::HUB_CONNECTED,
                "connected to {} as {} ({}, {})",
                credentials.hub(),
                credentials.device_id(),
                self.attempt.endpoint.via.name(),
                credentials.secret().kind()
            );
        }
        self.task.events.push(HubEvent::Connected {
            connection,
            reported,
            desired,
        });
        Ok(())
    }

    /// The twin cannot be had, and a new connection would not change that: this one goes on, so that methods
    /// still work, and asks again by and by.
    fn unread(&mut self, error: &SessionError, now: Instant) {
        let pause = self.read_backoff.pause(&mut self.task.jitter);
        self.read_at = Some(now + pause);
        let failure = Failure::from(error);
        if self.phase == Phase::Up {
            debug!("{failure}; reading it again in {} s", pause.as_secs());
            return;
        }
        if self.task.say_unread(&failure) {
            warn!(
                message_id = events::HUB_LOST,
                fwupdated_error_code = failure.code,
                "connected, but nothing can be reported: {failure}; reading the twin again by and by"
            );
        }
    }

    /// Passes a change on if it is the next one; reads the twin again if one was missed.
    fn handle_desired(&mut self, version: Option<u64>, payload: &[u8], now: Instant) {
        let change: Option<Value> = serde_json::from_slice(payload).ok();
        let version = version.or_else(|| change.as_ref()?.get("$version")?.as_u64());
        if self.phase != Phase::Up || self.read.is_some() {
            self.pushed = self.pushed.max(version.unwrap_or_default());
            return;
        }
        match (version, change) {
            (Some(version), _) if version <= self.desired => {}
            (Some(version), Some(patch))
                if version == self.desired + 1 && !self.task.events.is_full() =>
            {
                self.desired = version;
                self.task.events.push(HubEvent::Desired { version, patch });
            }
            _ => {
                debug!("a change of the desired properties was missed; reading the twin");
                self.read_soon(now);
            }
        }
    }

    /// Hands a message to the pump. It never waits: a full channel means that the network takes
    /// nothing.
    fn send(&self, topic: String, payload: Vec<u8>) -> Result<(), SessionError> {
        let sent = self.requests.try_send(packets::publish(topic, payload));
        sent.map_err(|_| SessionError::Stuck)
    }

    /// A clean end: what is open is answered, then DISCONNECT, bounded in time.
    async fn disconnect(&mut self, shutting_down: bool) {
        if self.since.is_none() {
            return;
        }
        if shutting_down {
            self.answer_open_methods().await;
        }
        let leave = async {
            while let Some(polled) = self.polled.recv().await {
                if let Polled::DisconnectSent | Polled::Ended(_) = polled {
                    break;
                }
            }
        };
        let asked = self.requests.try_send(Packet::Disconnect).is_ok();
        if !asked || timeout(DISCONNECT_TIMEOUT, leave).await.is_err() {
            debug!("the DISCONNECT did not leave in time");
        }
    }

    /// Sends the answers that are there or come within a moment, and 503 for the rest: who would answer
    /// may be stopping as well.
    async fn answer_open_methods(&mut self) {
        let stopping = calls::stopping();
        for event in std::mem::take(&mut self.task.events.waiting) {
            if let HubEvent::Method(call) = event {
                call.reply.send(stopping.clone());
            }
        }
        for (rid, answer) in self.calls.close(&stopping).await {
            // A full channel means that the network takes nothing: there is nobody to answer.
            let _ = self.answer(&rid, &answer);
        }
    }
}

/// The outcome of the look at the identity that is under way.
async fn look(look: &mut Option<JoinHandle<Result<Identity, Failure>>>) -> Look {
    match look {
        Some(look) => look.await,
        None => std::future::pending().await,
    }
}

/// Ends a task with the value.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
