//! A state directory that takes no document: what cannot be recorded is not told, and nothing is started on it.

mod support;

use std::{fs, time::Duration};

use fwupdated::update::slot::Slot;
use serde_json::json;
use support::rig::{DEVICE, Device, Rig, noise};
use tempfile::TempDir;

async fn device() -> (Rig, Device, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let mut device = Device::new(&rig, &dir.path().join("device"), 8 << 20, "1.0.0", "");
    device.boot();
    device.until_connected(&rig).await;
    (rig, device, dir)
}

/// Lets the next saves fail: a folder stands where the new document is written first. A save that is under way ends
/// before.
fn break_saves(device: &Device) {
    let place = device.dir.join("state/state.new");
    while let Err(error) = fs::create_dir(&place) {
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists, "{error}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

fn mend_saves(device: &Device) {
    fs::remove_dir(device.dir.join("state/state.new")).unwrap();
}

/// Starts an update that takes its time, and cancels it while its end cannot be saved.
async fn cancelled_in_vain(rig: &Rig, device: &mut Device) -> String {
    rig.server.throttle(Some(256 << 10));
    let uri = rig.serve(&rig.build("2.0.0", noise(4 << 20, 7), &[]));
    let (status, body) = rig.invoke(json!({ "fwPackageUri": uri })).await;
    assert_eq!(status, 200, "{body}");
    let id = body["updateId"].as_str().unwrap().to_owned();
    device.until_word(rig, &id, "downloading").await;
    break_saves(device);
    let (status, body) = rig.method("firmwareUpdateCancel", json!({})).await;
    assert_eq!(status, 503, "{body}");
    assert_eq!(body["code"], "state-write-failed", "{body}");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let words = rig.words(&id);
    assert!(!words.contains(&"downloadfailed".to_owned()), "{words:?}");
    let twin = rig.emulator.twin(DEVICE);
    let problem = &twin["properties"]["reported"]["fwupdated"]["problem"];
    assert!(
        problem.to_string().contains("state-write-failed"),
        "{problem}"
    );
    rig.server.throttle(None);
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_is_told_once_it_is_saved() {
    let (rig, mut device, _dir) = device().await;
    let id = cancelled_in_vain(&rig, &mut device).await;
    mend_saves(&device);
    let section = device.until_final(&rig, &id).await;
    assert_eq!(section["error"]["code"], "cancelled", "{section:#}");
    device
        .until("end of the problem", |_| {
            let twin = rig.emulator.twin(DEVICE);
            twin["properties"]["reported"]["fwupdated"]["problem"]
                .is_null()
                .then_some(())
        })
        .await;
    // And it stays so.
    device.kill();
    device.boot();
    device.until_connected(&rig).await;
    assert_eq!(device.running(), Slot::A);
    assert_eq!(rig.section()["status"], "downloadfailed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_was_never_saved_is_never_told_and_the_update_goes_on_after_a_restart() {
    let (rig, mut device, _dir) = device().await;
    let id = cancelled_in_vain(&rig, &mut device).await;
    device.kill();
    mend_saves(&device);
    device.boot();
    let section = device.until_final(&rig, &id).await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");
    let words = rig.words(&id);
    assert!(!words.contains(&"downloadfailed".to_owned()), "{words:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_cannot_be_saved_is_refused_and_leaves_no_report() {
    let (rig, mut device, _dir) = device().await;
    let image = rig.build("2.0.0", noise(4 << 20, 7), &[]);
    let uri = rig.serve(&image);
    break_saves(&device);
    let (status, body) = rig.invoke(json!({ "fwPackageUri": uri })).await;
    assert_eq!(
        (status, &body["code"]),
        (503, &json!("state-write-failed")),
        "{body}"
    );
    // A desired version stays due, and is tried again after a while instead of all the time.
    let desired = json!({"firmware": {"fwVersion": "2.0.0", "fwPackageURI": uri, "fwPackageCheckValue": null}});
    rig.emulator.patch_desired(DEVICE, &desired).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let asked = device.log().matches("desired firmware asks for").count();
    assert_eq!(asked, 1, "{}", device.log());
    assert!(rig.section()["updateId"].is_null(), "{:#}", rig.section());
    mend_saves(&device);
    device
        .until("desired version", |_| {
            let twin = rig.emulator.twin(DEVICE);
            let version = &twin["properties"]["reported"]["firmware"]["currentFwVersion"];
            (version == "2.0.0").then_some(())
        })
        .await;
    assert!(device.holds(Slot::B, &image.raw));
}
