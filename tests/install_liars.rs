//! Image servers that serve the header of an image as it is and lie about what follows. Whatever they say, the
//! device ends with every byte right and confirmed, or with a failure that says what was wrong: its running slot is
//! as it was, the other one does not mount.

mod support;

#[path = "install_liars/server.rs"]
mod server;

use std::{
    fs,
    io::{self, Write},
    net::TcpStream,
    thread::sleep,
    time::{Duration, Instant},
};

use fwupdated::update::slot::Slot;
use serde_json::json;
use server::{Asked, FOR_EVER, Liar, Lie, VALIDATORS, answer, content_range, honest};
use support::rig::{Device, Rig, noise};

const MIB: usize = 1 << 20;
const SIZE: usize = 3 * MIB;
/// No header of an image of [`SIZE`] bytes, read in windows, reaches so far.
const HEADER: usize = 512 << 10;
const ALWAYS: u32 = u32::MAX;

/// How an update may end.
enum Ends {
    /// With the image in the slot.
    Whole,
    /// In `downloadfailed` with one of these codes.
    Fails(&'static [&'static str]),
    /// In either.
    Either(&'static [&'static str]),
}

struct Case {
    name: &'static str,
    lie: Lie,
    times: u32,
    ends: Ends,
}

fn always(name: &'static str, ends: Ends, lie: Lie) -> Case {
    Case {
        name,
        lie,
        times: ALWAYS,
        ends,
    }
}

fn once(name: &'static str, ends: Ends, lie: Lie) -> Case {
    Case {
        name,
        lie,
        times: 1,
        ends,
    }
}

fn part(asked: &Asked) -> (&[u8], String) {
    let Asked { start, end, .. } = *asked;
    (
        &asked.file[start..end],
        content_range(start, end, asked.file.len()),
    )
}

/// A partial answer with `headers` before `body`.
fn partial(to: &mut TcpStream, headers: &str, body: &[u8]) -> io::Result<bool> {
    answer(
        to,
        "206 Partial Content",
        &format!("{VALIDATORS}{headers}"),
        body,
    )
}

/// The part that was asked for, with one bit in its middle turned.
fn one_bit(asked: &Asked, to: &mut TcpStream) -> io::Result<bool> {
    let (body, range) = part(asked);
    let mut body = body.to_vec();
    let middle = body.len() / 2;
    body[middle] ^= 4;
    partial(to, &range, &body)
}

/// Writes `bytes` every `pause` for as long as anyone listens.
fn without_end(to: &mut TcpStream, bytes: &[u8], pause: Duration) -> io::Result<bool> {
    let began = Instant::now();
    while began.elapsed() < FOR_EVER {
        to.write_all(bytes)?;
        sleep(pause);
    }
    Ok(false)
}

