//! Who would mind a reboot, as logind knows it (org.freedesktop.login1(5)): users who are logged in, and programs that
//! inhibit it; and the warning of those users.
//!
//! The warning is a shutdown scheduled as a rehearsal (`dry-reboot`): logind writes on every terminal when it will be, again
//! and again, and then does nothing. So a daemon that dies meanwhile leaves no reboot behind. An answer is waited for no
//! longer than `LIMIT`.

use std::time::Duration;

use jiff::Timestamp;

use crate::update::failure::{Class, Coded};

/// Longest wait for logind, connecting included.
const LIMIT: Duration = Duration::from_secs(30);

/// Why logind's answer is not known.
#[derive(Debug, thiserror::Error)]
pub enum LogindError {
    /// No way to logind, or it refused.
    #[error(
        "logind cannot be asked for {about}; see `systemctl status dbus systemd-logind`, and set policy.max_inhibit and \
         policy.reboot_notice to \"0s\" where there is none"
    )]
    Bus {
        /// What was asked for, in words.
        about: &'static str,
        /// Why.
        #[source]
        source: zbus::Error,
    },
    /// Nothing came back.
    #[error(
        "logind did not answer within {} s about {about}; see `systemctl status dbus systemd-logind`", LIMIT.as_secs()
    )]
    Silent {
        /// What was asked for, in words.
        about: &'static str,
    },
}

impl Coded for LogindError {
    fn code(&self) -> &'static str {
        match self {
            Self::Bus { .. } | Self::Silent { .. } => "logind-unreachable",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Bus { .. } | Self::Silent { .. } => Class::Retry,
        }
    }
}

/// Id, user id, user, seat and object of a session.
type ListedSession = (String, u32, String, String, zbus::OwnedObjectPath);
/// What it inhibits, who, why, how, user id and process of an inhibitor.
type ListedInhibitor = (String, String, String, String, u32, u32);

#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Manager {
    /// All sessions.
    fn list_sessions(&self) -> zbus::Result<Vec<ListedSession>>;
    /// All inhibitors.
    fn list_inhibitors(&self) -> zbus::Result<Vec<ListedInhibitor>>;
    /// What is said to users before a shutdown, and whether anything is.
    fn set_wall_message(&self, message: &str, enable: bool) -> zbus::Result<()>;
    /// Announces a shutdown at microseconds of the wall clock.
    fn schedule_shutdown(&self, kind: &str, at: u64) -> zbus::Result<()>;
    /// Takes that back.
    fn cancel_scheduled_shutdown(&self) -> zbus::Result<bool>;
    /// What kind of shutdown is announced, for when: 0 or the largest number for none, as its version is.
    #[zbus(property(emits_changed_signal = "false"))]
    fn scheduled_shutdown(&self) -> zbus::Result<(String, u64)>;
}

#[zbus::proxy(
    interface = "org.freedesktop.login1.Session",
    default_service = "org.freedesktop.login1"
)]
trait Session {
    /// `user`, `greeter`, `manager`, ...
    #[zbus(property(emits_changed_signal = "false"))]
    fn class(&self) -> zbus::Result<String>;
    /// `online`, `active`, `closing`.
    #[zbus(property(emits_changed_signal = "false"))]
    fn state(&self) -> zbus::Result<String>;
}

/// A program that inhibits a reboot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inhibitor {
    /// Its name for people.
    pub who: String,
    /// Its reason, for people.
    pub why: String,
}

/// The users who are logged in, each once, in order.
///
/// # Errors
/// logind cannot be asked, or does not answer within `LIMIT`.
pub async fn users() -> Result<Vec<String>, LogindError> {
    within(LIMIT, "the users who are logged in", async {
        users_on(&zbus::Connection::system().await?).await
    })
    .await
}

/// The programs that inhibit a reboot.
///
/// # Errors
/// logind cannot be asked, or does not answer within `LIMIT`.
pub async fn inhibitors() -> Result<Vec<Inhibitor>, LogindError> {
    within(LIMIT, "inhibitors", async {
        inhibitors_on(&zbus::Connection::system().await?).await
    })
    .await
}

/// Tells every user on their terminals that the device reboots at `at`, and `message`. A shutdown that someone has scheduled
/// stays, and says enough.
///
/// # Errors
/// logind cannot be asked, or does not answer within `LIMIT`.
pub async fn warn_users(message: &str, at: Timestamp) -> Result<(), LogindError> {
    within(LIMIT, "a warning of its users", async {
        warn_on(&zbus::Connection::system().await?, message, at).await
    })
    .await
}

/// Takes the warning of a reboot at `at` back.
///
/// # Errors
/// logind cannot be asked, or does not answer within `LIMIT`.
pub async fn withdraw_warning(at: Timestamp) -> Result<(), LogindError> {
    within(LIMIT, "the end of the warning", async {
        withdraw_on(&zbus::Connection::system().await?, at).await
    })
    .await
}

async fn within<T>(
    limit: Duration,
    about: &'static str,
    asked: impl Future<Output = zbus::Result<T>>,
) -> Result<T, LogindError> {
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => answer.map_err(|source| LogindError::Bus { about, source }),
        Err(_) => Err(LogindError::Silent { about }),
    }
}

async fn users_on(bus: &zbus::Connection) -> zbus::Result<Vec<String>> {
    let mut users = Vec::new();
    for (_, _, user, _, path) in ManagerProxy::new(bus).await?.list_sessions().await? {
        let session = SessionProxy::builder(bus).path(path).build().await?;
        // One that has ended meanwhile is none.
        let (Ok(class), Ok(state)) = (session.class().await, session.state().await) else {
            continue;
        };
        // Greeters, background jobs and each user's own service manager are nobody's presence.
        if class.starts_with("user") && state != "closing" {
            users.push(user);
        }
    }
    users.sort_unstable();
    users.dedup();
    Ok(users)
}

async fn inhibitors_on(bus: &zbus::Connection) -> zbus::Result<Vec<Inhibitor>> {
    let listed = ManagerProxy::new(bus).await?.list_inhibitors().await?;
    Ok(listed
        .into_iter()
        // A delay is logind's business: it waits for those itself. A weak block does not bind root, but is meant.
        .filter(|(what, _, _, mode, ..)| {
            mode.starts_with("block") && what.split(':').any(|what| what == "shutdown")
        })
        .map(|(_, who, why, ..)| Inhibitor { who, why })
        .collect())
}

async fn warn_on(bus: &zbus::Connection, message: &str, at: Timestamp) -> zbus::Result<()> {
    let logind = ManagerProxy::new(bus).await?;
    if !matches!(logind.scheduled_shutdown().await?.1, 0 | u64::MAX) {
        return Ok(());
    }
    logind.set_wall_message(message, true).await?;
    logind
        .schedule_shutdown("dry-reboot", microseconds(at))
        .await
}

async fn withdraw_on(bus: &zbus::Connection, at: Timestamp) -> zbus::Result<()> {
    let logind = ManagerProxy::new(bus).await?;
    // Another's is not ours to take back. logind does not tell a rehearsal from what it rehearses, but the time does.
    if logind.scheduled_shutdown().await?.1 == microseconds(at) {
        logind.cancel_scheduled_shutdown().await?;
    }
    Ok(())
}

fn microseconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_microsecond()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
