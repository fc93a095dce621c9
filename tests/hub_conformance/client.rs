//! A bare MQTT client with a device's identity: a second client, or a probe of what the hub does.

use std::{sync::Arc, time::Duration};

use fwupdated::platform::tls;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, Packet,
    Publish, QoS, TlsConfiguration, Transport,
};
use tokio::time::{Instant, sleep, timeout};

use super::{hub::Hub, service::sign};

/// For any packet that must come.
const PATIENCE: Duration = Duration::from_secs(60);

/// For the answer to a twin request.
const ANSWER: Duration = Duration::from_secs(20);

/// Between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(500);

/// A connection that stands.
pub(crate) struct Client {
    pub(crate) id: String,
    pub(crate) client: AsyncClient,
    pub(crate) session_present: bool,
    events: EventLoop,
}

/// How to connect.
pub(crate) struct Login<'a> {
    pub(crate) id: &'a str,
    pub(crate) key: &'a str,
    /// The hub that the user name names; the hub itself when `None`.
    pub(crate) hub_name: Option<&'a str>,
    /// Seconds from now until the token expires.
    pub(crate) token_life: i64,
    pub(crate) clean_session: bool,
}

impl<'a> Login<'a> {
    /// As a device should.
    pub(crate) fn new(id: &'a str, key: &'a str) -> Self {
        Self {
            id,
            key,
            hub_name: None,
            token_life: 3600,
            clean_session: false,
        }
    }
}

/// Why a hub let nobody in, for the notes.
fn refusal(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ConnectionRefused(code) => {
            let number = match code {
                ConnectReturnCode::Success => 0,
                ConnectReturnCode::RefusedProtocolVersion => 1,
                ConnectReturnCode::BadClientId => 2,
                ConnectReturnCode::ServiceUnavailable => 3,
                ConnectReturnCode::BadUserNamePassword => 4,
                ConnectReturnCode::NotAuthorized => 5,
            };
            format!("CONNACK {number}")
        }
        _ => "closed without CONNACK".to_owned(),
    }
}

impl Client {
    /// Connects; the hub's refusal is an answer.
    async fn connect(hub: &Hub, login: &Login<'_>) -> Result<Self, ConnectionError> {
        let Login { id, key, .. } = login;
        let host = hub.service.host();
        let named = login.hub_name.unwrap_or(host);
        let resource = format!("{host}/devices/{id}");
        let tls = tls::client_config(hub.ca_file.as_deref()).expect("CAs to trust");
        let mut options = MqttOptions::new(*id, host, hub.mqtt_port);
        options
            .set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::clone(&tls))))
            .set_credentials(
                format!("{named}/{id}/?api-version=2021-04-12"),
                sign(&resource, key, None, login.token_life),
            )
            .set_max_packet_size(300_000, 300_000)
            .set_clean_session(login.clean_session);
        let (client, mut events) = AsyncClient::new(options, 50);
        let connected = timeout(PATIENCE, async {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(ack))) => return Ok(ack.session_present),
                    Ok(_) => {}
                    Err(error) => return Err(error),
                }
            }
        });
        let session_present = connected.await.expect("an answer to CONNECT")?;
        Ok(Self {
            id: (*id).to_owned(),
            client,
            session_present,
            events,
        })
    }

    /// Connects with credentials that are right. What was changed a moment ago may take a while to be known.
    pub(crate) async fn up(hub: &Hub, login: &Login<'_>) -> Self {
        let began = Instant::now();
        loop {
            match Self::connect(hub, login).await {
                Ok(client) => return client,
                Err(error) => assert!(began.elapsed() < PATIENCE, "{}", refusal(&error)),
            }
            sleep(AGAIN).await;
        }
    }

    /// How a hub refuses credentials that are wrong, or are so since a moment ago.
    pub(crate) async fn refused(hub: &Hub, login: &Login<'_>) -> String {
        let began = Instant::now();
        loop {
            match Self::connect(hub, login).await {
                Err(error) => return refusal(&error),
                Ok(client) => client.leave().await,
            }
            assert!(began.elapsed() < PATIENCE, "{} is let in", login.id);
            sleep(AGAIN).await;
        }
    }

    /// The next packet from the hub, or how the connection ended.
    async fn next(&mut self) -> Result<Packet, ConnectionError> {
        loop {
            if let Event::Incoming(packet) = self.events.poll().await? {
                return Ok(packet);
            }
        }
    }

    /// Whether the hub ends the connection within `limit`.
    pub(crate) async fn ends_within(&mut self, limit: Duration) -> bool {
        timeout(limit, async { while self.next().await.is_ok() {} })
            .await
            .is_ok()
    }

    /// Subscribes, and returns what was granted: for each filter a QoS, or `None`.
    pub(crate) async fn subscribe(&mut self, filter: &str, qos: QoS) -> Option<QoS> {
        self.client.try_subscribe(filter, qos).unwrap();
        let granted = async {
            loop {
                match self.next().await {
                    Ok(Packet::SubAck(ack)) => match ack.return_codes.first() {
                        Some(rumqttc::SubscribeReasonCode::Success(qos)) => return Some(*qos),
                        _ => return None,
                    },
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        };
        timeout(PATIENCE, granted).await.expect("SUBACK or an end")
    }

    /// Sends with QoS 0.
    pub(crate) fn send(&self, topic: &str, body: &str) {
        self.client
            .try_publish(topic, QoS::AtMostOnce, false, body)
            .expect("room for a packet");
    }

    /// The next message whose topic begins with `prefix`; `None` when there is none within `limit`, or the hub
    /// ended the connection.
    pub(crate) async fn message(&mut self, prefix: &str, limit: Duration) -> Option<Publish> {
        let found = async {
            loop {
                match self.next().await {
                    Ok(Packet::Publish(message)) if topic(&message).starts_with(prefix) => {
                        return Some(message);
                    }
                    Ok(_) => {}
                    Err(_) => return None,
                }
            }
        };
        timeout(limit, found).await.unwrap_or(None)
    }

    /// Asks for something of the twin and returns topic and body of the answer.
    pub(crate) async fn ask_twin(&mut self, topic: &str, body: &str) -> Option<(String, String)> {
        self.send(topic, body);
        let answer = self.message("$iothub/twin/res/", ANSWER).await?;
        let body = String::from_utf8_lossy(&answer.payload).into_owned();
        Some((self::topic(&answer).to_owned(), body))
    }

    /// Leaves as a device should.
    pub(crate) async fn leave(mut self) {
        self.client.try_disconnect().expect("room for a packet");
        // Until the connection is gone.
        self.ends_within(PATIENCE).await;
    }
}

/// The topic of a message.
pub(crate) fn topic(message: &Publish) -> &str {
    std::str::from_utf8(message.topic.as_ref()).expect("topics are UTF-8")
}
