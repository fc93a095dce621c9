//! A device in a folder: the boot loader by U-Boot's rules, the real daemon, and an operator who asks for updates.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use fwupdated::{
    daemon::saved::Saved,
    update::{machine::State, slot::Slot},
};

use super::{
    bench::{Bench, DEAD, SICK},
    disk::Disk,
    folder::Files,
    laws::DOCUMENT,
    strace::{self, Reader},
    trace::{Medium, Op, Told},
    uboot::{self, COPY},
    world::Job,
};
use crate::support::rig::{Device, fwupdatectl};

/// Longest time for one boot; nothing here takes a hundredth of it on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(240);
/// What a client of this boot has heard; its health check waits for the first of it.
const HEARD: &str = "heard";
/// More boots than any update needs, tries and rollback included.
const MOST_BOOTS: usize = 10;

/// What a life came to.
pub(crate) struct Life {
    /// Boots.
    pub(crate) boots: usize,
    /// The boot loader ended a trial whose tries were used up.
    pub(crate) used_up: bool,
    /// The daemon's document at the end.
    pub(crate) saved: Saved,
    /// What was done, if it was recorded.
    pub(crate) ops: Vec<Op>,
}

/// One device, made for one life.
pub(crate) struct Board<'a> {
    bench: &'a Bench,
    device: Device,
    reader: Option<Reader>,
    used_up: bool,
}

impl<'a> Board<'a> {
    /// A device in a folder of `place` that holds this.
    pub(crate) fn new(
        bench: &'a Bench,
        place: &Path,
        slots: &[Vec<u8>; 2],
        env: &[u8],
        files: &Files,
    ) -> Self {
        let health = format!(
            "[health]\nhook_dir = \"{}/health.d\"\ndeadline = \"1s\"\ninterval = \"300ms\"\nunits = []\n",
            place.display()
        );
        let device = Device::install(&bench.site, place, 4096, "1.0.0", &health);
        let kind = "kind = \"file\"\n";
        let text = fs::read_to_string(device.config()).unwrap();
        let settings = bench.world.script.settings;
        let text = text.replace(
            kind,
            &format!("{kind}tries = {}\n{settings}\n", bench.tries),
        );
        fs::write(device.config(), text).unwrap();
        // Until the client hears, so that it is told the end as well.
        device.add_health_check(
            "10-app",
            &format!(
                "until [ -s {}/{HEARD} ]; do sleep 0.05; done; test \"$FWUPDATED_VERSION\" != {SICK}",
                place.display()
            ),
        );
        for (slot, content) in Slot::ALL.into_iter().zip(slots) {
            fs::write(device.slot_file(slot), content).unwrap();
        }
        fs::write(place.join("uboot.env"), env).unwrap();
        fs::create_dir_all(place.join("state")).unwrap();
        for (name, content) in files {
            fs::write(place.join("state").join(name), content).unwrap();
        }
        Self {
            bench,
            device,
            reader: None,
            used_up: false,
        }
    }

    /// From now on everything is recorded.
    pub(crate) fn record(&mut self) {
        strace::assert_installed();
        let dir = &self.device.dir;
        let slots = Slot::ALL.map(|slot| (self.device.slot_file(slot), slot));
        self.reader = Some(Reader::new(slots, dir.join("uboot.env"), dir.join("state")));
        self.device.launcher = strace::launcher(&dir.join("strace.log"));
    }

    /// Lives, reboots included, until every update in `asked` has ended; `request` is asked for in the first boot.
    ///
    /// # Errors
    /// The first thing that must not happen.
    pub(crate) fn live(&mut self, request: Option<&Job>, asked: &[String]) -> Result<Life, String> {
        let mut request = request;
        for boots in 1..=MOST_BOOTS {
            let slot = self.power_on()?;
            if self.bench.is(DEAD, |content| self.holds(slot, content)) {
                continue;
            }
            self.set_deadline(slot);
            let ended = self.one_boot(request.take(), asked)?;
            if let Some(saved) = ended {
                let ops = self.reader.take().map_or_else(Vec::new, Reader::into_ops);
                return Ok(Life {
                    boots,
                    used_up: self.used_up,
                    saved,
                    ops,
                });
            }
        }
        Err(format!("no end within {MOST_BOOTS} boots"))
    }

    /// The boot loader's part.
    fn power_on(&mut self) -> Result<Slot, String> {
        let bytes = self.device.env_bytes();
        let (_, before) = uboot::read(&bytes).ok_or("there is no good copy of the environment")?;
        let script = self.bench.world.script;
        let trial = script.decision(&before)?.trial;
        let (stored, slot) = script.boot(&before);
        self.used_up |= trial.is_some_and(|trial| trial.slot != slot);
        let mut record = |op| {
            if let Some(reader) = &mut self.reader {
                reader.push(op);
            }
        };
        record(Op::Boot(slot));
        let mut bytes = bytes;
        for variables in stored {
            let (offset, copy) = uboot::save(&bytes, &variables);
            bytes[usize::try_from(offset).unwrap()..][..COPY].copy_from_slice(&copy);
            fs::write(self.device.dir.join("uboot.env"), &bytes).unwrap();
            record(Op::Write {
                medium: Medium::Env,
                offset,
                bytes: copy.into(),
            });
            record(Op::Sync(Medium::Env));
        }
        self.device.boots += 1;
        let boot = format!("slot={slot}\nboot_id={:08}\n", self.device.boots);
        fs::write(self.device.dir.join("booted"), boot).unwrap();
        let _ = fs::remove_file(self.device.dir.join("reboot-requested"));
        if self
            .bench
            .world
            .contents(slot)
            .any(|content| self.holds(slot, content.bytes))
        {
            Ok(slot)
        } else {
            Err(format!("slot {slot} boots and holds no whole image"))
        }
    }

