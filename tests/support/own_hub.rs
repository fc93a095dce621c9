//! An emulator on a loopback address of its own, with the standard port for MQTT.
//!
//! The device SDKs connect to port 8883 (443 for WebSocket) of the hub's host name and to no other, and so does
//! the Node.js service SDK to 443. So each hub gets an address of 127.x.y.z as its name, which is also in its
//! certificate: no name resolution, no conflict between tests, no change to the SDKs.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicU32, Ordering},
};

use iothub_emulator::{Emulator, Options, StartError};

/// Starts one with these other options. Port 443, if asked for, needs root; without it HTTPS takes another port.
pub(crate) async fn start(options: Options) -> Emulator {
    let mut last_error = None;
    for _ in 0..20 {
        let address = next_address();
        let mut options = Options {
            hub_name: address.to_string(),
            listen: IpAddr::V4(address),
            mqtt_port: 8883,
            ..options.clone()
        };
        let started = match Emulator::start(options.clone()).await {
            Err(StartError::Listen { source, .. })
                if source.kind() == ErrorKind::PermissionDenied =>
            {
                options.https_port = 0;
                Emulator::start(options).await
            }
            started => started,
        };
        match started {
            Ok(emulator) => return emulator,
            Err(error) => last_error = Some(error),
        }
    }
    panic!("no loopback address has its port 8883 free: {last_error:?}");
}

/// Whether it has port 443, as the service SDK for Node.js needs; when not, says that `what` is skipped.
pub(crate) fn has_port_443_or_skip(emulator: &Emulator, what: &str) -> bool {
    let has = emulator.ready().https_port == 443;
    if !has {
        let name = &emulator.ready().hub_name;
        super::skipped(format_args!("{what}: port 443 of {name} needs root"));
    }
    has
}

/// Another one at each call, and others than those of programs that run at the same time.
fn next_address() -> Ipv4Addr {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = std::process::id()
        .wrapping_mul(31)
        .wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed) * 7919);
    let [_, a, b, _] = number.to_be_bytes();
    Ipv4Addr::new(127, a.max(1), b, (number % 250 + 2) as u8)
}
