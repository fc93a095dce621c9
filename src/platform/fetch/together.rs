//! What the downloads of one update share: their budget, and what is told about those that wait.
//!
//! Guarantees: it is told that the download is at a halt only while none of them gets bytes; the word is taken
//! back with the next byte, whoever gets it, and when the last of them ends.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{Retrying, patience::Budget};

/// While another got bytes so recently, one that waits is no halt.
const LIVELY: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Together {
    give_up_after: Duration,
    longest_silence: Duration,
    state: Mutex<State>,
    retrying: watch::Sender<Option<Retrying>>,
}

struct State {
    budget: Budget,
    next_id: u64,
    /// Who is under way, and when each got its last byte.
    under_way: BTreeMap<u64, Option<Instant>>,
}

impl Together {
    pub(super) fn new(
        give_up_after: Duration,
        longest_silence: Duration,
        retrying: watch::Sender<Option<Retrying>>,
    ) -> Arc<Self> {
        let state = State {
            budget: Budget::new(give_up_after, longest_silence),
            next_id: 0,
            under_way: BTreeMap::new(),
        };
        Arc::new(Self {
            give_up_after,
            longest_silence,
            state: Mutex::new(state),
            retrying,
        })
    }

    /// The same for another update, which begins with a new budget.
    pub(super) fn afresh(&self) -> Arc<Self> {
        self.within(self.give_up_after)
    }

    /// A budget of its own, of `most` at most.
    pub(super) fn within(&self, most: Duration) -> Arc<Self> {
        Self::new(
            self.give_up_after.min(most),
            self.longest_silence.min(most),
            self.retrying.clone(),
        )
    }

    pub(super) fn join(self: &Arc<Self>) -> Member {
        let mut state = self.state();
        let id = state.next_id;
        state.next_id += 1;
        state.under_way.insert(id, None);
        Member {
            together: Arc::clone(self),
            id,
        }
    }

    pub(super) fn retrying(&self) -> watch::Receiver<Option<Retrying>> {
        self.retrying.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn goes_on(&self) {
        self.retrying
            .send_if_modified(|retrying| retrying.take().is_some());
    }
}

/// One download that is under way, until it is dropped.
pub(super) struct Member {
    together: Arc<Together>,
    id: u64,
}

impl Member {
    /// A server answered.
    pub(super) fn answered(&self) {
        self.together.goes_on();
    }

    /// New bytes came.
    pub(super) fn progress(&self, bytes: u64, now: Instant) {
        {
            let mut state = self.together.state();
            state.budget.progress(bytes);
            state.under_way.insert(self.id, Some(now));
        }
        self.together.goes_on();
    }

    /// See [`Budget::waited`].
    pub(super) fn waited(&self, began: Instant, until: Instant) {
        self.together.state().budget.waited(began, until);
    }

    /// See [`Budget::received`].
    pub(super) fn received(&self, bytes: u64) {
        self.together.state().budget.received(bytes);
    }

    /// See [`Budget::too_slow`].
    pub(super) fn too_slow(&self) -> Option<(u64, Duration)> {
        self.together.state().budget.too_slow()
    }

    /// See [`Budget::left`].
    pub(super) fn left(&self, now: Instant) -> Duration {
        self.together.state().budget.left(now)
    }

    /// This one waits: tells it, unless others get bytes.
    pub(super) fn waits(&self, retrying: Retrying, now: Instant) {
        let others_go_on = self.together.state().under_way.iter().any(|(id, last)| {
            *id != self.id && last.is_some_and(|last| now.duration_since(last) < LIVELY)
        });
        if !others_go_on {
            self.together.retrying.send_replace(Some(retrying));
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let last = {
            let mut state = self.together.state();
            state.under_way.remove(&self.id);
            state.under_way.is_empty()
        };
        if last {
            self.together.goes_on();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::failure::{Class, Failure};

    fn halt(attempts: u32) -> Retrying {
        Retrying {
            reason: Failure::new("server-busy", Class::Retry, "x".to_owned()),
            attempts,
            pause: Duration::from_secs(1),
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn one_that_waits_is_no_halt_while_others_get_bytes() {
        let (sender, told) = watch::channel(None);
        let together = Together::new(seconds(100), seconds(60), sender);
        let (stuck, lively) = (together.join(), together.join());
        let now = Instant::now();
        lively.progress(1, now);
        stuck.waits(halt(1), now + seconds(1));
        assert_eq!(*told.borrow(), None);
        // The other has nothing more to get: now it is one.
        stuck.waits(halt(2), now + seconds(3));
        assert_eq!(*told.borrow(), Some(halt(2)));
        lively.progress(1, now + seconds(4));
        assert_eq!(*told.borrow(), None);
        // One's own bytes of a moment ago are no reason to keep quiet.
        drop(lively);
        stuck.progress(1, now + seconds(5));
        stuck.waits(halt(1), now + seconds(5));
        assert_eq!(*told.borrow(), Some(halt(1)));
        drop(stuck);
        assert_eq!(*told.borrow(), None, "nothing waits any more");
    }

    #[test]
    fn the_budget_is_one_for_all_and_a_new_one_for_another_update() {
        let (sender, _told) = watch::channel(None);
        let together = Together::new(seconds(100), seconds(60), sender);
        let (one, other) = (together.join(), together.join());
        let now = Instant::now();
        assert_eq!(one.left(now), seconds(100));
        assert_eq!(other.left(now + seconds(90)), seconds(10));
        // What one gets keeps the other trying.
        one.progress(10_000_000, now + seconds(95));
        assert_eq!(other.left(now + seconds(99)), seconds(100));
        let late = now + seconds(500);
        assert!(other.left(late).is_zero());
        assert_eq!(together.afresh().join().left(late), seconds(100));
    }

    #[test]
    fn a_file_that_can_be_done_without_has_a_short_budget_that_costs_the_others_nothing() {
        let (sender, _told) = watch::channel(None);
        let together = Together::new(seconds(3600), seconds(60), sender);
        let now = Instant::now();
        let (image, extra) = (together.join(), together.within(seconds(60)).join());
        assert_eq!(image.left(now), seconds(3600));
        assert_eq!(extra.left(now), seconds(60));
        assert!(extra.left(now + seconds(61)).is_zero());
        let impatient = Together::new(seconds(5), seconds(60), watch::channel(None).0);
        assert_eq!(impatient.within(seconds(60)).join().left(now), seconds(5));
    }
}
