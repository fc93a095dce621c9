//! A scripted hub: one TLS listener that speaks the device side of IoT Hub's MQTT for one device, and
//! misbehaves on request. It shares no code with the daemon but the packet codec.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::BytesMut;
use rumqttc::{
    ConnAck, Connect, ConnectReturnCode, Packet, Publish, QoS, SubAck, SubscribeReasonCode,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{self, ServerConfig, pki_types::PrivateKeyDer},
    server::TlsStream,
};

pub(crate) const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
pub(crate) const HUB: &str = "myhub.azure-devices.net";
pub(crate) const DEVICE: &str = "pi-01";

/// From where on the peer says nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mute {
    BeforeTls,
    BeforeConnAck,
    BeforeSubAck,
    BeforeTwin,
    /// On a connection that stands: it is dead, without a word.
    Dead,
}

/// What the peer did to a connection and how it is to behave.
#[derive(Default)]
pub(crate) struct Script {
    /// CONNACK codes for the next connections; then accepted.
    pub(crate) refuse: VecDeque<ConnectReturnCode>,
    /// Refuse every connection while set.
    pub(crate) refuse_all: Option<ConnectReturnCode>,
    /// Connections that are closed as soon as the twin was read.
    pub(crate) kick: u32,
    /// Statuses for the next twin reads; then 200.
    pub(crate) read_status: VecDeque<u16>,
    /// Statuses for the next patches; 0 is silence; then 204.
    pub(crate) patch_status: VecDeque<u16>,
    /// Say nothing any more from here on.
    pub(crate) mute: Option<Mute>,
    /// Grant no subscription.
    pub(crate) no_subscriptions: bool,
}

/// What the peer saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) connects: Vec<Connect>,
    pub(crate) disconnects: usize,
    pub(crate) patches: Vec<(String, Value)>,
    pub(crate) filters: Vec<Vec<String>>,
}

pub(crate) struct State {
    pub(crate) script: Script,
    pub(crate) seen: Seen,
    pub(crate) reported: Value,
    pub(crate) desired: Value,
    next_rid: u32,
    calls: HashMap<String, oneshot::Sender<(i32, Value)>>,
    line: Option<mpsc::UnboundedSender<Line>>,
}

/// What a test sends down the present connection.
enum Line {
    Packet(Packet),
    Raw(Vec<u8>),
    Close,
    Mute,
}

pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    listener: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Peer {
    pub(crate) async fn start() -> Self {
        let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let certificate = certified.cert.der().clone();
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let server = ServerConfig::builder_with_provider(ring.clone())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(ring)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();

        let state = Arc::new(Mutex::new(State {
            script: Script::default(),
            seen: Seen::default(),
            reported: json!({"$version": 1}),
            desired: json!({"$version": 1}),
            next_rid: 9,
            calls: HashMap::new(),
            line: None,
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let shared = Arc::clone(&state);
        let listener = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&shared));
                tokio::spawn(async move {
                    mute(&state, Mute::BeforeTls).await;
                    // A client that gives up in the middle is not the peer's concern.
                    if let Ok(stream) = acceptor.accept(socket).await {
                        let _ = serve(Wire::new(stream), state).await;
                    }
                });
            }
        });
        Self {
            address,
            state,
            tls: Arc::new(client),
            listener,
        }
    }

    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.state.lock().unwrap())
    }

    /// Waits until `condition` holds.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&State) -> bool) {
        let wait = async {
            while !self.with(|state| condition(state)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), wait)
            .await
            .unwrap_or_else(|_| panic!("never: {what}"));
    }

    fn send(&self, line: Line) {
        self.with(|state| {
            if let Some(sender) = &state.line {
                let _ = sender.send(line);
            }
        });
    }

    pub(crate) fn publish(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        let publish = Publish::new(topic, QoS::AtMostOnce, payload);
        self.send(Line::Packet(Packet::Publish(publish)));
    }

    pub(crate) fn raw(&self, bytes: &[u8]) {
        self.send(Line::Raw(bytes.to_vec()));
    }

    pub(crate) fn close(&self) {
        self.send(Line::Close);
    }

    /// The network drops everything from now on.
    pub(crate) fn mute(&self) {
        self.with(|state| state.script.mute = Some(Mute::Dead));
        self.send(Line::Mute);
    }

    /// Calls a method as the hub does; request ids are hex.
    pub(crate) fn call(&self, name: &str, payload: &str) -> oneshot::Receiver<(i32, Value)> {
        let (sender, receiver) = oneshot::channel();
        let rid = self.with(|state| {
            state.next_rid += 1;
            let rid = format!("{:x}", state.next_rid);
            state.calls.insert(rid.clone(), sender);
            rid
        });
        self.publish(&format!("$iothub/methods/POST/{name}/?$rid={rid}"), payload);
        receiver
    }

    /// Calls a method `count` times, all in one write.
    pub(crate) fn flood(&self, name: &str, count: u32) -> Vec<oneshot::Receiver<(i32, Value)>> {
        let mut bytes = BytesMut::new();
        let mut calls = Vec::new();
        for number in 0..count {
            let (sender, receiver) = oneshot::channel();
            let rid = format!("flood-{number:x}");
            let topic = format!("$iothub/methods/POST/{name}/?$rid={rid}");
            let publish = Publish::new(topic, QoS::AtMostOnce, Vec::new());
            let packet = Packet::Publish(publish);
            packet.write(&mut bytes, 1_000_000).unwrap();
            self.with(|state| state.calls.insert(rid, sender));
            calls.push(receiver);
        }
        self.raw(&bytes);
        calls
    }

    /// Changes desired properties as the service does, and pushes the change.
    pub(crate) fn desire(&self, patch: Value) {
        let version = self.desire_silently(patch.clone());
        let mut body = patch;
        body["$version"] = version.into();
        let topic = format!("$iothub/twin/PATCH/properties/desired/?$version={version}");
        self.publish(&topic, body.to_string());
    }

    /// Changes desired properties; the push is lost.
    pub(crate) fn desire_silently(&self, patch: Value) -> u64 {
        self.with(|state| {
            for (name, value) in patch.as_object().unwrap() {
                state.desired[name] = value.clone();
            }
            let version = state.desired["$version"].as_u64().unwrap() + 1;
            state.desired["$version"] = version.into();
            version
        })
    }
}

