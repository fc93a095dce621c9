//! What the Raspberry Pi's firmware says about this boot, in the device tree: big-endian 32-bit cells below
//! `chosen/bootloader`. Reads only. Source of the names: the Raspberry Pi documentation, "device-tree parameters".

use std::path::Path;

/// Bit of `capabilities` that stands for `tryboot_a_b`.
const TRYBOOT_A_B: u32 = 1 << 2;

/// This boot, as the firmware tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ThisBoot {
    /// The partition with the boot files that were used. 0 with firmware that does not say.
    pub(super) partition: u32,
    /// Whether the `tryboot` flag was set.
    pub(super) tryboot: bool,
}

/// Reads this boot's cells below `device_tree`.
///
/// # Errors
/// Why this firmware cannot try a slot, as the end of a sentence.
pub(super) fn this_boot(device_tree: &Path) -> Result<ThisBoot, &'static str> {
    let cell = |name: &str| {
        let bytes = std::fs::read(device_tree.join("chosen/bootloader").join(name)).ok()?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    let (Some(partition), Some(tryboot)) = (cell("partition"), cell("tryboot")) else {
        return Err("it does not say whether a boot was one on trial");
    };
    // Only boards with a bootloader EEPROM have this cell.
    if cell("capabilities").is_some_and(|capabilities| capabilities & TRYBOOT_A_B == 0) {
        return Err("its bootloader EEPROM is older than tryboot_a_b");
    }
    Ok(ThisBoot {
        partition,
        tryboot: tryboot == 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_big_endian_and_old_firmware_is_found_out() {
        let dir = tempfile::tempdir().unwrap();
        assert!(this_boot(dir.path()).is_err());
        let cells = dir.path().join("chosen/bootloader");
        std::fs::create_dir_all(&cells).unwrap();
        let set = |name: &str, bytes: &[u8]| std::fs::write(cells.join(name), bytes).unwrap();
        set("partition", &[0, 0, 0, 3]);
        assert!(this_boot(dir.path()).is_err());
        set("tryboot", &[0, 0, 0, 1]);
        let expected = ThisBoot {
            partition: 3,
            tryboot: true,
        };
        assert_eq!(this_boot(dir.path()), Ok(expected));
        set("capabilities", &[0, 0, 0, 0x7f]);
        assert_eq!(this_boot(dir.path()), Ok(expected));
        set("capabilities", &[0, 0, 0, 0x7b]);
        assert!(this_boot(dir.path()).unwrap_err().contains("EEPROM"));
        set("partition", b"3");
        assert!(this_boot(dir.path()).is_err(), "text is no cell");
    }
}
