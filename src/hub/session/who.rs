//! Who the session is from attempt to attempt: the identity as its owner gives it, and the provisioning
//! service's word where one is asked.
//!
//! - A working identity is kept in mind: an owner that cannot give one now (a file half replaced, a folder
//!   not mounted) does not cost the connection.
//! - The service is asked when there is no assignment, when the hub refuses the one there is, and when the
//!   hub was not reached [`FAILURES`] times in a row; never sooner than its own back-off allows, as it
//!   throttles. The old assignment is used until there is a new one.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};
use tracing::{info, warn};

use super::{
    SessionError,
    identity::{Identity, IdentitySource, Known},
    route::Via,
};
use crate::{
    hub::{
        backoff::{Backoff, Jitter},
        provisioning::{Assignment, Enrollment},
    },
    update::failure::{Class, Failure},
};

/// How long reading the identity may take.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// Failed attempts in a row after which the hub may have been moved.
const FAILURES: u32 = 10;

/// How much longer the longest pause is between two registrations than between two connections.
const PROVISIONING_FACTOR: u32 = 12;

/// The identity and what is known about it.
pub(super) struct Who {
    source: Source,
    known: watch::Sender<Known>,
    /// The last one that could be used.
    identity: Option<Arc<Identity>>,
    /// The code of the last failure to get one, so that it is said once.
    said: Option<String>,
    /// The last assignment, in case it could not be kept.
    assigned: Option<(Enrollment, Assignment)>,
    /// The hub does not want us, or is not there any more.
    doubted: bool,
    /// Attempts in a row that did not reach the hub.
    failures: u32,
    backoff: Backoff,
    /// Longest pause between two attempts to connect.
    reconnect_max: Duration,
    /// Not to register before.
    register_at: Option<Instant>,
}

impl Who {
    pub(super) fn new(
        source: Arc<dyn IdentitySource>,
        known: watch::Sender<Known>,
        first: Duration,
        reconnect_max: Duration,
    ) -> Self {
        Self {
            source: Source {
                source,
                turn: Arc::default(),
            },
            known,
            identity: None,
            said: None,
            assigned: None,
            doubted: false,
            failures: 0,
            backoff: Backoff::new(first, reconnect_max * PROVISIONING_FACTOR),
            reconnect_max,
            register_at: None,
        }
    }

    /// The identity for the next attempt, which goes by `via`.
    pub(super) async fn ask(&mut self, via: Via) -> Result<Arc<Identity>, Failure> {
        let identity = match self.source.read().await {
            Ok(identity) => {
                self.said = None;
                let before = self.identity.as_ref().map(|identity| identity.stamp);
                if before.is_some_and(|stamp| stamp != identity.stamp) {
                    info!("the device's identity was changed");
                    self.register_at = None;
                    self.backoff.reset();
                }
                let identity = Arc::new(self.with_assignment(identity));
                self.identity = Some(Arc::clone(&identity));
                identity
            }
            Err(failure) => {
                let Some(identity) = self.identity.clone() else {
                    return Err(failure);
                };
                if self.said.as_ref() != Some(&failure.code) {
                    warn!(
                        fwupdated_error_code = failure.code,
                        "going on with the identity that worked before: {failure}"
                    );
                    self.said = Some(failure.code);
                }
                identity
            }
        };
        self.tell(&identity, via);
        Ok(identity)
    }

    /// Whether the identity differs from the one that was used last. False while there is none: then the
    /// next attempt tells why.
    pub(super) async fn changed(&self) -> bool {
        let used = self.identity.as_ref().map(|identity| identity.stamp);
        self.source
            .read()
            .await
            .is_ok_and(|identity| Some(identity.stamp) != used)
    }

    /// Where to look for a change without waiting for it here.
    pub(super) fn source(&self) -> Source {
        self.source.clone()
    }

    /// What the service assigned counts also where it could not be kept.
    fn with_assignment(&self, mut identity: Identity) -> Identity {
        if let (Some(enrollment), Some((of, assignment))) = (&identity.enrollment, &self.assigned)
            && enrollment == of
            && let Ok(device) = assignment.credentials(enrollment.secret.clone())
        {
            identity.device = Some(device);
        }
        identity
    }

