//! This board: its slots, its bootloader, its way to reboot, and its names.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::health::boottime;
use crate::{
    config::{BootloaderConfig, BootloaderKind, Config},
    platform::{
        reboot::Rebooter, slots::Slots, tryboot::TrybootBootloader, uboot_env::UbootBootloader,
    },
    update::{
        failure::{Class, Failure},
        ports::{BootState, BootedFrom, Bootloader},
    },
};

/// What an update needs of the board. One for the whole process.
pub struct Board {
    /// The partitions.
    pub slots: Slots,
    /// Which slot runs, found once: it cannot change without a reboot.
    pub booted: BootedFrom,
    /// How to reboot.
    pub rebooter: Rebooter,
    /// Hardware names, from the configuration or the device tree.
    pub compatible: Vec<String>,
    /// CLOCK_BOOTTIME at which this boot began: zero but on a stand-in board.
    pub boot_start: Duration,
    bootloader: Mutex<Box<dyn Bootloader>>,
}

impl Board {
    /// Finds slots and bootloader.
    ///
    /// # Errors
    /// When slots are not configured or cannot be told apart. The daemon then runs without updates.
    pub fn open(config: &Config) -> Result<Arc<Self>, Failure> {
        let slots_config = config.slots.as_ref().ok_or_else(|| {
            Failure::new(
                "slots-not-configured",
                Class::Final,
                "no slots are configured, so no update can be installed; run `fwupdatectl config init`, or set slots.a.rootfs and slots.b.rootfs",
            )
        })?;
        let slots =
            Slots::open(slots_config, &config.bootloader).map_err(|error| Failure::from(&error))?;
        let booted = slots.booted().map_err(|error| Failure::from(&error))?;
        let bootloader = bootloader(&config.bootloader, &slots, &config.state.directory)?;
        let stand_in = config.bootloader.is_stand_in();
        Ok(Arc::new(Self {
            slots,
            booted,
            rebooter: Rebooter::new(config.bootloader.reboot_command.clone()),
            compatible: hardware_names(&config.trust.compatible),
            boot_start: if stand_in { boottime() } else { Duration::ZERO },
            bootloader: Mutex::new(bootloader),
        }))
    }

    /// Reads the bootloader's decision. Blocks.
    ///
    /// # Errors
    /// When the environment cannot be read.
    pub fn boot_state(&self) -> Result<BootState, Failure> {
        self.with_bootloader(|bootloader| bootloader.state())
    }

    /// Asks or tells the bootloader something. Blocks.
    ///
    /// # Errors
    /// Whatever `ask` ends with.
    pub fn with_bootloader<T>(
        &self,
        ask: impl FnOnce(&mut dyn Bootloader) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let mut bootloader = self
            .bootloader
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        ask(bootloader.as_mut())
    }
}

/// What decides the boot slot.
fn bootloader(
    config: &BootloaderConfig,
    slots: &Slots,
    state_directory: &Path,
) -> Result<Box<dyn Bootloader>, Failure> {
    Ok(match config.kind {
        BootloaderKind::Uboot | BootloaderKind::File => {
            Box::new(UbootBootloader::configured(config, state_directory))
        }
        BootloaderKind::Tryboot => {
            let boot = slots.boot().map_err(|error| Failure::from(&error))?;
            let boot = boot.expect("the configuration is checked for it");
            let (file, tree) = (&config.autoboot, &config.device_tree);
            let opened = TrybootBootloader::open(file, tree, boot, config.is_stand_in());
            Box::new(opened.map_err(|error| Failure::from(&error))?)
        }
    })
}

/// The configured names, else those of the device tree (a NUL-separated list, most specific first;
/// Devicetree Specification, section 2.3.1).
fn hardware_names(configured: &[String]) -> Vec<String> {
    if !configured.is_empty() {
        return configured.to_vec();
    }
    let tree = std::fs::read(Path::new("/proc/device-tree/compatible")).unwrap_or_default();
    let names = tree
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .collect()
}

/// `IMAGE_VERSION` or `VERSION_ID` of an `os-release` file (os-release(5)).
#[must_use]
pub fn os_version(os_release: &Path) -> Option<String> {
    let text = std::fs::read_to_string(os_release).ok()?;
    let value = |key: &str| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        let value = line.trim().trim_matches(['"', '\'']);
        (!value.is_empty()).then(|| value.to_owned())
    };
    value("IMAGE_VERSION").or_else(|| value("VERSION_ID"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_version_wins_over_the_distribution_s() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("os-release");
        std::fs::write(&file, "ID=debian\nVERSION_ID=\"12\"\n").unwrap();
        assert_eq!(os_version(&file).as_deref(), Some("12"));
        std::fs::write(&file, "VERSION_ID=12\nIMAGE_VERSION='1.3.0'\n").unwrap();
        assert_eq!(os_version(&file).as_deref(), Some("1.3.0"));
        assert_eq!(os_version(&dir.path().join("absent")), None);
    }
}
