//! The controls of the provisioning service, `/emulator/dps/...`: enrollments, settings, registrations.

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, put};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::hub_error::{HubError, Kind};
use crate::rest::App;

/// The routes below `/emulator/dps`.
pub(crate) fn router() -> Router<App> {
    Router::new()
        .route("/", get(show).post(change))
        .route("/enrollments/{id}", put(enroll).delete(unenroll))
        .route("/groups/{id}", put(enroll_group).delete(unenroll_group))
        .route("/registrations/{id}", get(registration))
}

async fn show(State(app): State<App>) -> Json<Value> {
    let mut document = app.hub.lock().dps.document();
    document["host"] = app.hub.name.clone().into();
    Json(document)
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Changes {
    polls: Option<u32>,
    retry_after: Option<u32>,
    assigned_hub: Option<String>,
}

async fn change(State(app): State<App>, Query(changes): Query<Changes>) -> StatusCode {
    let mut state = app.hub.lock();
    let settings = &mut state.dps.settings;
    settings.polls = changes.polls.unwrap_or(settings.polls);
    settings.retry_after = changes.retry_after.unwrap_or(settings.retry_after);
    if let Some(hub) = changes.assigned_hub {
        settings.assigned_hub = (!hub.is_empty()).then_some(hub);
    }
    app.hub.save_dps(&state.dps);
    StatusCode::NO_CONTENT
}

async fn enroll(
    State(app): State<App>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<Value>, HubError> {
    app.hub.enroll(&id, false, &parse(&body)?).map(Json)
}

async fn enroll_group(
    State(app): State<App>,
    Path(id): Path<String>,
    body: Bytes,
) -> Result<Json<Value>, HubError> {
    app.hub.enroll(&id, true, &parse(&body)?).map(Json)
}

/// JSON whatever the content type says: curl says it is a form.
fn parse(body: &[u8]) -> Result<Value, HubError> {
    serde_json::from_slice(body)
        .map_err(|error| HubError::argument(format!("The body is not JSON: {error}")))
}

async fn unenroll(State(app): State<App>, Path(id): Path<String>) -> Result<StatusCode, HubError> {
    removed(&id, app.hub.unenroll(&id, false))
}

async fn unenroll_group(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<StatusCode, HubError> {
    removed(&id, app.hub.unenroll(&id, true))
}

fn removed(id: &str, was_there: bool) -> Result<StatusCode, HubError> {
    match was_there {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(HubError::new(
            Kind::NotFound,
            format!("There is no enrollment '{id}'."),
        )),
    }
}

async fn registration(State(app): State<App>, Path(id): Path<String>) -> Json<Value> {
    let state = app.hub.lock();
    let registration = state.dps.registration(&id.to_ascii_lowercase());
    Json(json!(registration.cloned().unwrap_or_default()))
}
