//! The packets that we send.

use std::{io, time::Duration};

use rumqttc::{Connect, Login, Packet, PubAck, Publish, QoS, Subscribe, SubscribeFilter};

use super::wire::Wire;
use crate::hub::credentials::SasToken;

/// CONNECT that keeps the session; without a password where the certificate says who we are.
pub(super) fn connect(
    client_id: &str,
    user_name: String,
    password: Option<&SasToken>,
    keep_alive: Duration,
) -> Connect {
    let mut connect = Connect::new(client_id);
    connect.clean_session = false;
    connect.keep_alive = u16::try_from(keep_alive.as_secs()).unwrap_or(u16::MAX);
    connect.login = Some(Login {
        username: user_name,
        // The codec leaves an empty password out.
        password: password.map_or("", SasToken::secret).to_owned(),
    });
    connect
}

/// SUBSCRIBE to `filters` with QoS 0.
pub(super) fn subscribe(filters: &[&str]) -> Packet {
    let filters = filters
        .iter()
        .map(|filter| SubscribeFilter::new((*filter).to_owned(), QoS::AtMostOnce));
    let mut subscribe = Subscribe::new_many(filters);
    // Any id but zero; it is the only packet of ours that has one.
    subscribe.pkid = 1;
    Packet::Subscribe(subscribe)
}

/// PUBLISH with QoS 0: the hub's answer by request id says more than a PUBACK would.
pub(super) fn publish(topic: String, payload: Vec<u8>) -> Packet {
    Packet::Publish(Publish::new(topic, QoS::AtMostOnce, payload))
}

/// Acknowledges a message that asks for it.
pub(super) async fn acknowledge(wire: &mut Wire, publish: &Publish) -> io::Result<()> {
    match publish.qos {
        QoS::AtMostOnce => Ok(()),
        QoS::AtLeastOnce => {
            wire.write(&[Packet::PubAck(PubAck::new(publish.pkid))])
                .await
        }
        QoS::ExactlyOnce => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message with QoS 2 came, which nobody subscribed to",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;

    #[test]
    fn without_a_token_connect_has_a_user_name_and_no_password() {
        let packet = connect("pi", "h/pi/?x".to_owned(), None, Duration::from_secs(180));
        let mut bytes = BytesMut::new();
        Packet::Connect(packet).write(&mut bytes, 1000).unwrap();
        // Fixed header of two bytes, "MQTT" and level, then the flags: user name, no password, session kept.
        assert_eq!(bytes[9], 0b1000_0000);
        assert_eq!(bytes[10..12], [0, 180]);
        assert!(bytes.ends_with(b"h/pi/?x"));
    }
}