/// What comes is not the part that was asked for, or not of this file.
fn wrong_parts() -> Vec<Case> {
    use Ends::{Either, Fails, Whole};
    const MISMATCH: &[&str] = &["range-mismatch"];
    const OTHER_BYTES: &[&str] = &[
        "image-chunk-decode",
        "image-chunk-digest",
        "image-chunk-length",
    ];
    const OTHER_FILE: &[&str] = &["image-changed", "range-mismatch"];
    vec![
        always("other-place", Fails(MISMATCH), |asked, to| {
            let Asked { start, end, .. } = *asked;
            let range = content_range(start - 512, end - 512, asked.file.len());
            partial(to, &range, &asked.file[start - 512..end - 512])
        }),
        always("other-place-unsaid", Fails(OTHER_BYTES), |asked, to| {
            let Asked { start, end, .. } = *asked;
            partial(to, &part(asked).1, &asked.file[start - 512..end - 512])
        }),
        always("other-total", Fails(OTHER_FILE), |asked, to| {
            let range = content_range(asked.start, asked.end, asked.file.len() + 512);
            partial(to, &range, part(asked).0)
        }),
        always("untold-total", Either(MISMATCH), |asked, to| {
            let range = format!(
                "Content-Range: bytes {}-{}/*\r\n",
                asked.start,
                asked.end - 1
            );
            partial(to, &range, part(asked).0)
        }),
        // A server may send less than was asked for; the rest is asked for again, as long as it comes on.
        always(
            "half-each-time",
            Either(&["download-dropped"]),
            |asked, to| {
                let half = asked.start + (asked.end - asked.start).div_ceil(2);
                let range = content_range(asked.start, half, asked.file.len());
                partial(to, &range, &asked.file[asked.start..half])
            },
        ),
        always(
            "nothing-of-it",
            Fails(&["range-mismatch", "download-dropped"]),
            |asked, to| partial(to, &part(asked).1, b""),
        ),
        always("whole-file-as-the-part", Fails(MISMATCH), |asked, to| {
            partial(to, &part(asked).1, &asked.file)
        }),
        always("whole-file-instead", Whole, |asked, to| {
            answer(to, "200 OK", VALIDATORS, &asked.file)
        }),
        always("multipart", Fails(MISMATCH), |asked, to| {
            let (body, range) = part(asked);
            let mut parts = format!("--x\r\nContent-Type: a/b\r\n{range}\r\n").into_bytes();
            parts.extend_from_slice(body);
            parts.extend_from_slice(b"\r\n--x--\r\n");
            partial(
                to,
                "Content-Type: multipart/byteranges; boundary=x\r\n",
                &parts,
            )
        }),
        always("other-image-same-tag", Fails(OTHER_BYTES), |asked, to| {
            let other = noise(asked.file.len(), 77);
            partial(to, &part(asked).1, &other[asked.start..asked.end])
        }),
        always(
            "other-image-other-tag",
            Fails(&["image-changed"]),
            |asked, to| {
                let other = noise(asked.file.len(), 77);
                let headers = format!("ETag: \"two\"\r\n{}", part(asked).1);
                answer(
                    to,
                    "206 Partial Content",
                    &headers,
                    &other[asked.start..asked.end],
                )
            },
        ),
        always(
            "other-image-whole",
            Fails(&["image-changed"]),
            |asked, to| {
                answer(
                    to,
                    "200 OK",
                    "ETag: \"two\"\r\n",
                    &noise(asked.file.len(), 77),
                )
            },
        ),
        always("tag-now-weak", Either(OTHER_FILE), |asked, to| {
            let headers = format!("ETag: W/\"one\"\r\n{}", part(asked).1);
            answer(to, "206 Partial Content", &headers, part(asked).0)
        }),
        always("one-bit", Fails(OTHER_BYTES), one_bit),
        once("one-bit-once", Either(OTHER_BYTES), one_bit),
        always("zeros", Fails(OTHER_BYTES), |asked, to| {
            let (body, range) = part(asked);
            partial(to, &range, &vec![0; body.len()])
        }),
        always("gzip-said", Fails(&["content-encoding"]), |asked, to| {
            let headers = format!("Content-Encoding: gzip\r\n{}", part(asked).1);
            partial(to, &headers, part(asked).0)
        }),
    ]
}

