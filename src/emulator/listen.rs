//! The listeners: MQTT over TLS; HTTPS with REST, control and MQTT over WebSocket; HTTP with the page.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::{debug, warn};

use crate::device_ca::Chain;
use crate::hub::Hub;
use crate::mqtt;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(30);

/// Who is at the other end of an HTTPS connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Accepts MQTT clients until told to stop.
pub(crate) async fn mqtt(
    listener: TcpListener,
    tls: TlsAcceptor,
    hub: Arc<Hub>,
    stop: CancellationToken,
) {
    accept(listener, stop.clone(), move |socket, _| {
        let (tls, hub, stop) = (tls.clone(), hub.clone(), stop.clone());
        async move {
            if hub.lock().faults.is_down() {
                return reset(&socket);
            }
            let Some(stream) = handshake(&tls, socket).await else {
                return;
            };
            let chain = Chain::of(stream.get_ref().1);
            mqtt::serve(hub, stream, chain, stop).await;
        }
    })
    .await;
}

/// Accepts HTTPS clients until told to stop.
pub(crate) async fn https(
    listener: TcpListener,
    tls: TlsAcceptor,
    hub: Arc<Hub>,
    router: Router,
    stop: CancellationToken,
) {
    accept(listener, stop.clone(), move |socket, peer| {
        let (tls, hub, router) = (tls.clone(), hub.clone(), router.clone());
        let stop = stop.clone();
        async move {
            let Some(stream) = handshake(&tls, socket).await else {
                return;
            };
            let chain = Chain::of(stream.get_ref().1);
            let service = service_fn(move |mut request: hyper::Request<Incoming>| {
                let (hub, router) = (hub.clone(), router.clone());
                request.extensions_mut().insert(Peer(peer));
                request.extensions_mut().insert(chain.clone());
                async move { answer(&hub, router, request.map(Body::new)).await }
            });
            serve_http(stream, service, stop).await;
        }
    })
    .await;
}

/// Accepts browsers that show the page, until told to stop.
pub(crate) async fn page(listener: TcpListener, router: Router, stop: CancellationToken) {
    accept(listener, stop.clone(), move |socket, _| {
        let (router, stop) = (router.clone(), stop.clone());
        async move {
            let _ = socket.set_nodelay(true);
            let service = service_fn(move |request: hyper::Request<Incoming>| {
                router.clone().oneshot(request.map(Body::new))
            });
            serve_http(socket, service, stop).await;
        }
    })
    .await;
}

/// Serves one HTTP connection until it ends, or a second longer than told.
async fn serve_http<S, V>(stream: S, service: V, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    V: Service<hyper::Request<Incoming>, Response = axum::response::Response>,
    V::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            timeout(Duration::from_secs(1), connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        debug!("an HTTP connection ended: {error}");
    }
}

/// Why a request gets no answer.
#[derive(Debug, thiserror::Error)]
#[error("the hub is down on request")]
struct Down;

async fn answer(
    hub: &Hub,
    router: Router,
    request: Request,
) -> Result<axum::response::Response, Down> {
    // While the hub is down only the emulator's own controls answer, or nobody could bring it back.
    if hub.lock().faults.is_down() && !request.uri().path().starts_with("/emulator") {
        return Err(Down);
    }
    let wire = format!("{} {}", request.method(), request.uri());
    let response = router
        .oneshot(request)
        .await
        .unwrap_or_else(|never: Infallible| match never {});
    hub.wire
        .note("https", &format!("{wire} = {}", response.status().as_u16()));
    Ok(response)
}

async fn handshake(tls: &TlsAcceptor, socket: TcpStream) -> Option<TlsStream<TcpStream>> {
    // Without it answers of a few bytes wait for the other side's delayed acknowledgements.
    let _ = socket.set_nodelay(true);
    match timeout(HANDSHAKE, tls.accept(socket)).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            debug!("a TLS handshake failed: {error}");
            None
        }
        Err(_) => None,
    }
}

/// Closes at once with a reset, the nearest to a port nobody listens on while the port stays ours.
fn reset(socket: &TcpStream) {
    if let Err(error) = socket.set_zero_linger() {
        debug!("a connection could not be reset: {error}");
    }
}

async fn accept<F, T>(listener: TcpListener, stop: CancellationToken, serve: F)
where
    F: Fn(TcpStream, SocketAddr) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => {
                    clients.spawn(serve(socket, peer));
                }
                Err(error) => {
                    warn!("cannot accept a connection: {error}");
                    pause_if_exhausted(&error).await;
                }
            },
            Some(_) = clients.join_next() => {}
        }
    }
    drop(listener);
    // Each client ends by itself, as the same token tells it to.
    while clients.join_next().await.is_some() {}
}

/// Too many open files would otherwise be reported thousands of times a second.
async fn pause_if_exhausted(error: &io::Error) {
    if error.raw_os_error().is_some() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
