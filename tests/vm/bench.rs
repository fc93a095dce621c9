//! What every scenario stands on: a hub, an image server, one machine with its card, and the operator's tool. The
//! machine is driven through the product alone; from outside come power, and damage to the card.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use fwupdated::platform::uboot_env::names;
use serde_json::Value;

use super::{
    disk::Disk,
    images::{self, Change},
    machine::Machine,
};
use crate::support::{
    random::Random,
    rig::{DEVICE, Rig},
    story,
};

/// Longest wait for anything: a trial that hangs three times, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// Bytes a second of the image server: a download lasts long enough to be cut.
const LINE: u64 = 3 << 20;

/// What went wrong, in words.
pub(crate) type Outcome<T = ()> = Result<T, String>;

/// An update that was asked for.
pub(crate) struct Update {
    /// Its id in the twin.
    pub(crate) id: String,
    /// The image's version.
    pub(crate) version: String,
    /// The slot that it goes to, and the one that ran before.
    pub(crate) target: String,
    before: Running,
    watch: Child,
    /// How long the console's log was when it was asked for.
    from: usize,
}

/// Which slot runs which version.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Running {
    /// `a` or `b`.
    pub(crate) slot: String,
    /// The version that the twin names.
    pub(crate) version: String,
}

/// The end of an update, as the twin tells it, and found true.
pub(crate) struct End {
    /// The update's id.
    pub(crate) id: String,
    /// The last status word.
    pub(crate) word: String,
    /// Code and message of the failure.
    pub(crate) reason: Option<(String, String)>,
    /// Power-ons and restarts since the update was asked for.
    pub(crate) boots: usize,
}

/// All of it.
pub(crate) struct Bench {
    pub(crate) rig: Rig,
    pub(crate) disk: Disk,
    /// Chance, from a seed that is told.
    pub(crate) random: Random,
    machine: Option<Machine>,
    parts: PathBuf,
    dir: PathBuf,
    updates: u32,
    /// Connections that the hub had taken from the device when the power came last.
    connections_before: u64,
    /// How often U-Boot had crashed, and someone pressed the button.
    pub(crate) resets: usize,
}

impl Bench {
    /// Hub, server and a new card in `dir`; the machine is on when this returns, and has reported.
    pub(crate) async fn start(parts: &Path, dir: &Path, seed: u64) -> Outcome<Self> {
        let rig = Rig::start(dir).await;
        rig.server.throttle(Some(LINE));
        let disk = new_card(&rig, parts, dir);
        let mut bench = Self {
            rig,
            disk,
            random: Random(seed),
            machine: None,
            parts: parts.to_owned(),
            dir: dir.to_owned(),
            updates: 0,
            connections_before: 0,
            resets: 0,
        };
        bench.power_on();
        bench.until_reported("a", "1.0.0").await?;
        Ok(bench)
    }

