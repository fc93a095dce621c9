//! Image servers that refuse, break off, lie, or cannot be reached.

use std::{
    fs,
    net::{TcpListener, ToSocketAddrs},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    scene::{Expected, Scene, at_header, in_slot},
    support::{
        image_server::{Fault, ImageServer},
        rig::Rig,
    },
};

/// `[fetch]` with short time limits, trusting also `others`, that gives up after `patience`.
fn settings(rig: &Rig, others: &[&ImageServer], patience: &str) -> String {
    let file = rig.dir.join("fetch-ca.pem");
    let pem = |server: &ImageServer| fs::read_to_string(server.ca_file()).unwrap();
    let all: String = others.iter().map(|server| pem(server)).collect();
    fs::write(&file, pem(&rig.server) + &all).unwrap();
    format!(
        "[fetch]\nca_file = \"{}\"\nconnect_timeout = \"1s\"\nread_timeout = \"1s\"\nretry_max = \"200ms\"\n\
         give_up_after = \"{patience}\"\n",
        file.display()
    )
}

fn payload(uri: &str) -> Value {
    json!({ "fwPackageUri": uri })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_no_ends_the_update_with_its_reason() {
    let mut scene = Scene::new(|rig| settings(rig, &[], "1s")).await;
    let good = fs::read(scene.image("1.1.0").file).unwrap();
    let expired =
        "<Error><Message>Signature not valid in the specified time frame</Message></Error>";
    let status = |status| Fault::Status(status, &[], "");
    let to = |target: &str| Fault::Redirect(302, target.to_owned());
    let plain = format!("http://localhost:{}/x", scene.rig.server.port());
    let here = scene.rig.server.url("/redirect-loop");
    let cases = [
        (
            "not-found",
            status(404),
            at_header("image-not-found", "check the URL"),
        ),
        (
            "gone",
            status(410),
            at_header("image-not-found", "check the URL"),
        ),
        (
            "unauthorised",
            status(401),
            at_header("image-forbidden", "fetch.authorization_file"),
        ),
        (
            "forbidden",
            status(403),
            at_header("image-forbidden", "check the URL's signature"),
        ),
        (
            "expired",
            Fault::Status(403, &[], expired),
            at_header("url-expired", "with a new URL"),
        ),
        (
            "teapot",
            status(418),
            at_header("http-status", "check the URL"),
        ),
        (
            "no-content",
            status(204),
            at_header("http-status", "check the URL"),
        ),
        (
            "login-page",
            Fault::Status(
                200,
                &[("content-type", "text/html")],
                "<!DOCTYPE html><html><body>Sign in to continue</body></html>",
            ),
            at_header("web-page", "a login page"),
        ),
        (
            "redirect-to-http",
            to(&plain),
            at_header("redirect-insecure", "use its https address"),
        ),
        (
            "redirect-loop",
            to(&here),
            at_header("redirect-loop", "in a circle"),
        ),
        (
            "redirect-to-ftp",
            to("ftp://localhost/x"),
            at_header("redirect-invalid", "fix the server"),
        ),
        (
            "redirect-nowhere",
            status(302),
            at_header("redirect-invalid", "fix the server"),
        ),
        (
            "encoded",
            Fault::Encoding("gzip"),
            at_header("content-encoding", "turn off compression"),
        ),
        (
            "wrong-range",
            Fault::WrongContentRange,
            at_header("range-mismatch", "proxy or the server"),
        ),
        (
            "no-content-range",
            Fault::NoContentRange,
            at_header("range-mismatch", "proxy or the server"),
        ),
        (
            "wrong-length",
            Fault::Length(10),
            at_header("range-mismatch", "proxy or the server"),
        ),
    ];
    for (case, fault, expected) in cases {
        let uri = scene.put(case, good.clone());
        scene.rig.server.always(&format!("/{case}"), fault);
        scene.rig.server.clear_requests();
        scene.fails(case, payload(&uri), expected).await;
        let asked = scene.rig.server.requests().len();
        let most = if case == "redirect-loop" { 6 } else { 1 };
        assert_eq!(
            asked, most,
            "{case}: what cannot pass is not asked for again"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_in_trouble_is_asked_again_and_given_up_within_the_budget() {
    let mut scene = Scene::new(|rig| settings(rig, &[], "1s")).await;
    let good = fs::read(scene.image("1.1.0").file).unwrap();
    let middle = good.len() as u64 / 2;
    let hour: &[_] = &[("retry-after", "3600")];
    let busy = at_header("server-busy", "look at the server");
    let cases = [
        ("internal-error", Fault::Status(500, &[], ""), busy),
        ("unavailable", Fault::Status(503, &[], ""), busy),
        (
            "unavailable-for-an-hour",
            Fault::Status(503, hour, ""),
            busy,
        ),
        ("too-many", Fault::Status(429, &[], ""), busy),
        (
            "silent",
            Fault::StallAfter(0),
            at_header("download-stalled", "fetch.read_timeout"),
        ),
        (
            "stalls",
            Fault::StallAt(middle),
            in_slot("download-stalled", "fetch.read_timeout"),
        ),
        (
            "drops-in-header",
            Fault::DropAt(100),
            at_header("download-dropped", "check the network"),
        ),
        (
            "drops",
            Fault::DropAt(middle),
            in_slot("download-dropped", "check the network"),
        ),
        (
            "short-body",
            Fault::EndAt(middle),
            in_slot("download-dropped", "check the network"),
        ),
    ];
    for (case, fault, expected) in cases {
        let uri = scene.put(case, good.clone());
        let path = format!("/{case}");
        scene.rig.server.always(&path, fault);
        let log = scene.device.log().len();
        scene.fails(case, payload(&uri), expected).await;
        let asked = scene
            .rig
            .server
            .requests()
            .iter()
            .filter(|r| r.path == path)
            .count();
        assert!(asked >= 2, "{case}: asked {asked} times");
        // The journal said what was being waited for, and the status did.
        let log = &scene.device.log()[log..];
        assert!(log.contains("trying again in"), "{case}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_be_reached_or_trusted_is_named() {
    let stranger = ImageServer::start();
    let old = ImageServer::start_with_validity((2020, 1, 1), (2021, 1, 1));
    let other_name = ImageServer::start_for_name("store.example");
    let mut scene = Scene::new(|rig| settings(rig, &[&old, &other_name], "1s")).await;
    // Takes connections and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let mute_port = mute.local_addr().unwrap().port();
    let closed_port = {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap();
        closed.local_addr().unwrap().port()
    };
    let plain = ImageServer::start_plain();
    let on = |port: u16| format!("https://localhost:{port}/x.img");
    let unreachable = at_header("server-unreachable", "check the network, DNS and proxy");
    let cases: [(&str, String, Expected<'_>); 6] = [
        (
            "untrusted",
            stranger.url("/x.img"),
            at_header("certificate-unknown-issuer", "fetch.ca_file"),
        ),
        (
            "out-of-date",
            old.url("/x.img"),
            at_header("certificate-time", "wrong clock"),
        ),
        (
            "wrong-name",
            other_name.url("/x.img"),
            at_header("certificate-invalid", "the URL's host name"),
        ),
        ("refused", on(closed_port), unreachable),
        ("no-tls", on(plain.port()), unreachable),
        (
            "mute",
            on(mute_port),
            at_header("server-no-answer", "fetch.connect_timeout"),
        ),
    ];
    for (case, uri, expected) in cases {
        scene.fails(case, payload(&uri), expected).await;
    }
    // Where the resolver itself is out of reach the look-up ends in a time limit, which has another code.
    let asked = Instant::now();
    assert!(("no-such-host.invalid", 443).to_socket_addrs().is_err());
    if asked.elapsed() > Duration::from_millis(500) {
        eprintln!(
            "SKIPPED: a host name that does not resolve, because this machine's resolver does not answer"
        );
        return;
    }
    let uri = "https://no-such-host.invalid/x.img";
    scene.fails("unknown-host", payload(uri), unreachable).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_or_cannot_be_continued_is_never_mixed() {
    let mut scene = Scene::new(|rig| settings(rig, &[], "1m")).await;
    let good = fs::read(scene.image("1.1.0").file).unwrap();
    let other = fs::read(scene.image("1.2.0").file).unwrap();
    let middle = good.len() as u64 / 2;
    // Another image takes its place in the middle of the download.
    let uri = scene.put("changed", good.clone());
    let path = "/changed";
    scene.rig.server.always(path, Fault::StallAt(middle));
    let server = &scene.rig.server;
    let swap = async {
        while !server
            .requests()
            .iter()
            .any(|r| r.path == path && r.bytes > middle / 2)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (status, body) = scene
        .rig
        .invoke(json!({"fwPackageUri": uri, "updateId": "changed"}))
        .await;
    assert_eq!(status, 200, "{body}");
    swap.await;
    scene.put("changed", other);
    scene.rig.server.clear_faults();
    let section = scene.device.until_final(&scene.rig, "changed").await;
    assert_eq!(section["error"]["code"], "image-changed", "{section:#}");

    // A server with nothing to tell versions apart by, and no ranges, drops the connection.
    let uri = scene.put("uncontinuable", good);
    let path = "/uncontinuable";
    scene.rig.server.describe(path, |file| {
        (file.etag, file.last_modified, file.ranges) = (None, None, false);
    });
    scene.rig.server.always(path, Fault::DropAt(middle));
    let expected = in_slot("range-ignored", "use a server that supports ranges");
    scene.fails("uncontinuable", payload(&uri), expected).await;
}
