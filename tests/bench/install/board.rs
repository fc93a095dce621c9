//! The real daemon on two loop devices, at the emulator: one update from the method call to the request for the reboot.
//!
//! The device runs the older release, which the daemon itself has installed and confirmed; every run starts from that
//! same moment, so an installation is what it is in the field.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use fwupdated::update::slot::Slot as Name;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    measure::{Cost, Slot, run},
    server::Server,
    support::rig::{COMPATIBLE, Device, Rig, fwupdatectl},
};

/// Longer than any installation here.
const PATIENCE: Duration = Duration::from_secs(1200);
/// How often the daemon is looked at.
const GLANCE: Duration = Duration::from_millis(10);

/// What an installation cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Installed {
    /// From the method call to the request for the reboot: read back, armed.
    pub(crate) whole: Cost,
    /// From the start of the download to the moment when everything is on the medium, which peers end with.
    pub(crate) unread: Cost,
}

/// The device.
pub(crate) struct Board {
    device: Device,
    slots: [Slot; 2],
    /// Which of them runs.
    running: Name,
    saved: PathBuf,
}

impl Board {
    /// A device whose slots hold nothing that anybody knows; it runs from the first.
    pub(crate) async fn new(rig: &Rig, folder: &Path, slots: [Slot; 2]) -> io::Result<Self> {
        let settings = "[fetch]\ninsecure_hosts = [\"127.0.0.1\"]\n";
        let mut device = Device::new(rig, folder, 1 << 20, "1.0.0", settings);
        device.log_filter = "info".to_owned();
        for (slot, name) in slots.iter().zip(Name::ALL) {
            fs::remove_file(device.slot_file(name))?;
            std::os::unix::fs::symlink(&slot.device, device.slot_file(name))?;
        }
        let mut board = Self {
            device,
            slots,
            running: Name::A,
            saved: folder.join("saved"),
        };
        board.device.boot();
        board.device.until_connected(rig).await;
        board.device.stop();
        board.save()?;
        Ok(board)
    }

    /// The slot that is written.
    pub(crate) fn target(&self) -> &Slot {
        &self.slots[usize::from(self.running == Name::A)]
    }

    /// The slot from which the device runs.
    pub(crate) fn running(&self) -> &Slot {
        &self.slots[usize::from(self.running == Name::B)]
    }

    /// Installs the release at `url` and boots it: from now on every run begins with it.
    pub(crate) async fn live_on(&mut self, rig: &Rig, url: &str) -> io::Result<()> {
        self.device.kill();
        restore(&self.saved, &self.device.dir)?;
        self.device.boot();
        self.device.until_connected(rig).await;
        let id = self.call(rig, url).await?;
        self.wait(&id).await?;
        let section = self.device.until_final(rig, &id).await;
        if section["status"] != "applyComplete" {
            return Err(self.failed(&section));
        }
        self.device.stop();
        self.running = self.device.running();
        self.save()
    }

    /// The device as it is now, with nothing else running, is what runs begin with.
    fn save(&self) -> io::Result<()> {
        fs::create_dir_all(&self.saved)?;
        copy(&self.device.dir, &self.saved)
    }

    /// One installation of the image at `url` from the saved moment on. With `kill`, the daemon is killed once after that
    /// time and started again.
    pub(crate) async fn install(
        &mut self,
        rig: &Rig,
        server: &Server,
        url: &str,
        kill: Option<Duration>,
        cgroup: Option<&Path>,
    ) -> io::Result<Installed> {
        self.device.kill();
        restore(&self.saved, &self.device.dir)?;
        self.device.boot();
        if let (Some(group), Some(daemon)) = (cgroup, &self.device.daemon) {
            fs::write(group.join("cgroup.procs"), daemon.id().to_string())?;
        }
        self.device.until_connected(rig).await;
        // The first report of a connection is not a part of an installation.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let written = self.target().written();
        let before = self.processor();
        server.reset();
        let (called, began) = (Timestamp::now(), Instant::now());
        let id = self.call(rig, url).await?;
        let mut lost = 0.0;
        if let Some(after) = kill {
            tokio::time::sleep(after.saturating_sub(began.elapsed())).await;
            lost = self.processor() - before;
            self.device.kill();
            self.device.start();
        }
        let base = if kill.is_some() { 0.0 } else { before };
        let glances = self.wait(&id).await?;
        let wall = began.elapsed().as_secs_f64();
        let processor = self.processor() - base + lost;
        let memory = self.memory();
        let (served, written) = (server.served(), self.target().written() - written);
        self.device.stop();
        let times = self.times()?;
        let whole = Cost {
            wall,
            processor,
            memory,
            served,
            written,
        };
        let seconds =
            |time: Timestamp| (time.as_nanosecond() - called.as_nanosecond()) as f64 / 1e9;
        let (from, to) = (seconds(times.0), seconds(times.1));
        let at = |second: f64| {
            glances
                .iter()
                .take_while(|(time, _)| (*time - began).as_secs_f64() <= second)
                .last()
                .map_or(before, |(_, processor)| *processor)
        };
        let unread = Cost {
            wall: to - from,
            processor: at(to) - at(from),
            ..whole
        };
        Ok(Installed { whole, unread })
    }