    /// The serial console of all boots.
    fn console_file(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// Power on.
    pub(crate) fn power_on(&mut self) {
        self.connections_before = self.rig.emulator.connections(DEVICE);
        let firmware = self.parts.join("uboot/u-boot.rom");
        let machine = Machine::power_on(&self.disk, &firmware, &self.console_file());
        self.machine = Some(machine);
    }

    /// Power off, at once.
    pub(crate) fn cut_power(&mut self) {
        if let Some(machine) = self.machine.take() {
            machine.cut();
        }
    }

    /// The power fails for a moment.
    pub(crate) fn power_cycle(&mut self) {
        self.cut_power();
        self.power_on();
    }

    /// What the console has said since the last power-on.
    pub(crate) fn console(&self) -> String {
        self.machine
            .as_ref()
            .map_or_else(String::new, Machine::console)
    }

    /// What shell commands print inside of the machine; `None` while it does not run them.
    pub(crate) fn inside(&self, commands: &str) -> Option<String> {
        self.machine.as_ref()?.inside(commands)
    }

    /// What the console has ever said.
    fn whole_console(&self) -> String {
        let bytes = fs::read(self.console_file()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until `done` says something; the error shows the end of the console.
    pub(crate) async fn until<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> Option<T>,
    ) -> Outcome<T> {
        let began = Instant::now();
        loop {
            if let Some(found) = done(self) {
                return Ok(found);
            }
            if self.machine.as_mut().is_some_and(Machine::has_crashed) {
                self.resets += 1;
                self.power_cycle();
            }
            let gone = self.machine.as_mut().is_some_and(Machine::is_gone);
            if gone || began.elapsed() > PATIENCE {
                let console = self.console();
                let tail = console.len().saturating_sub(4000);
                let tail = console.get(tail..).unwrap_or(&console);
                let why = if gone {
                    "QEMU has ended"
                } else {
                    "it took too long"
                };
                return Err(format!(
                    "{what}: {why}. The twin says {:#}\nthe console ends with\n{tail}",
                    self.rig.section()
                ));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// What the twin says of what runs.
    pub(crate) fn running(&self) -> Running {
        let reported = &self.rig.emulator.twin(DEVICE)["properties"]["reported"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Running {
            slot: text(&reported["fwupdated"]["bootedSlot"]),
            version: text(&reported["iothubDM"]["firmwareVersion"]),
        }
    }

    /// Waits until the device is connected and says that this runs, and the bootloader says the same.
    pub(crate) async fn until_reported(&mut self, slot: &str, version: &str) -> Outcome {
        let wanted = Running {
            slot: slot.to_owned(),
            version: version.to_owned(),
        };
        self.until(
            &format!("twin and bootloader to say {wanted:?}, without a trial"),
            |bench| {
                // Not what an earlier connection has left in the twin.
                let connected = bench.rig.emulator.connections(DEVICE) > bench.connections_before;
                let confirmed = bench.disk.variable(names::SLOT);
                let trial = bench.disk.variable(names::TRIAL);
                let one_story = bench.running() == wanted
                    && confirmed.as_deref() == Some(wanted.slot.as_str())
                    && trial.is_none();
                (connected && one_story).then_some(())
            },
        )
        .await
    }

    /// Builds the next version with this change and has the operator ask for it.
    pub(crate) async fn begin(&mut self, change: Change) -> Outcome<Update> {
        self.updates += 1;
        let version = format!("1.{}.0", self.updates);
        let root = self.parts.join("root.img");
        let image = images::build(&root, &self.dir, &self.rig.key, &version, change);
        self.ask_for(&image, &version)
    }

    /// Has the operator ask for an image that was built.
    pub(crate) fn ask_for(&mut self, image: &Path, version: &str) -> Outcome<Update> {
        let path = format!("/{}", image.file_name().unwrap().to_str().unwrap());
        self.rig.server.put(&path, image);
        let before = self.running();
        let id = format!("vm-{version}-{}", self.random.next() & 0xffff);
        let url = self.rig.server.url(&path);
        let log = fs::File::create(self.dir.join(format!("{id}.watch"))).unwrap();
        let watch = self
            .rig
            .hub(&["invoke", DEVICE, "--uri", &url, "--id", &id, "--watch"])
            .args(["--connect-timeout", "300", "--response-timeout", "60"])
            .stdout(log.try_clone().unwrap())
            .stderr(Stdio::from(log))
            .spawn()
            .map_err(|error| format!("fwupdatectl: {error}"))?;
        Ok(Update {
            id,
            version: version.to_owned(),
            target: if before.slot == "a" { "b" } else { "a" }.to_owned(),
            before,
            watch,
            from: self.whole_console().len(),
        })
    }

    /// The status word that the twin has for `update`.
    pub(crate) fn word(&self, update: &Update) -> Option<String> {
        let section = self.rig.section();
        let of_this = section["updateId"] == update.id.as_str();
        of_this.then(|| section["status"].as_str().unwrap_or_default().to_owned())
    }

    /// What the operator's tool has printed.
    fn told(&self, update: &Update) -> String {
        fs::read_to_string(self.dir.join(format!("{}.watch", update.id))).unwrap_or_default()
    }

    /// Whether the twin has the last word of `update`.
    pub(crate) fn has_ended(&self, update: &Update) -> bool {
        self.word(update)
            .is_some_and(|word| story::LAST_WORDS.contains(&word.as_str()))
    }

    /// Waits for the end of `update`, and finds out whether it is true: what the twin says, what runs, what the
    /// bootloader holds and what the operator's tool returns must be one story.
    pub(crate) async fn end(&mut self, mut update: Update) -> Outcome<End> {
        self.until(&format!("the end of update {}", update.id), |bench| {
            // A refusal ends the tool without a word in the twin.
            let refused = |watch: &mut Child| {
                let status = watch.try_wait().ok().flatten();
                status
                    .and_then(|status| status.code())
                    .filter(|code| *code > 1)
            };
            (bench.has_ended(&update) || refused(&mut update.watch).is_some()).then_some(())
        })
        .await?;
        let code = self
            .until("the end of fwupdatectl hub invoke --watch", |_| {
                update.watch.try_wait().ok().flatten()
            })
            .await?
            .code();
        let section = self.rig.section();
        let told = self.told(&update);
        let word = self.word(&update).unwrap_or_default();
        let complete = word == "applyComplete";
        if code != Some(i32::from(!complete)) {
            return Err(format!("{word} in the twin, exit code {code:?}: {told}"));
        }
        let wanted = match complete {
            true => Running {
                slot: update.target.clone(),
                version: update.version.clone(),
            },
            false => update.before.clone(),
        };
        self.until_reported(&wanted.slot, &wanted.version).await?;
        let text = |member: &str| {
            section["error"][member]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let reason = (!complete).then(|| (text("code"), text("message")));
        if reason
            .as_ref()
            .is_some_and(|(code, message)| code.is_empty() || message.is_empty())
        {
            return Err(format!("a failure without its reason: {section:#}"));
        }
        let said = self.whole_console();
        let since = said.get(update.from..).unwrap_or_default();
        let boots = since.matches(", root file system ").count();
        Ok(End {
            id: update.id,
            word,
            reason,
            boots,
        })
    }

    /// Has the operator ask for an update that the device must refuse; gives the code of the refusal.
    pub(crate) async fn refused(&mut self, change: Change) -> Outcome<String> {
        let mut update = self.begin(change).await?;
        let status = self
            .until("the answer of the device", |_| {
                update.watch.try_wait().ok().flatten()
            })
            .await?;
        let told = self.told(&update);
        let code = told
            .split_once(r#""code":""#)
            .and_then(|(_, rest)| rest.split_once('"'));
        match code {
            Some((code, _)) if !status.success() && self.word(&update).is_none() => {
                Ok(code.to_owned())
            }
            _ => Err(format!("no refusal but {status}: {told}")),
        }
    }

    /// An update from start to end.
    pub(crate) async fn update(&mut self, change: Change) -> Outcome<End> {
        let update = self.begin(change).await?;
        self.end(update).await
    }
}

/// A card whose `data` says where hub and images are, who the device is, and whom it trusts.
fn new_card(rig: &Rig, parts: &Path, dir: &Path) -> Disk {
    let data = dir.join("data");
    fs::create_dir_all(data.join("keys.d")).unwrap();
    let site = rig.site();
    let secret = data.join("connection-string");
    fs::write(&secret, &site.connection_string).unwrap();
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    fs::copy(
        site.hub_ca.expect("the emulator has one"),
        data.join("hub-ca.pem"),
    )
    .unwrap();
    fs::copy(&site.image_ca, data.join("image-ca.pem")).unwrap();
    fs::copy(
        format!("{}.pub", site.key.display()),
        data.join("keys.d/vm.pub"),
    )
    .unwrap();
    let text = format!(
        r#"[hub]
connection_string_file = "/data/connection-string"
ca_file = "/data/hub-ca.pem"
mqtt_port = {port}
reconnect_max = "5s"

[fetch]
ca_file = "/data/image-ca.pem"
read_timeout = "20s"
retry_max = "5s"

# Shorter than fwupdated-trial.timer's in this image.
[health]
deadline = "150s"
interval = "2s"
"#,
        port = site.mqtt_port
    );
    fs::write(data.join("site.toml"), text).unwrap();
    Disk::make(&dir.join("card.img"), parts, &data)
}
