//! The faults in force, and how they are put in force. What a fault is called and takes: `fault.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::chaos;
use crate::connect::Proof;
use crate::fault::Fault;
use crate::fault_kind::FaultKind;
use crate::hub::{Hub, Link};
use crate::hub_error::{HubError, Kind};
use crate::impostor;

/// How long an impostor goes on when nothing else is said.
const IMPOSTOR: Duration = Duration::from_secs(10);

/// The faults in force.
#[derive(Default)]
pub(crate) struct Faults {
    down: Down,
    active: Vec<Active>,
    /// Which chaos is the present one; an older one ends when it sees that it is not.
    pub(crate) chaos: u64,
    /// The same for each device's impostor: the count of all that were started.
    pub(crate) impostors: u64,
}

/// A fault that strikes by and by.
struct Active {
    fault: Fault,
    /// How many times more; `None` until it is ended.
    left: Option<u32>,
}

#[derive(Default)]
enum Down {
    #[default]
    No,
    Until(Instant),
    UntilTold,
}

impl Faults {
    pub(crate) fn is_down(&self) -> bool {
        match self.down {
            Down::No => false,
            Down::Until(end) => Instant::now() < end,
            Down::UntilTold => true,
        }
    }

    /// Puts `fault` in force, in place of the one of its kind for the same device.
    fn set(&mut self, fault: Fault) {
        let same = |active: &Active| {
            active.fault.kind == fault.kind && active.fault.device == fault.device
        };
        self.active.retain(|active| !same(active));
        let numbers = &fault.parameters;
        let ends = numbers.count == Some(0) || numbers.milliseconds == Some(0);
        if !ends {
            let left = numbers.count;
            self.active.push(Active { fault, left });
        }
    }

    /// Uses up one stroke of a fault of this kind for `device`, if one is in force.
    pub(crate) fn strike(&mut self, kind: FaultKind, device: &str) -> Option<Fault> {
        let at = self.find(kind, device)?;
        let active = &mut self.active[at];
        let fault = active.fault.clone();
        if let Some(left) = &mut active.left {
            *left -= 1;
            if *left == 0 {
                self.active.remove(at);
            }
        }
        Some(fault)
    }

    /// Counts a packet of `device`; whether it is the one after which its connection is to be dropped.
    pub(crate) fn last_packet(&mut self, device: &str) -> bool {
        let kind = FaultKind::DropAfterPackets;
        self.strike(kind, device).is_some() && self.find(kind, device).is_none()
    }

    fn find(&self, kind: FaultKind, device: &str) -> Option<usize> {
        self.active.iter().position(|active| {
            let whose = active.fault.device.as_deref();
            active.fault.kind == kind && whose.is_none_or(|whose| whose == device)
        })
    }

    /// Ends every fault, or every one for `device`.
    fn end(&mut self, device: Option<&str>) {
        match device {
            Some(_) => self
                .active
                .retain(|active| active.fault.device.as_deref() != device),
            None => {
                self.active.clear();
                self.down = Down::No;
                self.chaos += 1;
                self.impostors += 1;
            }
        }
    }

    /// What is in force, for people.
    pub(crate) fn document(&self) -> Value {
        let shown = |active: &Active| {
            let mut document = active.fault.document();
            document.remove("count");
            if let Some(left) = active.left {
                document.insert("left".to_owned(), left.into());
            }
            Value::from(document)
        };
        let active: Vec<Value> = self.active.iter().map(shown).collect();
        json!({ "down": self.is_down(), "faults": active })
    }
}

impl Fault {
    /// The refusal that a fault with a status stands for.
    pub(crate) fn refusal(&self) -> HubError {
        let status = self
            .parameters
            .status
            .and_then(|status| status.try_into().ok());
        let error = HubError::new(Kind::Injected(status.unwrap_or(429)), "Failed on request.");
        match self.parameters.retry_after {
            Some(seconds) => error.with_retry_after(seconds),
            None => error,
        }
    }

    pub(crate) fn delay(&self) -> Duration {
        Duration::from_millis(self.parameters.milliseconds.unwrap_or_default().into())
    }
}

impl Hub {
    /// Uses up a fault, and says so in the wire log.
    pub(crate) fn strike(
        &self,
        faults: &mut Faults,
        kind: FaultKind,
        device: &str,
    ) -> Option<Fault> {
        let fault = faults.strike(kind, device)?;
        self.wire.note(device, &format!("fault: {}", kind.name()));
        Some(fault)
    }

