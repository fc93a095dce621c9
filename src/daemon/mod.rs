//! WIRES the parts into a daemon: one updater task owns the state machine; the hub task, the control
//! socket and systemd watch the status that it publishes.
//!
//! ```text
//!  hub::session ==> link --Command--> updater (owns update::machine) --Action--> actions --> platform::*
//!                    ^                   |  ^                                       |
//!                    |                   |  '---------------- Event ----------------'
//!                    '----- Published ---+--> control socket, systemd STATUS=
//! ```

pub mod actions;
pub mod admission;
pub mod board;
pub mod control;
pub mod control_names;
pub mod health;
pub mod hooks;
pub mod identity;
pub mod install;
pub mod link;
pub mod logging;
pub mod meter;
pub mod metrics;
pub mod moments;
pub mod pace;
pub mod policy;
pub mod preflight;
pub mod saved;
pub mod source;
pub mod store;
pub mod supervise;
pub mod updater;

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use clap::Parser;
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use self::{
    actions::Actions, identity::FileIdentity, link::Link, meter::Meter, store::Store,
    supervise::signals, updater::Updater,
};
use crate::{
    config::Config,
    hub::session::{Session, SessionOptions},
    platform::{fetch::Fetcher, service_manager, tls},
    update::{events, failure::Failure, status::HubStatus},
};

/// Longest wait for the updater at a stop; systemd waits longer.
const STOP_LIMIT: std::time::Duration = std::time::Duration::from_secs(25);

/// Exit code for a configuration or state directory that makes running impossible (sysexits.h, `EX_CONFIG`).
const CONFIG_ERROR: u8 = 78;

/// How long the first look at the identity, and then that at slots and bootloader, may hold up everything else.
const FIRST_LOOK: Duration = Duration::from_secs(5);

/// Firmware updater for A/B devices on Azure IoT Hub.
#[derive(Parser)]
#[command(name = "fwupdated", version)]
struct Options {
    /// Use this file instead of the search path (/usr/lib, /etc, conf.d)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    check: bool,
}

/// The command line as it is defined, for man page and completions.
#[must_use]
pub fn command() -> clap::Command {
    <Options as clap::CommandFactory>::command()
}

/// The program `fwupdated`.
pub fn main() -> ExitCode {
    let options = Options::parse();
    logging::start();
    tls::install_provider();
    let config = match Config::load(options.config.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            return cannot_run(&Failure::from(&error));
        }
    };
    if options.check {
        info!("the configuration is valid");
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("fwupdated")
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(Arc::new(config), Timestamp::now));
            // A thread that hangs in a device's driver must not keep the process.
            runtime.shutdown_timeout(Duration::from_secs(1));
            result
        }
        Err(error) => {
            error!("no threads can be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => cannot_run(&failure),
    }
}

/// Says why the daemon ends at once, to the journal and to `systemctl status`.
fn cannot_run(failure: &Failure) -> ExitCode {
    error!(
        message_id = events::CANNOT_RUN,
        fwupdated_error_code = failure.code,
        "{failure}"
    );
    service_manager::status(&failure.to_string());
    ExitCode::from(CONFIG_ERROR)
}

