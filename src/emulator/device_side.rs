//! What the hub does with each packet of a connected device: subscriptions, telemetry, twin requests and
//! method answers.

use std::time::{Duration, Instant};

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Packet, PubAck, Publish, SubAck, SubscribeReasonCode, UnsubAck};
use serde_json::Value;

use crate::clock;
use crate::fault_kind::FaultKind;
use crate::faults::Faults;
use crate::hub::{Device, Hub, Link, Outgoing, Reported};
use crate::hub_error::HubError;
use crate::throttle::{Meters, Operation};
use crate::topics::{self, Filter, Upstream};

/// Why the hub closes a connection, in words for the logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offence(pub(crate) String);

impl Offence {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// What follows from a packet.
#[derive(Default)]
pub(crate) struct Replies {
    /// To send back at once. What goes through the outbox (twin answers) follows them.
    pub(crate) packets: Vec<Packet>,
    /// How long nothing more is read from this device: its telemetry is ahead of the throttle.
    pub(crate) hold: Duration,
}

impl From<Packet> for Replies {
    fn from(packet: Packet) -> Self {
        Self {
            packets: vec![packet],
            hold: Duration::ZERO,
        }
    }
}

/// A twin answer on its way.
struct Answer {
    topic: String,
    payload: Vec<u8>,
}

impl Hub {
    /// Handles a packet from connection `link` of `device`.
    pub(crate) fn receive(
        &self,
        device: &str,
        link: u64,
        packet: Packet,
    ) -> Result<Replies, Offence> {
        let mut state = self.lock();
        let state = &mut *state;
        let (devices, faults) = (&mut state.devices, &mut state.faults);
        let meters = &mut state.meters;
        let device = devices
            .get_mut(device)
            .filter(|device| device.link.as_ref().is_some_and(|live| live.id == link))
            // Closed a moment ago: the reason is already on its way.
            .ok_or_else(|| Offence::new("the connection was replaced"))?;
        if faults.last_packet(&device.record.identity.id) {
            return Err(Offence::new("dropped on request after so many packets"));
        }
        match packet {
            Packet::Publish(publish) => {
                let packets = match publish.qos {
                    QoS::AtMostOnce => Vec::new(),
                    QoS::AtLeastOnce => vec![Packet::PubAck(PubAck::new(publish.pkid))],
                    QoS::ExactlyOnce => return Err(Offence::new("a PUBLISH with QoS 2")),
                };
                let hold = self.published(device, faults, meters, &publish)?;
                Ok(Replies { packets, hold })
            }
            Packet::Subscribe(subscribe) => {
                let id = device.record.identity.id.clone();
                let mut granted = Vec::new();
                for filter in &subscribe.filters {
                    let known = Filter::parse(&filter.path, &id)
                        .ok_or_else(|| Offence::new(format!("a SUBSCRIBE of '{}'", filter.path)))?;
                    let qos = match filter.qos {
                        QoS::AtMostOnce => QoS::AtMostOnce,
                        QoS::AtLeastOnce | QoS::ExactlyOnce => QoS::AtLeastOnce,
                    };
                    granted.push((known, qos));
                }
                let kind = FaultKind::FailSubscribes;
                if self.strike(faults, kind, &id).is_some() {
                    let codes = vec![SubscribeReasonCode::Failure; granted.len()];
                    return Ok(Packet::SubAck(SubAck::new(subscribe.pkid, codes)).into());
                }
                for (filter, qos) in &granted {
                    device.subscribe(*filter, *qos as u8);
                }
                device.arrival.notify_waiters();
                self.save(&device.record);
                let codes = granted
                    .iter()
                    .map(|(_, qos)| SubscribeReasonCode::Success(*qos));
                Ok(Packet::SubAck(SubAck::new(subscribe.pkid, codes.collect())).into())
            }
            Packet::Unsubscribe(unsubscribe) => {
                let id = device.record.identity.id.clone();
                for topic in &unsubscribe.topics {
                    let filter = Filter::parse(topic, &id)
                        .ok_or_else(|| Offence::new(format!("an UNSUBSCRIBE of '{topic}'")))?;
                    device.unsubscribe(filter);
                }
                self.save(&device.record);
                Ok(Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid)).into())
            }
            Packet::PingReq => Ok(Packet::PingResp.into()),
            // The hub publishes with QoS 0 only, but an acknowledgement too many does no harm.
            Packet::PubAck(_) => Ok(Replies::default()),
            Packet::Connect(_) => Err(Offence::new("a second CONNECT")),
            Packet::ConnAck(_)
            | Packet::PubRec(_)
            | Packet::PubRel(_)
            | Packet::PubComp(_)
            | Packet::SubAck(_)
            | Packet::UnsubAck(_)
            | Packet::PingResp
            | Packet::Disconnect => Err(Offence::new("a packet a device may not send")),
        }
    }

    fn published(
        &self,
        device: &mut Device,
        faults: &mut Faults,
        meters: &mut Meters,
        publish: &Publish,
    ) -> Result<Duration, Offence> {
        let id = device.record.identity.id.clone();
        let upstream = Upstream::parse(&publish.topic, &device.record.identity.id)
            .ok_or_else(|| Offence::new(format!("a PUBLISH to '{}'", publish.topic)))?;
        match upstream {
            Upstream::Telemetry(mut properties) => {
                if publish.retain {
                    properties.push(("mqtt-retain".to_owned(), Some("true".to_owned())));
                }
                let hold = meters
                    .shape(Instant::now())
                    .ok_or_else(|| Offence::new("telemetry far beyond the throttle (429002)"))?;
                device.touch(false);
                device.keep_message(&properties, &publish.payload);
                self.changed();
                return Ok(hold);
            }
            Upstream::MethodAnswer { status, rid } => {
                let waiting = device
                    .link
                    .as_mut()
                    .and_then(|link| link.methods.remove(&rid));
                let kind = FaultKind::SwallowMethodAnswers;
                if self.strike(faults, kind, &id).is_some() {
                    // The caller waits in vain, as when an answer is lost on its way.
                    if let (Some(waiting), Some(link)) = (waiting, &mut device.link) {
                        link.methods.insert(rid, waiting);
                    }
                } else if let Some(waiting) = waiting {
                    // The caller may have given up: then the answer is late and ignored.
                    let _ = waiting.send((status, publish.payload.to_vec()));
                }
            }
            Upstream::TwinGet { rid } => {
                let read = self.read_twin(device, faults, meters);
                let answer = match read {
                    Ok(payload) => Answer {
                        topic: topics::twin_answer(200, &rid, None),
                        payload,
                    },
                    Err(error) => refusal(&rid, &error),
                };
                self.answer(device, faults, answer);
            }
            Upstream::TwinPatch { rid, version } => {
                if self
                    .strike(faults, FaultKind::DropBeforePatch, &id)
                    .is_some()
                {
                    return Err(Offence::new("dropped on request before a patch"));
                }
                let reported = meters
                    .take(Operation::TwinUpdate)
                    .and_then(|()| self.refuse_on_request(faults, FaultKind::FailTwinPatches, &id))
                    .and_then(|()| device.report(&publish.payload, version));
                self.save(&device.record);
                let answer = match reported {
                    Ok(version) => Answer {
                        topic: topics::twin_answer(204, &rid, Some(version)),
                        payload: Vec::new(),
                    },
                    Err(error) => refusal(&rid, &error),
                };
                if self
                    .strike(faults, FaultKind::DropAfterPatch, &id)
                    .is_some()
                {
                    return Err(Offence::new("dropped on request after a patch"));
                }
                self.answer(device, faults, answer);
            }
        }
        Ok(Duration::ZERO)
    }

    fn read_twin(
        &self,
        device: &Device,
        faults: &mut Faults,
        meters: &mut Meters,
    ) -> Result<Vec<u8>, HubError> {
        let id = &device.record.identity.id;
        if let Some(error) = device.twin_refusal() {
            return Err(error);
        }
        meters.take(Operation::TwinRead)?;
        self.refuse_on_request(faults, FaultKind::FailTwinReads, id)?;
        let mut twin = device.record.twin.device_view().to_string().into_bytes();
        if self.strike(faults, FaultKind::CorruptTwins, id).is_some() {
            twin.truncate(twin.len() / 2);
        }
        Ok(twin)
    }

    /// Sends a twin answer, if the device listens for one and no fault is in the way.
    fn answer(&self, device: &Device, faults: &mut Faults, answer: Answer) {
        let id = &device.record.identity.id;
        let Some(link) = &device.link else {
            return;
        };
        if !link.subscriptions.contains_key(&Filter::TwinAnswers)
            || self
                .strike(faults, FaultKind::SwallowTwinAnswers, id)
                .is_some()
        {
            return;
        }
        let delay = self.strike(faults, FaultKind::DelayTwinAnswers, id);
        // Fails only when the connection is ending; the answer is lost then, as on the real hub.
        link.send_after(delay.map(|fault| fault.delay()), answer.into());
    }

    pub(crate) fn refuse_on_request(
        &self,
        faults: &mut Faults,
        kind: FaultKind,
        id: &str,
    ) -> Result<(), HubError> {
        match self.strike(faults, kind, id) {
            Some(fault) => Err(fault.refusal()),
            None => Ok(()),
        }
    }
}

