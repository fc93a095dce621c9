//! What the hub connection costs a device (`cargo bench --bench hub_cost`, as root): bytes and packets on the wire, patches
//! of an update, wake-ups, memory, and how fast methods are answered while an image is installed.
//!
//! The real daemon works with the emulator over a cable with counters ([`wire`]). Nothing is asserted about the figures.

// A benchmark says its figures.
#![allow(clippy::print_stdout)]

mod fleet;
#[path = "../support/mod.rs"]
mod support;
mod wire;

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use fleet::{Fleet, configuration, device::Timetable};
use fwupdated::platform::tls;
use iothub_emulator::Options;
use serde_json::json;
use support::{
    figures::{Figures, heading, number},
    image_server::ImageServer,
    process::Sample,
    rig::{DEVICE, Device, Image, Rig, fwupdatectl, noise, run},
    skipped,
};
use wire::{Count, HUB, Wire};

const MIB: usize = 1 << 20;
/// Slots of the device.
const SLOT: u64 = 512 << 20;
/// The image of the updates whose traffic is counted, and what the line to the image server takes a second.
const SMALL: usize = 4 * MIB;
const LINE: u64 = 400 << 10;
/// The image that saturates line, processors and disk.
const LARGE: usize = 384 * MIB;
/// How often each thing is measured.
const RUNS: usize = 3;
/// Life of the token whose renewals are counted; short, so that there are some.
const TOKEN: Duration = Duration::from_secs(5);
/// The shortest keep-alive that the configuration takes, to see some of them.
const KEEP_ALIVE: &str = "10s";
/// How long the idle daemon is watched.
const WATCHED: Duration = Duration::from_secs(20);
/// The defaults that an hour is composed of: keep-alive, life of a token, and when of it a renewal comes.
const DEFAULTS: (f64, f64, f64) = (180.0, 3600.0, 0.825);

#[tokio::main]
async fn main() {
    tls::install_provider();
    let wire = match Wire::lay() {
        Ok(wire) => wire,
        Err(reason) => return skipped(format_args!("hub_cost needs root: {reason}")),
    };
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        listen: HUB.parse().unwrap(),
        ..Options::default().device("renewing")
    };
    let mut rig = Rig::start_with(dir.path(), options).await;
    rig.server = wire.at_the_device(ImageServer::start);
    let foreign = dir.path().join("foreign.key");
    run(fwupdatectl()
        .args(["image", "keygen", "--no-password", "--output"])
        .arg(&foreign));

    let renewals = tokio::task::block_in_place(|| renewals(&wire, &rig));
    // The pace of reports, the reconnect pause and so on are the defaults.
    let mut device = Device::new(
        &rig,
        &dir.path().join("device"),
        SLOT,
        "1.0.0",
        "[report]\n",
    );
    device.log_filter = "info".to_owned();
    let bench = Bench { wire, rig };
    let pings = bench.pings(&mut device).await;
    print_hour(&renewals, &pings);

    device.launcher = bench.launcher("3m");
    device.boot();
    device.until_connected(&bench.rig).await;
    bench.sleep_and_memory("started", &device).await;
    bench.idle_methods().await;
    bench.updates(&mut device, &foreign).await;
    bench.sleep_and_memory("after these updates", &device).await;
    bench.busy_methods(&mut device).await;
    device.stop();
}

/// A session of the daemon's own with tokens of seconds: the first connection, then renewals.
fn renewals(wire: &Wire, rig: &Rig) -> Vec<Count> {
    let (done, finished) = tokio::sync::oneshot::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(|| {
            wire.at_the_device(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let timetable = Timetable {
                        stage: Duration::ZERO,
                        download: Duration::ZERO,
                        reboot: Duration::ZERO,
                    };
                    let config = configuration(&[("HUB__GATEWAY_HOST", HUB)]);
                    let ready = rig.emulator.ready();
                    let chosen = |id: &str| id == "renewing";
                    let fleet =
                        Fleet::start(ready, chosen, config, timetable, Duration::ZERO, TOKEN);
                    let _ = finished.await;
                    fleet.stop().await;
                });
            });
        });
        // The connection and the first report.
        let _ = (wire.next(), wire.next());
        let counts = (0..2 * RUNS).map(|_| wire.next()).collect();
        drop(done);
        counts
    })
}

struct Bench {
    wire: Wire,
    rig: Rig,
}

