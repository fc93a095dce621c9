//! Downloads from a real HTTPS server that misbehaves.

#[path = "support/image_server.rs"]
mod image_server;

use std::{path::PathBuf, time::Duration};

use fwupdated::{
    config::{FetchConfig, FetchProxy},
    platform::fetch::{ByteRange, FetchError, Fetcher, Validator},
    update::{
        failure::{Class, Coded, chain},
        uri::PackageUri,
    },
};
use image_server::{Fault, ImageServer};
use tokio::time::{Instant, timeout};

const SIZE: usize = 300_000;
const PATH: &str = "/images/rootfs.img";

fn image() -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut bytes = Vec::with_capacity(SIZE + 8);
    while bytes.len() < SIZE {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(SIZE);
    bytes
}

/// Quick to retry, quick to give up.
fn config(server: &ImageServer) -> FetchConfig {
    FetchConfig {
        ca_file: Some(server.ca_file()).filter(|file| file.exists()),
        insecure_hosts: Vec::new(),
        connect_timeout: Duration::from_secs(5),
        read_timeout: Duration::from_secs(5),
        give_up_after: Duration::from_secs(20),
        retry_max: Duration::from_millis(20),
        max_redirects: 3,
        authorization_file: None,
        authorization_hosts: Vec::new(),
        connections: 4,
        rate_limit: None,
        proxy: FetchProxy::Direct,
        client_certificate: None,
    }
}

fn ready() -> (ImageServer, Vec<u8>) {
    let server = ImageServer::start();
    let image = image();
    server.put(PATH, image.clone());
    (server, image)
}

fn uri(server: &ImageServer) -> PackageUri {
    server.url(PATH).parse().unwrap()
}

/// What a download brings.
struct Got {
    bytes: Vec<u8>,
    total: Option<u64>,
    validator: Validator,
    ranges: bool,
}

async fn get(
    fetcher: &Fetcher,
    uri: &PackageUri,
    range: impl Into<ByteRange>,
    expect: Option<&Validator>,
) -> Result<Got, FetchError> {
    let range = range.into();
    let work = async {
        let mut download = fetcher.open(uri, range, expect).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = download.next_chunk().await? {
            assert!(!piece.is_empty());
            bytes.extend_from_slice(&piece);
            assert_eq!(download.offset(), range.start + bytes.len() as u64);
        }
        assert!(download.next_chunk().await?.is_none());
        Ok(Got {
            bytes,
            total: download.total(),
            validator: download.validator().clone(),
            ranges: download.supports_ranges(),
        })
    };
    timeout(Duration::from_secs(60), work)
        .await
        .expect("a download ends within a minute")
}

/// The error that a download of the file with these faults, each time, ends with.
async fn refused(faults: impl IntoIterator<Item = Fault>) -> FetchError {
    let (server, _) = ready();
    server.faults(PATH, faults);
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
    error.unwrap_err()
}

#[tokio::test]
async fn a_whole_file_and_a_range_arrive_as_they_are() {
    let (server, image) = ready();
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    let got = get(&fetcher, &uri(&server), .., None).await.unwrap();
    assert!(got.bytes == image);
    assert_eq!(got.total, Some(SIZE as u64));
    assert!(got.ranges);
    assert!(got.validator.etag.is_some() && got.validator.last_modified.is_some());
    assert_eq!(fetcher.bytes_received(), SIZE as u64);

    let got = get(&fetcher, &uri(&server), 1000..250_000, Some(&got.validator)).await;
    let got = got.unwrap();
    assert!(got.bytes == image[1000..250_000]);
    assert_eq!(got.total, Some(SIZE as u64));
    assert!(got.ranges);
    // On another thread too.
    let (elsewhere, file) = (fetcher.clone(), uri(&server));
    let got = tokio::spawn(async move { get(&elsewhere, &file, 290_000.., None).await });
    assert!(got.await.unwrap().unwrap().bytes == image[290_000..]);
    // Past the end: what there is.
    let got = get(&fetcher, &uri(&server), 290_000..999_999, None).await;
    assert!(got.unwrap().bytes == image[290_000..]);

    let log = server.requests();
    assert_eq!(log[0].range, None);
    assert_eq!(log[0].accept_encoding.as_deref(), Some("identity"));
    assert!(
        log[0]
            .user_agent
            .as_deref()
            .unwrap()
            .starts_with("fwupdated/")
    );
    assert_eq!(log[1].range.as_deref(), Some("bytes=1000-249999"));
    assert_eq!(log[1].if_range.as_deref(), Some("\"v0\""));
    // One connection for all of them.
    assert_eq!((log.len(), server.connections()), (4, 1));
}

