//! Every power cut of whole updates, replayed: whatever a medium may hold then, a whole and verified slot boots, the
//! confirmed slot is whole, and the daemon that starts there ends in the new version or in a failure that is true.
//!
//! The real daemon runs updates under `strace`, which records each write, sync and rename on slots, environment and
//! state directory: one that ends well, one over a slot that holds most of it already, one that is not healthy, one
//! that never comes up, one with a plain image; all but the last also on boards with RAUC's and Mender's scripts. Then
//! - **every prefix** is cut off, with what was not synced lost, reordered and torn at 512 bytes in every way
//!   (`block.rs`, `folder.rs`), and every state that comes of it is held against the [laws](laws::Law), the boot loader
//!   being read by U-Boot's rules and not by the daemon's;
//! - of each kind of state one (and some more) is given to the **real daemon**, which must bring the update to its end,
//!   a part of them with further power cuts while it recovers, which are recorded and looked at likewise;
//! - **wrong orders** are made of the right one (`mutations.rs`), and each must be found.
//!
//! `make crash-replay` (`CRASH_REPLAY=full`) starts the daemon on many more states, and records an image so large that it
//! is synced on the way. `CRASH_SEED` draws other states.

mod support;

#[path = "crash_replay/bench.rs"]
mod bench;
#[path = "crash_replay/block.rs"]
mod block;
#[path = "crash_replay/board.rs"]
mod board;
#[path = "crash_replay/call.rs"]
mod call;
#[path = "crash_replay/disk.rs"]
mod disk;
#[path = "crash_replay/folder.rs"]
mod folder;
#[path = "crash_replay/laws.rs"]
mod laws;
#[path = "crash_replay/mutations.rs"]
mod mutations;
#[path = "crash_replay/recover.rs"]
mod recover;
#[path = "crash_replay/script.rs"]
mod script;
#[path = "crash_replay/strace.rs"]
mod strace;
#[path = "crash_replay/trace.rs"]
mod trace;
#[path = "crash_replay/uboot.rs"]
mod uboot;
#[path = "crash_replay/world.rs"]
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Write as _,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bench::{Bench, PLANS};
use board::Board;
use fwupdated::platform::uboot_env::{EnvLocation, UbootEnv};
use laws::{Crash, Findings, Recording, walk};
use recover::{Recovery, further_cuts, recover};
use script::{MENDER, OWN, RAUC};
use support::random::{Random, number};
use trace::{Medium, Op};

/// Bytes of an image that is small enough to count all states out.
const SMALL: usize = 2 << 20;
/// Bytes of one that is synced on the way, after 64 MiB.
const LARGE: usize = 80 << 20;
/// The updates of [`PLANS`] in words.
const NAMES: [&str; PLANS.len()] = [
    "an update",
    "an update over an old one",
    "an unhealthy one",
    "one that never comes up",
    "a plain image",
];
/// The seed of what is drawn, unless one is asked for.
const SEED: u64 = 20_261_128;

fn seed() -> u64 {
    number("CRASH_SEED").unwrap_or(SEED)
}

fn is_full() -> bool {
    std::env::var("CRASH_REPLAY").is_ok_and(|form| form == "full")
}

/// Says it past the test runner's capture: what was looked at is the result.
fn say(text: &str) {
    // Nobody to tell is no reason to fail.
    let _ = writeln!(std::io::stderr(), "crash replay: {text}");
}

/// Runs the updates of `bench` on one device; a recording of each.
fn record(bench: &Bench, place: &Path) -> Vec<Recording> {
    let factory = bench.factory();
    let slots = factory.slots.each_ref().map(|slot| slot.durable().to_vec());
    let files = folder::Files::new();
    let mut board = Board::new(bench, place, &slots, factory.env.durable(), &files);
    let mut told = Vec::new();
    let mut asked = Vec::new();
    let mut recordings = Vec::new();
    for job in &bench.world.jobs {
        asked.push(job.id.clone());
        let disk = board.disk();
        board.record();
        let life = board
            .live(Some(job), &asked)
            .unwrap_or_else(|problem| panic!("{problem}"));
        let end = life.saved.last_run.expect("an update has ended");
        let code = end.error.map(|failure| failure.code);
        assert_eq!((end.stage, code.as_deref()), job.end, "{}", job.id);
        let recording = Recording {
            script: bench.world.script,
            disk,
            told: told.clone(),
            used_up: false,
            ops: life.ops,
        };
        told.extend(recording.ops.iter().filter_map(|op| match op {
            Op::Told(told) => Some(told.clone()),
            _ => None,
        }));
        recordings.push(recording);
    }
    recordings
}

/// What a device did, step by step: nobody can judge a violation without it.
fn story(recording: &Recording) -> String {
    let steps = (1..).zip(&recording.ops);
    steps
        .map(|(number, op)| format!("{number:4} {op:?}\n"))
        .collect()
}

