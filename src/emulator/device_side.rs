//! What the hub does with each packet of a connected device: subscriptions, telemetry, twin requests and
//! method answers.

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Packet, PubAck, Publish, SubAck, SubscribeReasonCode, UnsubAck};
use serde_json::Value;

use crate::clock;
use crate::faults::{Faults, TwinAnswer};
use crate::hub::{Device, Hub, Link, Outgoing, Reported};
use crate::hub_error::{HubError, Kind};
use crate::topics::{self, Filter, Upstream};

/// Why the hub closes a connection, in words for the logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offence(pub(crate) String);

impl Offence {
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// A twin answer on its way.
struct Answer {
    topic: String,
    payload: Vec<u8>,
}

impl Hub {
    /// Handles a packet from connection `link` of `device`; the packets to send back at once. What goes
    /// through the outbox (twin answers) follows them.
    pub(crate) fn receive(
        &self,
        device: &str,
        link: u64,
        packet: Packet,
    ) -> Result<Vec<Packet>, Offence> {
        let mut state = self.lock();
        let state = &mut *state;
        let (devices, faults) = (&mut state.devices, &mut state.faults);
        let device = devices
            .get_mut(device)
            .filter(|device| device.link.as_ref().is_some_and(|live| live.id == link))
            // Closed a moment ago: the reason is already on its way.
            .ok_or_else(|| Offence::new("the connection was replaced"))?;
        match packet {
            Packet::Publish(publish) => {
                let ack = match publish.qos {
                    QoS::AtMostOnce => Vec::new(),
                    QoS::AtLeastOnce => vec![Packet::PubAck(PubAck::new(publish.pkid))],
                    QoS::ExactlyOnce => return Err(Offence::new("a PUBLISH with QoS 2")),
                };
                self.published(device, faults, &publish)?;
                Ok(ack)
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
                for (filter, qos) in &granted {
                    device.subscribe(*filter, *qos as u8);
                }
                device.arrival.notify_waiters();
                self.save(&device.record);
                let codes = granted
                    .iter()
                    .map(|(_, qos)| SubscribeReasonCode::Success(*qos));
                Ok(vec![Packet::SubAck(SubAck::new(
                    subscribe.pkid,
                    codes.collect(),
                ))])
            }
            Packet::Unsubscribe(unsubscribe) => {
                let id = device.record.identity.id.clone();
                for topic in &unsubscribe.topics {
                    let filter = Filter::parse(topic, &id)
                        .ok_or_else(|| Offence::new(format!("an UNSUBSCRIBE of '{topic}'")))?;
                    device.unsubscribe(filter);
                }
                self.save(&device.record);
                Ok(vec![Packet::UnsubAck(UnsubAck::new(unsubscribe.pkid))])
            }
            Packet::PingReq => Ok(vec![Packet::PingResp]),
            // The hub publishes with QoS 0 only, but an acknowledgement too many does no harm.
            Packet::PubAck(_) => Ok(Vec::new()),
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
        publish: &Publish,
    ) -> Result<(), Offence> {
        let upstream = Upstream::parse(&publish.topic, &device.record.identity.id)
            .ok_or_else(|| Offence::new(format!("a PUBLISH to '{}'", publish.topic)))?;
        match upstream {
            Upstream::Telemetry(mut properties) => {
                if publish.retain {
                    properties.push(("mqtt-retain".to_owned(), Some("true".to_owned())));
                }
                device.touch(false);
                device.keep_message(&properties, &publish.payload);
                self.changed();
            }
            Upstream::MethodAnswer { status, rid } => {
                let waiting = device
                    .link
                    .as_mut()
                    .and_then(|link| link.methods.remove(&rid));
                if let Some(waiting) = waiting {
                    // The caller may have given up: then the answer is late and ignored.
                    let _ = waiting.send((status, publish.payload.to_vec()));
                }
            }
            Upstream::TwinGet { rid } => {
                let answer = match device.twin_refusal() {
                    Some(error) => refusal(&rid, &error),
                    None => Answer {
                        topic: topics::twin_answer(200, &rid, None),
                        payload: device.record.twin.device_view().to_string().into_bytes(),
                    },
                };
                device.answer(faults, answer);
            }
            Upstream::TwinPatch { rid, version } => {
                let answer = match device.report(faults, &publish.payload, version) {
                    Ok(version) => Answer {
                        topic: topics::twin_answer(204, &rid, Some(version)),
                        payload: Vec::new(),
                    },
                    Err(error) => refusal(&rid, &error),
                };
                device.answer(faults, answer);
                self.save(&device.record);
            }
        }
        Ok(())
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

    fn report(
        &mut self,
        faults: &mut Faults,
        payload: &[u8],
        version: Option<u64>,
    ) -> Result<u64, HubError> {
        if let Some(error) = self.twin_refusal() {
            return Err(error);
        }
        if let Some(status) = faults.next_patch_failure() {
            return Err(HubError::new(Kind::Injected(status), "Failed on request."));
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

    /// Sends a twin answer, if the device listens for one and no fault is in the way.
    fn answer(&self, faults: &mut Faults, answer: Answer) {
        let Some(link) = &self.link else {
            return;
        };
        if !link.subscriptions.contains_key(&Filter::TwinAnswers) {
            return;
        }
        match faults.next_twin_answer() {
            TwinAnswer::Swallow => {}
            TwinAnswer::Send => answer.send(link),
            TwinAnswer::SendAfter(delay) => {
                let outbox = link.outbox.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    let _ = outbox.send(answer.into());
                });
            }
        }
    }
}

impl Answer {
    fn send(self, link: &Link) {
        // Fails only when the connection is ending; the answer is lost then, as on the real hub.
        let _ = link.outbox.send(self.into());
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
        topic: topics::twin_answer(error.kind().status(), rid, None),
        payload: error.document().to_string().into_bytes(),
    }
}
