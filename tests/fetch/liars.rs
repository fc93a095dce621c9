//! Servers that lie, and servers that are merely old: the right bytes or an error that says what happened,
//! in bounded time and memory.

use super::*;
use crate::raw_server::{Asked, RawServer};

/// More than any answer's head or any read-ahead may take, and far less than what such a server would send.
const LITTLE: u64 = 24 << 20;

/// A fetcher that may ask it, and its address.
fn at(server: &RawServer) -> (Fetcher, PackageUri) {
    let trusted = ImageServer::start();
    let settings = FetchConfig {
        insecure_hosts: vec!["localhost".to_owned()],
        read_timeout: Duration::from_secs(3),
        connect_timeout: Duration::from_secs(2),
        give_up_after: Duration::from_millis(1),
        ..trusted.fetch_config()
    };
    let uri = server.url(PATH).parse().unwrap();
    (Fetcher::new(&settings).unwrap(), uri)
}

/// What a download of `range` from a server that answers so comes to.
async fn outcome(
    range: impl Into<ByteRange>,
    answer: impl Fn(&mut Asked<'_>) -> bool + Send + Sync + 'static,
) -> Result<Vec<u8>, FetchError> {
    let server = RawServer::start(answer);
    let (fetcher, uri) = at(&server);
    let got = get(&fetcher, &uri, range, None).await.map(|got| got.bytes);
    assert!(server.sent() < LITTLE, "{} bytes were taken", server.sent());
    got
}

/// The error's code, class and text.
fn told(outcome: Result<Vec<u8>, FetchError>) -> (&'static str, Class, String) {
    let error = outcome.expect_err("such a server has no image");
    (error.code(), error.class(), chain(&error))
}

#[tokio::test]
async fn what_is_no_http_is_told_as_such() {
    let early = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
    for (name, begin, again) in [
        ("garbage", "SSH-2.0-OpenSSH_9.2\r\n", ""),
        ("nothing at all", "", ""),
        ("half a head", "HTTP/1.1 200 OK\r\nContent-Le", ""),
        (
            "endless headers",
            "HTTP/1.1 200 OK\r\n",
            "x-more: and more\r\n",
        ),
        (
            "one endless header",
            "HTTP/1.1 200 OK\r\nx-more: ",
            "and more ",
        ),
        ("an endless status line", "HTTP/1.1 200 ", "fine "),
        (
            "two lengths",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            "",
        ),
        (
            "a length that is none",
            "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nhello",
            "",
        ),
    ] {
        let outcome = outcome(.., move |asked| {
            asked.send(begin) && !again.is_empty() && asked.send_for_ever(again)
        });
        let (code, class, text) = told(outcome.await);
        assert_eq!(
            (code, class),
            ("server-answer-broken", Class::Retry),
            "{name}: {text}"
        );
        assert!(text.contains("look at the server"), "{text}");
    }
    // Answers that only announce an answer.
    let (code, class, _) =
        told(outcome(.., move |asked| asked.drip(early, Duration::from_millis(5))).await);
    assert_eq!((code, class), ("server-no-answer", Class::Retry));
}

#[tokio::test]
async fn a_head_that_drips_is_not_waited_for_for_ever() {
    let head = |asked: &mut Asked<'_>| {
        asked.send("HTTP/1.1 200 OK\r\nx: ") && asked.drip("y", Duration::from_millis(20))
    };
    let (code, class, text) = told(outcome(.., head).await);
    assert_eq!((code, class), ("server-no-answer", Class::Retry));
    assert!(text.contains("within 5 s"), "{text}");
}

