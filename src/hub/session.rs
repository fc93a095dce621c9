//! The MQTT connection to the hub: the only user of `rumqttc` (in `link`, one connection long).
//!
//! [`Session::spawn`] starts a task that connects, stays connected and tells what happens by
//! [`HubEvent`]s. It guarantees:
//! - Nothing the hub does ends it: whatever fails, it tries again, with full jitter, up to the longest
//!   pause; refused credentials take the longest step, with a fresh token, because keys get rotated and
//!   clocks get set. It ends by [`SessionHandle::shutdown`] or when its receiver is dropped.
//! - No token is made before the clock is set, and a new one is made before every attempt.
//! - [`HubEvent::Connected`] comes only after the subscriptions were granted and the twin was read.
//! - Every method call is answered, by the consumer or for it.
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
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tracing::{debug, info, warn};

use super::{
    backoff::{Backoff, Jitter},
    credentials::Credentials,
    method::Answer,
};
use crate::{
    config::HubConfig,
    update::failure::{Coded, Failure, chain},
};

mod clock;
mod error;
mod link;

pub use error::SessionError;

use clock::ClockWatch;
use link::{End, Link};

/// First pause after a failed attempt.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// A connection that stood this long counts as a good one: the next pause is short again.
const STANDING: Duration = Duration::from_secs(60);

/// Connections shorter than this, one after another, mean that someone else uses this identity.
const SHORT_LIVED: Duration = Duration::from_secs(10);

/// How many of them.
const SHORT_LIVED_IN_A_ROW: u32 = 3;

/// How often the clock is looked at while it is wrong or may have been set.
const CLOCK_INTERVAL: Duration = Duration::from_secs(2);

/// How often while a connection stands: then nothing waits for it, and a new token is due within minutes at
/// the earliest.
const CLOCK_INTERVAL_STANDING: Duration = Duration::from_secs(30);

/// How often a reason that stays the same is said in the log.
const REMIND: Duration = Duration::from_secs(600);

/// Events that wait for a slow consumer. Method calls beyond are answered 503; twin answers and desired
/// changes beyond are dropped and made good for by reading the twin again.
const MAX_WAITING_EVENTS: usize = 128;

/// Longest time [`SessionHandle::shutdown`] takes.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// How to reach the hub.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Who we are.
    pub credentials: Credentials,
    /// Roots, without ALPN.
    pub tls: Arc<rustls::ClientConfig>,
    /// Host to connect to: the hub, or a gateway (then TCP, SNI and certificate are the gateway's).
    pub host: String,
    /// Port of MQTT over TLS.
    pub port: u16,
    /// Keep-alive, 1 s to 230 s.
    pub keep_alive: Duration,
    /// Life of a SAS token.
    pub token_lifetime: Duration,
    /// Longest pause between two attempts.
    pub reconnect_max: Duration,
    /// Longest random pause before the first attempt, so that a fleet does not start in step.
    pub start_delay: Duration,
    /// This program and its version, for the hub's operator.
    pub client: String,
    /// The wall clock.
    pub clock: fn() -> Timestamp,
}

