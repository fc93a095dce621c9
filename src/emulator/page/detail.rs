//! All that the page shows of one device. Texts are cleaned of secrets: who opens the page needs no key.

use serde_json::{Value, json};

use super::stages;
use super::summary::Summary;
use crate::hub::{Hub, Reported};
use crate::hub_error::HubError;
use crate::wire_log::redact;

/// Reported patches shown.
const PATCHES: usize = 50;
/// Reported patches that the stages are told from: those of hours, at one in five seconds.
const PATCHES_READ: usize = 2000;
/// Lines of the wire log shown.
const LINES: usize = 50;

impl Hub {
    /// The device's row, twin, stages, last patches and last packets.
    pub(crate) fn page_detail(&self, id: &str) -> Result<Value, HubError> {
        let state = self.lock();
        let device = state.device(id)?;
        let history = &device.reported_history;
        let read = history.len().saturating_sub(PATCHES_READ);
        let history = history[read..].to_vec();
        let mut twin = device.record.twin.device_view();
        twin["tags"] = device.record.twin.tags.clone().into();
        let summary = Summary::of(device);
        let identity = &device.record.identity;
        let mut detail = json!({
            "summary": summary,
            "authentication": identity.credentials.kind(),
            "connections": device.connects,
            "refusals": device.refusals,
        });
        // What takes longest comes after the hub was let go.
        drop(state);
        let history: Vec<Value> = history.iter().map(Reported::document).collect();
        detail["stages"] = json!(stages::last_update(history.iter()));
        let mut patches: Value = history.into_iter().rev().take(PATCHES).collect();
        clean(&mut twin);
        clean(&mut patches);
        detail["twin"] = twin;
        detail["patches"] = patches;
        detail["wire"] = self.wire.recent(id, LINES).into();
        Ok(detail)
    }
}

/// Takes the secrets out of every text.
fn clean(value: &mut Value) {
    match value {
        Value::String(text) => *text = redact(text),
        Value::Array(items) => items.iter_mut().for_each(clean),
        Value::Object(members) => members.values_mut().for_each(clean),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out_however_deep_they_stand() {
        let mut value =
            json!({ "a": [{ "uri": "https://x/y?sv=1&sig=SECRET&se=2" }], "b": "plain", "c": 5 });
        clean(&mut value);
        assert_eq!(
            value,
            json!({ "a": [{ "uri": "https://x/y?sv=1&sig=***&se=2" }], "b": "plain", "c": 5 })
        );
    }
}
