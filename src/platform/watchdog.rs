//! The hardware watchdogs that the kernel drives: what they are called, and whether one ended the boot before this one,
//! as far as its driver tells.
//!
//! Not every driver does: the Raspberry Pi's resets by its watchdog at each reboot, and so tells nothing.

use std::{fs, path::Path};

/// All watchdogs that the kernel drives.
const DEVICES: &str = "/sys/class/watchdog";

/// `WDIOF_CARDRESET` of `<linux/watchdog.h>`: the card previously reset the CPU.
const CARD_RESET: u32 = 0x20;

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watchdog {
    /// Its device and what it calls itself: `watchdog0 (Broadcom BCM2835 Watchdog timer)`.
    pub name: String,
    /// It says that it ended the boot before this one.
    pub ended_last_boot: bool,
}

/// All of them, by name; none where the kernel has none.
#[must_use]
pub fn devices() -> Vec<Watchdog> {
    among(Path::new(DEVICES))
}

fn among(devices: &Path) -> Vec<Watchdog> {
    let mut found: Vec<_> = fs::read_dir(devices)
        .into_iter()
        .flatten()
        .flatten()
        .collect();
    found.sort_by_key(fs::DirEntry::file_name);
    let look = |device: &fs::DirEntry| {
        let read = |file: &str| fs::read_to_string(device.path().join(file)).ok();
        let status = read("bootstatus").and_then(|status| status.trim().parse::<u32>().ok());
        let name = device.file_name().to_string_lossy().into_owned();
        Watchdog {
            name: match read("identity") {
                Some(identity) => format!("{name} ({})", identity.trim()),
                None => name,
            },
            ended_last_boot: status.is_some_and(|status| status & CARD_RESET != 0),
        }
    };
    found.iter().map(look).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_is_called_by_its_name_and_only_one_that_says_so_ended_the_last_boot() {
        let dir = tempfile::tempdir().unwrap();
        let set = |name: &str, status: &str| {
            let device = dir.path().join(name);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("bootstatus"), status).unwrap();
            fs::write(device.join("identity"), "i6300ESB timer\n").unwrap();
        };
        let ended = || -> Vec<_> {
            let ended = |it: Watchdog| it.ended_last_boot.then_some(it.name);
            among(dir.path()).into_iter().filter_map(ended).collect()
        };
        assert_eq!(among(dir.path()), []);
        assert_eq!(among(&dir.path().join("absent")), []);
        set("watchdog1", "what\n");
        set("watchdog0", "0\n");
        fs::create_dir(dir.path().join("watchdog2")).unwrap();
        let names: Vec<_> = among(dir.path()).into_iter().map(|it| it.name).collect();
        assert_eq!(
            names,
            [
                "watchdog0 (i6300ESB timer)",
                "watchdog1 (i6300ESB timer)",
                "watchdog2"
            ]
        );
        assert!(ended().is_empty());
        set("watchdog1", "33\n");
        assert_eq!(ended(), ["watchdog1 (i6300ESB timer)"]);
    }
}
