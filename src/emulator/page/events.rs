//! The live events of the page: the whole once, then what changed, at most five times a second. Who connects anew
//! gets the whole anew.
//!
//! Each viewer pulls: the next event is made when the one before was taken over by its connection, out of the
//! newest state. So a viewer that does not read costs nothing and holds up nobody. The hub is held for some devices
//! at a time, and only for those that changed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::response::sse::Event;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::board::{Board, News};
use super::summary::Summary;
use crate::clock;
use crate::hub::Hub;

/// Shortest time between two events of a viewer.
const PACE: Duration = Duration::from_millis(200);
/// How often what changes by itself is looked at: an outage that ends.
const REST: Duration = Duration::from_secs(1);
/// How soon a browser tries again when the emulator is gone.
const RETRY: Duration = Duration::from_secs(1);

/// Devices looked at while the hub waits.
const AT_ONCE: usize = 100;

/// What all viewers share. The hub notes what changes only while there are viewers.
pub(crate) struct Feed {
    hub: Arc<Hub>,
    watched: Mutex<Watched>,
    started: String,
}

#[derive(Default)]
struct Watched {
    viewers: usize,
    board: Board,
}

/// The hub itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Facts {
    started: String,
    registered: usize,
    connected: usize,
    down: bool,
}

/// One event's data.
#[derive(Serialize)]
struct Data<'a> {
    now: String,
    hub: &'a Facts,
    devices: Vec<&'a Summary>,
    removed: &'a [String],
}

impl Feed {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self {
            hub,
            watched: Mutex::default(),
            started: clock::stamp(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is new since `seen`, and how the hub is.
    fn look(&self, seen: Option<u64>) -> (News, Facts) {
        let mut watched = self.lock();
        let board = &mut watched.board;
        let down = loop {
            // The hub is let go again and again, so that nothing in it waits for long.
            let mut state = self.hub.lock();
            let noted = state.devices.take_noted(AT_ONCE);
            for id in &noted {
                board.put(id, state.devices.get(id).map(Summary::of));
            }
            if noted.len() < AT_ONCE {
                break state.faults.is_down();
            }
        };
        let facts = Facts {
            started: self.started.clone(),
            registered: board.registered(),
            connected: board.connected(),
            down,
        };
        (board.news(seen), facts)
    }
}

/// One viewer's place in the events.
pub(crate) struct Viewer {
    feed: Arc<Feed>,
    changes: watch::Receiver<u64>,
    /// The number of the last change that it was sent, and how the hub was.
    seen: Option<(u64, Facts)>,
    next_at: Instant,
}

impl Viewer {
    pub(crate) fn new(feed: Arc<Feed>) -> Self {
        let changes = feed.hub.changes();
        let mut watched = feed.lock();
        watched.viewers += 1;
        if watched.viewers == 1 {
            watched.board = Board::default();
            feed.hub.lock().devices.watch();
        }
        drop(watched);
        Self {
            feed,
            changes,
            seen: None,
            next_at: Instant::now(),
        }
    }

    /// The next event, when there is something to tell.
    pub(crate) async fn next(mut self) -> Option<(Result<Event, axum::Error>, Self)> {
        loop {
            sleep_until(self.next_at).await;
            self.next_at = Instant::now() + PACE;
            self.changes.mark_unchanged();
            let (news, facts) = self.feed.look(self.seen.as_ref().map(|(seen, _)| *seen));
            let same = matches!(&self.seen, Some((_, before)) if *before == facts);
            if !(same && news.is_empty()) {
                let event = event(&news, &facts);
                self.seen = Some((news.last, facts));
                return Some((event, self));
            }
            tokio::select! {
                _ = self.changes.changed() => {}
                () = sleep(REST) => {}
            }
        }
    }
}

impl Drop for Viewer {
    fn drop(&mut self) {
        let mut watched = self.feed.lock();
        watched.viewers -= 1;
        if watched.viewers == 0 {
            watched.board = Board::default();
            self.feed.hub.lock().devices.unwatch();
        }
    }
}

fn event(news: &News, facts: &Facts) -> Result<Event, axum::Error> {
    let name = if news.whole { "snapshot" } else { "delta" };
    let data = Data {
        now: clock::stamp(),
        hub: facts,
        devices: news.devices.iter().map(Arc::as_ref).collect(),
        removed: &news.removed,
    };
    Event::default()
        .event(name)
        .id(news.last.to_string())
        .retry(RETRY)
        .json_data(data)
}
