//! The MQTT connection to the hub: the only user of `rumqttc`, of which it uses the packets.
//!
//! ```text
//! IdentitySource --> who --> link (one connection: subscriptions, twin, methods) <--> pump (the socket)
//!                     '----> register (the provisioning service)                        '-- dial, wire
//! ```
//!
//! [`Session::spawn`] starts a task that connects, stays connected and tells what happens by
//! [`HubEvent`]s. It guarantees:
//! - Nothing the hub does ends it: whatever fails, it tries again, with full jitter, up to the longest
//!   pause; refused credentials take the longest step, with a fresh token, because keys get rotated and
//!   clocks get set. It ends by [`SessionHandle::shutdown`] or when its receiver is dropped.
//! - No token is made before the clock is set, and a new one is made before every attempt.
//! - The identity is asked for before every attempt, so that a rotated key or a renewed certificate counts
//!   without a restart; one that changes while connected leads to a new connection at a quiet moment.
//! - [`HubEvent::Connected`] comes only after the subscriptions were granted and the twin was read.
//! - Every method call is answered within a second, by the consumer or for it, but for one that crosses the end
//!   of its connection: that is lost, as MQTT has no way to hand it over.
//! - A twin that cannot be read costs the reports, not the methods.
//! - A connection on which nothing comes any more is noticed and made again.
//! - Its memory is bounded, however slow the consumer is.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};
use tracing::{debug, info, warn};

use super::{
    backoff::{Backoff, Jitter},
    credentials::{Credentials, SasToken, check_clock},
    method::Answer,
    provisioning::{Enrollment, LONGEST},
};
use crate::{
    config::{Config, HubConfig},
    update::{
        events,
        failure::{Class, Failure},
    },
};

mod calls;
mod clock;
mod contest;
mod dial;
mod error;
mod identity;
mod link;
mod packets;
mod probe;
mod proxy;
mod pump;
mod register;
mod route;
mod silence;
mod who;
mod wire;

pub use error::SessionError;
pub use identity::{
    FixedIdentity, Identity, IdentitySource, Known, ProxyAuthorization, Stamp, Validity,
};
pub use probe::{Probe, ProbeFailure, probe};
pub use route::Route;

use clock::ClockWatch;
use contest::Contest;
use link::{End, Link};
use route::{Endpoint, Via};
use who::Who;

/// First pause after a failed attempt.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// A connection that stood this long counts as a good one: the next pause is short again.
const STANDING: Duration = Duration::from_secs(60);

/// How often the clock is looked at while it is wrong or may have been set.
const CLOCK_INTERVAL: Duration = Duration::from_secs(2);

/// How often while a connection stands: then nothing waits for it, and a new token is due within minutes at
/// the earliest.
const CLOCK_INTERVAL_STANDING: Duration = Duration::from_secs(30);

/// How often the identity is looked at while there is no connection.
const IDENTITY_INTERVAL: Duration = Duration::from_secs(10);

/// How often it is looked at while there is one.
const IDENTITY_CHECK: Duration = Duration::from_secs(600);

/// How long a registration may take while a hub is known: it waits meanwhile, and may be the right one still.
const BESIDE_A_HUB: Duration = Duration::from_secs(60);

/// How often a reason that stays the same is said in the log.
const REMIND: Duration = Duration::from_secs(6 * 3600);

/// Events that wait for a slow consumer. Method calls beyond are answered 503; twin answers and desired
/// changes beyond are dropped and made good for by reading the twin again.
const MAX_WAITING_EVENTS: usize = 128;

/// Longest time [`SessionHandle::shutdown`] takes.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// How to reach the hub.
#[derive(Clone)]
pub struct SessionOptions {
    /// Who we are.
    pub identity: Arc<dyn IdentitySource>,
    /// The way there.
    pub route: Route,
    /// Keep-alive, 1 s to 230 s.
    pub keep_alive: Duration,
    /// Life of a SAS token.
    pub token_lifetime: Duration,
    /// Longest pause between two attempts.
    pub reconnect_max: Duration,
    /// Longest random pause before the first attempt, so that a fleet does not start in step.
    pub start_delay: Duration,
    /// How often the identity is looked at while connected.
    pub identity_check: Duration,
    /// This program and its version, for the hub's operator.
    pub client: String,
    /// The wall clock.
    pub clock: fn() -> Timestamp,
}

