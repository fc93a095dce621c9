//! What systemd is told (sd_notify(3)) and asked (the state of a unit). Outside systemd telling does
//! nothing. An answer is waited for no longer than [`LIMIT`].

use std::{os::unix::fs::MetadataExt, time::Duration};

use sd_notify::NotifyState;

use crate::update::failure::{Class, Coded};

/// Longest wait for an answer over the system bus, connecting included.
pub const LIMIT: Duration = Duration::from_secs(30);

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
    /// Nothing came back.
    #[error(
        "systemd did not answer within {} s about unit {unit}; does the system bus work (`systemctl status dbus`)?", LIMIT.as_secs()
    )]
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
/// systemd cannot be asked, or does not answer within [`LIMIT`].
pub async fn unit_active(unit: &str) -> Result<bool, UnitError> {
    unit_active_on(zbus::Connection::system(), unit, LIMIT).await
}

async fn unit_active_on(
    bus: impl Future<Output = zbus::Result<zbus::Connection>>,
    unit: &str,
    limit: Duration,
) -> Result<bool, UnitError> {
    let unit = unit.to_owned();
    match tokio::time::timeout(limit, async { active_state(&bus.await?, &unit).await }).await {
        Ok(Ok(state)) => Ok(matches!(state.as_str(), "active" | "reloading")),
        Ok(Err(source)) => Err(UnitError::Bus { unit, source }),
        Err(_) => Err(UnitError::Silent { unit }),
    }
}

async fn active_state(bus: &zbus::Connection, unit: &str) -> zbus::Result<String> {
    let path = SystemdManagerProxy::new(bus).await?.load_unit(unit).await?;
    let unit = SystemdUnitProxy::builder(bus).path(path).build().await?;
    unit.active_state().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_bus_that_takes_the_connection_and_says_nothing_is_given_up() {
        let (ours, _silent) = std::os::unix::net::UnixStream::pair().unwrap();
        let bus = zbus::connection::Builder::unix_stream(ours).build();
        let asked = unit_active_on(bus, "x.service", Duration::from_millis(200)).await;
        assert!(matches!(asked, Err(UnitError::Silent { .. })), "{asked:?}");
    }
}
