//! Kills the daemon, and cuts the power, at random moments of updates: whatever is lost, no slot is ever armed
//! or confirmed that does not hold a whole image, what runs is not touched, and every update ends in
//! `applyComplete` or in a failure that is true.
//!
//! `KILL_SEED` repeats a run (as far as the timing of processes can be repeated); `KILLS` asks for more.

mod support;

use std::{
    collections::BTreeMap,
    fs,
    process::Stdio,
    time::{Duration, Instant},
};

use fwupdated::update::slot::Slot;
use serde_json::{Value, json};
use support::{
    random::{Random, number, seed},
    rig::{Device, Image, Rig, fwupdatectl, noise},
};

const SLOT: u64 = 8 << 20;
/// Kills of one update; then it may end in peace.
const KILLS_EACH: u64 = 12;
/// The machine's states, in the order of a good run. Most last for a few milliseconds only.
const STATES: [&str; 10] = [
    "waiting",
    "checking",
    "disabling",
    "writing",
    "verifying",
    "holding",
    "arming",
    "rebooting",
    "trial",
    "confirming",
];

/// What must be true whenever the power is off.
fn assert_safe(device: &Device, old: &[u8], new: &Image, before: Slot, seed: u64) {
    let confirmed = device.variable("fwupdated_slot").unwrap_or_default();
    let trial = device.variable("fwupdated_trial");
    let target = before.other();
    let holds_new = || device.holds(target, &new.raw);
    let story = || format!("seed {seed}\n{}", device.log());
    assert!(
        fs::read(device.slot_file(before)).unwrap() == old,
        "the running slot was changed; {}",
        story()
    );
    if confirmed == target.name() || trial.is_some() {
        assert!(
            holds_new(),
            "slot {target} is armed without holding the image; {}",
            story()
        );
    }
    if device.state() == "holding" {
        assert_eq!(trial, None, "armed while the reboot waits; {}", story());
    }
    if confirmed != target.name() {
        assert_eq!(confirmed, before.name(), "{}", story());
    }
}

/// Lets the device reboot, where that waits for someone. A daemon that is not ready to hear it is asked again.
fn allow(device: &Device) {
    let mut command = fwupdatectl();
    command
        .args(["approve", "--socket"])
        .arg(device.dir.join("control"));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().unwrap();
}

/// Lives on, reboots included, until the machine is in `wanted` or the update has ended; not for ever, since a
/// state may have passed unseen.
async fn until_state(device: &mut Device, wanted: &str) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        let now = device.state();
        if now == wanted || now == "idle" {
            break;
        }
        if device.reboot_is_asked() {
            device.boot();
        }
        if now == "holding" {
            allow(device);
        }
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