/// Walks over a recording, and says what was looked at.
fn examine(bench: &Bench, recording: &Recording, what: &str, random: &mut Random) -> Findings {
    let findings = walk(&bench.world, recording, random);
    let writes = recording
        .ops
        .iter()
        .filter(|op| matches!(op, Op::Write { .. } | Op::WriteFile { .. }));
    say(&format!(
        "{what}: {} steps, {} of them writes; {} states of environment and document after a power cut, each with all \
         of up to 2^{} states of the slots; {} violations",
        recording.ops.len(),
        writes.count(),
        findings.states,
        findings.open_sectors,
        findings.violations.len()
    ));
    let worst: Vec<_> = findings
        .violations
        .iter()
        .take(10)
        .map(ToString::to_string)
        .collect();
    assert!(
        worst.is_empty(),
        "{what}:\n{}\n{}",
        worst.join("\n"),
        story(recording)
    );
    findings
}

/// The daemon's reader finds in each environment what U-Boot finds.
fn assert_read_alike(place: &Path, environments: &BTreeSet<Vec<u8>>) {
    let (file, config) = (place.join("env"), place.join("fw_env.config"));
    let size = uboot::COPY;
    let text = format!("{0} 0 {size:#x}\n{0} {size:#x} {size:#x}\n", file.display());
    fs::write(&config, text).unwrap();
    let reader = UbootEnv::new(EnvLocation::read(&config).unwrap(), &place.join("lock"));
    for bytes in environments {
        fs::write(&file, bytes).unwrap();
        let found = reader.read().unwrap();
        let found: uboot::Variables = found
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect();
        assert_eq!(
            Some(found),
            uboot::read(bytes).map(|(_, variables)| variables)
        );
    }
}

/// A power cut, and the recording that it falls into.
type Cut<'a> = (&'a Bench, &'a Recording, &'a Crash);

/// Lets the real daemon go on after each of `cuts`, as many at once as there are processors.
fn recover_all(place: &Path, cuts: &[Cut<'_>], seed: u64) -> Recovery {
    let next = AtomicUsize::new(0);
    let all = Mutex::new(Recovery::default());
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some((bench, recording, crash)) = cuts.get(number) else {
                        return;
                    };
                    let mut random = Random(seed ^ ((number as u64) << 32));
                    let place = place.join(format!("cut-{number}"));
                    let further = further_cuts(&mut random);
                    match recover(bench, &place, recording, crash, &mut random, further) {
                        Ok(recovery) => all.lock().unwrap().add(recovery),
                        Err(problem) => {
                            // The others need not go on.
                            next.store(cuts.len(), Ordering::Relaxed);
                            panic!("seed {seed}, cut {number}: {problem}\n{}", story(recording));
                        }
                    }
                }
            });
        }
    });
    all.into_inner().unwrap()
}

/// One of each kind among the states of `recordings`, but of so many `kinds` at most, and `more` of any kind.
fn choose<'a>(
    found: &'a [(&'a Bench, &'a Recording, Findings)],
    kinds: usize,
    more: usize,
    random: &mut Random,
) -> Vec<Cut<'a>> {
    let mut alike: BTreeMap<(usize, &str), Vec<Cut<'a>>> = BTreeMap::new();
    let mut all = Vec::new();
    for (number, (bench, recording, findings)) in found.iter().enumerate() {
        for crash in &findings.crashes {
            alike
                .entry((number, &crash.kind))
                .or_default()
                .push((bench, recording, crash));
            all.push((*bench, *recording, crash));
        }
    }
    let mut any = |of: &[Cut<'a>]| of[random.below(of.len() as u64) as usize];
    // From the beginning of the updates to their end.
    let each = alike.len().div_ceil(kinds).max(1);
    let chosen = alike.values().step_by(each).map(|alike| any(alike));
    let mut chosen: Vec<_> = chosen.collect();
    chosen.extend((0..more).map(|_| any(&all)));
    chosen
}

#[test]
fn after_any_power_cut_a_whole_slot_boots_and_the_update_ends_in_the_truth() {
    let seed = seed();
    let mut random = Random(seed);
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(&dir.path().join("bench"), &OWN, SMALL, 3, PLANS.len());
    let strict = Bench::new(&dir.path().join("strict-bench"), &OWN, SMALL, 1, 1);
    let recordings = record(&bench, &dir.path().join("device"));
    let once = record(&strict, &dir.path().join("strict")).remove(0);
    let mut found = Vec::new();
    let mut environments = BTreeSet::new();
    let all = recordings
        .iter()
        .zip(NAMES)
        .map(|(recording, name)| (&bench, recording, name));
    for (bench, recording, name) in all.chain([(&strict, &once, "an update with a single try")]) {
        let mut findings = examine(bench, recording, name, &mut random);
        environments.append(&mut findings.environments);
        found.push((bench, recording, findings));
    }
    assert_read_alike(dir.path(), &environments);
    let chosen = choose(
        &found,
        usize::MAX,
        if is_full() { 1000 } else { 20 },
        &mut random,
    );
    let recovery = recover_all(dir.path(), &chosen, seed);
    assert_ends(&recovery, seed);
}

