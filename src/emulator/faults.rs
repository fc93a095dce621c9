//! What can be made to go wrong on request.

use std::time::{Duration, Instant};

use crate::connect::Proof;
use crate::hub::{Hub, Link};

/// The faults in force.
#[derive(Default)]
pub(crate) struct Faults {
    down: Down,
    /// CONNECTs still to refuse, with this CONNACK code.
    refuse: (u32, u8),
    twin_delay: Duration,
    swallow: u32,
    /// Reported patches still to fail, with this status.
    fail: (u32, u16),
}

#[derive(Default)]
enum Down {
    #[default]
    No,
    Until(Instant),
    UntilTold,
}

/// What happens to the answer of a twin request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TwinAnswer {
    Send,
    SendAfter(Duration),
    Swallow,
}

impl Faults {
    pub(crate) fn is_down(&self) -> bool {
        match self.down {
            Down::No => false,
            Down::Until(end) => Instant::now() < end,
            Down::UntilTold => true,
        }
    }

    /// The CONNACK code for the next CONNECT, if it is to be refused.
    pub(crate) fn next_refusal(&mut self) -> Option<u8> {
        count_down(&mut self.refuse.0).then_some(self.refuse.1)
    }

    /// The status for the next reported patch, if it is to fail.
    pub(crate) fn next_patch_failure(&mut self) -> Option<u16> {
        count_down(&mut self.fail.0).then_some(self.fail.1)
    }

    pub(crate) fn next_twin_answer(&mut self) -> TwinAnswer {
        if count_down(&mut self.swallow) {
            TwinAnswer::Swallow
        } else if self.twin_delay.is_zero() {
            TwinAnswer::Send
        } else {
            TwinAnswer::SendAfter(self.twin_delay)
        }
    }
}

fn count_down(left: &mut u32) -> bool {
    let any = *left > 0;
    *left = left.saturating_sub(1);
    any
}

impl Hub {
    /// Closes the device's connection; whether it had one.
    pub(crate) fn drop_connection(&self, device: &str) -> bool {
        let mut state = self.lock();
        let dropped = state
            .devices
            .get_mut(device)
            .is_some_and(|device| device.close("dropped on request"));
        self.changed();
        dropped
    }

    /// Goes away (`Some(None)`: until told otherwise) or comes back (`None`).
    pub(crate) fn set_down(&self, down: Option<Option<Duration>>) {
        let mut state = self.lock();
        state.faults.down = match down {
            None => Down::No,
            Some(None) => Down::UntilTold,
            Some(Some(time)) => Down::Until(Instant::now() + time),
        };
        if state.faults.is_down() {
            for device in state.devices.values_mut() {
                device.close("the hub is down on request");
            }
        }
        self.changed();
    }

    pub(crate) fn refuse_connects(&self, count: u32, code: u8) {
        self.lock().faults.refuse = (count, code);
    }

    pub(crate) fn delay_twin_answers(&self, delay: Duration) {
        self.lock().faults.twin_delay = delay;
    }

    pub(crate) fn swallow_twin_answers(&self, count: u32) {
        self.lock().faults.swallow = count;
    }

    pub(crate) fn fail_twin_patches(&self, count: u32, status: u16) {
        self.lock().faults.fail = (count, status);
    }

    /// Forgets what the device subscribed to, so that its next connection starts deaf. Whether the
    /// device is known.
    pub(crate) fn forget_session(&self, device: &str) -> bool {
        let mut state = self.lock();
        let Some(device) = state.devices.get_mut(device) else {
            return false;
        };
        device.record.subscriptions.clear();
        self.save(&device.record);
        true
    }

    /// Declares every token used so far expired and closes the connections that use one, with no grace.
    ///
    /// A token counts in whole seconds, so one made right now could be the same text again as one made
    /// a moment ago: this waits (under a second) until a fresh token differs from the expired ones.
    pub(crate) async fn expire_tokens(&self) {
        loop {
            let now = crate::clock::since_epoch();
            if now.as_secs() > self.lock().tokens.last_accepted {
                break;
            }
            let rest = 1_000_000_000 - now.subsec_nanos();
            tokio::time::sleep(Duration::from_nanos(rest.into())).await;
        }
        let mut state = self.lock();
        let seen = std::mem::take(&mut state.tokens.seen);
        state.tokens.expired.extend(seen);
        for device in state.devices.values_mut() {
            let uses_token = |link: &Link| matches!(link.proof, Proof::Token(_));
            if device.link.as_ref().is_some_and(uses_token) {
                device.close("the token was expired on request");
            }
        }
        self.changed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_faults_end() {
        let mut faults = Faults {
            refuse: (2, 3),
            swallow: 1,
            ..Faults::default()
        };
        assert_eq!(faults.next_refusal(), Some(3));
        assert_eq!(faults.next_refusal(), Some(3));
        assert_eq!(faults.next_refusal(), None);
        assert_eq!(faults.next_twin_answer(), TwinAnswer::Swallow);
        assert_eq!(faults.next_twin_answer(), TwinAnswer::Send);
        assert_eq!(faults.next_patch_failure(), None);
    }

    #[test]
    fn an_outage_ends_by_itself() {
        let mut faults = Faults {
            down: Down::Until(Instant::now()),
            ..Faults::default()
        };
        assert!(!faults.is_down());
        faults.down = Down::UntilTold;
        assert!(faults.is_down());
    }
}
