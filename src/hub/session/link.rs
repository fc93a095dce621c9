//! One connection, from CONNECT to its end: the only code that uses `rumqttc`.
//!
//! Rules kept here: every connection has its own event loop, so nothing of an earlier one (packets,
//! tokens, buffered events) can leak into it; the event loop is polled by a task of its own and never
//! cancelled, because a cancelled poll can lose a packet; requests go in by `try_*` only; everything is
//! sent with QoS 0, as the hub's answers by request id say more than a PUBACK would.

use std::{
    collections::HashSet,
    future::Future,
    io,
    pin::Pin,
    time::{Duration, Instant},
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, EventLoop, MqttOptions, NetworkOptions,
    Outgoing, Packet, Publish, QoS, StateError, SubscribeFilter, SubscribeReasonCode,
    TlsConfiguration, Transport, mqttbytes,
};
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{sleep_until, timeout, timeout_at},
};
use tracing::{debug, info};

use super::{
    CLOCK_INTERVAL_STANDING, Command, HubEvent, MethodCall, MethodReply, SessionError, Task,
    error::Cause,
};
use crate::{
    hub::{
        backoff::Backoff,
        credentials::SasToken,
        method::Answer,
        topics::{self, Incoming},
    },
    update::failure::{Class, Failure},
};

/// Largest packet in either direction: the hub's own limit is 256 KiB.
const MAX_PACKET: usize = 300_000;

/// For name resolution, TCP, TLS and CONNACK together, and for each flush.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long the hub may take to answer a SUBSCRIBE or a twin read.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Method calls open at a time; more are answered 503.
const MAX_METHODS: usize = 32;

/// When a method that nobody answered is answered for the consumer: before the usual caller gives up.
const METHOD_TIMEOUT: Duration = Duration::from_secs(25);

/// Largest answer to a method the hub takes.
const MAX_ANSWER: usize = 128 * 1024;

/// How long open method calls may still be answered by the consumer when we stop.
const STOPPING: Duration = Duration::from_millis(500);

/// For the DISCONNECT to leave.
const DISCONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Requests between us and the event loop. More than can be open at a time, so that it is full only when
/// the network takes nothing.
const REQUESTS: usize = 4 * MAX_METHODS;

/// How a connection ended.
pub(super) enum End {
    /// We were asked to stop.
    Shutdown,
    /// The token is about to expire: connect again at once.
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

/// What the poller tells.
enum Polled {
    ConnAck,
    SubAck(bool),
    Publish(Publish),
    DisconnectSent,
    Ended(ConnectionError),
}

type OpenMethod = Pin<Box<dyn Future<Output = (String, Answer)> + Send>>;

/// A twin read that was asked for and not answered.
struct Read {
    rid: String,
    deadline: Instant,
}

/// One connection.
pub(super) struct Link<'a> {
    task: &'a mut Task,
    client: AsyncClient,
    polled: mpsc::Receiver<Polled>,
    phase: Phase,
    /// When CONNACK came.
    since: Option<Instant>,
    subscribe_deadline: Option<Instant>,
    read: Option<Read>,
    /// When to read the twin (again).
    read_at: Option<Instant>,
    read_backoff: Backoff,
    reads: u32,
    /// Version of the desired section that the consumer knows.
    desired: u64,
    /// Highest version that was pushed while a read was under way.
    pushed: u64,
    methods: FuturesUnordered<OpenMethod>,
    /// Their request ids.
    open: HashSet<String>,
    /// Patches that were sent and not answered.
    patches: HashSet<String>,
    renew_at: Instant,
    force_at: Instant,
    next_tick: Instant,
}

