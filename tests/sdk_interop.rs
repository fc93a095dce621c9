//! The official Python SDKs of Azure IoT Hub, device and service side, unmodified, against the emulator:
//! the judge of whether the emulator is a hub.
//!
//! The device SDK connects to port 8883 of the hub's host name and to no other. So each test gives the
//! hub a loopback address of its own as its name (127.x.y.z, which is also in its certificate) and takes
//! the standard ports there: no name resolution, no conflict between tests, no change to the SDK. Port
//! 443, for WebSocket, needs root; without it that one check is skipped with a word.
//!
//! The scripts are in `tests/sdk/`. Where there is no Python or no package index the tests say `SKIPPED: ...`;
//! with `SDK_INTEROP=required` they fail instead.

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use iothub_emulator::{Emulator, Options, StartError};
use support::sdk::{python_or_skip, scripts};
use tokio::process::Command;

/// Longest time for one script.
const LIMIT: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
async fn the_python_device_sdk_runs_unmodified() {
    run("test_device_sdk.py", 443).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_service_sdk_runs_unmodified_on_any_port() {
    run("test_service_sdk.py", 0).await;
}

async fn run(script: &str, https_port: u16) {
    let Some(python) = python_or_skip(script) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let ready_file = directory.path().join("ready.json");
    let wire_log = directory.path().join("wire.log");
    let emulator = start(https_port, &ready_file, &wire_log).await;
    let run = Command::new(python)
        .arg("-W")
        .arg("ignore")
        .arg(scripts().join(script))
        .env("READY_FILE", &ready_file)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LIMIT, run).await;
    emulator.stop().await;
    let wire = std::fs::read_to_string(&wire_log).unwrap_or_default();
    let output = output
        .unwrap_or_else(|_| panic!("{script} took longer than {LIMIT:?}; the wire:\n{wire}"))
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    eprintln!("{text}");
    assert!(
        output.status.success(),
        "{script} failed; the wire:\n{wire}"
    );
    assert!(
        !wire.contains("SharedAccessSignature sr"),
        "a token is in the wire log"
    );
    // A script that runs nothing must not pass.
    assert!(text.contains("... ok"), "{script} ran no test");
}

/// An emulator on a loopback address that nobody uses, with the standard MQTT port.
async fn start(https_port: u16, ready_file: &Path, wire_log: &Path) -> Emulator {
    let mut last_error = None;
    for attempt in 0..20_u32 {
        let number = std::process::id()
            .wrapping_mul(31)
            .wrapping_add(attempt * 7919);
        let [_, a, b, _] = number.to_be_bytes();
        let address = Ipv4Addr::new(127, a.max(1), b, (number % 250 + 2) as u8);
        let options = |https_port| Options {
            hub_name: address.to_string(),
            listen: IpAddr::V4(address),
            mqtt_port: 8883,
            https_port,
            ready_file: Some(ready_file.to_owned()),
            wire_log: Some(wire_log.to_owned()),
            ..Options::default().device("sdk-device")
        };
        let started = match Emulator::start(options(https_port)).await {
            Err(StartError::Listen { source, .. })
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                support::skipped(format_args!(
                    "WebSocket: port {https_port} of {address} needs root"
                ));
                Emulator::start(options(0)).await
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