#[tokio::test]
async fn an_endless_body_is_left_where_the_part_ends() {
    let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
    let body = chunk.clone();
    let part = move |asked: &mut Asked<'_>| {
        asked.send(
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 10-99/300000\r\n\
             Transfer-Encoding: chunked\r\n\r\n",
        ) && asked.send_for_ever(&body)
    };
    let (code, class, _) = told(outcome(10..100, part).await);
    assert_eq!((code, class), ("body-too-long", Class::Final));
    // Where nobody has told how long it is, it is for the reader to have enough.
    let server = RawServer::start(move |asked| {
        asked.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            && asked.send_for_ever(&chunk)
    });
    let (fetcher, uri) = at(&server);
    let error = fetcher.get_small(&uri, 100_000).await.unwrap_err();
    assert_eq!(error.code(), "file-too-large");
    let mut download = fetcher.open(&uri, 5..100_000, None).await.unwrap();
    let mut bytes = 0;
    while let Some(piece) = download.next_chunk().await.unwrap() {
        bytes += piece.len();
    }
    assert_eq!(bytes, 99_995);
    drop(download);
    assert!(server.sent() < LITTLE);
    // The size of a chunk may be followed by as much as one likes.
    let extended = |asked: &mut Asked<'_>| {
        asked.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=")
            && asked.send_for_ever("extension ")
    };
    let (code, class, _) = told(outcome(.., extended).await);
    assert_eq!((code, class), ("download-dropped", Class::Retry));
}

/// 206 with this `Content-Range`, and so many bytes.
fn part(range: &str, bytes: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\nETag: \"v\"\r\nContent-Range: bytes {range}\r\n\
         Content-Length: {}\r\n\r\n",
        bytes.len()
    );
    [head.as_bytes(), bytes].concat()
}

#[tokio::test]
async fn a_part_that_is_not_the_one_asked_for_is_refused() {
    for (what, answered, says) in [
        ("an earlier one", "99-199/300000", "bytes 99 to 200"),
        ("a later one", "101-199/300000", "bytes 101 to 200"),
        ("a longer one", "100-200/300000", "bytes 100 to 201"),
        ("beyond the end", "100-199/150", "no usable Content-Range"),
        ("backwards", "199-100/300000", "no usable Content-Range"),
        (
            "another unit",
            "items 100-199/300000",
            "no usable Content-Range",
        ),
        ("none", "*/300000", "no usable Content-Range"),
        (
            "another length",
            "100-198/300000",
            "another length than its Content-Range",
        ),
    ] {
        let bytes = part(answered, &[7; 100]);
        let (code, class, text) = told(outcome(100..200, move |asked| asked.send(&bytes)).await);
        assert_eq!((code, class), ("range-mismatch", Class::Final), "{what}");
        assert!(text.contains(says), "{what}: {text}");
    }
    let several = |asked: &mut Asked<'_>| {
        asked.send(
            "HTTP/1.1 206 Partial Content\r\nContent-Type: multipart/byteranges; boundary=x\r\n\
             Content-Length: 90\r\n\r\n--x\r\nContent-Range: bytes 100-199/300000\r\n\r\n",
        )
    };
    let (code, _, text) = told(outcome(100..200, several).await);
    assert_eq!(code, "range-mismatch");
    assert!(text.contains("several parts"), "{text}");
    // Nobody asked for a part at all.
    let bytes = part("0-99/300000", &[7; 100]);
    let (code, _, text) = told(outcome(.., move |asked| asked.send(&bytes)).await);
    assert_eq!(code, "range-mismatch");
    assert!(text.contains("the whole was asked for"), "{text}");
}

#[tokio::test]
async fn another_length_of_the_whole_is_another_file() {
    let server = RawServer::start(|asked| {
        let total = if asked.number == 0 { 300_000 } else { 300_001 };
        let (first, end) = asked.range().expect("a part is asked for");
        // The first answer breaks off, so that a second is needed.
        let bytes = part(
            &format!("{first}-{}/{total}", end - 1),
            &vec![7; end - first],
        );
        asked.send(&bytes[..bytes.len() - 50]) && asked.number > 0
    });
    let trusted = ImageServer::start();
    let settings = FetchConfig {
        insecure_hosts: vec!["localhost".to_owned()],
        ..trusted.fetch_config()
    };
    let uri = server.url(PATH).parse().unwrap();
    let fetcher = Fetcher::new(&settings).unwrap();
    let got = get(&fetcher, &uri, 100..200, None).await;
    let (code, class, text) = told(got.map(|got| got.bytes));
    assert_eq!((code, class), ("image-changed", Class::Retry));
    assert!(text.contains("300000 bytes before, 300001 now"), "{text}");
}

