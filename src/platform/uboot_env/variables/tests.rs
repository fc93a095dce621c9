//! The three schemes against models of the scripts that read them: whatever was there before, after each change
//! exactly the slots that may boot do boot, power cuts within the scripts included.
//!
//! The models are written from the scripts' published text: `contrib/uboot.sh` of RAUC; `include/env_mender.h` of
//! Mender's U-Boot integration with U-Boot's `drivers/bootcount/bootcount_env.c` and `common/autoboot.c`; ours is
//! [`boot_decision`], which `tests/boot_script.rs` compares with the script itself.

use proptest::prelude::*;

use super::{
    super::{boot_model::boot_decision, codec::Env},
    Change, Variables, decide,
    mender::Mender,
    own::{Own, names},
    rauc::Rauc,
};
use crate::{
    platform::uboot_env::BootloaderError,
    update::{
        failure::Coded,
        slot::Slot::{self, A, B},
    },
};

/// What a script does with an environment.
trait Script {
    fn variables(&self) -> Box<dyn Variables>;
    /// A board as it comes, with `slot` confirmed.
    fn factory(&self, slot: Slot) -> Env;
    /// The variables' names and values that one may find in them.
    fn vocabulary(&self) -> Vec<(&'static str, Vec<&'static str>)>;
    /// The environments that the script stores on its way, and the slot that it boots at the end.
    fn boot(&self, env: &Env) -> (Vec<Env>, Slot);
}

fn env(variables: &[(&str, &str)]) -> Env {
    let mut env = Env::default();
    for (name, value) in variables {
        env.set(name, value).unwrap();
    }
    env
}

/// As U-Boot's `simple_strtoul` in base 10.
fn decimal(text: Option<&str>) -> u32 {
    let mut number = 0u32;
    for digit in text.unwrap_or_default().chars() {
        let Some(digit) = digit.to_digit(10) else {
            break;
        };
        number = number.saturating_mul(10).saturating_add(digit);
    }
    number
}

const JUNK: &[&str] = &["", "0", "1", "3", "f", "-1", "many", "1 2", "4294967296"];