/// The bytes are right, but too few, too many, or too slow.
fn wrong_lengths() -> Vec<Case> {
    use Ends::{Either, Fails, Whole};
    vec![
        once("cut-once", Whole, |asked, to| {
            let (body, range) = part(asked);
            let length = body.len();
            write!(
                to,
                "HTTP/1.1 206 P\r\nContent-Length: {length}\r\n{VALIDATORS}{range}\r\n"
            )?;
            to.write_all(&body[..length / 2])?;
            Ok(false)
        }),
        always("cut-at-once", Fails(&["download-dropped"]), |asked, to| {
            let (body, range) = part(asked);
            let length = body.len();
            write!(
                to,
                "HTTP/1.1 206 P\r\nContent-Length: {length}\r\n{VALIDATORS}{range}\r\n"
            )?;
            Ok(false)
        }),
        always(
            "ends-well-but-early",
            Either(&["download-dropped"]),
            |asked, to| {
                let (body, range) = part(asked);
                let half = &body[..body.len().div_ceil(2)];
                write!(
                    to,
                    "HTTP/1.1 206 P\r\nTransfer-Encoding: chunked\r\n{VALIDATORS}{range}\r\n"
                )?;
                write!(to, "{:x}\r\n", half.len())?;
                to.write_all(half)?;
                to.write_all(b"\r\n0\r\n\r\n")?;
                Ok(true)
            },
        ),
        always(
            "more-behind-the-length",
            Either(&["body-too-long", "server-unreachable", "download-dropped"]),
            |asked, to| {
                honest(asked, to)?;
                to.write_all(&[0xee; 4096])?;
                Ok(true)
            },
        ),
        always(
            "body-without-end",
            Either(&["body-too-long"]),
            |asked, to| {
                let (body, range) = part(asked);
                write!(
                    to,
                    "HTTP/1.1 206 P\r\nTransfer-Encoding: chunked\r\n{VALIDATORS}{range}\r\n"
                )?;
                write!(to, "{:x}\r\n", body.len())?;
                to.write_all(body)?;
                without_end(to, b"\r\n8\r\nEEEEEEEE", Duration::ZERO)
            },
        ),
        always(
            "two-lengths",
            Fails(&["server-answer-broken"]),
            |asked, to| {
                let (body, range) = part(asked);
                let half = body.len() / 2;
                answer(
                    to,
                    &format!("206 P\r\nContent-Length: {half}"),
                    &range,
                    body,
                )
            },
        ),
        always("old-protocol", Whole, |asked, to| {
            let (body, range) = part(asked);
            write!(to, "HTTP/1.0 206 P\r\n{VALIDATORS}{range}\r\n")?;
            to.write_all(body)?;
            Ok(false)
        }),
        once("drip-once", Whole, |asked, to| {
            let (body, range) = part(asked);
            let length = body.len();
            write!(
                to,
                "HTTP/1.1 206 P\r\nContent-Length: {length}\r\n{VALIDATORS}{range}\r\n"
            )?;
            for byte in body {
                to.write_all(&[*byte])?;
                sleep(Duration::from_millis(50));
            }
            Ok(false)
        }),
    ]
}

/// What comes is no part of any file.
fn no_parts() -> Vec<Case> {
    use Ends::{Either, Fails, Whole};
    const NO_ANSWER: &[&str] = &[
        "server-answer-broken",
        "server-no-answer",
        "server-unreachable",
    ];
    vec![
        always("log-in-page", Fails(&["web-page-midway"]), |_, to| {
            let page = b"<html>Please log in</html>";
            answer(to, "200 OK", "Content-Type: text/html\r\n", page)
        }),
        always("redirect-loop", Fails(&["redirect-loop"]), |asked, to| {
            answer(
                to,
                "302 Found",
                &format!("Location: {}\r\n", asked.path),
                b"",
            )
        }),
        always(
            "redirect-without-end",
            Fails(&["redirect-limit"]),
            |asked, to| {
                answer(
                    to,
                    "307 Elsewhere",
                    &format!("Location: {}x\r\n", asked.path),
                    b"",
                )
            },
        ),
        always(
            "behind-the-end",
            Fails(&["range-unsatisfiable", "image-changed"]),
            |asked, to| {
                let headers = format!("Content-Range: bytes */{}\r\n", asked.file.len());
                answer(to, "416 Range Not Satisfiable", &headers, b"")
            },
        ),
        always("not-modified", Fails(&["http-status"]), |_, to| {
            answer(to, "304 Not Modified", VALIDATORS, b"")
        }),
        always("gone", Fails(&["image-not-found"]), |_, to| {
            answer(to, "410 Gone", "", b"")
        }),
        always("no-http", Fails(NO_ANSWER), |_, to| {
            to.write_all(b"220 smtp.example.com ESMTP\r\n")?;
            Ok(false)
        }),
        once("no-http-once", Either(NO_ANSWER), |_, to| {
            to.write_all(&[0xff; 300])?;
            Ok(false)
        }),
        once("hangs-up-once", Whole, |_, _| Ok(false)),
        always("headers-without-end", Fails(NO_ANSWER), |_, to| {
            to.write_all(b"HTTP/1.1 206 P\r\n")?;
            without_end(
                to,
                b"X-More: and more and more and more\r\n",
                Duration::ZERO,
            )
        }),
        always("headers-in-a-drip", Fails(NO_ANSWER), |_, to| {
            to.write_all(b"HTTP/1.1 206 P\r\nX-More: ")?;
            without_end(to, b"m", Duration::from_millis(50))
        }),
        always("continue-without-end", Fails(NO_ANSWER), |_, to| {
            without_end(
                to,
                b"HTTP/1.1 100 Continue\r\n\r\n",
                Duration::from_millis(20),
            )
        }),
    ]
}

