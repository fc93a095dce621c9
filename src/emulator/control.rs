//! The control interface, `/emulator/...` on the HTTPS port: faults and observers for `curl` and scripts.
//! Only for callers on this machine; it needs no token.

use axum::body::Bytes;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::certificates::{DeviceCertificate, LIFE_SECONDS};
use crate::dps_control;
use crate::fault::{Fault, FaultError};
use crate::fault_kind::TABLE;
use crate::hub_error::{HubError, Kind};
use crate::listen::Peer;
use crate::rest::{App, blocking};
use crate::throttle::BadThrottle;

/// What `GET /emulator` says, before the faults.
const HELP: &str = "\
GET  /emulator/ready                               the line printed at start
GET  /emulator/devices/ID                          connections, refusals, kept subscriptions
GET  /emulator/devices/ID/twin                     the twin as service tools see it
GET  /emulator/devices/ID/reported-history         every accepted reported patch, in order
GET  /emulator/devices/ID/telemetry                the last 100 messages
POST /emulator/certificates/ID[?seconds=60]        a certificate of the emulator's CA for devices, with its key
POST /emulator/certificates/ID?self-signed=true    ... or a self-signed one, with its thumbprints
POST /emulator/device-cas                          register the CAs of devices in the body (PEM)
POST /emulator/apply-configurations                compare every device with the configurations now
GET  /emulator/dps                                 provisioning: settings, enrollments, registrations
POST /emulator/dps?polls=2&retry-after=1&assigned-hub=NAME    change the settings given
PUT  /emulator/dps/enrollments/ID                  create or change an enrollment (JSON); DELETE removes it
PUT  /emulator/dps/groups/NAME                     the same for a group
GET  /emulator/dps/registrations/ID                how often it registered, and what it got
POST /emulator/throttle?size=S1:2                  keep the throttles of a hub of this size; 'off' ends it
GET  /emulator/faults                              faults in force, and what was throttled
";

fn help() -> String {
    let mut text = HELP.to_owned();
    text.push_str("\nFaults. Without a device they are for every one; a count of 0 ends one.\n");
    for row in TABLE {
        text.push_str(&format!(
            "POST /emulator/{}\n       {}\n",
            row.usage(),
            row.does
        ));
    }
    text
}

/// The routes below `/emulator`.
pub(crate) fn router(app: App) -> Router<App> {
    Router::new()
        .route("/", get(async || help()))
        .route("/ready", get(ready))
        .route("/devices/{id}", get(device))
        .route("/devices/{id}/twin", get(twin))
        .route("/devices/{id}/reported-history", get(reported_history))
        .route("/devices/{id}/telemetry", get(telemetry))
        .route("/certificates/{id}", post(issue_certificate))
        .route("/device-cas", post(register_device_cas))
        .route("/devices/{id}/drop", post(drop_connection))
        .route("/devices/{id}/forget-session", post(forget_session))
        .route("/apply-configurations", post(apply_configurations))
        .nest("/dps", dps_control::router())
        .route("/throttle", post(throttle))
        .route("/faults", get(faults))
        .route("/{fault}", post(inject))
        .layer(middleware::from_fn(local_only))
        .with_state(app)
}

async fn local_only(
    Extension(Peer(peer)): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    if peer.ip().to_canonical().is_loopback() {
        return next.run(request).await;
    }
    let text = "The emulator's controls are for callers on the same machine.\n";
    (StatusCode::FORBIDDEN, text).into_response()
}

async fn ready(State(app): State<App>) -> Json<Value> {
    Json(json!(*app.ready))
}

async fn device(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, HubError> {
    let state = app.hub.lock();
    let device = state.device(&id)?;
    Ok(Json(json!({
        "connected": device.link.is_some(),
        "connections": device.connects,
        "refusals": device.refusals,
        "subscriptions": device.record.subscriptions,
    })))
}

async fn twin(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, HubError> {
    app.hub.get_twin(&id).map(Json)
}

async fn reported_history(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, HubError> {
    let state = app.hub.lock();
    Ok(Json(json!(state.device(&id)?.reported_history())))
}

async fn telemetry(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, HubError> {
    let state = app.hub.lock();
    Ok(Json(json!(state.device(&id)?.telemetry)))
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct CertificateRequest {
    seconds: Option<i64>,
    self_signed: Option<bool>,
}

async fn issue_certificate(
    State(app): State<App>,
    Path(id): Path<String>,
    Query(request): Query<CertificateRequest>,
) -> Result<Json<Value>, HubError> {
    let life = request.seconds.unwrap_or(LIFE_SECONDS);
    let made = match request.self_signed {
        Some(true) => DeviceCertificate::self_signed(&id, life)
            .map_err(|error| HubError::argument(format!("No certificate for '{id}': {error}")))?,
        Some(false) | None => app.hub.lock().device_cas.issue(&id, life)?,
    };
    Ok(Json(json!(made)))
}

async fn register_device_cas(State(app): State<App>, body: Bytes) -> Result<Json<Value>, HubError> {
    let count = app.hub.lock().device_cas.register(&body)?;
    Ok(Json(json!({ "registered": count })))
}

async fn drop_connection(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, HubError> {
    app.hub.lock().device(&id)?;
    Ok(Json(json!({ "dropped": app.hub.drop_connection(&id) })))
}

async fn forget_session(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<StatusCode, HubError> {
    app.hub.forget_sessions(Some(&id))?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct Size {
    size: String,
}

async fn throttle(
    State(app): State<App>,
    Query(Size { size }): Query<Size>,
) -> Result<StatusCode, HubError> {
    let throttle = match size.as_str() {
        "off" => None,
        size => Some(
            size.parse()
                .map_err(|error: BadThrottle| HubError::argument(error.to_string()))?,
        ),
    };
    app.hub.lock().meters.set(throttle);
    Ok(StatusCode::NO_CONTENT)
}

async fn apply_configurations(State(app): State<App>) -> Result<StatusCode, HubError> {
    let hub = app.hub.clone();
    blocking(move || hub.apply_configurations(true)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn faults(State(app): State<App>) -> Json<Value> {
    Json(app.hub.trouble())
}

async fn inject(
    State(app): State<App>,
    Path(name): Path<String>,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<StatusCode, HubError> {
    let parameters = parameters
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let fault = Fault::parse(&name, parameters).map_err(|error| {
        let kind = match error {
            FaultError::Unknown { .. } => Kind::NotFound,
            _ => Kind::ArgumentInvalid,
        };
        HubError::new(kind, error.to_string())
    })?;
    app.hub.inject(fault).await?;
    Ok(StatusCode::NO_CONTENT)
}
