//! A whole installation on one machine: hub, image server, and a device with file-backed slots, all driven
//! through the real programs. Only the reboot is a stand-in: [`Device::boot`] reads the environment by the
//! rules of the boot script and starts the daemon "on" the slot that they choose.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use fwupdated::{
    platform::{
        tls,
        tryboot::autoboot::boot_partition,
        uboot_env::{EnvLocation, UbootEnv, boot_decision},
    },
    update::{digest::Sha256, slot::Slot},
};
use iothub_emulator::{Emulator, Options};
use serde_json::{Value, json};

use super::{image_server::ImageServer, own_hub, story};

/// What the hub calls the device.
pub(crate) const DEVICE: &str = "pi-01";
/// What the images are made for.
pub(crate) const COMPATIBLE: &str = "demo-board";
/// Names a real hub for `tests/hub_conformance.rs`; a secret that no program under test needs.
pub(crate) const HUB_VARIABLE: &str = "FWUPDATED_CONFORMANCE_HUB";
/// Long enough for anything on a busy machine; a test that waits this long has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Hub, image server and signing keys.
pub(crate) struct Rig {
    /// Where everything lies.
    pub(crate) dir: PathBuf,
    /// The hub.
    pub(crate) emulator: Emulator,
    /// The image store.
    pub(crate) server: ImageServer,
    /// Secret signing key.
    pub(crate) key: PathBuf,
    /// The operator's connection string, in a file.
    pub(crate) service: PathBuf,
}

/// The programs under test.
pub(crate) fn program(name: &str) -> PathBuf {
    // Tests and examples lie in a folder below the programs.
    let own = std::env::current_exe().expect("this program has a path");
    let folder = own
        .parent()
        .and_then(Path::parent)
        .expect("target/debug/deps or target/debug/examples");
    folder.join(name)
}

/// Runs a program to its end; fails loudly when it fails.
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().expect("the program starts");
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// `fwupdatectl`, with nothing of the caller's environment that it listens to.
pub(crate) fn fwupdatectl() -> Command {
    let mut command = Command::new(program("fwupdatectl"));
    command
        .env_remove("FWUPDATED_HUB_CONNECTION_STRING")
        .env_remove(HUB_VARIABLE)
        .stdin(Stdio::null());
    command
}

/// Makes a signing key in `dir`; the public one lies beside it.
pub(crate) fn make_key(dir: &Path) -> PathBuf {
    let key = dir.join("signing.key");
    run(fwupdatectl()
        .args(["image", "keygen", "--no-password", "--output"])
        .arg(&key));
    key
}

/// `size` bytes that no compressor shrinks much and that differ between seeds, with a hole in the middle.
pub(crate) fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        // xorshift64*
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(size);
    let hole = size / 3..size / 3 + size / 8;
    bytes[hole].fill(0);
    bytes
}

/// A built image and what it must become on the device.
pub(crate) struct Image {
    /// The signed file.
    pub(crate) file: PathBuf,
    /// Its version.
    pub(crate) version: String,
    /// The raw root file system.
    pub(crate) raw: Vec<u8>,
}

/// What a device is installed with: who it is, and whom it trusts.
pub(crate) struct Site {
    /// The device's own connection string.
    pub(crate) connection_string: String,
    /// Whom to trust for the hub instead of the system's CAs.
    pub(crate) hub_ca: Option<PathBuf>,
    /// Where the hub takes MQTT over TLS.
    pub(crate) mqtt_port: u16,
    /// More lines for the table `[hub]`.
    pub(crate) hub: String,
    /// Whom to trust for downloads.
    pub(crate) image_ca: PathBuf,
    /// The secret signing key; its public half is trusted.
    pub(crate) key: PathBuf,
}

