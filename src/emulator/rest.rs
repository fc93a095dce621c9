//! The service side: registry, twins, methods and queries over REST, as the service SDKs call them.
//! Jobs and configurations have routes of their own beside what they do.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::bulk;
use crate::clock;
use crate::configurations;
use crate::control;
use crate::fault_kind::FaultKind;
use crate::hub::{Hub, IfMatch};
use crate::hub_error::{HubError, Kind};
use crate::jobs;
use crate::methods::Call;
use crate::modules;
use crate::options::Ready;
use crate::policies::Right;
use crate::query::{self, Page};
use crate::rest_shape::shape;
use crate::sas::Token;
use crate::throttle::Operation;
use crate::twin::Mode;
use crate::websocket;

/// Largest body of a request.
const BODY_BYTES: usize = 1024 * 1024;

/// What every handler has at hand.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) hub: Arc<Hub>,
    pub(crate) ready: Arc<Ready>,
    pub(crate) stop: CancellationToken,
}

/// Every path of the HTTPS port.
pub(crate) fn router(app: App) -> Router {
    Router::new()
        .route("/devices", get(list_devices).post(bulk::update_registry))
        .route("/devices/", get(list_devices).post(bulk::update_registry))
        .route("/devices/query", post(query))
        .route(
            "/devices/{id}",
            get(get_device).put(put_device).delete(delete_device),
        )
        .route("/statistics/devices", get(device_statistics))
        .route("/statistics/service", get(service_statistics))
        .route(
            "/twins/{id}",
            get(get_twin).patch(patch_twin).put(replace_twin),
        )
        .route("/twins/{id}/methods", post(invoke))
        .merge(modules::router())
        .merge(jobs::routes::router())
        .merge(configurations::routes::router())
        .fallback(any(unknown))
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(shape))
        .route("/$iothub/websocket", get(websocket::upgrade))
        .nest("/emulator", control::router(app.clone()))
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .with_state(app)
}

impl IntoResponse for HubError {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.kind().status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json_response(status, &self.rest_body());
        let headers = response.headers_mut();
        headers.insert(
            "iothub-errorcode",
            HeaderValue::from_static(self.kind().name()),
        );
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Ok(id) = HeaderValue::from_str(&clock::new_tracking_id()) {
            headers.insert("x-ms-request-id", id);
        }
        response
    }
}

/// A caller whose token is good, with what it may do.
pub(crate) struct Caller(Vec<Right>);

impl Caller {
    pub(crate) fn may(&self, right: Right) -> Result<(), HubError> {
        if self.0.contains(&right) {
            return Ok(());
        }
        Err(unauthorised(&format!(
            "the policy does not allow {right:?}"
        )))
    }
}

#[derive(Deserialize)]
struct ApiVersion {
    #[serde(rename = "api-version")]
    api_version: Option<String>,
}

impl FromRequestParts<App> for Caller {
    type Rejection = HubError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, HubError> {
        let version = Query::<ApiVersion>::try_from_uri(&parts.uri)
            .ok()
            .and_then(|Query(query)| query.api_version);
        if !version.as_deref().is_some_and(is_api_version) {
            return Err(HubError::new(
                Kind::InvalidProtocolVersion,
                "The query must have an api-version such as 2021-04-12.",
            ));
        }
        let token = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .ok_or_else(|| unauthorised("there is no Authorization header"))?;
        let token = Token::parse(token).map_err(|error| unauthorised(&error.to_string()))?;
        let mut state = app.hub.lock();
        let state = &mut *state;
        let rights = state
            .policies
            .rights_of(&token)
            .ok_or_else(|| unauthorised("the policy (skn) is unknown or the signature is wrong"))?;
        if !token.covers(&app.hub.name, &[]) {
            return Err(unauthorised("the token's resource (sr) is another hub"));
        }
        if token.expiry <= clock::unix_seconds() {
            return Err(unauthorised("the token has expired"));
        }
        let caller = Self(rights.to_vec());
        if let Some(operation) = operation(parts) {
            state.meters.take(operation)?;
        }
        let kind = FaultKind::FailRequests;
        app.hub
            .refuse_on_request(&mut state.faults, kind, "service")?;
        Ok(caller)
    }
}

