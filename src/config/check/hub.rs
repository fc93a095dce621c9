//! What the keys of `[hub]` and `[provisioning]` allow, and what they mean to each other.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use super::{Checked, DAY, HOUR, MINUTE, Wrong, duration, host, number, path, secs};
use crate::config::{
    raw::{RawHub, RawProvisioning},
    valid::{HubConfig, ProvisioningConfig, ProxyConfig},
};

const KEEP_ALIVE: RangeInclusive<Duration> = secs(10)..=secs(230);

pub(super) fn hub(hub: &RawHub) -> Checked<HubConfig> {
    let (certificate_file, private_key_file) = certificate(hub)?;
    Ok(HubConfig {
        connection_string_file: path("hub.connection_string_file", &hub.connection_string_file)?,
        certificate_file,
        private_key_file,
        ca_file: path("hub.ca_file", &hub.ca_file)?,
        gateway_host: text(host("hub.gateway_host", &hub.gateway_host)?),
        transport: hub.transport,
        mqtt_port: number("hub.mqtt_port", hub.mqtt_port, 1..=u16::MAX)?,
        websocket_port: number("hub.websocket_port", hub.websocket_port, 1..=u16::MAX)?,
        proxy: proxy(hub)?,
        keep_alive: duration("hub.keep_alive", hub.keep_alive, KEEP_ALIVE)?,
        token_lifetime: duration(
            "hub.token_lifetime",
            hub.token_lifetime,
            MINUTE * 5..=DAY * 30,
        )?,
        reconnect_max: duration("hub.reconnect_max", hub.reconnect_max, secs(1)..=HOUR)?,
        method_names: method_names(&hub.method_names)?,
        allow_reboot_method: hub.allow_reboot_method,
    })
}

/// An empty text is none.
fn text(value: &str) -> Option<String> {
    Some(value.to_owned()).filter(|value| !value.is_empty())
}

fn certificate(hub: &RawHub) -> Checked<(Option<PathBuf>, Option<PathBuf>)> {
    const CERTIFICATE: &str = "hub.certificate_file";
    const KEY: &str = "hub.private_key_file";
    let files = (
        path(CERTIFICATE, &hub.certificate_file)?,
        path(KEY, &hub.private_key_file)?,
    );
    match files {
        (Some(_), None) => Err(Wrong::new(
            KEY,
            "is missing while hub.certificate_file is there; name the certificate's private key",
        )),
        (None, Some(_)) => Err(Wrong::new(
            CERTIFICATE,
            "is missing while hub.private_key_file is there; name the key's certificate",
        )),
        both_or_none => Ok(both_or_none),
    }
}

fn proxy(hub: &RawHub) -> Checked<Option<ProxyConfig>> {
    const PROXY: &str = "hub.proxy";
    const AUTHORIZATION: &str = "hub.proxy_authorization_file";
    let authorization_file = path(AUTHORIZATION, &hub.proxy_authorization_file)?;
    if hub.proxy.is_empty() {
        return match authorization_file {
            Some(_) => Err(Wrong::new(
                AUTHORIZATION,
                "is given, but no hub.proxy that it is for",
            )),
            None => Ok(None),
        };
    }
    proxy_through(PROXY, AUTHORIZATION, &hub.proxy, authorization_file).map(Some)
}

/// The proxy at `text`, the value of `key`. It may hold a password, so no error repeats it.
pub(super) fn proxy_through(
    key: &str,
    authorization_key: &str,
    text: &str,
    authorization_file: Option<PathBuf>,
) -> Checked<ProxyConfig> {
    let form = || {
        Wrong::new(
            key,
            "must have the form `http://HOST:PORT`, without path; TLS goes through it by CONNECT",
        )
    };
    let url = url::Url::parse(text).map_err(|_| form())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Wrong::new(
            key,
            format!(
                "holds a user name or password; put `user:password` into a file and name it in {authorization_key}"
            ),
        ));
    }
    // The default port of a URL is 80, which `port` leaves out and no proxy listens on.
    let port = match url.port() {
        None if text.trim_end_matches('/').ends_with(":80") => Some(80),
        port => port,
    };
    let more = url.query().or(url.fragment());
    match (url.scheme(), url.host(), port, url.path(), more) {
        ("http", Some(host), Some(port), "/", None) => Ok(ProxyConfig {
            host: match host {
                url::Host::Ipv6(address) => address.to_string(),
                other => other.to_string(),
            },
            port,
            authorization_file,
        }),
        _ => Err(form()),
    }
}

