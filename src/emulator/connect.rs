//! CONNECT: who may come in, and what becomes of an older connection of the same device.

use std::collections::{BTreeMap, HashMap};

use ring::digest;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode};
use tokio::sync::mpsc;
use tracing::info;

use crate::clock;
use crate::hub::{Device, Hub, Link, Outgoing, State};
use crate::policies::Right;
use crate::registry::Credentials;
use crate::sas::Token;
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

/// A CONNECT that was not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) code: ConnectReturnCode,
    pub(crate) reason: String,
}

impl Refused {
    fn new(code: ConnectReturnCode, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
        }
    }

    fn unauthorised(reason: impl Into<String>) -> Self {
        Self::new(ConnectReturnCode::NotAuthorized, reason)
    }
}

impl Hub {
    /// Judges a CONNECT. Accepting it restores the session and closes an older connection of the device.
    pub(crate) fn connect(
        &self,
        connect: &Connect,
        certificate: Option<&[u8]>,
    ) -> Result<Accepted, Refused> {
        let mut state = self.lock();
        let result = self.admit(&mut state, connect, certificate);
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
        certificate: Option<&[u8]>,
    ) -> Result<Accepted, Refused> {
        if state.faults.is_down() {
            let code = ConnectReturnCode::ServiceUnavailable;
            return Err(Refused::new(code, "the hub is down on request"));
        }
        if let Some(code) = state.faults.next_refusal() {
            return Err(Refused::new(return_code(code), "refused on request"));
        }
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
        let token = match login.password.as_str() {
            "" => {
                check_certificate(device, certificate)?;
                None
            }
            password => Some(self.check_token(state, device, id, password)?),
        };
        let will = match &connect.last_will {
            None => None,
            Some(will) => match Upstream::parse(&will.topic, id) {
                Some(Upstream::Telemetry(_)) => Some((will.topic.clone(), will.message.to_vec())),
                _ => return Err(Refused::unauthorised("the will's topic is not allowed")),
            },
        };
        if let Some(token) = &token {
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
                uses_token: token.is_some(),
                model_id: user.model_id,
                will,
                methods: HashMap::new(),
                last_rid: 0,
            });
            device.arrival.notify_waiters();
            device.connects += 1;
            device.touch(true);
            self.save(&device.record);
        }
        let grace = self.token_grace.as_secs();
        Ok(Accepted {
            device: id,
            link: number,
            inbox,
            until: token.map(|token| token.expiry.saturating_add(grace)),
        })
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
            (None, Credentials::SelfSigned { .. }) => false,
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

fn check_certificate(device: &Device, certificate: Option<&[u8]>) -> Result<(), Refused> {
    let Credentials::SelfSigned { primary, secondary } = &device.record.identity.credentials else {
        return Err(Refused::unauthorised(
            "there is no password, and the device is not registered with a certificate",
        ));
    };
    let certificate =
        certificate.ok_or_else(|| Refused::unauthorised("there is no client certificate"))?;
    let sha1 = hex(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, certificate).as_ref());
    let sha256 = hex(digest::digest(&digest::SHA256, certificate).as_ref());
    let known = [primary, secondary]
        .into_iter()
        .flatten()
        .any(|print| print.eq_ignore_ascii_case(&sha1) || print.eq_ignore_ascii_case(&sha256));
    if known {
        return Ok(());
    }
    Err(Refused::unauthorised(format!(
        "the client certificate (SHA-256 {sha256}) is not the device's"
    )))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn return_code(code: u8) -> ConnectReturnCode {
    match code {
        1 => ConnectReturnCode::RefusedProtocolVersion,
        2 => ConnectReturnCode::BadClientId,
        4 => ConnectReturnCode::BadUserNamePassword,
        5 => ConnectReturnCode::NotAuthorized,
        _ => ConnectReturnCode::ServiceUnavailable,
    }
}
