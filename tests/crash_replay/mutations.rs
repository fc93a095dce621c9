//! Orders that are wrong, made of one that is right: a replay that does not find them would prove nothing.

use fwupdated::update::slot::Slot;
use serde_json::Value;

use super::{
    disk::Disk,
    laws::{Law, Recording},
    script::{Decision, RAUC},
    trace::{Medium, Op, Told},
    uboot::{self, COPY, Variables},
};

/// A mistake in the order of an update.
pub(crate) struct Mutation {
    /// In words.
    pub(crate) name: &'static str,
    /// The law that it breaks.
    pub(crate) breaks: Law,
    /// Makes it, of a recorded update to slot b that ended well; leaves the recording as it is where the boot script knows
    /// no such mistake.
    pub(crate) make: fn(&mut Recording),
}

/// All of them.
pub(crate) const MUTATIONS: &[Mutation] = &[
    Mutation {
        name: "the slot is armed before it is synced",
        breaks: Law::TheSlotThatBootsIsWhole,
        make: |recording| {
            let sync = last(recording, |op| *op == Op::Sync(SLOT));
            let armed = armed(recording) + 2;
            shift(recording, sync..sync + 1, armed);
        },
    },
    Mutation {
        name: "the slot is never synced",
        breaks: Law::TheSlotThatBootsIsWhole,
        make: |recording| recording.ops.retain(|op| *op != Op::Sync(SLOT)),
    },
    Mutation {
        name: "the slot's last write comes after it was armed",
        breaks: Law::TheSlotThatBootsIsWhole,
        make: |recording| {
            let write = last(recording, |op| is_write(op, SLOT));
            let armed = armed(recording) + 2;
            shift(recording, write..write + 2, armed);
        },
    },
    Mutation {
        name: "the first block is written first",
        breaks: Law::HalfAnImageNeverMounts,
        make: |recording| {
            let data = first(recording, |op| is_write(op, SLOT) && !is_zeros(op));
            let block = last(recording, |op| is_write(op, SLOT));
            shift(recording, block..block + 2, data);
        },
    },
    Mutation {
        name: "the first block is written without waiting for the rest",
        breaks: Law::HalfAnImageNeverMounts,
        make: |recording| {
            let block = last(recording, |op| is_write(op, SLOT));
            recording.ops.remove(block - 1);
        },
    },
    Mutation {
        name: "the first block is not wiped",
        breaks: Law::HalfAnImageNeverMounts,
        make: |recording| {
            let wipe = first(recording, |op| is_write(op, SLOT));
            recording.ops.remove(wipe);
        },
    },
    Mutation {
        name: "the wiped first block is not synced before other bytes change",
        breaks: Law::HalfAnImageNeverMounts,
        make: |recording| {
            let wipe = first(recording, |op| is_write(op, SLOT));
            recording.ops.remove(wipe + 1);
        },
    },
    Mutation {
        name: "the slot that runs is written",
        breaks: Law::ThereIsAWayBack,
        make: |recording| {
            for op in &mut recording.ops {
                if let Op::Write { medium, .. } = op
                    && *medium == SLOT
                {
                    *medium = Medium::Slot(Slot::A);
                }
            }
        },
    },
    Mutation {
        name: "arming takes two writes",
        breaks: Law::DecisionsAreWhole,
        make: |recording| {
            let at = armed(recording);
            let later = recording.script.armed_later;
            in_two_writes(recording, at, later);
        },
    },
    Mutation {
        name: "marking good takes two writes",
        breaks: Law::DecisionsAreWhole,
        make: |recording| {
            let at = marked_good(recording);
            let later = recording.script.good_later;
            in_two_writes(recording, at, later);
        },
    },
    Mutation {
        name: "the copy of the environment in force is written over",
        breaks: Law::DecisionsAreWhole,
        make: |recording| {
            // At the end, since those of before went to the other copies.
            let at = marked_good(recording);
            if let Op::Write { offset, .. } = &mut recording.ops[at] {
                *offset = COPY as u64 - *offset;
            }
        },
    },
    Mutation {
        name: "an older decision is left in the other copy of the environment",
        breaks: Law::OneCopyOfTheEnvironmentIsEnough,
        make: |recording| {
            let armed = armed(recording);
            let before = recording.ops[..armed].iter();
            let level = before.rev().position(|op| is_write(op, Medium::Env));
            let level = armed - 1 - level.expect("the copies are made to say the same");
            recording.ops.drain(level..level + 2);
        },
    },
    Mutation {
        name: "the order of RAUC's script names the slot while it is written",
        breaks: Law::OneCopyOfTheEnvironmentIsEnough,
        make: |recording| {
            for at in (0..armed(recording)).rev() {
                let without = decision(recording, &recording.ops[at])
                    .is_some_and(|decision| decision.may_boot == [Slot::A]);
                if without && recording.script.name == RAUC.name {
                    recording.ops.drain(at..at + 2);
                }
            }
        },
    },
    Mutation {
        name: "both copies of the environment are written at once",
        breaks: Law::AnEnvironmentIsThere,
        make: |recording| {
            let at = marked_good(recording);
            let mut second = recording.ops[at].clone();
            if let Op::Write { offset, .. } = &mut second {
                *offset = COPY as u64 - *offset;
            }
            recording.ops.insert(at, second);
        },
    },
    Mutation {
        name: "the document is not synced before it takes the place of the old one",
        breaks: Law::TheDocumentIsWhole,
        make: |recording| recording.ops.retain(|op| !matches!(op, Op::SyncFile(_))),
    },
    Mutation {
        name: "the folder is not synced before the method is answered",
        breaks: Law::WhatWasToldIsTrue,
        make: |recording| {
            recording
                .ops
                .retain(|op| !matches!(op, Op::SyncFolder { .. }))
        },
    },
    Mutation {
        name: "the slot is armed before the document says that it will be",
        breaks: Law::DocumentAndBootloaderAgree,
        make: |recording| {
            let (arm, save) = (armed(recording), saved(recording, "arming"));
            shift(recording, arm..arm + 2, save);
        },
    },
    Mutation {
        name: "the document says that the slot is armed before the environment is synced",
        breaks: Law::DocumentAndBootloaderAgree,
        make: |recording| {
            let (arm, save) = (armed(recording), saved(recording, "rebooting"));
            shift(recording, arm + 1..arm + 2, save + SAVE);
        },
    },
    Mutation {
        name: "the slot is marked good before it was found healthy",
        breaks: Law::DocumentAndBootloaderAgree,
        make: |recording| {
            let (good, save) = (marked_good(recording), saved(recording, "confirming"));
            shift(recording, good..good + 2, save);
        },
    },
    Mutation {
        name: "the end is recorded before the confirmation is synced",
        breaks: Law::DocumentAndBootloaderAgree,
        make: |recording| {
            let (good, save) = (marked_good(recording), last_save(recording));
            shift(recording, good + 1..good + 2, save + SAVE);
        },
    },
    Mutation {
        name: "the method is answered before the update is recorded",
        breaks: Law::WhatWasToldIsTrue,
        make: |recording| {
            let answer = first(recording, |op| matches!(op, Op::Told(Told::Accepted(_))));
            let save = saved(recording, "waiting");
            shift(recording, answer..answer + 1, save);
        },
    },
    Mutation {
        name: "the end is told before it is recorded",
        breaks: Law::WhatWasToldIsTrue,
        make: |recording| {
            let told = first(recording, |op| matches!(op, Op::Told(Told::Ended(..))));
            let save = last_save(recording);
            shift(recording, told..told + 1, save);
        },
    },
];

