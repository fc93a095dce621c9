//! The interface's description, and what is made of a request for a file.

use std::fs::File;

use zbus::object_server::Interface as _;

use super::*;
use crate::config::StateConfig;

const XML: &str = include_str!("../../../../packaging/dbus/org.fwupdated1.xml");
const PAGE: &str = include_str!("../../../../docs/reference/d-bus.md");

fn manager(dir: &Path) -> Manager {
    let directory = dir.join("state");
    let store = Store::open(&StateConfig { directory }).unwrap();
    let (commands, _) = mpsc::channel(1);
    let status: Status = serde_json::from_value(serde_json::json!({
        "daemonVersion": "", "firmwareVersion": "1", "bootedSlot": "b", "slots": {}, "bootloader": "",
        "unsignedAllowed": false, "hub": {}, "lastSuccess": null,
        "update": {"id": "u", "origin": "local", "uri": "", "target": "a", "version": null, "fromVersion": null,
            "stage": "downloadFailed", "detail": null, "progress": {}, "times": {},
            "error": {"code": "cancelled", "message": "", "class": "final"}},
        "problem": null,
    }))
    .unwrap();
    let (outbox, trail) = (Vec::new(), Vec::new());
    let (_, published) = watch::channel(Published {
        status,
        outbox,
        trail,
    });
    Manager::new(commands, published, store)
}

#[test]
fn the_packaged_description_is_what_the_daemon_says_of_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut said = String::new();
    manager(dir.path()).introspect_to_writer(&mut said, 2);
    let described = XML.split_once("<node>\n").unwrap().1;
    let described = described.strip_suffix("</node>\n").unwrap();
    assert!(
        described == said,
        "packaging/dbus/org.fwupdated1.xml should have\n{said}"
    );
}

#[test]
fn the_page_has_each_member_once() {
    for kind in ["method", "property"] {
        let begin = format!("<{kind} name=\"");
        for member in XML.split(&begin).skip(1) {
            let name = member.split('"').next().unwrap();
            let row = format!("| `{name}` |");
            assert_eq!(
                PAGE.matches(&row).count(),
                1,
                "{row} in docs/reference/d-bus.md"
            );
        }
    }
    for action in Action::ALL {
        assert!(PAGE.contains(action.id()), "{}", action.id());
    }
}

#[test]
fn the_properties_follow_from_the_status() {
    let dir = tempfile::tempdir().unwrap();
    let shown = manager(dir.path()).shown();
    let expected = Shown {
        firmware_version: "1".to_owned(),
        running_slot: "b".to_owned(),
        update_id: "u".to_owned(),
        stage: "downloadFailed".to_owned(),
        error_code: "cancelled".to_owned(),
        ..Shown::default()
    };
    assert_eq!(shown, expected);
}

#[test]
fn a_file_s_request_is_held_to_the_rules_of_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.img");
    std::fs::write(&path, "x").unwrap();
    let ask = |path: &str, signature: usize, document: &str| {
        let file = File::open(dir.path().join("x.img")).unwrap();
        file_request(path, file.into(), vec![0; signature], document)
    };
    let path = path.to_str().unwrap();
    let Ok((request, file)) = ask(path, 3, r#"{"fwVersion":"2","force":true}"#) else {
        panic!("it is right");
    };
    assert_eq!(request.uri.path().as_deref(), Some(Path::new(path)));
    assert_eq!((request.origin, request.force), (Origin::Local, true));
    assert_eq!(file.signature(), Some(&[0; 3][..]));
    for (path, signature, document, code) in [
        ("x.img", 0, "{}", "local-file-request"),
        ("/a\nb", 0, "{}", "local-file-request"),
        (path, SIGNATURE_LIMIT + 1, "{}", "local-file-request"),
        (path, 0, "[]", "local-file-request"),
        (path, 0, r#"{"updateId":"a b"}"#, "payload-update-id"),
        (
            path,
            0,
            r#"{"FWPACKAGEURI":"https://h/x"}"#,
            "payload-ambiguous",
        ),
    ] {
        let Err(answer) = ask(path, signature, document) else {
            panic!("{path} {document}");
        };
        assert_eq!(
            (answer.status, answer.body["code"].as_str()),
            (400, Some(code))
        );
    }
    let folder = File::open(dir.path()).unwrap();
    let Err(answer) = file_request(path, folder.into(), Vec::new(), "{}") else {
        panic!("a folder");
    };
    assert_eq!(answer.body["code"], "local-file-kind");
}
