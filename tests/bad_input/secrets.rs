//! What must stay secret stays so, in success and in failure: the URL's signature, the device's key, the
//! token for the image server.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use fwupdated::update::slot::Slot;
use serde_json::json;

use crate::{
    scene::{Scene, at_header, hub_invoke},
    support::{image_server::Fault, rig::DEVICE},
};

const URL_SECRET: &str = "URL-SECRET";
const TOKEN: &str = "TOKEN-SECRET";

/// Every file below `folder` with its mode and contents.
fn files(folder: &Path) -> Vec<(String, u32, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let (path, meta) = (entry.path(), entry.metadata().unwrap());
        if meta.is_dir() {
            found.extend(files(&path));
        } else {
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            let name = path.display().to_string();
            found.push((name, meta.permissions().mode() & 0o777, text));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_leaves_the_files_that_hold_it() {
    let mut scene = Scene::new(|rig| {
        let token = rig.dir.join("authorization");
        fs::write(&token, format!("Bearer {TOKEN}\n")).unwrap();
        format!(
            "[fetch]\nca_file = \"{}\"\nauthorization_file = \"{}\"\nauthorization_hosts = [\"localhost\"]\nread_timeout = \"1s\"\nretry_max = \"200ms\"\n\
             give_up_after = \"1s\"\n",
            rig.server.ca_file().display(),
            token.display()
        )
    })
    .await;
    let state = scene.device.dir.join("state");
    let identity = &scene.rig.emulator.ready().devices[DEVICE];
    let key = identity
        .split("SharedAccessKey=")
        .nth(1)
        .unwrap()
        .to_owned();
    let secrets = [
        URL_SECRET,
        TOKEN,
        key.trim_end_matches('='),
        "SharedAccessSignature",
    ];
    let signed = |uri: &str| format!("{uri}?sv=2024&sig={URL_SECRET}#{URL_SECRET}");
    let payload = |uri: &str| json!({ "fwPackageUri": signed(uri) });
    let good = fs::read(scene.image("1.1.0").file).unwrap();
    let mut told = String::new();

    // Failures: at once, at the header, in the transport, by a redirect, by giving up, by a signature.
    let away = format!("http://localhost/elsewhere?sig={URL_SECRET}");
    for (case, fault, code) in [
        (
            "absent",
            Fault::Status(404, &[], URL_SECRET),
            "image-not-found",
        ),
        (
            "forbidden",
            Fault::Status(403, &[], URL_SECRET),
            "image-forbidden",
        ),
        ("busy", Fault::Status(503, &[], URL_SECRET), "server-busy"),
        (
            "redirected",
            Fault::Redirect(302, away),
            "redirect-insecure",
        ),
        ("broken-off", Fault::DropAt(100), "download-dropped"),
    ] {
        let uri = scene.put(case, good.clone());
        scene.rig.server.always(&format!("/{case}"), fault);
        scene.fails(case, payload(&uri), at_header(code, "")).await;
    }
    let uri = scene.put("plain", vec![0; 4096]);
    let unsigned = at_header("image-unsigned", "");
    scene.fails("plain", payload(&uri), unsigned).await;
    let http = signed("http://localhost/x.img");
    told += &scene
        .refused("http", json!({"fwPackageUri": http}), 400, "url-insecure")
        .await;
    let user = format!("https://user:{URL_SECRET}@localhost/");
    told += &scene
        .refused("user", json!(user), 400, "url-user-info")
        .await;
    for uri in [signed("https://localhost:1/x.img"), http.clone(), user] {
        told += &format!("{:?}", scene.hub(&hub_invoke(&uri, &["--watch", "--json"])));
        told += &format!("{:?}", scene.ctl(&["install", &uri, "--watch"]));
    }

    // A success. While it runs, the whole address is in the state file, which only its owner can read.
    let uri = scene.put("good", good);
    scene.rig.server.throttle(Some(2 << 20));
    let (status, body) = scene.rig.invoke(payload(&uri)).await;
    assert_eq!(status, 200, "{body}");
    told += &body.to_string();
    let id = body["updateId"].as_str().unwrap().to_owned();
    scene
        .device
        .until_word(&scene.rig, &id, "downloading")
        .await;
    let holders = files(&state)
        .into_iter()
        .filter(|(_, _, text)| text.contains(URL_SECRET));
    let holders: Vec<_> = holders.map(|(name, mode, _)| (name, mode)).collect();
    let file = state.join("state.json").display().to_string();
    assert_eq!(
        holders,
        [(file, 0o600)],
        "where the address is while it is needed"
    );
    // A second call names what is under way; the state file is read without the daemon too.
    let (status, body) = scene.rig.invoke(json!("https://localhost/other.img")).await;
    assert_eq!(status, 409, "{body}");
    told += &body.to_string();
    scene.device.kill();
    told += &format!("{:?}", scene.ctl(&["status"]));
    told += &format!("{:?}", scene.ctl(&["status", "--json"]));
    scene.device.start();
    scene.rig.server.throttle(None);
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");
    assert_eq!(scene.device.running(), Slot::B);
    let requests = scene.rig.server.requests();
    let last = requests
        .iter()
        .rfind(|request| request.path == "/good")
        .unwrap();
    let sent = format!("{:?} {:?}", last.query, last.authorization);
    assert!(
        sent.contains(URL_SECRET) && sent.contains(TOKEN),
        "the secrets were in play: {sent}"
    );

    // Nobody told any of it.
    for arguments in [&["status"][..], &["status", "--json"], &["config", "check"]] {
        told += &format!("{:?}", scene.ctl(arguments));
    }
    told += &format!("{:?}", scene.hub(&["twin", DEVICE]));
    told += &format!("{:?}", scene.hub(&["list"]));
    let (_, answer) = scene.rig.method("firmwareUpdateStatus", json!({})).await;
    told += &answer.to_string();
    let twin = scene.rig.emulator.twin(DEVICE).to_string();
    let history = format!("{:?}", scene.rig.emulator.reported_history(DEVICE));
    let kept: String = files(&state).into_iter().map(|(_, _, text)| text).collect();
    let env = String::from_utf8_lossy(&scene.device.env_bytes()).into_owned();
    for (place, text) in [
        ("the twin", twin),
        ("the twin's history", history),
        ("the journal", scene.device.log()),
        ("the state directory", kept),
        ("the U-Boot environment", env),
        ("an answer or the command line", told),
    ] {
        for secret in secrets {
            assert!(!text.contains(secret), "{place} tells {secret}:\n{text}");
        }
    }
    // The address itself is told, without them.
    assert_eq!(scene.rig.section()["fwPackageUri"], uri.as_str());
}
