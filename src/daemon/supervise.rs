//! What systemd hears from us, and what we hear from the system.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tracing::info;

use super::updater::Published;
use crate::{
    platform::service_manager,
    update::{
        failure::{Class, Failure},
        status::{Stage, Status},
    },
};

/// How often `STATUS=` follows progress at most.
const STATUS_PACE: Duration = Duration::from_secs(1);

/// The signals that stop the daemon.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// Listens from now on, so that a signal during the start is not lost.
///
/// # Errors
/// The system gives no signal handlers.
pub fn signals() -> Result<Signals, Failure> {
    let listen = |kind| {
        signal(kind).map_err(|error| {
            Failure::new(
                "signals",
                Class::Final,
                format!("signals cannot be listened to: {error}"),
            )
        })
    };
    Ok(Signals {
        terminate: listen(SignalKind::terminate())?,
        interrupt: listen(SignalKind::interrupt())?,
    })
}

impl Signals {
    /// Returns at the first SIGTERM or SIGINT.
    pub async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => info!("SIGTERM: stopping"),
            _ = self.interrupt.recv() => info!("SIGINT: stopping"),
        }
    }
}

/// Returns when `stop` is raised, or nobody can raise it any more.
pub async fn raised(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Counts the turns of the updater's loop, which turns several times a second unless it hangs.
#[derive(Debug, Clone, Default)]
pub struct Heartbeat(Arc<AtomicU64>);

impl Heartbeat {
    /// One more turn.
    pub fn beat(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Keeps `STATUS=` current and feeds the watchdog while the updater's loop turns: one that hangs (in a driver, on
/// a dead medium) is restarted by systemd.
pub async fn keep_alive(
    mut published: watch::Receiver<Published>,
    heartbeat: Heartbeat,
    mut stop: watch::Receiver<bool>,
) {
    let pace =
        service_manager::watchdog_interval().map_or(Duration::from_secs(60), |limit| limit / 2);
    let mut feed = tokio::time::interval(pace);
    let mut said = String::new();
    // Not a count: the first look at a board may take its time.
    let mut counted = u64::MAX;
    loop {
        let line = status_line(&published.borrow_and_update().status);
        if line != said {
            service_manager::status(&line);
            said = line;
        }
        tokio::select! {
            () = raised(&mut stop) => return,
            changed = published.changed() => {
                if changed.is_err() {
                    // The updater is gone: starve the watchdog.
                    return;
                }
                tokio::time::sleep(STATUS_PACE).await;
            }
            _ = feed.tick() => {
                let beats = heartbeat.count();
                if beats != counted {
                    service_manager::watchdog_ping();
                }
                counted = beats;
            }
        }
    }
}

/// One short line for `systemctl status`.
#[must_use]
pub fn status_line(status: &Status) -> String {
    let hub = match (&status.hub.device_id, status.hub.connected) {
        (_, true) => "hub connected",
        (Some(_), false) => "hub not connected",
        (None, _) => "no hub identity",
    };
    let slot = status
        .booted_slot
        .map_or("slot unknown".to_owned(), |slot| format!("slot {slot}"));
    let version = status
        .firmware_version
        .as_deref()
        .map_or(String::new(), |v| format!(" ({v})"));
    let what = match (&status.problem, &status.update) {
        (Some(problem), _) => format!("PROBLEM: {problem}"),
        (None, Some(update)) if !update.stage.is_final() => {
            let percent = match update.stage {
                Stage::Downloading | Stage::DownloadComplete if update.progress.bytes_total > 0 => {
                    format!(" {} %", update.progress.percent())
                }
                _ => String::new(),
            };
            let detail = update
                .detail
                .as_deref()
                .map_or(String::new(), |d| format!(" ({d})"));
            format!(
                "update {} to slot {}: {}{percent}{detail}",
                update.id,
                update.target,
                update.stage.word()
            )
        }
        (None, Some(update)) => match &update.error {
            Some(error) => format!(
                "idle; last update {}: {} [{}]",
                update.id,
                update.stage.word(),
                error.code
            ),
            None => format!("idle; last update {}: {}", update.id, update.stage.word()),
        },
        (None, None) => "idle; no update yet".to_owned(),
    };
    format!("{slot}{version}, {hub}, {what}")
}
