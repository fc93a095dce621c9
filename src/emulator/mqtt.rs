//! One MQTT connection, over TLS or WebSocket: bytes to packets and back, keep-alive, token expiry.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Codec, ConnAck, Connect, ConnectReturnCode, Packet, Publish};
use rumqttc::mqttbytes::{Error as CodecError, Protocol};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::codec::Framed;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::clock;
use crate::connect::{Accepted, Refused};
use crate::device_ca::Chain;
use crate::dps_side::Registrant;
use crate::hub::{Hub, Outgoing};

/// Largest packet a device may send.
const INCOMING_BYTES: usize = 256 * 1024;
/// Largest packet the hub sends; a twin has at most a third of it.
const OUTGOING_BYTES: usize = 512 * 1024;
/// How long a client may take to send its CONNECT, and to take a packet.
const PATIENCE: Duration = Duration::from_secs(30);
/// 1.5 times the largest useful keep-alive of 1177 s; also for a keep-alive of 0.
const LONGEST_SILENCE: Duration = Duration::from_secs(1767);
/// Timers are cut to this, so that a token that never expires is no overflow.
const FAR_FUTURE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Serves one client until either side ends it. `chain` is what it showed in the handshake.
pub(crate) async fn serve<S>(hub: Arc<Hub>, stream: S, chain: Chain, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let codec = Codec {
        max_incoming_size: INCOMING_BYTES,
        max_outgoing_size: OUTGOING_BYTES,
    };
    let mut connection = Connection {
        hub,
        framed: Framed::new(stream, codec),
        name: "?".to_owned(),
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = connection.run(chain) => {}
    }
}

/// A client's connection.
pub(crate) struct Connection<S> {
    pub(crate) hub: Arc<Hub>,
    pub(crate) framed: Framed<S, Codec>,
    /// The client id, for the logs.
    name: String,
}

