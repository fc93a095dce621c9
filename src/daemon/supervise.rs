//! What systemd hears from us, and what we hear from the system.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tracing::{error, info};

use super::{
    pace::{Pace, rate},
    updater::Published,
};
use crate::{
    platform::service_manager,
    update::{
        events,
        failure::{Class, Failure},
        status::{Stage, Status},
    },
};

/// How often `STATUS=` follows progress at most.
const STATUS_PACE: Duration = Duration::from_secs(1);

/// How long the updater may stand still at least: a worn SD card stalls for long.
const LEAST_PATIENCE: Duration = Duration::from_secs(30);
/// How long the updater's start may take, its first look at slots and bootloader.
const START_LIMIT: Duration = Duration::from_secs(120);

/// Shows that the updater's loop turns. Cheap to set, and read by whoever must know.
#[derive(Debug)]
pub struct Heartbeat {
    start: Instant,
    /// Milliseconds after `start`; 0 before the first beat.
    last: AtomicU64,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            last: AtomicU64::new(0),
        }
    }
}

impl Heartbeat {
    /// The loop has turned.
    pub fn beat(&self) {
        self.beat_at(self.start.elapsed());
    }

    fn beat_at(&self, age: Duration) {
        let millis = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        self.last.store(millis.max(1), Ordering::Relaxed);
    }

    /// Whether it beat within `patience`, or may still be on its way to the first beat, when `age` has passed
    /// since the start.
    fn is_alive(&self, age: Duration, patience: Duration) -> bool {
        match self.last.load(Ordering::Relaxed) {
            0 => age < START_LIMIT,
            last => age < Duration::from_millis(last) + patience,
        }
    }
}

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

/// Keeps `STATUS=` current and feeds the watchdog, but only while the updater's loop turns: one that hangs, in
/// a device's driver for example, is restarted.
pub async fn keep_alive(
    mut published: watch::Receiver<Published>,
    heartbeat: Arc<Heartbeat>,
    mut stop: watch::Receiver<bool>,
) {
    let interval = service_manager::watchdog_interval().unwrap_or(Duration::from_secs(120));
    let patience = (interval / 2).max(LEAST_PATIENCE);
    // Twice within the patience, so that a stall shorter than the interval never costs a restart.
    let mut feed = tokio::time::interval(interval / 4);
    let mut said = String::new();
    let mut pace = Pace::default();
    let mut was_alive = true;
    loop {
        let line = {
            let now = published.borrow_and_update();
            let speed = pace.observe(heartbeat.start.elapsed(), now.status.update.as_ref());
            status_line(&now.status, speed)
        };
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
                let is_alive = heartbeat.is_alive(heartbeat.start.elapsed(), patience);
                if is_alive {
                    service_manager::watchdog_ping();
                } else if was_alive {
                    error!(
                        message_id = events::UPDATER_HANGS,
                        "the updater stands still, probably in a device's driver; the watchdog will restart the daemon unless it goes on"
                    );
                }
                was_alive = is_alive;
            }
        }
    }
}

/// One short line for `systemctl status`; `speed` in bytes a second.
#[must_use]
pub fn status_line(status: &Status, speed: Option<u64>) -> String {
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
                    let speed = speed.map_or(String::new(), |speed| format!(" at {}", rate(speed)));
                    format!(" {} %{speed}", update.progress.percent())
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::update::{
        request::Origin,
        slot::Slot,
        status::{HubStatus, Progress, Times, UpdateReport},
    };

    #[test]
    fn an_updater_that_stands_still_is_noticed_and_one_that_starts_gets_a_bounded_time() {
        let (second, patience) = (Duration::from_secs(1), Duration::from_secs(60));
        let heartbeat = Heartbeat::default();
        assert!(heartbeat.is_alive(START_LIMIT - second, patience));
        assert!(!heartbeat.is_alive(START_LIMIT, patience));
        heartbeat.beat_at(Duration::ZERO);
        assert!(heartbeat.is_alive(59 * second, patience));
        assert!(!heartbeat.is_alive(START_LIMIT - second, patience));
        heartbeat.beat_at(1000 * second);
        assert!(heartbeat.is_alive(1059 * second, patience));
        assert!(!heartbeat.is_alive(1060 * second, patience));
    }

    #[test]
    fn the_line_says_slot_hub_update_stage_percent_and_speed() {
        let status = Status {
            daemon_version: "0.1.0".to_owned(),
            firmware_version: Some("1.3.0".to_owned()),
            booted_slot: Some(Slot::A),
            slots: BTreeMap::new(),
            bootloader: "uboot".to_owned(),
            unsigned_allowed: false,
            hub: HubStatus {
                connected: true,
                ..HubStatus::default()
            },
            update: Some(UpdateReport {
                id: "u-1".to_owned(),
                origin: Origin::Method,
                uri: "https://images.example/x".to_owned(),
                target: Slot::B,
                version: Some("1.4.0".to_owned()),
                from_version: None,
                stage: Stage::Downloading,
                detail: Some("the server is asked again".to_owned()),
                progress: Progress {
                    bytes_done: 42,
                    bytes_total: 100,
                    ..Progress::default()
                },
                times: Times::default(),
                error: None,
            }),
            last_success: None,
            problem: None,
        };
        assert_eq!(
            status_line(&status, Some(3_400_000)),
            "slot a (1.3.0), hub connected, \
             update u-1 to slot b: downloading 42 % at 3.4 MB/s (the server is asked again)"
        );
        assert!(status_line(&status, None).contains("downloading 42 % ("));
    }
}
