//! Moves packets between one connection and its [`super::link`], and keeps it alive: the task that owns the
//! socket, so that nobody else ever waits for the network.
//!
//! A PINGREQ goes out when nothing was sent or nothing came for a keep-alive. What is asked, and that
//! something came, is told to the link, which judges silence.

use std::{io, time::Duration};

use rumqttc::{Connect, Packet, Publish, SubscribeReasonCode};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use super::{
    SessionError,
    dial::{self, Connected, cause},
    packets,
    route::Endpoint,
    wire::Wire,
};

/// For each flush.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

/// For the goodbye of TLS and WebSocket.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Packets that are sent in one go.
const BATCH: usize = 32;

/// What the pump tells.
#[derive(Debug)]
pub(super) enum Polled {
    ConnAck,
    /// How many filters were granted.
    SubAck(usize),
    Publish(Publish),
    /// Something else came.
    Heard,
    PingSent,
    /// The DISCONNECT has left.
    DisconnectSent,
    /// Our credentials were refused.
    CredentialsRefused,
    Ended(SessionError),
}

/// Connects to `endpoint` with `connect`, then moves packets until the connection ends.
pub(super) async fn run(
    endpoint: Endpoint,
    connect: Connect,
    requests: mpsc::Receiver<Packet>,
    polled: mpsc::Sender<Polled>,
) {
    let keep_alive = Duration::from_secs(connect.keep_alive.into());
    let last = match dial::connect(&endpoint, connect).await {
        Ok(Connected::Accepted(wire)) => {
            if polled.send(Polled::ConnAck).await.is_err() {
                return;
            }
            let pump = Pump {
                wire,
                requests,
                polled: polled.clone(),
                keep_alive,
            };
            match pump.run().await {
                Ok(()) => return,
                Err(source) => Polled::Ended(SessionError::Lost {
                    at: endpoint.authority(),
                    source: cause(source),
                }),
            }
        }
        Ok(Connected::CredentialsRefused) => Polled::CredentialsRefused,
        Err(error) => Polled::Ended(error),
    };
    // Nobody listens any more: then nobody wants to know.
    let _ = polled.send(last).await;
}

struct Pump {
    wire: Wire,
    requests: mpsc::Receiver<Packet>,
    polled: mpsc::Sender<Polled>,
    keep_alive: Duration,
}

impl Pump {
    /// Until a DISCONNECT was sent or nobody listens (`Ok`), or the connection is lost.
    async fn run(mut self) -> io::Result<()> {
        let (mut sent, mut heard) = (Instant::now(), Instant::now());
        let mut pinged = false;
        let mut batch = Vec::new();
        loop {
            let wake = sent.min(heard) + self.keep_alive;
            tokio::select! {
                packet = self.wire.read() => {
                    (heard, pinged) = (Instant::now(), false);
                    if !self.handle(packet?).await? {
                        return Ok(());
                    }
                }
                count = self.requests.recv_many(&mut batch, BATCH) => {
                    let leaving = matches!(batch.last(), Some(Packet::Disconnect));
                    if count == 0 {
                        return Ok(());
                    }
                    flush(&mut self.wire, &batch).await?;
                    batch.clear();
                    sent = Instant::now();
                    if leaving {
                        // What counts has left; the rest is courtesy.
                        let _ = timeout(CLOSE_TIMEOUT, self.wire.close()).await;
                        let _ = self.polled.send(Polled::DisconnectSent).await;
                        return Ok(());
                    }
                }
                () = sleep_until(wake), if !pinged => {
                    flush(&mut self.wire, &[Packet::PingReq]).await?;
                    (sent, pinged) = (Instant::now(), true);
                    if self.polled.send(Polled::PingSent).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// False when nobody listens any more.
    async fn handle(&mut self, packet: Packet) -> io::Result<bool> {
        let tell = match packet {
            Packet::Publish(publish) => {
                match timeout(
                    FLUSH_TIMEOUT,
                    packets::acknowledge(&mut self.wire, &publish),
                )
                .await
                {
                    Ok(acknowledged) => acknowledged?,
                    Err(_) => return Err(stuck()),
                }
                Polled::Publish(publish)
            }
            Packet::SubAck(ack) => {
                let granted = |code: &_| matches!(code, SubscribeReasonCode::Success(_));
                Polled::SubAck(ack.return_codes.iter().filter(|code| granted(code)).count())
            }
            _ => Polled::Heard,
        };
        Ok(self.polled.send(tell).await.is_ok())
    }
}

async fn flush(wire: &mut Wire, packets: &[Packet]) -> io::Result<()> {
    match timeout(FLUSH_TIMEOUT, wire.write(packets)).await {
        Ok(written) => written,
        Err(_) => Err(stuck()),
    }
}

fn stuck() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the network takes nothing")
}