#[tokio::test]
async fn a_server_that_gives_less_at_a_time_is_asked_until_all_is_here() {
    let image = image();
    let server = RawServer::start({
        let image = image.clone();
        move |asked| {
            let (first, end) = asked.range().expect("a part is asked for");
            let end = end.min(first + 40_000).min(SIZE);
            asked.send(part(
                &format!("{first}-{}/{SIZE}", end - 1),
                &image[first..end],
            ))
        }
    });
    let trusted = ImageServer::start();
    let settings = FetchConfig {
        insecure_hosts: vec!["localhost".to_owned()],
        ..trusted.fetch_config()
    };
    let fetcher = Fetcher::new(&settings).unwrap();
    let uri = server.url(PATH).parse().unwrap();
    let got = get(&fetcher, &uri, 1000..201_000, None).await.unwrap();
    assert!(got.bytes == image[1000..201_000]);
    assert_eq!(server.heads().len(), 5);
}

#[tokio::test]
async fn servers_of_old_are_understood() {
    let image = image();
    let whole = |head: &'static str| {
        let image = image.clone();
        outcome(.., move |asked| asked.send(head) && asked.send_last(&image))
    };
    // Its end is the connection's end.
    let got = whole("HTTP/1.0 200 OK\r\nETag: \"v\"\r\n\r\n")
        .await
        .unwrap();
    assert!(got == image);
    let got = whole("HTTP/1.0 200 OK\r\nContent-Length: 300000\r\n\r\n").await;
    assert!(got.unwrap() == image);
    let got = whole("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").await;
    assert!(got.unwrap() == image);
    // What HTTP/0.9 sent was a body alone: nothing tells it from garbage.
    let (code, ..) = told(outcome(.., |asked| asked.send_last("<html>")).await);
    assert_eq!(code, "server-answer-broken");
}

#[tokio::test]
async fn a_web_page_in_place_of_the_file_is_told_as_such() {
    const PAGE: &str = "\r\n<!DOCTYPE html><title>Welcome to our network</title>";
    let page = |kind: &'static str, body: &'static str| {
        move |asked: &mut Asked<'_>| {
            let length = body.len();
            asked.send(format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
            ))
        }
    };
    for range in [ByteRange::from(..), ByteRange::from(1000..2000)] {
        let (code, class, text) =
            told(outcome(range, page("text/html; charset=utf-8", PAGE)).await);
        assert_eq!((code, class), ("web-page", Class::Final));
        assert!(text.contains("login page"), "{text}");
    }
    // A server that calls an image a page is wrong, but harmless.
    let got = outcome(.., page("text/html", "\u{28}\u{35} not a page")).await;
    assert!(got.unwrap().starts_with(&[0x28, 0x35]));
    // Someone between may put his page there for a while: that passes.
    let (server, image) = ready();
    server.fault(PATH, Fault::DropAfter(100_000));
    let portal = [("content-type", "text/html")];
    server.fault(PATH, Fault::Status(200, Box::leak(Box::new(portal)), PAGE));
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
    let got = get(&fetcher, &uri(&server), .., None).await.unwrap();
    assert!(got.bytes == image);
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn answers_that_fit_no_question_are_refused() {
    for (answer, code) in [
        (
            "HTTP/1.1 304 Not Modified\r\nETag: \"v\"\r\n\r\n",
            "http-status",
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", "http-status"),
        (
            "HTTP/1.1 300 Multiple Choices\r\nContent-Length: 0\r\n\r\n",
            "http-status",
        ),
        (
            "HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n",
            "http-status",
        ),
        (
            "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Length: 0\r\n\r\n",
            "range-unsatisfiable",
        ),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "content-encoding",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
            "content-encoding",
        ),
    ] {
        let (found, class, text) = told(outcome(.., move |asked| asked.send(answer)).await);
        assert_eq!((found, class), (code, Class::Final), "{answer}: {text}");
    }
}