    fn holds(&self, slot: Slot, content: &[u8]) -> bool {
        self.device.holds(slot, content)
    }

    /// The slot that is not healthy need not be waited for; the others have time even on a busy machine.
    fn set_deadline(&self, slot: Slot) {
        let sick = self.bench.is(SICK, |content| self.holds(slot, content));
        let text = fs::read_to_string(self.device.config()).unwrap();
        let (long, short) = ("deadline = \"110s\"", "deadline = \"1s\"");
        let (from, to) = if sick { (long, short) } else { (short, long) };
        fs::write(self.device.config(), text.replace(from, to)).unwrap();
    }

    /// One boot of the daemon: its document once every update has ended, `None` when it asks for a reboot.
    fn one_boot(
        &mut self,
        request: Option<&Job>,
        asked: &[String],
    ) -> Result<Option<Saved>, String> {
        let socket = self.device.dir.join("control");
        let _ = fs::remove_file(&socket);
        let nobody_to_hear = match self.reader {
            Some(_) => "",
            None => "nobody",
        };
        fs::write(self.device.dir.join(HEARD), nobody_to_hear).unwrap();
        self.device.start();
        // The socket comes once the daemon has decided what this boot means, and saved it.
        self.wait("control socket", |_| socket.exists().then_some(()))?;
        if let Some(job) = request {
            let mut install = self.ctl();
            install.args(["install", &self.bench.uri(job), "--id", &job.id]);
            self.wait("acceptance of the update", |_| accepts(&mut install))??;
        }
        let mut watcher = match self.reader {
            Some(_) => Some(self.hearing_client()?),
            None => None,
        };
        let ended = self.wait("end of the update", |board| {
            if board.device.reboot_is_asked() {
                return Some(None);
            }
            let saved = board.saved()?;
            let known = |id: &String| saved.outbox.iter().any(|report| report.id == *id);
            (saved.machine == State::Idle && asked.iter().all(known)).then_some(Some(saved))
        })?;
        if ended.is_some()
            && let Some(watcher) = &mut watcher
        {
            // It ends once it was told the end.
            self.wait("client that heard the end", |_| {
                watcher.0.try_wait().unwrap().map(|_| ())
            })?;
        }
        self.halt();
        // It may have been about to save more.
        Ok(ended.and_then(|_| self.saved()))
    }

    /// The device's own tool.
    fn ctl(&self) -> Command {
        let mut command = fwupdatectl();
        command.arg("--config").arg(self.device.config());
        command
    }

    /// A client that has heard something of this boot, unless the boot is about to end. One that could not connect in
    /// time, on a busy machine, is followed by another.
    fn hearing_client(&mut self) -> Result<Watcher, String> {
        let file = self.device.dir.join(HEARD);
        let start = |board: &Self| {
            let mut watch = board.ctl();
            watch.args(["status", "--watch", "--json"]);
            let heard = fs::File::create(&file).unwrap();
            let quiet = watch.stdout(heard).stderr(Stdio::null());
            Watcher(quiet.spawn().expect("it was built"))
        };
        let mut client = start(self);
        self.wait("client that hears", |board| {
            let hears = fs::metadata(&file).is_ok_and(|found| found.len() > 0);
            if hears || board.device.reboot_is_asked() {
                return Some(());
            }
            if client.0.try_wait().unwrap().is_some() {
                client = start(board);
            }
            None
        })?;
        Ok(client)
    }

    /// Stops the daemon, and reads what was recorded of it.
    fn halt(&mut self) {
        let pid = self.device.daemon.as_ref().expect("the daemon runs").id();
        self.device.stop();
        if let Some(reader) = &mut self.reader {
            let log = self.device.dir.join("strace.log");
            reader.read(&strace::finished(&log, pid));
        }
    }

    fn saved(&self) -> Option<Saved> {
        let text = fs::read(self.device.dir.join("state").join(DOCUMENT)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn wait<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> Option<T>,
    ) -> Result<T, String> {
        let began = Instant::now();
        loop {
            if let Some(result) = done(self) {
                return Ok(result);
            }
            let daemon = self.device.daemon.as_mut().expect("the daemon runs");
            if let Some(status) = daemon.try_wait().unwrap() {
                return Err(format!(
                    "the daemon ended with {status}\n{}",
                    self.device.log()
                ));
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("no {what}\n{}", self.device.log()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the media hold now.
    pub(crate) fn disk(&self) -> Disk {
        let slots = Slot::ALL.map(|slot| fs::read(self.device.slot_file(slot)).unwrap());
        let files = strace::files(&self.device.dir.join("state"));
        Disk::new(slots, self.device.env_bytes(), files)
    }
}

/// A client, ended with its owner.
struct Watcher(Child);

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether the daemon takes an update; `None` while the machine is too busy for an answer in time.
fn accepts(install: &mut Command) -> Option<Result<(), String>> {
    let output = install.output().expect("it was built");
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Some(Ok(())),
        false if said.contains("[storage-slow]") => None,
        false => Some(Err(said.into_owned())),
    }
}

/// The updates that `told` says were accepted.
pub(crate) fn accepted(told: &[Told]) -> Vec<String> {
    let ids = told.iter().filter_map(|told| match told {
        Told::Accepted(id) => Some(id.clone()),
        Told::Ended(..) => None,
    });
    ids.collect()
}
