//! The local commands of `fwupdatectl` against a real D-Bus server on a Unix socket.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use fwupdated::{
    daemon::control_names::{Answer, InstallRequest, PATH},
    update::status::{Stage, Status},
};
use serde_json::{Value, json};
use tokio::{net::UnixListener, process::Command, sync::watch};

/// The longest that any step may take.
const LIMIT: Duration = Duration::from_secs(20);

fn status(id: &str, stage: Stage, percent: u64) -> Status {
    let failed = matches!(stage, Stage::DownloadFailed | Stage::ApplyFailed);
    let error = json!({"code": "trial-unhealthy", "message": "the unit app.service failed", "class": "final"});
    serde_json::from_value(json!({
        "daemonVersion": "0.1.0", "firmwareVersion": "1.3.0", "bootedSlot": "a",
        "slots": {"a": {"state": "good", "version": "1.3.0"}, "b": {"state": "writing"}},
        "bootloader": "uboot", "unsignedAllowed": false, "hub": {}, "lastSuccess": null, "problem": null,
        "update": {"id": id, "origin": "local", "uri": "https://store/x.img", "target": "b",
            "version": "1.4.0", "fromVersion": "1.3.0", "stage": stage, "detail": null,
            "progress": {"bytesDone": percent * 1_000_000, "bytesTotal": 100_000_000}, "times": {},
            "error": failed.then_some(error)},
    }))
    .unwrap()
}

/// The daemon's side of the interface, with answers by the test.
struct Manager {
    status: watch::Receiver<Status>,
    requests: Arc<Mutex<Vec<InstallRequest>>>,
    answer: Answer,
}

#[zbus::interface(name = "org.fwupdated1.Manager")]
impl Manager {
    #[zbus(property)]
    fn status(&self) -> String {
        serde_json::to_string(&*self.status.borrow()).unwrap()
    }

    fn install(&self, request: &str) -> String {
        self.requests
            .lock()
            .unwrap()
            .push(serde_json::from_str(request).unwrap());
        serde_json::to_string(&self.answer).unwrap()
    }

    fn cancel(&self) -> String {
        serde_json::to_string(&self.answer).unwrap()
    }
}

struct Daemon {
    status: watch::Sender<Status>,
    requests: Arc<Mutex<Vec<InstallRequest>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Daemon {
    fn start(socket: &Path, status: Status, answer: Answer) -> Self {
        let _ = fs::remove_file(socket);
        let listener = UnixListener::bind(socket).unwrap();
        let (sender, receiver) = watch::channel(status);
        let requests = Arc::new(Mutex::new(Vec::new()));
        let serving = tokio::spawn(serve(listener, receiver, Arc::clone(&requests), answer));
        Self {
            status: sender,
            requests,
            serving,
        }
    }
}

async fn serve(
    listener: UnixListener,
    status: watch::Receiver<Status>,
    requests: Arc<Mutex<Vec<InstallRequest>>>,
    answer: Answer,
) {
    // Aborted with this task, as the connections of a daemon end with it.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let manager = Manager {
            status: status.clone(),
            requests: Arc::clone(&requests),
            answer: answer.clone(),
        };
        let mut status = status.clone();
        connections.spawn(async move {
            let connection = zbus::connection::Builder::unix_stream(stream.into_std().unwrap())
                .server(zbus::Guid::generate())
                .p2p()
                .serve_at(PATH, manager)
                .build()
                .await
                .unwrap();
            let manager = connection
                .object_server()
                .interface::<_, Manager>(PATH)
                .await
                .unwrap();
            while status.changed().await.is_ok() {
                let emitter = manager.signal_emitter();
                if manager.get().await.status_changed(emitter).await.is_err() {
                    return;
                }
            }
        });
    }
}

fn accepted(id: &str) -> Answer {
    Answer {
        status: 200,
        body: json!({"message": "FirmwareUpdate started", "updateId": id}),
    }
}

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let config = format!(
            "state.directory = \"{0}\"\ncontrol.socket = \"{0}/control\"\n",
            place.dir.path().display()
        );
        fs::write(place.dir.path().join("c.toml"), config).unwrap();
        place
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fwupdatectl"));
        command
            .arg("--config")
            .arg(self.dir.path().join("c.toml"))
            .args(arguments)
            .env_clear()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        told(
            tokio::time::timeout(LIMIT, self.command(arguments).output())
                .await
                .unwrap()
                .unwrap(),
        )
    }
}

