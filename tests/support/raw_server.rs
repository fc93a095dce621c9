//! A server that sends whatever bytes a test likes, over plain TCP: what no HTTP library would send.

// Each test uses its own part of this.
#![allow(dead_code)]

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// The server; its listener is gone when it is dropped, a connection with its client.
pub(crate) struct RawServer {
    port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    connections: AtomicUsize,
    sent: AtomicU64,
    heads: Mutex<Vec<String>>,
}

/// One request, and the connection to answer it on.
pub(crate) struct Asked<'a> {
    /// The request's head.
    pub(crate) head: String,
    /// Which request it is, of all, from 0.
    pub(crate) number: usize,
    stream: &'a mut TcpStream,
    shared: &'a Shared,
}

impl Asked<'_> {
    /// Sends these bytes; `false` when the client is gone.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let bytes = bytes.as_ref();
        self.shared
            .sent
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.stream.write_all(bytes).is_ok()
    }

    /// As [`Self::send`], to end the connection: `false`.
    pub(crate) fn send_last(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.send(bytes);
        false
    }

    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The range asked for: first byte, and one past the last.
    pub(crate) fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self
            .header("range")?
            .strip_prefix("bytes=")?
            .split_once('-')?;
        let last = last.parse::<usize>().map_or(usize::MAX, |last| last + 1);
        Some((first.parse().ok()?, last))
    }

    /// Sends it again and again, until the client is gone or 64 MiB are sent; `false`, to end the connection.
    pub(crate) fn send_for_ever(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let mut left = 64 << 20;
        while left > 0 && self.send(&bytes) {
            left -= bytes.as_ref().len().min(left);
        }
        false
    }

    /// As [`Self::send_for_ever`], with a pause before each.
    pub(crate) fn drip(&mut self, bytes: impl AsRef<[u8]>, pause: Duration) -> bool {
        while self.send(&bytes) {
            std::thread::sleep(pause);
        }
        false
    }
}

impl RawServer {
    /// `answer` answers each request, and says whether the connection stays.
    pub(crate) fn start(answer: impl Fn(&mut Asked<'_>) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::<Shared>::default();
        let (answer, for_all) = (Arc::new(answer), Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if for_all.stop.load(Ordering::Relaxed) {
                    return;
                }
                for_all.connections.fetch_add(1, Ordering::Relaxed);
                let (answer, shared) = (Arc::clone(&answer), Arc::clone(&for_all));
                std::thread::spawn(move || serve(stream, &*answer, &shared));
            }
        });
        Self {
            port,
            shared,
            thread: Some(thread),
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://localhost:{}{path}", self.port)
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Bytes handed to connections so far, heads included.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// The heads of the requests so far.
    pub(crate) fn heads(&self) -> Vec<String> {
        self.shared.heads.lock().unwrap().clone()
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // Wakes the listener.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, answer: &dyn Fn(&mut Asked<'_>) -> bool, shared: &Shared) {
    // Whoever has lost interest without closing shall not hold a thread for ever.
    let limit = Some(Duration::from_secs(20));
    stream.set_write_timeout(limit).unwrap();
    stream.set_read_timeout(limit).unwrap();
    loop {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let number = {
            let mut heads = shared.heads.lock().unwrap();
            heads.push(head.clone());
            heads.len() - 1
        };
        let mut asked = Asked {
            head,
            number,
            stream: &mut stream,
            shared,
        };
        if !answer(&mut asked) {
            return;
        }
    }
}