const SLOT: Medium = Medium::Slot(Slot::B);
/// Steps of a save: create, write, sync, rename, sync the folder.
const SAVE: usize = 5;

fn is_write(op: &Op, wanted: Medium) -> bool {
    matches!(op, Op::Write { medium, .. } if *medium == wanted)
}

fn is_zeros(op: &Op) -> bool {
    matches!(op, Op::Write { bytes, .. } if bytes.iter().all(|byte| *byte == 0))
}

fn first(recording: &Recording, wanted: impl Fn(&Op) -> bool) -> usize {
    recording
        .ops
        .iter()
        .position(wanted)
        .expect("the update did it")
}

fn last(recording: &Recording, wanted: impl Fn(&Op) -> bool) -> usize {
    recording
        .ops
        .iter()
        .rposition(wanted)
        .expect("the update did it")
}

/// The variables that a write puts in force.
fn variables(op: &Op) -> Option<Variables> {
    match op {
        Op::Write {
            medium: Medium::Env,
            bytes,
            ..
        } => uboot::decode(bytes).map(|(_, variables)| variables),
        _ => None,
    }
}

/// What a write of the environment decides.
fn decision(recording: &Recording, op: &Op) -> Option<Decision> {
    recording.script.decision(&variables(op)?).ok()
}

/// The write that arms the slot; its sync follows.
fn armed(recording: &Recording) -> usize {
    first(recording, |op| {
        decision(recording, op).is_some_and(|decision| decision.trial.is_some())
    })
}

/// The write that marks the slot good; its sync follows.
fn marked_good(recording: &Recording) -> usize {
    last(recording, |op| {
        decision(recording, op)
            .is_some_and(|decision| decision.trial.is_none() && decision.confirmed == Slot::B)
    })
}

/// Where the save of this state begins.
fn saved(recording: &Recording, state: &str) -> usize {
    let is_it = |op: &Op| match op {
        Op::WriteFile { bytes, .. } => serde_json::from_slice::<Value>(bytes)
            .is_ok_and(|document| document["machine"]["state"] == state),
        _ => false,
    };
    first(recording, is_it) - 1
}

/// Where the save of the end begins.
fn last_save(recording: &Recording) -> usize {
    last(recording, |op| matches!(op, Op::SyncFolder { .. })) + 1 - SAVE
}

/// Moves steps to before the step `to`.
fn shift(recording: &mut Recording, steps: std::ops::Range<usize>, to: usize) {
    let count = steps.len();
    let to = if steps.start < to { to - count } else { to };
    let moved: Vec<_> = recording.ops.drain(steps).collect();
    recording.ops.splice(to..to, moved);
}

/// Parts the write at `at`: in the first one the variables `later` are as before. Nothing follows, since what did was
/// made for other copies.
fn in_two_writes(recording: &mut Recording, at: usize, later: &[&str]) {
    if later.is_empty() {
        return;
    }
    let mut disk: Disk = recording.disk.clone();
    recording.ops[..at].iter().for_each(|op| disk.apply(op));
    let whole = variables(&recording.ops[at]).expect("a write of the environment");
    let (_, before) = uboot::read(disk.env.durable()).expect("it is there");
    let mut half = whole.clone();
    for name in later {
        half.remove(*name);
        if let Some(value) = before.get(*name) {
            half.insert((*name).to_owned(), value.clone());
        }
    }
    recording.ops.truncate(at);
    for variables in [half, whole] {
        let (offset, bytes) = uboot::save(disk.env.durable(), &variables);
        let write = Op::Write {
            medium: Medium::Env,
            offset,
            bytes: bytes.into(),
        };
        for op in [write, Op::Sync(Medium::Env)] {
            disk.apply(&op);
            recording.ops.push(op);
        }
    }
}
