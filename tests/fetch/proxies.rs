//! The way outside: proxies from the configuration and from the environment.

use super::*;
use crate::connect_proxy::{ConnectProxy, Rules};
use fwupdated::config::ProxyConfig;

/// The child of [`the_environments_proxy_is_used_unless_it_is_switched_off`] reads these.
const URL: &str = "FETCH_TEST_URL";
const CA: &str = "FETCH_TEST_CA";
const DIRECT: &str = "FETCH_TEST_DIRECT";

fn through(proxy: &ConnectProxy, authorization_file: Option<PathBuf>) -> FetchProxy {
    FetchProxy::Through(ProxyConfig {
        host: proxy.address.ip().to_string(),
        port: proxy.address.port(),
        authorization_file,
    })
}

#[tokio::test]
async fn the_configured_proxy_is_led_through() {
    let (server, image) = ready();
    let proxy = ConnectProxy::start(Rules::default()).await;
    let settings = FetchConfig {
        proxy: through(&proxy, None),
        ..server.fetch_config()
    };
    let fetcher = Fetcher::new(&settings).unwrap();
    assert!(get(&fetcher, &uri(&server), .., None).await.unwrap().bytes == image);
    assert_eq!(proxy.asked(), [format!("localhost:{}", server.port())]);
}

#[tokio::test]
async fn a_proxy_that_wants_a_password_gets_it_from_the_file_whenever_that_changes() {
    let (server, image) = ready();
    // me:hunter2
    let rules = Rules {
        authorization: Some("Basic bWU6aHVudGVyMg==".to_owned()),
        ..Rules::default()
    };
    let proxy = ConnectProxy::start(rules).await;
    let ask = async |file: Option<PathBuf>| {
        let settings = FetchConfig {
            proxy: through(&proxy, file),
            ..server.fetch_config()
        };
        let fetcher = Fetcher::new(&settings).unwrap();
        let got = get(&fetcher, &uri(&server), .., None).await;
        (fetcher, got.map(|got| got.bytes))
    };
    let refused = |got: Result<Vec<u8>, FetchError>| {
        let error = got.unwrap_err();
        let text = format!("{error:?} {}", chain(&error));
        assert!(!text.contains("hunter") && !text.contains("bWU6"), "{text}");
        assert_eq!(error.class(), Class::Final);
        error.code()
    };
    assert_eq!(refused(ask(None).await.1), "proxy-authorization");
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("proxy");
    assert_eq!(
        refused(ask(Some(file.clone())).await.1),
        "proxy-authorization-file"
    );
    std::fs::write(&file, "hunter2\n").unwrap();
    assert_eq!(
        refused(ask(Some(file.clone())).await.1),
        "proxy-authorization-file"
    );
    std::fs::write(&file, "me:hunter1\n").unwrap();
    let (fetcher, got) = ask(Some(file.clone())).await;
    assert_eq!(refused(got), "proxy-authorization");
    // The same fetcher, without a restart.
    std::fs::write(&file, "me:hunter2\n").unwrap();
    assert!(get(&fetcher, &uri(&server), .., None).await.unwrap().bytes == image);
    // And while the file is written anew, what it held before.
    std::fs::write(&file, "").unwrap();
    assert!(get(&fetcher, &uri(&server), .., None).await.unwrap().bytes == image);
}

#[tokio::test]
async fn a_proxy_that_is_none_is_unreachable_and_tried_again() {
    let (server, _) = ready();
    let proxy = ConnectProxy::start(Rules {
        only_port: Some(1),
        ..Rules::default()
    })
    .await;
    let settings = FetchConfig {
        proxy: through(&proxy, None),
        give_up_after: Duration::from_millis(200),
        ..server.fetch_config()
    };
    let fetcher = Fetcher::new(&settings).unwrap();
    let error = get(&fetcher, &uri(&server), .., None).await.map(|_| ());
    let error = error.unwrap_err();
    assert_eq!(
        (error.code(), error.class()),
        ("server-unreachable", Class::Retry)
    );
    assert!(error.to_string().contains("proxy"), "{error}");
    assert!(proxy.asked().len() > 1);
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn the_environments_proxy_is_used_unless_it_is_switched_off() {
    let (server, _) = ready();
    let proxy = ConnectProxy::start(Rules::default()).await;
    for (variables, direct, led) in [
        (&[("https_proxy", proxy.url())][..], "", true),
        (&[("HTTPS_PROXY", proxy.url())], "", true),
        (&[("all_proxy", proxy.url())], "", true),
        (&[("http_proxy", proxy.url())], "", false),
        (&[("https_proxy", proxy.url())], "1", false),
        (
            &[
                ("https_proxy", proxy.url()),
                ("no_proxy", "example.org,localhost".to_owned()),
            ],
            "",
            false,
        ),
        (&[], "", false),
    ] {
        let before = (proxy.asked().len(), server.requests().len());
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "proxies::as_the_environment_says", "--ignored"]);
        for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            child.env_remove(name).env_remove(name.to_uppercase());
        }
        child.env(URL, server.url(PATH)).env(CA, server.ca_file());
        child.env(DIRECT, direct).envs(variables.to_vec());
        let output = child.output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}"
        );
        assert_eq!(
            proxy.asked().len() - before.0,
            usize::from(led),
            "{variables:?} {direct}"
        );
        assert_eq!(server.requests().len() - before.1, 1);
    }
}

#[tokio::test]
#[ignore = "run by the test before, in a process with the variables to be read"]
async fn as_the_environment_says() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let some_server = ImageServer::start();
    let settings = FetchConfig {
        ca_file: Some(variable(CA).into()),
        proxy: match variable(DIRECT).as_str() {
            "" => FetchProxy::Environment,
            _ => FetchProxy::Direct,
        },
        ..some_server.fetch_config()
    };
    let fetcher = Fetcher::new(&settings).unwrap();
    let uri = variable(URL).parse().unwrap();
    assert!(get(&fetcher, &uri, .., None).await.unwrap().bytes == image());
}