fn told(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// The lines without their times.
fn untimed(text: &str) -> Vec<&str> {
    text.lines()
        .map(|line| line.split_once("Z  ").map_or(line, |(_, rest)| rest))
        .collect()
}

#[tokio::test]
async fn status_shows_what_the_daemon_says() {
    let place = Place::new();
    let _daemon = Daemon::start(
        &place.socket(),
        status("job-1", Stage::Downloading, 42),
        accepted("x"),
    );
    let (code, out, err) = place.run(&["status"]).await;
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(out.starts_with("Firmware  1.3.0 in slot a\n"), "{out}");
    assert!(
        out.contains("Stage     downloading  [########............] 42 %  42.0 MB of 100.0 MB\n"),
        "{out}"
    );
    let (code, out, _) = place.run(&["status", "--json"]).await;
    assert_eq!(code, 0);
    assert_eq!(
        serde_json::from_str::<Status>(&out).unwrap(),
        status("job-1", Stage::Downloading, 42)
    );
    assert_eq!(out.lines().count(), 1);
}

#[tokio::test]
async fn without_the_daemon_status_reads_the_state_file_and_says_so() {
    let place = Place::new();
    let (code, out, err) = place.run(&["status"]).await;
    assert_eq!((code, out.as_str()), (3, ""));
    assert!(
        err.contains("the daemon does not run") && err.contains("[control-no-daemon]"),
        "{err}"
    );
    let file = place.dir.path().join("state.json");
    let state = json!({"version": 1, "status": status("job-1", Stage::Applying, 0), "machine": {"other": "members"}});
    fs::write(&file, state.to_string()).unwrap();
    let (code, out, err) = place.run(&["status"]).await;
    assert_eq!(code, 3);
    assert!(out.contains("Stage     applying\n"), "{out}");
    assert!(
        err.starts_with(
            "fwupdatectl: the daemon does not run (`systemctl status fwupdated`); this is what"
        ),
        "{err}"
    );
    fs::write(&file, "{").unwrap();
    let (code, _, err) = place.run(&["status"]).await;
    assert!(code == 3 && err.contains("[control-state-format]"), "{err}");
}

#[tokio::test]
async fn install_hands_over_the_method_s_document_and_tells_the_answer() {
    let place = Place::new();
    let daemon = Daemon::start(
        &place.socket(),
        status("old", Stage::ApplyComplete, 0),
        accepted("job-2"),
    );
    let digest = "ab".repeat(32);
    let (code, out, err) = place
        .run(&[
            "install",
            "https://store/x.img?sig=S",
            "--version",
            "2.0",
            "--sha256",
            &digest,
            "--id",
            "job-2",
            "--force",
        ])
        .await;
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (0, "FirmwareUpdate started, update job-2\n", "")
    );
    let request = serde_json::to_value(&daemon.requests.lock().unwrap()[0]).unwrap();
    assert_eq!(
        request,
        json!({"fwPackageUri": "https://store/x.img?sig=S", "fwVersion": "2.0", "fwPackageSha256": digest, "updateId": "job-2", "force": true})
    );
}

#[tokio::test]
async fn a_refusal_is_told_with_its_code() {
    for (status_code, expected) in [(409, 4), (403, 4), (400, 2), (503, 4)] {
        let place = Place::new();
        let body = json!({"code": "update-busy", "message": "job-1 is under way"});
        let _daemon = Daemon::start(
            &place.socket(),
            status("job-1", Stage::Downloading, 0),
            Answer {
                status: status_code,
                body,
            },
        );
        for arguments in [&["install", "https://store/x"][..], &["cancel"]] {
            let (code, out, err) = place.run(arguments).await;
            assert_eq!((code, out.as_str()), (expected, ""));
            assert_eq!(
                err,
                format!(
                    "fwupdatectl: the daemon refused ({status_code}): job-1 is under way [update-busy]\n"
                )
            );
        }
    }
}

