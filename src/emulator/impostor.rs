//! An impostor: a second client with a device's identity, as from a cloned SD card. It connects again and
//! again, and each time the hub closes the device's connection, as it does for any newer one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::connect::Proof;
use crate::hub::{Hub, Link, Outgoing};
use crate::hub_error::HubError;

/// Lets an impostor of `device` connect at each `period` for `time`. A zero period ends the present ones.
pub(crate) fn start(
    hub: &Arc<Hub>,
    device: &str,
    period: Duration,
    time: Duration,
) -> Result<(), HubError> {
    let mut state = hub.lock();
    state.device(device)?;
    state.faults.impostors += 1;
    let run = state.faults.impostors;
    drop(state);
    if period.is_zero() {
        return Ok(());
    }
    let (shared, device) = (hub.clone(), device.to_owned());
    hub.spawn(async move {
        let end = Instant::now() + time;
        while Instant::now() < end && shared.lock().faults.impostors == run {
            // It stays until it is kicked itself, and then waits for its next turn.
            let _inbox = shared.intrude(&device);
            sleep(period).await;
        }
        shared.withdraw(&device);
    });
    Ok(())
}

impl Hub {
    /// Puts an impostor's connection in place of the device's. It has the device's session but never reads.
    fn intrude(&self, id: &str) -> Option<mpsc::UnboundedReceiver<Outgoing>> {
        let mut state = self.lock();
        if state.faults.is_down() {
            return None;
        }
        state.last_link += 1;
        let number = state.last_link;
        let device = state.devices.get_mut(id)?;
        if !device.record.identity.enabled {
            return None;
        }
        device.close("another connection of the same device was accepted");
        let (outbox, inbox) = mpsc::unbounded_channel();
        device.link = Some(Link {
            id: number,
            outbox,
            subscriptions: device.record.subscriptions.clone(),
            keeps_session: true,
            has_api_version: true,
            proof: Proof::Impostor,
            model_id: None,
            will: None,
            methods: HashMap::new(),
            last_rid: 0,
        });
        device.touch(true);
        self.wire.note(id, "fault: an impostor connected");
        self.changed();
        Some(inbox)
    }

    /// Takes away the impostor's connection, if it is the one in place.
    fn withdraw(&self, id: &str) {
        let mut state = self.lock();
        if let Some(device) = state.devices.get_mut(id)
            && let Some(link) = &device.link
            && matches!(link.proof, Proof::Impostor)
        {
            device.close("the impostor left");
        }
        self.changed();
    }
}
