//! A back end that was written for the classic firmware update samples works with fwupdated unchanged: the
//! official service SDK, the sample's payload, its poll of the twin, its fleet query.

mod support;

use std::process::Stdio;

use support::{
    rig::{DEVICE, Device, Rig, noise},
    sdk,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_back_end_of_the_samples_sees_every_stage_and_finds_the_device_by_query() {
    let Some(mut back_end) = sdk::script("back_end.py") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path()).await;
    // The product's own pace: each stage stands for at least a second, and the back end looks twice in it.
    let pace = "[report]\nreconnect_jitter = \"100ms\"\n";
    let mut device = Device::new(&rig, &dir.path().join("device"), 8 << 20, "1.0.0", pace);
    device.boot();
    device.until_connected(&rig).await;
    let image = rig.build("1.1.0", noise(4 << 20, 5), &[]);
    rig.server.throttle(Some(1 << 20));
    let ready = rig.emulator.ready();
    let mut back_end = back_end
        .args([DEVICE, &rig.serve(&image)])
        .env("CONNECTION_STRING", &ready.service_connection_string)
        .env("REQUESTS_CA_BUNDLE", &ready.ca_file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The stand-in for a boot takes its time, as a board does; else `applying` would pass unseen.
    device.on_boot = Some(Box::new(|_, _| {
        std::thread::sleep(std::time::Duration::from_secs(2))
    }));
    device
        .until("the back end's end", |_| back_end.try_wait().unwrap())
        .await;
    let output = back_end.wait_with_output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let lines: Vec<_> = text.lines().collect();
    let expected = [
        "answer 200 FirmwareUpdate started",
        "status waiting",
        "status downloading",
        "status downloadComplete",
        "status applying",
        "status applyComplete",
        "complete pi-01",
    ];
    assert_eq!(lines, expected, "{}", device.log());
    assert!(device.holds(device.running(), &image.raw));
}