#[tokio::test]
async fn watching_tells_each_change_and_ends_with_the_update() {
    for (end, code, last) in [
        (Stage::ApplyComplete, 0, "applyComplete"),
        (
            Stage::ApplyFailed,
            1,
            "applyFailed              the unit app.service failed [trial-unhealthy]",
        ),
    ] {
        let place = Place::new();
        let daemon = Daemon::start(
            &place.socket(),
            status("job-1", Stage::Waiting, 0),
            accepted("job-1"),
        );
        let mut child = place.command(&["status", "--watch"]).spawn().unwrap();
        let mut lines = lines_of(&mut child);
        assert_eq!(untimed(&lines.next().await), ["waiting"]);
        daemon
            .status
            .send(status("job-1", Stage::Downloading, 7))
            .unwrap();
        assert_eq!(
            untimed(&lines.next().await),
            ["downloading         7 %  7.0 MB of 100.0 MB"]
        );
        // Time passes in the status, but nothing that is shown changed.
        daemon
            .status
            .send(status("job-1", Stage::Downloading, 7))
            .unwrap();
        daemon
            .status
            .send(status("job-1", Stage::Rebooting, 100))
            .unwrap();
        assert_eq!(untimed(&lines.next().await), ["rebooting"]);
        daemon.status.send(status("job-1", end, 100)).unwrap();
        assert_eq!(untimed(&lines.next().await), [last]);
        let exit = tokio::time::timeout(LIMIT, child.wait())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(exit.code(), Some(code));
    }
}

#[tokio::test]
async fn watching_survives_a_restart_of_the_daemon() {
    let place = Place::new();
    let daemon = Daemon::start(
        &place.socket(),
        status("job-1", Stage::Rebooting, 0),
        accepted("job-1"),
    );
    let mut child = place
        .command(&["status", "--watch", "--json"])
        .spawn()
        .unwrap();
    let mut lines = lines_of(&mut child);
    let first: Value = serde_json::from_str(&lines.next().await).unwrap();
    assert_eq!(first["update"]["stage"], "rebooting");
    daemon.serving.abort();
    let _ = daemon.serving.await;
    let _daemon = Daemon::start(
        &place.socket(),
        status("job-1", Stage::ApplyComplete, 0),
        accepted("job-1"),
    );
    let last: Value = serde_json::from_str(&lines.next().await).unwrap();
    assert_eq!(last["update"]["stage"], "applyComplete");
    let (code, _, err) = told(
        tokio::time::timeout(LIMIT, child.wait_with_output())
            .await
            .unwrap()
            .unwrap(),
    );
    assert_eq!(code, 0);
    assert_eq!(
        err,
        "fwupdatectl: the daemon went away (it restarts, or the device reboots); waiting for it\n"
    );
}

#[tokio::test]
async fn watching_an_install_passes_over_the_update_before_it() {
    let place = Place::new();
    let daemon = Daemon::start(
        &place.socket(),
        status("old", Stage::ApplyFailed, 0),
        accepted("new"),
    );
    let mut child = place
        .command(&["install", "https://store/x", "--watch"])
        .spawn()
        .unwrap();
    let mut lines = lines_of(&mut child);
    assert_eq!(lines.next().await, "FirmwareUpdate started, update new");
    daemon
        .status
        .send(status("new", Stage::ApplyComplete, 0))
        .unwrap();
    assert_eq!(untimed(&lines.next().await), ["applyComplete"]);
    assert_eq!(
        tokio::time::timeout(LIMIT, child.wait())
            .await
            .unwrap()
            .unwrap()
            .code(),
        Some(0)
    );
}

#[tokio::test]
async fn watching_stops_when_its_time_is_up() {
    let place = Place::new();
    let _daemon = Daemon::start(
        &place.socket(),
        status("job-1", Stage::Waiting, 0),
        accepted("x"),
    );
    let (code, _, err) = place
        .run(&["status", "--watch", "--timeout", "300ms"])
        .await;
    assert_eq!(
        (code, err.as_str()),
        (5, "fwupdatectl: stopped waiting; the update goes on\n")
    );
}

struct Lines(tokio::sync::mpsc::UnboundedReceiver<String>);

/// The child's standard output as it comes.
fn lines_of(child: &mut tokio::process::Child) -> Lines {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            let _ = sender.send(line);
        }
    });
    Lines(receiver)
}

impl Lines {
    async fn next(&mut self) -> String {
        tokio::time::timeout(LIMIT, self.0.recv())
            .await
            .expect("a line in time")
            .expect("a line")
    }
}
