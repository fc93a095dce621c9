//! The registered devices, with a note of which may have changed since the page last looked.
//!
//! Whatever is reached for writing is noted here, so no change can be forgotten by who makes it. Nothing is noted
//! while nobody watches.

use std::collections::BTreeSet;
use std::collections::btree_map::{self, BTreeMap};
use std::ops::Deref;

use crate::hub::Device;

/// Devices by id. For reading it is the map.
#[derive(Default)]
pub(crate) struct Devices {
    map: BTreeMap<String, Device>,
    /// Ids of devices that may be other than at the last look; absent while nobody watches.
    noted: Option<BTreeSet<String>>,
}

impl Devices {
    pub(crate) fn get_mut(&mut self, id: &str) -> Option<&mut Device> {
        let device = self.map.get_mut(id)?;
        note(&mut self.noted, id);
        Some(device)
    }

    pub(crate) fn insert(&mut self, id: String, device: Device) {
        note(&mut self.noted, &id);
        self.map.insert(id, device);
    }

    pub(crate) fn remove(&mut self, id: &str) {
        note(&mut self.noted, id);
        self.map.remove(id);
    }

    pub(crate) fn iter_mut(&mut self) -> btree_map::IterMut<'_, String, Device> {
        if let Some(noted) = &mut self.noted {
            noted.extend(self.map.keys().cloned());
        }
        self.map.iter_mut()
    }

    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut Device> {
        self.iter_mut().map(|(_, device)| device)
    }

    /// Begins to note; every device counts as changed at first.
    pub(crate) fn watch(&mut self) {
        self.noted = Some(self.map.keys().cloned().collect());
    }

    /// Notes no more.
    pub(crate) fn unwatch(&mut self) {
        self.noted = None;
    }

    /// Ids of at most `most` devices that may have changed or gone, and that are not told again until then.
    pub(crate) fn take_noted(&mut self, most: usize) -> Vec<String> {
        let Some(noted) = &mut self.noted else {
            return Vec::new();
        };
        std::iter::from_fn(|| noted.pop_first())
            .take(most)
            .collect()
    }
}

fn note(noted: &mut Option<BTreeSet<String>>, id: &str) {
    if let Some(noted) = noted
        && !noted.contains(id)
    {
        noted.insert(id.to_owned());
    }
}

impl Deref for Devices {
    type Target = BTreeMap<String, Device>;

    fn deref(&self) -> &Self::Target {
        &self.map
    }
}

impl<'a> IntoIterator for &'a mut Devices {
    type Item = (&'a String, &'a mut Device);
    type IntoIter = btree_map::IterMut<'a, String, Device>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}

impl FromIterator<(String, Device)> for Devices {
    fn from_iter<I: IntoIterator<Item = (String, Device)>>(devices: I) -> Self {
        Self {
            map: devices.into_iter().collect(),
            noted: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Record;
    use crate::registry::Identity;

    fn devices(ids: &[&str]) -> Devices {
        let new = |id: &&str| Device::new(Record::new(Identity::new(id, None).unwrap()));
        ids.iter().map(|id| ((*id).to_owned(), new(id))).collect()
    }

    #[test]
    fn whatever_is_reached_for_writing_is_noted_once() {
        let mut devices = devices(&["a", "b", "c", "d"]);
        devices.watch();
        assert_eq!(devices.take_noted(3), ["a", "b", "c"]);
        assert_eq!(devices.take_noted(3), ["d"]);
        let _ = devices.get("a");
        assert!(devices.take_noted(9).is_empty(), "reading is no change");
        devices.get_mut("c");
        devices.get_mut("c");
        devices.get_mut("no device");
        devices.remove("b");
        let device = Device::new(Record::new(Identity::new("e", None).unwrap()));
        devices.insert("e".into(), device);
        assert_eq!(devices.take_noted(9), ["b", "c", "e"]);
        for device in devices.values_mut() {
            device.connects += 1;
        }
        assert_eq!(devices.take_noted(9), ["a", "c", "d", "e"]);
    }

    #[test]
    fn nothing_is_noted_while_nobody_watches() {
        let mut devices = devices(&["a"]);
        devices.get_mut("a");
        assert!(devices.take_noted(9).is_empty());
        devices.watch();
        devices.unwatch();
        devices.get_mut("a");
        assert!(devices.take_noted(9).is_empty());
    }
}
