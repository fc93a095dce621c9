//! Commands for the device this runs on: `status`, `install`, `cancel`, `approve`, `defer`, `rollback`, `mark-good`,
//! `mark-bad`, `slots`, `history`.
//!
//! They speak to the daemon over its control socket, or over the system bus where that is closed to the user. Without
//! the daemon, what only reads (`status`, `slots`, `history`) says what the state directory knows.

mod client;
mod error;
mod saved;
mod show;
mod tables;
mod watch;

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Subcommand;

pub(super) use self::client::DaemonAt;
use self::{client::Client, error::LocalError, saved::Saved};
use super::{
    exit, failed,
    output::{clean, line, note},
};
use crate::{
    daemon::control_names::{Answer, InstallRequest, WhichSlot},
    image::DetachedSignatures,
    update::{digest::Sha256, failure::Failure, status::Status, uri::PackageUri},
};

/// What can be asked of the daemon.
#[derive(Debug, Subcommand)]
pub(super) enum LocalCommand {
    /// Show what runs here, the slots, the connection to the hub and the update
    Status {
        /// Go on until the update under way has ended; the exit code tells how
        #[arg(long)]
        watch: bool,
        /// Print the daemon's status document; with --watch one line per change
        #[arg(long)]
        json: bool,
        /// With --watch: stop waiting after this long, such as 90s or 1h
        #[arg(long, value_name = "DURATION", value_parser = super::duration, requires = "watch")]
        timeout: Option<Duration>,
    },
    /// Install the image at an address, as the hub's method firmwareUpdate would, or from a file of this device
    Install {
        /// The image's address, https://; or a file, such as one on a USB stick. A file is held to the same checks; a
        /// detached signature is looked for beside it
        #[arg(value_name = "URL|FILE")]
        image: ImageArgument,
        /// Refuse the image unless it is of this version
        #[arg(long, value_name = "VERSION")]
        version: Option<String>,
        /// The digest of the image's file, 64 hex digits
        #[arg(long, value_name = "HEX")]
        sha256: Option<Sha256>,
        /// A name for this update; one is made when absent
        #[arg(long)]
        id: Option<String>,
        /// Do not wait for the policy, and forget that this image was rolled back before; no check is skipped
        #[arg(long)]
        force: bool,
        /// Go on until the update has ended; the exit code tells how
        #[arg(long)]
        watch: bool,
        /// With --watch: stop waiting after this long, such as 90s or 1h
        #[arg(long, value_name = "DURATION", value_parser = super::duration, requires = "watch")]
        timeout: Option<Duration>,
    },
    /// Stop the update under way, if it can still be stopped
    Cancel,
    /// Let the update that waits go on: its start where that needs approval, or the reboot into it
    Approve {
        /// Only if the update that waits is this one
        id: Option<String>,
        /// Wait for nothing else: no window, no delay, no idle device
        #[arg(long)]
        now: bool,
    },
    /// Put the update that waits, or the reboot into it, off; policy.max_deferral is the limit
    Defer {
        /// For so long, such as 30m, 2h or 1d
        #[arg(value_parser = super::duration)]
        duration: Duration,
        /// Only if the update that waits is this one
        #[arg(long)]
        id: Option<String>,
    },
    /// Go back: reject the trial boot under way, else try the version in the other slot
    ///
    /// Without a trial, the other slot must hold a version that was confirmed on this device, and that was neither
    /// written to nor marked bad since. It is booted on trial like an update: until its health was checked, the
    /// present version stays the one that boots when anything fails. No window and no approval is waited for.
    Rollback {
        /// Go on until it has ended; the exit code tells how
        #[arg(long)]
        watch: bool,
    },
    /// Confirm the trial boot under way now, without waiting for its health checks
    MarkGood,
    /// Mark a slot bad: reject the trial boot, or never boot the other slot again before it is written anew
    MarkBad {
        /// a, b, running, or other (than the running one)
        #[arg(default_value = "running")]
        slot: WhichSlot,
    },
    /// Show both slots: which runs and which is confirmed, version, device, size, what was installed
    Slots {
        /// Print a JSON list
        #[arg(long)]
        json: bool,
    },
    /// Show the updates of this device, newest first
    History {
        /// So many at most
        #[arg(
            short = 'n',
            long = "lines",
            value_name = "COUNT",
            default_value_t = 20
        )]
        count: u32,
        /// Print one JSON document a line
        #[arg(long)]
        json: bool,
    },
}

