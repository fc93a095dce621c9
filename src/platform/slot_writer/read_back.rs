//! Reads a slot back from the medium, to compare it with what was to be written.

use std::{ops::ControlFlow, path::Path};

use super::{
    REQUEST_BYTES, SlotWriteError, at,
    device::{Access, DeviceMedium},
    medium::{AlignedBuf, Medium, ceil},
    set::SlotPart,
};
use crate::update::digest::Sha256;

/// The SHA-256 of the first `length` bytes of the slot at `device`: [`read_back_parts`] of one part.
///
/// # Errors
/// As [`read_back_parts`].
pub fn read_back(
    device: &Path,
    length: u64,
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Option<Sha256>, SlotWriteError> {
    read_back_parts(&[SlotPart::new(device, length)], progress)
}

/// The SHA-256 over all `parts` in order, read from the medium past every cache. `progress` is told how
/// many bytes are done after each piece and may stop it: then `None`. Call after the writer finished: each
/// slot is opened exclusively, so nobody can mount it meanwhile.
///
/// # Errors
/// `slot-too-small` when a slot is shorter than its part; `slot-held`, `slot-not-a-device`,
/// `slot-open-failed`, `slot-read-failed`.
pub fn read_back_parts(
    parts: &[SlotPart],
    progress: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Option<Sha256>, SlotWriteError> {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut buf = AlignedBuf::new(REQUEST_BYTES);
    let mut before = 0;
    for SlotPart { device, length, .. } in parts {
        let length = *length;
        let mut medium = DeviceMedium::open(device, Access::Read)?;
        if length > medium.capacity() {
            return Err(SlotWriteError::TooSmall {
                device: device.clone(),
                image: length,
                capacity: medium.capacity(),
            });
        }
        let failed = |offset: u64, length: usize, source| SlotWriteError::Read {
            device: device.clone(),
            offset,
            length,
            source,
        };
        medium.drop_cache().map_err(|source| failed(0, 0, source))?;
        let mut done = 0;
        while done < length {
            let wanted = at((length - done).min(REQUEST_BYTES as u64));
            // The slot ends at a block boundary, so the padding is inside it.
            let padded = at(ceil(wanted as u64, medium.block()));
            medium
                .read(done, &mut buf[..padded])
                .map_err(|source| failed(done, padded, source))?;
            context.update(&buf[..wanted]);
            done += wanted as u64;
            if progress(before + done).is_break() {
                return Ok(None);
            }
        }
        before += length;
    }
    Ok(Some(Sha256::from_ring(&context.finish())))
}
