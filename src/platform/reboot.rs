//! Reboots the device: through logind, so that services stop cleanly and inhibitors count; or by a
//! stand-in command, for demo and tests.
//!
//! Every attempt ends within [`LIMIT`]. A rollback does not take a no for an answer: it leaves a slot that may
//! be sick in just the parts that a clean reboot needs. From its [`FORCED_FROM`]th attempt on, so after two that
//! were refused, timed out or had no effect, `systemctl --force reboot` asks PID 1 by its own socket, without
//! D-Bus, logind and inhibitors. Any other reboot stays polite: what holds it back is looked at before anything is armed
//! (`daemon/policy/reboot.rs`), since logind before systemd 257 lets root pass by every inhibitor.

use std::{
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::process::Command;
use tracing::warn;

use crate::update::failure::{Class, Coded, chain};

/// Longest wait for logind or a command, connecting included.
pub const LIMIT: Duration = Duration::from_secs(30);
/// The attempt of a rollback from which on it is forced.
pub const FORCED_FROM: u32 = 3;
/// The forced reboot, which `fwupdated-trial.service` uses too.
pub const FORCED: [&str; 4] = ["/bin/systemctl", "--no-block", "--force", "reboot"];
/// Pause after the first attempt that came to nothing; it doubles with each, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// How to reboot.
#[derive(Debug, Clone)]
enum Way {
    /// `org.freedesktop.login1`.
    Logind,
    /// A command and its arguments; not given to a shell.
    Command(Vec<String>),
}

/// What a reboot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// An update or a person asks: a no counts.
    Request,
    /// The armed slot is to be tried: a no counts too, and the bootloader may want to be told.
    Trial {
        /// Programs that inhibit the reboot were waited for long enough.
        past_inhibitors: bool,
    },
    /// The slot that runs must not go on running.
    Rollback,
}

/// Reboots, and remembers how often that came to nothing.
#[derive(Debug)]
pub struct Rebooter {
    way: Way,
    /// For a rollback that gets nowhere; none with a stand-in, which must not reboot the machine it runs on.
    forced: Option<Vec<String>>,
    /// Attempts of a rollback. Each but the first proves that the one before had no effect.
    attempts: AtomicU32,
}

/// Why the device does not reboot.
#[derive(Debug, thiserror::Error)]
pub enum RebootError {
    /// No way to logind, or logind refused.
    #[error(
        "logind refused the reboot; see `loginctl list-inhibitors` and `journalctl -u systemd-logind`, or reboot by hand"
    )]
    Logind(#[source] zbus::Error),
    /// Nothing came back.
    #[error(
        "logind did not answer within {} s; see `systemctl status dbus systemd-logind`, or reboot by hand", LIMIT.as_secs()
    )]
    LogindSilent,
    /// The command could not be started.
    #[error(
        "the reboot command `{command}` cannot be started; {}",
        remedy(command)
    )]
    Start {
        /// Its first word.
        command: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The command failed.
    #[error(
        "the reboot command `{command}` ended with {status}; {}",
        remedy(command)
    )]
    Status {
        /// Its first word.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// The command did not end.
    #[error(
        "the reboot command `{command}` did not end within {} s and was killed; {}", LIMIT.as_secs(), remedy(command)
    )]
    CommandSilent {
        /// Its first word.
        command: String,
    },
}

fn remedy(command: &str) -> &'static str {
    if command == FORCED[0] {
        "reboot by hand"
    } else {
        "correct bootloader.reboot_command"
    }
}

impl Coded for RebootError {
    fn code(&self) -> &'static str {
        match self {
            Self::Logind(_) | Self::LogindSilent => "reboot-refused",
            Self::Start { .. } | Self::Status { .. } | Self::CommandSilent { .. } => {
                "reboot-command-failed"
            }
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Logind(_) | Self::LogindSilent => Class::Wait,
            Self::Start { .. } | Self::Status { .. } | Self::CommandSilent { .. } => Class::Final,
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
    /// The same, with flags such as [`SKIP_INHIBITORS`].
    fn reboot_with_flags(&self, flags: u64) -> zbus::Result<()>;
    /// What the kernel is told at the next reboot; an empty text for nothing. Kept in `/run/systemd/reboot-param`.
    fn set_reboot_parameter(&self, parameter: &str) -> zbus::Result<()>;
}

/// `SD_LOGIND_SKIP_INHIBITORS`, from systemd 257 on. Before that no inhibitor stands in root's way.
const SKIP_INHIBITORS: u64 = 1 << 4;

impl Rebooter {
    /// By `command` if there is one, else through logind.
    #[must_use]
    pub fn new(command: Option<Vec<String>>) -> Self {
        let forced = command.is_none().then(|| FORCED.map(str::to_owned).into());
        Self {
            way: command.map_or(Way::Logind, Way::Command),
            forced,
            attempts: AtomicU32::new(0),
        }
    }

