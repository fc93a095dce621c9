//! An image server that is honest about the header of an image and lies about the rest, byte by byte as it
//! pleases: its answers are written to the socket as they are, so they need not even be HTTP. Every answer that it
//! began is counted.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

/// Nothing goes on for longer than this: a device that takes it for ever has failed its test by then.
pub(crate) const FOR_EVER: Duration = Duration::from_secs(60);

/// One request.
pub(crate) struct Asked {
    /// The bytes wanted: start, and one past the last.
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Whether a range was asked for.
    pub(crate) ranged: bool,
    /// Where the file lies on the server.
    pub(crate) path: String,
    /// The file, as it was when its header was served.
    pub(crate) file: Arc<Vec<u8>>,
}

/// How an answer is lied: writes it to the connection. True: the connection may be used again.
pub(crate) type Lie = fn(&Asked, &mut TcpStream) -> io::Result<bool>;

#[derive(Default)]
struct Story {
    file: Arc<Vec<u8>>,
    lie: Option<Lie>,
    /// How many more answers are lied.
    times: u32,
    /// Requests that reach beyond this byte are lied to.
    beyond: usize,
}

/// The server. Ends with the test's process; stops lying when dropped.
pub(crate) struct Liar {
    story: Arc<Mutex<Story>>,
    lied: Arc<AtomicU32>,
    stop: Arc<AtomicBool>,
    port: u16,
}

impl Liar {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (story, lied) = (Arc::<Mutex<Story>>::default(), Arc::<AtomicU32>::default());
        let stop = Arc::<AtomicBool>::default();
        let shared = (Arc::clone(&story), Arc::clone(&lied), Arc::clone(&stop));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (story, lied, stop) = shared.clone();
                if stop.load(SeqCst) {
                    return;
                }
                // A connection that breaks is what this is about.
                thread::spawn(move || drop(serve(&story, &lied, stream)));
            }
        });
        Self {
            story,
            lied,
            stop,
            port,
        }
    }

    /// From now on there is this file at every path, and `lie` answers the next `times` requests that reach
    /// beyond byte `beyond`. Returns its address.
    pub(crate) fn tell(
        &self,
        name: &str,
        file: Vec<u8>,
        beyond: usize,
        lie: Lie,
        times: u32,
    ) -> String {
        *self.story.lock().unwrap() = Story {
            file: Arc::new(file),
            lie: Some(lie),
            times,
            beyond,
        };
        self.lied.store(0, SeqCst);
        format!("http://localhost:{}/{name}", self.port)
    }

    /// Answers that were lies since [`Liar::tell`].
    pub(crate) fn lied(&self) -> u32 {
        self.lied.load(SeqCst)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn serve(story: &Mutex<Story>, lied: &AtomicU32, mut stream: TcpStream) -> io::Result<()> {
    stream.set_write_timeout(Some(FOR_EVER))?;
    stream.set_nodelay(true)?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    loop {
        let Some(first) = lines.next().transpose()? else {
            return Ok(());
        };
        let mut range = None;
        loop {
            let line = lines.next().transpose()?.unwrap_or_default();
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').unwrap_or_default();
            if name.eq_ignore_ascii_case("range") {
                range = value.trim().strip_prefix("bytes=").map(str::to_owned);
            }
        }
        let (asked, lie) = {
            let mut story = story.lock().unwrap();
            let file = Arc::clone(&story.file);
            let (start, last) = range
                .as_deref()
                .and_then(|r| r.split_once('-'))
                .unwrap_or_default();
            let number = |text: &str| text.parse::<usize>().ok();
            let start = number(start).unwrap_or(0).min(file.len());
            let end = number(last).map_or(file.len(), |last| file.len().min(last + 1));
            let path = first.split(' ').nth(1).unwrap_or("/").to_owned();
            let asked = Asked {
                start,
                end: end.max(start),
                ranged: range.is_some(),
                path,
                file,
            };
            let lies = story.times > 0 && asked.end > story.beyond;
            story.times -= u32::from(lies);
            (asked, story.lie.filter(|_| lies))
        };
        lied.fetch_add(u32::from(lie.is_some()), SeqCst);
        if !lie.unwrap_or(honest)(&asked, &mut stream)? {
            return stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// What makes this file this file.
pub(crate) const VALIDATORS: &str = "ETag: \"one\"\r\nAccept-Ranges: bytes\r\n";

/// The line that says which part comes.
pub(crate) fn content_range(start: usize, end: usize, total: usize) -> String {
    format!(
        "Content-Range: bytes {start}-{}/{total}\r\n",
        end.max(1) - 1
    )
}

/// The truth.
pub(crate) fn honest(asked: &Asked, to: &mut TcpStream) -> io::Result<bool> {
    let body = &asked.file[asked.start..asked.end];
    if asked.ranged {
        let part = content_range(asked.start, asked.end, asked.file.len());
        answer(
            to,
            "206 Partial Content",
            &format!("{VALIDATORS}{part}"),
            body,
        )
    } else {
        answer(to, "200 OK", VALIDATORS, body)
    }
}

/// An answer whose length is true.
pub(crate) fn answer(
    to: &mut TcpStream,
    status: &str,
    headers: &str,
    body: &[u8],
) -> io::Result<bool> {
    let length = body.len();
    write!(
        to,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}\r\n"
    )?;
    to.write_all(body)?;
    Ok(true)
}
