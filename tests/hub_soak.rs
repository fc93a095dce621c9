//! A soak: renewals, faults, updates and kills, hours of a bad day pressed into minutes. In the end every update's last
//! word is in its twin, the daemon holds no more memory and descriptors than at the start, and it never ran in circles.
//!
//! The real daemon works with a real image server and loses its process now and then. A token of its own lives for at
//! least five minutes, so true renewals come from simulated devices beside it, whose session, link task and reporter are
//! the daemon's own and whose tokens live for seconds.
//!
//! `SOAK_SECONDS` makes it longer (default 60), `SOAK_SEED` repeats the choices of a run, though not its timing.

#[path = "hub_soak/faults.rs"]
mod faults;
#[path = "bench/fleet/mod.rs"]
mod fleet;
mod support;
#[path = "hub_soak/updates.rs"]
mod updates;

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use faults::{Counts, storm};
use fleet::{
    Fleet, configuration,
    device::{Fate, Timetable},
};
use iothub_emulator::Options;
use support::{
    figures::number as shown,
    process::Sample,
    random::{Random, number, seed},
    rig::{DEVICE, Rig},
    story,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use updates::{Board, by_word, simulated};

/// Simulated devices beside the real one.
const SIMULATED: usize = 6;
/// Life of their tokens; renewed after 80 to 85 % of it.
const TOKEN: Duration = Duration::from_secs(2);
/// The default life of a token, which renewals are counted against.
const DEFAULT_TOKEN: Duration = Duration::from_secs(3600);
/// How long the daemon is watched while nothing happens, connected and not.
const WATCHED: Duration = Duration::from_secs(10);
/// For everything to be told once all is well.
const PATIENCE: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn after_hours_of_renewals_faults_and_updates_every_last_word_is_told_and_nothing_has_grown()
{
    let time = Duration::from_secs(number("SOAK_SECONDS").unwrap_or(60));
    let seed = seed("SOAK_SEED");
    eprintln!("soak: {} s, seed {seed}", time.as_secs());
    let mut random = Random(seed);
    let mut fork = || Random(random.next());

    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::default();
    let names: Vec<_> = (0..SIMULATED)
        .map(|number| format!("sim-{number}"))
        .collect();
    for name in &names {
        options = options.device(name);
    }
    let rig = Arc::new(Rig::start_with(dir.path(), options).await);
    let names = Arc::new(names);
    let fleet = start_fleet(&rig);
    let mut board = Board::start(rig.clone(), fork()).await;
    let (stop_simulated, simulated_stop) = watch::channel(false);
    let drivers: Vec<_> = names
        .iter()
        .map(|name| {
            let (rig, name, stop) = (rig.clone(), name.clone(), simulated_stop.clone());
            tokio::spawn(simulated(rig, name, fleet.tally.clone(), fork(), stop))
        })
        .collect();
    let mut counts = Counts::default();

    // First: updates of every kind, reboots and kills, in the storm.
    let weather = Weather::begin(&rig, &names, fork());
    let end = Instant::now() + time.mul_f64(0.55);
    while Instant::now() < end {
        board.any_update().await;
    }
    counts += weather.end().await;

    // Then one process that lives through the rest. What it holds is compared with what it held after a while: an
    // allocator keeps more and more of what it was given, up to a point.
    let mut looks = Vec::new();
    for share in [0.15, 0.3] {
        let weather = Weather::begin(&rig, &names, fork());
        let end = Instant::now() + time.mul_f64(share);
        while Instant::now() < end {
            board.update(Fate::BadImage, 0).await;
        }
        counts += weather.end().await;
        until_told(&rig, DEVICE, &board.expected).await;
        board.device.until_connected(&rig).await;
        // Idle threads and connections of the last download end meanwhile.
        sleep(Duration::from_secs(12)).await;
        looks.push((sample(&board), board.expected.len()));
    }
    let [(before, first), (after, last)] = looks[..] else {
        unreachable!("two looks");
    };
    eprintln!(
        "the daemon's process before and after {} more updates: {} and {} KiB resident, {} and {} descriptors, {} and {} threads",
        last - first,
        before.resident >> 10,
        after.resident >> 10,
        before.descriptors,
        after.descriptors,
        before.threads,
        after.threads
    );
    assert!(after.descriptors <= before.descriptors + 1, "seed {seed}");
    let most = before.resident + before.resident / 10 + (2 << 20);
    assert!(after.resident <= most, "seed {seed}");

    // It sleeps while there is nothing to do, with a hub and without one.
    watch_sleep("connected and idle", &board, 3.0).await;
    rig.emulator.set_down(true);
    watch_sleep("during an outage", &board, 30.0).await;
    rig.emulator.set_down(false);

    stop_simulated.send_replace(true);
    let mut expected = Vec::new();
    for (driver, name) in drivers.into_iter().zip(names.iter()) {
        let updates = driver.await.unwrap();
        until_told(&rig, name, &updates).await;
        expected.push(updates);
    }
    let (connects, renewals) = (
        fleet.tally.connects.load(Relaxed),
        fleet.tally.renewals.load(Relaxed),
    );
    fleet.stop().await;
    let hours = renewals as f64 * DEFAULT_TOKEN.as_secs_f64() * 0.825 / 3600.0;
    eprintln!(
        "soak: {renewals} renewals ({} device hours with tokens of one hour) among {connects} connections of simulated devices, \
         {} connections of the daemon; faults {:?}; updates of the daemon {:?} with {} kills, of simulated devices {:?}; seed {seed}",
        shown(hours),
        rig.emulator.connections(DEVICE),
        counts.0,
        by_word([&board.expected]),
        board.kills,
        by_word(&expected),
    );
    assert!(hours >= 2.0, "only {renewals} renewals; seed {seed}");
    assert!(counts.0.len() >= 8, "{counts:?}; seed {seed}");
    assert!(board.expected.len() > 5 && expected.iter().all(|updates| !updates.is_empty()));
    board.device.stop();
}

fn start_fleet(rig: &Rig) -> Fleet {
    let settings = [
        ("HUB__RECONNECT_MAX", "2s"),
        ("REPORT__STAGE_INTERVAL", "100ms"),
        ("REPORT__PROGRESS_INTERVAL", "500ms"),
        ("REPORT__ANSWER_TIMEOUT", "5s"),
        ("REPORT__RECONNECT_JITTER", "100ms"),
    ];
    let timetable = Timetable {
        stage: Duration::from_millis(300),
        download: Duration::from_secs(2),
        reboot: Duration::from_millis(500),
    };
    Fleet::start(
        rig.emulator.ready(),
        |id| id != DEVICE,
        configuration(&settings),
        timetable,
        Duration::ZERO,
        TOKEN,
    )
}

/// Faults that come and go.
struct Weather {
    task: tokio::task::JoinHandle<Counts>,
    stop: watch::Sender<bool>,
}

impl Weather {
    fn begin(rig: &Arc<Rig>, devices: &Arc<Vec<String>>, random: Random) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(storm(rig.clone(), devices.clone(), random, stopped));
        Self { task, stop }
    }

    async fn end(self) -> Counts {
        self.stop.send_replace(true);
        self.task.await.unwrap()
    }
}

/// Waits until the twin of `device` has shown `expected`, each last word and nothing else, in order.
async fn until_told(rig: &Rig, device: &str, expected: &[(String, String)]) {
    let fault = || story::fault(&rig.emulator.reported_history(device), expected);
    let told = rig.emulator.wait_until(PATIENCE, |_| fault().is_none());
    assert!(told.await, "{device}: {}", fault().unwrap_or_default());
}

fn sample(board: &Board) -> Sample {
    let daemon = board.device.daemon.as_ref().expect("it runs");
    Sample::of(daemon.id()).expect("it can be looked at")
}

/// Looks at the daemon for a while, in which it may wake up so many times a second and work for a fifth of it at most.
async fn watch_sleep(when: &str, board: &Board, wake_ups: f64) {
    sleep(Duration::from_secs(2)).await;
    let before = sample(board);
    sleep(WATCHED).await;
    let spent = sample(board).since(&before);
    eprintln!(
        "the daemon {when}: {} wake-ups a second, {} % of a processor",
        shown(spent.wake_ups),
        shown(spent.processor * 100.0)
    );
    assert!(
        spent.wake_ups <= wake_ups && spent.processor <= 0.2,
        "{when}: {spent:?}"
    );
}