fn with(values: &[&'static str]) -> Vec<&'static str> {
    values.iter().chain(JUNK).copied().collect()
}

struct OurScript;

impl Script for OurScript {
    fn variables(&self) -> Box<dyn Variables> {
        Box::new(Own)
    }

    fn factory(&self, slot: Slot) -> Env {
        env(&[(names::SLOT, slot.name())])
    }

    fn vocabulary(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        let slots = with(&["a", "b", "c"]);
        vec![
            (names::SLOT, slots.clone()),
            (names::TRIAL, slots),
            (names::TRIES, JUNK.to_vec()),
            (names::JOB, JUNK.to_vec()),
        ]
    }

    fn boot(&self, env: &Env) -> (Vec<Env>, Slot) {
        let mut after = env.clone();
        let slot = boot_decision(&mut after);
        let stored = if after == *env { vec![] } else { vec![after] };
        (stored, slot)
    }
}

/// RAUC's script, before and since it compares its counters as hexadecimal numbers.
struct RaucScript {
    hex: bool,
}

impl Script for RaucScript {
    fn variables(&self) -> Box<dyn Variables> {
        Box::new(Rauc)
    }

    fn factory(&self, slot: Slot) -> Env {
        let order = if slot == A { "A B" } else { "B A" };
        env(&[
            ("BOOT_ORDER", order),
            ("BOOT_A_LEFT", "3"),
            ("BOOT_B_LEFT", "3"),
        ])
    }

    fn vocabulary(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        vec![
            (
                "BOOT_ORDER",
                with(&["A B", "B A", "A", "B", "A A", "C", "a b"]),
            ),
            ("BOOT_A_LEFT", with(&["2", "9"])),
            ("BOOT_B_LEFT", with(&["2", "9"])),
            (names::TRIAL, with(&["a", "b"])),
            (names::JOB, JUNK.to_vec()),
        ]
    }

    fn boot(&self, env: &Env) -> (Vec<Env>, Slot) {
        let mut env = env.clone();
        let mut stored = Vec::new();
        loop {
            for (name, default) in [
                ("BOOT_ORDER", "A B"),
                ("BOOT_A_LEFT", "3"),
                ("BOOT_B_LEFT", "3"),
            ] {
                if env.get(name).is_none_or(str::is_empty) {
                    env.set(name, default).unwrap();
                }
            }
            let order = env.get("BOOT_ORDER").unwrap().to_owned();
            for word in order.split_whitespace() {
                let (slot, counter) = match word {
                    "A" => (A, "BOOT_A_LEFT"),
                    "B" => (B, "BOOT_B_LEFT"),
                    _ => continue,
                };
                let value = env.get(counter).unwrap().to_owned();
                // `setexpr` is hexadecimal in both.
                let hex = value.split(|c: char| !c.is_ascii_hexdigit()).next();
                let left = u64::from_str_radix(hex.unwrap(), 16).unwrap_or(0);
                let bootable = if self.hex {
                    left
                } else {
                    decimal(Some(&value)).into()
                };
                if bootable > 0 {
                    // Two words are too many for `setexpr`: it does nothing.
                    if !value.contains(' ') {
                        env.set(counter, &format!("{:x}", left - 1)).unwrap();
                    }
                    stored.push(env);
                    return (stored, slot);
                }
            }
            assert!(stored.len() < 3, "endless resets with BOOT_ORDER={order}");
            env.set("BOOT_A_LEFT", "3").unwrap();
            env.set("BOOT_B_LEFT", "3").unwrap();
            stored.push(env.clone());
        }
    }
}

struct MenderScript;

/// Beyond 9, so that decimal and hexadecimal differ.
const PARTITIONS: [u32; 2] = [2, 11];

impl Script for MenderScript {
    fn variables(&self) -> Box<dyn Variables> {
        Box::new(Mender {
            partitions: PARTITIONS,
        })
    }

    fn factory(&self, slot: Slot) -> Env {
        let (part, hex) = if slot == A { ("2", "2") } else { ("11", "b") };
        env(&[
            ("mender_boot_part", part),
            ("mender_boot_part_hex", hex),
            ("upgrade_available", "0"),
            ("bootcount", "0"),
            ("bootlimit", "1"),
            ("altbootcmd", "run mender_altbootcmd; run bootcmd"),
        ])
    }

    fn vocabulary(&self) -> Vec<(&'static str, Vec<&'static str>)> {
        vec![
            ("mender_boot_part", with(&["2", "11"])),
            ("mender_boot_part_hex", with(&["2", "b", "11"])),
            ("upgrade_available", JUNK.to_vec()),
            ("bootcount", JUNK.to_vec()),
            ("bootlimit", JUNK.to_vec()),
            ("altbootcmd", vec!["run mender_altbootcmd; run bootcmd", ""]),
            (names::JOB, JUNK.to_vec()),
        ]
    }

    fn boot(&self, env: &Env) -> (Vec<Env>, Slot) {
        let mut env = env.clone();
        let mut stored = Vec::new();
        let counted = decimal(env.get("upgrade_available")) > 0;
        let before = if counted {
            decimal(env.get("bootcount"))
        } else {
            0
        };
        let count = before.saturating_add(1);
        if counted {
            env.set("bootcount", &count.to_string()).unwrap();
            stored.push(env.clone());
        }
        let limit = decimal(env.get("bootlimit"));
        let falls_back = env.get("altbootcmd").is_some_and(|text| !text.is_empty());
        if limit > 0 && count > limit && falls_back {
            let (part, hex) = match env.get("mender_boot_part") {
                Some("2") => ("11", "b"),
                _ => ("2", "2"),
            };
            env.set("mender_boot_part", part).unwrap();
            env.set("mender_boot_part_hex", hex).unwrap();
            env.set("upgrade_available", "0").unwrap();
            stored.push(env.clone());
        }
        // The root file system comes from the one number, the kernel from the other.
        let slot = match (env.get("mender_boot_part"), env.get("mender_boot_part_hex")) {
            (Some("2"), Some("2")) => A,
            (Some("11"), Some("b")) => B,
            other => panic!("kernel and root file system of two slots: {other:?}"),
        };
        (stored, slot)
    }
}

const SCRIPTS: usize = 4;
const RAUC: RaucScript = RaucScript { hex: true };

fn scripts() -> [Box<dyn Script>; SCRIPTS] {
    [
        Box::new(OurScript),
        Box::new(RAUC),
        Box::new(RaucScript { hex: false }),
        Box::new(MenderScript),
    ]
}

/// Boots `times` times without a daemon that answers.
fn boots(script: &dyn Script, env: &mut Env, times: usize) -> Vec<Slot> {
    let boot = |_| {
        let (stored, slot) = script.boot(env);
        if let Some(last) = stored.last() {
            *env = last.clone();
        }
        slot
    };
    (0..times).map(boot).collect()
}

fn change(script: &dyn Script, env: &mut Env, change: Change<'_>) -> Result<(), BootloaderError> {
    decide(script.variables().as_ref(), env, change)
}

fn arm(slot: Slot, tries: u8) -> Change<'static> {
    Change::ArmTrial {
        slot,
        tries,
        job: "u1",
    }
}

/// Any values, also none.
fn anything() -> impl Strategy<Value = (usize, Env)> {
    let choice = proptest::collection::vec(any::<proptest::sample::Index>(), 8);
    (0..SCRIPTS, choice).prop_map(|(script, choice)| {
        let mut env = Env::default();
        for ((name, values), index) in scripts()[script].vocabulary().iter().zip(choice) {
            // The empty value removes it.
            env.set(name, values[index.index(values.len())]).unwrap();
        }
        (script, env)
    })
}

fn slot() -> impl Strategy<Value = Slot> {
    prop_oneof![Just(A), Just(B)]
}

/// Boots without the daemon that no scheme may take the confirmed slot from: RAUC's script counts them.
const UNATTENDED: usize = 9;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_was_there_a_slot_marked_good_boots_for_good((script, mut env) in anything(), good in slot()) {
        let script = &*scripts()[script];
        change(script, &mut env, Change::MarkGood(good)).unwrap();
        let state = script.variables().state(&env).unwrap();
        prop_assert_eq!((state.confirmed, state.trial), (good, None));
        prop_assert_eq!(boots(script, &mut env, 40), vec![good; 40]);
    }

    #[test]
    fn whatever_was_there_a_slot_marked_bad_never_boots((script, mut env) in anything(), bad in slot()) {
        let script = &*scripts()[script];
        let before = env.clone();
        match change(script, &mut env, Change::MarkBad(bad)) {
            Ok(()) => {
                let state = script.variables().state(&env).unwrap();
                prop_assert_eq!((state.confirmed, state.trial), (bad.other(), None));
                prop_assert_eq!(boots(script, &mut env, 40), vec![bad.other(); 40]);
            }
            Err(_) => prop_assert_eq!(env, before, "a refusal changes nothing"),
        }
    }

    #[test]
    fn whatever_was_there_a_trial_has_its_tries_and_ends_in_the_confirmed_slot(
        (script, mut env) in anything(), new in slot(), tries in 1..=9u8,
    ) {
        let script = &*scripts()[script];
        let before = env.clone();
        match change(script, &mut env, arm(new, tries)) {
            Ok(()) => {
                let state = script.variables().state(&env).unwrap();
                let trial = state.trial.unwrap();
                prop_assert_eq!((state.confirmed, trial.slot, trial.tries_left), (new.other(), new, tries));
                prop_assert_eq!(trial.job.as_deref(), Some("u1"));
                let tries = usize::from(tries);
                let expected = [vec![new; tries], vec![new.other(); UNATTENDED]].concat();
                prop_assert_eq!(boots(script, &mut env, tries + UNATTENDED), expected);
            }
            Err(_) => prop_assert_eq!(env, before, "a refusal changes nothing"),
        }
    }
}

