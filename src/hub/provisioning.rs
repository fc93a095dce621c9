//! Asks the Device Provisioning Service which hub this device belongs to. Pure: messages and times go in,
//! messages, times and one outcome come out; the session holds the connection.
//!
//! A [`Registration`] guarantees:
//! - one request at a time, none sooner than the service asked for (`retry-after`);
//! - throttling and server errors are waited for with full jitter; an answer that does not come is asked for
//!   again;
//! - it ends, by an assignment or an error, at the latest [`LONGEST`] after its start;
//! - nothing the service sends makes it panic, and what it says is cut and cleaned before it is shown.
//!
//! Format: DPS over MQTT, api-version 2019-03-31.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    backoff::{Backoff, Jitter},
    credentials::{ClockNotSet, Credentials, CredentialsError, SasToken, Secret},
    percent, topics,
};
use crate::update::failure::{Class, Coded};

#[cfg(test)]
mod tests;

/// The version of the service's interface that the user name asks for.
pub const API_VERSION: &str = "2019-03-31";

/// The filter to subscribe to.
pub const FILTER: &str = "$dps/registrations/res/#";

/// Longest registration. Custom allocations take their time.
pub const LONGEST: Duration = Duration::from_secs(600);

/// How long the service may take to answer a request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause between two polls when the service names none.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Shortest pause between two polls, whatever the service names.
const SHORTEST_POLL: Duration = Duration::from_secs(1);

/// Longest of the service's words that are shown, in characters.
const MAX_WORDS: usize = 200;

/// What this device is to the provisioning service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrollment {
    /// The service's id scope.
    pub id_scope: String,
    /// The device's name there.
    pub registration_id: String,
    /// What is sent along, for a custom allocation.
    pub payload: Option<Value>,
    /// How the device proves who it is, to the service and then to its hub.
    pub secret: Secret,
}

impl Enrollment {
    fn resource(&self) -> String {
        format!("{}/registrations/{}", self.id_scope, self.registration_id)
    }

    /// The CONNECT user name; `client` names this program and its version.
    #[must_use]
    pub fn user_name(&self, client: &str) -> String {
        format!(
            "{}/api-version={API_VERSION}&ClientVersion={}",
            self.resource(),
            percent::encode(client)
        )
    }

    /// The CONNECT password at `now`; none with a certificate.
    ///
    /// # Errors
    /// [`ClockNotSet`].
    pub fn password(
        &self,
        now: Timestamp,
        lifetime: Duration,
    ) -> Result<Option<SasToken>, ClockNotSet> {
        self.secret
            .password(&self.resource(), Some("registration"), now, lifetime)
    }
}

/// Where a device belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// The hub's host name.
    pub hub: String,
    /// The device's id there.
    pub device_id: String,
}

impl Assignment {
    /// The identity at the assigned hub, proved as to the service.
    ///
    /// # Errors
    /// The assignment names no host or no device id.
    pub fn credentials(&self, secret: Secret) -> Result<Credentials, CredentialsError> {
        Credentials::assigned(&self.hub, &self.device_id, secret)
    }
}

/// Why there is no assignment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProvisioningError {
    /// An answer of 300 to 499 but 429.
    #[error(
        "the provisioning service refused the registration (status {status}: {words}); compare id scope, registration id and key or certificate with the enrollment"
    )]
    Rejected {
        /// HTTP-like status.
        status: u16,
        /// What the service says.
        words: String,
    },
    /// `failed`.
    #[error(
        "the provisioning service found no hub for this device ({words}); see its enrollment in the service"
    )]
    Failed {
        /// What the service says.
        words: String,
    },
    /// `disabled`.
    #[error(
        "this device's enrollment is disabled in the provisioning service; enable it, or take the device out of service"
    )]
    Disabled,
    /// The answer makes no sense.
    #[error("the provisioning service's answer cannot be used: {0}")]
    Malformed(String),
    /// It took too long.
    #[error("the provisioning service named no hub in time; it is asked again later")]
    TimedOut,
}

impl Coded for ProvisioningError {
    fn code(&self) -> &'static str {
        match self {
            Self::Rejected { .. } => "dps-rejected",
            Self::Failed { .. } => "dps-failed",
            Self::Disabled => "dps-disabled",
            Self::Malformed(_) => "dps-answer",
            Self::TimedOut => "dps-timeout",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Rejected { .. } | Self::Failed { .. } | Self::Disabled => Class::Wait,
            Self::Malformed(_) | Self::TimedOut => Class::Retry,
        }
    }
}

/// A message to publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub body: String,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Question {
    Register,
    /// How far operation is.
    Poll(String),
}

#[derive(Debug)]
enum State {
    /// To be asked then.
    Due(Question, Instant),
    /// Asked; the answer is awaited until then.
    Asked(Question, Instant),
    /// Ended.
    Done(Result<Assignment, ProvisioningError>),
}

/// One registration, from the first request to its outcome.
#[derive(Debug)]
pub struct Registration {
    body: String,
    state: State,
    /// Counts requests; the last one's id.
    rid: u32,
    deadline: Instant,
    backoff: Backoff,
    jitter: Jitter,
}

