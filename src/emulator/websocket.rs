//! MQTT over WebSocket: `GET /$iothub/websocket` with subprotocol `mqtt`, binary frames.
//!
//! The frames are turned into a stream of bytes, in which packets and frames need not line up.

use std::io;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};
use tracing::debug;

use crate::device_ca::Chain;
use crate::mqtt;
use crate::rest::App;

/// Bytes in each direction that wait for the slower side.
const BUFFER: usize = 64 * 1024;

/// Upgrades the connection and serves MQTT on it.
pub(crate) async fn upgrade(
    State(app): State<App>,
    Extension(chain): Extension<Chain>,
    mut request: Request,
) -> Response {
    let headers = request.headers();
    let is_upgrade = has_token(headers, header::CONNECTION, "upgrade")
        && has_token(headers, header::UPGRADE, "websocket");
    let key = headers.get(header::SEC_WEBSOCKET_KEY).cloned();
    let (true, Some(key)) = (is_upgrade, key) else {
        return (StatusCode::BAD_REQUEST, "This path is for WebSocket.").into_response();
    };
    if !has_token(headers, header::SEC_WEBSOCKET_PROTOCOL, "mqtt") {
        return (StatusCode::BAD_REQUEST, "The subprotocol must be 'mqtt'.").into_response();
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let hub = app.hub.clone();
    let stop = app.stop.clone();
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let io = TokioIo::new(upgraded);
                let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
                let (near, far) = tokio::io::duplex(BUFFER);
                tokio::join!(mqtt::serve(hub, near, chain, stop), carry(socket, far));
            }
            Err(error) => debug!("a WebSocket upgrade failed: {error}"),
        }
    });
    (
        StatusCode::SWITCHING_PROTOCOLS,
        [
            (header::CONNECTION, "Upgrade".to_owned()),
            (header::UPGRADE, "websocket".to_owned()),
            (
                header::SEC_WEBSOCKET_ACCEPT,
                derive_accept_key(key.as_bytes()),
            ),
            (header::SEC_WEBSOCKET_PROTOCOL, "mqtt".to_owned()),
        ],
    )
        .into_response()
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// Carries bytes between the WebSocket and the MQTT side until one of them ends.
async fn carry<S>(socket: WebSocketStream<S>, stream: DuplexStream)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut to_client, mut from_client) = socket.split();
    let (mut from_hub, mut to_hub) = tokio::io::split(stream);
    let inwards = async {
        while let Some(message) = from_client.next().await {
            match message {
                Ok(Message::Binary(bytes)) => to_hub.write_all(&bytes).await?,
                // Answered by the library.
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(Message::Text(_) | Message::Frame(_) | Message::Close(_)) => break,
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        to_hub.shutdown().await
    };
    let outwards = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = from_hub.read(&mut buffer).await?;
            if length == 0 {
                let _ = to_client.close().await;
                return Ok(());
            }
            let bytes = Bytes::copy_from_slice(&buffer[..length]);
            match to_client.send(Message::Binary(bytes)).await {
                Ok(()) => {}
                Err(Error::Io(error)) => return Err(error),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    };
    let result: io::Result<()> = tokio::select! {
        result = inwards => result,
        result = outwards => result,
    };
    if let Err(error) = result {
        debug!("a WebSocket ended: {error}");
    }
}
