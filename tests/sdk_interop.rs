//! The official SDKs of Azure IoT Hub for Python and Node.js, device and service side, unmodified, against the
//! emulator: the judge of whether the emulator is a hub.
//!
//! The scripts are in `tests/sdk/`. Where a language or its package index is missing the tests say `SKIPPED: ...`;
//! with `SDK_INTEROP=required` they fail instead. What needs port 443 needs root, and says so without it.

mod support;

use std::time::Duration;

use iothub_emulator::Options;
use support::{own_hub, sdk};

/// Longest time for one script.
const LIMIT: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
async fn the_python_device_sdk_runs_unmodified() {
    run("test_device_sdk.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_service_sdk_runs_unmodified() {
    run("test_service_sdk.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_device_sdk_runs_unmodified() {
    run("node/test_device_sdk.js").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_service_sdk_runs_unmodified() {
    run("node/test_service_sdk.js").await;
}

async fn run(script: &str) {
    let Some(mut command) = sdk::script(script) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let ready_file = directory.path().join("ready.json");
    let wire_log = directory.path().join("wire.log");
    let emulator = own_hub::start(Options {
        ready_file: Some(ready_file.clone()),
        wire_log: Some(wire_log.clone()),
        ..Options::default().device("sdk-device")
    })
    .await;
    // The service SDK for Node.js knows no other port; the one for Python does without.
    let has_ports = own_hub::has_standard_ports(&emulator, script);
    if !has_ports && sdk::is_node(script) {
        return;
    }
    command
        .env("READY_FILE", &ready_file)
        .env("NODE_EXTRA_CA_CERTS", emulator.ca_file());
    let output = tokio::time::timeout(LIMIT, command.output()).await;
    emulator.stop().await;
    let wire = std::fs::read_to_string(&wire_log).unwrap_or_default();
    let output = output
        .unwrap_or_else(|_| panic!("{script} took longer than {LIMIT:?}; the wire:\n{wire}"))
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
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
    let passed = match sdk::is_node(script) {
        true => text
            .lines()
            .any(|line| line.starts_with("# pass ") && line != "# pass 0"),
        false => text.contains("... ok"),
    };
    assert!(passed, "{script} ran no test");
}
