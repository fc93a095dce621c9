//! What must hold of every state that a power cut can leave, and the walk over all of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use fwupdated::{
    daemon::saved::Saved,
    update::{machine::State, slot::Slot, status::Stage},
};

use super::{
    block::{Block, SECTOR},
    disk::Disk,
    script::{Decision, Script},
    trace::{Medium, Op, Told},
    uboot::{self, Variables},
    world::{Content, World, is_end},
};
use crate::support::random::Random;

/// The first block of every file system that slots hold here.
const FIRST: usize = 8 * SECTOR;

/// The document of the daemon.
pub(crate) const DOCUMENT: &str = "state.json";

/// The laws.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Law {
    /// U-Boot finds a good copy of the environment.
    AnEnvironmentIsThere,
    /// The environment is the one of before a decision or the one after it, and no half of one.
    DecisionsAreWhole,
    /// The slot that boots is the confirmed one, whole, or the one on trial, whole.
    TheSlotThatBootsIsWhole,
    /// The confirmed slot is whole, whatever boots.
    ThereIsAWayBack,
    /// Should one copy of the environment be lost, the other one boots a whole slot, and goes back to a whole slot.
    OneCopyOfTheEnvironmentIsEnough,
    /// A slot whose first block is there holds all the rest.
    HalfAnImageNeverMounts,
    /// The daemon's document is whole.
    TheDocumentIsWhole,
    /// Document and environment tell the same story.
    DocumentAndBootloaderAgree,
    /// What the outside was told is still so.
    WhatWasToldIsTrue,
}

/// A state that breaks a law.
pub(crate) struct Violation {
    /// Which law.
    pub(crate) law: Law,
    /// After so many steps.
    pub(crate) step: usize,
    /// How.
    pub(crate) text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after step {}, {:?}: {}", self.step, self.law, self.text)
    }
}

/// A state after a power cut, and what kind it is.
pub(crate) struct Crash {
    /// After so many steps.
    pub(crate) step: usize,
    /// Whether the boot loader had ended the trial.
    pub(crate) used_up: bool,
    /// What the machine, the bootloader and the slots say: states alike in that are of one kind.
    pub(crate) kind: String,
    /// The environment.
    pub(crate) env: Vec<u8>,
    /// The daemon's document.
    pub(crate) document: Option<Vec<u8>>,
}

/// What a walk found.
#[derive(Default)]
pub(crate) struct Findings {
    /// Prefixes looked at.
    pub(crate) prefixes: usize,
    /// States of environment and document, each with every state of the slots.
    pub(crate) states: u64,
    /// The most sectors of the slots that could hold one thing or another, at once.
    pub(crate) open_sectors: usize,
    /// What broke a law.
    pub(crate) violations: Vec<Violation>,
    /// States without regard to the slots, that differ.
    pub(crate) crashes: Vec<Crash>,
    /// Environments that U-Boot's rules were applied to, all different.
    pub(crate) environments: BTreeSet<Vec<u8>>,
}

/// A device at first, and what it did then.
#[derive(Clone)]
pub(crate) struct Recording {
    /// By what it boots.
    pub(crate) script: &'static Script,
    /// What it held.
    pub(crate) disk: Disk,
    /// What was told before.
    pub(crate) told: Vec<Told>,
    /// Whether the boot loader had ended the trial before.
    pub(crate) used_up: bool,
    /// What it did.
    pub(crate) ops: Vec<Op>,
}

/// Walks over every prefix of a recording, and looks at every state that a power cut there can leave.
pub(crate) fn walk(world: &World, recording: &Recording, random: &mut Random) -> Findings {
    let mut findings = Findings::default();
    let mut walk = Walk {
        world,
        disk: recording.disk.clone(),
        told: recording.told.clone(),
        used_up: recording.used_up,
        decided: uboot::read(recording.disk.env.durable())
            .map(|(_, env)| env)
            .into_iter()
            .collect(),
        whole: Default::default(),
        kinds: Default::default(),
        findings: &mut findings,
    };
    walk.look(0, random);
    for (step, op) in (1..).zip(&recording.ops) {
        walk.disk.apply(op);
        walk.note(op);
        walk.look(step, random);
    }
    findings
}

struct Walk<'a> {
    world: &'a World,
    disk: Disk,
    told: Vec<Told>,
    /// The boot loader ended the trial.
    used_up: bool,
    /// The last decision that is durable, and those after it.
    decided: Vec<Variables>,
    /// Which of the contents that the slots may hold, a and b, they surely hold.
    whole: [Vec<bool>; 2],
    /// The same in short: what they may begin with, and with `!` what they hold.
    kinds: [String; 2],
    findings: &'a mut Findings,
}

