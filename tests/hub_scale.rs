//! A small fleet on one emulator, through the daemon's own session, link and reporter. `cargo bench --bench hub_scale`
//! does the same with ten thousand.

#[path = "bench/fleet/mod.rs"]
mod fleet;
mod support;

use std::time::Duration;

use fleet::{
    device::Timetable,
    scale::{self, Plan},
};
use fwupdated::platform::tls;
use iothub_emulator::{Emulator, Options};

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
        timetable: Timetable {
            stage: Duration::from_millis(300),
            download: Duration::from_secs(2),
            reboot: Duration::from_millis(500),
        },
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
    let outcome = scale::run(&plan, emulator.ready()).await;
    assert_eq!(outcome.devices, 200);
    emulator.stop().await;
}
