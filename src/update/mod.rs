//! DECIDES what happens next in an update. Pure: no runtime, clock, file, socket or process.
//!
//! - [`machine`]: the state machine, `step(state, event) -> (state, actions)`.
//! - [`boot`]: what a start of the daemon means, from the state that survived and the booted slot.
//! - [`policy`], [`window`]: when an update may start, and when the device may reboot.
//! - [`pace`]: how fast something goes.
//! - [`status`]: the one document that describes an update to everyone outside (twin, CLI, journal).
//! - [`ports`]: what the machine needs from the board, as traits.
//! - [`events`]: the ids under which the journal tells what happens.
//! - [`request`], [`uri`], [`digest`], [`slot`], [`failure`]: the words all of them share.

pub mod boot;
pub mod digest;
pub mod events;
pub mod failure;
pub mod machine;
pub mod pace;
pub mod policy;
pub mod ports;
pub mod request;
pub mod slot;
pub mod status;
pub mod uri;
pub mod window;
