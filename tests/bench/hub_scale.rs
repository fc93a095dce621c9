//! Ten thousand devices on one emulator (`cargo bench --bench hub_scale [-- DEVICES]`): how much memory a device takes
//! on either side, how many patches an update costs, how long connects, methods and a return after an outage
//! take. The emulator is a process of its own; every device is the daemon's own session, link task and reporter over
//! TLS, with a simulated updater behind them.
//!
//! Every update must end in its twin, or the program fails. The figures are for people; nothing is asserted about them.

mod fleet;
#[path = "../support/mod.rs"]
mod support;

use std::{
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Stdio},
    time::Duration,
};

use fleet::{
    device::Timetable,
    scale::{self, Plan},
};
use fwupdated::platform::tls;
use iothub_emulator::{Emulator, Options, Ready};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Asks this program to be the emulator, for so many devices.
const EMULATOR: &str = "--emulator";
/// Descriptors that a process needs beside one for each device.
const OTHER_DESCRIPTORS: u64 = 2000;
/// First connections a second. Two cores do some 1000 TLS handshakes a second, both sides counted.
const CONNECTS: usize = 250;

#[tokio::main]
async fn main() {
    // `cargo bench` adds a word of its own.
    let words: Vec<_> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    let devices = words
        .iter()
        .find_map(|word| word.parse().ok())
        .unwrap_or(10_000);
    raise_limit(devices as u64 + OTHER_DESCRIPTORS);
    tls::install_provider();
    if words.iter().any(|word| word == EMULATOR) {
        return emulator(devices).await;
    }
    let (mut process, ready) = start_emulator(devices);
    let plan = Plan {
        start_delay: Duration::from_secs(devices.div_ceil(CONNECTS) as u64),
        callers: 64,
        timetable: Timetable {
            stage: Duration::from_secs(1),
            download: Duration::from_secs(60),
            reboot: Duration::from_secs(15),
        },
        outage: Duration::from_secs(10),
        // Twice the time that so many handshakes take here; a fleet on a real hub is spread over 5 min.
        settings: &[("HUB__RECONNECT_MAX", "60s")],
        patience: Duration::from_secs(600),
        emulator: Some(process.id()),
    };
    scale::run(&plan, &ready).await;
    // It ends with its standard input.
    drop(process.stdin.take());
    let _ = process.wait();
}

/// Serves until standard input ends.
async fn emulator(devices: usize) {
    let mut options = Options::default();
    for number in 0..devices {
        options = options.device(&format!("pi-{number:05}"));
    }
    let emulator = Emulator::start(options).await.expect("the emulator starts");
    let line = serde_json::to_string(emulator.ready()).unwrap();
    writeln!(std::io::stdout().lock(), "{line}").unwrap();
    let end = || std::io::stdin().read_to_end(&mut Vec::new());
    let _ = tokio::task::spawn_blocking(end).await;
    // Not `stop`: nobody waits for ten thousand goodbyes.
    std::process::exit(0);
}

fn start_emulator(devices: usize) -> (Child, Ready) {
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args([EMULATOR, &devices.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program starts once more");
    let mut line = String::new();
    let output = process.stdout.take().expect("it is piped");
    BufReader::new(output).read_line(&mut line).unwrap();
    let ready = serde_json::from_str(&line).expect("the emulator's ready line");
    (process, ready)
}

/// Each device is a descriptor on either side.
fn raise_limit(wanted: u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if soft >= wanted {
        return;
    }
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)) {
        panic!(
            "{wanted} open files are needed, {hard} are allowed: {error}; run as root, or with fewer devices"
        );
    }
}