pub(super) fn provisioning(
    hub: &RawHub,
    raw: &RawProvisioning,
) -> Checked<Option<ProvisioningConfig>> {
    const SCOPE: &str = "provisioning.id_scope";
    const ID: &str = "provisioning.registration_id";
    const KEY: &str = "provisioning.symmetric_key_file";
    const PAYLOAD: &str = "provisioning.payload_file";
    const HOST: &str = "provisioning.host";
    let config = ProvisioningConfig {
        id_scope: raw.id_scope.clone(),
        registration_id: text(&raw.registration_id),
        symmetric_key_file: path(KEY, &raw.symmetric_key_file)?,
        payload_file: path(PAYLOAD, &raw.payload_file)?,
        host: text(host(HOST, &raw.host)?)
            .ok_or_else(|| Wrong::new(HOST, "is empty; give the service's host name"))?,
        mqtt_port: number("provisioning.mqtt_port", raw.mqtt_port, 1..=u16::MAX)?,
    };
    if config.id_scope.is_empty() {
        let set = [
            (ID, config.registration_id.is_some()),
            (KEY, config.symmetric_key_file.is_some()),
            (PAYLOAD, config.payload_file.is_some()),
        ];
        return match set.iter().find(|(_, set)| *set) {
            Some((key, _)) => Err(Wrong::new(
                key,
                "is given, but no provisioning.id_scope; take it out, or add the id scope of your provisioning service",
            )),
            None => Ok(None),
        };
    }
    // Both become levels of an MQTT user name and topic.
    if !config.id_scope.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Err(Wrong::new(
            SCOPE,
            format!(
                "is `{}`; copy it from the overview of your provisioning service, such as `0ne00000001`",
                config.id_scope
            ),
        ));
    }
    if let Some(id) = &config.registration_id {
        registration_id(id).map_err(|text| Wrong::new(ID, text))?;
    }
    if config.symmetric_key_file.is_some() && config.registration_id.is_none() {
        return Err(Wrong::new(
            ID,
            "is missing; only a certificate can name the device by itself, a symmetric key cannot",
        ));
    }
    if config.symmetric_key_file.is_some() && !hub.certificate_file.is_empty() {
        return Err(Wrong::new(
            KEY,
            "contradicts hub.certificate_file: a device is provisioned by a key or by a certificate; take one out",
        ));
    }
    Ok(Some(config))
}

/// Letters, digits and `- . _ :`, at most 128, as the service's manual has it.
fn registration_id(id: &str) -> Result<(), String> {
    let fits = id.len() <= 128
        && id
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c));
    if fits {
        return Ok(());
    }
    Err(format!(
        "is `{id}`; a registration id has at most 128 letters, digits and - . _ :"
    ))
}

fn method_names(names: &[String]) -> Checked<Vec<String>> {
    const KEY: &str = "hub.method_names";
    if names.is_empty() {
        return Err(Wrong::new(
            KEY,
            "is empty; name the method, or leave the key out",
        ));
    }
    // The name is one level of the MQTT topic that the method arrives on.
    let wrong = names.iter().find(|name| {
        name.is_empty()
            || name.len() > 100
            || name.contains(['/', '+', '#', '?', '$'])
            || name.contains(char::is_whitespace)
    });
    match wrong {
        Some(name) => Err(Wrong::new(
            KEY,
            format!(
                "has `{name}`; a method's name has 1 to 100 characters, no blanks and none of / + # ? $"
            ),
        )),
        None => Ok(names.to_vec()),
    }
}