    async fn call(&self, rig: &Rig, url: &str) -> io::Result<String> {
        let (status, body) = rig
            .invoke(json!({"fwPackageUri": url, "force": true}))
            .await;
        match (status, body["updateId"].as_str()) {
            (200, Some(id)) => Ok(id.to_owned()),
            _ => Err(io::Error::other(format!(
                "the daemon answered {status}: {body}"
            ))),
        }
    }

    /// Waits for the request to reboot; what processor time the daemon had used, by time.
    async fn wait(&mut self, id: &str) -> io::Result<Vec<(Instant, f64)>> {
        let began = Instant::now();
        let mut glances = Vec::new();
        loop {
            if self.device.reboot_is_asked() {
                return Ok(glances);
            }
            let state = fs::read_to_string(self.device.dir.join("state/state.json"));
            let state: Value = serde_json::from_str(&state.unwrap_or_default()).unwrap_or_default();
            let ended = state["machine"]["state"] == "idle" && state["last"]["id"] == id;
            if ended || began.elapsed() > PATIENCE {
                return Err(self.failed(&state["last"]));
            }
            glances.push((Instant::now(), self.processor()));
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// When the download began and when everything was on the medium.
    fn times(&self) -> io::Result<(Timestamp, Timestamp)> {
        let state = fs::read_to_string(self.device.dir.join("state/state.json"))?;
        let state: Value = serde_json::from_str(&state)?;
        let of = |names: &[&str]| {
            let found = names.iter().find_map(|name| find(&state["machine"], name));
            found.and_then(|time| time.parse().ok())
        };
        let times = (
            of(&["downloading"]),
            of(&["downloadComplete", "download_complete"]),
        );
        match times {
            (Some(from), Some(to)) => Ok((from, to)),
            _ => Err(io::Error::other("the daemon's state names no times")),
        }
    }

    /// Processor seconds of the daemon so far: of all its threads, to the microsecond or so.
    fn processor(&self) -> f64 {
        let Some(daemon) = &self.device.daemon else {
            return 0.0;
        };
        let stat = fs::read_to_string(format!("/proc/{}/stat", daemon.id())).unwrap_or_default();
        let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
        let ticks = after.split_whitespace().skip(11).take(2);
        ticks
            .filter_map(|word| word.parse::<f64>().ok())
            .sum::<f64>()
            / 100.0
    }

    /// The largest resident set of the daemon so far, bytes.
    fn memory(&self) -> Option<u64> {
        let daemon = self.device.daemon.as_ref()?;
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.id())).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
        Some(kib << 10)
    }

    fn failed(&self, what: &Value) -> io::Error {
        let log = self.device.log();
        let tail: Vec<_> = log.lines().rev().take(8).collect();
        let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n  ");
        io::Error::other(format!("the installation failed: {what}\n  {tail}"))
    }
}

/// A signed image of `raw`; with what else `fwupdatectl image build` is told.
pub(crate) fn build(
    rig: &Rig,
    raw: &Path,
    version: &str,
    to: &Path,
    more: &[&str],
) -> io::Result<()> {
    run(fwupdatectl()
        .args([
            "image",
            "build",
            "--version",
            version,
            "--compatible",
            COMPATIBLE,
        ])
        .arg("--key")
        .arg(&rig.key)
        .arg("--rootfs")
        .arg(raw)
        .arg("--output")
        .arg(to)
        .args(more))
}

/// The text of the first member called `name`, anywhere in `value`.
fn find<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    match value {
        Value::Object(members) => members
            .get(name)
            .and_then(Value::as_str)
            .or_else(|| members.values().find_map(|member| find(member, name))),
        Value::Array(items) => items.iter().find_map(|item| find(item, name)),
        _ => None,
    }
}

/// The device as it was saved.
fn restore(saved: &Path, to: &Path) -> io::Result<()> {
    match fs::remove_dir_all(to.join("state")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => copy(saved, to),
    }
}

/// The state directory, the environment and what was booted.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    for name in ["uboot.env", "booted"] {
        fs::copy(from.join(name), to.join(name))?;
    }
    let (from, to) = (from.join("state"), to.join("state"));
    fs::create_dir_all(&to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
