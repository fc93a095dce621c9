//! What a back end can ask of a device by method besides an update, with the real programs: during a trial boot it
//! can be rolled back and nothing else; in peace it can be rebooted, where that is allowed.

mod support;

use fwupdated::update::slot::Slot;
use serde_json::{Value, json};
use support::rig::{Device, Rig, noise};

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_can_be_rolled_back_but_not_cancelled_and_a_reboot_waits_for_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let path = dir.path().join("device");
    let mut device = Device::new(&rig, &path, 8 << 20, "1.0.0", "");
    let config = std::fs::read_to_string(device.config()).unwrap();
    let allowed = config.replace("[hub]\n", "[hub]\nallow_reboot_method = true\n");
    assert_ne!(config, allowed);
    std::fs::write(device.config(), allowed).unwrap();
    // Keeps the trial unconfirmed until its deadline.
    device.add_health_check("10-never", "exit 1");
    device.boot();
    device.until_connected(&rig).await;

    let image = rig.build("2.0.0", noise(1 << 20, 7), &[]);
    let payload = json!({"fwPackageUri": rig.serve(&image), "updateId": "doubted"});
    assert_eq!(rig.invoke(payload).await.0, 200);
    let is_on_trial =
        |_: &mut Device| (rig.section()["progress"]["stage"] == "trial").then_some(());
    device.until("trial", is_on_trial).await;
    assert_eq!(device.running(), Slot::B);
    for (method, payload, code) in [
        ("firmwareUpdateCancel", Value::Null, "too-late"),
        ("reboot", Value::Null, "update-busy"),
        (
            "firmwareUpdate",
            json!("https://localhost/other.img"),
            "update-busy",
        ),
    ] {
        let (status, body) = rig.method(method, payload).await;
        assert_eq!(
            (status, &body["code"]),
            (409, &json!(code)),
            "{method}: {body}"
        );
    }
    let (status, body) = rig.method("firmwareUpdateStatus", Value::Null).await;
    assert_eq!(
        (status, &body["update"]["stage"]),
        (200, &json!("trial")),
        "{body}"
    );
    let (status, body) = rig
        .method("firmwareUpdateRollback", json!({"why": "doubts"}))
        .await;
    assert_eq!(
        (status, &body["message"]),
        (200, &json!("rolling back")),
        "{body}"
    );

    let section = device.until_final(&rig, "doubted").await;
    assert_eq!(section["status"], "applyFailed", "{section:#}");
    assert_eq!(section["error"]["code"], "rollback-requested");
    assert_eq!(device.running(), Slot::A);
    let (status, body) = rig.method("firmwareUpdateRollback", json!({})).await;
    assert_eq!(
        (status, &body["code"]),
        (409, &json!("nothing-to-roll-back")),
        "{body}"
    );

    let boots = device.boots;
    let (status, body) = rig.method("reboot", Value::Null).await;
    assert_eq!(
        (status, &body["message"]),
        (200, &json!("rebooting")),
        "{body}"
    );
    let has_booted = |device: &mut Device| (device.boots > boots).then_some(());
    device.until("reboot", has_booted).await;
    assert_eq!(device.running(), Slot::A);
}
