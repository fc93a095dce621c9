//! Whether a hardware watchdog ended the boot before this one, as far as its driver tells.
//!
//! Not every driver does: the Raspberry Pi's resets by its watchdog at each reboot, and so tells nothing.

use std::{fs, path::Path};

/// All watchdogs that the kernel drives.
const DEVICES: &str = "/sys/class/watchdog";

/// `WDIOF_CARDRESET` of `<linux/watchdog.h>`: the card previously reset the CPU.
const CARD_RESET: u32 = 0x20;

/// The watchdog that did. `None` when none says so.
#[must_use]
pub fn by_watchdog() -> Option<String> {
    among(Path::new(DEVICES))
}

fn among(devices: &Path) -> Option<String> {
    let read = |device: &Path, file: &str| fs::read_to_string(device.join(file));
    let mut devices: Vec<_> = fs::read_dir(devices).ok()?.flatten().collect();
    devices.sort_by_key(fs::DirEntry::file_name);
    devices.iter().map(fs::DirEntry::path).find_map(|device| {
        let status: u32 = read(&device, "bootstatus").ok()?.trim().parse().ok()?;
        let name = device.file_name()?.to_string_lossy().into_owned();
        (status & CARD_RESET != 0).then(|| match read(&device, "identity") {
            Ok(identity) => format!("{name} ({})", identity.trim()),
            Err(_) => name,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_watchdog_that_says_so_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let set = |name: &str, status: &str| {
            let device = dir.path().join(name);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("bootstatus"), status).unwrap();
            fs::write(device.join("identity"), "i6300ESB timer\n").unwrap();
        };
        assert_eq!(among(dir.path()), None);
        assert_eq!(among(&dir.path().join("absent")), None);
        set("watchdog0", "0\n");
        set("watchdog1", "what\n");
        assert_eq!(among(dir.path()), None);
        set("watchdog1", "33\n");
        assert_eq!(
            among(dir.path()).as_deref(),
            Some("watchdog1 (i6300ESB timer)")
        );
    }
}
