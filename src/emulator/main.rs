//! `iothub-emulator`: a local Azure IoT Hub in one program.

use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use iothub_emulator::{DeviceSpec, Emulator, Fault, Options, Throttle};
use tokio::signal::unix::{SignalKind, signal};

const FIRST_SESSION: &str = "\
A first session:

  1. Start it with one device, on ports that need no root:

       iothub-emulator --https-port 8443 --device pi-01

     It prints one line of JSON with the connection strings and the CA file, and serves until
     Ctrl-C. Port 0 takes a free port.

  2. Point a device at it: connect to localhost:8883 with the device's connection string and
     trust the CA file.

  3. Open http://127.0.0.1:8080 in a browser: devices, twins and running updates, live.

  4. Look at it from scripts and make things go wrong (https://localhost:8443/emulator lists all of
     it):

       curl --cacert CA_FILE https://localhost:8443/emulator/devices/pi-01/twin
       curl --cacert CA_FILE -X POST 'https://localhost:8443/emulator/outage?seconds=10'

     A device that shows a certificate instead of a key: --x509-device pi-02; the line says where
     certificate and key are. For any other name:

       curl --cacert CA_FILE -X POST https://localhost:8443/emulator/certificates/pi-03

     Let devices provision themselves (DPS): the same host and ports; the line has id scope and
     group key.

  5. Use service tools and SDKs with the service connection string. They must trust the CA file
     too (Python: REQUESTS_CA_BUNDLE, Node: NODE_EXTRA_CA_CERTS).

With --state DIR a restart goes on with the same CAs, keys, devices, twins, enrollments, jobs and
configurations.
RUST_LOG=debug shows more on standard error.";

/// A local Azure IoT Hub: MQTT for devices, REST for service tools, faults on request.
#[derive(Parser)]
#[command(version, after_help = FIRST_SESSION)]
struct Arguments {
    /// The hub's host name, in connection strings and in the certificate
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    hub_name: String,
    /// The address to listen on; others than loopback let other machines in
    #[arg(long, value_name = "ADDRESS", default_value_t = Ipv4Addr::LOCALHOST.into())]
    listen: IpAddr,
    /// Port for MQTT over TLS; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8883)]
    mqtt_port: u16,
    /// Port for HTTPS and for MQTT over WebSocket; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 443)]
    https_port: u16,
    /// Port for the page that shows devices, twins and updates live, on loopback only; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    page_port: u16,
    /// Serve no page
    #[arg(long, conflicts_with = "page_port")]
    no_page: bool,
    /// Keep the CAs, the devices, their twins, enrollments, jobs and configurations in this directory
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Register a device, with this primary key (base64) or a new one; may be repeated
    #[arg(long = "device", value_name = "ID[=KEY]")]
    devices: Vec<DeviceSpec>,
    /// Register a device that shows a certificate, and make certificate and key for it; the ready line says
    /// where they are; may be repeated
    #[arg(long = "x509-device", value_name = "ID")]
    x509_devices: Vec<String>,
    /// Let devices show certificates that lead to the CAs in this file (PEM); may be repeated
    #[arg(long = "device-ca", value_name = "FILE")]
    device_cas: Vec<PathBuf>,
    /// Enroll a registration id for provisioning (DPS), with this primary key (base64) or a new one; may be
    /// repeated. The group "keys" takes any id with a key derived from the group key
    #[arg(long = "enroll", value_name = "ID[=KEY]")]
    enrollments: Vec<DeviceSpec>,
    /// The key of the group "keys", from which device keys are derived
    #[arg(long, value_name = "KEY")]
    dps_group_key: Option<String>,
    /// The id scope of provisioning
    #[arg(long, value_name = "SCOPE")]
    id_scope: Option<String>,
    /// Keep the throttles of a hub of this size: F1, S1, S2 or S3; ",no-retry-after" leaves that out of
    /// refused twin requests
    #[arg(long, value_name = "TIER[:UNITS]")]
    throttle: Option<Throttle>,
    /// Compare every device with the configurations after so many seconds, besides those that have changed
    #[arg(long, value_name = "SECONDS", default_value_t = Options::CONFIGURATION_INTERVAL.as_secs(),
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    configuration_interval: u64,
    /// How many jobs may be active, waiting for their time or running; one more is refused
    #[arg(long, value_name = "N", default_value_t = Options::MAX_ACTIVE_JOBS)]
    max_active_jobs: usize,
    /// Start with this fault in force, such as refuse-connects=3,code=5; may be repeated. GET /emulator
    /// lists all
    #[arg(long = "fault", value_name = "FAULT")]
    faults: Vec<Fault>,
    /// Append one line for each MQTT packet and each HTTP request, without secrets
    #[arg(long, value_name = "FILE")]
    wire_log: Option<PathBuf>,
    /// Write the line that is printed at the start to this file too, when everything serves
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
}

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
