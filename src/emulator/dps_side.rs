//! One device at the provisioning service: CONNECT, register, ask what became of it. The service shares the
//! hub's listeners; the user name says which of the two is meant. Sessions are never kept.

use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{
    Connect, Packet, PubAck, Publish, SubAck, SubscribeReasonCode, UnsubAck,
};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};

use futures_util::StreamExt;

use crate::clock;
use crate::connect::{Proof, Refused};
use crate::device_ca::Chain;
use crate::device_side::Offence;
use crate::dps::{Admission, Progress, registration_id};
use crate::hub::Hub;
use crate::hub_error::HubError;
use crate::mqtt::{Connection, End, longest_silence};
use crate::percent;
use crate::sas::Token;

/// The one filter that may be subscribed to.
const ANSWERS: &str = "$dps/registrations/res/#";

/// Who wants to be provisioned, by its user name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registrant {
    scope: String,
    id: String,
}

/// A device that was let in.
struct Session {
    id: String,
    admission: Admission,
    listens: bool,
}

/// What a device publishes.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Register { rid: String },
    Status { rid: String, operation: String },
}

impl Registrant {
    /// Who sends this CONNECT, if it is meant for the provisioning service.
    pub(crate) fn of(connect: &Connect) -> Option<Self> {
        Self::parse(&connect.login.as_ref()?.username)
    }

    /// Reads `{idScope}/registrations/{registrationId}/api-version=…&…`.
    fn parse(user: &str) -> Option<Self> {
        let (scope, rest) = user.split_once("/registrations/")?;
        let (id, query) = rest.split_once('/')?;
        let is_it = !scope.contains('/') && query.starts_with("api-version=");
        is_it.then(|| Self {
            scope: scope.to_owned(),
            id: id.to_owned(),
        })
    }
}

impl Request {
    fn parse(topic: &str) -> Option<Self> {
        let rest = topic.strip_prefix("$dps/registrations/")?;
        let (path, query) = rest.split_once("/?")?;
        // The request id is the device's own, and goes back as it was written.
        let rid = query
            .split('&')
            .find_map(|member| member.strip_prefix("$rid="));
        let rid = rid?.to_owned();
        match path {
            "PUT/iotdps-register" => Some(Self::Register { rid }),
            "GET/iotdps-get-operationstatus" => {
                let operation = percent::bag_value(query, "operationId")?;
                Some(Self::Status { rid, operation })
            }
            _ => None,
        }
    }
}

impl Hub {
    fn admit_registrant(
        &self,
        connect: &Connect,
        registrant: &Registrant,
        chain: Chain,
    ) -> Result<Session, Refused> {
        let mut state = self.lock();
        let state = &mut *state;
        self.admit_any(state, &registrant.id)?;
        let scope = &state.dps.settings.id_scope;
        if !registrant.scope.eq_ignore_ascii_case(scope) {
            return Err(Refused::unauthorised(format!(
                "the user name is for the id scope '{}', this one is '{scope}'",
                registrant.scope
            )));
        }
        if connect.client_id != registrant.id {
            return Err(Refused::unauthorised(
                "the client id is not the registration id of the user name",
            ));
        }
        let id = registration_id(&registrant.id)
            .map_err(|error| Refused::unauthorised(error.message()))?;
        let password = connect.login.as_ref().map(|login| login.password.as_str());
        let proof = match password.unwrap_or_default() {
            "" => Proof::Certificate(chain),
            password => Proof::Token(check_token(password, scope, &registrant.id)?),
        };
        let admission = state.dps.admit(&id, &proof, &state.device_cas);
        Ok(Session {
            admission: admission.map_err(Refused::unauthorised)?,
            id,
            listens: false,
        })
    }