/// Builds an image of `raw` in `dir` and signs it with `key`, unless `more` names another one.
pub(crate) fn build_image(
    dir: &Path,
    key: &Path,
    version: &str,
    raw: Vec<u8>,
    more: &[&str],
) -> Image {
    let rootfs = dir.join(format!("rootfs-{version}.img"));
    fs::write(&rootfs, &raw).unwrap();
    let file = dir.join(format!("rootfs-{version}.img.zst"));
    let mut command = fwupdatectl();
    command.args([
        "image",
        "build",
        "--version",
        version,
        "--compatible",
        COMPATIBLE,
        "--level",
        "1",
    ]);
    command
        .arg("--rootfs")
        .arg(&rootfs)
        .arg("--output")
        .arg(&file)
        .args(more);
    if !more.contains(&"--key") {
        command.arg("--key").arg(key);
    }
    run(&mut command);
    Image {
        file,
        version: version.to_owned(),
        raw,
    }
}

impl Rig {
    /// Starts hub and image server in `dir` and makes a signing key.
    pub(crate) async fn start(dir: &Path) -> Self {
        Self::start_with(dir, Options::default()).await
    }

    /// The same, with a hub that knows other devices too.
    pub(crate) async fn start_with(dir: &Path, options: Options) -> Self {
        let emulator = Emulator::start(Self::prepare(dir, options)).await;
        Self::around(dir, emulator.expect("the emulator starts"))
    }

    /// As [`Rig::start`], with a hub that the SDKs find: see [`own_hub`].
    pub(crate) async fn start_for_sdks(dir: &Path) -> Self {
        let options = Options {
            https_port: 443,
            ..Options::default()
        };
        Self::around(dir, own_hub::start(Self::prepare(dir, options)).await)
    }

    fn prepare(dir: &Path, options: Options) -> Options {
        tls::install_provider();
        fs::create_dir_all(dir).unwrap();
        Options {
            state: Some(dir.join("hub")),
            wire_log: Some(dir.join("wire.log")),
            ..options.device(DEVICE)
        }
    }

    fn around(dir: &Path, emulator: Emulator) -> Self {
        let server = ImageServer::start();
        let key = make_key(dir);
        let service = dir.join("service-connection-string");
        fs::write(&service, &emulator.ready().service_connection_string).unwrap();
        Self {
            dir: dir.to_owned(),
            emulator,
            server,
            key,
            service,
        }
    }

    /// Builds and signs an image of `raw`.
    pub(crate) fn build(&self, version: &str, raw: Vec<u8>, more: &[&str]) -> Image {
        build_image(&self.dir, &self.key, version, raw, more)
    }

    /// What a device of this rig is installed with.
    pub(crate) fn site(&self) -> Site {
        let ready = self.emulator.ready();
        Site {
            connection_string: ready.devices[DEVICE].clone(),
            hub_ca: Some(ready.ca_file.clone()),
            mqtt_port: ready.mqtt_port,
            hub: "reconnect_max = \"2s\"".to_owned(),
            image_ca: self.server.ca_file(),
            key: self.key.clone(),
        }
    }

    /// Serves an image; returns its address.
    pub(crate) fn serve(&self, image: &Image) -> String {
        self.serve_file(&image.file)
    }

    /// Serves a file under its name; returns its address.
    pub(crate) fn serve_file(&self, file: &Path) -> String {
        let path = format!("/{}", file.file_name().unwrap().to_str().unwrap());
        self.server.put(&path, file);
        self.server.url(&path)
    }

    /// `fwupdatectl hub ...`, with the operator's credentials.
    pub(crate) fn hub(&self, arguments: &[&str]) -> Command {
        let mut command = fwupdatectl();
        command.arg("hub").args(arguments);
        command.arg("--connection-string-file").arg(&self.service);
        command.arg("--ca-file").arg(&self.emulator.ready().ca_file);
        command
    }

    /// Calls the method `firmwareUpdate` and returns the device's status and body.
    pub(crate) async fn invoke(&self, payload: Value) -> (i64, Value) {
        self.method("firmwareUpdate", payload).await
    }

    /// Calls any method.
    pub(crate) async fn method(&self, name: &str, payload: Value) -> (i64, Value) {
        let answer = self.emulator.invoke(DEVICE, name, payload).await;
        let answer = answer.unwrap_or_else(|error| panic!("method {name}: {error:?}"));
        (answer.status.into(), answer.payload)
    }

    /// The reported section that back ends read.
    pub(crate) fn section(&self) -> Value {
        self.emulator.twin(DEVICE)["properties"]["reported"]["iothubDM"]["firmwareUpdate"].clone()
    }