impl SessionOptions {
    /// The options that `config` and the connection string give.
    #[must_use]
    pub fn new(
        credentials: Credentials,
        tls: Arc<rustls::ClientConfig>,
        config: &HubConfig,
    ) -> Self {
        let gateway = config.gateway_host.as_deref().or(credentials.gateway());
        Self {
            host: gateway.unwrap_or(credentials.hub()).to_owned(),
            credentials,
            tls,
            port: config.mqtt_port,
            keep_alive: config.keep_alive,
            token_lifetime: config.token_lifetime,
            reconnect_max: config.reconnect_max,
            start_delay: Duration::from_secs(1),
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
    /// A direct method was called. Answer within a second.
    Method(MethodCall),
    /// The desired section changed; versions come without gaps.
    Desired {
        /// Its version now.
        version: u64,
        /// The change.
        patch: Value,
    },
    /// The desired section was read again, because a change was missed.
    DesiredRead {
        /// The whole section with its `$version`.
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
    /// Answers the call. False when the connection it came by has ended.
    pub fn send(self, answer: Answer) -> bool {
        self.0.send(answer).is_ok()
    }
}

enum Command {
    Patch {
        connection: u64,
        rid: String,
        body: Bytes,
    },
    Shutdown,
}

/// Talks to the session's task. Never waits for the network but in [`SessionHandle::shutdown`].
#[derive(Debug)]
pub struct SessionHandle {
    commands: mpsc::Sender<Command>,
    task: JoinHandle<()>,
}

impl SessionHandle {
    /// Sends a patch of the reported section by `connection`, the one of the last
    /// [`HubEvent::Connected`]; by another one it is not sent, as its sender did not know the twin yet.
    /// The answer comes as [`HubEvent::TwinAnswer`] with the same `rid` (letters and digits), or never.
    pub fn patch(&self, connection: u64, rid: &str, body: &Value) {
        let patch = Command::Patch {
            connection,
            rid: rid.to_owned(),
            body: Bytes::from(body.to_string()),
        };
        if self.commands.try_send(patch).is_err() {
            debug!("the session's task is busy or gone; a patch was dropped");
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
        let task = Task {
            backoff: Backoff::new(FIRST_PAUSE, options.reconnect_max),
            jitter: Jitter::seeded(seed()),
            clock: ClockWatch::new((options.clock)(), Instant::now()),
            options,
            commands: command_receiver,
            events: Events {
                sender: events,
                waiting: VecDeque::new(),
            },
            connection: 0,
            short_lived: 0,
            said: None,
        };
        let task = tokio::spawn(task.run());
        (SessionHandle { commands, task }, event_receiver)
    }
}

/// Differs between devices and starts, which is all that jitter needs.
fn seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
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
    commands: mpsc::Receiver<Command>,
    events: Events,
    backoff: Backoff,
    jitter: Jitter,
    clock: ClockWatch,
    connection: u64,
    /// Connections in a row that ended within seconds.
    short_lived: u32,
    /// The failure that was last said in the log, and when.
    said: Option<(&'static str, Instant)>,
}

/// Whether the session goes on.
enum Next {
    Attempt,
    Stop,
}

impl Task {
    async fn run(mut self) {
        let delay = self.jitter.up_to(self.options.start_delay);
        let mut next = self.pause(delay, false).await;
        while let Next::Attempt = next {
            next = self.attempt().await;
        }
        debug!("the hub session ended");
    }

    /// One connection, from before its CONNECT to the end of the pause after it.
    async fn attempt(&mut self) -> Next {
        let now = (self.options.clock)();
        let lifetime = self.options.token_lifetime;
        let token = match self.options.credentials.token(now, lifetime) {
            Ok(token) => token,
            Err(not_set) => {
                let error = SessionError::from(not_set);
                if self.said.is_none_or(|(said, _)| said != error.code()) {
                    self.say(&error, CLOCK_INTERVAL);
                }
                return self.pause(CLOCK_INTERVAL, false).await;
            }
        };
        self.connection += 1;
        let (end, stood) = Link::run(self, &token).await;
        if stood.is_some_and(|stood| stood >= STANDING) {
            self.backoff.reset();
            self.short_lived = 0;
        }
        match end {
            End::Shutdown => Next::Stop,
            End::Renew => Next::Attempt,
            End::Failed(error) => {
                let error = self.judge(error, stood);
                let pause = if error.is_refusal() {
                    self.backoff.longest(&mut self.jitter)
                } else {
                    self.backoff.pause(&mut self.jitter)
                };
                self.say(&error, pause);
                self.pause(pause, true).await
            }
        }
    }

    /// Connections that end within seconds, again and again, are someone else's doing.
    fn judge(&mut self, error: SessionError, stood: Option<Duration>) -> SessionError {
        if !(error.is_loss() && stood.is_some_and(|stood| stood < SHORT_LIVED)) {
            if error.is_network() {
                self.short_lived = 0;
            }
            return error;
        }
        self.short_lived += 1;
        if self.short_lived < SHORT_LIVED_IN_A_ROW {
            return error;
        }
        SessionError::IdentityConflict {
            device: self.options.credentials.device_id().to_owned(),
            times: self.short_lived,
            source: Box::new(error),
        }
    }

    /// Tells the consumer, and the log's reader: at once when the reason is a new one, else now and then.
    fn say(&mut self, error: &SessionError, pause: Duration) {
        self.events.disconnected(Failure::from(error));
        let (code, text) = (error.code(), chain(error));
        let seconds = pause.as_secs_f32();
        let now = Instant::now();
        match self.said {
            Some((said, at)) if said == code && now < at + REMIND => {
                debug!(
                    code,
                    "no hub connection: {text}; next attempt in {seconds:.1} s"
                );
            }
            _ => {
                warn!(
                    code,
                    "no hub connection: {text}; next attempt in {seconds:.1} s"
                );
                self.said = Some((code, now));
            }
        }
    }

    /// Waits, and meanwhile hands over events. A clock that was set ends the wait: it may have been the
    /// reason.
    async fn pause(&mut self, pause: Duration, watch_clock: bool) -> Next {
        let end = tokio::time::Instant::now() + pause;
        let mut tick = tokio::time::interval(CLOCK_INTERVAL);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(end) => return Next::Attempt,
                _ = tick.tick(), if watch_clock => {
                    if self.clock.jumped((self.options.clock)(), Instant::now()) {
                        info!("the clock was set; trying to connect to the hub again");
                        self.backoff.reset();
                        return Next::Attempt;
                    }
                }
                handed = self.events.hand_over() => if handed.is_err() {
                    return Next::Stop;
                },
                command = self.commands.recv() => match command {
                    Some(Command::Patch { .. }) => {}
                    Some(Command::Shutdown) | None => return Next::Stop,
                },
            }
        }
    }
}
