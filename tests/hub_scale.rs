//! A small fleet on one emulator, through the daemon's own session, link and reporter. `cargo bench --bench hub_scale`
//! does the same with ten thousand.

#[path = "bench/fleet/mod.rs"]
mod fleet;
mod support;

use std::time::Duration;

use fleet::{
    Called, Fleet, Service, configuration,
    device::Timetable,
    scale::{self, Plan},
};
use fwupdated::platform::tls;
use iothub_emulator::{Emulator, Options};
use serde_json::json;

const TIMETABLE: Timetable = Timetable {
    stage: Duration::from_millis(300),
    download: Duration::from_secs(2),
    reboot: Duration::from_millis(500),
};

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_devices_update_at_once_and_every_twin_ends_in_apply_complete() {
    tls::install_provider();
    let mut options = Options::default();
    for number in 0..200 {
        options = options.device(&format!("pi-{number:03}"));
    }
    let emulator = Emulator::start(options).await.unwrap();
    let plan = Plan {
        start_delay: Duration::from_secs(2),
        callers: 32,
        timetable: TIMETABLE,
        outage: Duration::from_secs(2),
        settings: &[
            ("HUB__RECONNECT_MAX", "4s"),
            ("REPORT__STAGE_INTERVAL", "200ms"),
            ("REPORT__PROGRESS_INTERVAL", "1s"),
            ("REPORT__RECONNECT_JITTER", "500ms"),
        ],
        patience: Duration::from_secs(120),
        emulator: None,
    };
    scale::run(&plan, emulator.ready()).await;
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_for_its_device_to_connect_and_ends_when_the_device_is_deleted() {
    tls::install_provider();
    let options = Options::default().device("late").device("never");
    let emulator = Emulator::start(options).await.unwrap();
    let service = Service::new(emulator.ready());
    let call = |device: &'static str| {
        let service = service.clone();
        tokio::spawn(async move {
            let called = service.call_within(60, device, "firmwareUpdateStatus", json!({}));
            called.await
        })
    };
    let (late, never) = (call("late"), call("never"));
    // Long enough for both to wait; if one does not yet, the test sees the same.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let fleet = Fleet::start(
        emulator.ready(),
        |id| id == "late",
        configuration(&[]),
        TIMETABLE,
        Duration::ZERO,
        Duration::from_secs(3600),
    );
    let late = tokio::time::timeout(Duration::from_secs(30), late).await;
    let late = late.expect("it was called when it connected").unwrap();
    assert!(matches!(late, Called::Answered(200, _)), "{late:?}");
    assert!(!never.is_finished());
    service.delete("never").await;
    let never = tokio::time::timeout(Duration::from_secs(30), never).await;
    let never = never.expect("nobody waits for a deleted device").unwrap();
    assert_eq!(never, Called::Refused(404));
    fleet.stop().await;
    emulator.stop().await;
}
