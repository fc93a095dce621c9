//! The documents that queries look through, a few at a time, so that no query holds the hub's lock for long
//! however many devices there are. A twin is looked into where it is; only what is found is copied.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Bound;

use serde_json::Value;

use super::page::Page;
use super::tree::{Collection, Expr, Query, Select};
use super::{Document, find, holds, rows};
use crate::hub::{Device, Hub};

/// Devices looked into in one go.
const PIECE: usize = 64;
/// The same when each found twin is copied as a whole, which takes far longer.
const WHOLE_PIECE: usize = 8;

impl Hub {
    /// The rows of a page of a query, and the token of the next page if there is one.
    pub(crate) fn query(&self, query: &Query, page: &Page) -> (Vec<Value>, Option<String>) {
        // Groups have keys of their own, and need all documents.
        let after = match query.is_grouped() {
            true => "",
            false => page.after(),
        };
        match query.from {
            Collection::Devices => {
                let piece = match query.select {
                    Select::Whole => WHOLE_PIECE,
                    Select::Columns(_) => PIECE,
                };
                let looked_into = self.twins_after(after, piece, |device| find(query, device));
                let found = looked_into.filter_map(|(id, found)| Some((id, found?)));
                rows(query, page, found)
            }
            Collection::Modules => rows(query, page, std::iter::empty()),
            Collection::Jobs => {
                let documents = self.device_jobs_after(after);
                let found = documents.filter_map(|(key, row)| Some((key, find(query, &row)?)));
                rows(query, page, found)
            }
        }
    }

    /// The ids of the devices whose twins meet the condition.
    pub(crate) fn devices_where(&self, condition: &Expr) -> Vec<String> {
        let looked_into = self.twins_after("", PIECE, |device| holds(condition, device));
        let met = looked_into.filter(|(_, met)| *met);
        met.map(|(id, _)| id).collect()
    }

    /// What `look` makes of each device after this id, in the order of their ids.
    fn twins_after<T>(
        &self,
        id: &str,
        piece: usize,
        look: impl Fn(&Device) -> T,
    ) -> impl Iterator<Item = (String, T)> {
        in_pieces(id, move |after| {
            let state = self.lock();
            let range = (Bound::Excluded(after), Bound::Unbounded);
            let devices = state.devices.range::<str, _>(range).take(piece);
            devices
                .map(|(id, device)| (id.clone(), look(device)))
                .collect()
        })
    }
}

impl Document for Device {
    fn look_up(&self, path: &[String]) -> Option<Cow<'_, Value>> {
        let twin = &self.record.twin;
        match path {
            [first, rest @ ..] if first == "tags" => match rest {
                [] if twin.tags.is_empty() => None,
                [] => Some(Cow::Owned(twin.tags.clone().into())),
                [name, rest @ ..] => twin.tags.get(name)?.look_up(rest),
            },
            [first, section, rest @ ..] if first == "properties" => match section.as_str() {
                "desired" => twin.desired.look_up(rest),
                "reported" => twin.reported.look_up(rest),
                _ => None,
            },
            [first] if first == "properties" => Some(Cow::Owned(twin.properties())),
            [first, rest @ ..] if first == "configurations" => {
                let configurations = self.record.configurations.document()?;
                let found = configurations.look_up(rest)?.into_owned();
                Some(Cow::Owned(found))
            }
            _ => {
                let found = self.twin_head().look_up(path)?.into_owned();
                Some(Cow::Owned(found))
            }
        }
    }

    fn whole(&self) -> Value {
        self.twin_document()
    }
}

/// Everything that `read` gives when asked again and again for a few documents after a key.
pub(crate) fn in_pieces<T>(
    after: &str,
    read: impl Fn(&str) -> VecDeque<(String, T)>,
) -> impl Iterator<Item = (String, T)> {
    let mut after = after.to_owned();
    let mut piece = VecDeque::new();
    std::iter::from_fn(move || {
        if piece.is_empty() {
            piece = read(&after);
        }
        let (key, item) = piece.pop_front()?;
        after.clone_from(&key);
        Some((key, item))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::Emulator;
    use crate::options::{DeviceSpec, Options};
    use crate::query;

    async fn emulator(devices: usize) -> Emulator {
        let device = |n: usize| DeviceSpec {
            id: format!("d{n:05}"),
            key: None,
        };
        let options = Options {
            devices: (0..devices).map(device).collect(),
            ..Options::default()
        };
        Emulator::start(options).await.unwrap()
    }

    #[tokio::test]
    async fn all_twins_are_seen_once_and_others_get_in_between() {
        let emulator = emulator(3 * PIECE + 1).await;
        let hub = &emulator.hub;
        let mut seen = Vec::new();
        for (id, named) in hub.twins_after("", PIECE, |device| device.record.identity.id.clone()) {
            assert_eq!(named, id);
            // It would wait for ever if the query held the lock.
            assert!(hub.lock().devices.contains_key(&id));
            seen.push(id);
        }
        assert_eq!(seen, hub.device_ids());
        let next = hub.twins_after("d00010", PIECE, |_| ()).next();
        assert_eq!(next.unwrap().0, "d00011");
    }

    #[tokio::test]
    async fn a_first_page_reads_no_more_twins_than_it_needs() {
        let emulator = emulator(3 * PIECE).await;
        let hub = &emulator.hub;
        let text = "SELECT deviceId FROM devices";
        let (query, page) = (
            query::parse(text).unwrap(),
            Page::parse(Some("5"), None, text),
        );
        let read = std::cell::Cell::new(0);
        let found = hub
            .twins_after("", PIECE, |device| find(&query, device).unwrap())
            .inspect(|_| read.set(read.get() + 1));
        let (found, more) = rows(&query, &page.unwrap(), found);
        assert_eq!((found.len(), more.is_some(), read.get()), (5, true, 6));
    }

    /// Every path into a document, with what it leads to.
    fn paths(document: &Value, path: Vec<String>, into: &mut Vec<(Vec<String>, Value)>) {
        into.push((path.clone(), document.clone()));
        for (name, member) in document.as_object().into_iter().flatten() {
            let mut path = path.clone();
            path.push(name.clone());
            paths(member, path, into);
        }
    }

    #[tokio::test]
    async fn looking_into_a_device_finds_what_is_in_its_twin_as_the_service_sees_it() {
        let emulator = emulator(1).await;
        let hub = &emulator.hub;
        let write = |body: Value| {
            let mode = crate::twin::Mode::Merge;
            hub.write_twin("d00000", &body, mode, &crate::hub::IfMatch::Any)
                .unwrap();
        };
        for body in [
            serde_json::json!({}),
            serde_json::json!({ "tags": { "a": { "b": [1] } }, "properties": { "desired": { "c": { "d": null, "e": 1 } } } }),
        ] {
            write(body);
            let state = hub.lock();
            let device = &state.devices["d00000"];
            let mut all = Vec::new();
            paths(&device.twin_document(), Vec::new(), &mut all);
            for (path, value) in all.into_iter().filter(|(path, _)| !path.is_empty()) {
                assert_eq!(device.look_up(&path).as_deref(), Some(&value), "{path:?}");
                let beyond = [path, vec!["none".to_owned()]].concat();
                assert_eq!(device.look_up(&beyond), None, "{beyond:?}");
            }
            for missing in ["none", "configurations"] {
                assert_eq!(device.look_up(&[missing.to_owned()]), None);
            }
        }
    }
}
