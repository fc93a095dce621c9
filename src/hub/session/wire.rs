//! MQTT packets over a byte stream: TLS, or WebSocket over TLS, whose frames need not be whole packets.

use std::io;

use bytes::BytesMut;
use futures_util::{SinkExt, StreamExt};
use rumqttc::{Packet, mqttbytes};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message},
};

/// Largest packet in either direction: the hub's own limit is 256 KiB.
pub(super) const MAX_PACKET: usize = 300_000;

/// What is read at a time at most.
const READ: usize = 4096;

/// One connection.
#[derive(Debug)]
pub(super) struct Wire {
    stream: Stream,
    /// What came and is no whole packet yet.
    buffer: BytesMut,
}

#[derive(Debug)]
pub(super) enum Stream {
    Tls(Box<TlsStream<TcpStream>>),
    WebSocket(Box<WebSocketStream<TlsStream<TcpStream>>>),
}

impl Wire {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
        }
    }

    /// The next packet. Can be cancelled without losing anything.
    pub(super) async fn read(&mut self) -> io::Result<Packet> {
        loop {
            match Packet::read(&mut self.buffer, MAX_PACKET) {
                Ok(packet) => return Ok(packet),
                Err(mqttbytes::Error::InsufficientBytes(_)) => self.fill().await?,
                Err(error) => {
                    let text = format!("what came is no MQTT ({error})");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
            }
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tls(stream) => {
                self.buffer.reserve(READ);
                if stream.read_buf(&mut self.buffer).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Stream::WebSocket(socket) => match socket.next().await {
                Some(Ok(Message::Binary(bytes))) => self.buffer.extend_from_slice(&bytes),
                Some(Ok(Message::Close(_))) | None => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                // Pings are answered by the library; text is none of MQTT's.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(websocket_io(error)),
            },
        }
        Ok(())
    }

    /// Sends `packets` in one go. Not to be cancelled but to drop the connection.
    pub(super) async fn write(&mut self, packets: &[Packet]) -> io::Result<()> {
        let mut bytes = BytesMut::new();
        for packet in packets {
            packet
                .write(&mut bytes, MAX_PACKET)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
        }
        match &mut self.stream {
            Stream::Tls(stream) => {
                stream.write_all(&bytes).await?;
                stream.flush().await
            }
            Stream::WebSocket(socket) => {
                let message = Message::Binary(bytes.freeze());
                socket.send(message).await.map_err(websocket_io)
            }
        }
    }

    /// Says goodbye on the layers below MQTT.
    pub(super) async fn close(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Tls(stream) => stream.shutdown().await,
            Stream::WebSocket(socket) => socket.close().await.map_err(websocket_io),
        }
    }
}

fn websocket_io(error: tungstenite::Error) -> io::Error {
    use tungstenite::Error as E;
    match error {
        E::Io(error) => error,
        E::ConnectionClosed | E::AlreadyClosed => io::ErrorKind::UnexpectedEof.into(),
        E::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake) => {
            io::ErrorKind::UnexpectedEof.into()
        }
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    }
}
