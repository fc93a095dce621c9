//! `iothub-emulator`: a local Azure IoT Hub in one program.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use iothub_emulator::{Arguments, Emulator, Options};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(source) = cause {
                text.push_str(&format!(": {source}"));
                cause = source.source();
            }
            let _ = writeln!(io::stderr(), "iothub-emulator: {text}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    // Before the start, so that a signal right after the ready line is not missed.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let ready_file = arguments.ready_file.clone();
    let emulator = Emulator::start(Options {
        hub_name: arguments.hub_name,
        listen: arguments.listen,
        mqtt_port: arguments.mqtt_port,
        https_port: arguments.https_port,
        page_port: (!arguments.no_page).then_some(arguments.page_port),
        state: arguments.state,
        devices: arguments.devices,
        x509_devices: arguments.x509_devices,
        device_cas: arguments.device_cas,
        enrollments: arguments.enrollments,
        dps_group_key: arguments.dps_group_key,
        id_scope: arguments.id_scope,
        throttle: arguments.throttle,
        faults: arguments.faults,
        wire_log: arguments.wire_log,
        ready_file: arguments.ready_file,
        max_active_jobs: arguments.max_active_jobs,
        configuration_interval: Duration::from_secs(arguments.configuration_interval),
        ..Options::default()
    })
    .await?;
    let line = serde_json::to_string(emulator.ready())?;
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()?;
    drop(output);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!("stopping");
    emulator.stop().await;
    if let Some(path) = ready_file {
        // Who finds the file may rely on the emulator being there.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}