    /// Every status word that the twin has shown, in order, without repeats.
    pub(crate) fn words(&self, update_id: &str) -> Vec<String> {
        let updates = story::shown(&self.emulator.reported_history(DEVICE));
        let of_this = updates.into_iter().filter(|shown| shown.id == update_id);
        let mut words: Vec<_> = of_this.flat_map(|shown| shown.words).collect();
        words.dedup();
        words
    }
}

/// A device: two slots and an environment in files, and the daemon.
pub(crate) struct Device {
    /// Where it lies.
    pub(crate) dir: PathBuf,
    /// The daemon, while it runs.
    pub(crate) daemon: Option<Child>,
    /// Boots so far.
    pub(crate) boots: u32,
    /// What the daemon logs.
    pub(crate) log_filter: String,
    /// A program and its arguments that starts the daemon in its place (`env NAME=VALUE`, `ip netns exec NAME`).
    pub(crate) launcher: Vec<String>,
    /// Booted by a stand-in for the Raspberry Pi's firmware instead of U-Boot: see [`Device::use_tryboot`].
    pub(crate) tryboot: bool,
    /// Told of each boot; the demo prints it.
    pub(crate) on_boot: Option<Box<dyn FnMut(u32, Slot)>>,
}

impl Device {
    /// A device with `slot_size` bytes a slot, slot a running `version`. `settings` are more lines of
    /// configuration, which come after the tables named in it.
    pub(crate) fn new(
        rig: &Rig,
        dir: &Path,
        slot_size: u64,
        version: &str,
        settings: &str,
    ) -> Self {
        Self::install(&rig.site(), dir, slot_size, version, settings)
    }

    /// The same, at any hub.
    pub(crate) fn install(
        site: &Site,
        dir: &Path,
        slot_size: u64,
        version: &str,
        settings: &str,
    ) -> Self {
        fs::create_dir_all(dir.join("keys.d")).unwrap();
        fs::create_dir_all(dir.join("health.d")).unwrap();
        // Whatever the umask: programs in a folder that others may write do not run.
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(dir.join("health.d"), mode).unwrap();
        for slot in Slot::ALL {
            let file = File::create(dir.join(format!("slot-{slot}.img"))).unwrap();
            file.set_len(slot_size).unwrap();
        }
        // What runs: any bytes will do, as long as nobody changes them.
        let running = noise(usize::try_from(slot_size).unwrap() / 2, 1);
        let mut slot_a = File::options()
            .write(true)
            .open(dir.join("slot-a.img"))
            .unwrap();
        slot_a.write_all(&running).unwrap();
        let public = format!("{}.pub", site.key.display());
        fs::copy(public, dir.join("keys.d/operator.pub")).unwrap();
        fs::write(dir.join("os-release"), format!("IMAGE_VERSION={version}\n")).unwrap();
        fs::write(dir.join("connection-string"), &site.connection_string).unwrap();
        let env = dir.join("uboot.env");
        fs::write(
            dir.join("fw_env.config"),
            format!(
                "# two copies, one file\n{0} 0x0 0x4000\n{0} 0x4000 0x4000\n",
                env.display()
            ),
        )
        .unwrap();
        let device = Self {
            dir: dir.to_owned(),
            daemon: None,
            boots: 0,
            log_filter: "info,fwupdated=debug".to_owned(),
            launcher: Vec::new(),
            tryboot: false,
            on_boot: None,
        };
        fs::write(&env, vec![0xff; 0x8000]).unwrap();
        device
            .env()
            .initialise([("fwupdated_slot", "a"), ("bootcmd", "run fwupdated_boot")])
            .unwrap();
        device.write_config(site, settings);
        device
    }

    /// From now on the Raspberry Pi's firmware boots it, by `autoboot.txt`: slot a from partition 2, b from 3. Each slot
    /// gets a boot partition of `boot_size` bytes, the first with `boot` in it.
    pub(crate) fn use_tryboot(&mut self, rig: &Rig, boot: &[u8], settings: &str) {
        self.tryboot = true;
        for slot in Slot::ALL {
            let file = File::create(self.boot_file(slot)).unwrap();
            file.set_len(boot.len() as u64).unwrap();
        }
        fs::write(self.boot_file(Slot::A), boot).unwrap();
        let text = "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n";
        fs::write(self.autoboot(), text).unwrap();
        fs::create_dir_all(self.dir.join("device-tree/chosen/bootloader")).unwrap();
        self.configure(rig, settings);
    }

