//! Several downloads through one fetcher: what they share stays true.

use super::*;

#[tokio::test]
async fn hundreds_of_ranges_need_hardly_more_connections_than_are_in_flight() {
    const RANGES: u64 = 400;
    let (server, image) = ready();
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
    let part = SIZE as u64 / RANGES;
    let next = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut workers = Vec::new();
    for _ in 0..4 {
        let (fetcher, uri, next) = (fetcher.clone(), uri(&server), next.clone());
        workers.push(tokio::spawn(async move {
            let mut got = Vec::new();
            loop {
                let start = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) * part;
                if start >= SIZE as u64 {
                    return got;
                }
                let range = start..start + part;
                let bytes = get(&fetcher, &uri, range, None).await.unwrap().bytes;
                got.push((start, bytes));
            }
        }));
    }
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.await.unwrap());
    }
    all.sort();
    assert!(all.into_iter().flat_map(|(_, bytes)| bytes).eq(image));
    assert_eq!(fetcher.bytes_received(), SIZE as u64);
    assert_eq!(server.requests().len() as u64, RANGES);
    // Where one is not back yet when the next request comes, another is opened, and kept.
    let connections = server.connections();
    assert!((4..=8).contains(&connections), "{connections}");
}

#[tokio::test]
async fn drops_of_several_downloads_at_once_cost_nothing_twice() {
    let (server, image) = ready();
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
    server.faults(PATH, (0..9).map(|_| Fault::DropAfter(20_000)));
    let part = SIZE / 4;
    let workers = (0..4).map(|n| {
        let (fetcher, uri) = (fetcher.clone(), uri(&server));
        let range = (n * part) as u64..((n + 1) * part) as u64;
        tokio::spawn(async move { get(&fetcher, &uri, range, None).await.unwrap().bytes })
    });
    let mut got = Vec::new();
    for worker in workers.collect::<Vec<_>>() {
        got.extend(worker.await.unwrap());
    }
    assert!(got == image);
    assert_eq!(fetcher.bytes_received(), SIZE as u64);
    assert_eq!(*fetcher.retrying().borrow(), None);
}

#[tokio::test]
async fn one_that_fails_neither_alarms_nor_gives_up_while_another_gets_bytes() {
    const BAD: &str = "/bad";
    let (server, image) = ready();
    server.always(BAD, Fault::Status(503, &[], ""));
    server.throttle(Some(75_000));
    let settings = FetchConfig {
        give_up_after: Duration::from_millis(1500),
        read_timeout: Duration::from_secs(1),
        ..server.fetch_config()
    };
    let fetcher = Fetcher::new(&settings).unwrap();
    let mut good = fetcher.open(&uri(&server), .., None).await.unwrap();
    let mut bytes = good.next_chunk().await.unwrap().unwrap().to_vec();
    let bad = tokio::spawn({
        let (fetcher, uri) = (fetcher.clone(), server.url(BAD).parse().unwrap());
        async move { get(&fetcher, &uri, .., None).await.map(|_| ()).unwrap_err() }
    });
    let started = Instant::now();
    while let Some(piece) = good.next_chunk().await.unwrap() {
        bytes.extend_from_slice(&piece);
        assert_eq!(*fetcher.retrying().borrow(), None);
    }
    assert!(bytes == image);
    // Longer than it would have gone on by itself.
    assert!(started.elapsed() > settings.give_up_after * 2);
    assert!(!bad.is_finished());
    let tries = server.requests().iter().filter(|r| r.path == BAD).count();
    assert!(tries > 1);
    // Alone it gives up in its time.
    let error = timeout(Duration::from_secs(20), bad)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(error.code(), "server-busy");
    assert_eq!(*fetcher.retrying().borrow(), None, "nobody waits any more");
}

#[tokio::test]
async fn what_failed_before_takes_nothing_from_the_next_update() {
    let (server, image) = ready();
    let settings = FetchConfig {
        give_up_after: Duration::from_millis(300),
        ..server.fetch_config()
    };
    let fetcher = Fetcher::new(&settings).unwrap();
    server.always(PATH, Fault::Status(503, &[], ""));
    let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
    assert_eq!(error.unwrap_err().code(), "server-busy");
    server.clear_faults();
    for again in [fetcher.afresh(), fetcher.afresh()] {
        server.fault(PATH, Fault::Status(503, &[], ""));
        assert!(get(&again, &uri(&server), .., None).await.unwrap().bytes == image);
    }
    assert_eq!(fetcher.bytes_received(), 2 * SIZE as u64);
}

#[tokio::test]
async fn one_that_stalls_is_asked_again_while_others_go_on() {
    const STUCK: &str = "/stuck";
    let (server, image) = ready();
    server.put(STUCK, image.clone());
    server.fault(STUCK, Fault::StallAfter(50_000));
    server.throttle(Some(200_000));
    let settings = FetchConfig {
        read_timeout: Duration::from_secs(2),
        ..server.fetch_config()
    };
    let fetcher = Fetcher::new(&settings).unwrap();
    let stuck: PackageUri = server.url(STUCK).parse().unwrap();
    let file = uri(&server);
    let (stuck, other) = tokio::join!(
        get(&fetcher, &stuck, .., None),
        get(&fetcher, &file, .., None)
    );
    assert!(stuck.unwrap().bytes == image && other.unwrap().bytes == image);
    let log = server.requests();
    let resumed = log.iter().filter(|r| r.path == STUCK).nth(1).unwrap();
    assert_eq!(resumed.range.as_deref(), Some("bytes=50000-"));
}

#[tokio::test]
async fn the_rate_limit_is_one_for_all_downloads() {
    let (server, image) = ready();
    let settings = FetchConfig {
        rate_limit: Some(400_000),
        ..server.fetch_config()
    };
    let fetcher = Fetcher::new(&settings).unwrap();
    let started = Instant::now();
    let part = SIZE as u64 / 4;
    let workers: Vec<_> = (0..4)
        .map(|n| {
            // Also of those that another update opens.
            let (fetcher, uri) = (fetcher.afresh(), uri(&server));
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                // In pieces so small that each is here at once.
                for start in (n * part..(n + 1) * part).step_by(7_500) {
                    let range = start..start + 7_500;
                    bytes.extend(get(&fetcher, &uri, range, None).await.unwrap().bytes);
                }
                bytes
            })
        })
        .collect();
    let mut got = Vec::new();
    for worker in workers {
        got.extend(worker.await.unwrap());
    }
    assert!(got == image);
    // All but each worker's last piece was paid for before the end.
    let least = Duration::from_millis((SIZE as u64 - 4 * 7_500) * 1000 / 400_000 - 100);
    assert!(started.elapsed() >= least, "{:?}", started.elapsed());
}
