//! What a board's boot script does with the variables, and what they say: ours, RAUC's and Mender's.
//!
//! The models are written from the scripts' published text: `contrib/uboot.sh` of RAUC, `include/env_mender.h` of
//! Mender's U-Boot integration with U-Boot's `bootcount_env.c`. Nothing here is the daemon's own reader but the names of
//! our variables, and for our own script its model, which `tests/boot_script.rs` holds against the script itself.

use fwupdated::{
    platform::uboot_env::{Env, boot_decision, names},
    update::slot::Slot,
};

use super::uboot::Variables;

/// Names and values.
type Values = &'static [(&'static str, &'static str)];

/// A boot script.
pub(crate) struct Script {
    /// What `bootloader.variables` calls it.
    pub(crate) name: &'static str,
    /// More lines of `[bootloader]`.
    pub(crate) settings: &'static str,
    /// The board as it comes: slot a is confirmed.
    pub(crate) factory: Values,
    /// What the older copy says then: slot b was confirmed, and a on trial.
    pub(crate) before: Values,
    /// Arming that takes two writes has these in the second one.
    pub(crate) armed_later: &'static [&'static str],
    /// The same of marking good; empty where one variable is all that counts.
    pub(crate) good_later: &'static [&'static str],
    /// The variables that change.
    shown: &'static [&'static str],
    decision: fn(&Variables) -> Option<Decision>,
    boot: fn(&Variables) -> (Vec<Variables>, Slot),
}

/// What an environment says.
pub(crate) struct Decision {
    /// The slot that boots when no trial is left.
    pub(crate) confirmed: Slot,
    /// The slot that boots before.
    pub(crate) trial: Option<Trial>,
    /// All slots that it may lead to in the end.
    pub(crate) may_boot: Vec<Slot>,
}

/// A trial.
pub(crate) struct Trial {
    /// Of this slot.
    pub(crate) slot: Slot,
    /// The update that armed it.
    pub(crate) id: String,
    /// Boots left.
    pub(crate) left: u32,
}

impl Script {
    /// What `variables` say.
    ///
    /// # Errors
    /// They are half a decision.
    pub(crate) fn decision(&self, variables: &Variables) -> Result<Decision, String> {
        (self.decision)(variables)
            .ok_or_else(|| format!("half a decision: {}", self.shown(variables)))
    }

    /// The environments that the script stores on its way, and the slot that it boots.
    pub(crate) fn boot(&self, variables: &Variables) -> (Vec<Variables>, Slot) {
        (self.boot)(variables)
    }

    /// The variables that change, in words.
    pub(crate) fn shown(&self, variables: &Variables) -> String {
        let value = |name: &&str| variables.get(*name).map_or("-", String::as_str);
        let values: Vec<_> = self.shown.iter().map(value).collect();
        values.join("/")
    }
}

/// Of ours, and of the two that boards may have.
pub(crate) static OWN: Script = Script {
    name: "fwupdated",
    settings: "",
    factory: &[(names::SLOT, "a")],
    before: &[
        (names::SLOT, "b"),
        (names::TRIAL, "a"),
        (names::TRIES, "2"),
        (names::JOB, "before"),
    ],
    armed_later: &[names::TRIES, names::JOB],
    good_later: &[names::TRIAL, names::TRIES, names::JOB],
    shown: &[names::SLOT, names::TRIAL, names::TRIES, names::JOB],
    decision: own_decision,
    boot: own_boot,
};

/// See [`OWN`].
pub(crate) static RAUC: Script = Script {
    name: "rauc",
    settings: "variables = \"rauc\"",
    factory: &[
        (ORDER, "A B"),
        ("BOOT_A_LEFT", "3"),
        ("BOOT_B_LEFT", "3"),
        // Parts the counters from the order, so that they lie in different sectors.
        ("BOOT_M", FILLING),
    ],
    before: &[
        (ORDER, "A B"),
        ("BOOT_A_LEFT", "2"),
        ("BOOT_B_LEFT", "9"),
        (names::TRIAL, "a"),
        (names::JOB, "before"),
    ],
    armed_later: &["BOOT_B_LEFT", names::JOB],
    good_later: &[names::TRIAL, names::JOB],
    shown: &[
        ORDER,
        "BOOT_A_LEFT",
        "BOOT_B_LEFT",
        names::TRIAL,
        names::JOB,
    ],
    decision: rauc_decision,
    boot: rauc_boot,
};

/// See [`OWN`].
pub(crate) static MENDER: Script = Script {
    name: "mender",
    settings: "variables = \"mender\"\npartitions = [2, 11]",
    factory: &[
        (PART, "2"),
        (PART_HEX, "2"),
        (AVAILABLE, "0"),
        (COUNT, "0"),
        (LIMIT, "1"),
        ("altbootcmd", "run mender_altbootcmd; run bootcmd"),
    ],
    before: &[
        (PART, "2"),
        (PART_HEX, "2"),
        (AVAILABLE, "1"),
        (COUNT, "1"),
        (LIMIT, "3"),
        (names::JOB, "before"),
    ],
    armed_later: &[PART_HEX],
    good_later: &[],
    shown: &[PART, PART_HEX, AVAILABLE, COUNT, LIMIT, names::JOB],
    decision: mender_decision,
    boot: mender_boot,
};

const ORDER: &str = "BOOT_ORDER";
const PART: &str = "mender_boot_part";
const PART_HEX: &str = "mender_boot_part_hex";
const AVAILABLE: &str = "upgrade_available";
const COUNT: &str = "bootcount";
const LIMIT: &str = "bootlimit";
/// More than a sector.
const FILLING: &str = "................................................................\
    ................................................................\
    ................................................................\
    ................................................................\
    ................................................................\
    ................................................................\
    ................................................................\
    ................................................................\
    ................................................................";

