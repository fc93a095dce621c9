//! Commands for the device this runs on: `status`, `install`, `cancel`.
//!
//! They speak to the daemon over its control socket. Without the daemon, `status` still
//! says what the state file knows.

mod client;
mod show;
mod watch;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Subcommand;
use jiff::Timestamp;

use self::client::{Client, LocalError};
use super::{
    exit, failed,
    output::{clean, line, note},
};
use crate::{
    daemon::control_names::{Answer, InstallRequest},
    update::{digest::Sha256, failure::Failure, status::Status},
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
    /// Install the image at URL, as the hub's method firmwareUpdate would
    Install {
        /// The image's address, https://
        url: super::UriArgument,
        /// Refuse the image unless it is of this version
        #[arg(long, value_name = "VERSION")]
        version: Option<String>,
        /// The digest of the file at URL, 64 hex digits
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
}

/// Carries `command` out over `socket`. Returns the exit code.
pub(super) async fn run(command: LocalCommand, socket: &Path, state_dir: &Path) -> u8 {
    carry_out(command, socket, state_dir)
        .await
        .unwrap_or_else(|error| failed(&error, error.exit_code()))
}

async fn carry_out(
    command: LocalCommand,
    socket: &Path,
    state_dir: &Path,
) -> Result<u8, LocalError> {
    match command {
        LocalCommand::Status {
            watch: false, json, ..
        } => status(socket, state_dir, json).await,
        LocalCommand::Status {
            watch: true,
            json,
            timeout,
        } => watch::watch(socket, None, json, timeout).await,
        LocalCommand::Install {
            url,
            version,
            sha256,
            id,
            force,
            watch,
            timeout,
        } => {
            let request = InstallRequest {
                fw_package_uri: url.0?,
                fw_version: version,
                fw_package_sha256: sha256,
                update_id: id,
                force,
            };
            install(socket, &request, watch, timeout).await
        }
        LocalCommand::Cancel => cancel(socket).await,
        LocalCommand::Approve { id, now } => {
            let client = Client::connect(socket).await?;
            Ok(answered(&client.approve(id.as_deref(), now).await?))
        }
        LocalCommand::Defer { duration, id } => {
            let client = Client::connect(socket).await?;
            Ok(answered(&client.defer(id.as_deref(), duration).await?))
        }
    }
}

async fn status(socket: &Path, state_dir: &Path, json: bool) -> Result<u8, LocalError> {
    let (status, code) = match Client::connect(socket).await {
        Ok(client) => (client.status().await?, exit::OK),
        Err(error @ LocalError::NoDaemon { .. }) => {
            let file = state_dir.join("state.json");
            let Some((status, written)) = from_state_file(&file)? else {
                return Err(error);
            };
            note(format!(
                "the daemon does not run (`systemctl status fwupdated`); this is what {} said{}",
                file.display(),
                written
                    .map(|at| format!(" at {}", super::output::time(at)))
                    .unwrap_or_default()
            ));
            (status, exit::UNREACHABLE)
        }
        Err(error) => return Err(error),
    };
    if json {
        line(serde_json::to_string(&status).unwrap_or_default());
    } else {
        show::status(&status).iter().for_each(line);
    }
    Ok(code)
}

/// What the daemon at `socket` says of itself.
///
/// # Errors
/// It cannot be asked, or does not answer.
pub(super) async fn ask_status(socket: &Path) -> Result<Status, Failure> {
    let asked = async { Client::connect(socket).await?.status().await };
    asked.await.map_err(|error| Failure::from(&error))
}

/// The status in the state file and when the file was written; `None` when there is no such file.
fn from_state_file(file: &PathBuf) -> Result<Option<(Status, Option<Timestamp>)>, LocalError> {
    #[derive(serde::Deserialize)]
    struct Stored {
        status: Status,
    }
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(LocalError::StateFile {
                file: file.clone(),
                source,
            });
        }
    };
    let written = std::fs::metadata(file)
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|time| Timestamp::try_from(time).ok());
    serde_json::from_slice(&text)
        .map(|Stored { status }| Some((status, written)))
        .map_err(|source| LocalError::StateFormat {
            file: file.clone(),
            source,
        })
}

async fn install(
    socket: &Path,
    request: &InstallRequest,
    watch: bool,
    timeout: Option<Duration>,
) -> Result<u8, LocalError> {
    let client = Client::connect(socket).await?;
    let answer = client.install(request).await?;
    let code = answered(&answer);
    if !watch || !answer.accepted() {
        return Ok(code);
    }
    drop(client);
    watch::watch(
        socket,
        answer.update_id().map(str::to_owned),
        false,
        timeout,
    )
    .await
}

async fn cancel(socket: &Path) -> Result<u8, LocalError> {
    Ok(answered(&Client::connect(socket).await?.cancel().await?))
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
