//! The baseline of failed units, against a systemd of the test's own on a real message bus.

use std::{
    fs,
    sync::{Arc, Mutex},
};

use zbus::OwnedObjectPath;

use super::support::{
    bus::Bus,
    rig::{Device, Rig},
};

type Unit = (
    String,
    String,
    String,
    String,
    String,
    String,
    OwnedObjectPath,
    u32,
    String,
    OwnedObjectPath,
);

/// What the health gate asks systemd.
struct Manager(Arc<Mutex<Vec<&'static str>>>);

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn list_units_filtered(&self, states: Vec<String>) -> Vec<Unit> {
        assert_eq!(states, ["failed"]);
        let path = || OwnedObjectPath::try_from("/").unwrap();
        let text = String::new;
        let failed = self.0.lock().unwrap().clone();
        let unit = |name: &str| {
            (
                name.to_owned(),
                text(),
                text(),
                text(),
                text(),
                text(),
                path(),
                0,
                text(),
                path(),
            )
        };
        failed.into_iter().map(unit).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_failed_before_the_update_is_borne_and_one_that_fails_since_ends_the_trial() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    let bus = Bus::start(dir.path());
    let failed = Arc::new(Mutex::new(vec!["printer.service"]));
    let manager = Manager(failed.clone());
    let systemd = bus
        .serve(
            "org.freedesktop.systemd1",
            "/org/freedesktop/systemd1",
            manager,
        )
        .await;

    let path = dir.path().join("device");
    fs::create_dir_all(path.join("health.d")).unwrap();
    let settings = format!(
        "[health]\nhook_dir = \"{}/health.d\"\ndeadline = \"8s\"\ninterval = \"500ms\"\nunits = []\nnewly_failed_units = true\n",
        path.display()
    );
    let mut device = Device::new(&rig, &path, 4 << 20, "1.0.0", &settings);
    device.launcher = vec![
        "env".to_owned(),
        format!("DBUS_SYSTEM_BUS_ADDRESS={}", bus.address),
    ];
    device.boot();
    device.until_connected(&rig).await;

    let id = super::start(&rig, "2.0.0").await;
    device.stop_before_the_reboot().await;
    let saved = fs::read_to_string(device.dir.join("state/state.json")).unwrap();
    let saved: serde_json::Value = serde_json::from_str(&saved).unwrap();
    assert_eq!(
        saved["baseline"],
        serde_json::json!({"failedUnits": ["printer.service"], "hubConnected": true}),
        "durable before the reboot: {saved:#}"
    );
    let section = device.until_final(&rig, &id).await;
    assert_eq!(
        section["status"],
        "applyComplete",
        "{section:#}\n{}",
        device.log()
    );

    let id = super::start(&rig, "3.0.0").await;
    device.stop_before_the_reboot().await;
    failed.lock().unwrap().push("app.service");
    let section = device.until_final(&rig, &id).await;
    assert_eq!(
        section["error"]["code"], "health-check-failed",
        "{section:#}"
    );
    let message = section["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("unit app.service has failed, which it had not before"),
        "{message}"
    );
    assert!(!message.contains("printer"), "{message}");
    drop(systemd);
}