impl<'a> Link<'a> {
    /// Holds a connection until it ends. Also tells how long it stood, if it ever did.
    pub(super) async fn run(task: &'a mut Task, token: &SasToken) -> (End, Option<Duration>) {
        let (client, event_loop) = AsyncClient::new(options(task, token), REQUESTS);
        let (polled_sender, polled) = mpsc::channel(8);
        let _poller = AbortOnDrop(tokio::spawn(poll(event_loop, polled_sender)));
        let now = Instant::now();
        let life = task.options.token_lifetime.max(Duration::from_secs(1));
        let renew_after = task.jitter.between(life.mul_f64(0.80), life.mul_f64(0.85));
        let mut link = Link {
            client,
            polled,
            phase: Phase::Connecting,
            since: None,
            subscribe_deadline: None,
            read: None,
            read_at: None,
            read_backoff: Backoff::new(Duration::from_secs(2), Duration::from_secs(60)),
            reads: 0,
            desired: 0,
            pushed: 0,
            methods: FuturesUnordered::new(),
            open: HashSet::new(),
            patches: HashSet::new(),
            renew_at: now + renew_after,
            force_at: now + life.mul_f64(0.95),
            next_tick: now + CLOCK_INTERVAL_STANDING,
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
                Some((rid, answer)) = self.methods.next(), if !self.methods.is_empty() => {
                    self.open.remove(&rid);
                    self.answer(&rid, &answer)?;
                }
                command = self.task.commands.recv() => match command {
                    Some(Command::Patch { connection, rid, body }) => {
                        if connection == self.task.connection && self.phase == Phase::Up {
                            self.send(topics::twin_patch(&rid), body.to_vec())?;
                            self.patches.insert(rid);
                        }
                    }
                    Some(Command::Shutdown) | None => return Ok(End::Shutdown),
                },
                handed = self.task.events.hand_over() => if handed.is_err() {
                    return Ok(End::Shutdown);
                },
                () = sleep_until(wake) => {}
            }
        }
    }

    /// True when the token should be renewed and nothing would be lost by it, or it must be.
    fn must_renew(&self, now: Instant) -> bool {
        let quiet = self.methods.is_empty() && self.patches.is_empty() && self.read.is_none();
        let renew =
            self.phase == Phase::Up && now >= self.renew_at && (quiet || now >= self.force_at);
        if renew {
            debug!(
                quiet,
                "renewing the hub connection before its token expires"
            );
        }
        renew
    }

    fn next_timer(&self, now: Instant) -> Instant {
        let renewal = if now < self.renew_at {
            self.renew_at
        } else {
            self.force_at
        };
        let read = self.read.as_ref().map(|read| read.deadline);
        [self.subscribe_deadline, read, self.read_at]
            .into_iter()
            .flatten()
            .chain((self.phase == Phase::Up).then_some(renewal))
            .fold(self.next_tick, Instant::min)
    }

    fn timers(&mut self, now: Instant) -> Result<(), SessionError> {
        if self
            .subscribe_deadline
            .is_some_and(|deadline| deadline <= now)
        {
            return Err(SessionError::Subscribe);
        }
        if self.read.as_ref().is_some_and(|read| read.deadline <= now) {
            return Err(SessionError::TwinSilent);
        }
        if self.read_at.is_some_and(|at| at <= now) {
            self.start_read(now)?;
        }
        if self.next_tick <= now {
            self.next_tick = now + CLOCK_INTERVAL_STANDING;
            if self.task.clock.jumped((self.task.options.clock)(), now) {
                info!("the clock was set; renewing the hub connection at a quiet moment");
                self.renew_at = now;
            }
        }
        Ok(())
    }

    fn handle(&mut self, polled: Option<Polled>) -> Result<(), SessionError> {
        let now = Instant::now();
        match polled {
            // The poller ends only by a panic without a last word.
            None => return Err(SessionError::Client),
            Some(Polled::Ended(error)) => return Err(self.classify(error)),
            Some(Polled::ConnAck) => {
                self.since = Some(now);
                self.phase = Phase::Subscribing;
                self.subscribe_deadline = Some(now + ANSWER_TIMEOUT);
                let filters = topics::FILTERS
                    .map(|filter| SubscribeFilter::new(filter.to_owned(), QoS::AtMostOnce));
                let sent = self.client.try_subscribe_many(filters);
                sent.map_err(|_| SessionError::Stuck)?;
            }
            Some(Polled::SubAck(granted)) => {
                self.subscribe_deadline = None;
                if !granted {
                    return Err(SessionError::Subscribe);
                }
                if self.phase == Phase::Subscribing {
                    self.phase = Phase::Reading;
                    self.start_read(now)?;
                }
            }
            Some(Polled::Publish(publish)) => self.handle_publish(publish, now)?,
            Some(Polled::DisconnectSent) => {}
        }
        Ok(())
    }

    fn handle_publish(&mut self, publish: Publish, now: Instant) -> Result<(), SessionError> {
        match topics::parse(&publish.topic) {
            Some(Incoming::Method { name, rid }) => self.handle_method(name, rid, publish),
            Some(Incoming::TwinAnswer {
                rid,
                status,
                version,
                retry_after,
            }) => {
                if self.read.take_if(|read| read.rid == rid).is_some() {
                    return self.handle_read(status, retry_after, &publish.payload, now);
                }
                if self.patches.remove(&rid) && !self.task.events.is_full() {
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
    ) -> Result<(), SessionError> {
        if self.methods.len() >= MAX_METHODS || self.task.events.is_full() {
            let message = "too many method calls are open on this device; try again later";
            let failure = Failure::new("method-overload", Class::Retry, message);
            return self.answer(&rid, &Answer::unavailable(&failure));
        }
        let (reply, answer) = oneshot::channel();
        self.open.insert(rid.clone());
        self.methods.push(Box::pin(async move {
            let answer = match timeout(METHOD_TIMEOUT, answer).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Answer::internal("the call was dropped"),
                Err(_) => Answer::internal("it took too long"),
            };
            (rid, answer)
        }));
        self.task.events.push(HubEvent::Method(MethodCall {
            name,
            payload: publish.payload,
            reply: MethodReply(reply),
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

    fn start_read(&mut self, now: Instant) -> Result<(), SessionError> {
        self.reads += 1;
        self.read_at = None;
        self.pushed = 0;
        let rid = format!("read-{:x}", self.reads);
        // The official SDKs send a space: not every server likes an empty body.
        self.send(topics::twin_read(&rid), b" ".to_vec())?;
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
            _ => return Err(SessionError::TwinRefused(status)),
        }
        let mut twin: Value =
            serde_json::from_slice(payload).map_err(SessionError::TwinMalformed)?;
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
                self.task.events.push(HubEvent::DesiredRead { desired });
            }
            return Ok(());
        }
        self.phase = Phase::Up;
        let connection = self.task.connection;
        if self.task.said.take().is_some() || connection == 1 {
            info!(
                "connected to {} as {}",
                self.task.options.credentials.hub(),
                self.task.options.credentials.device_id()
            );
        }
        self.task.events.push(HubEvent::Connected {
            connection,
            reported,
            desired,
        });
        Ok(())
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
                self.read_at.get_or_insert(now);
            }
        }
    }

    /// Hands a message to the poller. It never waits: a full channel means that the network takes
    /// nothing.
    fn send(&self, topic: String, payload: Vec<u8>) -> Result<(), SessionError> {
        let sent = self
            .client
            .try_publish(topic, QoS::AtMostOnce, false, payload);
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
        let asked = self.client.try_disconnect().is_ok();
        if !asked || timeout(DISCONNECT_TIMEOUT, leave).await.is_err() {
            debug!("the DISCONNECT did not leave in time");
        }
    }

    /// Sends the answers that are there or come within a moment, and 503 for the rest: who would answer
    /// may be stopping as well.
    async fn answer_open_methods(&mut self) {
        let message = "the daemon is stopping; try again when it runs";
        let stopping = Failure::new("stopping", Class::Wait, message);
        let stopping = Answer::unavailable(&stopping);
        for event in std::mem::take(&mut self.task.events.waiting) {
            if let HubEvent::Method(call) = event {
                call.reply.send(stopping.clone());
            }
        }
        let end = tokio::time::Instant::now() + STOPPING;
        while let Ok(Some((rid, answer))) = timeout_at(end, self.methods.next()).await {
            self.open.remove(&rid);
            // A full channel means that the network takes nothing: there is nobody to answer.
            let _ = self.answer(&rid, &answer);
        }
        for rid in std::mem::take(&mut self.open) {
            let _ = self.answer(&rid, &stopping);
        }
    }

    fn classify(&self, error: ConnectionError) -> SessionError {
        let options = &self.task.options;
        let at = format!("{}:{}", options.host, options.port);
        if self.since.is_some() {
            let source = cause(error);
            return SessionError::Lost { at, source };
        }
        use ConnectReturnCode as Code;
        match error {
            ConnectionError::ConnectionRefused(Code::BadUserNamePassword | Code::NotAuthorized) => {
                SessionError::CredentialsRefused {
                    hub: options.credentials.hub().to_owned(),
                    device: options.credentials.device_id().to_owned(),
                }
            }
            ConnectionError::ConnectionRefused(Code::ServiceUnavailable) => {
                SessionError::Unavailable
            }
            ConnectionError::ConnectionRefused(code) => SessionError::Refused(format!("{code:?}")),
            ConnectionError::NetworkTimeout | ConnectionError::FlushTimeout => {
                SessionError::Timeout { at }
            }
            error if is_tls(&error) => SessionError::Tls {
                at,
                source: cause(error),
            },
            ConnectionError::Io(source) => SessionError::Unreachable {
                at,
                source: cause(ConnectionError::Io(source)),
            },
            error => SessionError::ClosedEarly {
                at,
                source: cause(error),
            },
        }
    }
}