impl Bench {
    /// The words that start the daemon at the device's end of the cable.
    fn launcher(&self, keep_alive: &str) -> Vec<String> {
        let mut words = self.wire.launcher();
        words.extend([
            "env".to_owned(),
            format!("FWUPDATED_HUB__GATEWAY_HOST={HUB}"),
            format!("FWUPDATED_HUB__KEEP_ALIVE={keep_alive}"),
        ]);
        words
    }

    /// What keeps an idle connection alive.
    async fn pings(&self, device: &mut Device) -> Vec<Count> {
        device.launcher = self.launcher(KEEP_ALIVE);
        device.boot();
        device.until_connected(&self.rig).await;
        let counts = tokio::task::block_in_place(|| {
            // The first report may still be on its way.
            thread::sleep(Duration::from_secs(5));
            (0..RUNS).map(|_| self.wire.next()).collect()
        });
        device.stop();
        counts
    }

    async fn sleep_and_memory(&self, when: &str, device: &Device) {
        let daemon = device.daemon.as_ref().expect("it runs").id();
        let sample = || Sample::of(daemon).expect("it can be looked at");
        // The first report, idle threads and idle connections.
        tokio::time::sleep(Duration::from_secs(15)).await;
        let mut wake_ups = Vec::new();
        let mut processor = Vec::new();
        let mut samples = Vec::new();
        for _ in 0..RUNS {
            let before = sample();
            tokio::time::sleep(WATCHED).await;
            let after = sample();
            let spent = after.since(&before);
            wake_ups.push(spent.wake_ups);
            processor.push(spent.processor * 100.0);
            samples.push(after);
        }
        let mib = |bytes: u64| bytes as f64 / MIB as f64;
        let row =
            |values: Vec<f64>, what, unit| println!("{}", Figures::new(values).row(what, unit));
        println!("{}", heading(&format!("idle, connected, {when}")));
        row(wake_ups, "wake-ups a second, all threads", "1/s");
        row(processor, "processor", "%");
        let each = |of: fn(&Sample) -> u64| samples.iter().map(|sample| mib(of(sample))).collect();
        row(
            each(|sample| sample.proportional),
            "memory, shared pages divided (PSS)",
            "MiB",
        );
        row(
            each(|sample| sample.anonymous),
            "of it not pages of the program's file",
            "MiB",
        );
        row(
            each(|sample| sample.resident),
            "memory, resident (RSS)",
            "MiB",
        );
    }

    /// Updates that succeed and updates that fail, with all that they send.
    async fn updates(&self, device: &mut Device, foreign: &std::path::Path) {
        self.rig.server.throttle(Some(LINE));
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        let foreign = ["--key", foreign.to_str().unwrap()];
        for run in 0..RUNS {
            let image = self.build(&format!("2.{run}.0"), SMALL, &[]);
            good.push(self.update(device, &image).await);
            let image = self.build(&format!("3.{run}.0"), SMALL, &foreign);
            bad.push(self.update(device, &image).await);
        }
        self.rig.server.throttle(None);
        let seconds = SMALL as f64 * 7.0 / 8.0 / LINE as f64;
        let title = format!(
            "an update with a download of {} s and a reboot",
            number(seconds)
        );
        print_updates(&title, &good);
        print_updates("an update whose signature is wrong", &bad);
    }

    fn build(&self, version: &str, size: usize, more: &[&str]) -> Image {
        let seed = version.bytes().map(u64::from).sum();
        self.rig.build(version, noise(size, seed), more)
    }

    async fn update(&self, device: &mut Device, image: &Image) -> Update {
        let (rig, wire) = (&self.rig, &self.wire);
        let address = rig.serve(image);
        let history = || rig.emulator.reported_history(DEVICE);
        let (before, seen) = (
            tokio::task::block_in_place(|| wire.quiet()),
            history().len(),
        );
        let (status, body) = rig.invoke(json!({"fwPackageUri": address})).await;
        assert_eq!(status, 200, "{body}");
        device
            .until_final(rig, body["updateId"].as_str().unwrap())
            .await;
        let wire = tokio::task::block_in_place(|| wire.quiet()) - before;
        let patches = history();
        let patches = &patches[seen..];
        Update {
            patches: patches.len(),
            content: patches
                .iter()
                .map(|entry| entry["patch"].to_string().len())
                .sum(),
            wire,
        }
    }

    async fn idle_methods(&self) {
        let times = self.calls(200, || false).await;
        println!("\n{}", Figures::millis(&times).latencies("method, idle"));
    }