#[tokio::test]
async fn an_empty_range_asks_the_server_nothing_and_an_empty_file_is_empty() {
    let (server, _) = ready();
    server.put("/empty", Vec::new());
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    let got = get(&fetcher, &uri(&server), 7..7, None).await.unwrap();
    assert!(got.bytes.is_empty());
    assert!(server.requests().is_empty());
    let empty = server.url("/empty").parse().unwrap();
    let got = get(&fetcher, &empty, .., None).await.unwrap();
    assert_eq!((got.bytes.len(), got.total), (0, Some(0)));
}

#[tokio::test]
async fn a_dropped_download_continues_where_it_stopped() {
    let (server, image) = ready();
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    server.fault(PATH, Fault::DropAfter(100_000));
    server.fault(PATH, Fault::DropAfter(50_000));
    let got = get(&fetcher, &uri(&server), .., None).await.unwrap();
    assert!(got.bytes == image);
    let log = server.requests();
    assert_eq!(log.len(), 3);
    assert_eq!(log[1].range.as_deref(), Some("bytes=100000-"));
    assert_eq!(log[1].if_range.as_deref(), Some("\"v0\""));
    assert_eq!(log[2].range.as_deref(), Some("bytes=150000-"));
    // Nothing came twice.
    assert_eq!(fetcher.bytes_received(), SIZE as u64);
}

#[tokio::test]
async fn a_connection_that_always_drops_still_brings_the_file_as_long_as_bytes_come() {
    let (server, image) = ready();
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    server.always(PATH, Fault::DropAfter(20_000));
    let got = get(&fetcher, &uri(&server), 5..200_000, None)
        .await
        .unwrap();
    assert!(got.bytes == image[5..200_000]);
    assert!(server.requests().len() >= 10);
}

#[tokio::test]
async fn without_a_new_byte_it_gives_up_with_the_last_error() {
    let (server, _) = ready();
    server.fault(PATH, Fault::DropAfter(20_000));
    server.always(PATH, Fault::DropAfter(0));
    let settings = FetchConfig {
        give_up_after: Duration::from_millis(500),
        ..config(&server)
    };
    let fetcher = Fetcher::new(&settings).unwrap();
    let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
    let error = error.unwrap_err();
    assert_eq!(
        (error.code(), error.class()),
        ("download-dropped", Class::Retry)
    );
    assert!(error.to_string().contains("20000 bytes"), "{error}");
}

#[tokio::test]
async fn a_body_that_ends_early_is_continued() {
    let (server, image) = ready();
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    server.fault(PATH, Fault::DropAfter(10));
    // Chunked, ended properly, but shorter than its Content-Range.
    server.fault(PATH, Fault::EndAfter(70_000));
    let got = get(&fetcher, &uri(&server), .., None).await.unwrap();
    assert!(got.bytes == image);
    assert_eq!(server.requests()[2].range.as_deref(), Some("bytes=70010-"));
}

#[tokio::test]
async fn more_bytes_than_promised_are_an_error() {
    let (server, _) = ready();
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    for range in [ByteRange::from(10..1000), ByteRange::from(10..)] {
        for fault in [Fault::Extra(5), Fault::ExtraAtOnce(5)] {
            server.fault(PATH, fault);
            let error = get(&fetcher, &uri(&server), range, None).await.map(|_| ());
            let error = error.unwrap_err();
            assert_eq!(
                (error.code(), error.class()),
                ("body-too-long", Class::Final)
            );
        }
    }
}

#[tokio::test]
async fn a_file_of_untold_length_arrives_and_resumes() {
    let (server, image) = ready();
    server.describe(PATH, |file| file.length = false);
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    let got = get(&fetcher, &uri(&server), .., None).await.unwrap();
    assert!(got.bytes == image);
    assert_eq!(got.total, Some(SIZE as u64));
    // The drop hides whether that was the end: the server says so.
    for at in [100_000, SIZE as u64] {
        server.fault(PATH, Fault::DropAfter(at));
        let got = get(&fetcher, &uri(&server), .., None).await.unwrap();
        assert!(got.bytes == image, "{at}");
    }
}

