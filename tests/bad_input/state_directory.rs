//! A state directory that is full: the device says so, changes nothing, and goes on once there is room. And one with
//! the file of a newer version, which must not keep the device from its hub.

use std::{fs, path::PathBuf, process::Command};

use serde_json::json;

use crate::{
    scene::{Scene, problem},
    support::rig::{DEVICE, Device},
};

/// A small file system of its own; taken down when dropped.
struct Small(PathBuf);

impl Small {
    /// Under the state directory of `device`; `None`, after saying so, where nothing may be mounted.
    fn under(device: &Device) -> Option<Self> {
        let point = device.dir.join("state");
        fs::create_dir_all(&point).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs"]);
        let mounted = mount.arg(&point).output();
        if mounted.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(Self(point));
        }
        crate::support::skipped(format_args!(
            "this needs to mount a tmpfs (root): {mounted:?}"
        ));
        None
    }

    fn fill(&self) {
        // Fails, once nothing more fits.
        fs::write(self.0.join("ballast"), vec![0; 1 << 20]).unwrap_err();
    }

    fn free(&self) {
        fs::remove_file(self.0.join("ballast")).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

async fn scene() -> Option<(Scene, Small)> {
    let mut scene = Scene::off(|_| String::new()).await;
    let small = Small::under(&scene.device)?;
    scene.device.boot();
    scene.device.until_connected(&scene.rig).await;
    Some((scene, small))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_state_directory_refuses_updates_until_there_is_room() {
    let Some((mut scene, small)) = scene().await else {
        return;
    };
    let uri = scene.rig.serve(&scene.image("1.1.0"));
    small.fill();
    let state = fs::read(small.0.join("state.json")).unwrap();
    let message = scene
        .refused("full", json!(uri), 503, "state-disk-full")
        .await;
    assert!(message.contains("free some"), "{message}");
    let (exit, _, err) = scene.ctl(&["install", &uri]);
    assert_eq!(exit, 4, "{err}");
    assert!(err.contains("[state-disk-full]"), "{err}");
    assert!(fs::read(small.0.join("state.json")).unwrap() == state);
    assert!(
        scene.rig.server.requests().is_empty(),
        "nothing was fetched"
    );
    // With room it works at once.
    small.free();
    let (status, body) = scene.rig.invoke(json!(uri)).await;
    assert_eq!(status, 200, "{body}");
    let id = body["updateId"].as_str().unwrap().to_owned();
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");
    scene.device.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desired_version_waits_for_room_and_the_twin_says_why() {
    let Some((mut scene, small)) = scene().await else {
        return;
    };
    let uri = scene.rig.serve(&scene.image("1.1.0"));
    small.fill();
    let medium = scene.medium();
    let desired = json!({"firmware": {"fwVersion": "1.1.0", "fwPackageURI": uri}});
    scene.rig.emulator.patch_desired(DEVICE, &desired).unwrap();
    let rig = &scene.rig;
    let told = |_: &mut Device| (problem(rig)["code"] == "state-disk-full").then_some(());
    scene.device.until("problem in the twin", told).await;
    assert_eq!(scene.status()["problem"]["code"], "state-disk-full");
    assert!(scene.medium() == medium);
    small.free();
    let current = || {
        rig.emulator.twin(DEVICE)["properties"]["reported"]["firmware"]["currentFwVersion"].clone()
    };
    let installed = |_: &mut Device| (current() == "1.1.0").then_some(());
    scene.device.until("the desired version", installed).await;
    assert!(problem(&scene.rig).is_null());
    scene.device.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_fills_up_during_a_download_ends_it_before_anything_is_armed() {
    let Some((mut scene, small)) = scene().await else {
        return;
    };
    let uri = scene.rig.serve(&scene.image("1.1.0"));
    scene.rig.server.throttle(Some(4 << 20));
    let env = scene.device.env_bytes();
    let (status, body) = scene
        .rig
        .invoke(json!({"fwPackageUri": uri, "updateId": "fills-up"}))
        .await;
    assert_eq!(status, 200, "{body}");
    let server = &scene.rig.server;
    let half = |_: &mut Device| (server.bytes_sent() > 2 << 20).then_some(());
    scene.device.until("half of the download", half).await;
    small.fill();
    scene.rig.server.throttle(None);
    // It is given up, and the reason is told. Its end is not: it cannot be recorded, and a restart would take it back.
    let rig = &scene.rig;
    let full = |_: &mut Device| (problem(rig)["code"] == "state-disk-full").then_some(());
    scene.device.until("the problem", full).await;
    assert_eq!(scene.rig.section()["status"], "downloading");
    let status = scene.status();
    assert_eq!(status["problem"]["code"], "state-disk-full", "{status:#}");
    assert!(scene.device.log().contains("state-disk-full"));
    assert!(scene.device.env_bytes() == env);
    // With room the end is told, and the same update goes through, with what is there already.
    small.free();
    let section = scene.device.until_final(&scene.rig, "fills-up").await;
    assert_eq!(section["status"], "downloadfailed", "{section:#}");
    assert_eq!(section["error"]["code"], "state-disk-full", "{section:#}");
    let rig = &scene.rig;
    let gone = |_: &mut Device| problem(rig).is_null().then_some(());
    scene.device.until("end of the problem", gone).await;
    let (status, body) = scene
        .rig
        .invoke(json!({"fwPackageUri": uri, "updateId": "again"}))
        .await;
    assert_eq!(status, 200, "{body}");
    let section = scene.device.until_final(&scene.rig, "again").await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");
    assert!(
        section["progress"]["bytesReused"].as_u64() > Some(1 << 20),
        "{section:#}"
    );
    scene.device.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_file_of_a_newer_version_costs_the_state_and_not_the_device() {
    let mut scene = Scene::off(|_| String::new()).await;
    let state = scene.device.dir.join("state");
    fs::create_dir_all(&state).unwrap();
    let newer = r#"{"version": 7, "machine": {"state": "healing"}, "outbox": 1}"#;
    fs::write(state.join("state.json"), newer).unwrap();
    scene.device.boot();
    scene.device.until_connected(&scene.rig).await;
    let rig = &scene.rig;
    let told = |_: &mut Device| (problem(rig)["code"] == "state-too-new").then_some(());
    scene.device.until("problem in the twin", told).await;
    let kept = fs::read_to_string(state.join("state.json.v7")).unwrap();
    assert_eq!(kept, newer);
    let uri = scene.rig.serve(&scene.image("1.1.0"));
    let (status, body) = scene.rig.invoke(json!(uri)).await;
    assert_eq!(status, 200, "{body}");
    let id = body["updateId"].as_str().unwrap().to_owned();
    let section = scene.device.until_final(&scene.rig, &id).await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");
    // The update's boot was another start.
    assert!(scene.status()["problem"].is_null());
    scene.device.kill();
}
