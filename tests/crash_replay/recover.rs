//! What becomes of a device after a power cut: the real daemon goes on from there.

use std::{fs, path::Path};

use fwupdated::{
    daemon::saved::Saved,
    update::{slot::Slot, status::Stage},
};

use super::{
    bench::Bench,
    board::{Board, Life, accepted},
    disk::Disk,
    laws::{Crash, DOCUMENT, Findings, Recording, walk},
    trace::{Op, Told},
    uboot,
    world::{Content, is_end},
};
use crate::support::random::Random;

/// Ends of an update whose trial was used up by power cuts.
const USED_UP: [&str; 2] = ["trial-boot-failed", "trial-not-confirmed"];
/// So many power cuts one after another, each while the device recovers from the one before.
const MOST_CUTS: u32 = 3;

/// Boots at rest that are looked at.
const BOOTS_AT_REST: usize = 6;

/// How the updates of one device ended, and what was looked at on the way.
#[derive(Default)]
pub(crate) struct Recovery {
    /// One for each power cut: the code of the last update's end.
    pub(crate) outcomes: Vec<String>,
    /// Boots.
    pub(crate) boots: usize,
    /// What was found in the recordings of recoveries.
    pub(crate) findings: Vec<Findings>,
}

impl Recovery {
    /// Takes in another one.
    pub(crate) fn add(&mut self, other: Self) {
        self.outcomes.extend(other.outcomes);
        self.boots += other.boots;
        self.findings.extend(other.findings);
    }
}

/// Cuts the power of `recording` as `crash` says, and lets the device live on, in a folder of `place`; with `cuts` to
/// come while it recovers.
///
/// # Errors
/// What must not happen, and did.
pub(crate) fn recover(
    bench: &Bench,
    place: &Path,
    recording: &Recording,
    crash: &Crash,
    random: &mut Random,
    cuts: u32,
) -> Result<Recovery, String> {
    let mut disk = recording.disk.clone();
    recording.ops[..crash.step]
        .iter()
        .for_each(|op| disk.apply(op));
    let slots = [disk.slots[0].any(random), disk.slots[1].any(random)];
    let files = disk
        .folder
        .with(DOCUMENT, crash.document.as_deref(), random);
    let mut told = recording.told.clone();
    told.extend(
        recording.ops[..crash.step]
            .iter()
            .filter_map(|op| match op {
                Op::Told(told) => Some(told.clone()),
                _ => None,
            }),
    );
    let mut board = Board::new(bench, place, &slots, &crash.env, &files);
    let record = cuts > 0;
    if record {
        board.record();
    }
    let saved: Saved = crash
        .document
        .as_deref()
        .map_or_else(Saved::default, |text| {
            serde_json::from_slice(text).expect("laws are kept")
        });
    let asked = asked(&saved, &told);
    let life = board.live(None, &asked);
    let text = |problem| format!("{problem}\nafter step {} ({})", crash.step, crash.kind);
    let life = life.map_err(text)?;
    let outcome =
        judge(bench, &board.disk(), &life, &asked, (&saved, crash.used_up)).map_err(text)?;
    drop(board);
    fs::remove_dir_all(place).unwrap();
    let mut recovery = Recovery {
        outcomes: vec![outcome],
        boots: life.boots,
        findings: Vec::new(),
    };
    if record {
        let recording = Recording {
            script: bench.world.script,
            disk: Disk::new(slots, crash.env.clone(), files),
            told,
            used_up: crash.used_up,
            ops: life.ops,
        };
        let findings = walk(&bench.world, &recording, random);
        if let Some(violation) = findings.violations.first() {
            return Err(text(format!("in its recovery: {violation}")));
        }
        let next = &findings.crashes[random.below(findings.crashes.len() as u64) as usize];
        let more = recover(bench, place, &recording, next, random, cuts - 1)
            .map_err(|problem| text(format!("{problem}\nwhile it recovered")))?;
        recovery.findings.push(findings);
        recovery.add(more);
    }
    Ok(recovery)
}

/// How many power cuts follow a first one: mostly none.
pub(crate) fn further_cuts(random: &mut Random) -> u32 {
    match random.below(4) {
        0 => 1 + u32::try_from(random.below(u64::from(MOST_CUTS))).unwrap(),
        _ => 0,
    }
}

/// The updates that must come to an end: those that were accepted, and those that the document knows.
fn asked(saved: &Saved, told: &[Told]) -> Vec<String> {
    let mut ids = accepted(told);
    ids.extend(saved.machine.job().map(|job| job.id.clone()));
    ids.extend(saved.outbox.iter().map(|report| report.id.clone()));
    ids.sort();
    ids.dedup();
    ids
}

/// Looks at a device at rest: each update has ended as it must, is told so, and what boots next is whole. `before` the
/// power cut this was recorded, and the trial was used up or not.
fn judge(
    bench: &Bench,
    disk: &Disk,
    life: &Life,
    asked: &[String],
    (before, used_up): (&Saved, bool),
) -> Result<String, String> {
    let world = &bench.world;
    let used_up = used_up || life.used_up;
    let mut outcome = "nothing was asked".to_owned();
    let mut confirmed = Slot::A;
    for id in asked {
        let job = world
            .job(id)
            .ok_or_else(|| format!("nobody asked for {id}"))?;
        let ends: Vec<_> = life
            .saved
            .outbox
            .iter()
            .filter(|report| report.id == *id)
            .collect();
        let [end] = ends[..] else {
            return Err(format!("{id} has {} ends", ends.len()));
        };
        let code = end.error.as_ref().map(|failure| failure.code.as_str());
        let as_planned = is_end(end, id, job.end.0) && code == job.end.1;
        let cut_off = used_up
            && end.stage == Stage::ApplyFailed
            && code.is_some_and(|code| USED_UP.contains(&code));
        // What was an end once stays the same.
        let known = before.outbox.iter().find(|report| report.id == *id);
        let fine = known.map_or(as_planned || cut_off, |known| known == end);
        if !fine {
            return Err(format!("{id} ended with {:?}, {:?}", end.stage, end.error));
        }
        if end.stage == Stage::ApplyComplete {
            confirmed = job.target;
        }
        outcome = code.unwrap_or("complete").to_owned();
    }
    let (_, variables) = uboot::read(disk.env.durable()).ok_or("the environment is gone")?;
    let script = world.script;
    let decision = script.decision(&variables)?;
    // With no daemon to look after it, as often as RAUC's script would count it.
    let mut left = variables.clone();
    let boots: Vec<_> = (0..BOOTS_AT_REST)
        .map(|_| {
            let (mut stored, slot) = script.boot(&left);
            left = stored.pop().unwrap_or_else(|| left.clone());
            slot
        })
        .collect();
    if decision.trial.is_some() || boots != [confirmed; BOOTS_AT_REST] {
        return Err(format!(
            "at rest the environment says {}, slot {confirmed} should be confirmed; it boots {boots:?}",
            script.shown(&variables)
        ));
    }
    let boots = confirmed;
    let whole = |content: Content<'_>| {
        disk.slot(boots)
            .surely(0..content.bytes.len(), content.bytes)
    };
    if !world.contents(boots).any(whole) {
        return Err(format!(
            "slot {boots} is confirmed and holds no whole image"
        ));
    }
    Ok(outcome)
}
