//! Which bytes of which version of a file: ranges, validators, lengths.

use super::*;

#[tokio::test]
async fn a_server_without_ranges_is_skipped_forward_and_what_it_repeats_is_counted() {
    let (server, image) = ready();
    server.describe(PATH, |file| file.ranges = false);
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
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
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
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
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
    server.fault(PATH, Fault::DropAfter(100_000));
    let got = get(&fetcher, &uri(&server), .., None).await.unwrap();
    assert!(got.bytes == image);
    let if_range = server.requests()[1].if_range.clone();
    assert_eq!(if_range.as_deref(), Some("Mon, 23 Nov 2026 10:00:00 GMT"));
}

#[tokio::test]
async fn another_version_of_the_file_is_never_mixed_in() {
    let (server, image) = ready();
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
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
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
    let error = get(&fetcher, &uri(&server), 400_000.., None)
        .await
        .map(|_| ());
    let error = error.unwrap_err();
    assert_eq!(error.code(), "range-unsatisfiable");
    assert!(error.to_string().contains("300000 bytes"), "{error}");
}

#[tokio::test]
async fn more_bytes_than_promised_are_an_error() {
    let (server, _) = ready();
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
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
async fn an_encoded_body_is_refused() {
    let error = refused([Fault::Encoding("gzip")]).await;
    assert_eq!(
        (error.code(), error.class()),
        ("content-encoding", Class::Final)
    );
    assert!(error.to_string().contains("gzip"), "{error}");
    let (server, image) = ready();
    server.fault(PATH, Fault::Encoding("identity"));
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
    assert!(get(&fetcher, &uri(&server), .., None).await.unwrap().bytes == image);
}

#[tokio::test]
async fn a_file_of_untold_length_arrives_and_resumes() {
    let (server, image) = ready();
    server.describe(PATH, |file| file.length = false);
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
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
