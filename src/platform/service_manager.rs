//! What systemd is told (sd_notify(3)) and asked (the state of a unit). Outside systemd telling does
//! nothing.

use std::{os::unix::fs::MetadataExt, time::Duration};

use sd_notify::NotifyState;

use crate::update::failure::{Class, Coded};

/// Longest wait for an answer: the bus itself has no limit of its own.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Why a unit's state is not known.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// No way to systemd, or it refused.
    #[error("systemd cannot be asked for unit {unit}; is the system bus running?")]
    Bus {
        /// The unit.
        unit: String,
        /// Why.
        #[source]
        source: zbus::Error,
    },
    /// Neither yes nor no.
    #[error("systemd did not say within {} s whether unit {unit} is active; is the system bus running?", ANSWER_LIMIT.as_secs())]
    Silent {
        /// The unit.
        unit: String,
    },
}

impl Coded for UnitError {
    fn code(&self) -> &'static str {
        match self {
            Self::Bus { .. } | Self::Silent { .. } => "systemd-unreachable",
        }
    }

    fn class(&self) -> Class {
        Class::Retry
    }
}

fn tell(state: NotifyState<'_>) {
    // Without systemd there is nobody to tell; with it, a lost word is made good by the next one.
    let _ = sd_notify::notify(&[state]);
}

/// The daemon serves.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// One line for `systemctl status`.
pub fn status(line: &str) {
    tell(NotifyState::Status(&line.replace('\n', " ")));
}

/// The daemon is on its way out.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

/// The daemon is alive.
pub fn watchdog_ping() {
    tell(NotifyState::Watchdog);
}

/// Within what time systemd wants to hear of us; `None` without a watchdog.
#[must_use]
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// Whether standard error is a stream to the journal (systemd.exec(5): `JOURNAL_STREAM` holds its device
/// and inode).
#[must_use]
pub fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(meta) = std::fs::metadata("/proc/self/fd/2") else {
        return false;
    };
    stream == format!("{}:{}", meta.dev(), meta.ino())
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait SystemdManager {
    /// The object of a unit, loaded if need be.
    fn load_unit(&self, name: &str) -> zbus::Result<zbus::OwnedObjectPath>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1"
)]
trait SystemdUnit {
    /// `active`, `reloading`, `inactive`, `failed`, `activating`, `deactivating`.
    #[zbus(property)]
    fn active_state(&self) -> zbus::Result<String>;
}

/// Whether `unit` is active.
///
/// # Errors
/// systemd cannot be asked.
pub async fn unit_active(unit: &str) -> Result<bool, UnitError> {
    let asked = async {
        let bus = zbus::Connection::system().await?;
        unit_active_on(&bus, unit).await
    };
    let answer = tokio::time::timeout(ANSWER_LIMIT, asked).await;
    let unit = unit.to_owned();
    match answer {
        Ok(answer) => answer.map_err(|source| UnitError::Bus { unit, source }),
        Err(_) => Err(UnitError::Silent { unit }),
    }
}

async fn unit_active_on(bus: &zbus::Connection, unit: &str) -> zbus::Result<bool> {
    let path = SystemdManagerProxy::new(bus).await?.load_unit(unit).await?;
    let unit = SystemdUnitProxy::builder(bus).path(path).build().await?;
    Ok(matches!(
        unit.active_state().await?.as_str(),
        "active" | "reloading"
    ))
}
