//! Modules: this emulator has none, and says so in the hub's own words.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{any, get};
use serde_json::json;

use crate::hub_error::{HubError, Kind};
use crate::policies::Right;
use crate::rest::{App, Caller, json_response};

/// The routes of modules.
pub(crate) fn router() -> Router<App> {
    Router::new()
        .route("/devices/{id}/modules", get(list))
        .route("/devices/{id}/modules/{module}", any(none).put(put))
        .route("/twins/{id}/modules/{module}", any(none))
        .route("/twins/{id}/modules/{module}/methods", any(none))
}

async fn list(
    caller: Caller,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Response, HubError> {
    caller.may(Right::RegistryRead)?;
    app.hub.get_device(&id)?;
    Ok(json_response(StatusCode::OK, &json!([])))
}

async fn put(_: Caller) -> HubError {
    HubError::argument("This emulator has no modules, and none can be made.")
}

async fn none(
    _: Caller,
    State(app): State<App>,
    Path((id, module)): Path<(String, String)>,
) -> Result<Response, HubError> {
    app.hub.get_device(&id)?;
    Err(HubError::new(
        Kind::ModuleNotFound,
        format!("The device '{id}' has no module '{module}'; this emulator has no modules."),
    ))
}
