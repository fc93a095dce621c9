//! The life of a large fleet in figures: all devices connect, answer a method, run an update, and come back
//! after an outage. Every update must end in its twin, its stages in order.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use iothub_emulator::Ready;
use serde_json::json;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    Called, Fleet, Service, configuration,
    device::{Fate, Tally, Timetable},
};
use crate::support::{
    figures::{Figures, number},
    process::Sample,
    story,
};

/// The update that all devices run.
const UPDATE: &str = "fleet-1";

/// How a fleet is driven.
pub(crate) struct Plan {
    /// Over what time the first connections are spread.
    pub(crate) start_delay: Duration,
    /// How many methods are called at a time.
    pub(crate) callers: usize,
    pub(crate) timetable: Timetable,
    /// How long the hub is away.
    pub(crate) outage: Duration,
    /// `hub.reconnect_max`, `report.*` and so on, where the defaults are not wanted.
    pub(crate) settings: &'static [(&'static str, &'static str)],
    /// The longest wait for anything.
    pub(crate) patience: Duration,
    /// Holds the emulator; its memory is printed, if it is another process.
    pub(crate) emulator: Option<u32>,
}

/// Prints what a device takes.
fn print_memory(when: &str, plan: &Plan, devices: usize, before: &(Sample, Option<Sample>)) {
    let each =
        |now: u64, before: u64| number(now.saturating_sub(before) as f64 / 1024.0 / devices as f64);
    let (own, emulator) = samples(plan);
    let mut line = format!(
        "memory {when:<32} devices' side {:>7} KiB each",
        each(own.resident, before.0.resident)
    );
    if let (Some(now), Some(before)) = (emulator, before.1) {
        line.push_str(&format!(
            "   emulator {:>7} KiB each ({} MiB)",
            each(now.resident, before.resident),
            now.resident >> 20
        ));
    }
    eprintln!("{line}");
}

/// This process, and the emulator's if it is another one.
fn samples(plan: &Plan) -> (Sample, Option<Sample>) {
    let own = Sample::of(std::process::id()).expect("this process can be looked at");
    (own, plan.emulator.and_then(Sample::of))
}

/// Runs the whole plan with every device that `ready` names.
///
/// # Panics
/// When an update does not end, or does not end as it should.
pub(crate) async fn run(plan: &Plan, ready: &Ready) {
    let devices: Arc<Vec<String>> = Arc::new(ready.devices.keys().cloned().collect());
    let count = devices.len();
    let service = Service::new(ready);
    let began = Instant::now();
    let before = samples(plan);
    let fleet = Fleet::start(
        ready,
        |_| true,
        configuration(plan.settings),
        plan.timetable,
        plan.start_delay,
        Duration::from_secs(3600),
    );
    let all_connected = |tally: &Tally| tally.connected.load(Relaxed) == count;
    assert!(fleet.until(plan.patience, all_connected).await);
    eprintln!(
        "{count} devices connected in {} s (their starts spread over {} s)",
        number(began.elapsed().as_secs_f64()),
        plan.start_delay.as_secs()
    );
    // The first report of each.
    sleep(Duration::from_secs(3)).await;
    print_memory("connected, idle", plan, count, &before);

    let status = call_all(plan, &service, &devices, "firmwareUpdateStatus").await;
    eprintln!(
        "{}",
        Figures::millis(&status).latencies("firmwareUpdateStatus, idle fleet")
    );

    let asked = Instant::now();
    let payload = json!({"fwPackageUri": Fate::Complete.address(1), "updateId": UPDATE});
    let job = service.job("update-all", "firmwareUpdate", payload).await;
    let job_time = asked.elapsed();
    let statistics = &job["deviceJobStatistics"];
    assert_eq!(statistics["succeededCount"], count, "{job:#}");
    eprintln!(
        "a job has called firmwareUpdate on all devices in {} s",
        number(job_time.as_secs_f64())
    );
    let status = call_all(plan, &service, &devices, "firmwareUpdateStatus").await;
    let line = Figures::millis(&status).latencies("firmwareUpdateStatus, fleet updating");
    eprintln!("{line}");
    let all_ended = |tally: &Tally| tally.delivered.load(Relaxed) == count;
    assert!(
        fleet.until(plan.patience, all_ended).await,
        "only {} of {count} updates have told their end",
        fleet.tally.delivered.load(Relaxed)
    );
    eprintln!(
        "{count} updates ended {} s after the job began (each takes {} s on its device)",
        number(asked.elapsed().as_secs_f64()),
        number(longest(plan).as_secs_f64()),
    );
    let patches = check_stories(&service, &devices).await;
    eprintln!(
        "every twin shows applyComplete, its stages in order; patches of a device: minimum {}, median {}, maximum {}",
        patches.least(),
        patches.median(),
        patches.most()
    );
    print_memory("after the updates", plan, count, &before);

    let asked = Instant::now();
    let rows = service
        .query("SELECT properties.reported.iothubDM.firmwareUpdate.status AS s, COUNT() AS n FROM devices GROUP BY properties.reported.iothubDM.firmwareUpdate.status")
        .await;
    assert_eq!(rows, json!([{"s": "applyComplete", "n": count}]));
    eprintln!(
        "a GROUP BY query over the fleet takes {} ms",
        number(asked.elapsed().as_secs_f64() * 1000.0)
    );

    storm(plan, &service, &fleet, count).await;
    print_memory("after the outage", plan, count, &before);
    let stopping = Instant::now();
    fleet.stop().await;
    eprintln!(
        "every device said goodbye in {} s; the whole run took {} s",
        number(stopping.elapsed().as_secs_f64()),
        number(began.elapsed().as_secs_f64())
    );
}

