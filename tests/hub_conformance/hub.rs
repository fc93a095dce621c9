//! The hub under test. Only this file knows which it is: what it gives away is what every hub has.

use std::{
    collections::BTreeSet,
    net::ToSocketAddrs,
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use fwupdated::platform::tls;
use iothub_emulator::{Emulator, Options};
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::{
    notes::Notes,
    service::{Keys, Service},
};
use crate::support::rig::{HUB_VARIABLE, Image, build_image, make_key, noise};

/// Size of the image that every update installs.
const IMAGE: usize = 1 << 20;

/// How fast a hub is, and how often it may be asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Between two looks at a twin.
    pub(crate) poll: Duration,
    /// Between two queries or looks at a job: 20 a minute are free.
    pub(crate) ask: Duration,
    /// For anything that must come: a test that waits this long has failed.
    pub(crate) patience: Duration,
}

/// The hub under test.
pub(crate) struct Hub {
    pub(crate) service: Service,
    pub(crate) mqtt_port: u16,
    /// Whom to trust for it instead of the system's CAs.
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) pace: Pace,
    pub(crate) notes: Notes,
    /// The signing key of this run.
    pub(crate) key: PathBuf,
    /// An image of version 1.1.0 that any device may install.
    pub(crate) image: Image,
    /// Names what this run makes.
    run: String,
    count: AtomicUsize,
    /// The longest that a device's answer to a method took, in milliseconds.
    slowest: AtomicU64,
    /// Paths of what must be deleted.
    made: Mutex<BTreeSet<String>>,
    runtime: tokio::runtime::Handle,
    dir: TempDir,
    /// Only held, so that it goes on.
    _emulator: Option<Emulator>,
}

impl Hub {
    /// The hub that the variable names, else an emulator that is started.
    pub(crate) async fn find() -> Self {
        tls::install_provider();
        let dir = TempDir::with_prefix("hub-conformance").unwrap();
        let named = std::env::var(HUB_VARIABLE).ok();
        let (emulator, connection_string, ca_file, mqtt_port) = match named {
            Some(text) => (None, text, None, 8883),
            None => {
                let emulator = Emulator::start(Options::default()).await;
                let emulator = emulator.expect("the emulator starts");
                let ready = emulator.ready();
                let (text, port) = (ready.service_connection_string.clone(), ready.mqtt_port);
                let ca_file = dir.path().join("hub-ca.pem");
                std::fs::copy(&ready.ca_file, &ca_file).unwrap();
                (Some(emulator), text, Some(ca_file), port)
            }
        };
        let tls = tls::client_config(ca_file.as_deref()).expect("CAs to trust");
        let service = Service::new(&connection_string, (*tls).clone());
        let key = make_key(dir.path());
        let image = build_image(dir.path(), &key, "1.1.0", noise(IMAGE, 7), &[]);
        let seconds = jiff::Timestamp::now().as_second();
        let mut hub = Self {
            service,
            mqtt_port,
            ca_file,
            pace: Pace {
                poll: Duration::from_secs(2),
                ask: Duration::from_secs(6),
                patience: Duration::from_secs(300),
            },
            notes: Notes::default(),
            key,
            image,
            run: format!("{seconds:x}-{:x}", std::process::id()),
            count: AtomicUsize::new(0),
            slowest: AtomicU64::new(0),
            made: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
            dir,
            _emulator: emulator,
        };
        if hub.is_local() {
            hub.pace = Pace {
                poll: Duration::from_millis(150),
                ask: Duration::from_millis(500),
                patience: Duration::from_secs(100),
            };
        }
        hub
    }

    /// Notes how long a device's answer took, the way there and back included.
    pub(crate) fn note_answer(&self, took: Duration) {
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.slowest.fetch_max(millis, Ordering::Relaxed);
    }

    /// Prints what was seen of it.
    pub(crate) fn print_notes(&self) {
        let slowest = self.slowest.load(Ordering::Relaxed);
        if slowest > 0 {
            let point = "slowest answer of the daemon to a method, all the way";
            self.notes.note(point, format_args!("{slowest} ms"));
        }
        let calls = self.service.calls.load(Ordering::Relaxed);
        self.notes
            .note("calls of the service side in this run", calls);
        self.notes.print(self.service.host());
    }

    /// The folder of this run.
    pub(crate) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Whether it runs on this machine: then nobody's limits count.
    pub(crate) fn is_local(&self) -> bool {
        let host = self.service.host();
        let addresses = (host, self.mqtt_port).to_socket_addrs();
        addresses.is_ok_and(|mut found| found.all(|address| address.ip().is_loopback()))
    }

    /// A name for something at the hub that no other run uses.
    pub(crate) fn new_name(&self) -> String {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        format!("fwupdated-conformance-{}-{number}", self.run)
    }

    /// Registers a device; returns its id and keys.
    pub(crate) async fn register(&self) -> (String, Keys) {
        let id = self.new_name();
        self.will_delete(&format!("/devices/{id}"));
        let keys = self.service.register(&id).await;
        (id, keys)
    }

    /// The connection string of a device.
    pub(crate) fn connection_string(&self, id: &str, key: &str) -> String {
        let host = self.service.host();
        format!("HostName={host};DeviceId={id};SharedAccessKey={key}")
    }

    /// Waits until the index knows that a device is the only one that meets a condition: queries, jobs and
    /// configurations find devices by it, and it lags.
    pub(crate) async fn until_indexed(&self, id: &str, condition: &str) {
        let began = Instant::now();
        let query = format!("SELECT deviceId FROM devices WHERE {condition}");
        loop {
            let rows = self.service.query(&query).await.expect("a query");
            if rows == json!([{"deviceId": id}]) {
                return;
            }
            assert!(began.elapsed() < self.pace.patience, "{rows:#}");
            sleep(self.pace.ask).await;
        }
    }

    /// Notes that this must be deleted.
    pub(crate) fn will_delete(&self, path: &str) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.insert(path.to_owned());
    }

    /// Deletes it now, from any thread, whatever the test's state; a failure is left to
    /// [`Hub::leave_no_trace`].
    pub(crate) fn delete_now(self: &std::sync::Arc<Self>, path: &str) {
        let (hub, path) = (std::sync::Arc::clone(self), path.to_owned());
        let (done, wait) = std::sync::mpsc::channel();
        self.runtime.spawn(async move {
            hub.service.delete(&path).await;
            let mut made = hub.made.lock().unwrap_or_else(PoisonError::into_inner);
            made.remove(&path);
            // Nobody waits any longer when it took too long.
            let _ = done.send(());
        });
        let _ = wait.recv_timeout(Duration::from_secs(30));
    }

    /// Deletes what is left of this run, at the hub and on this machine.
    pub(crate) async fn leave_no_trace(&self) {
        // The value may outlive its last use: what is still spawned holds it.
        let _ = std::fs::remove_dir_all(self.dir.path());
        let made = self
            .made
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for path in made {
            self.service.delete(&path).await;
        }
    }
}
