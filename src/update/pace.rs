//! How fast an update goes: bytes a second over the last moments. Pure; the time is passed in.

use std::{collections::VecDeque, time::Duration};

/// A shorter time says nothing.
const LEAST: Duration = Duration::from_secs(1);

/// What was seen of one thing that is measured, such as a stage of an update.
#[derive(Debug)]
pub struct Pace<Of> {
    /// Over how long the pace is taken.
    window: Duration,
    of: Option<Of>,
    /// When, and the bytes done by then; the oldest is at the window's edge.
    seen: VecDeque<(Duration, u64)>,
}

impl<Of: PartialEq> Pace<Of> {
    /// The pace over the last `window`: long enough for a steady figure, short enough to show a stall.
    #[must_use]
    pub fn over(window: Duration) -> Self {
        Self {
            window,
            of: None,
            seen: VecDeque::new(),
        }
    }

    /// At `now`, `done` bytes of `of` are done. Gives the pace in bytes a second; `None` as long as nothing can be said.
    /// Another thing, or one that begins anew, is measured anew.
    pub fn see(&mut self, of: Of, done: u64, now: Duration) -> Option<u64> {
        let backwards = self.seen.back().is_some_and(|(_, before)| done < *before);
        if backwards || self.of.as_ref() != Some(&of) {
            self.of = Some(of);
            self.seen.clear();
        }
        self.seen.push_back((now, done));
        while (self.seen.get(1)).is_some_and(|(at, _)| *at + self.window <= now) {
            self.seen.pop_front();
        }
        let (since, before) = *self.seen.front()?;
        let took = now.checked_sub(since).filter(|took| *took >= LEAST)?;
        let rate = u128::from(done - before) * 1000 / took.as_millis();
        u64::try_from(rate).ok()
    }
}