impl SessionOptions {
    /// The options that `config` gives, with an identity that is asked for before each attempt.
    #[must_use]
    pub fn with_identity(identity: Arc<dyn IdentitySource>, config: &Config) -> Self {
        let route = Route::new(&config.hub, config.provisioning.as_ref());
        Self::build(identity, route, &config.hub)
    }

    /// The options that `config` gives, for an identity that never changes.
    #[must_use]
    pub fn new(
        credentials: Credentials,
        tls: Arc<rustls::ClientConfig>,
        config: &HubConfig,
    ) -> Self {
        let identity = Arc::new(FixedIdentity::new(credentials, tls));
        Self::build(identity, Route::new(config, None), config)
    }

    fn build(identity: Arc<dyn IdentitySource>, route: Route, config: &HubConfig) -> Self {
        Self {
            identity,
            route,
            keep_alive: config.keep_alive,
            token_lifetime: config.token_lifetime,
            reconnect_max: config.reconnect_max,
            start_delay: Duration::from_secs(1),
            identity_check: IDENTITY_CHECK,
            client: concat!("fwupdated/", env!("CARGO_PKG_VERSION")).to_owned(),
            clock: Timestamp::now,
        }
    }
}

/// What happens on the connection.
#[derive(Debug)]
pub enum HubEvent {
    /// The connection stands, and this is the twin. Without a [`HubEvent::Disconnected`] before, the
    /// connection was renewed (its token was about to expire): what was in flight is lost all the same.
    Connected {
        /// Names the connection in [`SessionHandle::patch`].
        connection: u64,
        /// The reported section with its `$version`.
        reported: Value,
        /// The desired section with its `$version`.
        desired: Value,
    },
    /// There is no connection. Comes when one ends and at each failed attempt.
    Disconnected {
        /// Why.
        failure: Failure,
    },
    /// A direct method was called. If it is not answered within 950 ms, its caller is told so.
    Method(MethodCall),
    /// The desired section changed; versions come without gaps.
    Desired {
        /// Its version now.
        version: u64,
        /// The change.
        patch: Value,
    },
    /// The twin was read again: a change of the desired section was missed, or [`SessionHandle::read_twin`] asked
    /// for it.
    TwinRead {
        /// The reported section with its `$version`.
        reported: Value,
        /// The desired section with its `$version`.
        desired: Value,
    },
    /// The hub answered a patch.
    TwinAnswer {
        /// Which.
        rid: String,
        /// HTTP-like status.
        status: u16,
        /// When to try again, if the hub says.
        retry_after: Option<Duration>,
        /// The new version of the reported section, if it was taken.
        version: Option<u64>,
    },
}

/// A direct method that was called.
#[derive(Debug)]
pub struct MethodCall {
    /// Its name.
    pub name: String,
    /// What the caller sent, as it came.
    pub payload: Bytes,
    /// Where the answer goes.
    pub reply: MethodReply,
}

/// The way back to a method's caller. Dropped without an answer, the caller gets 500.
#[derive(Debug)]
pub struct MethodReply(oneshot::Sender<Answer>);

impl MethodReply {
    /// Answers the call. False when it is too late, or the connection it came by has ended.
    pub fn send(self, answer: Answer) -> bool {
        self.0.send(answer).is_ok()
    }

    /// Returns when nobody waits for the answer any more: the time is over, or the connection it came by.
    pub async fn is_late(&mut self) {
        self.0.closed().await;
    }
}

enum Command {
    Patch {
        connection: u64,
        rid: String,
        body: Bytes,
    },
    Read {
        connection: u64,
    },
    Shutdown,
}

/// Talks to the session's task. Never waits for the network but in [`SessionHandle::shutdown`].
#[derive(Debug)]
pub struct SessionHandle {
    commands: mpsc::Sender<Command>,
    known: watch::Receiver<Known>,
    task: JoinHandle<()>,
}

impl SessionHandle {
    /// Who the session is, as far as it knows, and how it connects. New with each event.
    #[must_use]
    pub fn known(&self) -> Known {
        self.known.borrow().clone()
    }

    /// Sends a patch of the reported section by `connection`, the one of the last
    /// [`HubEvent::Connected`]; by another one it is not sent, as its sender did not know the twin yet.
    /// The answer comes as [`HubEvent::TwinAnswer`] with the same `rid` (letters and digits), or never.
    pub fn patch(&self, connection: u64, rid: &str, body: &Value) {
        let patch = Command::Patch {
            connection,
            rid: rid.to_owned(),
            body: Bytes::from(body.to_string()),
        };
        self.send(patch);
    }

