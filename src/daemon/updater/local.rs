//! What someone on the device may ask of the updater and nobody else: to judge a slot by hand, and to go back.

use std::{sync::Arc, time::Duration};

use tracing::info;

use super::{
    PREFLIGHT_LIMIT, Updater, blocking,
    requests::{new_id, storage_slow},
};
use crate::{
    daemon::{
        board::Board,
        control_names::{SlotInfo, WhichSlot},
    },
    hub::method::Answer,
    platform::slots,
    update::{
        digest::Sha256,
        events,
        failure::{Class, Failure},
        machine::{Content, Event, ImageFacts, Job, State, Written},
        policy::Consent,
        ports::BootState,
        request::{Origin, Request},
        slot::Slot,
        status::{SlotState, Times},
        uri::PackageUri,
    },
};

/// Longest look at slots and bootloader for those who only ask: the updater does nothing else meanwhile.
const LOOK_LIMIT: Duration = Duration::from_millis(200);

impl Updater {
    /// Confirms the trial boot under way, without waiting for its health.
    pub(super) async fn mark_good(&mut self) -> Answer {
        if let State::Confirming(_) = self.saved.machine {
            return Answer::done("the slot is being confirmed already");
        }
        match self.apply(Event::Healthy).await {
            Ok(()) => {
                info!(
                    message_id = events::CONFIRMED_BY_HAND,
                    fwupdated_update_id = self.saved.machine.job().map(|job| job.id.as_str()),
                    "the trial is confirmed by hand"
                );
                Answer::done("confirming the slot that runs")
            }
            Err(_) => Answer::conflict(&Failure::new(
                "nothing-to-confirm",
                Class::Wait,
                "no trial boot is under way; the slot that runs is confirmed already, or see `fwupdatectl slots`",
            )),
        }
    }

    /// Rejects the trial boot under way.
    pub(super) async fn reject(&mut self) -> Answer {
        let failure = Failure::new(
            "rollback-requested",
            Class::Final,
            "the trial was rejected on request",
        );
        match self.apply(Event::Unhealthy(failure)).await {
            Ok(()) => Answer::done("rolling back"),
            Err(_) => Answer::conflict(&Failure::new(
                "nothing-to-roll-back",
                Class::Wait,
                "no trial boot is under way; to go back to an older version, install it",
            )),
        }
    }