/// Runs the daemon until a signal says stop. `clock` says when a token for the hub begins and ends.
///
/// # Errors
/// Why it cannot run at all, or went on only with a part of itself.
pub async fn run(config: Arc<Config>, clock: fn() -> Timestamp) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    info!(message_id = events::STARTED, "fwupdated {version} starts");
    if config.trust.allow_unsigned {
        warn!(
            message_id = events::UNSIGNED_ALLOWED,
            "trust.unsigned = \"allow\": images without a valid signature are installed; only for development"
        );
    }
    let (stop_sender, stop) = watch::channel(false);
    let mut signals = signals()?;

    let store = Store::open(&config.state)?;
    if let Some(warning) = store::warning_about_place(&config) {
        warn!(message_id = events::PROBLEM_FOUND, "{warning}");
    }
    let saved = store.load()?;
    if let Some(failure) = &saved.lost {
        error!(
            message_id = events::STATE_LOST,
            fwupdated_error_code = failure.code,
            "{failure}"
        );
    }
    let fetcher = Fetcher::new(&config.fetch).map_err(|error| Failure::from(&error))?;
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let identity = Arc::new(FileIdentity::new(config.clone(), credentials));
    // The files may be on a medium that hangs, which must not keep local control from working.
    let looked = {
        let identity = Arc::clone(&identity);
        tokio::task::spawn_blocking(move || identity.status())
    };
    let hub = match tokio::time::timeout(FIRST_LOOK, looked).await {
        Ok(Ok(hub)) => hub,
        _ => HubStatus::default(),
    };

    let (commands, inbox) = mpsc::channel(32);
    let actions = Actions::new(Arc::new(Meter::default()));
    let (updater, published) = Updater::new(
        config.clone(),
        fetcher,
        store.clone(),
        saved,
        hub.clone(),
        actions,
        inbox,
    );
    let heartbeat = updater.heartbeat();
    let mut updater = tokio::spawn(updater.run(stop.clone()));
    // What the first look at the board finds is the first thing that anyone hears.
    let mut first_look = published.clone();
    let _ = tokio::time::timeout(FIRST_LOOK, first_look.changed()).await;

    let _guard = control::SocketGuard(config.control.socket.clone());
    let control = {
        let manager = control::Manager::new(commands.clone(), published.clone(), store);
        let config = config.control.clone();
        tokio::spawn(async move {
            if let Err(failure) = control::serve(&config, manager).await {
                error!(
                    message_id = events::PROBLEM_FOUND,
                    fwupdated_error_code = failure.code,
                    "{failure}"
                );
            }
        })
    };
    let session = Session::spawn(SessionOptions {
        clock,
        ..SessionOptions::with_identity(identity, &config)
    });
    let link = Link::new(&config, session, commands, published.clone(), hub);
    let mut link = tokio::spawn(link.run(stop.clone()));
    service_manager::ready();
    let watchdog = tokio::spawn(supervise::keep_alive(
        published.clone(),
        heartbeat,
        stop.clone(),
    ));

    let metrics = metrics::keep_file(config.metrics.clone(), published.clone(), stop.clone());
    let metrics = tokio::spawn(metrics);

    // Neither task ends by itself but by a defect. Then a new start is the remedy, and without the hub's task
    // nobody could reach the device to ask for one.
    let ended_early = tokio::select! {
        () = signals.wait() => None,
        ended = &mut updater => Some(("updater", ended)),
        ended = &mut link => Some(("hub", ended)),
    };
    service_manager::stopping();
    stop_sender.send_replace(true);
    let ends = async {
        if !link.is_finished() {
            let _ = link.await;
        }
        match ended_early {
            Some(("updater", ended)) => (Some("updater"), ended),
            Some((task, _)) => (Some(task), updater.await),
            None => (None, updater.await),
        }
    };
    // A medium that does not answer must not hold the shutdown up: what counts is on disk, or was never told.
    let Ok((ended_early, ended)) = tokio::time::timeout(STOP_LIMIT, ends).await else {
        warn!(
            "what was under way did not stop within {} s; ending without it",
            STOP_LIMIT.as_secs()
        );
        return Ok(());
    };
    control.abort();
    watchdog.abort();
    let _ = tokio::time::timeout(Duration::from_secs(1), metrics).await;
    match (ended_early, ended) {
        (None, Ok(())) => Ok(()),
        (task, ended) => Err(Failure::new(
            "internal",
            crate::update::failure::Class::Final,
            format!(
                "the {} task ended unexpectedly ({ended:?}); report this as a bug",
                task.unwrap_or("updater")
            ),
        )),
    }
}
