//! A bare MQTT client: it sends exactly the packets it is told to, right or wrong, and says what came back.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use bytes::BytesMut;
use futures_util::{SinkExt as _, StreamExt as _};
use iothub_emulator::{DeviceCertificate, Emulator};
use rumqttc::{Connect, ConnectReturnCode, Packet, Publish, QoS, Subscribe};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest as _, http::HeaderValue},
};

/// Longer than any answer takes on a busy machine.
pub(crate) const LONG: Duration = Duration::from_secs(20);
/// How long a test watches that nothing comes.
pub(crate) const QUIET: Duration = Duration::from_millis(300);

pub(crate) const TWIN: &str = "$iothub/twin/res/#";
pub(crate) const METHODS: &str = "$iothub/methods/POST/#";
pub(crate) const DESIRED: &str = "$iothub/twin/PATCH/properties/desired/#";

/// Bytes to and from the hub: TLS, or a WebSocket in TLS.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// One connection.
pub(crate) struct Client {
    stream: Box<dyn Wire>,
    buffer: BytesMut,
}

/// The members of a connection string.
pub(crate) fn members(text: &str) -> BTreeMap<&str, &str> {
    let parts = text.split(';');
    parts.filter_map(|part| part.split_once('=')).collect()
}

/// A token for `resource`, good for an hour.
pub(crate) fn token(resource: &str, key: &str) -> String {
    let expiry = jiff::Timestamp::now().as_second() as u64 + 3600;
    iothub_emulator::sign(resource, key, expiry, None).unwrap()
}

/// The primary key that the hub has for `device`.
pub(crate) fn key(emulator: &Emulator, device: &str) -> String {
    let ready = emulator.ready();
    members(&ready.devices[device])["SharedAccessKey"].to_owned()
}

/// A right CONNECT of `device` with its key, keeping its session.
pub(crate) fn connect(emulator: &Emulator, device: &str) -> Connect {
    connect_with_key(emulator, device, &key(emulator, device))
}

pub(crate) fn connect_with_key(emulator: &Emulator, device: &str, key: &str) -> Connect {
    let hub = &emulator.ready().hub_name;
    let mut connect = connect_with_certificate(emulator, device);
    let user = connect.login.clone().unwrap().username;
    connect.set_login(user, token(&format!("{hub}/devices/{device}"), key));
    connect
}

/// A CONNECT without a password.
pub(crate) fn connect_with_certificate(emulator: &Emulator, device: &str) -> Connect {
    let hub = &emulator.ready().hub_name;
    let mut connect = Connect::new(device);
    connect.keep_alive = 60;
    connect.clean_session = false;
    connect.set_login(format!("{hub}/{device}/?api-version=2021-04-12"), "");
    connect
}

/// TLS that trusts the emulator and shows `certificate`.
pub(crate) fn tls(emulator: &Emulator, certificate: Option<&DeviceCertificate>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(emulator.ca_file()).unwrap();
    roots.add(ca).unwrap();
    let builder =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
    match certificate {
        None => builder.with_no_client_auth(),
        Some(made) => {
            let chain = CertificateDer::pem_slice_iter(made.certificate.as_bytes());
            let key = PrivateKeyDer::from_pem_slice(made.private_key.as_bytes()).unwrap();
            builder
                .with_client_auth_cert(chain.map(Result::unwrap).collect(), key)
                .unwrap()
        }
    }
}

async fn reach(
    emulator: &Emulator,
    port: u16,
    certificate: Option<&DeviceCertificate>,
) -> io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from("localhost").unwrap();
    let connector = TlsConnector::from(Arc::new(tls(emulator, certificate)));
    connector.connect(name, socket).await
}

/// Carries bytes between a WebSocket and `far` until one of them ends. Each frame holds seven bytes at most, so
/// that no packet fits into one.
async fn carry(socket: WebSocketStream<TlsStream<TcpStream>>, far: DuplexStream) {
    let (mut to_hub, mut from_hub) = socket.split();
    let (mut from_client, mut to_client) = tokio::io::split(far);
    let inwards = async {
        while let Some(Ok(Message::Binary(bytes))) = from_hub.next().await {
            to_client.write_all(&bytes).await.unwrap();
        }
    };
    let outwards = async {
        let mut buffer = [0; 7];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            let frame = Message::Binary(buffer[..length].to_vec().into());
            if to_hub.send(frame).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = inwards => {}
        () = outwards => {}
    }
}

