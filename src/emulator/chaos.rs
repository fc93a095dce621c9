//! Faults by chance: one after another, each such that a right device recovers from it by itself. The same
//! seed gives the same faults in the same order, for the same devices.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::info;

use crate::clock;
use crate::fault::{Fault, Parameters};
use crate::fault_kind::FaultKind;
use crate::hub::Hub;

/// What may happen. Not among it: refusals that tell a device its report is wrong (400, 403), because a right
/// device gives that report up; and lost answers to methods, because it is the caller who suffers.
const MENU: &[FaultKind] = &[
    FaultKind::Drop,
    FaultKind::ForgetSession,
    FaultKind::ExpireTokens,
    FaultKind::Outage,
    FaultKind::RefuseConnects,
    FaultKind::CloseConnects,
    FaultKind::FailSubscribes,
    FaultKind::DropAfterPackets,
    FaultKind::DelayTwinAnswers,
    FaultKind::SwallowTwinAnswers,
    FaultKind::FailTwinReads,
    FaultKind::FailTwinPatches,
    FaultKind::CorruptTwins,
    FaultKind::DropBeforePatch,
    FaultKind::DropAfterPatch,
    FaultKind::SwallowDesired,
    FaultKind::RepeatDesired,
    FaultKind::StaleDesired,
    FaultKind::CorruptDesired,
    FaultKind::DelayMethods,
    FaultKind::Impostor,
];

/// The order of faults that a seed stands for.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u32) -> Self {
        Self(u64::from(seed))
    }

    /// A number below `bound`, which is not 0. (SplitMix64, public domain.)
    fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        ((mixed >> 32) % u64::from(bound)) as u32
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u32) as usize]
    }

    /// The time until the next fault: half to one and a half of `mean`.
    pub(crate) fn pause(&mut self, mean: Duration) -> Duration {
        mean / 2 + mean * self.below(1001) / 1000
    }

    /// The next fault, for one of `devices`; `None` when there are none.
    pub(crate) fn fault(&mut self, devices: &[String]) -> Option<Fault> {
        if devices.is_empty() {
            return None;
        }
        let kind = self.pick(MENU);
        let device = &devices[self.below(devices.len() as u32) as usize];
        let count = Some(1 + self.below(3));
        let numbers = match kind {
            FaultKind::Outage => Parameters {
                seconds: Some(1 + self.below(3)),
                ..Parameters::default()
            },
            FaultKind::Impostor => Parameters {
                milliseconds: Some(200 + self.below(800)),
                seconds: Some(1 + self.below(2)),
                ..Parameters::default()
            },
            FaultKind::RefuseConnects => Parameters {
                count,
                code: Some(self.pick(&[3, 5])),
                ..Parameters::default()
            },
            FaultKind::DelayTwinAnswers | FaultKind::DelayMethods => Parameters {
                count,
                milliseconds: Some(100 + self.below(1900)),
                ..Parameters::default()
            },
            FaultKind::FailTwinReads | FaultKind::FailTwinPatches => Parameters {
                count,
                status: Some(self.pick(&[429, 429, 500, 503])),
                retry_after: self.pick(&[None, Some(1), Some(2)]),
                ..Parameters::default()
            },
            FaultKind::DropAfterPackets => Parameters::count(1 + self.below(20)),
            FaultKind::Drop | FaultKind::ForgetSession | FaultKind::ExpireTokens => {
                Parameters::default()
            }
            _ => Parameters {
                count,
                ..Parameters::default()
            },
        };
        let fault = Fault::new(kind, numbers);
        Some(match kind {
            FaultKind::Outage | FaultKind::ExpireTokens => fault,
            _ => fault.on(device),
        })
    }
}

/// Starts chaos in place of the present one; a zero `mean` only ends that. `None` for `time`: until ended.
pub(crate) fn start(hub: &Arc<Hub>, seed: Option<u32>, mean: Duration, time: Option<Duration>) {
    let mut state = hub.lock();
    state.faults.chaos += 1;
    let run = state.faults.chaos;
    drop(state);
    if mean.is_zero() {
        return;
    }
    let seed = seed.unwrap_or_else(|| u32::from_be_bytes(clock::random::<4>()));
    info!("chaos begins, with seed {seed}");
    hub.wire
        .note("*", &format!("fault: chaos begins, with seed {seed}"));
    let shared = hub.clone();
    hub.spawn(async move {
        let mut dice = Dice::new(seed);
        let end = time.map(|time| Instant::now() + time);
        loop {
            sleep(dice.pause(mean)).await;
            if shared.lock().faults.chaos != run || end.is_some_and(|end| Instant::now() >= end) {
                break;
            }
            let devices: Vec<String> = shared.lock().devices.keys().cloned().collect();
            let Some(fault) = dice.fault(&devices) else {
                continue;
            };
            info!("chaos: {fault}");
            // Refused only for a device that was deleted a moment ago.
            let _ = Box::pin(shared.inject(fault)).await;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(seed: u32) -> Vec<Fault> {
        let devices = ["a".to_owned(), "b".to_owned()];
        let mut dice = Dice::new(seed);
        (0..500).filter_map(|_| dice.fault(&devices)).collect()
    }

    #[test]
    fn a_seed_stands_for_one_order_of_faults() {
        assert_eq!(faults(7), faults(7));
        assert_ne!(faults(7), faults(8));
    }

    #[test]
    fn everything_on_the_menu_comes_and_every_fault_ends() {
        let all = faults(1);
        for kind in MENU {
            assert!(all.iter().any(|fault| fault.kind == *kind), "{kind:?}");
        }
        for fault in all {
            let numbers = fault.parameters;
            assert!(numbers.count.is_none_or(|count| (1..=20).contains(&count)));
            assert!(
                numbers
                    .status
                    .is_none_or(|status| status == 429 || status >= 500)
            );
            // What has no count of strokes has an end in time, or happens at once.
            let at_once = matches!(
                fault.kind,
                FaultKind::Drop | FaultKind::ForgetSession | FaultKind::ExpireTokens
            );
            assert!(numbers.count.is_some() || numbers.seconds.is_some() || at_once);
        }
    }

    #[test]
    fn pauses_lie_around_the_mean_and_no_devices_mean_no_fault() {
        let mut dice = Dice::new(3);
        for _ in 0..100 {
            let pause = dice.pause(Duration::from_secs(2));
            assert!((1.0..=3.0).contains(&pause.as_secs_f64()), "{pause:?}");
        }
        assert_eq!(dice.fault(&[]), None);
    }
}