    /// Puts a fault in force. Refuses one for a device that is not registered.
    pub(crate) async fn inject(self: &Arc<Self>, fault: Fault) -> Result<(), HubError> {
        let device = fault.device.as_deref();
        let numbers = fault.parameters;
        self.wire
            .note(device.unwrap_or("*"), &format!("fault set: {fault}"));
        match fault.kind {
            FaultKind::Drop => match device {
                Some(device) => {
                    self.lock().device(device)?;
                    self.drop_connection(device);
                }
                None => self.drop_connections("dropped on request"),
            },
            FaultKind::ForgetSession => self.forget_sessions(device)?,
            FaultKind::ExpireTokens => self.expire_tokens().await,
            FaultKind::Outage => {
                let seconds = numbers.seconds.unwrap_or_default();
                self.set_down(Some(Some(Duration::from_secs(seconds.into()))));
            }
            FaultKind::Down => self.set_down(Some(None)),
            FaultKind::Up => self.set_down(None),
            FaultKind::Calm => {
                self.lock().faults.end(device);
                self.changed();
            }
            FaultKind::Impostor => {
                let device = device.ok_or_else(|| {
                    HubError::argument("An impostor needs the 'device' whose identity it has.")
                })?;
                let time = numbers
                    .seconds
                    .map_or(IMPOSTOR, |seconds| Duration::from_secs(seconds.into()));
                impostor::start(self, device, fault.delay(), time)?;
            }
            FaultKind::Chaos => {
                let time = numbers
                    .seconds
                    .map(|seconds| Duration::from_secs(seconds.into()));
                chaos::start(self, numbers.seed, fault.delay(), time);
            }
            FaultKind::RefuseConnects
            | FaultKind::CloseConnects
            | FaultKind::FailSubscribes
            | FaultKind::DropAfterPackets
            | FaultKind::DelayTwinAnswers
            | FaultKind::SwallowTwinAnswers
            | FaultKind::FailTwinReads
            | FaultKind::FailTwinPatches
            | FaultKind::CorruptTwins
            | FaultKind::DropBeforePatch
            | FaultKind::DropAfterPatch
            | FaultKind::SwallowDesired
            | FaultKind::RepeatDesired
            | FaultKind::StaleDesired
            | FaultKind::CorruptDesired
            | FaultKind::DelayMethods
            | FaultKind::SwallowMethodAnswers
            | FaultKind::FailRegistrations
            | FaultKind::FailRequests => self.lock().faults.set(fault),
        }
        Ok(())
    }

    /// What is in force and what was throttled, for people.
    pub(crate) fn trouble(&self) -> Value {
        let state = self.lock();
        let mut document = state.faults.document();
        document["throttle"] = state.meters.document();
        document
    }

    /// Puts a fault in force that takes effect by and by.
    pub(crate) fn set_fault(&self, fault: Fault) {
        self.lock().faults.set(fault);
    }

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

    fn drop_connections(&self, reason: &str) {
        for device in self.lock().devices.values_mut() {
            device.close(reason);
        }
        self.changed();
    }

    /// Goes away (`Some(None)`: until told otherwise) or comes back (`None`).
    pub(crate) fn set_down(&self, down: Option<Option<Duration>>) {
        let mut state = self.lock();
        state.faults.down = match down {
            None => Down::No,
            Some(None) => Down::UntilTold,
            Some(Some(time)) => Down::Until(Instant::now() + time),
        };
        let is_down = state.faults.is_down();
        drop(state);
        match is_down {
            true => self.drop_connections("the hub is down on request"),
            false => self.changed(),
        }
    }

    /// Forgets what the device, or every one, subscribed to, so that its next connection starts deaf.
    pub(crate) fn forget_sessions(&self, device: Option<&str>) -> Result<(), HubError> {
        let mut state = self.lock();
        if let Some(device) = device {
            state.device(device)?;
        }
        for (id, known) in &mut state.devices {
            if device.is_none_or(|device| device == id) {
                known.record.subscriptions.clear();
                self.save(&known.record);
            }
        }
        Ok(())
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

    fn in_force(texts: &[&str]) -> Faults {
        let mut faults = Faults::default();
        for text in texts {
            faults.set(text.parse().unwrap());
        }
        faults
    }

    #[test]
    fn counted_faults_end() {
        let mut faults = in_force(&["refuse-connects=2,code=5", "swallow-twin-answers=1"]);
        let kind = FaultKind::RefuseConnects;
        assert_eq!(faults.strike(kind, "pi").unwrap().parameters.code, Some(5));
        assert!(faults.strike(kind, "pi").is_some());
        assert!(faults.strike(kind, "pi").is_none());
        assert!(faults.strike(FaultKind::SwallowTwinAnswers, "pi").is_some());
        assert_eq!(faults.document(), json!({ "down": false, "faults": [] }));
    }

    #[test]
    fn a_fault_for_one_device_spares_the_others() {
        let mut faults = in_force(&["fail-twin-reads=1,status=503,device=a"]);
        let kind = FaultKind::FailTwinReads;
        assert!(faults.strike(kind, "b").is_none());
        let struck = faults.strike(kind, "a").unwrap();
        assert_eq!(struck.refusal().kind(), Kind::Injected(503));
    }

    #[test]
    fn a_fault_set_again_replaces_itself_and_zero_ends_it() {
        let mut faults = in_force(&["delay-methods=50", "delay-methods=70"]);
        for _ in 0..3 {
            let struck = faults.strike(FaultKind::DelayMethods, "pi").unwrap();
            assert_eq!(struck.delay(), Duration::from_millis(70));
        }
        faults.set("delay-methods=0".parse().unwrap());
        assert!(faults.strike(FaultKind::DelayMethods, "pi").is_none());
    }

    #[test]
    fn the_last_of_the_counted_packets_is_told() {
        let mut faults = in_force(&["drop-after-packets=3,device=a"]);
        let told: Vec<bool> = (0..5).map(|_| faults.last_packet("a")).collect();
        assert_eq!(told, [false, false, true, false, false]);
    }

    #[test]
    fn what_is_in_force_shows_what_is_left_of_it() {
        let mut faults = in_force(&[
            "fail-twin-patches=3,retry-after=2",
            "delay-methods=5,device=a",
        ]);
        faults.strike(FaultKind::FailTwinPatches, "pi");
        let shown = faults.document();
        assert_eq!(
            shown["faults"],
            json!([
                { "fault": "fail-twin-patches", "left": 2, "retry-after": 2 },
                { "fault": "delay-methods", "milliseconds": 5, "device": "a" },
            ])
        );
        faults.end(Some("a"));
        assert_eq!(faults.active.len(), 1);
        faults.end(None);
        assert_eq!(faults.active.len(), 0);
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
