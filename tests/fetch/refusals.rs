//! Answers that are no file: refusals, signed URLs outside of their time, busy servers, redirects.

use super::*;

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
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
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
async fn redirects_are_followed_but_not_for_ever_and_never_out_of_tls() {
    let (server, image) = ready();
    let plain = ImageServer::start_plain();
    plain.put(PATH, image.clone());
    let fetcher = Fetcher::new(&FetchConfig {
        insecure_hosts: vec!["localhost".to_owned()],
        ..server.fetch_config()
    })
    .unwrap();
    let hop = |status| Fault::Redirect(status, PATH.to_owned());
    server.faults(PATH, [hop(301), hop(302), hop(307)]);
    let got = get(&fetcher, &uri(&server), 10.., None).await.unwrap();
    assert!(got.bytes == image[10..]);
    server.faults(PATH, [hop(301), hop(302), hop(303), hop(308)]);
    let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
    let error = error.unwrap_err();
    assert_eq!(error.code(), "redirect-loop");
    assert!(
        error
            .to_string()
            .contains(&format!("back to {}", server.url(PATH))),
        "{error}"
    );
    for n in 0..4 {
        let target = format!("/hop{}?sig=SECRET", n + 1);
        server.always(&format!("/hop{n}"), Fault::Redirect(302, target));
    }
    let far: PackageUri = server.url("/hop0").parse().unwrap();
    let error = get(&fetcher, &far, .., None).await.map(|_| ()).unwrap_err();
    assert_eq!(error.code(), "redirect-limit");
    // Two that send to each other, with a secret in the address.
    server.always("/hop1", Fault::Redirect(302, "/hop0?sig=SECRET".to_owned()));
    let error = get(&fetcher, &far, .., None).await.map(|_| ()).unwrap_err();
    assert_eq!(error.code(), "redirect-loop");
    assert!(!chain(&error).contains("SECRET") && !format!("{error:?}").contains("SECRET"));
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
    for target in [
        "ftp://localhost/x",
        "http://",
        "mailto:x",
        "https://me:pw@localhost/",
    ] {
        server.fault(PATH, Fault::Redirect(302, target.to_owned()));
        let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
        assert_eq!(error.unwrap_err().code(), "redirect-invalid", "{target}");
    }
}

#[tokio::test]
async fn a_retry_after_with_a_date_is_waited_for() {
    let (server, image) = ready();
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
    // By the server's clock, which is decades behind.
    let headers = &[
        ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ("retry-after", "Sun, 06 Nov 1994 08:49:38 GMT"),
    ];
    server.fault(PATH, Fault::Status(503, headers, ""));
    let started = Instant::now();
    assert!(get(&fetcher, &uri(&server), .., None).await.unwrap().bytes == image);
    assert!(started.elapsed() >= Duration::from_secs(1));
}

/// What a signed URL with this query, refused so, comes to.
async fn signed(query: &str, fault: Fault) -> FetchError {
    let (server, _) = ready();
    server.always(PATH, fault);
    let settings = FetchConfig {
        give_up_after: Duration::from_millis(50),
        ..server.fetch_config()
    };
    let fetcher = Fetcher::new(&settings).unwrap();
    let uri = server.url(&format!("{PATH}?{query}")).parse().unwrap();
    let error = get(&fetcher, &uri, .., None).await.map(|_| ()).unwrap_err();
    let text = format!("{error:?} {}", chain(&error));
    assert!(!text.contains("SECRET") && !text.contains("sig="), "{text}");
    error
}

#[tokio::test]
async fn a_signed_url_outside_of_its_time_is_told_apart_from_other_refusals() {
    const DATE: (&str, &str) = ("date", "Sat, 28 Nov 2026 12:00:00 GMT");
    const FAILED: &[(&str, &str)] = &[DATE, ("x-ms-error-code", "AuthenticationFailed")];
    let azure = |start: &str, end: &str| {
        format!("sv=2024-11-04&sr=b&sp=r&st={start}&se={end}&sig=SECRET%3D")
    };
    // The body may be missing: the dates in the URL are enough, by the server's clock.
    let over = azure("2026-11-27T00%3A00%3A00Z", "2026-11-28T11%3A59%3A59Z");
    let error = signed(&over, Fault::Status(403, FAILED, "")).await;
    assert_eq!((error.code(), error.class()), ("url-expired", Class::Final));
    let text = error.to_string();
    assert!(
        text.contains("it expired at 2026-11-28T11:59:59Z"),
        "{text}"
    );
    assert!(
        text.contains("send the update again with a new URL"),
        "{text}"
    );
    let early = azure("2026-11-28T12%3A05%3A00Z", "2026-11-29T00%3A00%3A00Z");
    let error = signed(&early, Fault::Status(403, FAILED, "")).await;
    assert_eq!(
        (error.code(), error.class()),
        ("url-not-yet-valid", Class::Retry)
    );
    assert!(
        error.to_string().contains("from 2026-11-28T12:05:00Z"),
        "{error}"
    );
    // In time, but wrong: the store's own word for it is told.
    let good = azure("2026-11-27T00%3A00%3A00Z", "2026-11-29T00%3A00%3A00Z");
    let error = signed(&good, Fault::Status(403, FAILED, "")).await;
    assert_eq!(
        (error.code(), error.class()),
        ("image-forbidden", Class::Final)
    );
    assert!(
        error.to_string().contains("AuthenticationFailed"),
        "{error}"
    );
    let page = "<Error><Code>AccessDenied</Code><Message>sig=SECRET</Message></Error>";
    let error = signed(&good, Fault::Status(403, &[DATE], page)).await;
    assert!(
        error.to_string().contains("(403 Forbidden: AccessDenied)"),
        "{error}"
    );
    let odd = &[DATE, ("x-ms-error-code", "sig=SECRET")];
    let error = signed(&good, Fault::Status(403, odd, "")).await;
    assert_eq!(error.code(), "image-forbidden");
    // A container that is private, and no signature.
    let private = &[("x-ms-error-code", "PublicAccessNotPermitted")];
    let error = signed("", Fault::Status(409, private, "")).await;
    assert_eq!(error.code(), "image-forbidden");
    assert_eq!(
        signed("", Fault::Status(409, &[], "")).await.code(),
        "http-status"
    );
    // Not only Azure.
    let amazon = "X-Amz-Date=20261128T100000Z&X-Amz-Expires=3600&X-Amz-Signature=SECRET";
    let error = signed(amazon, Fault::Status(403, &[DATE], "")).await;
    assert_eq!(error.code(), "url-expired");
    assert!(
        error.to_string().contains("2026-11-28T11:00:00Z"),
        "{error}"
    );
}

#[tokio::test]
async fn a_server_that_answers_in_http_about_a_certificate_is_understood() {
    let page = "<center>No required SSL certificate was sent</center>";
    let error = refused([Fault::Status(400, &[], page)]).await;
    assert_eq!(
        (error.code(), error.class()),
        ("client-certificate-refused", Class::Final)
    );
    assert!(
        error.to_string().contains("fetch.client_certificate_file"),
        "{error}"
    );
}