impl Client {
    /// A TLS connection, on which nothing was said yet.
    pub(crate) async fn dial(emulator: &Emulator, certificate: Option<&DeviceCertificate>) -> Self {
        let stream = reach(emulator, emulator.ready().mqtt_port, certificate).await;
        Self {
            stream: Box::new(stream.unwrap()),
            buffer: BytesMut::new(),
        }
    }

    /// A WebSocket connection, on which nothing was said yet.
    pub(crate) async fn dial_websocket(
        emulator: &Emulator,
        certificate: Option<&DeviceCertificate>,
    ) -> Self {
        let port = emulator.ready().https_port;
        let stream = reach(emulator, port, certificate).await.unwrap();
        let url = format!("wss://localhost:{port}/$iothub/websocket");
        let mut request = url.into_client_request().unwrap();
        let mqtt = HeaderValue::from_static("mqtt");
        request
            .headers_mut()
            .insert("Sec-WebSocket-Protocol", mqtt.clone());
        let (socket, response) = client_async(request, stream).await.unwrap();
        assert_eq!(response.headers()["Sec-WebSocket-Protocol"], mqtt);
        let (near, far) = tokio::io::duplex(64 * 1024);
        tokio::spawn(carry(socket, far));
        Self {
            stream: Box::new(near),
            buffer: BytesMut::new(),
        }
    }

    /// Dials and sends `connect`; the connection with the hub's code, or `None` when it just closed.
    pub(crate) async fn try_open(
        emulator: &Emulator,
        certificate: Option<&DeviceCertificate>,
        connect: Connect,
    ) -> (Self, Option<ConnectReturnCode>) {
        let mut client = Self::dial(emulator, certificate).await;
        let code = client.hello(connect).await;
        (client, code)
    }

    /// Sends `connect`; the hub's code, or `None` when it just closed.
    pub(crate) async fn hello(&mut self, connect: Connect) -> Option<ConnectReturnCode> {
        self.send(Packet::Connect(connect)).await;
        match self.next().await {
            Some(Packet::ConnAck(ack)) => Some(ack.code),
            Some(other) => panic!("not a CONNACK: {other:?}"),
            None => None,
        }
    }

    /// What the hub says to `connect`.
    pub(crate) async fn refusal(
        emulator: &Emulator,
        certificate: Option<&DeviceCertificate>,
        connect: Connect,
    ) -> Option<ConnectReturnCode> {
        Self::try_open(emulator, certificate, connect).await.1
    }

    /// A connection of `device` with its key.
    pub(crate) async fn open(emulator: &Emulator, device: &str) -> Self {
        Self::open_with(emulator, None, connect(emulator, device)).await
    }

    pub(crate) async fn open_with(
        emulator: &Emulator,
        certificate: Option<&DeviceCertificate>,
        connect: Connect,
    ) -> Self {
        let (client, code) = Self::try_open(emulator, certificate, connect).await;
        assert_eq!(code, Some(ConnectReturnCode::Success));
        client
    }

    /// The same, subscribed to twin answers, desired changes and methods.
    pub(crate) async fn up(emulator: &Emulator, device: &str) -> Self {
        let mut client = Self::open(emulator, device).await;
        client.subscribe(&[TWIN, METHODS, DESIRED]).await;
        client
    }

