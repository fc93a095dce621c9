//! A hub with its provisioning service, and a device whose identity lies in files: in this process (the
//! daemon's own identity and session) or as the daemon itself.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use fwupdated::{
    config::{Config, Layer},
    daemon::identity::FileIdentity,
    hub::session::{HubEvent, Session, SessionHandle, SessionOptions},
    platform::tls,
    update::failure::Failure,
};
use iothub_emulator::{DeviceCertificate, Emulator, Options};
use serde_json::json;
use tempfile::TempDir;
use tokio::{sync::mpsc, time::timeout};

use super::support::rig::{PATIENCE, program};

pub(crate) const DEVICE: &str = "pi-01";

pub(crate) struct Scene {
    pub(crate) dir: TempDir,
    pub(crate) emulator: Emulator,
}

impl Scene {
    pub(crate) async fn start() -> Self {
        Self::with(Options::default().device(DEVICE)).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        tls::install_provider();
        let emulator = Emulator::start(options).await.expect("the emulator starts");
        let dir = TempDir::with_prefix("fwupdated-identity").unwrap();
        Self { dir, emulator }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a secret, in one go as a careful tool would.
    pub(crate) fn put(&self, name: &str, content: &str) -> PathBuf {
        let (file, aside) = (self.path(name), self.path(&format!("{name}.new")));
        fs::write(&aside, content).unwrap();
        fs::set_permissions(&aside, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(aside, &file).unwrap();
        file
    }

    pub(crate) fn put_connection_string(&self, text: &str) {
        self.put("connection-string", text);
    }

    pub(crate) fn put_certificate(&self, certificate: &DeviceCertificate) {
        self.put("device.key", &certificate.private_key);
        self.put("device.pem", &certificate.certificate);
    }

    /// The connection string of the device that proves itself by a certificate.
    pub(crate) fn x509_string(&self, device: &str) -> String {
        let hub = &self.emulator.ready().hub_name;
        format!("HostName={hub};DeviceId={device};x509=true\n")
    }

    /// Registers `device` for any certificate of the emulator's own CA, with its name.
    pub(crate) fn register_ca_device(&self, device: &str) {
        let body = json!({"deviceId": device, "authentication": {"type": "certificateAuthority"}});
        self.emulator.put_device(device, &body).unwrap();
    }

    /// Registers `device` for these certificates alone.
    pub(crate) fn register_thumbprints(&self, device: &str, primary: &str, secondary: &str) {
        let body = json!({"deviceId": device, "authentication": {"type": "selfSigned",
            "x509Thumbprint": {"primaryThumbprint": primary, "secondaryThumbprint": secondary}}});
        self.emulator.put_device(device, &body).unwrap();
    }

    /// Configuration: `hub` are more lines of `[hub]`, `rest` more sections.
    pub(crate) fn config(&self, hub: &str, rest: &str) -> String {
        let (dir, ready) = (self.dir.path().display(), self.emulator.ready());
        let ports = match hub.contains("mqtt_port") {
            true => format!("websocket_port = {}", ready.https_port),
            false => format!(
                "mqtt_port = {}\nwebsocket_port = {}",
                ready.mqtt_port, ready.https_port
            ),
        };
        format!(
            r#"[hub]
connection_string_file = "{dir}/connection-string"
ca_file = "{ca}"
{ports}
{hub}

[bootloader]
kind = "file"
env_config = "{dir}/fw_env.config"
lock_file = "{dir}/fw_env.lock"
booted_file = "{dir}/booted"

[state]
directory = "{dir}/state"

[control]
socket = "{dir}/control"
os_release = "{dir}/os-release"

{rest}
"#,
            ca = ready.ca_file.display(),
        )
    }

    /// The lines of `[hub]` that name the certificate.
    pub(crate) fn certificate_lines(&self) -> String {
        let dir = self.dir.path().display();
        format!(
            "certificate_file = \"{dir}/device.pem\"\nprivate_key_file = \"{dir}/device.key\"\n"
        )
    }

    /// The section `[provisioning]` with more lines.
    pub(crate) fn provisioning(&self, more: &str) -> String {
        let ready = self.emulator.ready();
        let service = ready.dps.as_ref().unwrap();
        format!(
            "[provisioning]\nid_scope = \"{}\"\nhost = \"{}\"\nmqtt_port = {}\n{more}\n",
            service.id_scope, service.host, ready.mqtt_port
        )
    }

    /// `[provisioning]` by the key that the group gives to [`DEVICE`].
    pub(crate) fn key_provisioning(&self) -> String {
        let key = self.put("provisioning-key", &self.emulator.derived_key(DEVICE));
        self.provisioning(&format!(
            "registration_id = \"{DEVICE}\"\nsymmetric_key_file = \"{}\"",
            key.display()
        ))
    }

    /// A session over the identity in the files, impatient.
    pub(crate) fn live(&self, config: &str) -> Live {
        self.live_as(config, None, |_| {})
    }

    pub(crate) fn live_as(
        &self,
        config: &str,
        credentials: Option<PathBuf>,
        change: impl FnOnce(&mut SessionOptions),
    ) -> Live {
        fs::create_dir_all(self.path("state")).unwrap();
        let config = Config::load_from(&[Layer::file("f", config)], []).unwrap();
        let config = Arc::new(config);
        let identity = Arc::new(FileIdentity::new(Arc::clone(&config), credentials));
        let mut options = SessionOptions::with_identity(identity, &config);
        options.start_delay = Duration::ZERO;
        options.reconnect_max = Duration::from_millis(200);
        options.identity_check = Duration::from_millis(200);
        change(&mut options);
        let (handle, events) = Session::spawn(options);
        Live {
            handle,
            events,
            last: None,
        }
    }

    /// The daemon itself.
    pub(crate) fn daemon(&self, config: &str) -> Daemon {
        let file = self.path("fwupdated.toml");
        fs::write(&file, config).unwrap();
        let log = self.path("daemon.log");
        let out = fs::File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let child = Command::new(program("fwupdated"))
            .arg("--config")
            .arg(file)
            .env("FWUPDATED_LOG", "trace")
            .env_remove("CREDENTIALS_DIRECTORY")
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .unwrap();
        Daemon { child, log }
    }

    /// Waits until the device is connected.
    pub(crate) async fn until_connected(&self, device: &str) {
        let began = Instant::now();
        while !self.emulator.is_connected(device) {
            assert!(began.elapsed() < PATIENCE, "{device} does not connect");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// A session and its events.
pub(crate) struct Live {
    pub(crate) handle: SessionHandle,
    events: mpsc::Receiver<HubEvent>,
    /// The last failure that was told.
    last: Option<Failure>,
}

impl Live {
    async fn next(&mut self) -> HubEvent {
        let event = timeout(PATIENCE, self.events.recv()).await;
        let event = event.unwrap_or_else(|_| panic!("no event after {:?}", self.last));
        let event = event.expect("the session lives");
        if let HubEvent::Disconnected { failure } = &event {
            self.last = Some(failure.clone());
        }
        event
    }

    /// The next failure.
    pub(crate) async fn failure(&mut self) -> Failure {
        loop {
            if let HubEvent::Disconnected { failure } = self.next().await {
                return failure;
            }
        }
    }

    /// Waits for a failure with `code`, and no connection before it.
    pub(crate) async fn fails_with(&mut self, code: &str) -> Failure {
        let failure = self.failure().await;
        assert_eq!(failure.code, code, "{failure}");
        failure
    }

    /// The next connection; failures before it are returned.
    pub(crate) async fn connected(&mut self) -> Vec<Failure> {
        let (began, mut failures) = (Instant::now(), Vec::new());
        loop {
            match self.next().await {
                HubEvent::Connected { .. } => return failures,
                HubEvent::Disconnected { failure } => failures.push(failure),
                _ => {}
            }
            assert!(began.elapsed() < PATIENCE, "{:?}", failures.last());
        }
    }

    /// The next connection, at the first attempt, by `transport` and `authentication`.
    pub(crate) async fn connects_by(&mut self, transport: &str, authentication: &str) {
        assert_eq!(self.connected().await, []);
        let known = self.handle.known();
        assert_eq!(known.transport, Some(transport));
        assert_eq!(known.authentication, Some(authentication));
    }

    pub(crate) async fn stop(self) {
        self.handle.shutdown().await;
    }
}

/// The daemon, killed when dropped.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until the log holds `text`.
    pub(crate) async fn says(&self, text: &str) {
        let began = Instant::now();
        while !self.log().contains(text) {
            assert!(began.elapsed() < PATIENCE, "no `{text}`\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success(), "{}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asserts that nothing of `secrets` stands in `text`.
pub(crate) fn hides(text: &str, secrets: &[&str]) {
    for secret in secrets {
        assert!(secret.len() > 3, "too short to look for");
        assert!(!text.contains(secret), "a secret is shown");
    }
}

/// Whether `folder` holds `name`.
pub(crate) fn holds(folder: &Path, name: &str) -> bool {
    folder.join(name).exists()
}
