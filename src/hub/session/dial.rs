//! From a host name to an MQTT connection: name resolution, TCP, proxy, TLS, WebSocket, CONNECT.
//!
//! The name is resolved at each attempt. A host with several addresses is tried address by address, the
//! families in turn, the next one [`HEAD_START`] after the one before or as soon as that failed: a family
//! that leads nowhere delays the connection, no more (after RFC 8305). An address that takes TCP and then leads
//! nowhere (a black hole for long packets, a dead front end) costs one attempt: the next begins with another one.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use rumqttc::{Connect, ConnectReturnCode, Packet};
use rustls::{AlertDescription, pki_types::ServerName};
use tokio::{
    net::{TcpStream, lookup_host},
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::{
    self, ClientRequestBuilder, http::Uri, protocol::WebSocketConfig,
};

use super::{
    SessionError,
    error::Cause,
    proxy::{self, ProxyError},
    route::{Endpoint, Via, authority},
    wire::{MAX_PACKET, Stream, Wire},
};

/// For everything from name resolution to CONNACK together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an address is tried alone.
const HEAD_START: Duration = Duration::from_millis(250);

/// The path that hub and provisioning service listen on.
const WEBSOCKET_PATH: &str = "/$iothub/websocket";

/// How CONNECT went.
#[derive(Debug)]
pub(super) enum Connected {
    /// CONNACK 0.
    Accepted(Wire),
    /// CONNACK 4 or 5, or a TLS alert about our certificate.
    CredentialsRefused,
}

/// Connects to `endpoint` and says `connect`, within [`CONNECT_TIMEOUT`].
pub(super) async fn connect(
    endpoint: &Endpoint,
    connect: Connect,
) -> Result<Connected, SessionError> {
    let mut stage = "name resolution";
    let work = async {
        let mut wire = match dial(endpoint, &mut stage).await {
            Err(SessionError::CertificateAlert) => return Ok(Connected::CredentialsRefused),
            other => other?,
        };
        stage = "CONNECT";
        match handshake(&mut wire, connect).await {
            Ok(ConnectReturnCode::Success) => Ok(Connected::Accepted(wire)),
            Ok(ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized) => {
                Ok(Connected::CredentialsRefused)
            }
            Ok(ConnectReturnCode::ServiceUnavailable) => Err(SessionError::Unavailable),
            Ok(code) => Err(SessionError::Refused(format!("{code:?}"))),
            // With TLS 1.3 the server judges the certificate after our side of the handshake is done.
            Err(error) if is_certificate_alert(&error) => Ok(Connected::CredentialsRefused),
            Err(error) if is_tls(&error) => Err(tls_failed(endpoint, error)),
            Err(error) => Err(SessionError::ClosedEarly {
                at: endpoint.authority(),
                source: cause(error),
            }),
        }
    };
    match timeout(CONNECT_TIMEOUT, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(SessionError::Timeout {
            at: endpoint.authority(),
            stage,
        }),
    }
}

async fn handshake(wire: &mut Wire, connect: Connect) -> io::Result<ConnectReturnCode> {
    wire.write(&[Packet::Connect(connect)]).await?;
    match wire.read().await? {
        Packet::ConnAck(answer) => Ok(answer.code),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "what came is no answer to CONNECT",
        )),
    }
}

/// Everything before CONNECT; `stage` says at any time how far it came.
pub(super) async fn dial(
    endpoint: &Endpoint,
    stage: &mut &'static str,
) -> Result<Wire, SessionError> {
    let at = endpoint.authority();
    let first = match &endpoint.proxy {
        Some(proxy) => (proxy.host.as_str(), proxy.port),
        None => (endpoint.host.as_str(), endpoint.port),
    };
    let unreachable = |source| SessionError::Unreachable {
        at: authority(first.0, first.1),
        source: cause(source),
    };
    let addresses = resolve(first, endpoint.skip).await.map_err(unreachable)?;
    *stage = "TCP";
    let mut tcp = reach(addresses).await.map_err(unreachable)?;
    // Small packets must not wait for each other; without it they come late, no more.
    let _ = tcp.set_nodelay(true);

    if let Some(proxy) = &endpoint.proxy {
        *stage = "the proxy";
        let through = proxy::connect(&mut tcp, &at, proxy.authorization.as_ref());
        through.await.map_err(|error| match error {
            ProxyError::Authorization => SessionError::ProxyAuthorization {
                proxy: authority(&proxy.host, proxy.port),
            },
            ProxyError::Refused(status) => SessionError::ProxyRefused {
                proxy: authority(&proxy.host, proxy.port),
                at: at.clone(),
                status,
            },
            ProxyError::Io(source) => SessionError::ProxyFailed {
                proxy: authority(&proxy.host, proxy.port),
                source: cause(source),
            },
        })?;
    }

    *stage = "TLS";
    let name = ServerName::try_from(endpoint.host.clone())
        .map_err(|error| tls_failed(endpoint, io::Error::other(error)))?;
    let connector = TlsConnector::from(Arc::clone(&endpoint.tls));
    let tls = match connector.connect(name, tcp).await {
        Ok(tls) => tls,
        Err(error) if is_certificate_alert(&error) => return Err(SessionError::CertificateAlert),
        Err(error) if is_tls(&error) => return Err(tls_failed(endpoint, error)),
        Err(source) => {
            let source = cause(source);
            return Err(SessionError::ClosedEarly { at, source });
        }
    };
    if let Via::Mqtt = endpoint.via {
        return Ok(Wire::new(Stream::Tls(Box::new(tls))));
    }

    *stage = "WebSocket";
    let refused = |source: tungstenite::Error| SessionError::WebSocket {
        at: at.clone(),
        source: match source {
            tungstenite::Error::Io(source) => cause(source),
            tungstenite::Error::Http(answer) => {
                format!("it answered with HTTP status {}", answer.status()).into()
            }
            other => other.to_string().into(),
        },
    };
    let uri: Uri = format!("wss://{at}{WEBSOCKET_PATH}")
        .parse()
        .map_err(|error: tungstenite::http::uri::InvalidUri| refused(error.into()))?;
    let request = ClientRequestBuilder::new(uri).with_sub_protocol("mqtt");
    let socket = tokio_tungstenite::client_async_with_config(request, tls, Some(websocket()));
    let (socket, _) = socket.await.map_err(refused)?;
    Ok(Wire::new(Stream::WebSocket(Box::new(socket))))
}

