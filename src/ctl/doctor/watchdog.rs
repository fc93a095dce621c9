//! Whether a system that hangs, in a trial or later, is reset by hardware.

use std::time::Duration;

use super::finding::Finding;
use crate::{
    config::BootloaderKind,
    platform::{service_manager, watchdog},
    update::failure::chain,
};

const TOPIC: &str = "watchdog";

/// What was seen.
pub(super) struct Facts {
    /// A board of files has no reset to wait for.
    stand_in: bool,
    /// What they call themselves.
    devices: Vec<String>,
    /// How long systemd may be silent; or why that is not known.
    patience: Result<Option<Duration>, String>,
}

pub(super) async fn gather(kind: BootloaderKind) -> Facts {
    let patience = service_manager::runtime_watchdog().await;
    Facts {
        stand_in: kind == BootloaderKind::File,
        devices: watchdog::devices().into_iter().map(|it| it.name).collect(),
        patience: patience.map_err(|error| chain(&error)),
    }
}

pub(super) fn judge(facts: &Facts) -> Finding {
    if facts.stand_in {
        return Finding::ok(
            TOPIC,
            "not needed: bootloader.kind = \"file\" is no real board",
        );
    }
    let Some(device) = facts.devices.first() else {
        return Finding::warning(
            TOPIC,
            "the kernel drives no watchdog, so that a slot whose kernel hangs stays there until somebody cuts the power",
            "load its driver (on a Raspberry Pi: dtparam=watchdog=on in config.txt)",
        );
    };
    match &facts.patience {
        Ok(Some(patience)) => Finding::ok(
            TOPIC,
            format!(
                "{device} resets the device after {} s without systemd",
                patience.as_secs()
            ),
        ),
        Ok(None) => Finding::warning(
            TOPIC,
            format!(
                "{device} is there, but systemd does not use it: a slot that hangs stays there"
            ),
            "set RuntimeWatchdogSec=15s in /etc/systemd/system.conf.d/watchdog.conf, in the images too",
        ),
        Err(why) => Finding::unknown(
            TOPIC,
            format!("{device} is there; whether systemd uses it cannot be asked: {why}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::finding::Level;

    fn facts(devices: &[&str], patience: Result<Option<Duration>, String>) -> Facts {
        Facts {
            stand_in: false,
            devices: devices.iter().map(|&name| name.to_owned()).collect(),
            patience,
        }
    }

    #[test]
    fn a_watchdog_counts_only_when_it_is_there_and_used() {
        let patience = Some(Duration::from_secs(15));
        assert_eq!(judge(&facts(&["w"], Ok(patience))).level, Level::Ok);
        assert_eq!(judge(&facts(&["w"], Ok(None))).level, Level::Warning);
        assert_eq!(judge(&facts(&[], Ok(patience))).level, Level::Warning);
        assert_eq!(judge(&facts(&["w"], Err("x".into()))).level, Level::Unknown);
        let stand_in = Facts {
            stand_in: true,
            ..facts(&[], Ok(None))
        };
        assert_eq!(judge(&stand_in).level, Level::Ok);
    }
}