    fn tell(&self, identity: &Identity, via: Via) {
        let (device, enrollment) = (&identity.device, &identity.enrollment);
        let secret = match (device, enrollment) {
            (Some(device), _) => Some(device.secret()),
            (None, enrollment) => enrollment.as_ref().map(|enrollment| &enrollment.secret),
        };
        let registration = enrollment.as_ref().map(|e| &e.registration_id);
        self.known.send_replace(Known {
            hub: device.as_ref().map(|device| device.hub().to_owned()),
            device_id: device
                .as_ref()
                .map(|device| device.device_id().to_owned())
                .or_else(|| registration.cloned()),
            transport: Some(via.name()),
            authentication: secret.map(|secret| secret.kind()),
        });
    }

    /// The enrollment to register now, if that is to be done.
    pub(super) fn to_register(&self, identity: &Identity, now: Instant) -> Option<Enrollment> {
        let enrollment = identity.enrollment.as_ref()?;
        let wanted = identity.device.is_none() || self.doubted;
        (wanted && self.register_at.is_none_or(|at| at <= now)).then(|| enrollment.clone())
    }

    /// How long it is not allowed to register.
    pub(super) fn register_pause(&self, now: Instant) -> Duration {
        self.register_at
            .map(|at| at.saturating_duration_since(now))
            .unwrap_or_default()
    }

    /// The service has spoken.
    pub(super) async fn registered(
        &mut self,
        enrollment: Enrollment,
        outcome: &Result<Assignment, SessionError>,
        has_hub: bool,
        jitter: &mut Jitter,
    ) {
        // Also after a success: when the hub refuses the new assignment too, the service must not be asked
        // again and again.
        let pause = match outcome {
            Err(SessionError::ProvisioningRefused { .. }) => {
                jitter.between(self.reconnect_max / 2, self.reconnect_max)
            }
            _ => self.backoff.pause(jitter),
        };
        // Without any hub yet there is nothing else to try meanwhile.
        let pause = match has_hub {
            true => pause,
            false => pause.min(self.reconnect_max),
        };
        self.register_at = Some(Instant::now() + pause);
        let Ok(assignment) = outcome else { return };
        info!(
            "the provisioning service assigned device `{}` to {}",
            assignment.device_id, assignment.hub
        );
        self.doubted = false;
        self.failures = 0;
        self.assigned = Some((enrollment.clone(), assignment.clone()));
        let (source, assignment) = (Arc::clone(&self.source.source), assignment.clone());
        let kept = tokio::task::spawn_blocking(move || source.keep(&enrollment, &assignment));
        if let Ok(Err(failure)) = kept.await {
            warn!(
                fwupdated_error_code = failure.code,
                "the assignment could not be kept, so the provisioning service is asked again after a restart: \
                 {failure}"
            );
        }
    }

    /// An attempt ended: refused by the hub, or without reaching it, or after having stood.
    pub(super) fn attempted(&mut self, refused: bool, stood: Option<Duration>) {
        match stood {
            Some(_) => {
                self.failures = 0;
                self.doubted = false;
            }
            None => self.failures += 1,
        }
        if refused || self.failures >= FAILURES {
            self.doubted = true;
            self.failures = 0;
        }
    }

    /// What the service refused before may have been our clock's fault.
    pub(super) fn clock_was_set(&mut self) {
        self.register_at = None;
    }

    /// It works again.
    pub(super) fn standing(&mut self) {
        self.backoff.reset();
    }
}

/// The identity's source, read on a thread that may wait for a medium: one at a time, so that a medium that does
/// not answer holds one thread and not one for each attempt.
#[derive(Clone)]
pub(super) struct Source {
    source: Arc<dyn IdentitySource>,
    turn: Arc<Mutex<()>>,
}

impl Source {
    /// The identity as it is now; a failure when that cannot be told within [`READ_LIMIT`].
    pub(super) async fn read(&self) -> Result<Identity, Failure> {
        let (source, turn) = (Arc::clone(&self.source), Arc::clone(&self.turn));
        let read = async {
            let turn = turn.lock_owned().await;
            let read = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                source.read()
            });
            read.await.unwrap_or_else(|_| {
                let text = "reading the device's identity failed; this is a defect of the program, please report it";
                Err(Failure::new("hub-identity-defect", Class::Retry, text))
            })
        };
        timeout(READ_LIMIT, read).await.unwrap_or_else(|_| {
            let text = format!(
                "the device's identity cannot be read within {} s; check the medium that holds its files",
                READ_LIMIT.as_secs()
            );
            Err(Failure::new("hub-identity-slow", Class::Retry, text))
        })
    }
}