#[tokio::test]
async fn a_server_without_ranges_is_skipped_forward_and_what_it_repeats_is_counted() {
    let (server, image) = ready();
    server.describe(PATH, |file| file.ranges = false);
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    server.fault(PATH, Fault::DropAfter(100_000));
    let got = get(&fetcher, &uri(&server), .., None).await.unwrap();
    assert!(got.bytes == image);
    assert!(!got.ranges);
    assert_eq!(fetcher.bytes_received(), 100_000 + SIZE as u64);
    // Also when the range itself lies within: nothing behind it is wanted.
    let got = get(
        &fetcher,
        &uri(&server),
        50_000..60_000,
        Some(&got.validator),
    )
    .await;
    let got = got.unwrap();
    assert!(got.bytes == image[50_000..60_000]);
    assert!(!got.ranges);
}

#[tokio::test]
async fn a_range_ignored_with_nothing_to_compare_is_an_error() {
    let (server, _) = ready();
    server.describe(PATH, |file| {
        (file.ranges, file.etag, file.last_modified) = (false, None, None);
    });
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    server.fault(PATH, Fault::DropAfter(100_000));
    let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
    assert_eq!(error.unwrap_err().code(), "range-ignored");
    // A weak tag says nothing about bytes either.
    server.describe(PATH, |file| file.etag = Some("W/\"1\"".to_owned()));
    server.fault(PATH, Fault::DropAfter(100_000));
    let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
    assert_eq!(error.unwrap_err().code(), "range-ignored");
}

#[tokio::test]
async fn last_modified_will_do_where_there_is_no_tag() {
    let (server, image) = ready();
    server.describe(PATH, |file| file.etag = None);
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    server.fault(PATH, Fault::DropAfter(100_000));
    let got = get(&fetcher, &uri(&server), .., None).await.unwrap();
    assert!(got.bytes == image);
    let if_range = server.requests()[1].if_range.clone();
    assert_eq!(if_range.as_deref(), Some("Mon, 23 Nov 2026 10:00:00 GMT"));
}