    /// Reads the twin by `connection`, as [`SessionHandle::patch`] does. It comes as [`HubEvent::TwinRead`], or never.
    pub fn read_twin(&self, connection: u64) {
        self.send(Command::Read { connection });
    }

    fn send(&self, command: Command) {
        if self.commands.try_send(command).is_err() {
            debug!("the session's task is busy or gone; a request was dropped");
        }
    }

    /// Answers open method calls with 503, says DISCONNECT and ends the task, within 5 s.
    pub async fn shutdown(mut self) {
        let end = async {
            // An error means that the task has ended already.
            let _ = self.commands.send(Command::Shutdown).await;
            let _ = (&mut self.task).await;
        };
        if timeout(SHUTDOWN, end).await.is_err() {
            warn!("the hub connection did not close within {SHUTDOWN:?}; dropping it");
            self.task.abort();
        }
    }
}

/// Starts sessions.
#[derive(Debug)]
pub struct Session;

impl Session {
    /// Starts the task that keeps a connection. Must be called within a tokio runtime.
    ///
    /// The consumer must go on receiving: the task ends when the receiver is dropped.
    #[must_use]
    pub fn spawn(options: SessionOptions) -> (SessionHandle, mpsc::Receiver<HubEvent>) {
        let (commands, command_receiver) = mpsc::channel(32);
        let (events, event_receiver) = mpsc::channel(16);
        let (known_sender, known) = watch::channel(Known::default());
        let task = Task {
            who: Who::new(
                Arc::clone(&options.identity),
                known_sender,
                FIRST_PAUSE,
                options.reconnect_max,
            ),
            via: options.route.first(),
            backoff: Backoff::new(FIRST_PAUSE, options.reconnect_max),
            jitter: random_jitter(),
            clock: ClockWatch::new((options.clock)(), Instant::now()),
            options,
            commands: command_receiver,
            events: Events {
                sender: events,
                waiting: VecDeque::new(),
            },
            connection: 0,
            unreached: 0,
            contest: Contest::default(),
            said: None,
        };
        let task = tokio::spawn(task.run());
        let handle = SessionHandle {
            commands,
            known,
            task,
        };
        (handle, event_receiver)
    }
}

/// Jitter that differs between devices and starts.
#[must_use]
pub fn random_jitter() -> Jitter {
    use std::hash::{BuildHasher, RandomState};
    Jitter::seeded(RandomState::new().hash_one(std::process::id()))
}

/// The events on their way to the consumer.
struct Events {
    sender: mpsc::Sender<HubEvent>,
    waiting: VecDeque<HubEvent>,
}

impl Events {
    fn is_full(&self) -> bool {
        self.waiting.len() >= MAX_WAITING_EVENTS
    }

    fn push(&mut self, event: HubEvent) {
        self.waiting.push_back(event);
    }

    /// The connection is gone, and with it the sense of everything that was told about it.
    fn disconnected(&mut self, failure: Failure) {
        self.waiting.clear();
        self.push(HubEvent::Disconnected { failure });
    }

    /// Hands over one waiting event; pending for ever when there is none. Can be cancelled.
    async fn hand_over(&mut self) -> Result<(), ConsumerGone> {
        if self.waiting.is_empty() {
            self.sender.closed().await;
            return Err(ConsumerGone);
        }
        let permit = self.sender.reserve().await.map_err(|_| ConsumerGone)?;
        if let Some(event) = self.waiting.pop_front() {
            permit.send(event);
        }
        Ok(())
    }
}

/// Nobody listens any more.
struct ConsumerGone;

struct Task {
    options: SessionOptions,
    who: Who,
    /// The way that the next attempt takes.
    via: Via,
    commands: mpsc::Receiver<Command>,
    events: Events,
    backoff: Backoff,
    jitter: Jitter,
    clock: ClockWatch,
    connection: u64,
    /// Attempts that led nowhere, so that the next begins with another address.
    unreached: usize,
    contest: Contest,
    /// The code of the failure that was last said in the log, and when.
    said: Option<(String, Instant)>,
}

/// Whether the session goes on.
enum Next {
    Attempt,
    Stop,
}

/// What ends a pause before its time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Nothing,
    /// The clock was set or the identity changed: that may have been the reason.
    AnyChange,
}