struct Wire {
    stream: TlsStream<tokio::net::TcpStream>,
    buffer: BytesMut,
}

impl Wire {
    fn new(stream: TlsStream<tokio::net::TcpStream>) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
        }
    }

    /// The next packet. Can be cancelled.
    async fn read(&mut self) -> io::Result<Packet> {
        loop {
            match Packet::read(&mut self.buffer, 1_000_000) {
                Ok(packet) => return Ok(packet),
                Err(rumqttc::Error::InsufficientBytes(_)) => {}
                Err(error) => return Err(io::Error::other(error)),
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn write(&mut self, packet: &Packet) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        packet
            .write(&mut bytes, 1_000_000)
            .map_err(io::Error::other)?;
        self.stream.write_all(&bytes).await?;
        self.stream.flush().await
    }

    async fn publish(&mut self, topic: String, payload: impl Into<Vec<u8>>) -> io::Result<()> {
        self.write(&Packet::Publish(Publish::new(
            topic,
            QoS::AtMostOnce,
            payload,
        )))
        .await
    }
}

/// Says nothing for ever, if the peer is to be silent from `here` on.
async fn mute(state: &Mutex<State>, here: Mute) {
    let mute = state.lock().unwrap().script.mute;
    if mute.is_some_and(|mute| mute == here) {
        std::future::pending().await
    }
}

async fn serve(mut wire: Wire, state: Arc<Mutex<State>>) -> io::Result<()> {
    let with = |f: &mut dyn FnMut(&mut State)| f(&mut state.lock().unwrap());
    let Packet::Connect(connect) = wire.read().await? else {
        return Ok(());
    };
    mute(&state, Mute::BeforeConnAck).await;
    let mut code = ConnectReturnCode::Success;
    with(&mut |state| {
        state.seen.connects.push(connect.clone());
        let login = connect.login.clone().unwrap();
        code = if let Some(code) = state.script.refuse_all {
            code
        } else if let Some(code) = state.script.refuse.pop_front() {
            code
        } else if login
            .username
            .starts_with(&format!("{HUB}/{DEVICE}/?api-version=2021-04-12&"))
            && connect.client_id == DEVICE
            && token_is_valid(&login.password)
        {
            ConnectReturnCode::Success
        } else {
            ConnectReturnCode::NotAuthorized
        };
    });
    wire.write(&Packet::ConnAck(ConnAck::new(code, false)))
        .await?;
    if code != ConnectReturnCode::Success {
        return Ok(());
    }
    let (sender, mut line) = mpsc::unbounded_channel();
    with(&mut |state| state.line = Some(sender.clone()));
    let end = token_expiry(&connect.login.unwrap().password);
    // Both are whole seconds: a second of grace, lest a token that lives for seconds ends before its time.
    let expired = tokio::time::sleep(Duration::from_secs(end.saturating_sub(now()) + 1));
    tokio::pin!(expired);
    loop {
        tokio::select! {
            packet = wire.read() => {
                if !handle(&mut wire, packet?, &state).await? {
                    return Ok(());
                }
            }
            next = line.recv() => match next {
                Some(Line::Packet(packet)) => wire.write(&packet).await?,
                Some(Line::Raw(bytes)) => wire.stream.write_all(&bytes).await?,
                Some(Line::Mute) => mute(&state, Mute::Dead).await,
                Some(Line::Close) | None => return Ok(()),
            },
            () = &mut expired => return Ok(()),
        }
    }
}

async fn handle(wire: &mut Wire, packet: Packet, state: &Arc<Mutex<State>>) -> io::Result<bool> {
    match packet {
        Packet::Subscribe(subscribe) => {
            mute(state, Mute::BeforeSubAck).await;
            let refused = {
                let mut state = state.lock().unwrap();
                let filters = subscribe.filters.iter().map(|f| f.path.clone()).collect();
                state.seen.filters.push(filters);
                state.script.no_subscriptions
            };
            let code = match refused {
                true => SubscribeReasonCode::Failure,
                false => SubscribeReasonCode::Success(QoS::AtMostOnce),
            };
            let codes = vec![code; subscribe.filters.len()];
            wire.write(&Packet::SubAck(SubAck::new(subscribe.pkid, codes)))
                .await?;
        }
        Packet::Publish(publish) => return handle_publish(wire, publish, state).await,
        Packet::PingReq => wire.write(&Packet::PingResp).await?,
        Packet::Disconnect => {
            state.lock().unwrap().seen.disconnects += 1;
            return Ok(false);
        }
        other => return Err(io::Error::other(format!("unexpected {other:?}"))),
    }
    Ok(true)
}

async fn handle_publish(
    wire: &mut Wire,
    publish: Publish,
    state: &Arc<Mutex<State>>,
) -> io::Result<bool> {
    let (path, rid) = publish
        .topic
        .split_once("?$rid=")
        .expect("every topic of a device has an id");
    let rid = rid.to_owned();
    match path {
        "$iothub/twin/GET/" => {
            mute(state, Mute::BeforeTwin).await;
            let (status, body, kick) = {
                let mut state = state.lock().unwrap();
                let status = state.script.read_status.pop_front().unwrap_or(200);
                let twin = json!({"reported": state.reported, "desired": state.desired});
                let kick = state.script.kick > 0;
                state.script.kick = state.script.kick.saturating_sub(1);
                (status, twin.to_string(), kick)
            };
            let body = if status == 200 { body } else { String::new() };
            wire.publish(format!("$iothub/twin/res/{status}/?$rid={rid}"), body)
                .await?;
            return Ok(!kick);
        }
        "$iothub/twin/PATCH/properties/reported/" => {
            let patch: Value = serde_json::from_slice(&publish.payload).unwrap();
            let (status, version) = {
                let mut state = state.lock().unwrap();
                state.seen.patches.push((rid.clone(), patch.clone()));
                let status = state.script.patch_status.pop_front().unwrap_or(204);
                if status == 204 {
                    let version = state.reported["$version"].as_u64().unwrap() + 1;
                    for (name, value) in patch.as_object().unwrap() {
                        state.reported[name] = value.clone();
                    }
                    state.reported["$version"] = version.into();
                }
                (status, state.reported["$version"].clone())
            };
            let tail = match status {
                0 => return Ok(true),
                204 => format!("&$version={version}"),
                _ => "&retry-after=1".to_owned(),
            };
            wire.publish(format!("$iothub/twin/res/{status}/?$rid={rid}{tail}"), "")
                .await?;
        }
        _ => {
            let status = path
                .strip_prefix("$iothub/methods/res/")
                .expect("a method's answer");
            let status = status.trim_end_matches('/').parse().unwrap();
            let body = serde_json::from_slice(&publish.payload).expect("an answer is JSON");
            let call = state.lock().unwrap().calls.remove(&rid);
            if let Some(call) = call {
                let _ = call.send((status, body));
            }
        }
    }
    Ok(true)
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

fn token_expiry(token: &str) -> u64 {
    token.rsplit_once("&se=").unwrap().1.parse().unwrap()
}

fn token_is_valid(token: &str) -> bool {
    let expiry = token_expiry(token);
    let resource = format!("{HUB}%2Fdevices%2F{DEVICE}");
    let key = STANDARD.decode(KEY).unwrap();
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &key);
    let signature = ring::hmac::sign(&key, format!("{resource}\n{expiry}").as_bytes());
    let signature = STANDARD.encode(signature);
    let signature = signature
        .replace('+', "%2B")
        .replace('/', "%2F")
        .replace('=', "%3D");
    let right = format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry}");
    token == right && expiry > now()
}
