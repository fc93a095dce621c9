//! A relay between device and hub, which cuts, silences and refuses connections as networks do. To the device it is an
//! HTTP proxy, since the name and the certificate must stay the hub's.

use std::{io, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

/// What happens to the connections that stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Pass,
    /// A reset, on both sides.
    Reset,
    /// Nothing passes any more, and nobody is told.
    Silence,
}

/// The relay. Ends when dropped.
pub(crate) struct Relay {
    port: u16,
    fate: Arc<watch::Sender<Fate>>,
    refuse: Arc<watch::Sender<bool>>,
    accepting: JoinHandle<()>,
}

impl Relay {
    /// A relay on a free port of this machine.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let fate = Arc::new(watch::Sender::new(Fate::Pass));
        let refuse = Arc::new(watch::Sender::new(false));
        let accepting = tokio::spawn(accept(listener, Arc::clone(&fate), Arc::clone(&refuse)));
        Self {
            port,
            fate,
            refuse,
            accepting,
        }
    }

    /// The line of `[hub]` that leads through it.
    pub(crate) fn setting(&self) -> String {
        format!("proxy = \"http://127.0.0.1:{}\"", self.port)
    }

    /// Resets the connections that stand; new ones pass.
    pub(crate) fn reset(&self) {
        self.fate.send_replace(Fate::Reset);
    }

    /// Silences the connections that stand; new ones pass.
    pub(crate) fn silence(&self) {
        self.fate.send_replace(Fate::Silence);
    }

    /// Resets the connections that stand, and each new one until told otherwise.
    pub(crate) fn set_down(&self, down: bool) {
        self.refuse.send_replace(down);
        if down {
            self.reset();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
        // Those that stand end with it.
        self.reset();
    }
}

async fn accept(
    listener: TcpListener,
    fate: Arc<watch::Sender<Fate>>,
    refuse: Arc<watch::Sender<bool>>,
) {
    loop {
        let Ok((device, _)) = listener.accept().await else {
            continue;
        };
        if *refuse.borrow() {
            // A test's network, not ours, is at fault when this fails.
            let _ = device.set_zero_linger();
            continue;
        }
        let mut told = fate.subscribe();
        tokio::spawn(async move {
            // A device that the hub refuses sees a closed connection.
            let _ = relay(device, &mut told).await;
        });
    }
}

async fn relay(mut device: TcpStream, told: &mut watch::Receiver<Fate>) -> io::Result<()> {
    // What was told before this connection does not count.
    told.mark_unchanged();
    let target = target(&mut device).await?;
    let mut hub = TcpStream::connect(target).await?;
    device.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    device.set_nodelay(true)?;
    hub.set_nodelay(true)?;
    tokio::select! {
        copied = copy_bidirectional(&mut device, &mut hub) => return copied.map(drop),
        _ = told.changed() => {}
    }
    if *told.borrow_and_update() == Fate::Silence {
        // Held open until the next order.
        let _ = told.changed().await;
    }
    device.set_zero_linger()?;
    hub.set_zero_linger()
}

/// Where the device wants to go: `CONNECT host:port HTTP/1.1` and some headers.
async fn target(device: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(device.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    let target = head
        .strip_prefix("CONNECT ")
        .and_then(|rest| rest.split(' ').next());
    target
        .map(str::to_owned)
        .ok_or_else(|| io::Error::other("no CONNECT"))
}