    /// Calls while the largest image is downloaded, written and read back as fast as it goes.
    async fn busy_methods(&self, device: &mut Device) {
        let mut times = Vec::new();
        let mut seconds = Vec::new();
        for run in 0..RUNS {
            let image = self.build(&format!("4.{run}.0"), LARGE, &[]);
            let (status, body) = self
                .rig
                .invoke(json!({"fwPackageUri": self.rig.serve(&image)}))
                .await;
            assert_eq!(status, 200, "{body}");
            let began = Instant::now();
            let asked = || device.reboot_is_asked();
            times.extend(self.calls(usize::MAX, asked).await);
            seconds.push(began.elapsed().as_secs_f64());
            let id = body["updateId"].as_str().unwrap();
            let section = device.until_final(&self.rig, id).await;
            assert_eq!(section["status"], "applyComplete", "{section:#}");
            fs::remove_file(&image.file).unwrap();
        }
        let seconds = Figures::new(seconds);
        println!(
            "{}",
            Figures::millis(&times).latencies(&format!(
                "method, while {} MiB are installed in {} s",
                LARGE / MIB,
                number(seconds.median())
            ))
        );
    }

    /// Asks for the status again and again, `most` times or until `done`.
    async fn calls(&self, most: usize, done: impl Fn() -> bool) -> Vec<Duration> {
        let mut times = Vec::new();
        while times.len() < most && !done() {
            let asked = Instant::now();
            let call = self
                .rig
                .emulator
                .invoke(DEVICE, "firmwareUpdateStatus", json!({}));
            match call.await {
                Ok(answer) => assert_eq!(answer.status, 200),
                // It stops for its reboot.
                Err(_) if done() => break,
                Err(error) => panic!("{error:?}"),
            }
            times.push(asked.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        times
    }
}

/// What an update sent.
struct Update {
    patches: usize,
    /// JSON of all patches, bytes.
    content: usize,
    wire: Count,
}

fn print_updates(title: &str, updates: &[Update]) {
    let row = |what, unit, of: &dyn Fn(&Update) -> usize| {
        let values = updates.iter().map(|update| of(update) as f64);
        println!("{}", Figures::new(values).row(what, unit));
    };
    println!("{}", heading(title));
    row("reported patches", "", &|update| update.patches);
    row("their JSON", "bytes", &|update| update.content);
    let counts: Vec<_> = updates.iter().map(|update| update.wire).collect();
    print_counts(&counts);
}

fn print_counts(counts: &[Count]) {
    let row = |what, unit, of: &dyn Fn(&Count) -> u64| {
        let values = counts.iter().map(|count| of(count) as f64);
        println!("{}", Figures::new(values).row(what, unit));
    };
    row("from the device, packets", "", &|count| count.sent_packets);
    row("from the device, with all headers", "bytes", &|count| {
        count.sent_bytes
    });
    row("to the device, packets", "", &|count| {
        count.received_packets
    });
    row("to the device, with all headers", "bytes", &|count| {
        count.received_bytes
    });
}

/// An idle hour with the default settings, out of its parts.
fn print_hour(renewals: &[Count], pings: &[Count]) {
    println!("{}", heading("a renewal of the connection"));
    print_counts(renewals);
    println!(
        "{}",
        heading("a test of the idle connection (PINGREQ, PINGRESP)")
    );
    print_counts(pings);
    let (keep_alive, token, share) = DEFAULTS;
    let (each_ping, each_renewal) = (3600.0 / keep_alive, 3600.0 / (token * share));
    let hour = |of: &dyn Fn(&Count) -> u64| {
        let sorted = |counts: &[Count]| Figures::new(counts.iter().map(|count| of(count) as f64));
        let (pings, renewals) = (sorted(pings), sorted(renewals));
        let sum = |of: fn(&Figures) -> f64| of(&pings) * each_ping + of(&renewals) * each_renewal;
        Figures::new([
            sum(Figures::least),
            sum(Figures::median),
            sum(Figures::most),
        ])
    };
    println!(
        "{}",
        heading(&format!(
            "an idle hour: {} tests, {} renewals",
            number(each_ping),
            number(each_renewal)
        ))
    );
    let row = |what, unit, of: &dyn Fn(&Count) -> u64| println!("{}", hour(of).row(what, unit));
    row("from the device, packets", "", &|count| count.sent_packets);
    row("from the device, with all headers", "bytes", &|count| {
        count.sent_bytes
    });
    row("to the device, packets", "", &|count| {
        count.received_packets
    });
    row("to the device, with all headers", "bytes", &|count| {
        count.received_bytes
    });
    row("both ways", "bytes", &|count| count.bytes());
}
