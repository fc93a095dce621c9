//! What an interruption costs: the daemon is killed, loses its connection, or loses what was not on the medium yet,
//! at random moments of an installation, and the image server counts which bytes it had to send twice.
//!
//! `RESUME_SEED` repeats a run (as far as the timing of processes can be repeated); `RESUME_KILLS` asks for more.

mod support;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use fwupdated::update::slot::Slot;
use serde_json::{Value, json};
use support::{
    image_server::{Fault, Logged},
    random::{Random, number, seed},
    rig::{Device, Image, Rig, noise},
};

const MIB: u64 = 1 << 20;
/// The most of the image that one interruption may cost, and what half of them may cost.
const MOST: u64 = 64 * MIB;
const MEDIAN: u64 = 32 * MIB;
/// Large enough for an interruption that throws everything away to be found out.
const SIZE: u64 = 96 * MIB;
/// An image for what does not depend on the size.
const SMALL: u64 = 16 * MIB;
/// Kills of one update; then it may end in peace.
const KILLS_EACH: u64 = 25;

/// Parts of a file, ascending, none touching the next.
#[derive(Debug, Default, Clone)]
struct Parts(Vec<(u64, u64)>);

impl Parts {
    /// Adds `start..end`; returns how much of it was in already.
    fn add(&mut self, start: u64, end: u64) -> u64 {
        let (mut joined, mut twice) = ((start, end), 0);
        self.0.retain(|&(from, to)| {
            twice += end.min(to).saturating_sub(start.max(from));
            let apart = to < joined.0 || from > joined.1;
            if !apart {
                joined = (joined.0.min(from), joined.1.max(to));
            }
            apart
        });
        let at = self.0.partition_point(|part| part.0 < joined.0);
        self.0.insert(at, joined);
        twice
    }
}

/// The part of the file that the answer brought.
fn brought(request: &Logged) -> (u64, u64) {
    let start = match &request.range {
        Some(range) if request.status == 206 => {
            let bytes = range.strip_prefix("bytes=").expect("a range of bytes");
            bytes.split('-').next().unwrap().parse().unwrap()
        }
        _ => 0,
    };
    (start, start + request.bytes)
}

/// What one run of the daemon was sent, and how much of it an earlier run had been sent already. What comes
/// twice within the run counts too.
fn sent_again(rig: &Rig, sent: &mut Parts) -> u64 {
    let requests = rig.server.requests();
    rig.server.clear_requests();
    let parts = requests.iter().map(brought);
    parts.map(|(start, end)| sent.add(start, end)).sum()
}

/// A device that runs something small and has never seen an image.
async fn fresh(rig: &Rig, dir: PathBuf) -> Device {
    let mut device = Device::new(rig, &dir, SIZE + 8 * MIB, "1.0.0", "");
    let running = device.slot_file(Slot::A);
    // What runs shares nothing with the images: what is reused can only be what an earlier run had written.
    fs::write(running, noise(MIB as usize, 99)).unwrap();
    device.boot();
    device.until_connected(rig).await;
    device
}

/// Calls the method; returns the update's id.
async fn begun(rig: &Rig, uri: &str) -> String {
    let (status, body) = rig.invoke(json!({ "fwPackageUri": uri })).await;
    assert_eq!(status, 200, "{body}");
    body["updateId"].as_str().unwrap().to_owned()
}

fn assert_complete(device: &Device, image: &Image, section: &Value, story: &str) {
    let log = || device.log();
    assert_eq!(
        section["status"],
        "applyComplete",
        "{story}: {section:#}\n{}",
        log()
    );
    assert_eq!(device.running(), Slot::B, "{story}\n{}", log());
    assert!(device.holds(Slot::B, &image.raw), "{story}\n{}", log());
}