/// What one connection is made with.
struct Attempt {
    endpoint: Endpoint,
    credentials: Credentials,
    /// None with a certificate.
    password: Option<SasToken>,
    certificate: Option<Validity>,
    /// Of the identity.
    stamp: Stamp,
}

impl Task {
    async fn run(mut self) {
        let delay = self.jitter.up_to(self.options.start_delay);
        let mut next = self.pause(delay, Until::Nothing).await;
        while let Next::Attempt = next {
            next = self.attempt().await;
        }
        debug!("the hub session ended");
    }

    /// One connection, from before its CONNECT to the end of the pause after it.
    async fn attempt(&mut self) -> Next {
        let identity = match self.who.ask(self.via).await {
            Ok(identity) => identity,
            Err(failure) => {
                self.say_now_and_then(&failure, IDENTITY_INTERVAL);
                return self.pause(IDENTITY_INTERVAL, Until::Nothing).await;
            }
        };
        if let Err(not_set) = check_clock((self.options.clock)()) {
            self.say_now_and_then(&Failure::from(&SessionError::from(not_set)), CLOCK_INTERVAL);
            return self.pause(CLOCK_INTERVAL, Until::Nothing).await;
        }
        if let Some(enrollment) = self.who.to_register(&identity, Instant::now()) {
            return self.register(&identity, enrollment).await;
        }
        let Some(credentials) = identity.device.clone() else {
            let pause = self.who.register_pause(Instant::now());
            return self.pause(pause, Until::AnyChange).await;
        };
        let lifetime = self.options.token_lifetime;
        let password = match credentials.password((self.options.clock)(), lifetime) {
            Ok(password) => password,
            // It was set a moment ago.
            Err(_) => return Next::Attempt,
        };
        let gateway = credentials.gateway();
        let route = &self.options.route;
        let mut endpoint = route.to_hub(credentials.hub(), gateway, self.via, &identity);
        endpoint.skip = self.unreached;
        let attempt = Attempt {
            endpoint,
            credentials,
            password,
            certificate: identity.certificate,
            stamp: identity.stamp,
        };
        self.connection += 1;
        let (end, stood) = Link::run(self, &attempt).await;
        if stood.is_some_and(|stood| stood >= STANDING) {
            self.backoff.reset();
            self.who.standing();
        }
        match end {
            End::Shutdown => Next::Stop,
            End::Renew => Next::Attempt,
            End::Failed(error) => {
                self.who.attempted(error.is_refusal(), stood);
                self.unreached = match stood {
                    Some(_) => self.unreached,
                    None => self.unreached.wrapping_add(1),
                };
                if stood.is_none() && error.may_be_the_way() {
                    self.via = self.options.route.after_failure(self.via);
                }
                let error = self.judge(error, stood, &attempt.credentials);
                let register = self.who.to_register(&identity, Instant::now()).is_some();
                let pause = if error.is_refusal() && !register {
                    self.backoff.longest(&mut self.jitter)
                } else {
                    self.backoff.pause(&mut self.jitter)
                };
                self.say(&Failure::from(&error), pause);
                self.pause(pause, Until::AnyChange).await
            }
        }
    }

    /// Asks the provisioning service, and goes on with what there is then.
    async fn register(&mut self, identity: &Identity, enrollment: Enrollment) -> Next {
        let options = &self.options;
        let password = enrollment.password((options.clock)(), options.token_lifetime);
        let Ok(password) = password else {
            // The clock was right a moment ago.
            return Next::Attempt;
        };
        let has_hub = identity.device.is_some();
        let mut endpoint = options.route.to_provisioning(self.via, identity);
        endpoint.skip = self.unreached;
        let work = register::register(
            endpoint,
            enrollment.clone(),
            password,
            options.client.clone(),
            if has_hub { BESIDE_A_HUB } else { LONGEST },
            random_jitter(),
        );
        tokio::pin!(work);
        let outcome = loop {
            tokio::select! {
                outcome = &mut work => break outcome,
                stop = self.meanwhile() => if stop { return Next::Stop },
            }
        };
        self.who
            .registered(enrollment, &outcome, has_hub, &mut self.jitter)
            .await;
        let Err(error) = outcome else {
            return Next::Attempt;
        };
        self.unreached = self.unreached.wrapping_add(1);
        if error.may_be_the_way() {
            self.via = self.options.route.after_failure(self.via);
        }
        if has_hub {
            let failure = Failure::from(&error);
            warn!(
                fwupdated_error_code = failure.code,
                "going on with the hub assigned before: {failure}"
            );
            return Next::Attempt;
        }
        let pause = self.who.register_pause(Instant::now());
        self.say(&Failure::from(&error), pause);
        self.pause(pause, Until::AnyChange).await
    }

