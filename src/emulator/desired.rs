//! Pushes of changed desired properties to a device that listens, and the faults on their way.

use serde_json::Value;

use crate::fault_kind::FaultKind;
use crate::faults::Faults;
use crate::hub::{Device, Hub, Link, Outgoing};
use crate::topics::{self, Filter};

impl Hub {
    /// Pushes `push`, which has its `$version`, if the device is connected and listens.
    pub(crate) fn push_desired(&self, device: &mut Device, faults: &mut Faults, push: &Value) {
        let id = device.record.identity.id.clone();
        let version = push["$version"].as_u64().unwrap_or_default();
        let text = push.to_string();
        let before = device.last_push.replace((version, text.clone()));
        let Some(link) = &device.link else {
            return;
        };
        if !link.subscriptions.contains_key(&Filter::DesiredChanges) {
            return;
        }
        if self
            .strike(faults, FaultKind::SwallowDesired, &id)
            .is_some()
        {
            return;
        }
        if self
            .strike(faults, FaultKind::CorruptDesired, &id)
            .is_some()
        {
            send(link, version, &text[..text.len() - 1]);
            return;
        }
        send(link, version, &text);
        if self.strike(faults, FaultKind::RepeatDesired, &id).is_some() {
            send(link, version, &text);
        }
        if let Some((version, text)) = before
            && self.strike(faults, FaultKind::StaleDesired, &id).is_some()
        {
            send(link, version, &text);
        }
    }
}

fn send(link: &Link, version: u64, text: &str) {
    // Fails only when the connection is ending; a push is lost then, as on the real hub.
    let _ = link.outbox.send(Outgoing::Publish {
        topic: topics::desired_change(version),
        payload: text.as_bytes().to_vec(),
    });
}
