//! The table of scenarios and outcomes, on the terminal and as a page of the documentation.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

/// A line of it.
pub(crate) struct Row {
    /// What was done.
    pub(crate) what: String,
    /// Power cuts.
    pub(crate) cuts: usize,
    /// How it ended.
    pub(crate) outcome: String,
}

impl Row {
    /// One that did not end as it must.
    pub(crate) fn failed(what: String) -> Self {
        Self {
            what,
            cuts: 0,
            outcome: FAILED.to_owned(),
        }
    }

    /// As Markdown.
    pub(crate) fn line(&self) -> String {
        format!("| {} | {} | {} |", self.what, self.cuts, self.outcome)
    }
}

const FAILED: &str = "**failed**";

/// All lines, by their number.
#[derive(Default)]
pub(crate) struct Table {
    rows: BTreeMap<usize, Row>,
}

impl Table {
    /// Adds one.
    pub(crate) fn add(&mut self, number: usize, row: Row) {
        self.rows.insert(number, row);
    }

    /// How many did not end as they must.
    pub(crate) fn failures(&self) -> usize {
        let failed = |row: &&Row| row.outcome == FAILED;
        self.rows.values().filter(failed).count()
    }

    fn cuts(&self) -> usize {
        self.rows.values().map(|row| row.cuts).sum()
    }

    /// As Markdown.
    pub(crate) fn markdown(&self) -> String {
        let mut text = "| Scenario | Power cuts | Outcome |\n|---|---|---|\n".to_owned();
        for row in self.rows.values() {
            text.push_str(&row.line());
            text.push('\n');
        }
        text
    }

    /// Writes the page.
    pub(crate) fn write(&self, page: &Path, day: &str, took: Duration) {
        let text = format!(
            "# What a virtual machine went through\n\n\
             Written by `make vm-test` on {day}: {} scenarios, {} power cuts, {} minutes. None ended without a slot that\n\
             boots, and each outcome was found to be one story: the twin, the slot that runs, the bootloader's\n\
             environment, and the exit code of `fwupdatectl hub invoke --watch`; on the device `systemctl status` and\n\
             `fwupdatectl history`, and, where no power cut could take lines with it, the journal and its catalog.\n\n\
             The machine: QEMU (x86-64), U-Boot 2025.01 with `packaging/uboot/boot.cmd`, its environment in two copies on an\n\
             emulated SD card, Debian's kernel and systemd, the Debian package of fwupdated. A power cut is SIGKILL for\n\
             QEMU: what the guest had not written yet is lost. A card that loses or reorders what it had taken is not\n\
             emulated here. Boots are counted from the request to the end; on a busy machine U-Boot sometimes fails to read\n\
             the card in time, which costs one. `tests/vm.rs` says how to repeat it.\n\n{}",
            self.rows.len(),
            self.cuts(),
            took.as_secs() / 60,
            self.markdown()
        );
        fs::write(page, text).expect("the page can be written");
    }
}