    pub(crate) async fn send(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, 1_000_000).unwrap();
        self.send_bytes(&bytes).await;
    }

    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        // The hub may have closed already: what it said shows at the next read.
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// The next packet; `None` when the hub closed the connection.
    pub(crate) async fn next(&mut self) -> Option<Packet> {
        timeout(LONG, self.read())
            .await
            .expect("the hub says something or closes")
    }

    /// Asserts that nothing comes for a moment.
    pub(crate) async fn is_quiet(&mut self) {
        if let Ok(packet) = timeout(QUIET, self.read()).await {
            panic!("not quiet: {packet:?}");
        }
    }

    async fn read(&mut self) -> Option<Packet> {
        loop {
            match Packet::read(&mut self.buffer, 1_000_000) {
                Ok(packet) => return Some(packet),
                Err(rumqttc::Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("the hub sent a malformed packet: {error}"),
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Asserts that the hub closes the connection, whatever it says before.
    pub(crate) async fn is_closed(&mut self) {
        while self.next().await.is_some() {}
    }

    /// Whether the hub closes the connection within `limit`.
    pub(crate) async fn is_closed_within(&mut self, limit: Duration) -> bool {
        timeout(limit, self.read()).await == Ok(None)
    }

    pub(crate) async fn subscribe(&mut self, filters: &[&str]) {
        self.send_subscribe(filters).await;
        match self.next().await {
            Some(Packet::SubAck(ack)) if ack.pkid == 7 => {}
            other => panic!("no SUBACK: {other:?}"),
        }
    }

    async fn send_subscribe(&mut self, filters: &[&str]) {
        let filters = filters
            .iter()
            .map(|filter| rumqttc::SubscribeFilter::new((*filter).to_owned(), QoS::AtMostOnce));
        let mut subscribe = Subscribe::new_many(filters);
        subscribe.pkid = 7;
        self.send(Packet::Subscribe(subscribe)).await;
    }

    pub(crate) async fn publish(&mut self, topic: &str, payload: impl Into<Vec<u8>>) {
        let publish = Publish::new(topic, QoS::AtMostOnce, payload);
        self.send(Packet::Publish(publish)).await;
    }

    /// The next packet, which must be a PUBLISH: topic and payload.
    pub(crate) async fn message(&mut self) -> (String, Vec<u8>) {
        match self.next().await {
            Some(Packet::Publish(publish)) => (publish.topic, publish.payload.to_vec()),
            other => panic!("not a PUBLISH: {other:?}"),
        }
    }

    /// Asks for the twin; the answer's topic and payload.
    pub(crate) async fn read_twin(&mut self, rid: &str) -> (String, Vec<u8>) {
        self.publish(&format!("$iothub/twin/GET/?$rid={rid}"), " ")
            .await;
        self.message().await
    }

    /// Connects if the hub lets it, as a device does that tries again later.
    pub(crate) async fn attempt(emulator: &Emulator, connect: Connect) -> Option<Self> {
        let stream = reach(emulator, emulator.ready().mqtt_port, None).await;
        let mut client = Self {
            stream: Box::new(stream.ok()?),
            buffer: BytesMut::new(),
        };
        client.send(Packet::Connect(connect)).await;
        match client.try_next(LONG).await? {
            Packet::ConnAck(ack) if ack.code == ConnectReturnCode::Success => Some(client),
            _ => None,
        }
    }

    /// The next packet, if one comes within `limit`.
    pub(crate) async fn try_next(&mut self, limit: Duration) -> Option<Packet> {
        timeout(limit, self.read()).await.ok().flatten()
    }

    /// Subscribes; `None` when the hub grants nothing or closes.
    pub(crate) async fn try_subscribe(&mut self, filters: &[&str]) -> Option<()> {
        self.send_subscribe(filters).await;
        let failed = |ack: &rumqttc::SubAck| {
            ack.return_codes
                .contains(&rumqttc::SubscribeReasonCode::Failure)
        };
        loop {
            match self.try_next(LONG).await? {
                Packet::SubAck(ack) if !failed(&ack) => return Some(()),
                Packet::SubAck(_) => return None,
                // Of a session that was kept, something may come first.
                _ => {}
            }
        }
    }

    /// Sends a reported patch, without waiting for the answer.
    pub(crate) async fn patch(&mut self, rid: &str, patch: &Value) {
        let topic = format!("$iothub/twin/PATCH/properties/reported/?$rid={rid}");
        self.publish(&topic, patch.to_string()).await;
    }

    /// Sends a reported patch; the answer's topic.
    pub(crate) async fn report(&mut self, patch: &Value) -> String {
        self.patch("p", patch).await;
        self.message().await.0
    }
}

/// An HTTPS client that trusts the emulator, and a token for its service side.
pub(crate) fn service(emulator: &Emulator) -> (reqwest::Client, String) {
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(tls(emulator, None))
        .build()
        .unwrap();
    let service = members(&emulator.ready().service_connection_string);
    let expiry = jiff::Timestamp::now().as_second() as u64 + 3600;
    let (key, owner) = (service["SharedAccessKey"], service["SharedAccessKeyName"]);
    let hub = &emulator.ready().hub_name;
    (
        http,
        iothub_emulator::sign(hub, key, expiry, Some(owner)).unwrap(),
    )
}