/// Lives on until the server has sent `bytes`, or nothing more will come.
async fn until_sent(rig: &Rig, device: &Device, bytes: u64) {
    let began = Instant::now();
    while rig.server.bytes_sent() < bytes
        && began.elapsed() < Duration::from_secs(20)
        && ["waiting", "checking", "disabling", "writing"].contains(&device.state().as_str())
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// As a power cut does: some of what was written is not on the medium, or torn.
fn lose_some(device: &Device, random: &mut Random) {
    let file = File::options().write(true).open(device.slot_file(Slot::B));
    let file = file.unwrap();
    for _ in 0..4 {
        let old = vec![(random.below(2) * 0xff) as u8; random.below(4 * MIB) as usize];
        file.write_all_at(&old, random.below(SIZE - 4 * MIB))
            .unwrap();
    }
}

/// Prints the distribution and holds it against the limits.
fn assert_cheap(what: &str, mut costs: Vec<u64>, story: &str) {
    costs.sort_unstable();
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    let at = |part: usize| costs[(costs.len() - 1) * part / 100];
    eprintln!(
        "{what}: {} interruptions; MiB sent again by each: minimum {:.1}, median {:.1}, 90 % {:.1}, maximum {:.1}; {story}",
        costs.len(),
        mib(at(0)),
        mib(at(50)),
        mib(at(90)),
        mib(at(100))
    );
    assert!(at(100) <= MOST && at(50) <= MEDIAN, "{story}: {costs:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_or_power_cut_costs_at_most_the_distance_of_two_checkpoints() {
    let wanted = number("RESUME_KILLS").unwrap_or(50);
    let seed = seed("RESUME_SEED");
    let story = format!("seed {seed}");
    let mut random = Random(seed);
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let image = rig.build(
        "2.0.0",
        noise(SIZE as usize, seed),
        &["--chunk-size", "64K"],
    );
    let uri = rig.serve(&image);
    let (mut costs, mut stages) = (Vec::new(), BTreeMap::new());
    for life in 0.. {
        let left = wanted.saturating_sub(costs.len() as u64);
        if left == 0 {
            break;
        }
        let mut device = fresh(&rig, dir.path().join(format!("device-{life}"))).await;
        let mut sent = Parts::default();
        rig.server.clear_requests();
        // Slow enough for a kill to hit what it aims at.
        rig.server.throttle(Some(48 * MIB));
        let id = begun(&rig, &uri).await;
        for _ in 0..left.min(KILLS_EACH) {
            until_sent(&rig, &device, random.below(2 * SIZE / KILLS_EACH)).await;
            tokio::time::sleep(Duration::from_millis(random.below(40))).await;
            device.kill();
            // What the server had under way for the dead counts too.
            tokio::time::sleep(Duration::from_millis(30)).await;
            let first = sent.0.is_empty();
            let again = sent_again(&rig, &mut sent);
            if !first {
                costs.push(again);
            }
            let state = device.state();
            *stages.entry(state.clone()).or_insert(0) += 1;
            if state == "idle" {
                break;
            }
            // The power went now and then, too.
            if device.reboot_is_asked() || random.below(4) == 0 {
                // What is read back was flushed before, so a cut cannot take it any more.
                if state == "writing" {
                    lose_some(&device, &mut random);
                }
                device.boot();
            } else {
                device.start();
            }
        }
        rig.server.throttle(None);
        if device.daemon.is_none() {
            device.start();
        }
        let section = device.until_final(&rig, &id).await;
        costs.push(sent_again(&rig, &mut sent));
        assert_complete(&device, &image, &section, &story);
        device.kill();
        fs::remove_dir_all(&device.dir).unwrap();
    }
    assert_cheap("kills", costs, &format!("{story}; in {stages:?}"));
    assert!(
        stages["writing"] as u64 >= wanted / 2,
        "{story}: most kills missed the download: {stages:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_connection_costs_next_to_nothing() {
    let seed = seed("RESUME_SEED");
    let story = format!("seed {seed}");
    let mut random = Random(seed);
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let size = 48 * MIB;
    let image = rig.build("2.0.0", noise(size as usize, seed), &[]);
    let uri = rig.serve(&image);
    let mut device = fresh(&rig, dir.path().join("device")).await;
    let drops = 50;
    let path = format!("/{}", image.file.file_name().unwrap().to_str().unwrap());
    let after = (0..drops).map(|_| Fault::DropAfter(random.below(2 * size / drops)));
    rig.server.faults(&path, after);
    let id = begun(&rig, &uri).await;
    let section = device.until_final(&rig, &id).await;
    assert_complete(&device, &image, &section, &story);
    let whole = fs::metadata(&image.file).unwrap().len();
    let broken = |request: &&Logged| {
        let end = request
            .range
            .as_deref()
            .and_then(|range| range.split('-').nth(1)?.parse().ok());
        brought(request).1 < end.map_or(whole, |last: u64| whole.min(last + 1))
    };
    let broken = rig.server.requests().iter().filter(broken).count();
    let again = sent_again(&rig, &mut Parts::default());
    eprintln!("{broken} answers broke off; {again} bytes were sent twice; {story}");
    assert!(broken >= 10, "{story}: {broken} answers broke off");
    // The header is read twice in any case: to decide, and to install.
    assert!(again <= 4 * MIB, "{story}: {again} bytes were sent twice");
}

/// An update whose daemon was killed when half of the image was in the slot.
async fn killed_half_way(rig: &Rig, dir: PathBuf, image: &Image) -> (Device, String, u64) {
    let mut device = fresh(rig, dir).await;
    rig.server.clear_requests();
    rig.server.throttle(Some(8 * MIB));
    let id = begun(rig, &rig.serve(image)).await;
    until_sent(rig, &device, SMALL / 2).await;
    device.kill();
    tokio::time::sleep(Duration::from_millis(50)).await;
    rig.server.throttle(None);
    let sent = rig.server.bytes_sent();
    assert!(sent >= SMALL / 2, "{sent} bytes\n{}", device.log());
    rig.server.clear_requests();
    (device, id, sent)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_image_under_a_new_entity_tag_is_continued_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let image = rig.build("2.0.0", noise(SMALL as usize, 3), &[]);
    let (mut device, id, before) = killed_half_way(&rig, dir.path().join("device"), &image).await;
    // Served again: the server now has another entity tag for the same bytes.
    rig.serve(&image);
    device.start();
    let section = device.until_final(&rig, &id).await;
    assert_complete(&device, &image, &section, "");
    let whole = fs::metadata(&image.file).unwrap().len();
    let sent = before + rig.server.bytes_sent();
    assert!(
        sent < whole + SMALL / 4,
        "{sent} bytes were sent for a file of {whole}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn another_image_at_the_same_address_after_a_restart_is_told_and_never_mixed_in() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let image = rig.build("2.0.0", noise(SMALL as usize, 3), &[]);
    let other = rig.build("2.1.0", noise(SMALL as usize, 4), &[]);
    let (mut device, id, _) = killed_half_way(&rig, dir.path().join("device"), &image).await;
    let running = fs::read(device.slot_file(Slot::A)).unwrap();
    let path = format!("/{}", image.file.file_name().unwrap().to_str().unwrap());
    rig.server.put(&path, other.file.as_path());
    device.start();
    let section = device.until_final(&rig, &id).await;
    assert_eq!(
        section["status"],
        "downloadfailed",
        "{section:#}\n{}",
        device.log()
    );
    assert_eq!(section["error"]["code"], "image-changed", "{section:#}");
    let told = section["error"]["message"].as_str().unwrap_or_default();
    assert!(told.contains("start the update again"), "{told}");
    assert_eq!(device.variable("fwupdated_trial"), None);
    let target = fs::read(device.slot_file(Slot::B)).unwrap();
    assert!(
        target[..4096].iter().all(|byte| *byte == 0),
        "half an image may mount"
    );
    assert!(fs::read(device.slot_file(Slot::A)).unwrap() == running);
    // Asked for again, it is the new image, and only that.
    let id = begun(&rig, &rig.server.url(&path)).await;
    let section = device.until_final(&rig, &id).await;
    assert_complete(&device, &other, &section, "");
}