/// What the request counts as for the throttle.
fn operation(parts: &Parts) -> Option<Operation> {
    let bytes = parts.headers.get(header::CONTENT_LENGTH);
    let bytes = bytes.and_then(|value| value.to_str().ok()?.parse().ok());
    let (method, path) = (parts.method.as_str(), parts.uri.path());
    Operation::of_request(method, path, bytes.unwrap_or_default())
}

fn is_api_version(text: &str) -> bool {
    let date = text.strip_suffix("-preview").unwrap_or(text);
    date.len() == 10
        && date.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

fn unauthorised(reason: &str) -> HubError {
    HubError::new(
        Kind::IotHubUnauthorizedAccess,
        format!("Unauthorized: {reason}"),
    )
}

/// A response with a JSON body.
pub(crate) fn json_response(status: StatusCode, body: &Value) -> Response {
    let content_type = "application/json; charset=utf-8";
    let headers = [(header::CONTENT_TYPE, content_type)];
    (status, headers, body.to_string()).into_response()
}

/// The body of a request.
pub(crate) struct Body(Bytes);

impl FromRequest<App> for Body {
    type Rejection = HubError;

    async fn from_request(request: Request, app: &App) -> Result<Self, HubError> {
        match Bytes::from_request(request, app).await {
            Ok(body) => Ok(Self(body)),
            Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(HubError::new(
                    Kind::MessageTooLarge,
                    format!("The body of a request may have at most {BODY_BYTES} bytes."),
                ))
            }
            Err(_) => Err(HubError::argument("The body could not be read.")),
        }
    }
}

impl Body {
    pub(crate) fn json(&self) -> Result<Value, HubError> {
        serde_json::from_slice(&self.0)
            .map_err(|error| HubError::argument(format!("The body is not JSON: {error}")))
    }
}

pub(crate) fn if_match(headers: &HeaderMap) -> IfMatch {
    let header = headers.get(header::IF_MATCH);
    IfMatch::parse(header.and_then(|value| value.to_str().ok()))
}

/// 200 with a document and, in the header, its `etag`.
pub(crate) fn resource(document: &Value) -> Response {
    let mut response = json_response(StatusCode::OK, document);
    let etag = document["etag"].as_str().unwrap_or_default();
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{etag}\"")) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

/// How many of something are wanted.
#[derive(Deserialize)]
pub(crate) struct Top {
    top: Option<String>,
}

impl Top {
    pub(crate) fn count(&self) -> Result<usize, HubError> {
        match self.top.as_deref().map(str::parse) {
            None => Ok(1000),
            Some(Ok(top @ 1..=1000)) => Ok(top),
            Some(_) => Err(HubError::argument("'top' must be 1 to 1000.")),
        }
    }
}

/// Runs what takes a while on a thread that serves nobody else.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, HubError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| HubError::new(Kind::ServerError, format!("It failed: {error}.")))
}

async fn list_devices(
    caller: Caller,
    State(app): State<App>,
    Query(top): Query<Top>,
) -> Result<Response, HubError> {
    caller.may(Right::RegistryRead)?;
    let devices = app.hub.list_devices(top.count()?);
    Ok(json_response(StatusCode::OK, &devices.into()))
}