impl Device {
    fn subscribe(&mut self, filter: Filter, qos: u8) {
        if let Some(link) = &mut self.link {
            link.subscriptions.insert(filter, qos);
            if link.keeps_session {
                self.record.subscriptions.insert(filter, qos);
            }
        }
    }

    fn unsubscribe(&mut self, filter: Filter) {
        if let Some(link) = &mut self.link {
            link.subscriptions.remove(&filter);
            if link.keeps_session {
                self.record.subscriptions.remove(&filter);
            }
        }
    }

    fn twin_refusal(&self) -> Option<HubError> {
        let link = self.link.as_ref()?;
        (!link.has_api_version).then(|| {
            HubError::argument("The user name has no api-version, which twin requests need.")
        })
    }

    fn report(&mut self, payload: &[u8], version: Option<u64>) -> Result<u64, HubError> {
        if let Some(error) = self.twin_refusal() {
            return Err(error);
        }
        let patch: Value = serde_json::from_slice(payload).map_err(|error| {
            HubError::argument(format!("The reported properties are not JSON: {error}"))
        })?;
        let now = clock::stamp();
        let version = self.record.twin.report(&patch, version, &now)?;
        self.touch(false);
        self.reported_history.push(Reported {
            time: now,
            version,
            patch: String::from_utf8_lossy(payload).into(),
        });
        Ok(version)
    }
}

impl Link {
    /// Sends at once, or later; whether the connection was still there to be sent to.
    pub(crate) fn send_after(&self, delay: Option<Duration>, outgoing: Outgoing) -> bool {
        let Some(delay) = delay else {
            return self.outbox.send(outgoing).is_ok();
        };
        let outbox = self.outbox.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let _ = outbox.send(outgoing);
        });
        true
    }
}

impl From<Answer> for Outgoing {
    fn from(answer: Answer) -> Self {
        Self::Publish {
            topic: answer.topic,
            payload: answer.payload,
        }
    }
}

fn refusal(rid: &str, error: &HubError) -> Answer {
    Answer {
        topic: topics::twin_refusal(error.kind().status(), rid, error.retry_after()),
        payload: error.document().to_string().into_bytes(),
    }
}
