//! What everyone watches, made out of the updater's own data.

use std::sync::Arc;

use super::{Published, Updater};
use crate::{
    config::Config,
    daemon::{
        board::{Board, os_version},
        meter::Meter,
        saved::Saved,
    },
    update::{
        failure::Failure,
        status::{HubStatus, Status},
    },
};

impl Updater {
    pub(super) fn running_version(&self) -> Option<String> {
        self.status().firmware_version
    }

    pub(super) fn status(&self) -> Status {
        let detail = self.detail.clone();
        let held_up = self.held_up.as_ref().map(|(failure, _)| failure);
        let unsaved = self.unsaved.as_ref().or(held_up);
        status(
            &self.config,
            &self.board,
            &self.saved,
            &self.hub,
            detail,
            unsaved,
            &self.meter,
        )
    }

    pub(super) fn publish(&mut self) {
        let mut status = self.status();
        let mut outbox = self.saved.outbox.clone();
        if self.untold_end {
            let told = self.published.borrow();
            status.update.clone_from(&told.status.update);
            outbox.clone_from(&told.outbox);
        }
        if let Some(report) = &status.update {
            self.trail.retain(|passed| passed.run() == report.run());
            match self.trail.last_mut() {
                Some(last) if last.stage.word() == report.stage.word() => *last = report.clone(),
                _ => self.trail.push(report.clone()),
            }
        }
        let next = Published {
            status,
            outbox,
            trail: self.trail.clone(),
        };
        self.published.send_if_modified(|published| {
            let changed = published.status != next.status || published.outbox != next.outbox;
            *published = next;
            changed
        });
    }
}

pub(super) fn status(
    config: &Config,
    board: &Result<Arc<Board>, Failure>,
    saved: &Saved,
    hub: &HubStatus,
    detail: Option<String>,
    unsaved: Option<&Failure>,
    meter: &Meter,
) -> Status {
    let slots = saved.slot_statuses();
    let booted_slot = board.as_ref().ok().map(|board| board.booted.slot);
    let from_slot = booted_slot.and_then(|slot| slots.get(&slot)?.version.clone());
    Status {
        daemon_version: env!("CARGO_PKG_VERSION").to_owned(),
        firmware_version: from_slot.or_else(|| os_version(&config.control.os_release)),
        booted_slot,
        slots,
        bootloader: match config.bootloader.kind {
            crate::config::BootloaderKind::Uboot => "uboot".to_owned(),
            crate::config::BootloaderKind::File => "file".to_owned(),
        },
        unsigned_allowed: config.trust.allow_unsigned,
        hub: hub.clone(),
        update: saved.current_report(meter.progress(), detail),
        last_success: saved.last_success,
        problem: board
            .as_ref()
            .err()
            .or(unsaved)
            .or(saved.lost.as_ref())
            .cloned(),
    }
}