/// Runs each case with an image of its own, which is new to the device.
async fn assert_never_a_wrong_byte(first: u64, cases: Vec<Case>) {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let settings = "[fetch]\ninsecure_hosts = [\"localhost\"]\nconnect_timeout = \"1s\"\nread_timeout = \"1s\"\n\
                    retry_max = \"200ms\"\ngive_up_after = \"1s\"\n";
    let mut device = Device::new(
        &rig,
        &dir.path().join("device"),
        4 * MIB as u64,
        "1.0.0",
        settings,
    );
    device.boot();
    device.until_connected(&rig).await;
    let liar = Liar::start();
    for (number, case) in (first..).zip(cases) {
        let name = case.name;
        let image = rig.build(&format!("1.{number}.0"), noise(SIZE, number), &[]);
        let file = fs::read(&image.file).unwrap();
        let uri = liar.tell(name, file, HEADER, case.lie, case.times);
        let before = device.running();
        let old = fs::read(device.slot_file(before)).unwrap();
        let older = fs::read(device.slot_file(before.other())).unwrap();
        let (status, body) = rig
            .invoke(json!({"fwPackageUri": uri, "updateId": name}))
            .await;
        assert_eq!(status, 200, "{name}: {body}");
        let section = device.until_final(&rig, name).await;
        let story = || format!("{name}: {section:#}\n{}", device.log());
        assert!(liar.lied() > 0, "{name}: nobody was lied to");
        let code = section["error"]["code"].as_str();
        eprintln!("{name}: {} {}", section["status"], code.unwrap_or_default());
        let (whole, codes) = match case.ends {
            Ends::Whole => (true, &[][..]),
            Ends::Fails(codes) => (false, codes),
            Ends::Either(codes) => (code.is_none(), codes),
        };
        if whole {
            assert_eq!(section["status"], "applyComplete", "{}", story());
            assert_eq!(device.running(), before.other(), "{}", story());
            assert!(device.holds(before.other(), &image.raw), "{}", story());
            continue;
        }
        assert_eq!(section["status"], "downloadfailed", "{}", story());
        assert!(
            code.is_some_and(|code| codes.contains(&code)),
            "{}",
            story()
        );
        let told = section["error"]["message"].as_str().unwrap_or_default();
        assert!(told.len() > 20, "{}", story());
        assert_eq!(device.running(), before, "{}", story());
        assert_eq!(device.variable("fwupdated_trial"), None, "{}", story());
        assert!(
            fs::read(device.slot_file(before)).unwrap() == old,
            "{}",
            story()
        );
        // The first write wipes the head; without one, the older system is still whole.
        let target = fs::read(device.slot_file(before.other())).unwrap();
        let wiped = target[..4096].iter().all(|byte| *byte == 0);
        assert!(wiped || target == older, "{}", story());
    }
    // None of it did any harm.
    let image = rig.build("2.0.0", noise(SIZE, 1000), &[]);
    let before = device.running();
    let uri = liar.tell("good", fs::read(&image.file).unwrap(), 0, honest, 0);
    let (status, body) = rig
        .invoke(json!({"fwPackageUri": uri, "updateId": "good"}))
        .await;
    assert_eq!(status, 200, "{body}");
    let section = device.until_final(&rig, "good").await;
    assert_eq!(
        section["status"],
        "applyComplete",
        "{section:#}\n{}",
        device.log()
    );
    assert!(device.holds(before.other(), &image.raw));
    assert!(Slot::ALL.contains(&device.running()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_sends_other_bytes_than_asked_for_never_gets_one_into_a_slot_that_boots() {
    assert_never_a_wrong_byte(1, wrong_parts()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_sends_too_little_too_much_or_too_slowly_is_borne_or_told() {
    assert_never_a_wrong_byte(100, wrong_lengths()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_sends_something_else_altogether_is_told() {
    assert_never_a_wrong_byte(200, no_parts()).await;
}
