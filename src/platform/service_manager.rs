//! What systemd is told (sd_notify(3)) and asked (units, watchdog, clock). Outside systemd telling does
//! nothing. An answer is waited for no longer than [`LIMIT`].

use std::{os::unix::fs::MetadataExt, time::Duration};

use sd_notify::NotifyState;

use crate::update::failure::{Class, Coded};

/// Longest wait for an answer over the system bus, connecting included.
pub const LIMIT: Duration = Duration::from_secs(30);
/// The same where a person waits.
const SHORT_LIMIT: Duration = Duration::from_secs(5);

/// Why systemd's answer is not known.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// No way to systemd, or it refused.
    #[error("systemd cannot be asked for {about}; is the system bus running?")]
    Bus {
        /// What was asked for, in words.
        about: String,
        /// Why.
        #[source]
        source: zbus::Error,
    },
    /// Nothing came back.
    #[error(
        "systemd did not answer in time about {about}; does the system bus work (`systemctl status dbus`)?"
    )]
    Silent {
        /// What was asked for, in words.
        about: String,
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

    /// The loaded units in one of the states: name, description, load, active and sub state, the unit it follows,
    /// object, job.
    fn list_units_filtered(&self, states: &[&str]) -> zbus::Result<Vec<ListedUnit>>;

    /// `RuntimeWatchdogSec=` in microseconds; 0 or the largest number: none.
    #[zbus(property, name = "RuntimeWatchdogUSec")]
    fn runtime_watchdog(&self) -> zbus::Result<u64>;
}

/// As `ListUnitsFiltered` gives it (org.freedesktop.systemd1(5)).
type ListedUnit = (
    String,
    String,
    String,
    String,
    String,
    String,
    zbus::OwnedObjectPath,
    u32,
    String,
    zbus::OwnedObjectPath,
);

#[zbus::proxy(
    interface = "org.freedesktop.timedate1",
    default_service = "org.freedesktop.timedate1",
    default_path = "/org/freedesktop/timedate1"
)]
trait TimeDate {
    /// Whether the kernel's clock is synchronised, by whatever program.
    #[zbus(property, name = "NTPSynchronized")]
    fn ntp_synchronized(&self) -> zbus::Result<bool>;
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

/// The units that have failed and were not reset or started since, in order.
///
/// # Errors
/// systemd cannot be asked, or does not answer within [`LIMIT`].
pub async fn failed_units() -> Result<Vec<String>, UnitError> {
    let asked = within(LIMIT, "list of failed units", async {
        let bus = zbus::Connection::system().await?;
        let manager = SystemdManagerProxy::new(&bus).await?;
        manager.list_units_filtered(&["failed"]).await
    });
    let mut names: Vec<_> = asked.await?.into_iter().map(|unit| unit.0).collect();
    names.sort();
    Ok(names)
}

/// How long systemd may be silent before the hardware resets the device; `None` without that.
///
/// # Errors
/// systemd cannot be asked, or does not answer within a few seconds.
pub async fn runtime_watchdog() -> Result<Option<Duration>, UnitError> {
    let asked = within(SHORT_LIMIT, "its watchdog", async {
        let bus = zbus::Connection::system().await?;
        let manager = SystemdManagerProxy::new(&bus).await?;
        manager.runtime_watchdog().await
    });
    let usec = Some(asked.await?).filter(|usec| !matches!(*usec, 0 | u64::MAX));
    Ok(usec.map(Duration::from_micros))
}

/// Whether the clock is synchronised.
///
/// # Errors
/// systemd-timedated cannot be asked, or does not answer within a few seconds.
pub async fn clock_is_synchronised() -> Result<bool, UnitError> {
    within(SHORT_LIMIT, "the clock", async {
        let bus = zbus::Connection::system().await?;
        TimeDateProxy::new(&bus).await?.ntp_synchronized().await
    })
    .await
}

async fn within<T>(
    limit: Duration,
    about: &str,
    asked: impl Future<Output = zbus::Result<T>>,
) -> Result<T, UnitError> {
    let about = about.to_owned();
    match tokio::time::timeout(limit, asked).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(UnitError::Bus { about, source }),
        Err(_) => Err(UnitError::Silent { about }),
    }
}

async fn unit_active_on(
    bus: impl Future<Output = zbus::Result<zbus::Connection>>,
    unit: &str,
    limit: Duration,
) -> Result<bool, UnitError> {
    let asked = async { active_state(&bus.await?, unit).await };
    let state = within(limit, &format!("unit {unit}"), asked).await?;
    Ok(matches!(state.as_str(), "active" | "reloading"))
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
