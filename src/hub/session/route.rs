//! The ways to a server: transport, ports, gateway and proxy. Pure.

use std::sync::Arc;

use super::identity::{Identity, ProxyAuthorization};
use crate::config::{HubConfig, HubTransport, ProvisioningConfig};

/// How servers are reached.
#[derive(Debug, Clone)]
pub struct Route {
    /// What carries MQTT.
    pub transport: HubTransport,
    /// Host to connect to instead of the hub: TCP, SNI and certificate are its, the identity stays the
    /// hub's. Comes before the connection string's own.
    pub gateway: Option<String>,
    /// The hub's port of MQTT over TLS.
    pub mqtt_port: u16,
    /// Port of MQTT over WebSocket.
    pub websocket_port: u16,
    /// Host and port of an HTTP proxy.
    pub proxy: Option<(String, u16)>,
    /// The provisioning service's host, and its port of MQTT over TLS.
    pub provisioning: (String, u16),
}

impl Route {
    /// The ways that the configuration names.
    #[must_use]
    pub fn new(hub: &HubConfig, provisioning: Option<&ProvisioningConfig>) -> Self {
        let proxy = hub.proxy.as_ref();
        Self {
            transport: hub.transport,
            gateway: hub.gateway_host.clone(),
            mqtt_port: hub.mqtt_port,
            websocket_port: hub.websocket_port,
            proxy: proxy.map(|proxy| (proxy.host.clone(), proxy.port)),
            provisioning: provisioning
                .map(|service| (service.host.clone(), service.mqtt_port))
                .unwrap_or_default(),
        }
    }

    /// The way to take first.
    pub(super) fn first(&self) -> Via {
        match self.transport {
            HubTransport::Mqtt | HubTransport::Auto => Via::Mqtt,
            HubTransport::Websocket => Via::WebSocket,
        }
    }

    /// The way to take after `via` did not lead to the server.
    pub(super) fn after_failure(&self, via: Via) -> Via {
        match (self.transport, via) {
            (HubTransport::Auto, Via::Mqtt) => Via::WebSocket,
            (HubTransport::Auto, Via::WebSocket) => Via::Mqtt,
            _ => via,
        }
    }

    /// Where to connect to for the hub `hub`, whose connection string may name a gateway.
    pub(super) fn to_hub(
        &self,
        hub: &str,
        gateway: Option<&str>,
        via: Via,
        identity: &Identity,
    ) -> Endpoint {
        let host = self.gateway.as_deref().or(gateway).unwrap_or(hub);
        self.endpoint(host, self.mqtt_port, via, identity)
    }

    /// Where to connect to for the provisioning service.
    pub(super) fn to_provisioning(&self, via: Via, identity: &Identity) -> Endpoint {
        let (host, port) = &self.provisioning;
        self.endpoint(host, *port, via, identity)
    }

    fn endpoint(&self, host: &str, mqtt_port: u16, via: Via, identity: &Identity) -> Endpoint {
        let proxy = self.proxy.as_ref().map(|(host, port)| Proxy {
            host: host.clone(),
            port: *port,
            authorization: identity.proxy_authorization.clone(),
        });
        Endpoint {
            // As in a URL; what resolves and compares names wants none.
            host: host
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
            port: match via {
                Via::Mqtt => mqtt_port,
                Via::WebSocket => self.websocket_port,
            },
            via,
            tls: Arc::clone(&identity.tls),
            proxy,
            skip: 0,
        }
    }
}

/// What carries MQTT on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Via {
    /// TLS.
    Mqtt,
    /// WebSocket over TLS.
    WebSocket,
}

impl Via {
    /// As the configuration names it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::WebSocket => "websocket",
        }
    }
}

/// One server and the way to it.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    /// Name or address, without brackets: for TCP, SNI and the certificate.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) via: Via,
    pub(super) tls: Arc<rustls::ClientConfig>,
    pub(super) proxy: Option<Proxy>,
    /// How many of the name's addresses are put behind the others.
    pub(super) skip: usize,
}

impl Endpoint {
    /// `host:port`, as URLs and people write it.
    pub(super) fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

/// An HTTP proxy on the way.
#[derive(Debug, Clone)]
pub(super) struct Proxy {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) authorization: Option<ProxyAuthorization>,
}

/// `host:port`, with brackets around an IPv6 address.
pub(super) fn authority(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, hub::session::FixedIdentity, hub::session::IdentitySource};

    fn identity() -> Identity {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let credentials = "HostName=h;DeviceId=d;SharedAccessKey=QQ=="
            .parse()
            .unwrap();
        FixedIdentity::new(credentials, Arc::new(tls))
            .read()
            .unwrap()
    }

    #[test]
    fn the_configured_gateway_comes_before_the_connection_strings_and_both_before_the_hub() {
        let mut route = Route::new(&Config::built_in().hub, None);
        let identity = identity();
        let to =
            |route: &Route, gateway, via| route.to_hub("hub", gateway, via, &identity).authority();
        assert_eq!(to(&route, None, Via::Mqtt), "hub:8883");
        assert_eq!(to(&route, Some("edge"), Via::WebSocket), "edge:443");
        route.gateway = Some("[fd00::1]".to_owned());
        assert_eq!(to(&route, Some("edge"), Via::Mqtt), "[fd00::1]:8883");
        assert_eq!(
            route.to_hub("hub", None, Via::Mqtt, &identity).host,
            "fd00::1"
        );
    }

    #[test]
    fn only_auto_changes_its_way() {
        let mut route = Route::new(&Config::built_in().hub, None);
        for (transport, first, next) in [
            (HubTransport::Mqtt, Via::Mqtt, Via::Mqtt),
            (HubTransport::Websocket, Via::WebSocket, Via::WebSocket),
            (HubTransport::Auto, Via::Mqtt, Via::WebSocket),
        ] {
            route.transport = transport;
            assert_eq!(route.first(), first);
            assert_eq!(route.after_failure(first), next);
            assert_eq!(route.after_failure(next), first);
        }
    }
}
