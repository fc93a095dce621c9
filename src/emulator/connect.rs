//! CONNECT: who may come in, and what becomes of an older connection of the same device.

use std::collections::{BTreeMap, HashMap};

use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode};
use tokio::sync::mpsc;
use tracing::info;

use crate::certificates::{common_name, thumbprints};
use crate::clock;
use crate::device_ca::{Chain, DeviceCas};
use crate::fault_kind::FaultKind;
use crate::hub::{Device, Hub, Link, Outgoing, State};
use crate::hub_error::HubError;
use crate::policies::Right;
use crate::registry::Credentials;
use crate::sas::Token;
use crate::throttle::Operation;
use crate::topics::Upstream;
use crate::user_name::UserName;

/// A CONNECT that was accepted.
pub(crate) struct Accepted {
    pub(crate) device: String,
    pub(crate) link: u64,
    pub(crate) inbox: mpsc::UnboundedReceiver<Outgoing>,
    /// When the token runs out, grace included; seconds since 1970.
    pub(crate) until: Option<u64>,
}

/// What a connection proved its identity with.
pub(crate) enum Proof {
    Token(Token),
    Certificate(Chain),
    /// Nothing: it is let in on request, to stand in the device's place.
    Impostor,
}

/// A CONNECT that was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// What CONNACK says; without one the connection is just closed.
    pub(crate) code: Option<ConnectReturnCode>,
    pub(crate) reason: String,
}

impl Refused {
    fn new(code: ConnectReturnCode, reason: impl Into<String>) -> Self {
        Self {
            code: Some(code),
            reason: reason.into(),
        }
    }

    pub(crate) fn unauthorised(reason: impl Into<String>) -> Self {
        Self::new(ConnectReturnCode::NotAuthorized, reason)
    }
}

impl Proof {
    /// Whether it still proves the identity of a device that has these credentials now.
    pub(crate) fn fits(&self, credentials: &Credentials) -> bool {
        match (self, credentials) {
            // A hub policy made it, not the device's own key.
            (Self::Token(token), _) if token.policy.is_some() => true,
            (Self::Token(token), Credentials::Sas { primary, secondary }) => {
                token.signed_by(primary) || token.signed_by(secondary)
            }
            (Self::Certificate(chain), Credentials::SelfSigned { primary, secondary }) => {
                let shown = chain.leaf().map(|leaf| thumbprints(leaf));
                [primary, secondary].into_iter().flatten().any(|known| {
                    let same = |print: &String| print.eq_ignore_ascii_case(known);
                    shown.iter().flatten().any(same)
                })
            }
            // The chain was good when it connected.
            (Self::Certificate(_), Credentials::CertificateAuthority) => true,
            (Self::Impostor, _) => true,
            (
                Self::Token(_),
                Credentials::SelfSigned { .. } | Credentials::CertificateAuthority,
            )
            | (Self::Certificate(_), Credentials::Sas { .. }) => false,
        }
    }
}

impl Hub {
    /// Judges a CONNECT. Accepting it restores the session and closes an older connection of the device.
    pub(crate) fn connect(&self, connect: &Connect, chain: &Chain) -> Result<Accepted, Refused> {
        let mut state = self.lock();
        let result = self.admit(&mut state, connect, chain);
        if let Err(refused) = &result {
            info!(
                "refused a CONNECT of '{}': {}",
                connect.client_id, refused.reason
            );
            if let Some(device) = state.devices.get_mut(&connect.client_id) {
                device.refusals += 1;
            }
        }
        self.changed();
        result
    }