impl Walk<'_> {
    fn note(&mut self, op: &Op) {
        match op {
            Op::Told(told) => self.told.push(told.clone()),
            Op::Write {
                medium: Medium::Env,
                bytes,
                ..
            } => {
                if let Some((_, variables)) = uboot::decode(bytes) {
                    let trial = self.decision(&variables).ok().and_then(|it| it.trial);
                    self.used_up &= trial.is_none_or(|trial| trial.left == 0);
                    self.decided.push(variables);
                }
            }
            Op::Sync(Medium::Env) => {
                self.decided.drain(..self.decided.len().saturating_sub(1));
            }
            Op::Boot(slot) => {
                let latest = self.disk.env.latest();
                let decision = uboot::read(&latest).map(|(_, env)| self.decision(&env));
                let trial = decision.and_then(Result::ok).and_then(|it| it.trial);
                self.used_up |= trial.is_some_and(|trial| trial.slot != *slot);
            }
            _ => {}
        }
    }

    fn decision(&self, variables: &Variables) -> Result<Decision, String> {
        self.world.script.decision(variables)
    }

    fn shown(&self, variables: &Variables) -> String {
        self.world.script.shown(variables)
    }

    fn look(&mut self, step: usize, random: &mut Random) {
        let mut broken = Vec::new();
        self.look_at_slots(&mut broken);
        let environments = self.disk.env.every(random);
        let documents = self.disk.folder.every(DOCUMENT, random);
        let mut kinds: BTreeMap<String, Crash> = BTreeMap::new();
        let mut parsed = Vec::new();
        for document in &documents {
            let saved = match document {
                None => Ok(Saved::default()),
                Some(text) => serde_json::from_slice::<Saved>(text),
            };
            match saved {
                Ok(saved) => parsed.push((document, saved)),
                Err(error) => broken.push((Law::TheDocumentIsWhole, error.to_string())),
            }
        }
        for (_, saved) in &parsed {
            self.look_at_told(saved, &mut broken);
        }
        for bytes in environments {
            let Some((_, variables)) = uboot::read(&bytes) else {
                broken.push((Law::AnEnvironmentIsThere, "no good copy".into()));
                continue;
            };
            if !self.decided.contains(&variables) {
                let text = format!(
                    "{} is neither the old nor the new one",
                    self.shown(&variables)
                );
                broken.push((Law::DecisionsAreWhole, text));
            }
            self.look_at_copies(&bytes, &mut broken);
            match self.decision(&variables) {
                Err(text) => broken.push((Law::DecisionsAreWhole, text)),
                Ok(decision) => {
                    let (_, boots) = self.world.script.boot(&variables);
                    self.look_at_choice(boots, &decision, &mut broken);
                    for (document, saved) in &parsed {
                        if let Err(text) = self.agree(saved, &decision) {
                            broken.push((Law::DocumentAndBootloaderAgree, text));
                        }
                        let kind = self.kind(saved, &variables);
                        kinds.entry(kind.clone()).or_insert_with(|| Crash {
                            step,
                            used_up: self.used_up,
                            kind,
                            env: bytes.clone(),
                            document: (*document).clone(),
                        });
                    }
                }
            }
            self.findings.states += documents.len() as u64;
            self.findings.environments.insert(bytes);
        }
        let open = self.disk.slots.iter().map(Block::open_sectors).sum();
        self.findings.open_sectors = self.findings.open_sectors.max(open);
        self.findings.prefixes += 1;
        self.findings.crashes.extend(kinds.into_values());
        let violations = broken
            .into_iter()
            .map(|(law, text)| Violation { law, step, text });
        self.findings.violations.extend(violations);
    }

    /// Looks at what the slots may hold, and keeps it for all that is looked at in this place.
    fn look_at_slots(&mut self, broken: &mut Vec<(Law, String)>) {
        for slot in Slot::ALL {
            let medium = self.disk.slot(slot);
            let (mut shown, mut goes_on) = (false, false);
            let mut kind = String::new();
            let whole = &mut self.whole[usize::from(slot == Slot::B)];
            whole.clear();
            for (Content { bytes, .. }, number) in self.world.contents(slot).zip('0'..) {
                let begins = medium.may_hold(0..FIRST, &bytes[..FIRST]);
                let rest = medium.surely(FIRST..bytes.len(), &bytes[FIRST..]);
                let all = rest && medium.surely(0..FIRST, &bytes[..FIRST]);
                shown |= begins;
                goes_on |= begins && rest;
                kind.extend(begins.then_some(number));
                kind.extend(all.then_some('!'));
                whole.push(all);
            }
            if shown && !goes_on {
                let text = format!("slot {slot} may begin like an image and go on otherwise");
                broken.push((Law::HalfAnImageNeverMounts, text));
            }
            self.kinds[usize::from(slot == Slot::B)] = kind;
        }
    }

    /// Whether `slot` surely holds one of the contents that `wanted` says.
    fn holds(&self, slot: Slot, wanted: impl Fn(&Content<'_>) -> bool) -> bool {
        let whole = &self.whole[usize::from(slot == Slot::B)];
        let mut all = self.world.contents(slot).zip(whole);
        all.any(|(content, whole)| *whole && wanted(&content))
    }

    fn look_at_choice(&self, boots: Slot, decision: &Decision, broken: &mut Vec<(Law, String)>) {
        let confirmed = decision.confirmed;
        let way_back = self.holds(confirmed, |content| content.confirmed);
        if !way_back {
            let text = format!("the confirmed slot {confirmed} may hold no whole image");
            broken.push((Law::ThereIsAWayBack, text));
        }
        let fine = match &decision.trial {
            Some(trial) if trial.slot == boots => self.holds(boots, |content| {
                content.job.is_some_and(|job| job.id == trial.id)
            }),
            _ => boots == confirmed && way_back,
        };
        if !fine {
            let text = format!("slot {boots} boots and may hold no whole image");
            broken.push((Law::TheSlotThatBootsIsWhole, text));
        }
    }

    fn look_at_copies(&self, bytes: &[u8], broken: &mut Vec<(Law, String)>) {
        for (_, variables) in uboot::copies(bytes).into_iter().flatten() {
            let Ok(decision) = self.decision(&variables) else {
                continue;
            };
            for slot in decision.may_boot {
                if self.holds(slot, |_| true) {
                    continue;
                }
                let text = format!(
                    "a copy says {}, and slot {slot} may hold no whole image",
                    self.shown(&variables)
                );
                broken.push((Law::OneCopyOfTheEnvironmentIsEnough, text));
            }
        }
    }

    fn look_at_told(&self, saved: &Saved, broken: &mut Vec<(Law, String)>) {
        for told in &self.told {
            let true_still = match told {
                Told::Accepted(id) => {
                    saved.machine.job().is_some_and(|job| job.id == *id)
                        || saved.outbox.iter().any(|report| report.id == *id)
                }
                Told::Ended(id, stage) => {
                    let ended = |report: &&_| is_end(report, id, *stage);
                    saved.outbox.iter().any(|report| ended(&report))
                }
            };
            if !true_still {
                broken.push((Law::WhatWasToldIsTrue, format!("{told:?} is forgotten")));
            }
        }
    }

    /// The document's state and the bootloader's decision, as they may stand beside each other.
    fn agree(&self, saved: &Saved, decision: &Decision) -> Result<(), String> {
        let machine = &saved.machine;
        let trial = decision.trial.as_ref();
        let expected = match (machine.job(), &saved.last_run) {
            (Some(job), _) => job.target.other(),
            (None, Some(last)) if last.stage == Stage::ApplyComplete => last.target,
            (None, Some(last)) => last.target.other(),
            (None, None) => Slot::A,
        };
        let ours = trial.is_some_and(|trial| {
            machine
                .job()
                .is_some_and(|job| job.id == trial.id && job.target == trial.slot)
        });
        let old = decision.confirmed == expected;
        let fine = match machine {
            State::Idle
            | State::Waiting(_)
            | State::Checking(_)
            | State::Disabling(_)
            | State::Writing(_)
            | State::Verifying(_)
            | State::Holding(_) => old && trial.is_none(),
            State::Arming(_)
            | State::CarryingOver(_)
            | State::Returning(_)
            | State::RollingBack { .. }
            | State::Abandoning { .. } => old && (ours || trial.is_none()),
            State::Rebooting { .. } | State::Trial(_) => old && (ours || self.used_up),
            State::Confirming(_) => (old && (ours || self.used_up)) || (!old && trial.is_none()),
        };
        fine.then_some(()).ok_or_else(|| {
            let trial = trial.map(|trial| (trial.slot, &trial.id));
            format!(
                "{} with slot {} confirmed and the trial {trial:?}",
                name(machine),
                decision.confirmed
            )
        })
    }

    fn kind(&self, saved: &Saved, variables: &Variables) -> String {
        let job = saved.machine.job().map_or("", |job| &job.id);
        let known = saved.outbox.len();
        let [a, b] = &self.kinds;
        format!(
            "{} {job} {known} {} a:{a} b:{b}",
            name(&saved.machine),
            self.shown(variables)
        )
    }
}

/// The name of a state.
pub(crate) fn name(machine: &State) -> String {
    let value = serde_json::to_value(machine).expect("a state is JSON");
    value["state"]
        .as_str()
        .expect("a state has a name")
        .to_owned()
}
