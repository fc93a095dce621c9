//! Reads a slot back from the medium, to compare it with what was to be written.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use super::{
    REQUEST_BYTES, SlotWriteError, at,
    device::{Access, DeviceMedium},
    medium::{AlignedBuf, Medium, ceil},
    set::SlotPart,
};
use crate::update::digest::Sha256;

/// Buffers, one of which is read into while the one before is hashed.
const BUFFERS: usize = 3;

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
    let mut done = 0;
    let (give_back, free) = sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        let _ = give_back.send(AlignedBuf::new(REQUEST_BYTES));
    }
    let (sender, filled) = sync_channel::<(AlignedBuf, usize)>(BUFFERS);
    // One thread reads while this one hashes.
    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let (free, sender) = (free, sender);
            read_parts(parts, &free, &sender)
        });
        let (filled, give_back) = (filled, give_back);
        for (buf, length) in &filled {
            context.update(&buf[..length]);
            done += length as u64;
            // The reader may be done already.
            let _ = give_back.send(buf);
            if progress(done).is_break() {
                return Ok(None);
            }
        }
        match reading.join() {
            Ok(read) => read.map(|()| Some(Sha256::from_ring(&context.finish()))),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Reads all `parts` in order, into buffers from `free`, and hands them to `filled` with how much of each counts.
/// Ends early when nobody wants them any more.
fn read_parts(
    parts: &[SlotPart],
    free: &Receiver<AlignedBuf>,
    filled: &SyncSender<(AlignedBuf, usize)>,
) -> Result<(), SlotWriteError> {
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
            let Ok(mut buf) = free.recv() else {
                return Ok(());
            };
            let wanted = at((length - done).min(REQUEST_BYTES as u64));
            // The slot ends at a block boundary, so the padding is inside it.
            let padded = at(ceil(wanted as u64, medium.block()));
            medium
                .read(done, &mut buf[..padded])
                .map_err(|source| failed(done, padded, source))?;
            done += wanted as u64;
            if filled.send((buf, wanted)).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
