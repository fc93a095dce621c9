//! Whether the hub can be reached: the daemon's word if it is connected, else a try of our own.
//!
//! The try ends before MQTT's CONNECT: a second connection with the device's name would throw the daemon's out.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::finding::Finding;
use crate::{
    config::Config,
    daemon::identity::FileIdentity,
    hub::session::{IdentitySource, Probe, ProbeFailure, Route, probe},
    update::{failure::Failure, status::HubStatus},
};

const TOPIC: &str = "hub";

/// Longest try.
const LIMIT: Duration = Duration::from_secs(10);

/// Where systemd keeps the credentials of the running service.
const CREDENTIALS: &str = "/run/credentials/fwupdated.service";

/// What was seen.
pub(super) struct Facts {
    /// The daemon's word, if it runs.
    told: Option<HubStatus>,
    tried: Tried,
}

enum Tried {
    /// Nobody needs it.
    Not,
    /// A file that is not ours to read.
    Forbidden(PathBuf),
    /// Who we are is not known.
    NoIdentity(Failure),
    Reached(Probe),
    Failed {
        stage: &'static str,
        failure: Failure,
    },
}

/// `closed` are files of the identity that may not be read.
pub(super) async fn gather(
    config: &Config,
    told: Option<HubStatus>,
    closed: Option<PathBuf>,
) -> Facts {
    let tried = match (&told, closed) {
        (Some(hub), _) if hub.connected => Tried::Not,
        (_, Some(file)) => Tried::Forbidden(file),
        _ => attempt(config).await,
    };
    Facts { told, tried }
}

async fn attempt(config: &Config) -> Tried {
    crate::platform::tls::install_provider();
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let credentials = credentials.or_else(|| Some(PathBuf::from(CREDENTIALS)));
    let source = FileIdentity::new(Arc::new(config.clone()), credentials);
    let identity = match source.read() {
        Ok(identity) => identity,
        Err(failure) => return Tried::NoIdentity(failure),
    };
    let route = Route::new(&config.hub, config.provisioning.as_ref());
    match probe(&route, &identity, LIMIT).await {
        Ok(reached) => Tried::Reached(reached),
        Err(ProbeFailure { stage, error }) => {
            let failure = Failure::from(&error);
            Tried::Failed { stage, failure }
        }
    }
}

pub(super) fn judge(facts: &Facts) -> Finding {
    if let Some(hub) = facts.told.as_ref().filter(|hub| hub.connected) {
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "?".to_owned());
        let (host, device) = (name(&hub.host), name(&hub.device_id));
        return Finding::ok(
            TOPIC,
            format!("the daemon is connected to {host} as {device}"),
        );
    }
    let told = facts.told.as_ref().and_then(|hub| hub.error.as_ref());
    match &facts.tried {
        Tried::Not => Finding::unknown(TOPIC, "not tried"),
        Tried::Forbidden(file) => match told {
            Some(failure) => Finding::failure(TOPIC, failure),
            None => Finding::forbidden(TOPIC, &file.display().to_string()),
        },
        Tried::NoIdentity(failure) => Finding::failure(TOPIC, failure),
        Tried::Failed { stage, failure } => {
            let message = format!("no connection, ended at {stage}: {}", failure.message);
            let failure = Failure {
                message,
                ..failure.clone()
            };
            Finding::failure(TOPIC, &failure)
        }
        Tried::Reached(Probe { at, via }) => {
            let way = format!("{at} takes TLS connections ({via})");
            match (told, &facts.told) {
                // It came further than the try goes.
                (Some(failure), _) => {
                    let message = format!(
                        "{way}, but the daemon is not connected: {}",
                        failure.message
                    );
                    let failure = Failure {
                        message,
                        ..failure.clone()
                    };
                    Finding::failure(TOPIC, &failure)
                }
                (None, Some(_)) => Finding::warning(
                    TOPIC,
                    format!("{way}, and the daemon is not connected yet"),
                    "look again in a minute",
                ),
                (None, None) => Finding::ok(
                    TOPIC,
                    format!("{way}; whether it takes this device is seen once the daemon runs"),
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ctl::doctor::finding::Level, update::failure::Class};

    fn told(connected: bool, error: Option<&str>) -> Option<HubStatus> {
        let error = error.map(|code| Failure::new(code, Class::Wait, "the daemon's words"));
        Some(HubStatus {
            connected,
            error,
            ..HubStatus::default()
        })
    }

    fn reached() -> Tried {
        let at = "hub:8883".to_owned();
        Tried::Reached(Probe { at, via: "mqtt" })
    }

    #[test]
    fn what_the_daemon_met_behind_a_way_that_works_is_the_error() {
        let refused = judge(&Facts {
            told: told(false, Some("hub-credentials-refused")),
            tried: reached(),
        });
        assert_eq!(refused.level, Level::Error);
        assert_eq!(refused.code.as_deref(), Some("hub-credentials-refused"));
        let starting = judge(&Facts {
            told: told(false, None),
            tried: reached(),
        });
        assert_eq!(starting.level, Level::Warning);
        let alone = Facts {
            told: None,
            tried: reached(),
        };
        assert_eq!(judge(&alone).level, Level::Ok);
    }

    #[test]
    fn each_failure_says_how_far_the_try_came() {
        let failed = |stage| {
            let failure = Failure::new("hub-unreachable", Class::Retry, "cannot reach hub:8883");
            judge(&Facts {
                told: None,
                tried: Tried::Failed { stage, failure },
            })
        };
        let text = failed("name resolution").text;
        assert!(
            text.contains("ended at name resolution: cannot reach"),
            "{text}"
        );
        assert_ne!(text, failed("TCP").text);
    }

    #[test]
    fn a_file_that_is_closed_to_us_does_not_hide_what_the_daemon_says() {
        let closed = || Tried::Forbidden("/etc/fwupdated/connection-string".into());
        let alone = Facts {
            told: None,
            tried: closed(),
        };
        assert_eq!(judge(&alone).level, Level::Unknown);
        let with = Facts {
            told: told(false, Some("hub-tls")),
            tried: closed(),
        };
        assert_eq!(judge(&with).code.as_deref(), Some("hub-tls"));
    }
}
