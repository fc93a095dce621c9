//! Three steps of work on three threads, so that network, processor and medium overlap.
//!
//! Items go round: whoever consumed one gives it back to be filled again, so memory is what the pool has and
//! nothing is allocated on the way. Order is kept. The failure that happened first is the one that is told;
//! after it no step begins another item.

use std::{
    sync::{
        OnceLock,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use tracing::Span;

use crate::update::failure::Failure;

/// Runs `produce`, `work` and `consume` over the items of `pool` until `produce` says false: for each item one
/// after the other, for different items at the same time. `consume` runs on the calling thread.
///
/// # Errors
/// The first failure of any step.
pub fn pipeline<T: Send>(
    pool: Vec<T>,
    mut produce: impl FnMut(&mut T) -> Result<bool, Failure> + Send,
    mut work: impl FnMut(&mut T) -> Result<(), Failure> + Send,
    mut consume: impl FnMut(&mut T) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let size = pool.len();
    let (give_back, free) = sync_channel(size);
    let (filled, to_work) = sync_channel(size);
    let (worked, to_consume) = sync_channel(size);
    for item in pool {
        give_back
            .send(item)
            .expect("the channel has this much room");
    }
    let first = OnceLock::new();
    let fail = |failure: Failure| {
        // Of two failures the later one is often a consequence.
        let _ = first.set(failure);
    };
    let about = Span::current();
    thread::scope(|scope| {
        scope.spawn(|| {
            let _about = about.enter();
            let (free, filled) = (free, filled);
            step(&free, &filled, &mut produce, &fail);
        });
        scope.spawn(|| {
            let _about = about.enter();
            let (from, to) = (to_work, worked);
            step(&from, &to, |item| work(item).map(|()| true), &fail);
        });
        // Moved in, so that they are gone, and the others wake up, when this ends early.
        let (to_consume, give_back) = (to_consume, give_back);
        for mut item in to_consume {
            if let Err(failure) = consume(&mut item) {
                return fail(failure);
            }
            // When nobody fills any more there are still filled ones.
            let _ = give_back.send(item);
        }
    });
    first.into_inner().map_or(Ok(()), Err)
}

/// One step: ends when its input, its output or its task does.
fn step<T>(
    from: &Receiver<T>,
    to: &SyncSender<T>,
    mut task: impl FnMut(&mut T) -> Result<bool, Failure>,
    fail: &impl Fn(Failure),
) {
    while let Ok(mut item) = from.recv() {
        match task(&mut item) {
            Ok(true) => {}
            Ok(false) => return,
            Err(failure) => return fail(failure),
        }
        if to.send(item).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::failure::Class;

    fn failure(code: &str) -> Failure {
        Failure::new(code, Class::Final, "")
    }

    #[test]
    fn every_item_passes_every_step_in_order() {
        let (mut next, mut seen) = (0, Vec::new());
        let done = pipeline(
            vec![0_u32; 3],
            |item| {
                *item = next;
                next += 1;
                Ok(next <= 100)
            },
            |item| {
                *item *= 2;
                Ok(())
            },
            |item| {
                // The others are done long before.
                thread::sleep(std::time::Duration::from_millis(1));
                seen.push(*item);
                Ok(())
            },
        );
        assert_eq!(done, Ok(()));
        assert_eq!(seen, (0..100).map(|n| n * 2).collect::<Vec<_>>());
    }

    #[test]
    fn a_failure_of_any_step_ends_all_of_them_and_is_told() {
        for failing in 0..3 {
            let mut next = 0;
            let check = |step: usize, item: u32| match step == failing && item == 40 {
                true => Err(failure(&format!("step-{step}"))),
                false => Ok(()),
            };
            let mut consumed = 0;
            let done = pipeline(
                vec![0_u32; 2],
                |item| {
                    *item = next;
                    next += 1;
                    check(0, *item).map(|()| true)
                },
                |item| check(1, *item),
                |item| {
                    consumed = *item;
                    check(2, *item)
                },
            );
            assert_eq!(done.unwrap_err().code, format!("step-{failing}"));
            assert!(consumed <= 40);
        }
    }
}
