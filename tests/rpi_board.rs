//! An image of the Raspberry Pi image maker, started: Debian for arm64 with the arm64 package, made into an A/B image by
//! `packaging/rpi/make-image.sh`, runs in QEMU's Raspberry Pi 3 under Debian's U-Boot for the Raspberry Pi and Debian's
//! kernel; a hub and an image server outside. The first start grows `data`; an update to a sound version is kept, and one
//! without a kernel leads back. `tests/rpi/run.sh` builds the parts, confines the run and starts this (`make rpi-test`).
//!
//! QEMU stands in for the board and this program for its firmware: it loads what `config.txt` names from the partition
//! `boot` and hands on `cmdline.txt`. Not emulated: the firmware itself, the hardware watchdog's time.

#[path = "support/mod.rs"]
mod support;

// Two of its changes are made here.
#[allow(dead_code)]
#[path = "vm/images.rs"]
mod images;

use std::{
    fs::{self, File, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use self::{
    images::Change,
    support::{
        guest_shell, loop_mount,
        rig::{COMPATIBLE, DEVICE, Rig, run},
    },
};
use fwupdated::platform::uboot_env::{EnvLocation, UbootEnv, names};
use serde_json::{Value, json};

/// Longest wait for anything. A boot takes two minutes of emulation, a slot without a kernel four boots.
const PATIENCE: Duration = Duration::from_secs(30 * 60);
/// A power of two, or QEMU refuses the card; several times what `data` has at first.
const CARD: u64 = 4 << 30;

/// Says it as it happens: a run takes long.
fn say(what: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "rpi: {what}").and_then(|()| out.flush());
}

/// The card: the made image, and where its partitions begin.
struct Card {
    dir: PathBuf,
    path: PathBuf,
    /// Name, first byte, bytes.
    parts: Vec<(String, u64, u64)>,
}

impl Card {
    /// Has the image made, for this hub and image server, and puts what is a device's own on `data`.
    fn make(rig: &Rig, parts: &Path, deb: &Path) -> Self {
        let dir = rig.dir.clone();
        let path = dir.join("pi.img");
        let site = rig.site();
        let settings = format!(
            "[hub]\nca_file = \"/data/hub-ca.pem\"\nmqtt_port = {}\nreconnect_max = \"5s\"\n\
             [fetch]\nca_file = \"/data/image-ca.pem\"\nread_timeout = \"60s\"\nretry_max = \"5s\"\n\
             [trust]\ncompatible = [\"{COMPATIBLE}\"]\n[health]\ninterval = \"2s\"\n",
            site.mqtt_port
        );
        fs::write(dir.join("site.toml"), settings).unwrap();
        // The board has no clock of its own. systemd begins with the time of this file, so that certificates are valid.
        let root = dir.join("root.tar");
        fs::copy(parts.join("root.tar"), &root).unwrap();
        fs::create_dir_all(dir.join("usr/lib")).unwrap();
        File::create(dir.join("usr/lib/clock-epoch")).unwrap();
        run(Command::new("tar")
            .args(["--append", "--owner=0", "--group=0", "--file"])
            .args([
                &root,
                Path::new("-C"),
                &dir,
                Path::new("./usr/lib/clock-epoch"),
            ]));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/rpi/make-image.sh");
        run(Command::new(script)
            .args(["--boot", "uboot", "--boot-size", "96", "--rootfs"])
            .arg(root)
            .arg("--u-boot")
            .arg(parts.join("u-boot.bin"))
            .arg("--deb")
            .arg(deb)
            .arg("--key")
            .arg(format!("{}.pub", site.key.display()))
            .arg("--config")
            .arg(dir.join("site.toml"))
            .arg("--output")
            .arg(&path));
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(CARD).unwrap();
        let table = run(Command::new("sfdisk").arg("--json").arg(&path)).stdout;
        let table: Value = serde_json::from_slice(&table).unwrap();
        let parts = table["partitiontable"]["partitions"].as_array().unwrap();
        let bytes = |part: &Value, what: &str| part[what].as_u64().unwrap() * 512;
        let parts = parts.iter().map(|part| {
            let name = part["name"].as_str().unwrap().to_owned();
            (name, bytes(part, "start"), bytes(part, "size"))
        });
        let parts = parts.collect();
        let card = Self { dir, path, parts };
        let (start, size) = card.part("data");
        loop_mount::with_mounted(&card.path, start, size, |data| {
            let secret = data.join("fwupdated/connection-string");
            fs::write(&secret, &site.connection_string).unwrap();
            fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
            let hub_ca = site.hub_ca.as_ref().expect("the emulator has one");
            fs::copy(hub_ca, data.join("hub-ca.pem")).unwrap();
            fs::copy(&site.image_ca, data.join("image-ca.pem")).unwrap();
        });
        card
    }

    fn part(&self, name: &str) -> (u64, u64) {
        let found = self.parts.iter().find(|(known, ..)| known == name);
        let (_, start, size) = found.expect("a partition of the image");
        (*start, *size)
    }

    /// A file of the partition `boot`, as the firmware reads it.
    fn boot_file(&self, name: &str) -> PathBuf {
        let file = self.dir.join(name);
        let image = format!("{}@@{}", self.path.display(), self.part("boot").0);
        run(Command::new("mcopy")
            .args(["-n", "-o", "-i", &image, &format!("::{name}")])
            .arg(&file));
        file
    }

    /// A variable of the environment. QEMU's writes are seen at once; `None` also while U-Boot is writing.
    fn variable(&self, name: &str) -> Option<String> {
        let config = self.dir.join("fw_env.config");
        let lines = ["env-1", "env-2"]
            .map(|part| format!("{} {:#x} 0x4000\n", self.path.display(), self.part(part).0));
        fs::write(&config, lines.concat()).unwrap();
        let location = EnvLocation::read(&config).unwrap();
        let env = UbootEnv::new(location, &self.dir.join("fw_env.lock"));
        env.read().ok()?.get(name).map(str::to_owned)
    }

    /// The made root file system, in a file of its own.
    fn root(&self) -> PathBuf {
        let raw = self.dir.join("root.img");
        let (start, size) = self.part("rootfs-a");
        run(Command::new("dd")
            .args([
                "bs=1M",
                "iflag=skip_bytes,count_bytes",
                "conv=sparse",
                "status=none",
            ])
            .arg(format!("if={}", self.path.display()))
            .arg(format!("of={}", raw.display()))
            .args([format!("skip={start}"), format!("count={size}")]));
        raw
    }
}

/// The board, which is on.
struct Board {
    qemu: Child,
    console: PathBuf,
    shell: u16,
}

impl Board {
    /// Power on, and what the firmware does then.
    fn power_on(card: &Card) -> Self {
        let config = fs::read_to_string(card.boot_file("config.txt")).unwrap();
        let kernel = config.lines().rfind(|line| line.starts_with("kernel="));
        let kernel = card.boot_file(&kernel.expect("config.txt names a kernel")["kernel=".len()..]);
        let tree = card.boot_file("bcm2837-rpi-3-b.dtb");
        // Out of U-Boot's sight, whose start of QEMU's USB Linux does not get over; Linux knows it by this name too.
        run(Command::new("fdtput").args(["-t", "s"]).arg(&tree).args([
            "/soc/usb@7e980000",
            "compatible",
            "samsung,s3c6400-hsotg",
        ]));
        let line = fs::read_to_string(card.boot_file("cmdline.txt")).unwrap();
        let console = card.dir.join("console.log");
        let shell = guest_shell::free_port();
        let network = format!(
            "user,id=net,hostfwd=tcp:127.0.0.1:{shell}-:{}",
            guest_shell::PORT
        );
        // Dies with this process, whatever ends it.
        let qemu = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-aarch64"])
            .args([
                "-M",
                "raspi3b",
                "-accel",
                "tcg,thread=multi",
                "-display",
                "none",
            ])
            .args(["-monitor", "none", "-serial", "null", "-serial"])
            .arg(format!("file:{}", console.display()))
            .arg("-kernel")
            .arg(kernel)
            .arg("-dtb")
            .arg(tree)
            .args(["-append", line.trim(), "-drive"])
            .arg(format!("if=sd,format=raw,file={}", card.path.display()))
            .args(["-netdev", &network, "-device", "usb-net,netdev=net"])
            .stdin(Stdio::null())
            .spawn()
            .expect("QEMU starts");
        Self {
            qemu,
            console,
            shell,
        }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// What these shell commands print inside; `None` while nobody is there to run them.
    fn inside(&self, commands: &str) -> Option<String> {
        guest_shell::ask(self.shell, commands)
    }

    /// Waits until `done` says something.
    async fn until<T>(&mut self, rig: &Rig, what: &str, done: impl Fn(&Self) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = done(self) {
                say(format_args!(
                    "{what}: after {} s",
                    began.elapsed().as_secs()
                ));
                return found;
            }
            let gone = self.qemu.try_wait().is_ok_and(|status| status.is_some());
            assert!(
                !gone && began.elapsed() < PATIENCE,
                "{what}: it took too long. The twin says {:#}\nthe console\n{}",
                rig.section(),
                self.said()
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Waits until twin and environment say that this slot runs this version and is confirmed.
async fn until_runs(board: &mut Board, rig: &Rig, card: &Card, slot: &str, version: &str) {
    let what = format!("slot {slot} with {version} runs and is confirmed");
    board
        .until(rig, &what, |_| {
            let reported = &rig.emulator.twin(DEVICE)["properties"]["reported"];
            let runs = reported["fwupdated"]["bootedSlot"] == slot
                && reported["iothubDM"]["firmwareVersion"] == version;
            let confirmed = card.variable(names::SLOT).as_deref() == Some(slot);
            (runs && confirmed && card.variable(names::TRIAL).is_none()).then_some(())
        })
        .await;
}

/// An update to its end: the section of the twin then, and how often U-Boot chose a slot meanwhile.
async fn update(board: &mut Board, rig: &Rig, image: &Path, id: &str) -> (Value, usize) {
    let before = board.said().len();
    let payload = json!({ "fwPackageUri": rig.serve_file(image), "updateId": id });
    let (status, body) = rig.invoke(payload).await;
    assert_eq!(status, 200, "{body}");
    let section = board
        .until(rig, &format!("the end of {id}"), |_| {
            let section = rig.section();
            let ended = section["updateId"] == id
                && support::story::LAST_WORDS.contains(&section["status"].as_str()?);
            ended.then_some(section)
        })
        .await;
    let chosen = board.said()[before..]
        .matches(", root file system ")
        .count();
    (section, chosen)
}

async fn test(place: &Path, parts: &Path, deb: &Path) {
    let rig = Rig::start(place).await;
    let card = Card::make(&rig, parts, deb);
    say("the image is made");
    // As it was made, before the board writes to it.
    let root = card.root();
    let mut board = Board::power_on(&card);
    until_runs(&mut board, &rig, &card, "a", "1.0.0").await;

    // `data` has grown over the rest of the card, and nothing of ours failed.
    let looked =
        "df --output=size -BM /data | tail -n 1; systemctl list-units --failed --plain --no-legend
        uname -m; cat /proc/cmdline; fwupdatectl slots; fwupdatectl doctor; echo done";
    let said = board
        .until(&rig, "a look inside", |board| {
            board.inside(looked).filter(|said| said.ends_with("done\n"))
        })
        .await;
    say(format_args!("inside:\n{said}"));
    let size = said.trim().split_once('M').unwrap().0;
    let (start, _) = card.part("data");
    let room = (CARD - start) >> 20;
    assert!(
        size.parse::<u64>().unwrap() > room * 9 / 10,
        "{size} of {room} MiB"
    );
    assert!(
        said.contains("aarch64") && said.contains("fwupdated.slot=a"),
        "{said}"
    );
    assert!(!said.contains("fwupdated-grow-data.service"), "{said}");

    let build = |version, change| images::build(&root, place, &rig.key, version, change);
    let sound = build("1.1.0", Change::Sound);
    let (section, chosen) = update(&mut board, &rig, &sound, "sound").await;
    assert_eq!(section["status"], "applyComplete", "{section:#}");
    assert_eq!(chosen, 1, "one boot for the trial");
    until_runs(&mut board, &rig, &card, "b", "1.1.0").await;

    let broken = build("1.2.0", Change::NoKernel);
    let (section, chosen) = update(&mut board, &rig, &broken, "broken").await;
    assert_eq!(section["status"], "applyFailed", "{section:#}");
    assert_eq!(section["error"]["code"], "trial-boot-failed", "{section:#}");
    assert_eq!(chosen, 4, "three tries, and the way back");
    until_runs(&mut board, &rig, &card, "b", "1.1.0").await;
    say("passed: an update was kept, one without a kernel led back");
}

fn main() {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(parts), Some(deb)) = (arguments.next(), arguments.next()) else {
        panic!("usage: rpi_board PARTS FWUPDATED_ARM64.deb; see tests/rpi/run.sh");
    };
    let place = parts.join("run");
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(&place).unwrap();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    runtime.block_on(test(&place, &parts, &deb));
}
