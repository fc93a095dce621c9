//! Payloads and addresses that are no request.

use serde_json::{Value, json};

use crate::{
    scene::{Scene, hub_invoke},
    support::rig::{DEVICE, Device},
};

const GOOD: &str = "https://localhost/x.img";

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!("x"), |inner, _| json!([inner]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_that_is_no_request_is_refused_with_400_and_says_what_to_send() {
    let scene = Scene::new(|_| String::new()).await;
    let uri = |uri: &str| json!({ "fwPackageUri": uri });
    let with = |member: &str, value: Value| json!({"fwPackageUri": GOOD, member: value});
    let many: serde_json::Map<_, _> = (0..5000)
        .map(|n| (format!("m{n:05}"), json!("0123456789")))
        .collect();
    let cases = [
        ("a number", json!(42), "payload-kind"),
        ("a negative fraction", json!(-1.5), "payload-kind"),
        ("a boolean", json!(true), "payload-kind"),
        ("an array", json!([GOOD]), "payload-kind"),
        ("null", Value::Null, "payload-kind"),
        ("nested garbage", nested(100), "payload-kind"),
        ("an empty object", json!({}), "payload-no-uri"),
        ("an empty text", json!(""), "payload-no-uri"),
        ("blanks", json!("  \t"), "payload-no-uri"),
        (
            "no address",
            json!({"fwVersion": "1.1.0"}),
            "payload-no-uri",
        ),
        (
            "an address of null",
            uri_value(Value::Null),
            "payload-no-uri",
        ),
        ("an empty address", uri(""), "payload-no-uri"),
        (
            "an address that is a number",
            uri_value(json!(7)),
            "payload-type",
        ),
        (
            "an address that is an object",
            uri_value(json!({"uri": GOOD})),
            "payload-type",
        ),
        (
            "an address that is a list",
            uri_value(json!([GOOD])),
            "payload-type",
        ),
        (
            "two addresses",
            json!({"fwPackageUri": GOOD, "FWPACKAGEURI": GOOD}),
            "payload-ambiguous",
        ),
        (
            "broken JSON in a text",
            json!("{\"fwPackageUri\":"),
            "url-malformed",
        ),
        ("a number in a text", json!("42"), "url-malformed"),
        (
            "an array in a text",
            json!("[\"https://localhost/x\"]"),
            "url-malformed",
        ),
        (
            "an object without address in a text",
            json!("{\"force\":true}"),
            "payload-no-uri",
        ),
        (
            "a text of 100 KB",
            json!("x".repeat(100_000)),
            "url-too-long",
        ),
        ("an object of 100 KB", Value::Object(many), "payload-no-uri"),
        (
            "a version that is a number",
            with("fwVersion", json!(1.1)),
            "payload-type",
        ),
        (
            "an empty version",
            with("fwVersion", json!("")),
            "payload-version",
        ),
        (
            "a version of two lines",
            with("fwVersion", json!("1\n2")),
            "payload-version",
        ),
        (
            "a version of 65 characters",
            with("fwVersion", json!("1".repeat(65))),
            "payload-version",
        ),
        (
            "a digest that is none",
            with("fwPackageSha256", json!("123456abcde")),
            "payload-digest",
        ),
        (
            "a digest that is a number",
            with("fwPackageSha256", json!(12)),
            "payload-type",
        ),
        (
            "an id with a slash",
            with("updateId", json!("../../etc/passwd")),
            "payload-update-id",
        ),
        (
            "an empty id",
            with("updateId", json!("")),
            "payload-update-id",
        ),
        (
            "a long id",
            with("updateId", json!("i".repeat(65))),
            "payload-update-id",
        ),
        (
            "force as a text",
            with("force", json!("yes")),
            "payload-type",
        ),
        ("no URL", uri("secureurl"), "url-malformed"),
        ("a path", uri("/images/x.img"), "url-malformed"),
        (
            "a URL without scheme",
            uri("//localhost/x.img"),
            "url-malformed",
        ),
        ("http", uri("http://localhost/x.img"), "url-insecure"),
        ("HTTP", json!("HTTP://LOCALHOST/x.img"), "url-insecure"),
        ("ftp", uri("ftp://localhost/x.img"), "url-scheme"),
        ("file", uri("file:///etc/shadow"), "url-scheme"),
        ("javascript", uri("javascript:alert(1)"), "url-scheme"),
        ("data", uri("data:text/plain,x"), "url-scheme"),
        (
            "a host that is a scheme",
            uri("localhost:8080/x.img"),
            "url-scheme",
        ),
        ("no host", uri("https://"), "url-malformed"),
        ("no host but a path", uri("https:///x.img"), "url-malformed"),
        ("no host but a query", uri("https://?x"), "url-malformed"),
        ("one slash", uri("https:/localhost/x.img"), "url-malformed"),
        ("no slash", uri("https:localhost/x.img"), "url-malformed"),
        (
            "backslashes",
            uri("https:\\\\localhost\\x.img"),
            "url-malformed",
        ),
        (
            "a space in the host",
            uri("https://local host/x.img"),
            "url-malformed",
        ),
        (
            "a space in the path",
            uri("https://localhost/my image.img"),
            "url-malformed",
        ),
        (
            "a line break",
            uri("https://localhost/x\n.img"),
            "url-malformed",
        ),
        ("a NUL", uri("https://localhost/x\0.img"), "url-malformed"),
        (
            "a port that is none",
            uri("https://localhost:99999/x.img"),
            "url-malformed",
        ),
        (
            "a user",
            uri("https://user@localhost/x.img"),
            "url-user-info",
        ),
        (
            "a user and a password",
            uri("https://user:SECRET@localhost/x.img"),
            "url-user-info",
        ),
        (
            "2049 characters",
            uri(&format!("https://localhost/{}", "x".repeat(2031))),
            "url-too-long",
        ),
    ];
    for (case, payload, code) in cases {
        let message = scene.refused(case, payload, 400, code).await;
        let advice = match code {
            "payload-kind" | "payload-no-uri" => "send {\"fwPackageUri\":\"https://...\"}",
            "payload-ambiguous" => "send one",
            "payload-digest" => "64 hex digits",
            "url-malformed" => "give an absolute https:// URL",
            "url-scheme" => "only https:// is allowed",
            "url-insecure" => "use https://",
            "url-user-info" => "take it out",
            "url-too-long" => "at most 2048",
            _ => "must be",
        };
        assert!(message.contains(advice), "{case}: no advice in: {message}");
        assert!(!message.contains("SECRET"), "{case}: {message}");
    }
    assert!(
        scene.rig.server.requests().is_empty(),
        "nothing was fetched"
    );
}

fn uri_value(value: Value) -> Value {
    json!({ "fwPackageUri": value })
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_that_do_not_apply_are_refused_each_with_its_status() {
    let scene = Scene::new(|_| String::new()).await;
    let cases = [
        ("noSuchMethod", json!({}), 501, "method-unknown"),
        // Names are compared with regard to case.
        ("FIRMWAREUPDATE", json!(GOOD), 501, "method-unknown"),
        ("reboot", json!({}), 403, "method-disabled"),
        ("firmwareUpdateCancel", json!({}), 409, "nothing-to-cancel"),
        (
            "firmwareUpdateRollback",
            json!([1]),
            409,
            "nothing-to-roll-back",
        ),
    ];
    let medium = scene.medium();
    for (method, payload, status, code) in cases {
        let log = scene.device.log().len();
        let (found, body) = scene.rig.method(method, payload).await;
        assert_eq!(
            (found, body["code"].as_str()),
            (status, Some(code)),
            "{method}: {body}"
        );
        scene.assert_logged(method, log, code);
    }
    // Any payload will do for a question.
    assert_eq!(
        scene
            .rig
            .method("firmwareUpdateStatus", json!([null]))
            .await
            .0,
        200
    );
    assert!(scene.medium() == medium);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_tells_a_refusal_with_code_and_exit_status() {
    let scene = Scene::new(|_| String::new()).await;
    // What the device says, on the operator's side and on the device.
    let http = "http://localhost/x.img?sig=SECRET";
    let (code, out, err) = scene.hub(&hub_invoke(http, &["--json"]));
    assert_eq!(code, 2, "{out}{err}");
    let answer: serde_json::Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&answer["status"], &answer["payload"]["code"]),
        (&json!(400), &json!("url-insecure")),
        "{out}"
    );
    assert!(
        err.contains("[url-insecure]") && err.contains("fetch.insecure_hosts"),
        "{err}"
    );
    let local = scene.ctl(&["install", http]);
    assert_eq!(local.0, 2, "{local:?}");
    assert!(local.2.contains("[url-insecure]"), "{local:?}");
    // What is wrong by itself is said before anyone is asked.
    for (uri, code) in [
        ("ftp://localhost/x", "[url-scheme]"),
        ("https://u:SECRET@localhost/x", "[url-user-info]"),
        ("https://localhost/a b?sig=SECRET", "[url-malformed]"),
    ] {
        for (exit, out, err) in [
            scene.hub(&hub_invoke(uri, &[])),
            scene.ctl(&["install", uri]),
        ] {
            assert_eq!(exit, 2, "{uri}: {out}{err}");
            assert!(err.contains(code), "{uri}: {err}");
            assert!(
                !format!("{out}{err}").contains("SECRET"),
                "{uri}: {out}{err}"
            );
        }
    }
    assert!(!format!("{out}{err}{local:?}{}", scene.device.log()).contains("SECRET"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desired_version_that_is_no_request_is_reported_once_and_not_acted_on() {
    let mut scene = Scene::new(|_| String::new()).await;
    let good = scene.rig.server.url("/x.img");
    let cases = [
        ("a number", json!(5), "desired-kind"),
        (
            "no address",
            json!({"fwVersion": "2.0.0"}),
            "desired-no-uri",
        ),
        (
            "an address that is a list",
            json!({"fwPackageURI": [good]}),
            "desired-type",
        ),
        (
            "http",
            json!({"fwPackageURI": "http://localhost/x.img"}),
            "url-insecure",
        ),
        (
            "ftp",
            json!({"fwPackageURI": "ftp://localhost/x.img"}),
            "url-scheme",
        ),
        (
            "no digest",
            json!({"fwPackageURI": good, "fwPackageCheckValue": "123456abcde"}),
            "desired-check-value",
        ),
        (
            "no version",
            json!({"fwPackageURI": good, "fwVersion": "1\n2"}),
            "desired-version",
        ),
    ];
    let medium = scene.medium();
    for (case, firmware, code) in cases {
        let log = scene.device.log().len();
        // What an earlier case set does not merge into this one.
        for desired in [json!(null), firmware] {
            scene
                .rig
                .emulator
                .patch_desired(DEVICE, &json!({ "firmware": desired }))
                .unwrap();
        }
        let rig = &scene.rig;
        let told = |_: &mut Device| (rig.section()["error"]["code"] == code).then_some(());
        scene.device.until(case, told).await;
        let reported = rig.emulator.twin(DEVICE)["properties"]["reported"]["firmware"].clone();
        assert_eq!(reported["fwUpdateStatus"], "error", "{case}: {reported:#}");
        let text = reported["fwUpdateSubstatus"].as_str().unwrap_or_default();
        assert!(text.len() > 20, "{case}: {reported:#}");
        scene.assert_logged(case, log, code);
        let status = scene.status();
        assert_eq!(
            status["update"]["error"]["code"], code,
            "{case}: {status:#}"
        );
        assert!(scene.medium() == medium, "{case}: something was written");
    }
    assert!(
        scene.rig.server.requests().is_empty(),
        "nothing was fetched"
    );
}
