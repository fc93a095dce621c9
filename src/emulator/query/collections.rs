//! The documents that queries look through, read a few at a time, so that no query holds the hub's lock
//! for long however many devices there are.

use std::collections::VecDeque;
use std::ops::Bound;

use serde_json::Value;

use super::page::Page;
use super::tree::{Collection, Expr, Query};
use super::{holds, rows};
use crate::hub::Hub;

/// Documents read in one go.
const PIECE: usize = 64;

impl Hub {
    /// The rows of a page of a query, and the token of the next page if there is one.
    pub(crate) fn query(&self, query: &Query, page: &Page) -> (Vec<Value>, Option<String>) {
        // Groups have keys of their own, and need all documents.
        let after = match query.is_grouped() {
            true => "",
            false => page.after(),
        };
        match query.from {
            Collection::Devices => rows(query, page, self.twins_after(after)),
            Collection::Modules => rows(query, page, std::iter::empty()),
            Collection::Jobs => rows(query, page, self.device_jobs_after(after)),
        }
    }

    /// The ids of the devices whose twins meet the condition.
    pub(crate) fn devices_where(&self, condition: &Expr) -> Vec<String> {
        let twins = self.twins_after("");
        let found = twins.filter(|(_, twin)| holds(condition, twin));
        found.map(|(id, _)| id).collect()
    }

    /// The twins of all devices after this id, in the order of their ids. Each is as it was at one moment.
    fn twins_after(&self, id: &str) -> impl Iterator<Item = (String, Value)> {
        in_pieces(id, |after| {
            let state = self.lock();
            let range = (Bound::Excluded(after), Bound::Unbounded);
            let devices = state.devices.range::<str, _>(range).take(PIECE);
            devices
                .map(|(id, device)| (id.clone(), device.twin_document()))
                .collect()
        })
    }
}

/// Everything that `read` gives when asked again and again for a few documents after a key.
pub(crate) fn in_pieces(
    after: &str,
    read: impl Fn(&str) -> VecDeque<(String, Value)>,
) -> impl Iterator<Item = (String, Value)> {
    let mut after = after.to_owned();
    let mut piece = VecDeque::new();
    std::iter::from_fn(move || {
        if piece.is_empty() {
            piece = read(&after);
        }
        let (key, document) = piece.pop_front()?;
        after.clone_from(&key);
        Some((key, document))
    })
}