    /// Carries out what was published: the answer's topic and payload.
    fn answer_registrant(
        &self,
        session: &Session,
        publish: &Publish,
    ) -> Result<(String, Vec<u8>), Offence> {
        let request = Request::parse(&publish.topic)
            .ok_or_else(|| Offence::new(format!("a PUBLISH to '{}'", publish.topic)))?;
        let (rid, progress) = match &request {
            Request::Register { rid } => (
                rid,
                self.register(&session.id, &session.admission, &publish.payload),
            ),
            Request::Status { rid, operation } => (
                rid,
                self.operation_status(&session.id, &session.admission, operation),
            ),
        };
        let retry_after = |seconds: Option<u32>| match seconds {
            Some(seconds) => format!("&retry-after={seconds}"),
            None => String::new(),
        };
        let (status, wait, body) = match progress {
            Ok(Progress::Assigning(operation)) => {
                let seconds = self.lock().dps.settings.retry_after;
                let body = json!({ "operationId": operation, "status": "assigning" });
                (202, Some(seconds), body)
            }
            Ok(Progress::Final(body)) => (200, None, body),
            Err(error) => refusal(&error),
        };
        let topic = format!(
            "$dps/registrations/res/{status}/?$rid={rid}{}",
            retry_after(wait)
        );
        Ok((topic, body.to_string().into_bytes()))
    }
}

fn refusal(error: &HubError) -> (u16, Option<u32>, serde_json::Value) {
    (error.kind().status(), error.retry_after(), error.document())
}

fn check_token(password: &str, scope: &str, id: &str) -> Result<Token, Refused> {
    let token = Token::parse(password).map_err(|error| Refused::unauthorised(error.to_string()))?;
    // Some SDKs leave skn out.
    if token
        .policy
        .as_deref()
        .is_some_and(|policy| policy != "registration")
    {
        return Err(Refused::unauthorised(
            "the token's policy (skn) must be 'registration'",
        ));
    }
    if !token.covers(scope, &["registrations", id]) {
        return Err(Refused::unauthorised(
            "the token's resource (sr) does not cover this registration of this id scope",
        ));
    }
    let now = clock::unix_seconds();
    if token.expiry <= now {
        return Err(Refused::unauthorised(format!(
            "the token expired {} s ago",
            now - token.expiry
        )));
    }
    Ok(token)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    /// Serves a device that wants to be provisioned until either side ends it.
    pub(crate) async fn provision(
        &mut self,
        connect: &Connect,
        registrant: Registrant,
        chain: Chain,
    ) -> Result<End, Refused> {
        let mut session = self.hub.admit_registrant(connect, &registrant, chain)?;
        Ok(match self.attend(connect, &mut session).await {
            Ok(()) => End::Clean,
            Err(reason) => End::Abrupt(reason),
        })
    }

    async fn attend(&mut self, connect: &Connect, session: &mut Session) -> Result<(), String> {
        self.welcome().await?;
        let silence = longest_silence(connect.keep_alive);
        let mut silent_at = Instant::now() + silence;
        let mut changes = self.hub.changes();
        loop {
            let packet = tokio::select! {
                () = sleep_until(silent_at) => {
                    return Err("nothing was heard for too long".to_owned());
                }
                _ = changes.changed() => {
                    if self.hub.lock().faults.is_down() {
                        return Err("the hub is down on request".to_owned());
                    }
                    continue;
                }
                packet = self.framed.next() => packet,
            };
            silent_at = Instant::now() + silence;
            let Some(packet) = self.read(packet)? else {
                return Ok(());
            };
            let (replies, answer) = self.registrant_sent(session, packet).map_err(|why| why.0)?;
            if let Some(reply) = replies {
                self.send(reply).await?;
            }
            if let Some((topic, payload)) = answer
                && session.listens
            {
                let publish = Publish::new(topic, QoS::AtMostOnce, payload);
                self.send(Packet::Publish(publish)).await?;
            }
        }
    }

    /// The acknowledgement and the answer that a packet gets.
    #[allow(clippy::type_complexity, reason = "named nowhere else")]
    fn registrant_sent(
        &self,
        session: &mut Session,
        packet: Packet,
    ) -> Result<(Option<Packet>, Option<(String, Vec<u8>)>), Offence> {
        match packet {
            Packet::Publish(publish) => {
                let ack = match publish.qos {
                    QoS::AtMostOnce => None,
                    QoS::AtLeastOnce => Some(Packet::PubAck(PubAck::new(publish.pkid))),
                    QoS::ExactlyOnce => return Err(Offence::new("a PUBLISH with QoS 2")),
                };
                Ok((ack, Some(self.hub.answer_registrant(session, &publish)?)))
            }
            Packet::Subscribe(subscribe) => {
                let mut codes = Vec::new();
                for filter in &subscribe.filters {
                    check_filter("a SUBSCRIBE", &filter.path)?;
                    let granted = match filter.qos {
                        QoS::AtMostOnce => QoS::AtMostOnce,
                        QoS::AtLeastOnce | QoS::ExactlyOnce => QoS::AtLeastOnce,
                    };
                    codes.push(SubscribeReasonCode::Success(granted));
                }
                session.listens = true;
                let ack = SubAck::new(subscribe.pkid, codes);
                Ok((Some(Packet::SubAck(ack)), None))
            }
            Packet::Unsubscribe(unsubscribe) => {
                for filter in &unsubscribe.topics {
                    check_filter("an UNSUBSCRIBE", filter)?;
                }
                session.listens = false;
                let ack = UnsubAck::new(unsubscribe.pkid);
                Ok((Some(Packet::UnsubAck(ack)), None))
            }
            Packet::PingReq => Ok((Some(Packet::PingResp), None)),
            Packet::PubAck(_) => Ok((None, None)),
            other => Err(Offence::new(format!(
                "a packet that a device may not send: {other:?}"
            ))),
        }
    }
}

