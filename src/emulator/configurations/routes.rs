//! `/configurations`.

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{get, post, put};
use serde_json::Value;

use super::configuration::{Configuration, test_queries};
use crate::hub_error::HubError;
use crate::policies::Right;
use crate::rest::{App, Body, Caller, Top, blocking, if_match, json_response, resource};

/// The routes below `/configurations`.
pub(crate) fn router() -> Router<App> {
    Router::new()
        .route("/configurations", get(list))
        .route("/configurations/testQueries", post(test))
        .route("/configurations/{id}", put(write).get(read).delete(delete))
}

/// The configurations with what their queries find.
async fn documents(app: &App, all: Vec<Configuration>) -> Result<Vec<Value>, HubError> {
    let hub = app.hub.clone();
    blocking(move || {
        let document = |configuration: &Configuration| {
            configuration.document(&hub.configuration_results(configuration))
        };
        all.iter().map(document).collect()
    })
    .await
}

async fn one(app: &App, configuration: Configuration) -> Result<Response, HubError> {
    let documents = documents(app, vec![configuration]).await?;
    Ok(resource(&documents[0]))
}

async fn list(
    caller: Caller,
    State(app): State<App>,
    Query(top): Query<Top>,
) -> Result<Response, HubError> {
    caller.may(Right::RegistryRead)?;
    let all = documents(&app, app.hub.configurations.list(top.count()?)).await?;
    Ok(json_response(StatusCode::OK, &all.into()))
}

async fn read(
    caller: Caller,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Response, HubError> {
    caller.may(Right::RegistryRead)?;
    one(&app, app.hub.configurations.get(&id)?).await
}

async fn write(
    caller: Caller,
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HubError> {
    caller.may(Right::RegistryWrite)?;
    let condition = if_match(&headers);
    let written = app.hub.configurations.put(&id, &body.json()?, &condition)?;
    one(&app, written).await
}

async fn delete(
    caller: Caller,
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, HubError> {
    caller.may(Right::RegistryWrite)?;
    app.hub.configurations.delete(&id, &if_match(&headers))?;
    Ok(StatusCode::NO_CONTENT)
}

async fn test(caller: Caller, body: Body) -> Result<Response, HubError> {
    caller.may(Right::RegistryRead)?;
    Ok(json_response(StatusCode::OK, &test_queries(&body.json()?)?))
}
