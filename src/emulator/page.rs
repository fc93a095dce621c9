//! The page for people: devices, twins and running updates, live in a browser, over plain HTTP on loopback.
//!
//! - Only this machine reaches it, and no other site through this machine's browser: a request must name a
//!   loopback host (else a site could rebind its own name to it), and the two faults need a header that a
//!   page of another site may not send. No site may frame it, and it loads nothing from outside.
//! - It shows no keys, tokens or signatures.
//! - It reads the hub and cannot change it, but for the faults: drop a connection, an outage.

mod board;
mod detail;
mod events;
mod stages;
mod summary;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::hub::Hub;
use crate::hub_error::HubError;
use events::{Feed, Viewer};

/// The header that the page sends with a fault.
const FAULT_HEADER: &str = "x-emulator-page";
/// Longest outage that the page makes.
const LONGEST_OUTAGE: u64 = 3600;

/// What the page is allowed to do in the browser: load its own files, ask its own server.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What is embedded: path, type, content.
const FILES: [(&str, &str, &str); 9] = [
    ("/", "text/html", include_str!("page/index.html")),
    ("/page.css", "text/css", include_str!("page/page.css")),
    ("/page.js", "text/javascript", include_str!("page/page.js")),
    (
        "/device.js",
        "text/javascript",
        include_str!("page/device.js"),
    ),
    (
        "/table.js",
        "text/javascript",
        include_str!("page/table.js"),
    ),
    (
        "/tools.js",
        "text/javascript",
        include_str!("page/tools.js"),
    ),
    ("/twin.js", "text/javascript", include_str!("page/twin.js")),
    (
        "/updates.js",
        "text/javascript",
        include_str!("page/updates.js"),
    ),
    ("/icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];

#[derive(Clone)]
struct App {
    hub: Arc<Hub>,
    feed: Arc<Feed>,
    stop: CancellationToken,
    about: Arc<Value>,
}

/// Where the hub's ports are, which the page says in its head.
pub(crate) struct Ports {
    pub(crate) mqtt: u16,
    pub(crate) https: u16,
}

/// The paths of the page's port.
pub(crate) fn router(hub: Arc<Hub>, ports: &Ports, stop: CancellationToken) -> Router {
    let about = json!({
        "name": hub.name,
        "mqttPort": ports.mqtt,
        "httpsPort": ports.https,
    });
    let app = App {
        feed: Arc::new(Feed::new(hub.clone())),
        hub,
        stop,
        about: Arc::new(about),
    };
    let mut router = Router::new()
        .route("/about", get(about_hub))
        .route("/events", get(watch))
        .route("/devices/{id}", get(device))
        .route("/devices/{id}/drop", post(drop_connection))
        .route("/outage", post(outage))
        .route("/up", post(up));
    for (path, kind, content) in FILES {
        let kind = [(header::CONTENT_TYPE, format!("{kind}; charset=utf-8"))];
        router = router.route(path, get(async move || (kind, content)));
    }
    router.layer(middleware::from_fn(guard)).with_state(app)
}

/// Refuses what a page of another site could make a browser send, and says what the browser may do.
async fn guard(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    let refused = if !names_this_machine(host) {
        Some("The page answers to localhost and to loopback addresses only.\n")
    } else if request.method() == "POST" && !request.headers().contains_key(FAULT_HEADER) {
        Some("A fault needs the header X-Emulator-Page.\n")
    } else {
        None
    };
    let mut response = match refused {
        Some(reason) => (StatusCode::FORBIDDEN, reason).into_response(),
        None => next.run(request).await,
    };
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
        // Another version of the emulator may serve the same address tomorrow.
        (header::CACHE_CONTROL, "no-store"),
    ];
    for (name, value) in headers {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether the `Host` header names this machine without asking anyone's name server.
fn names_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    name.eq_ignore_ascii_case("localhost")
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

async fn about_hub(State(app): State<App>) -> Json<Value> {
    Json((*app.about).clone())
}

async fn watch(State(app): State<App>) -> impl IntoResponse {
    let events = stream::unfold(Viewer::new(app.feed), Viewer::next);
    let events = events.take_until(app.stop.cancelled_owned());
    Sse::new(events).keep_alive(KeepAlive::default())
}

async fn device(State(app): State<App>, Path(id): Path<String>) -> Result<Json<Value>, HubError> {
    app.hub.page_detail(&id).map(Json)
}

async fn drop_connection(
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, HubError> {
    app.hub.lock().device(&id)?;
    Ok(Json(json!({ "dropped": app.hub.drop_connection(&id) })))
}

#[derive(Deserialize)]
struct Seconds {
    seconds: u64,
}

async fn outage(State(app): State<App>, Query(Seconds { seconds }): Query<Seconds>) -> StatusCode {
    let time = Duration::from_secs(seconds.min(LONGEST_OUTAGE));
    app.hub.set_down(Some(Some(time)));
    StatusCode::NO_CONTENT
}

async fn up(State(app): State<App>) -> StatusCode {
    app.hub.set_down(None);
    StatusCode::NO_CONTENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_can_rebind_are_answered() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:8080",
            "127.1.2.3",
            "[::1]:8080",
            "[::1]",
        ] {
            assert!(names_this_machine(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "10.0.0.1",
            "0.0.0.0",
            "[::2]:80",
            "localhost:8080:80",
            "user@localhost",
        ] {
            assert!(!names_this_machine(host), "{host}");
        }
    }

    #[test]
    fn the_page_names_nothing_outside_of_itself() {
        for (path, _, content) in FILES {
            let outside = content
                .split("//")
                .skip(1)
                .filter(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
                .find(|rest| !rest.starts_with("www.w3.org/2000/svg"));
            assert_eq!(outside, None, "{path}");
            assert!(
                !content.contains("innerHTML"),
                "{path}: texts of devices are text"
            );
        }
    }
}
