//! The control interface, `/emulator/...` on the HTTPS port: faults and observers for `curl` and scripts.
//! Only for callers on this machine; it needs no token.

use std::time::Duration;

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::hub_error::HubError;
use crate::listen::Peer;
use crate::rest::App;

/// What `GET /emulator` says.
const HELP: &str = "\
GET  /emulator/ready                               the line printed at start
GET  /emulator/devices/ID                          connections, refusals, kept subscriptions
GET  /emulator/devices/ID/twin                     the twin as service tools see it
GET  /emulator/devices/ID/reported-history         every accepted reported patch, in order
GET  /emulator/devices/ID/telemetry                the last 100 messages
POST /emulator/devices/ID/drop                     close its connection
POST /emulator/devices/ID/forget-session           its next connection has no subscriptions
POST /emulator/outage?seconds=10                   go away, come back by itself
POST /emulator/down                                go away until ...
POST /emulator/up                                  ... told to come back
POST /emulator/refuse-connects?count=3[&code=3]    refuse the next CONNECTs with this CONNACK code
POST /emulator/delay-twin-answers?milliseconds=500 0 ends it
POST /emulator/swallow-twin-answers?count=1        carry out the request, lose the answer
POST /emulator/fail-twin-patches?count=1&status=429
POST /emulator/expire-tokens                       every token used so far is expired, at once
";

/// The routes below `/emulator`.
pub(crate) fn router(app: App) -> Router<App> {
    Router::new()
        .route("/", get(async || HELP))
        .route("/ready", get(ready))
        .route("/devices/{id}", get(device))
        .route("/devices/{id}/twin", get(twin))
        .route("/devices/{id}/reported-history", get(reported_history))
        .route("/devices/{id}/telemetry", get(telemetry))
        .route("/devices/{id}/drop", post(drop_connection))
        .route("/devices/{id}/forget-session", post(forget_session))
        .route("/outage", post(outage))
        .route("/down", post(down))
        .route("/up", post(up))
        .route("/refuse-connects", post(refuse_connects))
        .route("/delay-twin-answers", post(delay_twin_answers))
        .route("/swallow-twin-answers", post(swallow_twin_answers))
        .route("/fail-twin-patches", post(fail_twin_patches))
        .route("/expire-tokens", post(expire_tokens))
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
    match app.hub.forget_session(&id) {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(HubError::no_device(&id)),
    }
}

#[derive(Deserialize)]
struct Seconds {
    seconds: u32,
}

async fn outage(State(app): State<App>, Query(Seconds { seconds }): Query<Seconds>) -> StatusCode {
    let time = Duration::from_secs(seconds.into());
    app.hub.set_down(Some(Some(time)));
    StatusCode::NO_CONTENT
}

async fn down(State(app): State<App>) -> StatusCode {
    app.hub.set_down(Some(None));
    StatusCode::NO_CONTENT
}

async fn up(State(app): State<App>) -> StatusCode {
    app.hub.set_down(None);
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
struct Refusals {
    count: u32,
    code: Option<u8>,
}

async fn refuse_connects(
    State(app): State<App>,
    Query(Refusals { count, code }): Query<Refusals>,
) -> Result<StatusCode, HubError> {
    let code = code.unwrap_or(3);
    if !(1..=5).contains(&code) {
        return Err(HubError::argument("'code' must be a CONNACK code, 1 to 5."));
    }
    app.hub.refuse_connects(count, code);
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct Milliseconds {
    milliseconds: u32,
}

async fn delay_twin_answers(
    State(app): State<App>,
    Query(Milliseconds { milliseconds }): Query<Milliseconds>,
) -> StatusCode {
    let delay = Duration::from_millis(milliseconds.into());
    app.hub.delay_twin_answers(delay);
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
struct Count {
    count: u32,
}

async fn swallow_twin_answers(
    State(app): State<App>,
    Query(Count { count }): Query<Count>,
) -> StatusCode {
    app.hub.swallow_twin_answers(count);
    StatusCode::NO_CONTENT
}

#[derive(Deserialize)]
struct PatchFailures {
    count: u32,
    status: u16,
}

async fn fail_twin_patches(
    State(app): State<App>,
    Query(PatchFailures { count, status }): Query<PatchFailures>,
) -> Result<StatusCode, HubError> {
    if !(400..600).contains(&status) {
        return Err(HubError::argument("'status' must be 400 to 599."));
    }
    app.hub.fail_twin_patches(count, status);
    Ok(StatusCode::NO_CONTENT)
}

async fn expire_tokens(State(app): State<App>) -> StatusCode {
    app.hub.expire_tokens().await;
    StatusCode::NO_CONTENT
}
