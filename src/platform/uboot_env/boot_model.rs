//! What the boot script `packaging/uboot/boot.cmd` decides, as a pure function: the reference model of
//! that script, and the stand-in's loader in the demo and the tests.

use super::{codec::Env, names};
use crate::update::slot::Slot;

/// [`boot_decision_with_mark`] on a board without a mark file.
pub fn boot_decision(env: &mut Env) -> Slot {
    boot_decision_with_mark(env, None)
}

/// Picks the slot to boot and changes the environment as the script does before it saves it:
///
/// 1. without a valid confirmed slot, the one that the mark file names becomes it, else slot a;
/// 2. a trial of the other slot with tries left costs one try and boots that slot;
/// 3. a trial that is used up or makes no sense ends, and the confirmed slot boots.
pub fn boot_decision_with_mark(env: &mut Env, mark: Option<Slot>) -> Slot {
    let slot = |env: &Env, name: &str| env.get(name).and_then(|value| value.parse::<Slot>().ok());
    let confirmed = slot(env, names::SLOT).unwrap_or_else(|| {
        let marked = mark.unwrap_or(Slot::A);
        put(env, names::SLOT, marked.name());
        marked
    });
    let trial = slot(env, names::TRIAL).filter(|trial| *trial != confirmed);
    // One digit and nothing else: the script knows no other numbers.
    let tries = env.get(names::TRIES).and_then(|tries| {
        let mut characters = tries.chars();
        let digit = characters.next()?.to_digit(10)?;
        characters.next().is_none().then_some(digit)
    });
    match (trial, tries) {
        (Some(trial), Some(tries @ 1..)) => {
            put(env, names::TRIES, &(tries - 1).to_string());
            trial
        }
        _ => {
            for name in [names::TRIAL, names::TRIES, names::JOB] {
                env.remove(name);
            }
            confirmed
        }
    }
}

fn put(env: &mut Env, name: &str, value: &str) {
    env.set(name, value)
        .expect("our names and values fit any environment");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(variables: &[(&str, &str)]) -> Env {
        let mut env = Env::default();
        for (name, value) in variables {
            put(&mut env, name, value);
        }
        env
    }

    #[test]
    fn a_trial_gets_exactly_its_tries_and_then_the_confirmed_slot_boots_for_good() {
        let mut env = env(&[
            (names::SLOT, "a"),
            (names::TRIAL, "b"),
            (names::TRIES, "3"),
            (names::JOB, "u1"),
        ]);
        let booted: Vec<_> = (0..5).map(|_| boot_decision(&mut env)).collect();
        assert_eq!(booted, [Slot::B, Slot::B, Slot::B, Slot::A, Slot::A]);
        assert_eq!(env.iter().collect::<Vec<_>>(), [(names::SLOT, "a")]);
    }

    #[test]
    fn the_confirmed_slot_never_runs_out() {
        let mut env = env(&[(names::SLOT, "b")]);
        let before = env.clone();
        for _ in 0..100 {
            assert_eq!(boot_decision(&mut env), Slot::B);
        }
        assert_eq!(env, before, "nothing to save");
    }

    #[test]
    fn values_that_make_no_sense_are_healed_instead_of_looping() {
        for variables in [
            &[(names::SLOT, "x")][..],
            &[],
            &[(names::SLOT, "a"), (names::TRIAL, "c"), (names::TRIES, "3")],
            &[(names::SLOT, "a"), (names::TRIAL, "a"), (names::TRIES, "3")],
            &[(names::SLOT, "a"), (names::TRIAL, "b")],
            &[
                (names::SLOT, "a"),
                (names::TRIAL, "b"),
                (names::TRIES, "many"),
            ],
            &[
                (names::SLOT, "a"),
                (names::TRIAL, "b"),
                (names::TRIES, "200"),
            ],
            &[
                (names::SLOT, "a"),
                (names::TRIAL, "b"),
                (names::TRIES, "+3"),
            ],
            &[
                (names::SLOT, "a"),
                (names::TRIAL, "b"),
                (names::TRIES, "03"),
            ],
        ] {
            let mut env = env(variables);
            assert_eq!(boot_decision(&mut env), Slot::A, "{variables:?}");
            assert_eq!(
                env.iter().collect::<Vec<_>>(),
                [(names::SLOT, "a")],
                "{variables:?}"
            );
        }
    }
}