#[tokio::test]
async fn another_version_of_the_file_is_never_mixed_in() {
    let (server, image) = ready();
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    // 200 with another tag, because If-Range no longer holds.
    server.fault(PATH, Fault::DropAfter(100_000));
    let mut download = fetcher.open(&uri(&server), .., None).await.unwrap();
    let old = download.validator().clone();
    download.next_chunk().await.unwrap().unwrap();
    server.put(PATH, image.clone());
    let error = loop {
        match download.next_chunk().await {
            Ok(piece) => assert!(piece.is_some(), "it must not end well"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), "image-changed");
    assert!(error.to_string().contains("another ETag"), "{error}");
    // The same from a checkpoint.
    let error = get(&fetcher, &uri(&server), 100.., Some(&old))
        .await
        .map(|_| ());
    assert_eq!(error.unwrap_err().code(), "image-changed");
    // 206 with another tag, from a server that does not know If-Range.
    server.describe(PATH, |file| file.last_modified = None);
    server.fault(PATH, Fault::DropAfter(100_000));
    server.fault(PATH, Fault::NewEtag("\"v1\""));
    server.describe(PATH, |file| file.etag = Some("\"v0\"".to_owned()));
    let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
    assert_eq!(error.unwrap_err().code(), "image-changed");
    // The same tag, another length.
    server.describe(PATH, |file| file.etag = old.etag.clone());
    server.describe(PATH, |file| file.contents = vec![0; SIZE + 1].into());
    let error = get(&fetcher, &uri(&server), 100.., Some(&old))
        .await
        .map(|_| ());
    assert_eq!(error.unwrap_err().code(), "image-changed");
    // Shorter than what is here already.
    server.describe(PATH, |file| file.contents = vec![0; 50].into());
    let error = get(&fetcher, &uri(&server), 100.., Some(&old))
        .await
        .map(|_| ());
    assert_eq!(error.unwrap_err().code(), "image-changed");
}

#[tokio::test]
async fn a_partial_answer_must_be_the_part_that_was_asked_for() {
    for fault in [Fault::WrongContentRange, Fault::NoContentRange] {
        let error = refused([Fault::DropAfter(100_000), fault]).await;
        assert_eq!(
            (error.code(), error.class()),
            ("range-mismatch", Class::Final)
        );
    }
}

#[tokio::test]
async fn a_range_behind_the_end_is_an_error() {
    let (server, _) = ready();
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    let error = get(&fetcher, &uri(&server), 400_000.., None)
        .await
        .map(|_| ());
    let error = error.unwrap_err();
    assert_eq!(error.code(), "range-unsatisfiable");
    assert!(error.to_string().contains("300000 bytes"), "{error}");
}

#[tokio::test]
async fn refusals_are_final_and_told_apart() {
    const AZURE: &str = "<Error><Code>AuthenticationFailed</Code><AuthenticationErrorDetail>Signature \
        not valid in the specified time frame: Start [a] - Expiry [b]</AuthenticationErrorDetail>";
    const AZURE_WRONG: &str = "<Error><Code>AuthenticationFailed</Code><AuthenticationErrorDetail>\
        Signature did not match</AuthenticationErrorDetail>";
    for (status, body, code) in [
        (404, "", "image-not-found"),
        (410, "", "image-not-found"),
        (401, "", "image-forbidden"),
        (403, AZURE_WRONG, "image-forbidden"),
        (403, AZURE, "url-expired"),
        (403, "<Message>Request has expired</Message>", "url-expired"),
        (400, "", "http-status"),
        (204, "", "http-status"),
    ] {
        let error = refused([Fault::Status(status, &[], body)]).await;
        assert_eq!(
            (error.code(), error.class()),
            (code, Class::Final),
            "{status}"
        );
        assert!(error.to_string().contains(&status.to_string()), "{error}");
    }
}

#[tokio::test]
async fn a_busy_server_is_asked_again_when_it_says_so() {
    let (server, image) = ready();
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    let mut retrying = fetcher.retrying();
    server.fault(PATH, Fault::Status(503, &[("retry-after", "1")], "later"));
    server.fault(PATH, Fault::Status(429, &[("retry-after", "1")], "later"));
    server.faults(
        PATH,
        [408, 500, 502].map(|status| Fault::Status(status, &[], "")),
    );
    let started = Instant::now();
    let watched = tokio::spawn(async move {
        let seen = retrying.wait_for(Option::is_some).await.unwrap().clone();
        retrying.wait_for(Option::is_none).await.unwrap();
        seen.unwrap()
    });
    let got = get(&fetcher, &uri(&server), .., None).await.unwrap();
    assert!(got.bytes == image);
    let waited = started.elapsed();
    assert!(waited >= Duration::from_secs(2), "{waited:?}");
    assert_eq!(server.requests().len(), 6);
    let seen = watched.await.unwrap();
    assert_eq!(seen.reason.code, "server-busy");
    assert!(seen.reason.message.contains("503"));
    assert!(seen.attempts >= 1 && seen.pause >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_server_that_is_away_for_a_while_costs_only_time() {
    let (server, image) = ready();
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    server.throttle(Some(2_000_000));
    let mut download = fetcher.open(&uri(&server), .., None).await.unwrap();
    let mut bytes = download.next_chunk().await.unwrap().unwrap().to_vec();
    server.set_down(true);
    let mut retrying = fetcher.retrying();
    let back = async {
        let reason = retrying.wait_for(Option::is_some).await.unwrap().clone();
        retrying
            .wait_for(|now| {
                now.as_ref()
                    .is_some_and(|now| now.reason.code == "server-unreachable")
            })
            .await
            .unwrap();
        server.throttle(None);
        server.set_down(false);
        reason.unwrap()
    };
    let rest = async {
        while let Some(piece) = download.next_chunk().await.unwrap() {
            bytes.extend_from_slice(&piece);
        }
    };
    let (reason, ()) = timeout(Duration::from_secs(30), async { tokio::join!(back, rest) })
        .await
        .unwrap();
    assert_eq!(reason.reason.code, "download-dropped");
    assert!(bytes == image);
}

#[tokio::test]
async fn a_stalled_body_is_continued_and_ends_as_stalled() {
    let (server, image) = ready();
    let settings = FetchConfig {
        read_timeout: Duration::from_millis(300),
        give_up_after: Duration::from_millis(800),
        ..config(&server)
    };
    let fetcher = Fetcher::new(&settings).unwrap();
    server.fault(PATH, Fault::StallAfter(100_000));
    let got = get(&fetcher, &uri(&server), .., None).await.unwrap();
    assert!(got.bytes == image);
    server.fault(PATH, Fault::StallAfter(100_000));
    server.always(PATH, Fault::StallAfter(0));
    let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
    let error = error.unwrap_err();
    assert_eq!(
        (error.code(), error.class()),
        ("download-stalled", Class::Retry)
    );
    assert!(error.to_string().contains("100000 bytes"), "{error}");
}

#[tokio::test]
async fn a_server_that_drips_is_given_up_though_it_is_never_silent_for_long() {
    let (server, image) = ready();
    let settings = FetchConfig {
        read_timeout: Duration::from_millis(500),
        give_up_after: Duration::from_secs(1),
        ..config(&server)
    };
    let fetcher = Fetcher::new(&settings).unwrap();
    let drip = Fault::Drip(Duration::from_millis(25));
    // Once: the rest comes from a server that has recovered.
    server.fault(PATH, drip.clone());
    let got = get(&fetcher, &uri(&server), .., None).await.unwrap();
    assert!(got.bytes == image);
    let log = server.requests();
    assert!((2..1000).contains(&log[0].bytes), "{log:?}");
    assert!(log.len() > 1 && log[1].range.is_some(), "{log:?}");
    server.always(PATH, drip);
    let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
    let error = error.unwrap_err();
    assert_eq!(
        (error.code(), error.class()),
        ("download-too-slow", Class::Retry)
    );
    assert!(error.to_string().contains("check the network"), "{error}");
}

#[tokio::test]
async fn giving_up_on_a_call_loses_neither_bytes_nor_requests_nor_pauses() {
    let (server, image) = ready();
    server.throttle(Some(3_000_000));
    server.faults(PATH, (0..2).map(|_| Fault::DropAfter(60_000)));
    server.fault(PATH, Fault::Status(503, &[("retry-after", "1")], ""));
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    let mut download = fetcher.open(&uri(&server), .., None).await.unwrap();
    let started = Instant::now();
    let mut bytes = Vec::new();
    loop {
        match timeout(Duration::from_millis(2), download.next_chunk()).await {
            Err(_) => {}
            Ok(Ok(Some(piece))) => bytes.extend_from_slice(&piece),
            Ok(Ok(None)) => break,
            Ok(Err(error)) => panic!("{error}"),
        }
    }
    assert!(bytes == image);
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert_eq!(server.requests().len(), 4);
    let last = server.requests()[3].range.clone();
    assert_eq!(last.as_deref(), Some("bytes=120000-"));
}

#[tokio::test]
async fn a_stall_is_noticed_by_a_caller_who_never_waits_long() {
    let (server, image) = ready();
    server.fault(PATH, Fault::StallAfter(100_000));
    let fetcher = Fetcher::new(&FetchConfig {
        read_timeout: Duration::from_millis(300),
        ..config(&server)
    })
    .unwrap();
    let mut download = fetcher.open(&uri(&server), .., None).await.unwrap();
    let mut bytes = Vec::new();
    let work = async {
        loop {
            match timeout(Duration::from_millis(50), download.next_chunk()).await {
                Err(_) => {}
                Ok(Ok(Some(piece))) => bytes.extend_from_slice(&piece),
                Ok(Ok(None)) => break,
                Ok(Err(error)) => panic!("{error}"),
            }
        }
    };
    timeout(Duration::from_secs(20), work).await.unwrap();
    assert!(bytes == image);
}

#[tokio::test]
async fn an_encoded_body_is_refused() {
    let error = refused([Fault::Encoding("gzip")]).await;
    assert_eq!(
        (error.code(), error.class()),
        ("content-encoding", Class::Final)
    );
    assert!(error.to_string().contains("gzip"), "{error}");
    let (server, image) = ready();
    server.fault(PATH, Fault::Encoding("identity"));
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    assert!(get(&fetcher, &uri(&server), .., None).await.unwrap().bytes == image);
}

#[tokio::test]
async fn redirects_are_followed_but_not_for_ever_and_never_out_of_tls() {
    let (server, image) = ready();
    let plain = ImageServer::start_plain();
    plain.put(PATH, image.clone());
    let fetcher = Fetcher::new(&FetchConfig {
        insecure_hosts: vec!["localhost".to_owned()],
        ..config(&server)
    })
    .unwrap();
    let hop = |status| Fault::Redirect(status, PATH.to_owned());
    server.faults(PATH, [hop(301), hop(302), hop(307)]);
    let got = get(&fetcher, &uri(&server), 10.., None).await.unwrap();
    assert!(got.bytes == image[10..]);
    server.faults(PATH, [hop(301), hop(302), hop(303), hop(308)]);
    let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
    assert_eq!(error.unwrap_err().code(), "redirect-limit");
    server.clear_faults();

    // From https to http: not even to a host that may use http.
    server.fault(PATH, Fault::Redirect(302, plain.url("/x?sig=SECRET")));
    let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
    let error = error.unwrap_err();
    assert_eq!(error.code(), "redirect-insecure");
    assert!(!chain(&error).contains("SECRET") && !format!("{error:?}").contains("SECRET"));
    assert!(plain.requests().is_empty());
    // From http to http only where the host is listed, and to https always.
    let from_plain: PackageUri = plain.url("/old").parse().unwrap();
    plain.fault("/old", Fault::Redirect(302, plain.url(PATH)));
    assert!(get(&fetcher, &from_plain, .., None).await.unwrap().bytes == image);
    plain.fault("/old", Fault::Redirect(302, plain.url_by_address(PATH)));
    let error = get(&fetcher, &from_plain, .., None).await.map(|_| ());
    assert_eq!(error.unwrap_err().code(), "redirect-insecure");
    plain.fault("/old", Fault::Redirect(302, server.url(PATH)));
    assert!(get(&fetcher, &from_plain, .., None).await.unwrap().bytes == image);
    for target in ["ftp://localhost/x", "http://", "mailto:x"] {
        server.fault(PATH, Fault::Redirect(302, target.to_owned()));
        let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
        assert_eq!(error.unwrap_err().code(), "redirect-invalid", "{target}");
    }
}

#[tokio::test]
async fn http_is_for_listed_hosts_only() {
    let plain = ImageServer::start_plain();
    plain.put(PATH, image());
    // The system's certificates are of no matter here, but there must be some.
    let other = ImageServer::start();
    let refused = Fetcher::new(&config(&other)).unwrap();
    let error = get(&refused, &uri(&plain), .., None).await.map(|_| ());
    assert_eq!(error.unwrap_err().code(), "url-insecure");
    assert!(plain.requests().is_empty());
    let allowed = Fetcher::new(&FetchConfig {
        insecure_hosts: vec!["LOCALHOST".to_owned()],
        ..config(&other)
    })
    .unwrap();
    assert!(get(&allowed, &uri(&plain), .., None).await.unwrap().bytes == image());
}

fn secret_file(dir: &tempfile::TempDir, text: &str) -> PathBuf {
    let file = dir.path().join("authorization");
    std::fs::write(&file, text).unwrap();
    file
}

#[tokio::test]
async fn the_authorization_header_goes_to_its_origin_only() {
    let (server, _) = ready();
    let dir = tempfile::TempDir::new().unwrap();
    let file = secret_file(&dir, "Bearer TOKEN-1\n");
    let settings = FetchConfig {
        authorization_file: Some(file.clone()),
        authorization_hosts: vec!["LocalHost".to_owned()],
        insecure_hosts: vec!["localhost".to_owned()],
        ..config(&server)
    };
    let fetcher = Fetcher::new(&settings).unwrap();
    // Away to another origin and back again: it stays away.
    server.fault(PATH, Fault::Redirect(302, PATH.to_owned()));
    server.fault(PATH, Fault::Redirect(302, server.url_by_address(PATH)));
    server.fault(PATH, Fault::Redirect(302, server.url(PATH)));
    get(&fetcher, &uri(&server), .., None)
        .await
        .map(|_| ())
        .unwrap();
    let sent = |server: &ImageServer| {
        let log = server.requests();
        log.into_iter()
            .map(|logged| logged.authorization)
            .collect::<Vec<_>>()
    };
    let token = Some("Bearer TOKEN-1".to_owned());
    assert_eq!(sent(&server), [token.clone(), token, None, None]);
    // Renewed while it runs, also for a resume.
    server.clear_requests();
    server.fault(PATH, Fault::DropAfter(10));
    let mut download = fetcher.open(&uri(&server), .., None).await.unwrap();
    secret_file(&dir, "Bearer TOKEN-2");
    while download.next_chunk().await.unwrap().is_some() {}
    assert_eq!(sent(&server)[1].as_deref(), Some("Bearer TOKEN-2"));
    // Never in clear.
    let plain = ImageServer::start_plain();
    plain.put(PATH, image());
    get(&fetcher, &uri(&plain), .., None)
        .await
        .map(|_| ())
        .unwrap();
    assert_eq!(sent(&plain), [None]);
    // What cannot be a header is not echoed.
    secret_file(&dir, "Bearer TOKEN\n3");
    let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
    let error = error.unwrap_err();
    assert_eq!(error.code(), "authorization-file-invalid");
    assert!(!format!("{error:?} {}", chain(&error)).contains("TOKEN"));
    std::fs::remove_file(&file).unwrap();
    let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
    assert_eq!(error.unwrap_err().code(), "authorization-file-unreadable");
}

#[tokio::test]
async fn only_listed_hosts_are_sent_the_authorization_header_of_image_and_signature() {
    let (server, _) = ready();
    let signature = format!("{PATH}.minisig");
    server.put(&signature, b"signed".to_vec());
    let dir = tempfile::TempDir::new().unwrap();
    let file = secret_file(&dir, "Bearer TOKEN\n");
    let port = uri(&server).secret().port().unwrap();
    let listed = |host: String| vec!["images.example".to_owned(), host];
    for (hosts, sent) in [
        (listed("localhost".to_owned()), true),
        (listed(format!("LOCALHOST:{port}")), true),
        (listed(format!("localhost:{}", port ^ 1)), false),
        (listed("sub.localhost".to_owned()), false),
        (Vec::new(), false),
    ] {
        let fetcher = Fetcher::new(&FetchConfig {
            authorization_file: Some(file.clone()),
            authorization_hosts: hosts.clone(),
            ..config(&server)
        })
        .unwrap();
        server.clear_requests();
        let got = get(&fetcher, &uri(&server), .., None).await;
        got.map(|_| ()).unwrap();
        let beside = uri(&server).beside(".minisig");
        let minisig = fetcher.get_small(&beside, 100).await.unwrap();
        assert_eq!(minisig.as_deref(), Some(&b"signed"[..]));
        let token = sent.then(|| "Bearer TOKEN".to_owned());
        let log = server.requests();
        let heard: Vec<_> = log.into_iter().map(|one| one.authorization).collect();
        assert_eq!(heard, [token.clone(), token], "{hosts:?}");
    }
}

#[tokio::test]
async fn a_certificate_nobody_vouches_for_is_refused_at_once_with_advice() {
    let (server, _) = ready();
    // A CA of the same name with another key, and one of another name.
    let other = ImageServer::start();
    let dir = tempfile::TempDir::new().unwrap();
    let unrelated = dir.path().join("ca.pem");
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = rcgen::CertificateParams::new(vec!["unrelated".to_owned()]).unwrap();
    std::fs::write(&unrelated, ca.self_signed(&key).unwrap().pem()).unwrap();
    for ca_file in [other.ca_file(), unrelated] {
        let fetcher = Fetcher::new(&FetchConfig {
            ca_file: Some(ca_file),
            ..config(&server)
        })
        .unwrap();
        let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
        let error = error.unwrap_err();
        assert_eq!(
            (error.code(), error.class()),
            ("certificate-unknown-issuer", Class::Final)
        );
        assert!(error.to_string().contains("fetch.ca_file"), "{error}");
    }
    assert!(server.requests().is_empty());
    assert_eq!(server.connections(), 2);
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_at_once() {
    let server = ImageServer::start_for_name("images.example");
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
    let error = error.unwrap_err();
    assert_eq!(
        (error.code(), error.class()),
        ("certificate-invalid", Class::Final)
    );
    let text = chain(&error);
    assert!(
        text.contains("localhost") && text.contains("images.example"),
        "{text}"
    );
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_certificate_outside_its_time_waits_for_the_clock() {
    for (server, says) in [
        (
            ImageServer::start_with_validity((2100, 1, 1), (2120, 1, 1)),
            "not valid before 2100",
        ),
        (
            ImageServer::start_with_validity((2000, 1, 1), (2001, 1, 1)),
            "expired at 2001",
        ),
    ] {
        server.put(PATH, image());
        let fetcher = Fetcher::new(&FetchConfig {
            give_up_after: Duration::from_millis(200),
            ..config(&server)
        })
        .unwrap();
        let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
        let error = error.unwrap_err();
        assert_eq!(
            (error.code(), error.class()),
            ("certificate-time", Class::Wait)
        );
        assert!(error.to_string().contains(says), "{error}");
        assert!(error.to_string().contains("clock"), "{error}");
        assert!(server.connections() > 1, "it was tried again");
    }
}

#[tokio::test]
async fn no_error_tells_the_secrets_of_a_url() {
    let (server, _) = ready();
    let settings = FetchConfig {
        give_up_after: Duration::from_millis(100),
        read_timeout: Duration::from_millis(100),
        ..config(&server)
    };
    let fetcher = Fetcher::new(&settings).unwrap();
    let signed = server.url(&format!("{PATH}?sig=SECRET"));
    let signed: PackageUri = signed.parse().unwrap();
    let nobody = "https://localhost:1/x?sig=SECRET".parse().unwrap();
    let wrong = ImageServer::start();
    let untrusted = wrong.url("/x?sig=SECRET").parse().unwrap();
    let mut seen = Vec::new();
    for (uri, faults) in [
        (&signed, vec![Fault::Status(404, &[], "")]),
        (&signed, vec![Fault::Status(503, &[], "")]),
        (&signed, vec![Fault::DropAfter(9)]),
        (&signed, vec![Fault::StallAfter(9)]),
        (&signed, vec![Fault::Encoding("br")]),
        (
            &signed,
            vec![Fault::Redirect(
                302,
                "http://localhost/?sig=SECRET".to_owned(),
            )],
        ),
        (&nobody, vec![]),
        (&untrusted, vec![]),
    ] {
        server.clear_faults();
        if let [fault] = &faults[..] {
            server.fault(PATH, fault.clone());
            // A second time without a byte between.
            server.always(
                PATH,
                match fault {
                    Fault::DropAfter(_) => Fault::DropAfter(0),
                    Fault::StallAfter(_) => Fault::StallAfter(0),
                    other => other.clone(),
                },
            );
        }
        let error = get(&fetcher, uri, .., None).await.map(|_| ());
        let error = error.unwrap_err();
        let text = format!("{error} {error:?} {}", chain(&error));
        assert!(!text.contains("SECRET"), "{text}");
        seen.push(error.code());
    }
    assert_eq!(
        seen,
        [
            "image-not-found",
            "server-busy",
            "download-dropped",
            "download-stalled",
            "content-encoding",
            "redirect-insecure",
            "server-unreachable",
            "certificate-unknown-issuer",
        ]
    );
}

#[tokio::test]
async fn small_files_come_whole_or_not_at_all() {
    let (server, _) = ready();
    server.put("/a.minisig", b"signature".to_vec());
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    let small: PackageUri = server.url("/a.minisig").parse().unwrap();
    server.fault("/a.minisig", Fault::DropAfter(4));
    let got = fetcher.get_small(&small, 9).await.unwrap();
    assert_eq!(got.as_deref(), Some(&b"signature"[..]));
    let error = fetcher.get_small(&small, 8).await.unwrap_err();
    assert_eq!(error.code(), "file-too-large");
    server.describe("/a.minisig", |file| file.length = false);
    let error = fetcher.get_small(&small, 8).await.unwrap_err();
    assert_eq!(error.code(), "file-too-large");
    let missing: PackageUri = server.url("/missing").parse().unwrap();
    assert_eq!(fetcher.get_small(&missing, 100).await.unwrap(), None);
}

#[tokio::test]
async fn files_on_disk_are_streamed() {
    let server = ImageServer::start();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), image()).unwrap();
    server.put("/disk", file.path());
    let fetcher = Fetcher::new(&config(&server)).unwrap();
    let uri = server.url("/disk").parse().unwrap();
    let got = get(&fetcher, &uri, 12_345.., None).await.unwrap();
    assert!(got.bytes == image()[12_345..]);
    assert_eq!(server.bytes_sent(), SIZE as u64 - 12_345);
}
