//! One connection to the provisioning service: [`Registration`] decides, this carries.

use std::{
    io,
    time::{Duration, Instant},
};

use rumqttc::Packet;
use tokio::time::{sleep_until, timeout};

use super::{
    SessionError,
    dial::{self, Connected, cause},
    packets,
    route::Endpoint,
    wire::Wire,
};
use crate::hub::{
    backoff::Jitter,
    credentials::SasToken,
    provisioning::{self, Assignment, Enrollment, Registration},
};

/// Longest silence, below what load balancers cut at. The service hears of it as the keep-alive.
const KEEP_ALIVE: Duration = Duration::from_secs(120);

/// How long the service may take to grant the subscription.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(30);

/// For the goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Asks the service at `endpoint` where `enrollment` belongs, for `limit` at most once it listens.
pub(super) async fn register(
    endpoint: Endpoint,
    enrollment: Enrollment,
    password: Option<SasToken>,
    client: String,
    limit: Duration,
    jitter: Jitter,
) -> Result<Assignment, SessionError> {
    let mut connect = packets::connect(
        &enrollment.registration_id,
        enrollment.user_name(&client),
        password.as_ref(),
        KEEP_ALIVE,
    );
    connect.clean_session = true;
    let unreachable = |error| SessionError::Provisioning(Box::new(error));
    let mut wire = match dial::connect(&endpoint, connect).await {
        Ok(Connected::Accepted(wire)) => wire,
        Ok(Connected::CredentialsRefused) => {
            return Err(SessionError::ProvisioningRefused {
                at: endpoint.authority(),
                registration: enrollment.registration_id,
            });
        }
        Err(error) => return Err(unreachable(error)),
    };
    let registration = Registration::new(&enrollment, limit, jitter, Instant::now());
    let outcome = converse(&mut wire, registration).await.map_err(|source| {
        unreachable(SessionError::Lost {
            at: endpoint.authority(),
            source: cause(source),
        })
    })?;
    let goodbye = async {
        wire.write(&[Packet::Disconnect]).await?;
        wire.close().await
    };
    // The outcome is there; the rest is courtesy.
    let _ = timeout(CLOSE_TIMEOUT, goodbye).await;
    Ok(outcome?)
}

/// The conversation, to its outcome; an error when the connection ends before.
async fn converse(
    wire: &mut Wire,
    mut registration: Registration,
) -> io::Result<Result<Assignment, provisioning::ProvisioningError>> {
    let granted = async {
        wire.write(&[packets::subscribe(&[provisioning::FILTER])])
            .await?;
        while !matches!(wire.read().await?, Packet::SubAck(_)) {}
        io::Result::Ok(())
    };
    timeout(SUBSCRIBE_TIMEOUT, granted)
        .await
        .unwrap_or_else(|_| Err(io::Error::other("it did not grant the subscription")))?;
    let mut ping_at = Instant::now() + KEEP_ALIVE;
    loop {
        let now = Instant::now();
        registration.handle_timeout(now);
        if let Some(outcome) = registration.outcome() {
            return Ok(outcome.clone());
        }
        if let Some(request) = registration.poll_transmit(now) {
            let publish = packets::publish(request.topic, request.body.into_bytes());
            wire.write(&[publish]).await?;
            ping_at = Instant::now() + KEEP_ALIVE;
        }
        if ping_at <= now {
            wire.write(&[Packet::PingReq]).await?;
            ping_at = now + KEEP_ALIVE;
        }
        let wake = registration.poll_timeout().unwrap_or(now).min(ping_at);
        tokio::select! {
            packet = wire.read() => if let Packet::Publish(publish) = packet? {
                registration.handle_message(&publish.topic, &publish.payload, Instant::now());
                packets::acknowledge(wire, &publish).await?;
            },
            () = sleep_until(wake.into()) => {}
        }
    }
}