    /// The file that the Raspberry Pi's firmware would read.
    pub(crate) fn autoboot(&self) -> PathBuf {
        self.dir.join("autoboot.txt")
    }

    /// The file of a slot's boot partition.
    pub(crate) fn boot_file(&self, slot: Slot) -> PathBuf {
        self.dir.join(format!("boot-{slot}.img"))
    }

    /// What the Raspberry Pi's firmware does at power-on: the flag counts once, and is lost with the power.
    fn firmware_boots(&self) -> Slot {
        let argument = self.dir.join("reboot-argument");
        let flag = self.reboot_is_asked()
            && fs::read_to_string(&argument).unwrap_or_default() == "0 tryboot";
        let _ = fs::remove_file(argument);
        let text = fs::read_to_string(self.autoboot()).unwrap_or_default();
        let partition = boot_partition(&text, flag).expect("autoboot.txt is whole");
        let cells = self.dir.join("device-tree/chosen/bootloader");
        for (name, value) in [
            ("partition", u32::from(partition)),
            ("tryboot", u32::from(flag)),
        ] {
            fs::write(cells.join(name), value.to_be_bytes()).unwrap();
        }
        match partition {
            2 => Slot::A,
            3 => Slot::B,
            other => panic!("partition {other} is no slot"),
        }
    }

    /// Writes the configuration anew.
    pub(crate) fn configure(&self, rig: &Rig, settings: &str) {
        self.write_config(&rig.site(), settings);
    }

    /// The same, at any hub.
    pub(crate) fn write_config(&self, site: &Site, settings: &str) {
        let dir = self.dir.display();
        let (boot, bootloader) = if self.tryboot {
            let boot =
                Slot::ALL.map(|slot| format!("boot = \"{}\"", self.boot_file(slot).display()));
            let bootloader = format!(
                r#"kind = "tryboot"
autoboot = "{dir}/autoboot.txt"
device_tree = "{dir}/device-tree"
booted_file = "{dir}/booted"
reboot_command = ["sh", "-c", "printf %s \"$1\" > {dir}/reboot-argument; touch {dir}/reboot-requested", "sh"]"#
            );
            (boot, bootloader)
        } else {
            let bootloader = format!(
                r#"kind = "file"
env_config = "{dir}/fw_env.config"
lock_file = "{dir}/fw_env.lock"
booted_file = "{dir}/booted"
reboot_command = ["touch", "{dir}/reboot-requested"]"#
            );
            (<[String; 2]>::default(), bootloader)
        };
        let [boot_a, boot_b] = boot;
        let text = format!(
            r#"[hub]
connection_string_file = "{dir}/connection-string"
ca_file = "{ca}"
mqtt_port = {port}
{hub}

[slots.a]
rootfs = "{dir}/slot-a.img"
{boot_a}

[slots.b]
rootfs = "{dir}/slot-b.img"
{boot_b}

[bootloader]
{bootloader}

[trust]
key_dirs = ["{dir}/keys.d"]
revoked_dirs = ["{dir}/revoked.d"]
compatible = ["{COMPATIBLE}"]

[policy]
hook_dir = "{dir}/policy.d"
hook_interval = "1s"

[state]
directory = "{dir}/state"

[control]
socket = "{dir}/control"
bus = false
os_release = "{dir}/os-release"

{settings}
"#,
            ca = site.hub_ca.as_deref().unwrap_or(Path::new("")).display(),
            port = site.mqtt_port,
            hub = site.hub,
        );
        // The tables below are what tests change; those that say nothing about one get this.
        let report = "[report]\nstage_interval = \"100ms\"\nprogress_interval = \"500ms\"\nanswer_timeout = \"5s\"\nreconnect_jitter = \"100ms\"\n";
        let fetch = format!(
            "[fetch]\nca_file = \"{}\"\nread_timeout = \"2s\"\nretry_max = \"500ms\"\ngive_up_after = \"10s\"\n",
            site.image_ca.display()
        );
        let health = format!(
            "[health]\nhook_dir = \"{dir}/health.d\"\ndeadline = \"8s\"\ninterval = \"500ms\"\nunits = []\n"
        );
        let mut text = text;
        if !settings.contains("[report]") {
            text.push_str(report);
        }
        if !settings.contains("[fetch]") {
            text.push_str(&fetch);
        }
        if !settings.contains("[health]") {
            text.push_str(&health);
        }
        fs::write(self.config(), text).unwrap();
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir.join("fwupdated.toml")
    }

