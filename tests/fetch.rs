//! Downloads from a real HTTPS server that misbehaves: drops, stalls and drips here, the rest in the modules.

#[path = "support/connect_proxy.rs"]
mod connect_proxy;
#[path = "support/image_server.rs"]
mod image_server;
#[path = "fetch/liars.rs"]
mod liars;
#[path = "fetch/proxies.rs"]
mod proxies;
#[path = "support/raw_server.rs"]
mod raw_server;
#[path = "fetch/refusals.rs"]
mod refusals;
#[path = "fetch/together.rs"]
mod together;
#[path = "fetch/versions.rs"]
mod versions;
#[path = "fetch/who_may_know.rs"]
mod who_may_know;

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
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
    let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
    error.unwrap_err()
}

#[tokio::test]
async fn a_whole_file_and_a_range_arrive_as_they_are() {
    let (server, image) = ready();
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
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
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
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
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
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
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
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
        ..server.fetch_config()
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
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
    server.fault(PATH, Fault::DropAfter(10));
    // Chunked, ended properly, but shorter than its Content-Range.
    server.fault(PATH, Fault::EndAfter(70_000));
    let got = get(&fetcher, &uri(&server), .., None).await.unwrap();
    assert!(got.bytes == image);
    assert_eq!(server.requests()[2].range.as_deref(), Some("bytes=70010-"));
}

#[tokio::test]
async fn a_server_that_is_away_for_a_while_costs_only_time() {
    let (server, image) = ready();
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
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
        ..server.fetch_config()
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
        ..server.fetch_config()
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
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
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
        ..server.fetch_config()
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
async fn small_files_come_whole_or_not_at_all() {
    let (server, _) = ready();
    server.put("/a.minisig", b"signature".to_vec());
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
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
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
    let uri = server.url("/disk").parse().unwrap();
    let got = get(&fetcher, &uri, 12_345.., None).await.unwrap();
    assert!(got.bytes == image()[12_345..]);
    assert_eq!(server.bytes_sent(), SIZE as u64 - 12_345);
}