    fn admit(
        &self,
        state: &mut State,
        connect: &Connect,
        chain: &Chain,
    ) -> Result<Accepted, Refused> {
        self.admit_any(state, &connect.client_id)?;
        let id = connect.client_id.as_str();
        if id.is_empty() {
            let code = ConnectReturnCode::BadClientId;
            return Err(Refused::new(code, "the client id is empty"));
        }
        let login = connect
            .login
            .as_ref()
            .ok_or_else(|| Refused::unauthorised("there is no user name"))?;
        let user = UserName::parse(&login.username).ok_or_else(|| {
            Refused::unauthorised("the user name is not {hub}/{device}/?api-version=...")
        })?;
        if !user.hub.eq_ignore_ascii_case(&self.name) {
            return Err(Refused::unauthorised(format!(
                "the user name is for the hub '{}', this one is '{}'",
                user.hub, self.name
            )));
        }
        if user.client != id {
            return Err(Refused::unauthorised(format!(
                "the user name is for '{}', the client id is '{id}'",
                user.client
            )));
        }
        if id.contains('/') {
            return Err(Refused::unauthorised("this emulator has no modules"));
        }
        let device = state
            .devices
            .get(id)
            .ok_or_else(|| Refused::unauthorised("the device is not registered"))?;
        if !device.record.identity.enabled {
            return Err(Refused::unauthorised("the device is disabled"));
        }
        let proof = match login.password.as_str() {
            "" => {
                check_certificate(&state.device_cas, device, chain)?;
                Proof::Certificate(chain.clone())
            }
            password => Proof::Token(self.check_token(state, device, id, password)?),
        };
        let will = match &connect.last_will {
            None => None,
            Some(will) => match Upstream::parse(&will.topic, id) {
                Some(Upstream::Telemetry(_)) => Some((will.topic.clone(), will.message.to_vec())),
                _ => return Err(Refused::unauthorised("the will's topic is not allowed")),
            },
        };
        let mut until = None;
        if let Proof::Token(token) = &proof {
            until = Some(token.expiry.saturating_add(self.token_grace.as_secs()));
            state.tokens.last_accepted = clock::unix_seconds();
            state.tokens.seen.insert(token.fingerprint());
        }
        state.last_link += 1;
        let id = id.to_owned();
        let number = state.last_link;
        let (outbox, inbox) = mpsc::unbounded_channel();
        // The device was found above, under the same lock.
        if let Some(device) = state.devices.get_mut(&id) {
            device.close("another connection of the same device was accepted");
            let keeps_session = !connect.clean_session;
            if !keeps_session {
                device.record.subscriptions.clear();
            }
            device.link = Some(Link {
                id: number,
                outbox,
                subscriptions: device.record.subscriptions.clone(),
                keeps_session,
                has_api_version: user.api_version.is_some(),
                proof,
                model_id: user.model_id,
                will,
                methods: HashMap::new(),
                last_rid: 0,
            });
            device.connects += 1;
            device.touch(true);
            self.save(&device.record);
        }
        Ok(Accepted {
            device: id,
            link: number,
            inbox,
            until,
        })
    }

    /// What is asked of every CONNECT, also to provisioning: that no fault is in its way, and no throttle.
    pub(crate) fn admit_any(&self, state: &mut State, client: &str) -> Result<(), Refused> {
        let busy = ConnectReturnCode::ServiceUnavailable;
        if state.faults.is_down() {
            return Err(Refused::new(busy, "the hub is down on request"));
        }
        if let Some(fault) = self.strike(&mut state.faults, FaultKind::RefuseConnects, client) {
            let code = return_code(fault.parameters.code);
            return Err(Refused::new(code, "refused on request"));
        }
        if self
            .strike(&mut state.faults, FaultKind::CloseConnects, client)
            .is_some()
        {
            return Err(Refused {
                code: None,
                reason: "closed on request".to_owned(),
            });
        }
        let throttled = |error: HubError| Refused::new(busy, error.message());
        state.meters.take(Operation::Connect).map_err(throttled)
    }

    fn check_token(
        &self,
        state: &State,
        device: &Device,
        id: &str,
        password: &str,
    ) -> Result<Token, Refused> {
        let token =
            Token::parse(password).map_err(|error| Refused::unauthorised(error.to_string()))?;
        let signed = match (&token.policy, &device.record.identity.credentials) {
            (Some(_), _) => state
                .policies
                .rights_of(&token)
                .is_some_and(|rights| rights.contains(&Right::DeviceConnect)),
            (None, Credentials::Sas { primary, secondary }) => {
                token.signed_by(primary) || token.signed_by(secondary)
            }
            (None, Credentials::SelfSigned { .. } | Credentials::CertificateAuthority) => {
                return Err(Refused::unauthorised(
                    "the device is registered with a certificate, and came with a token",
                ));
            }
        };
        if !signed {
            return Err(Refused::unauthorised("the token's signature is wrong"));
        }
        if !token.covers(&self.name, &["devices", id]) {
            return Err(Refused::unauthorised(
                "the token's resource (sr) does not cover this device of this hub",
            ));
        }
        let now = clock::unix_seconds();
        if token.expiry <= now {
            return Err(Refused::unauthorised(format!(
                "the token expired {} s ago",
                now - token.expiry
            )));
        }
        if state.tokens.expired.contains(&token.fingerprint()) {
            return Err(Refused::unauthorised("the token was expired on request"));
        }
        Ok(token)
    }