/// What happens to a device.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// It boots, and the daemon starts.
    Boot,
    /// It boots and loses power before the daemon starts.
    BootUnseen,
    /// It loses power within the script, after this many of its writes.
    Cut(usize),
    /// What the daemon does next: mark bad the spare slot, arm it, mark it good, as far as it may.
    MarkBad,
    Arm(u8),
    MarkGood,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Boot),
        2 => Just(Step::BootUnseen),
        2 => (0..3usize).prop_map(Step::Cut),
        1 => Just(Step::MarkBad),
        3 => (1..=9u8).prop_map(Step::Arm),
        1 => Just(Step::MarkGood),
    ]
}

/// What must be so, kept apart from any variables.
struct Truth {
    confirmed: Slot,
    /// Whether the other slot was written whole, armed, and not given up since.
    on_trial: bool,
    running: Option<Slot>,
    /// Boots of the confirmed slot since the daemon ran last.
    unseen: usize,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_device_only_boots_what_is_confirmed_or_on_trial(
        script in 0..SCRIPTS, first in slot(), steps in proptest::collection::vec(step(), 0..60),
    ) {
        let script = &*scripts()[script];
        let variables = script.variables();
        let mut env = script.factory(first);
        let mut truth = Truth { confirmed: first, on_trial: false, running: None, unseen: 0 };
        // Before the first update begins, RAUC's order is still the board's own, and may name both slots.
        for step in [Step::Boot, Step::MarkBad].into_iter().chain(steps).chain([Step::Boot]) {
            let spare = truth.confirmed.other();
            match step {
                Step::Boot | Step::BootUnseen => {
                    // More, and RAUC's script gives each slot of its order three boots: it is tested apart.
                    let seen = matches!(step, Step::Boot) || truth.unseen + 1 >= UNATTENDED;
                    let booted = boots(script, &mut env, 1)[0];
                    let fine = booted == truth.confirmed || (truth.on_trial && booted == spare);
                    prop_assert!(fine, "slot {booted} in {env:?}");
                    truth.running = seen.then_some(booted);
                    truth.unseen += usize::from(booted == truth.confirmed);
                    if seen {
                        truth.unseen = 0;
                        change(script, &mut env, Change::Running(booted)).unwrap();
                        let state = variables.state(&env).unwrap();
                        prop_assert_eq!(state.confirmed, truth.confirmed);
                        // As `update::boot` does: the trial is over when the confirmed slot runs again.
                        if booted == truth.confirmed && truth.on_trial {
                            change(script, &mut env, Change::MarkBad(spare)).unwrap();
                            truth.on_trial = false;
                        }
                    }
                }
                Step::Cut(writes) => {
                    let (stored, _) = script.boot(&env);
                    if let Some(last) = stored.get(..writes).and_then(<[_]>::last) {
                        env = last.clone();
                        truth.unseen += 1;
                    }
                    truth.running = None;
                }
                // The daemon acts only where it runs, and prepares a trial only from the confirmed slot.
                Step::MarkBad if truth.running.is_some() => {
                    change(script, &mut env, Change::MarkBad(spare)).unwrap();
                    truth.on_trial = false;
                }
                Step::Arm(tries) if truth.running == Some(truth.confirmed) => {
                    change(script, &mut env, arm(spare, tries)).unwrap();
                    truth.on_trial = true;
                }
                Step::MarkGood if truth.on_trial && truth.running == Some(spare) => {
                    change(script, &mut env, Change::MarkGood(spare)).unwrap();
                    (truth.confirmed, truth.on_trial) = (spare, false);
                }
                Step::MarkBad | Step::Arm(_) | Step::MarkGood => {}
            }
            if truth.unseen >= UNATTENDED {
                break;
            }
        }
        // Left alone, with a daemon that ends what is over, it comes to rest in the confirmed slot.
        for _ in 0..12 {
            let booted = boots(script, &mut env, 1)[0];
            if booted == truth.confirmed && truth.on_trial && truth.unseen < UNATTENDED {
                change(script, &mut env, Change::MarkBad(truth.confirmed.other())).unwrap();
                truth.on_trial = false;
            }
            change(script, &mut env, Change::Running(booted)).unwrap();
        }
        prop_assert_eq!(boots(script, &mut env, 1)[0], truth.confirmed);
    }
}