fn check_filter(what: &str, filter: &str) -> Result<(), Offence> {
    match filter == ANSWERS {
        true => Ok(()),
        false => Err(Offence::new(format!("{what} of '{filter}'"))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn user_names_of_the_service_are_told_from_the_hubs() {
        let of = |user: &str| Registrant::parse(user).map(|who| (who.scope, who.id));
        let who = Some(("0ne1".to_owned(), "pi-01".to_owned()));
        assert_eq!(of("0ne1/registrations/pi-01/api-version=2019-03-31"), who);
        let with_version = "0ne1/registrations/pi-01/api-version=2019-03-31&ClientVersion=x%2F1";
        assert_eq!(of(with_version), who);
        for hub in [
            "h/pi/?api-version=2021-04-12",
            "h/registrations/?api-version=2021-04-12",
            "h/registrations/module/?api-version=2021-04-12",
            "h/pi/api-version=2016-11-14",
            "",
        ] {
            assert_eq!(of(hub), None, "{hub}");
        }
    }

    #[test]
    fn both_requests_are_understood_and_nothing_else() {
        let rid = "1".to_owned();
        assert_eq!(
            Request::parse("$dps/registrations/PUT/iotdps-register/?$rid=1"),
            Some(Request::Register { rid: rid.clone() })
        );
        assert_eq!(
            Request::parse(
                "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=1&operationId=4.a"
            ),
            Some(Request::Status {
                rid,
                operation: "4.a".to_owned()
            })
        );
        for bad in [
            "$dps/registrations/PUT/iotdps-register/",
            "$dps/registrations/PUT/iotdps-register/?rid=1",
            "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=1",
            "$dps/registrations/DELETE/x/?$rid=1",
            "devices/pi/messages/events/",
        ] {
            assert_eq!(Request::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in ".*(/registrations/|/\\?\\$rid=)?.*") {
            let _ = Registrant::parse(&text);
            let _ = Request::parse(&format!("$dps/registrations/{text}"));
        }
    }
}
