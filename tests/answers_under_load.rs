//! Direct methods while an update takes all that link, processor and disk can give, with the real programs: each
//! call gets its right answer. One that took longer than 950 ms inside the daemon would be answered `answer-late`,
//! so that the right content shows the time as well.

mod support;

use std::{
    fs::File,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::{Value, json};
use support::rig::{Device, Rig, noise};

const MIB: usize = 1 << 20;

/// Writes and syncs a file beside the slots until told to stop, so that the slot has to wait for the disk.
fn hog(path: std::path::PathBuf, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let block = vec![0x5a; 4 * MIB];
        while !stop.load(Ordering::Relaxed) {
            let mut file = File::create(&path).unwrap();
            for _ in 0..4 {
                file.write_all(&block).unwrap();
            }
            file.sync_all().unwrap();
        }
    })
}

/// Calls `method` until the image is on the slot; `right` judges each answer. How many there were.
async fn keep_calling(
    rig: &Rig,
    method: &str,
    payload: &Value,
    right: impl Fn(i64, &Value) -> bool,
) -> u32 {
    let mut calls = 0;
    loop {
        let (_, status) = rig.method("firmwareUpdateStatus", Value::Null).await;
        let stage = status["update"]["stage"].as_str().unwrap_or_default();
        if !["waiting", "downloading", "downloadComplete"].contains(&stage) {
            return calls;
        }
        let (status, body) = rig.method(method, payload.clone()).await;
        assert!(right(status, &body), "{method} in {stage}: {status} {body}");
        calls += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_method_gets_its_right_answer_while_link_and_disk_are_saturated() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let path = dir.path().join("device");
    let mut device = Device::new(&rig, &path, 80 * MIB as u64, "1.0.0", "");
    device.log_filter = "info".to_owned();
    device.boot();
    device.until_connected(&rig).await;
    let image = rig.build("2.0.0", noise(64 * MIB, 7), &[]);
    let uri = rig.serve(&image);

    let stop = Arc::new(AtomicBool::new(false));
    let hog = hog(dir.path().join("hog"), stop.clone());
    let payload = json!({"fwPackageUri": uri, "updateId": "under-load"});
    let (status, body) = rig.invoke(payload.clone()).await;
    assert_eq!(status, 200, "{body}");
    let (other, nothing) = (json!("https://localhost/other.img"), json!({}));
    let id = "under-load";
    // The last answers may come when the slot was just armed.
    let calls = tokio::join!(
        keep_calling(&rig, "firmwareUpdate", &payload, |status, body| {
            status == 200 && body["updateId"] == id
        }),
        keep_calling(&rig, "InitiateFirmwareUpdate", &other, |status, body| {
            status == 409 && body["code"] == "update-busy" && body["updateId"] == id
        }),
        keep_calling(&rig, "firmwareUpdateStatus", &nothing, |status, body| {
            status == 200 && body["update"]["id"] == id
        }),
        keep_calling(&rig, "firmwareUpdateRollback", &nothing, |status, body| {
            status == 409 && body["code"] == "nothing-to-roll-back"
        }),
        keep_calling(&rig, "noSuchMethod", &nothing, |status, _| status == 501),
    );
    stop.store(true, Ordering::Relaxed);
    hog.join().unwrap();
    let calls = [calls.0, calls.1, calls.2, calls.3, calls.4];
    assert!(calls.iter().all(|calls| *calls >= 5), "{calls:?}");
    let section = device.until_final(&rig, id).await;
    assert_eq!(
        section["status"],
        "applyComplete",
        "{section:#}\n{}",
        device.log()
    );
    assert!(!device.log().contains("not answered in time"));
    eprintln!(
        "{calls:?} calls while {} MiB were installed",
        image.raw.len() / MIB
    );
}