    /// Connections that the other side ends, again and again, are someone else's doing.
    fn judge(
        &mut self,
        error: SessionError,
        stood: Option<Duration>,
        credentials: &Credentials,
    ) -> SessionError {
        if error.is_network() {
            self.contest.network_failed();
        }
        let ended = stood.filter(|_| error.is_loss());
        match ended.and_then(|stood| self.contest.ended(stood, Instant::now())) {
            Some(times) => SessionError::IdentityConflict {
                device: credentials.device_id().to_owned(),
                times,
                source: Box::new(error),
            },
            None => error,
        }
    }

    /// As [`Self::say`], unless that is what was said of late: for what is looked at often.
    fn say_now_and_then(&mut self, failure: &Failure, pause: Duration) {
        let said = self
            .said
            .as_ref()
            .is_some_and(|(said, at)| *said == failure.code && at.elapsed() < REMIND);
        if !said {
            self.say(failure, pause);
        }
    }

    /// Tells the consumer, and the log's reader: at once when the reason is a new one, else now and then.
    fn say(&mut self, failure: &Failure, pause: Duration) {
        self.events.disconnected(failure.clone());
        let code = &failure.code;
        let seconds = pause.as_secs_f32();
        let now = Instant::now();
        match &self.said {
            Some((said, at)) if said == code && now < *at + REMIND => {
                debug!(
                    fwupdated_error_code = code,
                    "no hub connection: {failure}; next attempt in {seconds:.1} s"
                );
            }
            _ => {
                warn!(
                    message_id = event(failure),
                    fwupdated_error_code = code,
                    "no hub connection: {failure}; next attempt in {seconds:.1} s"
                );
                self.said = Some((code.clone(), now));
            }
        }
    }

    /// Tells the consumer that the connection is of no use but for methods; true when that is news for the log.
    fn say_unread(&mut self, failure: &Failure) -> bool {
        if !self.events.is_full() {
            let failure = failure.clone();
            self.events.push(HubEvent::Disconnected { failure });
        }
        let known = self
            .said
            .as_ref()
            .is_some_and(|(said, _)| *said == failure.code);
        self.said = Some((failure.code.clone(), Instant::now()));
        !known
    }

    /// Waits, and meanwhile hands over events.
    async fn pause(&mut self, pause: Duration, until: Until) -> Next {
        let end = tokio::time::Instant::now() + pause;
        let mut clock = tokio::time::interval(CLOCK_INTERVAL);
        let mut identity = tokio::time::interval(IDENTITY_INTERVAL);
        // The first tick of an interval is at once, and nothing can have changed yet.
        identity.reset();
        let watch = until == Until::AnyChange;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(end) => return Next::Attempt,
                _ = clock.tick(), if watch => {
                    if self.clock.jumped((self.options.clock)(), Instant::now()) {
                        info!("the clock was set; trying to connect to the hub again");
                        self.backoff.reset();
                        self.who.clock_was_set();
                        return Next::Attempt;
                    }
                }
                _ = identity.tick(), if watch => {
                    if self.who.changed().await {
                        self.backoff.reset();
                        return Next::Attempt;
                    }
                }
                stop = self.meanwhile() => if stop { return Next::Stop },
            }
        }
    }

    /// What goes on without a connection: one event is handed over or one command is heard. True when that
    /// means to stop.
    async fn meanwhile(&mut self) -> bool {
        tokio::select! {
            handed = self.events.hand_over() => handed.is_err(),
            command = self.commands.recv() => match command {
                Some(Command::Patch { .. } | Command::Read { .. }) => false,
                Some(Command::Shutdown) | None => true,
            },
        }
    }
}

/// What the journal calls it that `failure` keeps the device from its hub.
fn event(failure: &Failure) -> &'static str {
    match (failure.code.as_str(), failure.class) {
        ("hub-identity-missing", _) => events::IDENTITY_MISSING,
        (_, Class::Retry) => events::HUB_LOST,
        (_, Class::Wait | Class::Final) => events::HUB_REFUSED,
    }
}