/// An image on the command line. Judged by the command, not by the parser of the command line, which would repeat a
/// wrong address with its secrets.
#[derive(Debug, Clone)]
pub(super) enum ImageArgument {
    /// At an address.
    At(super::UriArgument),
    /// In a file.
    In(PathBuf),
}

impl From<&str> for ImageArgument {
    fn from(text: &str) -> Self {
        let begins = ["http:", "https:", "//"];
        let is_address = text.contains("://") || begins.iter().any(|it| text.starts_with(it));
        // What may hold a secret and names no file is more likely a mistyped address, which must not be repeated.
        let is_suspect = || text.contains(['?', '@']) && !Path::new(text).exists();
        match is_address || is_suspect() {
            true => Self::At(text.into()),
            false => Self::In(text.into()),
        }
    }
}

/// Carries `command` out, with the daemon `at` some place. Returns the exit code.
pub(super) async fn run(command: LocalCommand, at: &DaemonAt, state_dir: &Path) -> u8 {
    carry_out(command, at, state_dir)
        .await
        .unwrap_or_else(|error| failed(&error, error.exit_code()))
}

async fn carry_out(
    command: LocalCommand,
    at: &DaemonAt,
    state_dir: &Path,
) -> Result<u8, LocalError> {
    match command {
        LocalCommand::Status {
            watch: false, json, ..
        } => status(at, state_dir, json).await,
        LocalCommand::Status {
            watch: true,
            json,
            timeout,
        } => watch::watch(at, None, json, timeout).await,
        LocalCommand::Install {
            image,
            version,
            sha256,
            id,
            force,
            watch,
            timeout,
        } => {
            let (uri, path) = match image {
                ImageArgument::At(uri) => (uri.0?, None),
                ImageArgument::In(path) => (PackageUri::unknown(), Some(path)),
            };
            let request = InstallRequest {
                fw_package_uri: uri,
                fw_version: version,
                fw_package_sha256: sha256,
                update_id: id,
                force,
            };
            let answer = match path {
                None => Client::connect(at).await?.install(&request).await?,
                Some(path) => install_file(at, &path, &request).await?,
            };
            follow(at, &answer, watch, timeout).await
        }
        LocalCommand::Cancel => Ok(answered(&Client::connect(at).await?.cancel().await?)),
        LocalCommand::Approve { id, now } => {
            let client = Client::connect(at).await?;
            Ok(answered(&client.approve(id.as_deref(), now).await?))
        }
        LocalCommand::Defer { duration, id } => {
            let client = Client::connect(at).await?;
            Ok(answered(&client.defer(id.as_deref(), duration).await?))
        }
        LocalCommand::Rollback { watch } => {
            let answer = Client::connect(at).await?.rollback().await?;
            follow(at, &answer, watch, None).await
        }
        LocalCommand::MarkGood => Ok(answered(&Client::connect(at).await?.mark_good().await?)),
        LocalCommand::MarkBad { slot } => {
            let client = Client::connect(at).await?;
            Ok(answered(&client.mark_bad(&slot.to_string()).await?))
        }
        LocalCommand::Slots { json } => slots(at, state_dir, json).await,
        LocalCommand::History { count, json } => history(at, state_dir, count, json).await,
    }
}

/// Who tells what is known of this device.
enum Found {
    Daemon(Client),
    /// What it saved, while it does not run.
    Saved(Box<Saved>),
}

async fn find(at: &DaemonAt, state_dir: &Path) -> Result<Found, LocalError> {
    match Client::connect(at).await {
        Ok(client) => Ok(Found::Daemon(client)),
        Err(error @ LocalError::NoDaemon { .. }) => {
            let saved = saved::read(state_dir)?.ok_or(error)?;
            Ok(Found::Saved(Box::new(saved)))
        }
        Err(error) => Err(error),
    }
}

