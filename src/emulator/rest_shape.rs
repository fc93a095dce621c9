//! Every answer of the service side in the hub's shape: also refusals that come from below the routes, such
//! as a path that is no UTF-8, and with a request id in every answer.

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::clock;
use crate::hub_error::{HubError, Kind};

/// The header that every answer of the hub has.
const REQUEST_ID: &str = "x-ms-request-id";
/// More than any refusal says.
const TEXT_BYTES: usize = 4096;

/// Goes around all routes of the service side.
pub(crate) async fn shape(request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    let plain = |headers: &HeaderMap| !headers.contains_key("iothub-errorcode");
    let status = response.status();
    let mut response = if status.is_client_error() && plain(response.headers()) {
        in_shape(status, response.into_body()).await
    } else {
        response
    };
    if !response.headers().contains_key(REQUEST_ID)
        && let Ok(id) = HeaderValue::from_str(&clock::new_tracking_id())
    {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

async fn in_shape(status: StatusCode, body: Body) -> Response {
    let kind = match status {
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => Kind::MethodNotAllowed,
        StatusCode::PAYLOAD_TOO_LARGE => Kind::MessageTooLarge,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Kind::UnsupportedMediaType,
        _ => Kind::ArgumentInvalid,
    };
    let text = to_bytes(body, TEXT_BYTES).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let text = match text.trim() {
        "" => status.canonical_reason().unwrap_or("Refused"),
        text => text,
    };
    HubError::new(kind, text).into_response()
}