/// What an update takes on its device.
fn longest(plan: &Plan) -> Duration {
    plan.timetable.stage * 5 + plan.timetable.download + plan.timetable.reboot
}

/// Calls `method` on every device, so many at a time; how long each answer took.
async fn call_all(
    plan: &Plan,
    service: &Service,
    devices: &Arc<Vec<String>>,
    method: &'static str,
) -> Vec<Duration> {
    let slots = Arc::new(Semaphore::new(plan.callers));
    let late = Arc::new(AtomicUsize::new(0));
    let mut calls = JoinSet::new();
    for number in 0..devices.len() {
        let (service, devices, slots) = (service.clone(), devices.clone(), slots.clone());
        let late = late.clone();
        calls.spawn(async move {
            let _slot = slots.acquire().await.expect("never closed");
            let device = &devices[number];
            loop {
                let asked = Instant::now();
                match service.call(device, method, json!({})).await {
                    Called::Answered(200, _) => return asked.elapsed(),
                    // So many devices in one process may be too slow for the second that one has; ask again.
                    Called::Answered(503, body) if body["code"] == "answer-late" => {
                        late.fetch_add(1, Relaxed);
                    }
                    other => panic!("{method} of {device}: {other:?}"),
                }
            }
        });
    }
    let times = calls.join_all().await;
    if late.load(Relaxed) > 0 {
        eprintln!(
            "{} calls of {method} were answered too late, and repeated",
            late.load(Relaxed)
        );
    }
    times
}

/// Reads back what each twin has shown; the number of patches of each device.
async fn check_stories(service: &Service, devices: &[String]) -> Figures {
    let mut patches = Vec::with_capacity(devices.len());
    for device in devices {
        let history = service.history(device).await;
        let expected = (UPDATE.to_owned(), Fate::Complete.word().to_owned());
        if let Some(fault) = story::fault(&history, &[expected]) {
            panic!("{device}: {fault}");
        }
        patches.push(history.len() as f64);
    }
    Figures::new(patches)
}

/// The hub goes away and comes back: when are how many devices back?
async fn storm(plan: &Plan, service: &Service, fleet: &Fleet, count: usize) {
    let connects = fleet.tally.connects.load(Relaxed);
    service
        .tell(&format!("outage?seconds={}", plan.outage.as_secs()))
        .await;
    let away = Instant::now();
    let all_gone = |tally: &Tally| tally.connected.load(Relaxed) == 0;
    assert!(
        fleet.until(plan.outage, all_gone).await,
        "the hub went away"
    );
    sleep(plan.outage.saturating_sub(away.elapsed())).await;
    let back = Instant::now();
    let mut times = Vec::new();
    for share in [50, 90, 99, 100] {
        let wanted = (count * share).div_ceil(100);
        let enough = |tally: &Tally| tally.connected.load(Relaxed) >= wanted;
        assert!(fleet.until(plan.patience, enough).await);
        times.push(format!(
            "{share} % after {} s",
            number(back.elapsed().as_secs_f64())
        ));
    }
    eprintln!(
        "an outage of {} s: back are {}; {} connections for {count} devices",
        plan.outage.as_secs(),
        times.join(", "),
        fleet.tally.connects.load(Relaxed) - connects
    );
}