    /// Asks for the reboot, with an `argument` for the kernel if there is one. `Ok` means that it was accepted, not that
    /// it happened. A stand-in gets the argument as one more word.
    ///
    /// # Errors
    /// [`RebootError`], after [`LIMIT`] at the latest.
    pub async fn reboot(
        &self,
        purpose: Purpose,
        argument: Option<&str>,
    ) -> Result<(), RebootError> {
        if purpose == Purpose::Rollback {
            let attempt = self.attempts.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some(forced) = self.forced.as_ref().filter(|_| attempt >= FORCED_FROM) {
                warn!(
                    "{} reboots for the rollback had no effect; forcing it",
                    attempt - 1
                );
                return run(forced).await;
            }
        }
        match &self.way {
            Way::Logind => {
                let past = purpose
                    == Purpose::Trial {
                        past_inhibitors: true,
                    };
                let asked =
                    async { ask_logind(&zbus::Connection::system().await?, argument, past).await };
                within_limit(asked).await
            }
            Way::Command(words) => {
                let mut words = words.clone();
                words.extend(argument.map(str::to_owned));
                run(&words).await
            }
        }
    }

    /// The reboot that was asked for did not happen: the next one, whoever asks for it, must not carry its argument.
    pub async fn withdraw(&self) {
        if let Way::Logind = self.way {
            let cleared = async { clear(&zbus::Connection::system().await?).await };
            if let Err(error) = within_limit(cleared).await {
                warn!(
                    fwupdated_error_code = error.code(),
                    "the reboot parameter cannot be cleared: {}",
                    chain(&error)
                );
            }
        }
    }

    /// How long to wait before an attempt that came to nothing is reported, and so repeated: asking again and
    /// again must stay harmless for journal and flash.
    pub fn pause(&self) -> Duration {
        let doublings = self.attempts.load(Ordering::Relaxed).saturating_sub(1);
        (FIRST_PAUSE * 2_u32.pow(doublings.min(10))).min(LONGEST_PAUSE)
    }
}

async fn within_limit(asked: impl Future<Output = zbus::Result<()>>) -> Result<(), RebootError> {
    match tokio::time::timeout(LIMIT, asked).await {
        Ok(answer) => answer.map_err(RebootError::Logind),
        Err(_) => Err(RebootError::LogindSilent),
    }
}

/// Asks logind for the reboot. The argument stays with logind when the reboot is refused: see [`Rebooter::withdraw`].
async fn ask_logind(
    bus: &zbus::Connection,
    argument: Option<&str>,
    past_inhibitors: bool,
) -> zbus::Result<()> {
    let logind = LogindManagerProxy::new(bus).await?;
    if let Some(argument) = argument {
        logind.set_reboot_parameter(argument).await?;
    }
    // A logind that does not know the flag lets root pass without it.
    if past_inhibitors && logind.reboot_with_flags(SKIP_INHIBITORS).await.is_ok() {
        return Ok(());
    }
    logind.reboot(false).await
}

async fn clear(bus: &zbus::Connection) -> zbus::Result<()> {
    let logind = LogindManagerProxy::new(bus).await?;
    logind.set_reboot_parameter("").await
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
    match tokio::time::timeout(LIMIT, ended).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(RebootError::Status { command, status }),
        Ok(Err(source)) => Err(RebootError::Start { command, source }),
        Err(_) => Err(RebootError::CommandSilent { command }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| (*w).to_owned()).collect()
    }

    async fn ask(command: &[&str]) -> Result<(), RebootError> {
        let rebooter = Rebooter::new(Some(words(command)));
        rebooter.reboot(Purpose::Request, None).await
    }

