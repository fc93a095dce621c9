//! The official SDKs of Azure IoT Hub for Python and Node.js, device and service side, unmodified, against the
//! emulator: the judge of whether the emulator is a hub.
//!
//! The scripts are in `tests/sdk/`. Where a language or its package index is missing the tests say `SKIPPED: ...`;
//! with `SDK_INTEROP=required` they fail instead. What needs port 443 needs root, and says so without it.

mod support;

use std::{path::Path, time::Duration};

use iothub_emulator::Options;
use support::{own_hub, sdk};
use tokio::{process::Command, time::timeout};

/// Longest time for one script.
const LIMIT: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
async fn the_python_device_sdk_runs_unmodified() {
    run("test_device_sdk.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_service_sdk_runs_unmodified_on_any_port() {
    run_on(0, "test_service_sdk.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_device_sdk_runs_unmodified() {
    run("node/test_device_sdk.js").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_service_sdk_runs_unmodified() {
    run("node/test_service_sdk.js").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdks_show_certificates_and_are_provisioned() {
    run("test_identity_sdk.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_sdks_show_certificates_and_are_provisioned() {
    run("node/test_identity_sdk.js").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_python_sdk_runs_bulk_operations_jobs_and_configurations() {
    run("test_fleet_sdk.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_sdk_runs_bulk_operations_jobs_and_configurations() {
    run("node/test_fleet_sdk.js").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_python_code_runs() {
    run_documented("python", "documented.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_node_code_runs() {
    run_documented("javascript", "documented.js").await;
}

/// Runs a script of `tests/sdk` with a hub that has the standard ports.
async fn run(script: &str) {
    run_on(443, script).await;
}

async fn run_on(https_port: u16, script: &str) {
    let Some(command) = sdk::script(script) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let Some(text) = run_beside_a_hub(command, script, directory.path(), https_port).await else {
        return;
    };
    // A script that runs nothing must not pass.
    let passed = match sdk::is_node(script) {
        true => text
            .lines()
            .any(|line| line.starts_with("# pass ") && line != "# pass 0"),
        false => text
            .lines()
            .any(|line| line == "ok" || line.ends_with("... ok")),
    };
    assert!(passed, "{script} ran no test:\n{text}");
}

/// Runs the code that the emulator's page has in `language`, with the ready file beside it as there.
async fn run_documented(language: &str, name: &str) {
    let page = std::fs::read_to_string("docs/how-to/use-the-emulator.md").unwrap();
    let code = page
        .split_once(&format!("```{language}\n"))
        .and_then(|(_, rest)| rest.split_once("```"));
    let (code, _) = code.unwrap_or_else(|| panic!("the page has no {language}"));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(name);
    std::fs::write(&file, code).unwrap();
    let Some(command) = sdk::run_or_skip(&file) else {
        return;
    };
    if let Some(text) = run_beside_a_hub(command, name, directory.path(), 443).await {
        assert!(text.contains("room 3"), "{text}");
    }
}

/// Runs a script beside an emulator whose ready file is `hub.json` in `directory`; what it said, after it ended
/// well. `None`, said loudly, without the ports that it needs.
async fn run_beside_a_hub(
    mut command: Command,
    script: &str,
    directory: &Path,
    https_port: u16,
) -> Option<String> {
    let ready_file = directory.join("hub.json");
    let wire_log = directory.join("wire.log");
    let emulator = own_hub::start(Options {
        https_port,
        ready_file: Some(ready_file.clone()),
        wire_log: Some(wire_log.clone()),
        ..Options::default().device("pi-01")
    })
    .await;
    if sdk::is_node(script) && !own_hub::has_port_443_or_skip(&emulator, script) {
        return None;
    }
    command
        .current_dir(directory)
        .env("READY_FILE", &ready_file)
        .env("NODE_EXTRA_CA_CERTS", emulator.ca_file());
    let output = timeout(LIMIT, command.output()).await;
    emulator.stop().await;
    let wire = std::fs::read_to_string(&wire_log).unwrap_or_default();
    let output = output
        .unwrap_or_else(|_| panic!("{script} took longer than {LIMIT:?}; the wire:\n{wire}"))
        .unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    eprintln!("{text}");
    for line in text.lines().filter(|line| line.contains("SKIPPED: ")) {
        support::skipped(format_args!("{script}: {line}"));
    }
    assert!(
        output.status.success(),
        "{script} failed; the wire:\n{wire}"
    );
    assert!(
        !wire.contains("SharedAccessSignature sr"),
        "a token is in the wire log"
    );
    Some(text)
}
