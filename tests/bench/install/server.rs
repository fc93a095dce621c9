//! The web server of the benchmark: files of one folder over plain HTTP/1.1 on loopback, with ranges, several ranges in
//! one answer (zchunk asks so), and a count of requests and bytes.
//!
//! A thread a connection, the kernel copies from file to socket: it must never be what bounds a download.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

/// What was asked for and sent since [`Server::reset`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Served {
    /// Requests answered.
    pub(crate) requests: u64,
    /// Bytes of bodies, the heads between several ranges included.
    pub(crate) bytes: u64,
    /// Of these, bytes of ranges that begin behind the [mark](Server::mark).
    pub(crate) behind: u64,
}

#[derive(Default)]
struct Counters {
    requests: AtomicU64,
    bytes: AtomicU64,
    behind: AtomicU64,
    mark: AtomicU64,
}

/// The server; its threads end with the process.
pub(crate) struct Server {
    address: SocketAddr,
    counters: Arc<Counters>,
}

impl Server {
    /// Serves the files of `folder` on a free port.
    pub(crate) fn start(folder: &Path) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let server = Self {
            address: listener.local_addr()?,
            counters: Arc::default(),
        };
        let (folder, counters) = (folder.to_owned(), server.counters.clone());
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (folder, counters) = (folder.clone(), counters.clone());
                // A client that went away is its own business.
                thread::spawn(move || serve(&stream, &folder, &counters));
            }
        });
        Ok(server)
    }

    /// The address of a file.
    pub(crate) fn url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/{name}", self.address.port())
    }

    /// From here on, what is asked for is payload.
    pub(crate) fn mark(&self, position: u64) {
        self.counters.mark.store(position, Relaxed);
    }

    /// Counts from nothing again.
    pub(crate) fn reset(&self) {
        self.counters.behind.store(0, Relaxed);
        self.counters.requests.store(0, Relaxed);
        self.counters.bytes.store(0, Relaxed);
    }

    /// The counts.
    pub(crate) fn served(&self) -> Served {
        Served {
            requests: self.counters.requests.load(Relaxed),
            bytes: self.counters.bytes.load(Relaxed),
            behind: self.counters.behind.load(Relaxed),
        }
    }
}

/// A request, as far as it matters here.
struct Asked {
    path: String,
    body: bool,
    range: Option<String>,
    if_range: Option<String>,
    close: bool,
}

fn serve(stream: &TcpStream, folder: &Path, counters: &Counters) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut lines = BufReader::new(stream);
    while let Some(asked) = read_request(&mut lines)? {
        answer(stream, folder, &asked, counters)?;
        if asked.close {
            break;
        }
    }
    Ok(())
}

fn read_request(lines: &mut impl BufRead) -> io::Result<Option<Asked>> {
    let mut line = String::new();
    if lines.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let path = words.next().unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default().to_owned();
    let mut asked = Asked {
        path,
        body: method != "HEAD",
        range: None,
        if_range: None,
        close: false,
    };
    loop {
        let mut header = String::new();
        if lines.read_line(&mut header)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = header.trim_end().split_once(':') else {
            return Ok(Some(asked));
        };
        let value = value.trim().to_owned();
        match name.to_ascii_lowercase().as_str() {
            "range" => asked.range = Some(value),
            "if-range" => asked.if_range = Some(value),
            "connection" => asked.close = value.eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
}

fn answer(
    mut stream: &TcpStream,
    folder: &Path,
    asked: &Asked,
    counters: &Counters,
) -> io::Result<()> {
    counters.requests.fetch_add(1, Relaxed);
    let name = asked.path.trim_start_matches('/');
    let inside = !name.split('/').any(|part| part == "..");
    let file = PathBuf::from(folder).join(name);
    let Some(file) = inside.then(|| File::open(file).ok()).flatten() else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    let meta = file.metadata()?;
    let total = meta.len();
    let tag = format!("\"{}-{}-{}\"", meta.ino(), total, meta.mtime());
    let same = asked.if_range.as_ref().is_none_or(|wanted| *wanted == tag);
    let ranges = match &asked.range {
        Some(range) if same => match parse(range, total) {
            Some(ranges) => ranges,
            None => {
                let head = format!(
                    "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{total}\r\nContent-Length: 0\r\n\r\n"
                );
                return stream.write_all(head.as_bytes());
            }
        },
        _ => Vec::new(),
    };
    let common = format!(
        "ETag: {tag}\r\nAccept-Ranges: bytes\r\nContent-Type: application/octet-stream\r\n"
    );
    let mut send = |head: &str, parts: &[(String, u64, u64)], tail: &str| -> io::Result<()> {
        stream.write_all(head.as_bytes())?;
        if !asked.body {
            return Ok(());
        }
        let mut sent = tail.len() as u64;
        for (before, start, end) in parts {
            stream.write_all(before.as_bytes())?;
            io::copy(&mut part(&file, *start)?.take(end - start), &mut stream)?;
            sent += before.len() as u64 + end - start;
            if *start >= counters.mark.load(Relaxed) {
                counters.behind.fetch_add(end - start, Relaxed);
            }
        }
        stream.write_all(tail.as_bytes())?;
        counters.bytes.fetch_add(sent, Relaxed);
        Ok(())
    };
    match ranges.as_slice() {
        [] => send(
            &format!("HTTP/1.1 200 OK\r\n{common}Content-Length: {total}\r\n\r\n"),
            &[(String::new(), 0, total)],
            "",
        ),
        [(start, end)] => send(
            &format!(
                "HTTP/1.1 206 Partial Content\r\n{common}Content-Range: bytes {start}-{}/{total}\r\nContent-Length: {}\r\n\r\n",
                end - 1,
                end - start
            ),
            &[(String::new(), *start, *end)],
            "",
        ),
        several => {
            const BOUNDARY: &str = "part-of-a-file";
            let parts: Vec<_> = several
                .iter()
                .map(|&(start, end)| {
                    let before = format!(
                        "\r\n--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {start}-{}/{total}\r\n\r\n",
                        end - 1
                    );
                    (before, start, end)
                })
                .collect();
            let tail = format!("\r\n--{BOUNDARY}--\r\n");
            let length: u64 = parts
                .iter()
                .map(|(before, start, end)| before.len() as u64 + end - start)
                .sum();
            let common = common.replace(
                "application/octet-stream",
                &format!("multipart/byteranges; boundary={BOUNDARY}"),
            );
            send(
                &format!(
                    "HTTP/1.1 206 Partial Content\r\n{common}Content-Length: {}\r\n\r\n",
                    length + tail.len() as u64
                ),
                &parts,
                &tail,
            )
        }
    }
}

/// `file` from `start` on. The standard library copies a file to a socket with sendfile(2).
fn part(file: &File, start: u64) -> io::Result<File> {
    let mut file = file.try_clone()?;
    io::Seek::seek(&mut file, io::SeekFrom::Start(start))?;
    Ok(file)
}

/// The ranges of a `Range` header as starts and exclusive ends; `None` when one lies outside of the file.
fn parse(header: &str, total: u64) -> Option<Vec<(u64, u64)>> {
    let mut ranges = Vec::new();
    for range in header.strip_prefix("bytes=")?.split(',') {
        let (first, last) = range.trim().split_once('-')?;
        let (start, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(start), Ok(last)) => (start, total.min(last.checked_add(1)?)),
            (Ok(start), Err(_)) => (start, total),
            (Err(_), Ok(count)) => (total.saturating_sub(count), total),
            (Err(_), Err(_)) => return None,
        };
        if start >= end {
            return None;
        }
        ranges.push((start, end));
    }
    Some(ranges)
}