/// Says how the updates ended that the daemon brought to an end: there must be some of each kind.
fn assert_ends(recovery: &Recovery, seed: u64) {
    let mut outcomes: BTreeMap<&str, usize> = BTreeMap::new();
    for outcome in &recovery.outcomes {
        *outcomes.entry(outcome).or_default() += 1;
    }
    let nested: u64 = recovery
        .findings
        .iter()
        .map(|findings| findings.states)
        .sum();
    say(&format!(
        "{} power cuts given to the real daemon, {} of them while it recovered from another one ({nested} states looked \
         at); {} boots; {outcomes:?}; seed {seed}",
        recovery.outcomes.len(),
        recovery.findings.len(),
        recovery.boots
    ));
    for end in ["complete", "health-check-failed", "trial-boot-failed"] {
        assert!(outcomes.contains_key(end), "nothing ended as {end}");
    }
}

#[test]
fn so_it_is_with_the_scripts_of_rauc_and_mender() {
    let seed = seed();
    let mut random = Random(seed);
    let dir = tempfile::tempdir().unwrap();
    for script in [&RAUC, &MENDER] {
        let place = dir.path().join(script.name);
        let bench = Bench::new(&place.join("bench"), script, SMALL, 3, 4);
        let recordings = record(&bench, &place.join("device"));
        let mut found = Vec::new();
        for (recording, name) in recordings.iter().zip(NAMES) {
            let what = format!("{name} with {}'s script", script.name);
            let findings = examine(&bench, recording, &what, &mut random);
            found.push((&bench, recording, findings));
        }
        let (kinds, more) = if is_full() {
            (usize::MAX, 100)
        } else {
            (24, 0)
        };
        let chosen = choose(&found, kinds, more, &mut random);
        assert_ends(&recover_all(&place, &chosen, seed), seed);
    }
}

#[test]
#[ignore = "takes minutes and a gigabyte; `make crash-replay` runs it"]
fn so_it_is_with_an_image_that_is_synced_on_the_way() {
    let seed = seed();
    let mut random = Random(seed);
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::new(&dir.path().join("bench"), &OWN, LARGE, 3, 1);
    let recording = record(&bench, &dir.path().join("device")).remove(0);
    let slot = Medium::Slot(bench.world.jobs[0].target);
    let syncs = recording.ops.iter().filter(|op| **op == Op::Sync(slot));
    assert!(syncs.count() > 5, "{}", story(&recording));
    let findings = examine(&bench, &recording, "a large update", &mut random);
    let found = [(&bench, &recording, findings)];
    let chosen = choose(&found, usize::MAX, 10, &mut random);
    let recovery = recover_all(dir.path(), &chosen, seed);
    say(&format!(
        "{} power cuts of a large update given to the real daemon; seed {seed}",
        recovery.outcomes.len()
    ));
}

#[test]
fn each_wrong_order_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(seed());
    let mut made: BTreeMap<&str, usize> = BTreeMap::new();
    for script in [&OWN, &RAUC, &MENDER] {
        let place = dir.path().join(script.name);
        let bench = Bench::new(&place.join("bench"), script, SMALL, 3, 1);
        let right = record(&bench, &place.join("device")).remove(0);
        let what = format!("the right order with {}'s script", script.name);
        examine(&bench, &right, &what, &mut random);
        for mutation in mutations::MUTATIONS {
            let mut wrong = right.clone();
            (mutation.make)(&mut wrong);
            if wrong.ops == right.ops {
                continue;
            }
            *made.entry(script.name).or_default() += 1;
            let findings = walk(&bench.world, &wrong, &mut random);
            let broken = findings
                .violations
                .iter()
                .filter(|violation| violation.law == mutation.breaks);
            let count = broken.count();
            let others: BTreeSet<_> = findings
                .violations
                .iter()
                .map(|violation| violation.law)
                .collect();
            assert!(
                count > 0,
                "{}: {} breaks {others:?} only\n{}",
                script.name,
                mutation.name,
                story(&wrong)
            );
            say(&format!(
                "{}: found: {} ({:?}, {count} states)",
                script.name, mutation.name, mutation.breaks
            ));
        }
    }
    say(&format!("wrong orders that were found: {made:?}"));
    // One is RAUC's own, and one means nothing to Mender's script.
    let all = mutations::MUTATIONS.len();
    let expected = [
        (OWN.name, all - 1),
        (RAUC.name, all),
        (MENDER.name, all - 2),
    ];
    assert_eq!(made, expected.into());
}