/// How a connection ended.
pub(crate) enum End {
    /// The client said DISCONNECT.
    Clean,
    /// For this reason.
    Abrupt(String),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    async fn run(&mut self, chain: Chain) {
        let Some(connect) = self.first_packet().await else {
            return;
        };
        let provisioning = Registrant::of(&connect);
        self.name = match &provisioning {
            Some(_) => format!("dps/{}", connect.client_id),
            None => connect.client_id.clone(),
        };
        let received = Packet::Connect(connect.clone());
        self.hub.wire.received(&self.name, &received);
        if let (Protocol::V4, Some(registrant)) = (connect.protocol, provisioning) {
            return match self.provision(&connect, registrant, chain).await {
                Ok(end) => self.note_end(&end),
                Err(refused) => self.refuse(&refused).await,
            };
        }
        let accepted = match connect.protocol {
            Protocol::V4 => self.hub.connect(&connect, &chain),
            Protocol::V5 => {
                return self
                    .refuse_code(ConnectReturnCode::RefusedProtocolVersion)
                    .await;
            }
        };
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(refused) => return self.refuse(&refused).await,
        };
        info!("'{}' connected", accepted.device);
        let (device, link) = (accepted.device.clone(), accepted.link);
        // Tells the hub however this ends, also when the task is cancelled by a stop.
        let mut farewell = Farewell {
            hub: self.hub.clone(),
            device,
            link,
            clean: false,
        };
        let end = self.converse(&connect, accepted).await;
        farewell.clean = matches!(end, End::Clean);
        self.note_end(&end);
    }

    fn note_end(&self, end: &End) {
        match end {
            End::Clean => info!("'{}' disconnected", self.name),
            End::Abrupt(reason) => {
                self.hub.wire.note(&self.name, &format!("closed: {reason}"));
                info!("closed the connection of '{}': {reason}", self.name);
            }
        }
    }

    async fn first_packet(&mut self) -> Option<Connect> {
        match timeout(PATIENCE, self.framed.next()).await {
            Ok(Some(Ok(Packet::Connect(connect)))) => Some(connect),
            Ok(Some(Err(CodecError::InvalidProtocolLevel(level)))) => {
                debug!("a client speaks MQTT protocol level {level}");
                self.refuse_code(ConnectReturnCode::RefusedProtocolVersion)
                    .await;
                None
            }
            Ok(Some(Ok(packet))) => {
                debug!("the first packet of a client is no CONNECT: {packet:?}");
                None
            }
            Ok(Some(Err(error))) => {
                debug!("the first packet of a client cannot be read: {error}");
                None
            }
            Ok(None) | Err(_) => None,
        }
    }

    async fn refuse(&mut self, refused: &Refused) {
        self.hub.wire.note(&self.name, &refused.reason);
        if let Some(code) = refused.code {
            self.refuse_code(code).await;
        }
    }

    async fn refuse_code(&mut self, code: ConnectReturnCode) {
        // If it does not arrive the client sees a close, which also says no.
        let _ = self.send(Packet::ConnAck(ConnAck::new(code, false))).await;
        let _ = timeout(PATIENCE, SinkExt::<Packet>::close(&mut self.framed)).await;
    }

    async fn converse(&mut self, connect: &Connect, mut accepted: Accepted) -> End {
        if let Err(reason) = self.welcome().await {
            return End::Abrupt(reason);
        }
        let silence = longest_silence(connect.keep_alive);
        let mut silent_at = Instant::now() + silence;
        let expired_at = accepted.until.map_or(FAR_FUTURE, |until| {
            Duration::from_secs(until)
                .saturating_sub(clock::since_epoch())
                .min(FAR_FUTURE)
        });
        let expired_at = Instant::now() + expired_at;
        let mut held_until = None;
        loop {
            let outcome = tokio::select! {
                // In this order, so that a close is not kept waiting by a busy client.
                biased;
                outgoing = accepted.inbox.recv() => match outgoing {
                    Some(Outgoing::Publish { topic, payload }) => {
                        let publish = Publish::new(topic, QoS::AtMostOnce, payload);
                        self.send(Packet::Publish(publish)).await.map(|()| false)
                    }
                    Some(Outgoing::Close(reason)) => Err(reason),
                    None => Err("the hub let go of the connection".to_owned()),
                },
                () = sleep_until(expired_at) => Err("the token expired".to_owned()),
                () = sleep_until(silent_at) => Err(format!(
                    "nothing was heard for {} s, 1.5 times the keep-alive",
                    silence.as_secs()
                )),
                () = sleep_until(held_until.unwrap_or(silent_at)), if held_until.is_some() => {
                    held_until = None;
                    Ok(false)
                }
                packet = self.framed.next(), if held_until.is_none() => {
                    let received = self.received(&accepted, packet).await;
                    let now = Instant::now();
                    let hold = received.as_ref().ok().copied().flatten().unwrap_or_default();
                    held_until = (!hold.is_zero()).then(|| now + hold);
                    silent_at = now + hold + silence;
                    received.map(|received| received.is_none())
                }
            };
            match outcome {
                Ok(false) => {}
                Ok(true) => return End::Clean,
                Err(reason) => return End::Abrupt(reason),
            }
        }
    }

    /// Handles what came from the client: how long not to read on, or `None` after a DISCONNECT.
    async fn received(
        &mut self,
        accepted: &Accepted,
        packet: Option<Result<Packet, CodecError>>,
    ) -> Result<Option<Duration>, String> {
        let Some(packet) = self.read(packet)? else {
            return Ok(None);
        };
        let replies = self
            .hub
            .receive(&accepted.device, accepted.link, packet)
            .map_err(|offence| offence.0)?;
        for reply in replies.packets {
            self.send(reply).await?;
        }
        Ok(Some(replies.hold))
    }

    /// A packet, noted; `None` for a DISCONNECT, and in words what is none.
    pub(crate) fn read(
        &self,
        packet: Option<Result<Packet, CodecError>>,
    ) -> Result<Option<Packet>, String> {
        let packet = match packet {
            None => return Err("the device closed it".to_owned()),
            Some(Err(CodecError::Io(error))) => return Err(format!("the device is gone: {error}")),
            Some(Err(error)) => return Err(format!("a malformed packet: {error}")),
            Some(Ok(packet)) => packet,
        };
        self.hub.wire.received(&self.name, &packet);
        Ok((packet != Packet::Disconnect).then_some(packet))
    }

    /// Tells the client that it is in.
    pub(crate) async fn welcome(&mut self) -> Result<(), String> {
        // The official SDKs are served a 0 here too; a kept session works all the same.
        let ack = ConnAck::new(ConnectReturnCode::Success, false);
        self.send(Packet::ConnAck(ack)).await
    }

    pub(crate) async fn send(&mut self, packet: Packet) -> Result<(), String> {
        self.hub.wire.sent(&self.name, &packet);
        match timeout(PATIENCE, self.framed.send(packet)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("cannot send: {error}")),
            Err(_) => Err("the device does not read what is sent".to_owned()),
        }
    }
}

struct Farewell {
    hub: Arc<Hub>,
    device: String,
    link: u64,
    clean: bool,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        self.hub.disconnected(&self.device, self.link, self.clean);
    }
}

/// How long a client with this keep-alive may be silent.
pub(crate) fn longest_silence(keep_alive: u16) -> Duration {
    match keep_alive {
        0 => LONGEST_SILENCE,
        seconds => (Duration::from_secs(seconds.into()) * 3 / 2).min(LONGEST_SILENCE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_one_and_a_half_keep_alives_up_to_a_cap() {
        assert_eq!(longest_silence(60), Duration::from_secs(90));
        assert_eq!(longest_silence(1), Duration::from_millis(1500));
        assert_eq!(longest_silence(1177), Duration::from_millis(1_765_500));
        assert_eq!(longest_silence(u16::MAX), LONGEST_SILENCE);
        assert_eq!(longest_silence(0), LONGEST_SILENCE);
    }
}