/// Whether TLS itself failed, wherever in the handshake the library noticed.
fn is_tls(error: &ConnectionError) -> bool {
    matches!(error, ConnectionError::Tls(tls) if !matches!(tls, rumqttc::TlsError::Io(_)))
        || io_error(error)
            .and_then(io::Error::get_ref)
            .is_some_and(|inner| inner.is::<rustls::Error>())
}

/// The input or output that failed, wherever the library wrapped it.
fn io_error(error: &ConnectionError) -> Option<&io::Error> {
    match error {
        ConnectionError::Tls(rumqttc::TlsError::Io(io))
        | ConnectionError::Io(io)
        | ConnectionError::MqttState(
            StateError::Io(io) | StateError::Deserialization(mqttbytes::Error::Io(io)),
        ) => Some(io),
        _ => None,
    }
}

/// The reason in words for people: the libraries' own name their layers and link to their manuals.
fn cause(error: ConnectionError) -> Cause {
    let words = match io_error(&error) {
        Some(io) if io.kind() == io::ErrorKind::UnexpectedEof => {
            "the other side closed it without a word".to_owned()
        }
        Some(io) => io.to_string(),
        None => return error.into(),
    };
    words.into()
}

/// The MQTT options of one connection.
fn options(task: &Task, token: &SasToken) -> MqttOptions {
    let options = &task.options;
    let credentials = &options.credentials;
    let mut mqtt = MqttOptions::new(credentials.device_id(), &options.host, options.port);
    let keep_alive = Duration::from_secs(options.keep_alive.as_secs().clamp(1, 230));
    mqtt.set_transport(Transport::tls_with_config(TlsConfiguration::Rustls(
        options.tls.clone(),
    )))
    .set_credentials(credentials.user_name(&options.client), token.secret())
    .set_clean_session(false)
    .set_keep_alive(keep_alive)
    .set_max_packet_size(MAX_PACKET, MAX_PACKET);
    mqtt
}

