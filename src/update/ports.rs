//! What the rest of the product needs from a board, as traits.
//!
//! The real implementations are in `platform`; tests use fakes only for faults that the real thing
//! cannot produce on demand (a power cut between two writes, a write error).

use super::{failure::Failure, slot::Slot};

/// A trial that the bootloader still has to give, or is giving, to a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingTrial {
    /// The slot on trial.
    pub slot: Slot,
    /// Boots left before the bootloader falls back to the confirmed slot.
    pub tries_left: u8,
    /// The update that armed it.
    pub job: Option<String>,
}

/// What the bootloader's environment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootState {
    /// The slot that boots when no trial is pending.
    pub confirmed: Slot,
    /// The pending trial, if any.
    pub trial: Option<PendingTrial>,
}

/// Code of the refusal to disable, or to try, the confirmed slot. A rollback that meets it ends: see
/// [`super::machine`].
pub const SLOT_IS_CONFIRMED: &str = "slot-is-confirmed";

/// The bootloader's boot decision. Each change is **one** write of the environment, read back before
/// it counts; `Err` means the old decision may still be in force, never a half one.
pub trait Bootloader: Send {
    /// Reads the present decision.
    ///
    /// # Errors
    /// When the environment cannot be read or both its copies are bad.
    fn state(&self) -> Result<BootState, Failure>;

    /// `slot` runs and the daemon with it: a bootloader that counts the confirmed slot's boots too begins again.
    /// Called at each start, before the decision is read.
    ///
    /// # Errors
    /// When the environment cannot be read or written.
    fn running(&mut self, _slot: Slot) -> Result<(), Failure> {
        Ok(())
    }

    /// `slot` is about to be written: no boot may choose it, also not when what is in force now is damaged later.
    /// Ends a trial of that slot. Writes nothing when all that is so already.
    ///
    /// # Errors
    /// When `slot` is the confirmed one ([`SLOT_IS_CONFIRMED`]), or the environment cannot be written.
    fn mark_bad(&mut self, slot: Slot) -> Result<(), Failure>;

    /// The next boots, at most `tries`, try `slot`; without [`Bootloader::mark_good`] the bootloader
    /// then falls back to the confirmed slot.
    ///
    /// # Errors
    /// When `slot` is the confirmed one ([`SLOT_IS_CONFIRMED`]), or the environment cannot be written.
    fn arm_trial(&mut self, slot: Slot, tries: u8, job: &str) -> Result<(), Failure>;

    /// `slot` becomes the confirmed one and the trial ends.
    ///
    /// # Errors
    /// When the environment cannot be written.
    fn mark_good(&mut self, slot: Slot) -> Result<(), Failure>;
}

/// What is known about the present boot, independently of the bootloader's environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootedFrom {
    /// The slot whose device holds `/`.
    pub slot: Slot,
    /// The kernel's id of this boot: differs between any two boots.
    pub boot_id: String,
}
