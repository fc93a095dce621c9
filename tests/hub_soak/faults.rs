//! What goes wrong on the way to a hub, at random: everything the emulator can do to a device, and a second client
//! with the device's own identity.

use std::{collections::BTreeMap, ops::AddAssign, sync::Arc, time::Duration};

use fwupdated::{
    config::{Config, HubConfig},
    hub::{
        credentials::Credentials,
        session::{Session, SessionOptions},
    },
    platform::tls,
};
use tokio::{sync::watch, time::sleep};

use crate::support::{
    random::Random,
    rig::{DEVICE, Rig},
};

/// How often each fault came.
#[derive(Debug, Default)]
pub(crate) struct Counts(pub(crate) BTreeMap<&'static str, u32>);

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        for (name, count) in other.0 {
            *self.0.entry(name).or_default() += count;
        }
    }
}

/// Makes one thing after another go wrong until `stop` is raised; then all is well again.
pub(crate) async fn storm(
    rig: Arc<Rig>,
    devices: Arc<Vec<String>>,
    mut random: Random,
    mut stop: watch::Receiver<bool>,
) -> Counts {
    let mut counts = Counts::default();
    while !*stop.borrow_and_update() {
        let name = one(&rig, &devices, &mut random).await;
        *counts.0.entry(name).or_default() += 1;
        let pause = Duration::from_millis(100 + random.below(1900));
        // An error would mean that the test is over.
        let _ = tokio::time::timeout(pause, stop.changed()).await;
    }
    let emulator = &rig.emulator;
    emulator.set_down(false);
    emulator.refuse_connects(0);
    emulator.delay_twin_answers(Duration::ZERO);
    emulator.swallow_twin_answers(0);
    emulator.fail_twin_patches(0, 500);
    counts
}

/// One fault; its name.
async fn one(rig: &Rig, devices: &[String], random: &mut Random) -> &'static str {
    let emulator = &rig.emulator;
    // Half of them hit the real daemon.
    let device = match random.below(2) {
        0 => DEVICE,
        _ => &devices[random.below(devices.len() as u64) as usize],
    };
    let few = 1 + random.below(4) as u32;
    let moment = Duration::from_millis(200 + random.below(2800));
    match random.below(11) {
        0 | 1 => {
            emulator.drop_connection(device);
            "drop"
        }
        2 => {
            emulator.outage(moment);
            sleep(moment).await;
            "outage"
        }
        3 => {
            emulator.drop_connection(device);
            emulator.refuse_connects_with(few, 3);
            "refusal (unavailable)"
        }
        4 => {
            emulator.drop_connection(device);
            emulator.refuse_connects_with(few, 5);
            "refusal (not authorised)"
        }
        5 => {
            emulator.delay_twin_answers(Duration::from_millis(random.below(2000)));
            sleep(moment).await;
            emulator.delay_twin_answers(Duration::ZERO);
            "late twin answers"
        }
        6 => {
            emulator.swallow_twin_answers(few);
            "lost twin answers"
        }
        7 => {
            let status = [429, 500, 503][random.below(3) as usize];
            emulator.fail_twin_patches(few, status);
            "patches refused for now"
        }
        8 => {
            emulator.forget_session(device);
            emulator.drop_connection(device);
            "forgotten session"
        }
        9 => {
            emulator.expire_tokens().await;
            "expired tokens"
        }
        _ => {
            impostor(rig, device, moment).await;
            "second client of the same name"
        }
    }
}

/// Someone else uses the identity of `device` for a while.
async fn impostor(rig: &Rig, device: &str, time: Duration) {
    let ready = rig.emulator.ready();
    let credentials: Credentials = ready.devices[device].parse().unwrap();
    let tls = tls::client_config(Some(&ready.ca_file)).unwrap();
    let config = HubConfig {
        mqtt_port: ready.mqtt_port,
        ..Config::built_in().hub
    };
    let options = SessionOptions {
        start_delay: Duration::ZERO,
        ..SessionOptions::new(credentials, tls, &config)
    };
    let (session, mut events) = Session::spawn(options);
    let listen = async { while events.recv().await.is_some() {} };
    let _ = tokio::time::timeout(time, listen).await;
    session.shutdown().await;
}
