//! The last word of every update reaches the twin once and in order, whatever becomes of daemon and hub meanwhile:
//! the daemon is killed at random moments, and the hub throttles, fails, swallows answers and drops connections.
//! `LAST_WORDS_SEED` repeats a run, as far as the timing of processes can be repeated.

mod support;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use support::rig::{DEVICE, Device, Rig};

/// Updates before the device gets the time to report them: fewer than it keeps for a hub that it does not reach.
const ROUND: usize = 12;
const UPDATES: usize = 2 * ROUND;

/// A small generator of numbers (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit
    }
}

fn name(number: usize) -> String {
    format!("update-{number:03}")
}

/// Starts an update that fails at once: its image is not there. Whether the device has taken it.
async fn start(rig: &Rig, number: usize) -> bool {
    let uri = rig.server.url("/absent.img");
    let payload = json!({"fwPackageUri": uri, "updateId": name(number)});
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(30) {
        match rig
            .emulator
            .invoke(DEVICE, "firmwareUpdate", payload.clone())
            .await
        {
            Ok(answer) if answer.status == 200 => return true,
            // The one before is not over, or the daemon is being started.
            Ok(answer) if [409, 503].contains(&answer.status) => {}
            Ok(answer) => panic!("{} {}", answer.status, answer.payload),
            // Not connected just now.
            Err(_) => {}
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    false
}

/// What the twin showed, in order: which update, and whether it had ended.
fn shown(rig: &Rig) -> Vec<(String, bool)> {
    let (mut id, mut word) = (String::new(), String::new());
    let mut shown = Vec::new();
    for entry in rig.emulator.reported_history(DEVICE) {
        let section = &entry["patch"]["iothubDM"]["firmwareUpdate"];
        for (member, text) in [("updateId", &mut id), ("status", &mut word)] {
            if let Some(new) = section[member].as_str() {
                new.clone_into(text);
            }
        }
        let step = (id.clone(), word == "downloadfailed");
        if !id.is_empty() && shown.last() != Some(&step) {
            shown.push(step);
        }
    }
    shown
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_and_faults_while_reporting_lose_no_last_word_and_repeat_none() {
    let seed = std::env::var("LAST_WORDS_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        now.as_nanos() as u64
    });
    let mut random = Random(seed);
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let settings = "[report]\nstage_interval = \"50ms\"\nprogress_interval = \"500ms\"\nanswer_timeout = \"1s\"\nreconnect_jitter = \"50ms\"\n";
    let path = dir.path().join("device");
    let mut device = Device::new(&rig, &path, 8 << 20, "1.0.0", settings);
    device.boot();
    device.until_connected(&rig).await;
    let mut kills = 0;
    for number in 0..UPDATES {
        match random.below(6) {
            0 => rig
                .emulator
                .fail_twin_patches(1 + random.below(2) as u32, 429),
            1 => rig.emulator.fail_twin_patches(1, 500),
            2 => rig
                .emulator
                .swallow_twin_answers(1 + random.below(2) as u32),
            3 => rig
                .emulator
                .delay_twin_answers(Duration::from_millis(random.below(150))),
            4 => drop(rig.emulator.drop_connection(DEVICE)),
            _ => {}
        }
        assert!(start(&rig, number).await, "seed {seed}\n{}", device.log());
        tokio::time::sleep(Duration::from_millis(random.below(250))).await;
        if random.below(3) > 0 {
            device.kill();
            device.start();
            kills += 1;
        }
        if (number + 1) % ROUND == 0 {
            rig.emulator.fail_twin_patches(0, 429);
            rig.emulator.swallow_twin_answers(0);
            rig.emulator.delay_twin_answers(Duration::ZERO);
            device.until_final(&rig, &name(number)).await;
        }
    }
    // What was delivered is not told again, behind what came after it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    device.kill();
    device.start();
    device
        .until("empty outbox", |device| {
            let text = std::fs::read_to_string(device.dir.join("state/state.json")).ok()?;
            let saved: Value = serde_json::from_str(&text).ok()?;
            (saved["outbox"].as_array()?.is_empty()).then_some(())
        })
        .await;

    let shown = shown(&rig);
    let story = || format!("seed {seed}: {shown:?}\n{}", device.log());
    let order: Vec<&str> = {
        let mut order: Vec<_> = shown.iter().map(|(id, _)| id.as_str()).collect();
        order.dedup();
        order
    };
    let expected: Vec<_> = (0..UPDATES).map(name).collect();
    assert_eq!(order, expected, "{}", story());
    for id in &expected {
        let ends: Vec<_> = shown.iter().filter(|(shown, _)| shown == id).collect();
        assert!(
            ends.last().is_some_and(|(_, ended)| *ended),
            "{id}: {}",
            story()
        );
        assert_eq!(
            ends.iter().filter(|(_, ended)| *ended).count(),
            1,
            "{id}: {}",
            story()
        );
    }
    eprintln!("{UPDATES} last words, once and in order, through {kills} kills; seed {seed}");
}