#[test]
fn rauc_s_confirmed_slot_never_runs_out_while_the_daemon_starts() {
    let mut env = RAUC.factory(A);
    for _ in 0..100 {
        // As the board comes, the other slot is behind it in the order.
        assert_eq!(boots(&RAUC, &mut env, 2), [A, A]);
        change(&RAUC, &mut env, Change::Running(A)).unwrap();
        assert_eq!(env.get("BOOT_A_LEFT"), Some("9"));
    }
}

#[test]
fn rauc_s_last_boot_of_the_confirmed_slot_is_not_taken_for_the_other_one_s_turn() {
    let mut env = RAUC.factory(A);
    assert_eq!(boots(&RAUC, &mut env, 3), [A, A, A]);
    assert_eq!(env.get("BOOT_A_LEFT"), Some("0"));
    change(&RAUC, &mut env, Change::Running(A)).unwrap();
    assert_eq!(Rauc.state(&env).unwrap().confirmed, A);
}

#[test]
fn a_rauc_trial_that_is_over_comes_back_only_when_nine_boots_never_reached_the_daemon_and_ends_again()
 {
    let mut env = RAUC.factory(A);
    change(&RAUC, &mut env, arm(B, 1)).unwrap();
    let booted = boots(&RAUC, &mut env, 16);
    let expected = [vec![B], vec![A; 9], vec![B; 3], vec![A; 3]].concat();
    assert_eq!(booted, expected);
    change(&RAUC, &mut env, Change::MarkBad(B)).unwrap();
    assert_eq!(boots(&RAUC, &mut env, 40), [A; 40]);
}