async fn get_device(
    caller: Caller,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Response, HubError> {
    caller.may(Right::RegistryRead)?;
    Ok(resource(&app.hub.get_device(&id)?))
}

async fn put_device(
    caller: Caller,
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HubError> {
    caller.may(Right::RegistryWrite)?;
    let body = body.json()?;
    Ok(resource(&app.hub.put_device(
        &id,
        &body,
        &if_match(&headers),
    )?))
}

async fn delete_device(
    caller: Caller,
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<StatusCode, HubError> {
    caller.may(Right::RegistryWrite)?;
    app.hub.delete_device(&id, &if_match(&headers))?;
    Ok(StatusCode::NO_CONTENT)
}

async fn device_statistics(caller: Caller, State(app): State<App>) -> Result<Response, HubError> {
    caller.may(Right::RegistryRead)?;
    Ok(json_response(StatusCode::OK, &app.hub.statistics()))
}

async fn service_statistics(caller: Caller, State(app): State<App>) -> Result<Response, HubError> {
    caller.may(Right::RegistryRead)?;
    let count = json!({ "connectedDeviceCount": app.hub.connected_count() });
    Ok(json_response(StatusCode::OK, &count))
}

async fn get_twin(
    caller: Caller,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Response, HubError> {
    caller.may(Right::ServiceConnect)?;
    Ok(resource(&app.hub.get_twin(&id)?))
}

async fn patch_twin(
    caller: Caller,
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HubError> {
    write_twin(&caller, &app, &id, &headers, &body, Mode::Merge)
}

async fn replace_twin(
    caller: Caller,
    State(app): State<App>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HubError> {
    write_twin(&caller, &app, &id, &headers, &body, Mode::Replace)
}

fn write_twin(
    caller: &Caller,
    app: &App,
    id: &str,
    headers: &HeaderMap,
    body: &Body,
    mode: Mode,
) -> Result<Response, HubError> {
    caller.may(Right::ServiceConnect)?;
    let body = body.json()?;
    let twin = app.hub.write_twin(id, &body, mode, &if_match(headers))?;
    Ok(resource(&twin))
}

async fn invoke(
    caller: Caller,
    State(app): State<App>,
    Path(id): Path<String>,
    body: Body,
) -> Result<Response, HubError> {
    caller.may(Right::ServiceConnect)?;
    let call = Call::parse(&body.json()?)?;
    let answer = app.hub.invoke(&id, &call).await?;
    let answer = json!({ "status": answer.status, "payload": answer.payload });
    Ok(json_response(StatusCode::OK, &answer))
}

async fn query(
    caller: Caller,
    State(app): State<App>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HubError> {
    caller.may(Right::ServiceConnect)?;
    let body = body.json()?;
    let text = body["query"]
        .as_str()
        .ok_or_else(|| HubError::argument("The body must be {\"query\":\"SELECT ...\"}."))?;
    let parsed = query::parse(text).map_err(|error| HubError::argument(error.to_string()))?;
    let page = page_of(&headers, text)?;
    let item_type = parsed.item_type();
    let hub = app.hub.clone();
    let (rows, more) = blocking(move || hub.query(&parsed, &page)).await?;
    Ok(paged(rows, more, item_type))
}

/// Which page of the results of `query` the headers ask for.
pub(crate) fn page_of(headers: &HeaderMap, query: &str) -> Result<Page, HubError> {
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    Page::parse(
        header("x-ms-max-item-count"),
        header("x-ms-continuation"),
        query,
    )
}

/// A page of results, with the token of the next page if there is one.
pub(crate) fn paged(rows: Vec<Value>, more: Option<String>, item_type: &'static str) -> Response {
    let mut response = json_response(StatusCode::OK, &rows.into());
    let headers = response.headers_mut();
    headers.insert("x-ms-item-type", HeaderValue::from_static(item_type));
    if let Some(more) = more.and_then(|token| HeaderValue::from_str(&token).ok()) {
        headers.insert("x-ms-continuation", more);
    }
    response
}

async fn unknown(parts: Parts) -> HubError {
    HubError::new(
        Kind::NotFound,
        format!("This emulator has nothing at {}.", parts.uri.path()),
    )
}

async fn wrong_method(parts: Parts) -> HubError {
    HubError::new(
        Kind::MethodNotAllowed,
        format!("{} is not possible at {}.", parts.method, parts.uri.path()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_versions_are_dates() {
        for good in ["2021-04-12", "2018-06-30", "2020-05-31-preview"] {
            assert!(is_api_version(good), "{good}");
        }
        for bad in ["", "2021", "2021-04-1x", "2021-04-12-beta", "v1"] {
            assert!(!is_api_version(bad), "{bad}");
        }
    }
}
