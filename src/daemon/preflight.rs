//! The local checks before a request is accepted: nothing has changed yet, and no network is involved.

use super::{board::Board, saved::Saved, store::Store};
use crate::{
    config::Config,
    hub::method::Answer,
    platform::slot_writer::SlotWriter,
    update::{
        failure::{Class, Failure},
        request::{Origin, Request},
        slot::Slot,
        uri::UriError,
    },
};

/// Why a request is not accepted, and the method's answer that fits.
#[derive(Debug)]
pub struct Refusal {
    /// Status of the answer: 400, 403, 409 or 503.
    pub status: i32,
    /// Why.
    pub failure: Failure,
}

impl Refusal {
    /// The answer to a method.
    #[must_use]
    pub fn answer(&self) -> Answer {
        Answer::error(self.status, &self.failure)
    }
}

/// Anything unexpected means "not now".
impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self {
            status: 503,
            failure,
        }
    }
}

/// The slot to write, if `request` may start. Blocks.
///
/// # Errors
/// The first reason why not.
pub fn check(
    request: &Request,
    config: &Config,
    board: &Board,
    saved: &Saved,
    store: &Store,
) -> Result<Slot, Refusal> {
    let refuse = |status: i32| move |failure: Failure| Refusal { status, failure };
    if request.uri.is_local() && request.origin != Origin::Local {
        let error = UriError::Scheme("file".to_owned());
        return Err(refuse(400)(Failure::from(&error)));
    }
    request
        .uri
        .check_transport(&config.fetch.insecure_hosts)
        .map_err(|error| refuse(400)(Failure::from(&error)))?;
    if !request.force
        && let Some(version) = &request.version
        && let Some(bad) = saved
            .known_bad
            .iter()
            .find(|bad| bad.version.as_ref() == Some(version))
    {
        let text = format!(
            "version {version} was rolled back before ({}); build a repaired one, or ask with \"force\": true",
            bad.failure
        );
        return Err(refuse(403)(Failure::new("known-bad", Class::Final, text)));
    }
    let boot = board.boot_state()?;
    if let Some(trial) = &boot.trial {
        let text = format!(
            "a trial of slot {} is pending in the bootloader and must end first; reboot the device, or restart \
             fwupdated to clear a trial that no update explains",
            trial.slot
        );
        return Err(refuse(409)(Failure::new(
            "trial-pending",
            Class::Wait,
            text,
        )));
    }
    let running = board.booted.slot;
    if boot.confirmed != running {
        let text = format!(
            "slot {running} runs, but the bootloader's confirmed slot is {}; reboot, or set the bootloader's \
             variables to the slot you trust (fw_setenv fwupdated_slot)",
            boot.confirmed
        );
        return Err(refuse(409)(Failure::new(
            "boot-disagreement",
            Class::Final,
            text,
        )));
    }
    let target = board
        .slots
        .inactive()
        .map_err(|error| Refusal::from(Failure::from(&error)))?;
    // Opened exclusively, so whoever has it mounted or held is found out; nothing is written.
    for path in [Some(target.path()), target.boot()].into_iter().flatten() {
        SlotWriter::open(path).map_err(|error| Refusal::from(Failure::from(&error)))?;
    }
    store.check_writable()?;
    Ok(target.slot())
}