#[test]
fn an_order_changed_by_hand_during_a_trial_counts() {
    let mut env = RAUC.factory(A);
    change(&RAUC, &mut env, arm(B, 3)).unwrap();
    env.set("BOOT_ORDER", "A B").unwrap();
    let state = Rauc.state(&env).unwrap();
    assert_eq!((state.confirmed, state.trial), (A, None));
}

#[test]
fn a_mender_board_without_a_fallback_gets_no_trial() {
    let mut env = MenderScript.factory(A);
    env.remove("altbootcmd");
    let before = env.clone();
    let error = change(&MenderScript, &mut env, arm(B, 3)).unwrap_err();
    assert_eq!(error.code(), "bootloader-no-fallback");
    assert_eq!(env, before);
}

#[test]
fn values_that_make_no_sense_are_named_with_what_is_allowed() {
    type Case = (
        &'static dyn Script,
        &'static str,
        &'static str,
        &'static str,
    );
    let cases: [Case; 3] = [
        (
            &OurScript,
            names::SLOT,
            "left",
            "`left`, it must be `a` or `b`",
        ),
        (
            &RAUC,
            "BOOT_ORDER",
            "system0 system1",
            "made of the names `A` and `B`",
        ),
        (
            &MenderScript,
            "mender_boot_part",
            "7",
            "`2` or `11`, as bootloader.partitions says",
        ),
    ];
    for (script, name, value, said) in cases {
        let mut env = script.factory(A);
        env.set(name, value).unwrap();
        let error = script.variables().state(&env).unwrap_err();
        assert_eq!(error.code(), "bootloader-invalid");
        assert!(error.to_string().contains(said), "{error}");
    }
}
