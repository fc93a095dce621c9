//! Whom a download trusts, and who hears its secrets: `Authorization`, the device's certificate, a URL's query.

use super::*;
use fwupdated::config::ClientCertificateConfig;

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
        ..server.fetch_config()
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
            ..server.fetch_config()
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
            ..server.fetch_config()
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
    let fetcher = Fetcher::new(&server.fetch_config()).unwrap();
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
            ..server.fetch_config()
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
        ..server.fetch_config()
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
async fn http_is_for_listed_hosts_only() {
    let plain = ImageServer::start_plain();
    plain.put(PATH, image());
    // The system's certificates are of no matter here, but there must be some.
    let other = ImageServer::start();
    let refused = Fetcher::new(&other.fetch_config()).unwrap();
    let error = get(&refused, &uri(&plain), .., None).await.map(|_| ());
    assert_eq!(error.unwrap_err().code(), "url-insecure");
    assert!(plain.requests().is_empty());
    let allowed = Fetcher::new(&FetchConfig {
        insecure_hosts: vec!["LOCALHOST".to_owned()],
        ..other.fetch_config()
    })
    .unwrap();
    assert!(get(&allowed, &uri(&plain), .., None).await.unwrap().bytes == image());
}

/// A folder with the certificate and key that a server knows.
fn put_certificate(dir: &tempfile::TempDir, (certificate, key): &(String, String)) {
    std::fs::write(dir.path().join("cert.pem"), certificate).unwrap();
    std::fs::write(dir.path().join("key.pem"), key).unwrap();
}

fn known_to(server: &ImageServer, dir: &tempfile::TempDir, hosts: &[&str]) -> Fetcher {
    let settings = FetchConfig {
        client_certificate: Some(ClientCertificateConfig {
            certificate_file: dir.path().join("cert.pem"),
            key_file: dir.path().join("key.pem"),
            hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
        }),
        give_up_after: Duration::from_secs(1),
        ..server.fetch_config()
    };
    Fetcher::new(&settings).unwrap()
}

#[tokio::test]
async fn the_devices_certificate_opens_servers_that_are_listed_and_no_others() {
    let server = ImageServer::start_for_known_clients();
    server.put(PATH, image());
    let dir = tempfile::TempDir::new().unwrap();
    put_certificate(&dir, &server.make_client_certificate("pi-1"));
    let port = format!("LOCALHOST:{}", server.port());
    for hosts in [&["other.example", "localhost"], &["other.example", &*port]] {
        let fetcher = known_to(&server, &dir, hosts);
        let got = get(&fetcher, &uri(&server), 5.., None).await.unwrap();
        assert!(got.bytes == image()[5..]);
    }
    let without = Fetcher::new(&server.fetch_config()).unwrap();
    let elsewhere = known_to(
        &server,
        &dir,
        &["127.0.0.1", "sub.localhost", "localhost:1"],
    );
    for fetcher in [without, elsewhere] {
        let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
        let error = error.unwrap_err();
        assert_eq!(
            (error.code(), error.class()),
            ("client-certificate-refused", Class::Final)
        );
        let text = error.to_string();
        assert!(
            text.contains("list the host in fetch.client_certificate_hosts"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_redirect_does_not_take_the_certificate_along_but_a_listed_target_gets_it() {
    let known = ImageServer::start_for_known_clients();
    known.put(PATH, image());
    let dir = tempfile::TempDir::new().unwrap();
    put_certificate(&dir, &known.make_client_certificate("pi-1"));
    known.put("/away", Vec::new());
    known.always("/away", Fault::Redirect(302, known.url_by_address(PATH)));
    let away: PackageUri = known.url("/away").parse().unwrap();
    let fetcher = known_to(&known, &dir, &["localhost"]);
    let error = get(&fetcher, &away, .., None).await.map(|_| ());
    assert_eq!(error.unwrap_err().code(), "client-certificate-refused");
    let fetcher = known_to(&known, &dir, &["localhost", "127.0.0.1"]);
    assert!(get(&fetcher, &away, .., None).await.unwrap().bytes == image());
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused_with_other_advice() {
    let (server, other) = (ImageServer::start_for_known_clients(), ImageServer::start());
    let dir = tempfile::TempDir::new().unwrap();
    let made = other.make_client_certificate("pi-1");
    put_certificate(&dir, &made);
    let fetcher = known_to(&server, &dir, &["localhost"]);
    let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
    let error = error.unwrap_err();
    let text = format!("{error:?} {}", chain(&error));
    assert_eq!(error.code(), "client-certificate-refused", "{text}");
    assert!(
        text.contains("check fetch.client_certificate_file"),
        "{text}"
    );
    let secret = made.1.lines().nth(1).unwrap();
    assert!(!text.contains(secret), "{text}");
}

#[tokio::test]
async fn a_certificate_is_renewed_while_the_daemon_runs_and_half_a_pair_does_no_harm() {
    let server = ImageServer::start_for_known_clients();
    server.put(PATH, image());
    let dir = tempfile::TempDir::new().unwrap();
    let fetcher = known_to(&server, &dir, &["localhost"]);
    let ask = async || {
        let got = get(&fetcher, &uri(&server), .., None).await;
        got.map(|got| got.bytes.len()).map_err(|error| error.code())
    };
    assert_eq!(
        ask().await,
        Err("client-certificate-file"),
        "there is none yet"
    );
    put_certificate(&dir, &server.make_client_certificate("pi-1"));
    assert_eq!(ask().await, Ok(SIZE));
    assert_eq!(ask().await, Ok(SIZE));
    assert_eq!(
        server.connections(),
        1,
        "the same files, the same connection"
    );
    let next = server.make_client_certificate("pi-1");
    std::fs::write(dir.path().join("cert.pem"), &next.0).unwrap();
    assert_eq!(ask().await, Ok(SIZE), "the key has not come yet");
    assert_eq!(server.connections(), 1);
    std::fs::write(dir.path().join("key.pem"), &next.1).unwrap();
    assert_eq!(ask().await, Ok(SIZE));
    assert_eq!(server.connections(), 2, "the new one");
}