/// Polls `event_loop` to the end of the connection. Never cancelled but to drop the connection.
async fn poll(mut event_loop: EventLoop, polled: mpsc::Sender<Polled>) {
    let mut network = NetworkOptions::new();
    network.set_connection_timeout(CONNECT_TIMEOUT.as_secs());
    network.set_tcp_nodelay(true);
    event_loop.set_network_options(network);
    loop {
        use rumqttc::Event::{Incoming, Outgoing as Sent};
        let tell = match event_loop.poll().await {
            Ok(Incoming(Packet::ConnAck(_))) => Polled::ConnAck,
            Ok(Incoming(Packet::SubAck(ack))) => {
                let granted = |code: &_| matches!(code, SubscribeReasonCode::Success(_));
                let all = ack.return_codes.len() == topics::FILTERS.len();
                Polled::SubAck(all && ack.return_codes.iter().all(granted))
            }
            Ok(Incoming(Packet::Publish(publish))) => Polled::Publish(publish),
            Ok(Sent(Outgoing::Disconnect)) => Polled::DisconnectSent,
            Ok(_) => continue,
            Err(error) => Polled::Ended(error),
        };
        let last = matches!(tell, Polled::Ended(_));
        if polled.send(tell).await.is_err() || last {
            return;
        }
    }
}

/// Ends a task with the value.
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