/// Small buffers: a connection is idle nearly always.
fn websocket() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4096)
        .write_buffer_size(0)
        .max_message_size(Some(4 * MAX_PACKET))
        .max_frame_size(Some(4 * MAX_PACKET))
}

async fn resolve(host: (&str, u16), skip: usize) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<SocketAddr> = lookup_host(host).await?.collect();
    Ok(in_turn(found, skip))
}

/// The families one after the other, beginning with the system's first choice; the first `skip` of them at the end.
fn in_turn(addresses: Vec<SocketAddr>, skip: usize) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses
        .into_iter()
        .partition(|address| address.is_ipv6() == first_is_v6);
    let longest = first.len().max(second.len());
    let mut all: Vec<SocketAddr> = (0..longest)
        .flat_map(|at| [first.get(at), second.get(at)])
        .flatten()
        .copied()
        .collect();
    let skip = skip % all.len().max(1);
    all.rotate_left(skip);
    all
}

/// A connection to the first of `addresses` that takes one.
async fn reach(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter().peekable();
    let mut tried = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        match waiting.next() {
            Some(address) => tried.push(TcpStream::connect(address)),
            None if tried.is_empty() => return Err(last),
            None => {}
        }
        tokio::select! {
            Some(outcome) = tried.next() => match outcome {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            },
            () = sleep(HEAD_START), if waiting.peek().is_some() => {}
        }
    }
}

fn tls_failed(endpoint: &Endpoint, source: io::Error) -> SessionError {
    SessionError::Tls {
        at: endpoint.authority(),
        source: cause(source),
    }
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// Whether TLS itself failed, and not what carries it.
fn is_tls(error: &io::Error) -> bool {
    rustls_error(error).is_some()
}

/// Whether the server does not like the certificate that we showed, or that we showed none.
fn is_certificate_alert(error: &io::Error) -> bool {
    use AlertDescription as A;
    let alert = match rustls_error(error) {
        Some(rustls::Error::AlertReceived(alert)) => alert,
        _ => return false,
    };
    matches!(
        alert,
        A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRevoked
            | A::CertificateExpired
            | A::CertificateUnknown
            | A::UnknownCA
            | A::AccessDenied
            | A::CertificateRequired
    )
}

/// The reason in words for people.
pub(super) fn cause(error: io::Error) -> Cause {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "the other side closed it without a word".into(),
        _ => error.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_families_take_turns_and_the_systems_first_choice_comes_first() {
        let mixed = addresses(&["[::1]:1", "[::2]:1", "1.1.1.1:1"]);
        assert_eq!(
            in_turn(mixed.clone(), 0),
            addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1"])
        );
        // What took the connection and then led nowhere is not tried first again.
        let next = addresses(&["1.1.1.1:1", "[::2]:1", "[::1]:1"]);
        assert_eq!(in_turn(mixed.clone(), 1), next);
        assert_eq!(in_turn(mixed, 4), next);
        let v4_first = addresses(&["1.1.1.1:1", "[::1]:1"]);
        assert_eq!(in_turn(v4_first.clone(), 0), v4_first);
        assert_eq!(in_turn(Vec::new(), 3), Vec::new());
    }

    #[tokio::test]
    async fn an_address_that_refuses_or_never_answers_does_not_keep_from_the_next() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let open = listener.local_addr().unwrap();
        let closed = {
            let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
            taken.local_addr().unwrap()
        };
        // A listener whose queue is full answers no further SYN: the way into nowhere.
        let full = tokio::net::TcpSocket::new_v4().unwrap();
        full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = full.listen(1).unwrap();
        let silent = full.local_addr().unwrap();
        let mut held = Vec::new();
        while let Ok(Ok(stream)) = timeout(HEAD_START, TcpStream::connect(silent)).await {
            held.push(stream);
        }
        for first in [closed, silent] {
            let stream = timeout(CONNECT_TIMEOUT / 3, reach(vec![first, open]))
                .await
                .expect("no full time-out of TCP")
                .unwrap();
            assert_eq!(stream.peer_addr().unwrap(), open);
        }
        assert!(reach(vec![closed, closed]).await.is_err());
        assert!(reach(Vec::new()).await.is_err());
    }
}
