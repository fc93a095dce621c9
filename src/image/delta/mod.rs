//! STATIC DELTAS: a file beside an image that makes its chunks from one certain older image.
//! Described for implementers in `docs/reference/delta-format.md`.
//!
//! - Each patch is one zstd frame that makes some chunks of the new image; its dictionary is a few small regions
//!   of the old payload, found by similarity ([`similar`]) and not by place. Both are bounded, so that a device
//!   needs a few MiB whatever the size of the images.
//! - A delta need not be trusted. Whoever applies it compares every chunk with the signed index of the new image;
//!   a delta that is damaged, hostile or for another pair can cost time, never a wrong byte.
//! - Chunks that the old payload holds already, at whatever place, are in no patch: a device finds them by itself.
//!
//! | file | for |
//! |---|---|
//! | [`mod@build`] | makes a delta |
//! | [`similar`] | finds the regions of the old payload that are worth most as a dictionary |
//! | [`file`](mod@file) | reads and writes head and table, each limit checked first |
//! | [`patch`] | one patch in bounded memory |

pub mod build;
pub mod error;
pub mod file;
pub mod patch;
pub mod similar;

pub use build::{BuiltDelta, DeltaOptions, OldPayload, build};
pub use error::DeltaError;
pub use file::{Delta, DeltaHead, Patch, Region};
pub use patch::PatchDecoder;

#[cfg(test)]
mod tests;

use crate::update::digest::Sha256;

/// Version of the file's format.
pub const DELTA_VERSION: u32 = 1;

/// Most raw bytes that one patch makes: the longest chunk must fit.
pub const MAX_PATCH: u32 = super::limits::MAX_CHUNK;

/// Longest dictionary of a patch, in bytes.
pub const MAX_DICTIONARY: u32 = 1024 * 1024;

/// Most regions that a dictionary is put together from.
pub const MAX_REGIONS: usize = 256;

/// Longest table, in bytes, before and after compression.
pub const MAX_TABLE: u32 = 8 * 1024 * 1024;

/// Regions begin at multiples of this many bytes, and have a multiple of it, but at the end of the old payload.
pub const REGION_UNIT: u32 = 4096;

/// What is added to an image's file name, so that a device with the payload `old` finds the delta:
/// `.from-<first 16 hexadecimal digits of the payload's SHA-256>.delta`.
#[must_use]
pub fn suffix(old: Sha256) -> String {
    let digits: String = old.0[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!(".from-{digits}.delta")
}
