//! A try whether the server can be reached, for a person who looks at a device: everything up to MQTT's CONNECT,
//! which it does not send, since the hub would end the device's own connection for it.

use std::time::Duration;

use tokio::time::timeout;

use super::{
    Identity, Route, SessionError,
    dial::dial,
    route::{Endpoint, Via},
};
use crate::config::HubTransport;

/// A server that was reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Host and port.
    pub at: String,
    /// `mqtt` or `websocket`.
    pub via: &'static str,
}

/// How far a try came, and why no further.
#[derive(Debug)]
pub struct ProbeFailure {
    /// The step, in words: name resolution, TCP, the proxy, TLS, WebSocket.
    pub stage: &'static str,
    /// Why.
    pub error: SessionError,
}

/// Tries to reach the hub, or without an assigned one the provisioning service, by the configured transport, for
/// `limit` at most for each transport.
///
/// # Errors
/// [`ProbeFailure`]; with `hub.transport = "auto"` the one of plain MQTT.
pub async fn probe(
    route: &Route,
    identity: &Identity,
    limit: Duration,
) -> Result<Probe, ProbeFailure> {
    let first = route.first();
    let failure = match attempt(endpoint(route, identity, first), limit).await {
        Ok(reached) => return Ok(reached),
        Err(failure) => failure,
    };
    if route.transport != HubTransport::Auto {
        return Err(failure);
    }
    let next = route.after_failure(first);
    attempt(endpoint(route, identity, next), limit)
        .await
        .map_err(|_| failure)
}

fn endpoint(route: &Route, identity: &Identity, via: Via) -> Endpoint {
    match &identity.device {
        Some(device) => route.to_hub(device.hub(), device.gateway(), via, identity),
        None => route.to_provisioning(via, identity),
    }
}

async fn attempt(endpoint: Endpoint, limit: Duration) -> Result<Probe, ProbeFailure> {
    let mut stage = "name resolution";
    let at = endpoint.authority();
    match timeout(limit, dial(&endpoint, &mut stage)).await {
        Ok(Ok(_)) => Ok(Probe {
            at,
            via: endpoint.via.name(),
        }),
        Ok(Err(error)) => Err(ProbeFailure { stage, error }),
        Err(_) => Err(ProbeFailure {
            stage,
            error: SessionError::Timeout { at, stage },
        }),
    }
}