impl Registration {
    /// The registration of `enrollment`, begun at `now`, that takes no longer than `limit`.
    #[must_use]
    pub fn new(enrollment: &Enrollment, limit: Duration, jitter: Jitter, now: Instant) -> Self {
        let mut body = json!({ "registrationId": enrollment.registration_id });
        if let Some(payload) = &enrollment.payload {
            body["payload"] = payload.clone();
        }
        Self {
            body: body.to_string(),
            state: State::Due(Question::Register, now),
            rid: 0,
            deadline: now + limit,
            backoff: Backoff::new(Duration::from_secs(2), Duration::from_secs(60)),
            jitter,
        }
    }

    /// The next message, if one is due at `now`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Request> {
        let State::Due(question, at) = &self.state else {
            return None;
        };
        if *at > now {
            return None;
        }
        let question = question.clone();
        self.rid += 1;
        let rid = self.rid;
        let request = match &question {
            Question::Register => Request {
                topic: format!("$dps/registrations/PUT/iotdps-register/?$rid={rid}"),
                body: self.body.clone(),
            },
            Question::Poll(operation) => Request {
                topic: format!(
                    "$dps/registrations/GET/iotdps-get-operationstatus/?$rid={rid}&operationId={}",
                    percent::encode(operation)
                ),
                // As in twin reads: not every server likes an empty body.
                body: " ".to_owned(),
            },
        };
        self.state = State::Asked(question, now + ANSWER_TIMEOUT);
        Some(request)
    }

    /// When [`Registration::handle_timeout`] or [`Registration::poll_transmit`] is due; `None` at the end.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Due(_, at) | State::Asked(_, at) => Some(self.deadline.min(*at)),
            State::Done(_) => None,
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &self.state {
            State::Done(_) => {}
            _ if now >= self.deadline => self.end(Err(ProvisioningError::TimedOut)),
            State::Asked(question, until) if now >= *until => {
                let question = question.clone();
                self.ask_again(question, None, now);
            }
            State::Due(..) | State::Asked(..) => {}
        }
    }

    /// A message came.
    pub fn handle_message(&mut self, topic: &str, payload: &[u8], now: Instant) {
        let State::Asked(question, _) = &self.state else {
            return;
        };
        let Some((status, rid, retry_after)) = parse_topic(topic) else {
            return;
        };
        // An answer to an earlier request came too late to count.
        if rid != self.rid.to_string() {
            return;
        }
        let question = question.clone();
        let document: Value = serde_json::from_slice(payload).unwrap_or_default();
        match status {
            429 | 500.. => self.ask_again(question, retry_after, now),
            200..=299 => self.handle_answer(&document, retry_after, now),
            _ => self.end(Err(ProvisioningError::Rejected {
                status,
                words: words(&document, "message"),
            })),
        }
    }

    /// The outcome, once there is one.
    #[must_use]
    pub fn outcome(&self) -> Option<&Result<Assignment, ProvisioningError>> {
        match &self.state {
            State::Done(outcome) => Some(outcome),
            State::Due(..) | State::Asked(..) => None,
        }
    }

    fn handle_answer(&mut self, document: &Value, retry_after: Option<Duration>, now: Instant) {
        let state = &document["registrationState"];
        let status = document["status"].as_str();
        match status.or_else(|| state["status"].as_str()) {
            Some("assigned") => {
                let text = |name: &str| state[name].as_str().unwrap_or_default().to_owned();
                let assignment = Assignment {
                    hub: text("assignedHub"),
                    device_id: text("deviceId"),
                };
                let usable = assignment.credentials(Secret::Certificate);
                self.end(match usable {
                    Ok(_) => Ok(assignment),
                    Err(error) => Err(ProvisioningError::Malformed(error.to_string())),
                });
            }
            Some("assigning" | "unassigned") => match document["operationId"].as_str() {
                Some(operation) if !operation.is_empty() => {
                    self.backoff.reset();
                    let pause = retry_after.unwrap_or(POLL_INTERVAL).max(SHORTEST_POLL);
                    self.state = State::Due(Question::Poll(operation.to_owned()), now + pause);
                }
                _ => self.end(Err(ProvisioningError::Malformed(
                    "it names no operation to ask about".to_owned(),
                ))),
            },
            Some("disabled") => self.end(Err(ProvisioningError::Disabled)),
            Some("failed") => {
                let words = words(state, "errorMessage");
                self.end(Err(ProvisioningError::Failed { words }));
            }
            _ => self.end(Err(ProvisioningError::Malformed(
                "it says nothing about the registration".to_owned(),
            ))),
        }
    }

    fn ask_again(&mut self, question: Question, retry_after: Option<Duration>, now: Instant) {
        let pause = self.backoff.pause(&mut self.jitter);
        let at = now + pause.max(retry_after.unwrap_or_default());
        self.state = State::Due(question, at);
    }

    fn end(&mut self, outcome: Result<Assignment, ProvisioningError>) {
        self.state = State::Done(outcome);
    }
}

/// Status, request id and `retry-after` of an answer's topic.
fn parse_topic(topic: &str) -> Option<(u16, String, Option<Duration>)> {
    let rest = topic.strip_prefix("$dps/registrations/res/")?;
    let (status, query) = rest.split_once("/?")?;
    let rid = topics::value(query, "$rid")?.to_owned();
    Some((status.parse().ok()?, rid, topics::retry_after(query)))
}

/// The service's error code and words, short and on one line.
fn words(document: &Value, name: &str) -> String {
    let code = &document["errorCode"];
    let said = document[name].as_str().unwrap_or("no reason given");
    let mut text: String = said
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(MAX_WORDS)
        .collect();
    if code.is_number() {
        text.push_str(&format!(" (error {code})"));
    }
    text
}
