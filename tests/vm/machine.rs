//! The machine itself: QEMU with U-Boot as firmware, one emulated SD card, one network card, one watchdog. Power
//! goes by SIGKILL, as it does on a shelf.

use std::{
    fs::{self, File},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::disk::Disk;
use crate::support::guest_shell;

/// What U-Boot says last, when it has crashed and waits for the button.
const CRASHED: &str = "### ERROR ### Please RESET the board ###";
/// How the first line of its first part begins, and that of its second.
const FIRST_LINE: &str = "U-Boot SPL";
const SECOND_PART: &str = "\nU-Boot 2";
/// Longest silence between the two: it takes a second on a quiet machine.
const SPL_PATIENCE: Duration = Duration::from_secs(120);

/// A machine that is on.
pub(crate) struct Machine {
    qemu: Child,
    console: PathBuf,
    /// How long the console's log was at power-on.
    from: usize,
    /// How long it was when it was looked at last, and since when.
    length: u64,
    silent_since: Instant,
    /// Where the guest's shell is to be had out here.
    shell: u16,
}

impl Machine {
    /// Power on. The console is added to the file `console`.
    pub(crate) fn power_on(disk: &Disk, firmware: &Path, console: &Path) -> Self {
        let from = fs::metadata(console).map_or(0, |found| found.len() as usize);
        let drive = format!("if=none,id=card,format=raw,file={}", disk.path.display());
        let serial = format!("file,id=console,append=on,path={}", console.display());
        let shell = guest_shell::free_port();
        let network = format!(
            "user,model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{shell}-:{}",
            guest_shell::PORT
        );
        // The emulator TCG even where /dev/kvm exists: some machines offer a KVM that cannot run firmware. Dies with
        // this process, whatever ends it.
        let qemu = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-machine", "pc", "-accel", "tcg,thread=multi"])
            .args(["-cpu", "max,-la57", "-smp", "1", "-m", "512"])
            // With a video card U-Boot runs its option ROM, in which it crashes now and then.
            .args(["-vga", "none", "-display", "none"])
            .args(["-monitor", "none", "-bios"])
            .arg(firmware)
            .args(["-drive", &drive])
            .args(["-device", "sdhci-pci", "-device", "sd-card,drive=card"])
            .args(["-nic", &network])
            .args(["-device", "i6300esb", "-watchdog-action", "reset"])
            .args(["-chardev", &serial, "-serial", "chardev:console"])
            .stdin(Stdio::null())
            .spawn()
            .expect("QEMU starts");
        Self {
            qemu,
            console: console.to_owned(),
            from,
            length: from as u64,
            silent_since: Instant::now(),
            shell,
        }
    }

    /// What these shell commands print in the guest; `None` while nobody is there to run them, or when it goes down
    /// meanwhile.
    pub(crate) fn inside(&self, commands: &str) -> Option<String> {
        guest_shell::ask(self.shell, commands)
    }

    /// What the console has said since power-on.
    pub(crate) fn console(&self) -> String {
        let bytes = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&bytes[self.from.min(bytes.len())..]).into_owned()
    }

    /// Whether U-Boot has crashed, or says nothing more in its first part. It does so now and then when QEMU restarts
    /// the machine, long before our script; a board has a watchdog for that, which QEMU's restart switches off here.
    pub(crate) fn has_crashed(&mut self) -> bool {
        let length = fs::metadata(&self.console).map_or(0, |found| found.len());
        if length != self.length {
            (self.length, self.silent_since) = (length, Instant::now());
        }
        let mut end = Vec::new();
        let read = File::open(&self.console).and_then(|mut console| {
            console.seek(SeekFrom::Start(
                length.saturating_sub(400).max(self.from as u64),
            ))?;
            console.read_to_end(&mut end)
        });
        let end = String::from_utf8_lossy(&end);
        let is_silent = self.silent_since.elapsed() > SPL_PATIENCE;
        let first_part = end.rsplit_once(FIRST_LINE);
        let is_stuck = is_silent && first_part.is_some_and(|(_, rest)| !rest.contains(SECOND_PART));
        read.is_ok() && (end.contains(CRASHED) || is_stuck)
    }

    /// The power fails.
    pub(crate) fn cut(mut self) {
        self.off();
    }

    /// Whether QEMU has ended by itself, which no scenario wants.
    pub(crate) fn is_gone(&mut self) -> bool {
        self.qemu.try_wait().is_ok_and(|status| status.is_some())
    }

    fn off(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.off();
    }
}
