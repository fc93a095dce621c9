//! What the page's viewers have seen and what is new to each. Pure.
//!
//! A viewer gets the whole once and then only rows that changed, each in its newest state: a viewer that reads
//! slowly skips states, and nothing is queued for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::summary::Summary;

/// Removed devices remembered, so that viewers hear of them; a viewer that missed more starts anew.
const REMOVED_KEPT: usize = 10_000;

/// The newest row of each device, and when it changed.
#[derive(Default)]
pub(crate) struct Board {
    rows: HashMap<String, Row>,
    /// Which device changed at which change; each device at its last one only.
    order: BTreeMap<u64, String>,
    /// Number of the last change.
    last: u64,
    /// Removals up to this change are forgotten.
    forgotten: u64,
    registered: usize,
    connected: usize,
}

struct Row {
    changed: u64,
    /// Absent when the device was removed.
    summary: Option<Arc<Summary>>,
}

/// What is new to a viewer.
#[derive(Debug, Default)]
pub(crate) struct News {
    /// Whether `devices` are all there are.
    pub(crate) whole: bool,
    /// Number of the last change in it; to be named at the next look.
    pub(crate) last: u64,
    pub(crate) devices: Vec<Arc<Summary>>,
    pub(crate) removed: Vec<String>,
}

impl Board {
    /// Takes over how a device is now; `None` when it is gone.
    pub(crate) fn put(&mut self, id: &str, summary: Option<Summary>) {
        let old = self.rows.get(id);
        let was = old.and_then(|row| row.summary.as_deref());
        if was == summary.as_ref() {
            return;
        }
        let count = |summary: Option<&Summary>| {
            let connected = summary.is_some_and(|summary| summary.connected);
            (usize::from(summary.is_some()), usize::from(connected))
        };
        let (before, after) = (count(was), count(summary.as_ref()));
        self.registered = self.registered + after.0 - before.0;
        self.connected = self.connected + after.1 - before.1;
        if let Some(old) = old {
            self.order.remove(&old.changed);
        }
        self.last += 1;
        self.order.insert(self.last, id.to_owned());
        let row = Row {
            changed: self.last,
            summary: summary.map(Arc::new),
        };
        self.rows.insert(id.to_owned(), row);
        if self.rows.len() - self.registered > REMOVED_KEPT {
            self.forget_oldest();
        }
    }

    /// What is new to a viewer that has seen everything up to `seen`, or nothing yet.
    pub(crate) fn news(&self, seen: Option<u64>) -> News {
        let whole = seen.is_none_or(|seen| seen < self.forgotten);
        let from = if whole { 0 } else { seen.unwrap_or_default() };
        let mut news = News {
            whole,
            last: self.last,
            ..News::default()
        };
        for id in self.order.range(from + 1..).map(|(_, id)| id) {
            match &self.rows[id].summary {
                Some(summary) => news.devices.push(summary.clone()),
                None if whole => {}
                None => news.removed.push(id.clone()),
            }
        }
        news
    }

    /// How many devices there are.
    pub(crate) fn registered(&self) -> usize {
        self.registered
    }

    /// How many of them are connected.
    pub(crate) fn connected(&self) -> usize {
        self.connected
    }

    /// Forgets half of the removed devices, so that this is seldom needed.
    fn forget_oldest(&mut self) {
        let removed = |id: &String| self.rows[id].summary.is_none();
        let oldest = self.order.iter().filter(|(_, id)| removed(id));
        let oldest: Vec<_> = oldest
            .take(REMOVED_KEPT / 2)
            .map(|(at, id)| (*at, id.clone()))
            .collect();
        for (at, id) in oldest {
            self.order.remove(&at);
            self.rows.remove(&id);
            self.forgotten = at;
        }
    }
}