    #[tokio::test]
    async fn a_stand_in_runs_without_a_shell_and_its_failure_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a b; false");
        ask(&["touch", file.to_str().unwrap()]).await.unwrap();
        assert!(file.exists());
        assert!(matches!(
            ask(&["false"]).await,
            Err(RebootError::Status { .. })
        ));
        assert!(matches!(
            ask(&["/nowhere/x"]).await,
            Err(RebootError::Start { .. })
        ));
        assert!(matches!(ask(&[]).await, Err(RebootError::Start { .. })));
    }

    #[tokio::test]
    async fn the_argument_for_the_kernel_is_one_word() {
        let dir = tempfile::tempdir().unwrap();
        let said = dir.path().join("said");
        let script = format!("printf '%s|' \"$@\" > {}", said.display());
        let rebooter = Rebooter::new(Some(words(&["sh", "-c", &script, "sh"])));
        rebooter
            .reboot(
                Purpose::Trial {
                    past_inhibitors: false,
                },
                Some("0 tryboot"),
            )
            .await
            .unwrap();
        assert_eq!(std::fs::read_to_string(&said).unwrap(), "0 tryboot|");
    }

    /// logind, as far as it is asked here; an old one or a new one.
    struct Logind(mpsc::Sender<String>, bool);

    #[zbus::interface(name = "org.freedesktop.login1.Manager")]
    impl Logind {
        fn reboot(&self, interactive: bool) {
            self.0.send(format!("reboot {interactive}")).unwrap();
        }

        fn reboot_with_flags(&self, flags: u64) -> zbus::fdo::Result<()> {
            self.0.send(format!("reboot with {flags}")).unwrap();
            match flags {
                // As one does that is older than the flag.
                SKIP_INHIBITORS if self.1 => Err(zbus::fdo::Error::InvalidArgs("flags".into())),
                _ => Ok(()),
            }
        }

        fn set_reboot_parameter(&self, parameter: &str) {
            self.0.send(format!("parameter {parameter:?}")).unwrap();
        }
    }

    /// A connection to a logind, and what it is told.
    async fn logind(is_old: bool) -> (zbus::Connection, zbus::Connection, mpsc::Receiver<String>) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (tell, told) = mpsc::channel();
        let serving = zbus::connection::Builder::unix_stream(theirs)
            .server(zbus::Guid::generate())
            .p2p()
            .serve_at("/org/freedesktop/login1", Logind(tell, is_old))
            .build();
        let asking = zbus::connection::Builder::unix_stream(ours).p2p().build();
        let (logind, bus) = tokio::try_join!(serving, asking).unwrap();
        (bus, logind, told)
    }

    #[tokio::test]
    async fn logind_is_told_the_argument_first_and_forgets_it_when_it_is_withdrawn() {
        let (bus, _logind, told) = logind(false).await;
        ask_logind(&bus, Some("0 tryboot"), false).await.unwrap();
        clear(&bus).await.unwrap();
        ask_logind(&bus, None, false).await.unwrap();
        let said: Vec<_> = told.try_iter().collect();
        assert_eq!(
            said,
            [
                "parameter \"0 tryboot\"",
                "reboot false",
                "parameter \"\"",
                "reboot false"
            ]
        );
    }

    #[tokio::test]
    async fn inhibitors_that_were_waited_for_long_enough_are_passed_by_as_logind_s_version_wants_it()
     {
        for (is_old, expected) in [
            (false, vec!["reboot with 16"]),
            (true, vec!["reboot with 16", "reboot false"]),
        ] {
            let (bus, _logind, told) = logind(is_old).await;
            ask_logind(&bus, None, true).await.unwrap();
            assert_eq!(told.try_iter().collect::<Vec<_>>(), expected);
        }
    }

    /// One whose polite way always fails, with a file that the forced one leaves.
    fn refused(dir: &std::path::Path) -> (Rebooter, std::path::PathBuf) {
        let file = dir.join("forced");
        let rebooter = Rebooter {
            way: Way::Command(words(&["false"])),
            forced: Some(words(&["touch", file.to_str().unwrap()])),
            attempts: AtomicU32::new(0),
        };
        (rebooter, file)
    }

    #[tokio::test]
    async fn a_rollback_that_is_refused_twice_is_forced_at_the_third_attempt() {
        let dir = tempfile::tempdir().unwrap();
        let (rebooter, file) = refused(dir.path());
        for _ in 1..FORCED_FROM {
            assert!(rebooter.reboot(Purpose::Rollback, None).await.is_err());
            assert!(!file.exists());
        }
        rebooter.reboot(Purpose::Rollback, None).await.unwrap();
        assert!(file.exists());
    }

    #[tokio::test]
    async fn a_reboot_on_request_is_never_forced_and_its_pause_stays_short() {
        let dir = tempfile::tempdir().unwrap();
        let (rebooter, file) = refused(dir.path());
        for _ in 0..2 * FORCED_FROM {
            assert!(rebooter.reboot(Purpose::Request, None).await.is_err());
        }
        assert!(!file.exists());
        assert_eq!(rebooter.pause(), FIRST_PAUSE);
    }

    #[tokio::test]
    async fn the_pauses_of_a_rollback_that_gets_nowhere_grow_up_to_a_bound() {
        let rebooter = Rebooter::new(Some(words(&["false"])));
        let mut pauses = Vec::new();
        for _ in 0..40 {
            assert!(rebooter.reboot(Purpose::Rollback, None).await.is_err());
            pauses.push(rebooter.pause().as_secs());
        }
        assert_eq!(pauses[..8], [5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(pauses[39], 300);
    }

    #[test]
    fn only_a_real_board_is_forced() {
        assert_eq!(Rebooter::new(None).forced.unwrap(), FORCED);
        assert!(Rebooter::new(Some(words(&["touch", "x"]))).forced.is_none());
    }
}