    /// A connection ended. `clean` after a DISCONNECT, which also cancels the will.
    pub(crate) fn disconnected(&self, device: &str, link: u64, clean: bool) {
        let mut state = self.lock();
        if let Some(device) = state.devices.get_mut(device)
            && device.link.as_ref().is_some_and(|live| live.id == link)
            && let Some(link) = device.link.take()
        {
            device.touch(true);
            if !clean {
                device.publish_will(link);
            }
            self.save(&device.record);
        }
    }
}

impl Device {
    fn publish_will(&mut self, link: Link) {
        if let Some((topic, payload)) = link.will
            && let Some(Upstream::Telemetry(mut properties)) =
                Upstream::parse(&topic, &self.record.identity.id)
        {
            properties.push(("iothub-MessageType".to_owned(), Some("Will".to_owned())));
            self.keep_message(&properties, &payload);
        }
    }

    /// Keeps a message as the observers show it: time, properties, and the body as text or base64.
    pub(crate) fn keep_message(&mut self, properties: &[(String, Option<String>)], body: &[u8]) {
        use base64::{Engine, prelude::BASE64_STANDARD};
        let properties: BTreeMap<_, _> = properties.iter().cloned().collect();
        let mut message = serde_json::json!({ "time": clock::stamp(), "properties": properties });
        match std::str::from_utf8(body) {
            Ok(text) => message["body"] = text.into(),
            Err(_) => message["bodyBase64"] = BASE64_STANDARD.encode(body).into(),
        }
        self.keep_telemetry(message);
    }
}

fn check_certificate(cas: &DeviceCas, device: &Device, chain: &Chain) -> Result<(), Refused> {
    let identity = &device.record.identity;
    if let Credentials::Sas { .. } = identity.credentials {
        return Err(Refused::unauthorised(
            "there is no password, and the device is not registered with a certificate",
        ));
    }
    let leaf = chain
        .leaf()
        .ok_or_else(|| Refused::unauthorised("there is no client certificate"))?;
    if identity.credentials == Credentials::CertificateAuthority {
        cas.check(chain).map_err(Refused::unauthorised)?;
        let name = common_name(leaf).unwrap_or_default();
        if name != identity.id {
            return Err(Refused::unauthorised(format!(
                "the client certificate's common name is '{name}', not the device's id"
            )));
        }
    } else if !Proof::Certificate(chain.clone()).fits(&identity.credentials) {
        let [_, sha256] = thumbprints(leaf);
        return Err(Refused::unauthorised(format!(
            "the client certificate (SHA-256 {sha256}) is not the device's"
        )));
    }
    Ok(())
}

fn return_code(code: Option<u32>) -> ConnectReturnCode {
    match code {
        Some(1) => ConnectReturnCode::RefusedProtocolVersion,
        Some(2) => ConnectReturnCode::BadClientId,
        Some(4) => ConnectReturnCode::BadUserNamePassword,
        Some(5) => ConnectReturnCode::NotAuthorized,
        _ => ConnectReturnCode::ServiceUnavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Emulator, Options};

    #[tokio::test]
    async fn connects_over_the_limit_are_refused_as_unavailable() {
        let options = Options {
            throttle: Some("S1".parse().unwrap()),
            ..Options::default().device("pi")
        };
        let emulator = Emulator::start(options).await.unwrap();
        let connect = Connect::new("pi");
        let judge = || {
            emulator
                .hub
                .connect(&connect, &Chain::default())
                .err()
                .unwrap()
        };
        assert_eq!(judge().code, Some(ConnectReturnCode::NotAuthorized));
        while emulator.hub.lock().meters.take(Operation::Connect).is_ok() {}
        assert_eq!(judge().code, Some(ConnectReturnCode::ServiceUnavailable));
    }
}