impl News {
    pub(crate) fn is_empty(&self) -> bool {
        !self.whole && self.devices.is_empty() && self.removed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn summary(id: &str, firmware: &str) -> Summary {
        Summary {
            id: id.to_owned(),
            firmware: Some(firmware.to_owned()),
            connected: firmware.ends_with('c'),
            ..Summary::default()
        }
    }

    fn put(board: &mut Board, id: &str, firmware: &str) {
        board.put(id, Some(summary(id, firmware)));
    }

    fn ids(news: &News) -> Vec<&str> {
        news.devices.iter().map(|row| row.id.as_str()).collect()
    }

    #[test]
    fn a_new_viewer_gets_everything_and_then_only_what_changed() {
        let mut board = Board::default();
        for id in ["a", "b", "c"] {
            put(&mut board, id, "1");
        }
        let first = board.news(None);
        assert!(first.whole);
        assert_eq!(ids(&first), ["a", "b", "c"]);

        put(&mut board, "a", "1");
        put(&mut board, "b", "2");
        let news = board.news(Some(first.last));
        assert!(!news.whole);
        assert_eq!(ids(&news), ["b"], "what is the same is no news");
        assert_eq!(news.devices[0].firmware.as_deref(), Some("2"));
        assert!(board.news(Some(news.last)).is_empty());
    }

    #[test]
    fn a_slow_viewer_gets_the_newest_state_of_each_device_once() {
        let mut board = Board::default();
        put(&mut board, "a", "0");
        put(&mut board, "b", "0");
        let seen = board.news(None).last;
        for n in 0..1000 {
            put(&mut board, "a", &n.to_string());
        }
        let news = board.news(Some(seen));
        assert_eq!(ids(&news), ["a"]);
        assert_eq!(news.devices[0].firmware.as_deref(), Some("999"));
        assert_eq!(
            board.order.len(),
            2,
            "one for each device, not for each change"
        );
    }

    #[test]
    fn a_removed_device_is_told_once_and_may_come_back() {
        let mut board = Board::default();
        put(&mut board, "a", "1");
        put(&mut board, "b", "1");
        let seen = board.news(None).last;
        board.put("a", None);
        board.put("a", None);
        let news = board.news(Some(seen));
        assert_eq!(news.removed, ["a"]);
        assert_eq!(
            ids(&board.news(None)),
            ["b"],
            "a new viewer never hears of it"
        );
        assert!(board.news(Some(news.last)).is_empty());

        put(&mut board, "a", "1");
        let news = board.news(Some(news.last));
        assert_eq!((ids(&news), news.removed.len()), (vec!["a"], 0));
    }

    #[test]
    fn a_viewer_that_missed_too_many_removals_starts_anew() {
        let mut board = Board::default();
        put(&mut board, "stays", "1");
        for n in 0..=REMOVED_KEPT {
            put(&mut board, &n.to_string(), "1");
        }
        let seen = board.news(None).last;
        for n in 0..=REMOVED_KEPT {
            board.put(&n.to_string(), None);
        }
        let news = board.news(Some(seen));
        assert!(news.whole);
        assert_eq!(ids(&news), ["stays"]);
        assert!(
            board.rows.len() <= REMOVED_KEPT + 1,
            "they are not kept for ever"
        );
        assert!(board.news(Some(news.last)).is_empty());
    }

    proptest! {
        #[test]
        fn viewers_that_look_whenever_they_like_end_with_the_truth(
            steps in proptest::collection::vec((0..5_usize, "[0-9]c?|", any::<bool>(), any::<bool>()), 1..60)
        ) {
            const IDS: [&str; 5] = ["a", "b", "c", "d", "e"];
            let mut board = Board::default();
            let mut truth = BTreeMap::new();
            let mut viewers: [(Option<u64>, BTreeMap<String, String>); 2] = Default::default();
            let mut watch = |board: &Board, viewer: usize| {
                let (seen, known) = &mut viewers[viewer];
                let news = board.news(*seen);
                if news.whole {
                    known.clear();
                }
                for row in &news.devices {
                    known.insert(row.id.clone(), row.firmware.clone().unwrap());
                }
                for id in &news.removed {
                    known.remove(id);
                }
                *seen = Some(news.last);
                known.clone()
            };
            for (which, firmware, first, second) in steps {
                let id = IDS[which];
                if firmware.is_empty() {
                    truth.remove(id);
                    board.put(id, None);
                } else {
                    put(&mut board, id, &firmware);
                    truth.insert(id.to_owned(), firmware);
                }
                if first { watch(&board, 0); }
                if second { watch(&board, 1); }
            }
            prop_assert_eq!(&watch(&board, 0), &truth);
            prop_assert_eq!(&watch(&board, 1), &truth);
            prop_assert_eq!(board.registered(), truth.len());
            prop_assert_eq!(board.connected(), truth.values().filter(|firmware| firmware.ends_with('c')).count());
        }
    }
}
