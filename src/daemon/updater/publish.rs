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
        status::{HubStatus, Stage, Status, UpdateReport},
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
            follow(&mut self.trail, report);
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

/// Adds `report` to the stages that its update has passed.
fn follow(trail: &mut Vec<UpdateReport>, report: &UpdateReport) {
    trail.retain(|passed| passed.run() == report.run());
    let step = |report: &UpdateReport| (report.stage, report.error.is_some());
    if report.stage == Stage::ApplyFailed && trail.last().is_none_or(|last| last.error.is_none()) {
        // What the old slot finds out has passed all the same: it failed, and was given up.
        let failed = UpdateReport {
            stage: Stage::Rebooting,
            ..report.clone()
        };
        trail.push(failed);
    }
    match trail.last_mut() {
        Some(last) if step(last) == step(report) => *last = report.clone(),
        _ => trail.push(report.clone()),
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
            crate::config::BootloaderKind::Tryboot => "tryboot".to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::{
        failure::Class,
        request::Origin,
        slot::Slot,
        status::{Progress, Times},
    };

    fn report(id: &str, stage: Stage, error: bool) -> UpdateReport {
        UpdateReport {
            id: id.to_owned(),
            origin: Origin::Method,
            uri: String::new(),
            target: Slot::B,
            version: None,
            from_version: None,
            stage,
            detail: None,
            progress: Progress::default(),
            times: Times::default(),
            error: error.then(|| Failure::new("x", Class::Final, "x")),
        }
    }

    fn steps(reports: &[UpdateReport]) -> Vec<(Stage, bool)> {
        let mut trail = vec![report("old", Stage::Waiting, false)];
        for report in reports {
            follow(&mut trail, report);
        }
        let step = |report: &UpdateReport| (report.stage, report.error.is_some());
        trail.iter().map(step).collect()
    }

    #[test]
    fn each_stage_is_one_step_of_the_present_update() {
        let new = |stage| report("new", stage, false);
        let passed = [Stage::Downloading, Stage::Downloading, Stage::Applying];
        assert_eq!(
            steps(&passed.map(new)),
            [(Stage::Downloading, false), (Stage::Applying, false)]
        );
    }

    #[test]
    fn an_update_that_was_given_up_failed_first() {
        let failed = [(Stage::Rebooting, true), (Stage::ApplyFailed, true)];
        let end = report("new", Stage::ApplyFailed, true);
        assert_eq!(steps(std::slice::from_ref(&end)), failed);
        let before = report("new", Stage::Rebooting, true);
        assert_eq!(steps(&[before, end.clone(), end]), failed);
    }
}
