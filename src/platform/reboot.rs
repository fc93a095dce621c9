//! Reboots the device: through logind, so that services stop cleanly and inhibitors count; or by a
//! stand-in command, for demo and tests.
//!
//! The way back out of a bad slot must not depend on that slot's logind or D-Bus, or on whoever inhibits
//! reboots in it: [`Rebooter::force`] asks systemd itself. Each attempt has a time limit.

use std::{process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use crate::update::failure::{Class, Coded};

/// Longest time for one attempt: the bus itself has no limit of its own.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(30);
/// Asks systemd over its private socket; no unit is stopped first, file systems are unmounted.
const FORCE: [&str; 4] = ["systemctl", "--no-block", "--force", "reboot"];

/// How to reboot.
#[derive(Debug, Clone)]
pub enum Rebooter {
    /// `org.freedesktop.login1`.
    Logind,
    /// A command and its arguments; not given to a shell.
    Command(Vec<String>),
}

/// Why the device does not reboot.
#[derive(Debug, thiserror::Error)]
pub enum RebootError {
    /// No way to logind, or logind refused.
    #[error(
        "logind refused the reboot; see `loginctl list-inhibitors` and `journalctl -u systemd-logind`, or reboot by hand"
    )]
    Logind(#[source] zbus::Error),
    /// Neither yes nor no.
    #[error("no answer to the request to reboot within {} s; see `systemctl status systemd-logind dbus`", ATTEMPT_LIMIT.as_secs())]
    Silent,
    /// The stand-in could not be started.
    #[error("the reboot command `{command}` cannot be started; see bootloader.reboot_command")]
    Start {
        /// Its first word.
        command: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The stand-in failed.
    #[error(
        "the reboot command `{command}` ended with {status}; see bootloader.reboot_command and the journal"
    )]
    Status {
        /// Its first word.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
}

impl Coded for RebootError {
    fn code(&self) -> &'static str {
        match self {
            Self::Logind(_) => "reboot-refused",
            Self::Silent => "reboot-no-answer",
            Self::Start { .. } | Self::Status { .. } => "reboot-command-failed",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Logind(_) | Self::Silent => Class::Wait,
            Self::Start { .. } | Self::Status { .. } => Class::Final,
        }
    }
}

#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait LogindManager {
    /// Reboots; `interactive` lets polkit ask someone.
    fn reboot(&self, interactive: bool) -> zbus::Result<()>;
}

impl Rebooter {
    /// By `command` if there is one, else through logind.
    #[must_use]
    pub fn new(command: Option<Vec<String>>) -> Self {
        command.map_or(Self::Logind, Self::Command)
    }

    /// Asks for the reboot. `Ok` means that it was accepted, not that it happened.
    ///
    /// # Errors
    /// [`RebootError`].
    pub async fn reboot(&self) -> Result<(), RebootError> {
        match self {
            Self::Logind => {
                let asked = async {
                    let bus = zbus::Connection::system().await?;
                    LogindManagerProxy::new(&bus).await?.reboot(false).await
                };
                let answer = timeout(ATTEMPT_LIMIT, asked).await;
                answer
                    .map_err(|_| RebootError::Silent)?
                    .map_err(RebootError::Logind)
            }
            Self::Command(words) => run(words).await,
        }
    }

    /// Asks for the reboot past logind and all inhibitors. Only for the way back out of a slot that failed,
    /// when [`Rebooter::reboot`] does not lead there.
    ///
    /// # Errors
    /// [`RebootError`].
    pub async fn force(&self) -> Result<(), RebootError> {
        match self {
            Self::Logind => run(&FORCE.map(str::to_owned)).await,
            Self::Command(words) => run(words).await,
        }
    }
}

async fn run(words: &[String]) -> Result<(), RebootError> {
    let (program, arguments) = words
        .split_first()
        .map_or(("", [].as_slice()), |(p, a)| (p.as_str(), a));
    let command = program.to_owned();
    let ended = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .status();
    let status = timeout(ATTEMPT_LIMIT, ended)
        .await
        .map_err(|_| RebootError::Silent)?
        .map_err(|source| RebootError::Start {
            command: command.clone(),
            source,
        })?;
    if status.success() {
        Ok(())
    } else {
        Err(RebootError::Status { command, status })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Rebooter {
        Rebooter::new(Some(words.iter().map(|w| (*w).to_owned()).collect()))
    }

    #[tokio::test]
    async fn a_stand_in_runs_without_a_shell_and_its_failure_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a b; false");
        words(&["touch", file.to_str().unwrap()])
            .reboot()
            .await
            .unwrap();
        assert!(file.exists());
        assert!(matches!(
            words(&["false"]).reboot().await,
            Err(RebootError::Status { .. })
        ));
        assert!(matches!(
            words(&["/nowhere/x"]).reboot().await,
            Err(RebootError::Start { .. })
        ));
        assert!(matches!(
            words(&[]).reboot().await,
            Err(RebootError::Start { .. })
        ));
    }
}