async fn status(at: &DaemonAt, state_dir: &Path, json: bool) -> Result<u8, LocalError> {
    let (status, code) = match find(at, state_dir).await? {
        Found::Daemon(client) => (client.status().await?, exit::OK),
        Found::Saved(saved) => (saved.status, exit::UNREACHABLE),
    };
    if json {
        line(serde_json::to_string(&status).unwrap_or_default());
    } else {
        show::status(&status).iter().for_each(line);
    }
    Ok(code)
}

async fn slots(at: &DaemonAt, state_dir: &Path, json: bool) -> Result<u8, LocalError> {
    let (slots, code) = match find(at, state_dir).await? {
        Found::Daemon(client) => (client.slots().await?, exit::OK),
        Found::Saved(saved) => (saved.slots(), exit::UNREACHABLE),
    };
    if json {
        line(serde_json::to_string(&slots).unwrap_or_default());
    } else {
        tables::slots(&slots).iter().for_each(line);
    }
    Ok(code)
}

/// What is in the file is all there is to know, so that the daemon is missed by nobody.
async fn history(
    at: &DaemonAt,
    state_dir: &Path,
    count: u32,
    json: bool,
) -> Result<u8, LocalError> {
    let updates = match Client::connect(at).await {
        Ok(client) => client.history(count).await?,
        Err(LocalError::NoDaemon { .. }) => saved::history(state_dir, count)?,
        Err(error) => return Err(error),
    };
    if json {
        let documents = updates.iter().map(serde_json::to_string);
        documents.for_each(|document| line(document.unwrap_or_default()));
    } else if updates.is_empty() {
        line("No update so far.");
    } else {
        tables::history(&updates).iter().for_each(line);
    }
    Ok(exit::OK)
}

/// What the daemon says of itself.
///
/// # Errors
/// It cannot be asked, or does not answer.
pub(super) async fn ask_status(at: &DaemonAt) -> Result<Status, Failure> {
    let asked = async { Client::connect(at).await?.status().await };
    asked.await.map_err(|error| Failure::from(&error))
}

/// Opens the file for the daemon, which may not be able to see it.
async fn install_file(
    at: &DaemonAt,
    path: &Path,
    request: &InstallRequest,
) -> Result<Answer, LocalError> {
    let failed = |source| LocalError::File {
        path: path.to_owned(),
        source,
    };
    // Opening a pipe would wait for whoever writes to it.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        let text = "it is no regular file";
        return Err(failed(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            text,
        )));
    }
    let file = File::open(path).map_err(failed)?;
    let path = path.canonicalize().map_err(failed)?;
    let beside = DetachedSignatures::beside(&path);
    let signature = match std::fs::read(&beside) {
        Ok(signature) => signature,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(source) => {
            return Err(LocalError::File {
                path: beside,
                source,
            });
        }
    };
    let client = Client::connect(at).await?;
    client
        .install_file(&path, &file.into(), &signature, request)
        .await
}

/// Shows the answer; goes on to the end of the update, if that is wanted.
async fn follow(
    at: &DaemonAt,
    answer: &Answer,
    watch: bool,
    timeout: Option<Duration>,
) -> Result<u8, LocalError> {
    let code = answered(answer);
    if !watch || !answer.accepted() {
        return Ok(code);
    }
    let id = answer.update_id().map(str::to_owned);
    watch::watch(at, id, false, timeout).await
}

/// Shows the daemon's answer: on standard output what succeeded, on standard error what did not.
fn answered(answer: &Answer) -> u8 {
    if answer.accepted() {
        let id = answer
            .update_id()
            .map(|id| format!(", update {id}"))
            .unwrap_or_default();
        line(clean(&format!("{}{id}", answer.text())));
    } else {
        note(clean(&format!(
            "the daemon refused ({}): {}",
            answer.status,
            answer.text()
        )));
    }
    exit::for_answer(answer.status)
}