    /// The environment, as the daemon and the loader see it.
    pub(crate) fn env(&self) -> UbootEnv {
        let location = EnvLocation::read(&self.dir.join("fw_env.config")).unwrap();
        UbootEnv::new(location, &self.dir.join("fw_env.lock"))
    }

    /// One variable of the environment.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        self.env().read().unwrap().get(name).map(str::to_owned)
    }

    /// The bytes of the environment.
    pub(crate) fn env_bytes(&self) -> Vec<u8> {
        fs::read(self.dir.join("uboot.env")).unwrap()
    }

    /// The file of a slot.
    pub(crate) fn slot_file(&self, slot: Slot) -> PathBuf {
        self.dir.join(format!("slot-{slot}.img"))
    }

    /// The update that `section` of the twin tells of ended well, and slot b runs.
    #[track_caller]
    pub(crate) fn assert_complete(&self, section: &Value) {
        let status = &section["status"];
        assert_eq!(status, "applyComplete", "{section:#}\n{}", self.log());
        assert_eq!(self.running(), Slot::B);
    }

    /// The slot that runs.
    pub(crate) fn running(&self) -> Slot {
        let booted = fs::read_to_string(self.dir.join("booted")).unwrap();
        booted
            .lines()
            .find_map(|line| line.strip_prefix("slot="))
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    /// Whether `slot` begins with `raw`.
    pub(crate) fn holds(&self, slot: Slot, raw: &[u8]) -> bool {
        let content = fs::read(self.slot_file(slot)).unwrap();
        Sha256::of(&content[..raw.len().min(content.len())]) == Sha256::of(raw)
    }

    /// Power-on: the loader's part by the rules of the boot script, then the daemon.
    pub(crate) fn boot(&mut self) {
        self.kill();
        let slot = if self.tryboot {
            self.firmware_boots()
        } else {
            self.env().update(boot_decision).unwrap()
        };
        let _ = fs::remove_file(self.dir.join("reboot-requested"));
        self.boots += 1;
        let boot_id = format!("{:08}-{}", self.boots, std::process::id());
        fs::write(
            self.dir.join("booted"),
            format!("slot={slot}\nboot_id={boot_id}\n"),
        )
        .unwrap();
        if let Some(tell) = &mut self.on_boot {
            tell(self.boots, slot);
        }
        self.start();
    }

    /// Starts the daemon within the present boot.
    pub(crate) fn start(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .unwrap();
        let mut words = self
            .launcher
            .iter()
            .map(PathBuf::from)
            .chain([program("fwupdated")]);
        let daemon = Command::new(words.next().expect("at least the daemon"))
            .args(words)
            .arg("--config")
            .arg(self.config())
            .envs(unit_environment())
            .env("FWUPDATED_LOG", &self.log_filter)
            .env_remove(HUB_VARIABLE)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the daemon starts");
        self.daemon = Some(daemon);
    }

    /// Where the daemon's lines go.
    pub(crate) fn log_file(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// All the daemon has said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// SIGKILL, if the daemon runs.
    pub(crate) fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    /// SIGTERM; returns how long the daemon took, after seeing it end well.
    pub(crate) fn stop(&mut self) -> Duration {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        let began = Instant::now();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(daemon.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = daemon.wait().unwrap();
        assert!(
            status.success(),
            "the daemon ended with {status}\n{}",
            self.log()
        );
        began.elapsed()
    }

    /// Adds a program to `health.d`: a shell's, without its first line. Returns where it is.
    pub(crate) fn add_health_check(&self, name: &str, script: &str) -> PathBuf {
        let file = self.dir.join("health.d").join(name);
        fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&file, mode).unwrap();
        file
    }

    /// The name of the machine's state that is on disk.
    pub(crate) fn state(&self) -> String {
        let text = fs::read_to_string(self.dir.join("state/state.json")).unwrap_or_default();
        let saved: Value = serde_json::from_str(&text).unwrap_or_default();
        saved["machine"]["state"]
            .as_str()
            .unwrap_or_else(|| panic!("no machine in {text}"))
            .to_owned()
    }

    /// Whether the daemon asked for a reboot that was not carried out yet.
    pub(crate) fn reboot_is_asked(&self) -> bool {
        self.dir.join("reboot-requested").exists()
    }

    /// Waits until the daemon asks for a reboot, which is left to the caller, and stops the daemon.
    pub(crate) async fn stop_before_the_reboot(&mut self) {
        let began = Instant::now();
        while !self.reboot_is_asked() {
            assert!(began.elapsed() < PATIENCE, "no reboot\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.stop();
    }

    /// Carries out a reboot that the daemon asked for. True when there was one.
    pub(crate) fn follow_reboot(&mut self) -> bool {
        if !self.reboot_is_asked() {
            return false;
        }
        if self.daemon.is_some() {
            self.stop();
        }
        self.boot();
        true
    }

    /// Lives on, reboots included, until `done` says something.
    pub(crate) async fn until<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Self) -> Option<T>,
    ) -> T {
        let began = Instant::now();
        loop {
            self.follow_reboot();
            if let Some(result) = done(self) {
                return result;
            }
            if let Some(daemon) = &mut self.daemon
                && let Some(status) = daemon.try_wait().unwrap()
                && !self.reboot_is_asked()
            {
                panic!(
                    "the daemon ended with {status} while waiting for {what}\n{}",
                    self.log()
                );
            }
            assert!(
                began.elapsed() < PATIENCE,
                "no {what} after {PATIENCE:?}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Lives on until the twin shows the end of `update_id`; returns its section.
    pub(crate) async fn until_final(&mut self, rig: &Rig, update_id: &str) -> Value {
        self.until(&format!("end of update {update_id}"), |_| {
            let section = rig.section();
            let word = section["status"].as_str().unwrap_or_default();
            let ended = ["applyComplete", "applyFailed", "downloadfailed"].contains(&word);
            (section["updateId"] == update_id && ended).then_some(section)
        })
        .await
    }

    /// Lives on until the twin shows `word` for `update_id`, or a later one.
    pub(crate) async fn until_word(&mut self, rig: &Rig, update_id: &str, word: &str) {
        self.until(&format!("{word} of update {update_id}"), |_| {
            rig.words(update_id)
                .iter()
                .any(|seen| seen == word)
                .then_some(())
        })
        .await;
    }

    /// Updates to `image`, which must be confirmed; gives the twin's section. The server's log of requests begins
    /// with it.
    pub(crate) async fn update(&mut self, rig: &Rig, image: &Image) -> Value {
        let uri = rig.serve(image);
        rig.server.clear_requests();
        let (status, body) = rig.invoke(json!({ "fwPackageUri": uri })).await;
        assert_eq!(status, 200, "{body}");
        let id = body["updateId"].as_str().unwrap().to_owned();
        let section = self.until_final(rig, &id).await;
        let log = self.log();
        assert_eq!(section["status"], "applyComplete", "{section:#}\n{log}");
        section
    }

    /// Lives on until the hub says that the device is connected.
    pub(crate) async fn until_connected(&mut self, rig: &Rig) {
        self.until("connection", |_| {
            let reported =
                rig.emulator.twin(DEVICE)["properties"]["reported"]["fwupdated"].is_object();
            (rig.emulator.is_connected(DEVICE) && reported).then_some(())
        })
        .await;
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What the unit sets for the daemon.
fn unit_environment() -> Vec<(&'static str, &'static str)> {
    let variables: Vec<_> = include_str!("../../systemd/fwupdated.service")
        .lines()
        .filter_map(|line| line.strip_prefix("Environment="))
        .flat_map(str::split_whitespace)
        .filter_map(|variable| variable.split_once('='))
        .collect();
    assert!(!variables.is_empty(), "the unit sets variables");
    variables
}