/// Installs `image` with kills at random moments; returns the twin's last word and the kills.
async fn installed_with_kills(
    rig: &Rig,
    device: &mut Device,
    image: &Image,
    random: &mut Random,
    moments: &mut BTreeMap<String, u32>,
    seed: u64,
) -> (Value, u32) {
    let before = device.running();
    let old = fs::read(device.slot_file(before)).unwrap();
    let (status, body) = rig.invoke(json!({"fwPackageUri": rig.serve(image)})).await;
    assert_eq!(status, 200, "{body}");
    let id = body["updateId"].as_str().unwrap().to_owned();
    let most = 1 + random.below(KILLS_EACH);
    let mut kills = 0;
    while u64::from(kills) < most {
        // Where the reboot is waited for, that is hit first: other states would hardly leave time for it.
        if !device.launcher.is_empty() && kills == 0 {
            until_state(device, "holding").await;
        } else if random.below(3) == 0 {
            tokio::time::sleep(Duration::from_millis(random.below(500))).await;
        } else {
            let wanted = STATES[random.below(STATES.len() as u64) as usize];
            until_state(device, wanted).await;
            tokio::time::sleep(Duration::from_micros(random.below(3000))).await;
        }
        device.kill();
        let hit = device.state();
        let ended = hit == "idle";
        // A kill after the end can still lose the last word, but it does not count.
        kills += u32::from(!ended);
        *moments.entry(hit).or_default() += 1;
        assert_safe(device, &old, image, before, seed);
        let reboot = device.reboot_is_asked();
        if reboot || random.below(4) == 0 {
            device.boot();
        } else {
            device.start();
        }
        if ended {
            break;
        }
    }
    let section = device
        .until(&format!("end of update {id}"), |device| {
            if device.state() == "holding" {
                allow(device);
            }
            let section = rig.section();
            let word = section["status"].as_str().unwrap_or_default();
            let ended = ["applyComplete", "applyFailed", "downloadfailed"].contains(&word);
            (section["updateId"] == id && ended).then_some(section)
        })
        .await;
    assert_safe(device, &old, image, before, seed);
    (section, kills)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_kills_end_in_a_confirmed_slot_or_a_true_failure() {
    kills_end_well(number("KILLS").unwrap_or(100), &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_do_thirty_where_each_reboot_waits_for_someone() {
    let policy = ["env", "FWUPDATED_POLICY__REBOOT=manual"];
    kills_end_well(number("KILLS").unwrap_or(30), &policy).await;
}

/// With `launcher` in front of the daemon.
async fn kills_end_well(wanted: u64, launcher: &[&str]) {
    let wanted = u32::try_from(wanted).unwrap();
    let seed = seed("KILL_SEED");
    let mut random = Random(seed);
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut device = Device::new(&rig, &dir.path().join("device"), SLOT, "1.0.0", "");
    device.launcher = launcher.iter().map(|word| (*word).to_owned()).collect();
    // A trial that takes its time can be hit.
    device.add_health_check("10-slow", "sleep 0.2");
    device.boot();
    device.until_connected(&rig).await;
    let (mut kills, mut complete, mut failed) = (0, 0, 0);
    let mut number = 0;
    let mut moments = BTreeMap::new();
    while kills < wanted {
        number += 1;
        let image = rig.build(&format!("1.{number}.0"), noise(4 << 20, seed ^ number), &[]);
        device.until_connected(&rig).await;
        let slow = random.below(2) == 0;
        rig.server.throttle(slow.then_some(8 << 20));
        let before = device.running();
        let (section, more) =
            installed_with_kills(&rig, &mut device, &image, &mut random, &mut moments, seed).await;
        kills += more;
        let word = section["status"].as_str().unwrap_or_default();
        let confirmed = device.variable("fwupdated_slot").unwrap_or_default();
        assert_eq!(
            device.variable("fwupdated_trial"),
            None,
            "seed {seed}: {section:#}"
        );
        if word == "applyComplete" {
            complete += 1;
            assert_eq!(confirmed, before.other().name(), "seed {seed}: {section:#}");
            assert_eq!(device.running(), before.other(), "seed {seed}: {section:#}");
        } else {
            failed += 1;
            // The only truth there is here: too many power cuts used the trial up.
            let code = section["error"]["code"].as_str().unwrap_or_default();
            assert!(
                ["trial-boot-failed", "trial-not-confirmed"].contains(&code),
                "seed {seed}: {section:#}\n{}",
                device.log()
            );
            assert_eq!(confirmed, before.name(), "seed {seed}: {section:#}");
            assert_eq!(device.running(), before, "seed {seed}: {section:#}");
        }
    }
    eprintln!(
        "{kills} kills in {number} updates: {complete} complete, {failed} rolled back; killed in {moments:?}; seed {seed}"
    );
    // Kills that all hit the same moment would prove little.
    let is_held = !launcher.is_empty();
    let least = if is_held { 4 } else { 6 };
    assert!(moments.len() >= least, "seed {seed}: {moments:?}");
    let was_held = moments.contains_key("holding");
    assert_eq!(was_held, is_held, "seed {seed}: {moments:?}");
    assert!(complete > 0, "seed {seed}");
}