    /// Rejects the trial boot, or makes sure that the spare slot is neither booted nor gone back to until it is written
    /// again.
    pub(super) async fn mark_bad(&mut self, which: WhichSlot) -> Answer {
        let board = match self.board() {
            Ok(board) => board,
            Err(answer) => return answer,
        };
        let slot = which.of(board.booted.slot);
        let on_trial = matches!(&self.saved.machine, State::Trial(w) if w.job.target == slot);
        if on_trial {
            return self.reject().await;
        }
        if self.saved.machine.job().is_some() {
            return self.busy();
        }
        // The bootloader first: it refuses what must not be done.
        let told = blocking(move || board.with_bootloader(|bootloader| bootloader.mark_bad(slot)));
        match tokio::time::timeout(PREFLIGHT_LIMIT, told).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) if failure.class == Class::Final => return Answer::conflict(&failure),
            Ok(Err(failure)) => return Answer::unavailable(&failure),
            Err(_) => return Answer::unavailable(&storage_slow()),
        }
        let before = self.saved.slots.get(&slot).cloned();
        let version = before.as_ref().and_then(|record| record.version.clone());
        self.saved.set_slot(slot, SlotState::Bad, version);
        if !self.save().await {
            if let Some(before) = before {
                self.saved.slots.insert(slot, before);
            }
            return Answer::unavailable(&self.unsaved_failure());
        }
        self.publish();
        info!(
            message_id = events::SLOT_MARKED_BAD,
            fwupdated_slot = slot.name(),
            "slot {slot} is marked bad by hand"
        );
        Answer::done(&format!(
            "slot {slot} is marked bad until it is written again"
        ))
    }

    /// Rejects the trial boot under way; else tries what the other slot holds, if that was confirmed once and nothing
    /// was written to it since. Until it is healthy the confirmed slot stays what it is. A person's word, so that
    /// neither start nor reboot wait for the policy.
    pub(super) async fn go_back(&mut self) -> Answer {
        match &self.saved.machine {
            State::Idle => {}
            State::Trial(_) => return self.reject().await,
            _ => return self.busy(),
        }
        let running = match self.board() {
            Ok(board) => board.booted.slot,
            Err(answer) => return answer,
        };
        let target = running.other();
        let request = Request {
            force: true,
            ..Request::new(PackageUri::in_slot(target), Origin::Local)
        };
        match self.preflight(&request).await {
            Ok(found) if found == target => {}
            Ok(_) => return Answer::unavailable(&storage_slow()),
            Err((answer, _)) => return answer,
        }
        let record = self.saved.slots.get(&target).cloned().unwrap_or_default();
        if record.state != SlotState::Good {
            let text = format!(
                "slot {target} holds nothing that was confirmed here and not written or rejected since; to go back to \
                 an older version, install it"
            );
            let failure = Failure::new("rollback-not-possible", Class::Wait, text);
            return Answer::conflict(&failure);
        }
        if record.security_epoch < self.saved.security_epoch {
            let text = format!(
                "what slot {target} holds has the security epoch {}, or none that is known, and {} was confirmed on \
                 this device: it is known to be unsafe; install another version",
                record.security_epoch, self.saved.security_epoch
            );
            let failure = Failure::new("rollback-epoch", Class::Final, text);
            return Answer::forbidden(&failure);
        }
        let id = new_id();
        let written = Written {
            job: Job {
                id: id.clone(),
                request,
                target,
                from_version: self.running_version(),
                times: Times::default(),
                consent: Consent::default(),
            },
            image: ImageFacts {
                version: record.version.clone(),
                size: None,
                boot_size: 0,
                manifest: None,
                security_epoch: record.security_epoch,
            },
            // Whether it still is what was installed is not asked: a root file system changes when it is mounted.
            content: record.content.unwrap_or_else(nothing),
        };
        let version = record.version.as_deref().unwrap_or("an unknown version");
        info!(
            message_id = events::UPDATE_ACCEPTED,
            fwupdated_update_id = id,
            fwupdated_slot = target.name(),
            fwupdated_version = record.version.as_deref(),
            "update {id}: back to {version} in slot {target}, asked for by {}",
            Origin::Local
        );
        match self.apply(Event::ReturnRequested(written)).await {
            Ok(()) if self.saved.machine.job().is_some() => {
                let message = format!("going back to {version} in slot {target}");
                let body = serde_json::json!({"message": message, "updateId": id});
                Answer { status: 200, body }
            }
            Ok(()) | Err(_) => Answer::unavailable(&self.unsaved_failure()),
        }
    }

    /// What is known of each slot.
    pub(super) async fn slots(&self) -> Vec<SlotInfo> {
        let board = self.board.as_ref().ok().cloned();
        let look = move || Ok::<_, Failure>(board.map(|board| Seen::look(&board)));
        let seen = tokio::time::timeout(LOOK_LIMIT, blocking(look)).await;
        let seen = seen.ok().and_then(Result::ok).flatten();
        let shown = self.saved.slot_statuses();
        let info = |slot| {
            let status = shown.get(&slot).cloned().unwrap_or_default();
            let record = self.saved.slots.get(&slot);
            let content = record
                .filter(|record| record.state == SlotState::Good)
                .and_then(|record| record.content);
            let boot = seen.as_ref().and_then(|seen| seen.boot.as_ref());
            let trial = boot
                .and_then(|boot| boot.trial.as_ref())
                .filter(|trial| trial.slot == slot);
            let device = seen.as_ref().and_then(|seen| seen.device(slot));
            SlotInfo {
                slot,
                running: seen.as_ref().is_some_and(|seen| seen.running == slot),
                confirmed: boot.map(|boot| boot.confirmed == slot),
                tries_left: trial.map(|trial| trial.tries_left),
                state: status.state,
                version: status.version,
                size: device.as_ref().and_then(|(_, size)| *size),
                device: device.map(|(path, _)| path),
                installed: content.map(|content| content.sha256),
            }
        };
        Slot::ALL.into_iter().map(info).collect()
    }

    fn board(&self) -> Result<Arc<Board>, Answer> {
        let board = self.board.as_ref();
        board.cloned().map_err(Answer::unavailable)
    }
}

/// What can be seen of the slots now.
struct Seen {
    running: Slot,
    boot: Option<BootState>,
    running_device: Option<(String, Option<u64>)>,
    spare_device: Option<(String, Option<u64>)>,
}

impl Seen {
    /// Blocks.
    fn look(board: &Board) -> Self {
        let device = |path: &std::path::Path| {
            let size = slots::size(path).ok();
            (path.display().to_string(), size)
        };
        let spare = board.slots.inactive().ok();
        let running_device = spare.as_ref().and_then(|spare| spare.running().last());
        Self {
            running: board.booted.slot,
            boot: board.boot_state().ok(),
            running_device: running_device.map(|path| device(path)),
            spare_device: spare.as_ref().map(|spare| device(spare.path())),
        }
    }

    fn device(&self, slot: Slot) -> Option<(String, Option<u64>)> {
        match slot == self.running {
            true => self.running_device.clone(),
            false => self.spare_device.clone(),
        }
    }
}

/// Of a slot that was not installed by us nothing is known that could be read back.
fn nothing() -> Content {
    Content {
        size: 0,
        sha256: Sha256::of(b""),
    }
}
