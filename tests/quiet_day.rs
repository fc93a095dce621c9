//! What the journal gets of a day on which nobody updates the device: nothing. The whole daemon within this process, with
//! lives of tokens that its configuration does not allow.

mod support;

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use fwupdated::{
    config::Config,
    daemon::{self, logging::DEFAULT_FILTER},
};
use iothub_emulator::Options;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use support::rig::{DEVICE, Device, PATIENCE, Rig, Site};
use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

/// Whose token lives for a moment. Nothing else happens to it.
const RENEWS: &str = DEVICE;
/// Whose connection stands, so that it is tested; it is asked for its status, and has an update to wait for.
const STANDS: &str = "pi-02";
/// A day's, and some more: tokens live for an hour and are renewed in time.
const RENEWALS: u64 = 30;
/// Tests of the connection that are waited for.
const TESTS: usize = 2;

/// Where the lines of all daemons go.
#[derive(Clone, Default)]
struct Journal(Arc<Mutex<Vec<u8>>>);

impl Write for Journal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Journal {
    /// From now on every line is kept that the daemon would write without `FWUPDATED_LOG`.
    fn open() -> Self {
        let journal = Self::default();
        let writer = journal.clone();
        // Whose line it is, its threads tell.
        tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(DEFAULT_FILTER))
            .with_writer(move || writer.clone())
            .with_thread_names(true)
            .with_target(false)
            .with_ansi(false)
            .without_time()
            .init();
        journal
    }

    /// What `device` has written so far: `LEVEL text`.
    fn of(&self, device: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().filter_map(|line| {
            let (level, rest) = line.trim_start().split_once(' ')?;
            let text = rest.trim_start().strip_prefix(device)?;
            Some(format!("{level} {}", text.trim_start()))
        });
        lines.collect()
    }
}

/// A daemon within this process. Ends with [`Daemon::end`].
struct Daemon {
    stop: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Daemon {
    /// On threads that are called `name`.
    fn start(name: &str, config: Config) -> Self {
        let (stop, stopped) = oneshot::channel();
        let name = name.to_owned();
        let live = move |name: String| {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .thread_name(name)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                // Tokens are made to end later than they are renewed, so that a busy machine makes none too old.
                let clock = || Timestamp::now() + SignedDuration::from_mins(10);
                tokio::select! {
                    end = daemon::run(Arc::new(config), clock) => panic!("the daemon ended: {end:?}"),
                    _ = stopped => {}
                }
            });
            runtime.shutdown_timeout(Duration::from_secs(1));
        };
        let builder = std::thread::Builder::new().name(name.clone());
        let thread = builder.spawn(move || live(name)).unwrap();
        Self { stop, thread }
    }

    fn end(self) {
        let _ = self.stop.send(());
        self.thread.join().expect("the daemon did not panic");
    }
}

/// The configuration of a device that is installed and booted at `dir`.
fn installed(rig: &Rig, id: &str, dir: &Path) -> Config {
    let site = Site {
        connection_string: rig.emulator.ready().devices[id].clone(),
        ..rig.site()
    };
    let device = Device::install(&site, dir, 1 << 20, "1.0.0", "");
    let secret = dir.join("connection-string");
    fs::set_permissions(secret, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(dir.join("booted"), "slot=a\nboot_id=1\n").unwrap();
    let mut config = Config::load(Some(&device.config())).unwrap();
    config.metrics.textfile = Some(dir.join("fwupdated.prom"));
    config.metrics.interval = Duration::from_millis(100);
    config
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "no {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `lines` are these and no others, each by its beginning.
#[track_caller]
fn assert_lines(lines: &[String], expected: &[&str]) {
    let fits = lines.len() == expected.len();
    let all = lines.iter().zip(expected);
    let fits = fits
        && all
            .into_iter()
            .all(|(line, begins)| line.starts_with(begins));
    assert!(fits, "{lines:#?}\ninstead of {expected:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_of_a_device_that_nobody_updates_leaves_no_line_in_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start_with(dir.path(), Options::default().device(STANDS)).await;
    let [mut renews, mut stands] =
        [RENEWS, STANDS].map(|id| installed(&rig, id, &dir.path().join(id)));
    renews.hub.token_lifetime = Duration::from_millis(400);
    stands.hub.keep_alive = Duration::from_secs(4);
    stands.policy.rules.random_delay = Duration::from_secs(7 * 24 * 3600);
    let journal = Journal::open();
    let daemons = [Daemon::start(RENEWS, renews), Daemon::start(STANDS, stands)];
    let emulator = &rig.emulator;
    until("connections", || {
        let is_told = |id: &&str| {
            let lines = journal.of(id);
            lines.iter().any(|line| line.contains("connected to"))
        };
        [RENEWS, STANDS].iter().all(is_told)
    })
    .await;
    let start = [
        "INFO fwupdated ",
        "INFO slot a runs",
        "INFO control socket ",
        "INFO connected to localhost as ",
    ];
    assert_lines(&journal.of(STANDS), &start);

    // An update that waits: that is an event, and what is waited for is another.
    let update = json!({"fwPackageUri": "https://localhost/later.img", "updateId": "later"});
    let answer = emulator.invoke(STANDS, "firmwareUpdate", update).await;
    assert_eq!(answer.unwrap().status, 200);
    let waits = |line: &String| line.contains("random delay of the policy");
    until("wait", || journal.of(STANDS).iter().any(waits)).await;
    let with_update = journal.of(STANDS);
    assert_eq!(with_update.len(), start.len() + 4, "{with_update:#?}");

    // The day.
    let tests = || {
        let wire = fs::read_to_string(dir.path().join("wire.log")).unwrap();
        let test = format!(" {STANDS} -> PINGREQ");
        wire.lines().filter(|line| line.contains(&test)).count()
    };
    let mut asked = 0;
    let began = Instant::now();
    while emulator.connections(RENEWS) <= RENEWALS || tests() < TESTS {
        assert!(began.elapsed() < PATIENCE, "the day has no end");
        // So that a test of the connection is due now and then.
        if asked < 10 {
            asked += 1;
            let status = emulator.invoke(STANDS, "firmwareUpdateStatus", Value::Null);
            assert_eq!(status.await.unwrap().status, 200);
            for id in [RENEWS, STANDS] {
                let desired = json!({"settingsOfAnotherProgram": asked});
                emulator.patch_desired(id, &desired).unwrap();
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_lines(&journal.of(RENEWS), &start);
    assert_eq!(journal.of(STANDS), with_update);
    let page = fs::read_to_string(dir.path().join(STANDS).join("fwupdated.prom")).unwrap();
    assert!(page.contains("fwupdated_up 1"), "{page}");

    // A connection that is lost is told, and so is the next one.
    assert!(emulator.drop_connection(STANDS));
    until("connection", || {
        let lines = journal.of(STANDS);
        lines.len() > with_update.len() && lines[lines.len() - 1].contains("connected to")
    })
    .await;
    let lost = journal.of(STANDS).split_off(with_update.len());
    assert_lines(&lost, &["WARN no hub connection: ", start[3]]);
    for daemon in daemons {
        daemon.end();
    }
}