fn number(variables: &Variables, name: &str) -> u32 {
    let value = variables.get(name).and_then(|value| value.parse().ok());
    value.unwrap_or(0)
}

/// The trial of `slot`, by the update that our variable names: its id, and behind a blank the version.
fn trial(variables: &Variables, slot: Slot, left: u32) -> Option<Trial> {
    let job = variables.get(names::JOB)?;
    let id = job.split(' ').next().unwrap_or_default().to_owned();
    Some(Trial { slot, id, left })
}

fn own_decision(variables: &Variables) -> Option<Decision> {
    let slot = |name: &str| variables.get(name).map(|value| value.parse::<Slot>().ok());
    let confirmed = slot(names::SLOT)??;
    let tries = variables.get(names::TRIES);
    let trial = match (slot(names::TRIAL), tries, variables.get(names::JOB)) {
        (None, None, None) => None,
        (Some(Some(slot)), Some(_), Some(_)) if slot != confirmed => {
            Some(trial(variables, slot, number(variables, names::TRIES))?)
        }
        _ => return None,
    };
    let mut may_boot = vec![confirmed];
    may_boot.extend(trial.as_ref().map(|trial| trial.slot));
    Some(Decision {
        confirmed,
        trial,
        may_boot,
    })
}

fn own_boot(variables: &Variables) -> (Vec<Variables>, Slot) {
    let mut env = Env::default();
    for (name, value) in variables {
        env.set(name, value).expect("they were in an environment");
    }
    let slot = boot_decision(&mut env);
    let left: Variables = env
        .iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let stored = if left == *variables {
        vec![]
    } else {
        vec![left]
    };
    (stored, slot)
}

fn rauc_counter(slot: Slot) -> &'static str {
    match slot {
        Slot::A => "BOOT_A_LEFT",
        Slot::B => "BOOT_B_LEFT",
    }
}

fn rauc_order(variables: &Variables) -> Option<Vec<Slot>> {
    let words = variables.get(ORDER)?.split(' ');
    words
        .map(|word| word.to_lowercase().parse::<Slot>().ok())
        .collect()
}

fn rauc_decision(variables: &Variables) -> Option<Decision> {
    let order = rauc_order(variables)?;
    let left = |slot: Slot| number(variables, rauc_counter(slot));
    let (confirmed, trial) = match (variables.get(names::TRIAL), variables.get(names::JOB)) {
        (None, None) => {
            let bootable = order.iter().find(|slot| left(**slot) > 0);
            (*bootable.unwrap_or(&order[0]), None)
        }
        (Some(slot), Some(_)) => {
            let slot: Slot = slot.parse().ok()?;
            if order != [slot, slot.other()] {
                return None;
            }
            (slot.other(), Some(trial(variables, slot, left(slot))?))
        }
        _ => return None,
    };
    Some(Decision {
        confirmed,
        trial,
        // When all counters are used up, all are filled again.
        may_boot: order,
    })
}

fn rauc_boot(variables: &Variables) -> (Vec<Variables>, Slot) {
    let mut variables = variables.clone();
    let mut stored = Vec::new();
    let order = rauc_order(&variables).expect("half a decision was found before");
    loop {
        for slot in &order {
            let (counter, left) = (rauc_counter(*slot), number(&variables, rauc_counter(*slot)));
            if left > 0 {
                variables.insert(counter.to_owned(), (left - 1).to_string());
                stored.push(variables);
                return (stored, *slot);
            }
        }
        // It stores, and resets the board.
        for slot in Slot::ALL {
            variables.insert(rauc_counter(slot).to_owned(), "3".to_owned());
        }
        stored.push(variables.clone());
    }
}

fn mender_slot(variables: &Variables) -> Option<Slot> {
    let value = |name: &str| variables.get(name).map(String::as_str);
    // The root file system comes from the one number, the kernel from the other.
    match (value(PART)?, value(PART_HEX)?) {
        ("2", "2") => Some(Slot::A),
        ("11", "b") => Some(Slot::B),
        _ => None,
    }
}

fn mender_decision(variables: &Variables) -> Option<Decision> {
    let chosen = mender_slot(variables)?;
    if number(variables, AVAILABLE) == 0 {
        return Some(Decision {
            confirmed: chosen,
            trial: None,
            may_boot: vec![chosen],
        });
    }
    let left = number(variables, LIMIT).saturating_sub(number(variables, COUNT));
    Some(Decision {
        confirmed: chosen.other(),
        trial: Some(trial(variables, chosen, left)?),
        may_boot: Slot::ALL.into(),
    })
}

fn mender_boot(variables: &Variables) -> (Vec<Variables>, Slot) {
    let mut variables = variables.clone();
    let mut stored = Vec::new();
    let mut put = |variables: &mut Variables, values: &[(&str, &str)]| {
        for (name, value) in values {
            variables.insert((*name).to_owned(), (*value).to_owned());
        }
        stored.push(variables.clone());
    };
    if number(&variables, AVAILABLE) > 0 {
        let count = number(&variables, COUNT) + 1;
        put(&mut variables, &[(COUNT, &count.to_string())]);
        if count > number(&variables, LIMIT) {
            let (part, hex) = match mender_slot(&variables) {
                Some(Slot::A) => ("11", "b"),
                _ => ("2", "2"),
            };
            let back = [(PART, part), (PART_HEX, hex), (AVAILABLE, "0")];
            put(&mut variables, &back);
        }
    }
    let slot = mender_slot(&variables).expect("half a decision was found before");
    (stored, slot)
}
