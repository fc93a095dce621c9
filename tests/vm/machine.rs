//! The machine itself: QEMU with U-Boot as firmware, one emulated SD card, one network card, one watchdog. Power
//! goes by SIGKILL, as it does on a shelf.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::disk::Disk;

/// A machine that is on.
pub(crate) struct Machine {
    qemu: Child,
    console: PathBuf,
    /// How long the console's log was at power-on.
    from: usize,
}

impl Machine {
    /// Power on. The console is added to the file `console`.
    pub(crate) fn power_on(disk: &Disk, firmware: &Path, console: &Path) -> Self {
        let from = fs::metadata(console).map_or(0, |found| found.len() as usize);
        let drive = format!("if=none,id=card,format=raw,file={}", disk.path.display());
        let serial = format!("file,id=console,append=on,path={}", console.display());
        // The emulator TCG even where /dev/kvm exists: some machines offer a KVM that cannot run firmware. Dies with
        // this process, whatever ends it.
        let qemu = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(["-machine", "pc", "-accel", "tcg,thread=multi"])
            .args(["-cpu", "max,-la57", "-smp", "1", "-m", "512"])
            .args(["-display", "none", "-monitor", "none", "-bios"])
            .arg(firmware)
            .args(["-drive", &drive])
            .args(["-device", "sdhci-pci", "-device", "sd-card,drive=card"])
            .args(["-nic", "user,model=virtio-net-pci"])
            .args(["-device", "i6300esb", "-watchdog-action", "reset"])
            .args(["-chardev", &serial, "-serial", "chardev:console"])
            .stdin(Stdio::null())
            .spawn()
            .expect("QEMU starts");
        Self {
            qemu,
            console: console.to_owned(),
            from,
        }
    }

    /// What the console has said since power-on.
    pub(crate) fn console(&self) -> String {
        let bytes = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&bytes[self.from.min(bytes.len())..]).into_owned()
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
