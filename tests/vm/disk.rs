//! The SD card of the virtual machine: a GPT with two raw environment areas, `boot`, two slots, `journal` and `data`, in
//! one file; `data` has room behind it, as on a card that an image was just written to. Everything that a scenario does
//! to it from outside happens here, while the machine is off.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use fwupdated::platform::uboot_env::{EnvLocation, UbootEnv};

use crate::support::{loop_mount, rig::run};

const MIB: u64 = 1 << 20;

/// A power of two, or QEMU refuses the card.
const SIZE: u64 = 512 * MIB;

/// Name, start and size in MiB. The first two start where U-Boot was built to look (`ENV_OFFSET`,
/// `ENV_OFFSET_REDUND` in `build.sh`).
const PARTITIONS: [(&str, u64, u64); 7] = [
    ("env-1", 1, 1),
    ("env-2", 2, 1),
    ("boot", 4, 12),
    ("rootfs-a", 16, 160),
    ("rootfs-b", 176, 160),
    ("journal", 336, 32),
    ("data", 368, 64),
];

/// Bytes of one copy of the environment (`ENV_SIZE`).
const ENV_SIZE: u64 = 0x4000;

/// One card.
pub(crate) struct Disk {
    /// The file.
    pub(crate) path: PathBuf,
}

fn start(name: &str) -> u64 {
    let found = PARTITIONS.iter().find(|(known, ..)| *known == name);
    found.expect("a partition of the table").1 * MIB
}

fn size(name: &str) -> u64 {
    let found = PARTITIONS.iter().find(|(known, ..)| *known == name);
    found.expect("a partition of the table").2 * MIB
}

impl Disk {
    /// A card as it leaves the factory: slot a holds the built root file system and is confirmed, slot b is empty,
    /// `data` holds the files of the folder `data`, and `journal` none.
    pub(crate) fn make(path: &Path, parts: &Path, data: &Path) -> Self {
        let disk = Self {
            path: path.to_owned(),
        };
        let _ = fs::remove_file(path);
        File::create(path).unwrap().set_len(SIZE).unwrap();
        disk.partition();
        let env = path.with_extension("env");
        let text = fs::read_to_string(parts.join("uboot/u-boot-initial-env")).unwrap();
        fs::write(&env, format!("{text}fwupdated_slot=a\n")).unwrap();
        let binary = path.with_extension("env.bin");
        let length = format!("{ENV_SIZE:#x}");
        run(Command::new("mkenvimage")
            .args(["-r", "-s", &length, "-o"])
            .args([&binary, &env]));
        disk.place("env-1", &binary);
        disk.place("env-2", &binary);
        disk.place("boot", &parts.join("boot.img"));
        disk.place("rootfs-a", &parts.join("root.img"));
        disk.format("data", &["-d", data.to_str().unwrap()]);
        disk.format("journal", &[]);
        disk
    }

    /// Makes a file system in a partition; `more` are options of mke2fs.
    fn format(&self, partition: &str, more: &[&str]) {
        let file_system = self.path.with_extension(partition);
        let _ = fs::remove_file(&file_system);
        run(Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-m", "0", "-E", "root_owner=0:0"])
            .args(more)
            .arg(&file_system)
            .arg(format!("{}k", size(partition) >> 10)));
        self.place(partition, &file_system);
    }

    fn partition(&self) {
        let mut table = "label: gpt\nunit: sectors\n".to_owned();
        for (name, start, size) in PARTITIONS {
            let line = format!(
                "start={}, size={}, name={name}\n",
                start * MIB / 512,
                size * MIB / 512
            );
            table.push_str(&line);
        }
        let mut sfdisk = Command::new("sfdisk")
            .args(["--quiet", "--no-reread", "--no-tell-kernel"])
            .arg(&self.path)
            .stdin(Stdio::piped())
            .spawn()
            .expect("sfdisk starts");
        let mut input = sfdisk.stdin.take().expect("a pipe");
        input.write_all(table.as_bytes()).unwrap();
        drop(input);
        assert!(sfdisk.wait().unwrap().success(), "sfdisk failed");
    }

    /// Writes a file to the start of a partition.
    fn place(&self, partition: &str, file: &Path) {
        let bytes = fs::read(file).unwrap();
        assert!(
            bytes.len() as u64 <= size(partition),
            "{} does not fit into {partition}",
            file.display()
        );
        self.write(start(partition), &bytes);
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let file = File::options().write(true).open(&self.path).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    /// The environment, as the daemon would read it. QEMU's writes are seen at once.
    pub(crate) fn env(&self) -> UbootEnv {
        let config = self.path.with_extension("fw_env.config");
        let line = |name| format!("{} {:#x} {ENV_SIZE:#x}\n", self.path.display(), start(name));
        fs::write(&config, line("env-1") + &line("env-2")).unwrap();
        let location = EnvLocation::read(&config).unwrap();
        UbootEnv::new(location, &self.path.with_extension("lock"))
    }

    /// One variable of the environment; `None` also when U-Boot is writing it just now.
    pub(crate) fn variable(&self, name: &str) -> Option<String> {
        self.env().read().ok()?.get(name).map(str::to_owned)
    }

    /// Overwrites a copy of the environment with nonsense.
    pub(crate) fn ruin_env(&self, copy: &str) {
        self.write(start(copy), &[0x5a; ENV_SIZE as usize]);
    }

    /// Does something with a partition mounted, which holds ext4.
    pub(crate) fn with_mounted(&self, partition: &str, work: impl FnOnce(&Path)) {
        let start = start(partition);
        // The device may have let it grow.
        let size = match partition {
            "data" => SIZE - start,
            _ => size(partition),
        };
        loop_mount::with_mounted(&self.path, start, size, work);
    }
}
