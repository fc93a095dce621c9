//! One patch: decompressed against its dictionary, in memory that the caller's lengths bound.

use zstd::zstd_safe::{CCtx, CParameter, DCtx, get_error_name};

use super::{DeltaError, MAX_DICTIONARY, MAX_PATCH};
use crate::image::limits::MAX_FRAME;

/// Decompresses patches. What comes out is not verified: compare every chunk with the index before use.
#[derive(Debug, Default)]
pub struct PatchDecoder(());

impl PatchDecoder {
    /// A decoder.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts the `raw_len` bytes that `frame` makes from `dictionary` into `out`, whose old content is lost; after
    /// an error it is empty.
    ///
    /// # Errors
    /// A length beyond the limits, or a frame that does not decompress to exactly `raw_len` bytes.
    pub fn decode(
        &mut self,
        dictionary: &[u8],
        frame: &[u8],
        raw_len: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), DeltaError> {
        out.clear();
        check("a patch", raw_len as usize, MAX_PATCH)?;
        check("a dictionary", dictionary.len(), MAX_DICTIONARY)?;
        check("a frame", frame.len(), MAX_FRAME)?;
        // One-shot decompression into a slice: zstd can neither write past its end nor allocate a window,
        // whatever the frame's header says.
        out.resize(raw_len as usize, 0);
        let len = (|| {
            let mut context = DCtx::try_create().ok_or("no memory")?;
            context.ref_prefix(dictionary).map_err(get_error_name)?;
            context
                .decompress(out.as_mut_slice(), frame)
                .map_err(get_error_name)
        })();
        match len {
            Ok(len) if len == raw_len as usize => Ok(()),
            Ok(_) => {
                out.clear();
                Err(DeltaError::Patch("it has another length"))
            }
            Err(why) => {
                out.clear();
                Err(DeltaError::Patch(why))
            }
        }
    }
}

fn check(what: &'static str, size: usize, limit: u32) -> Result<(), DeltaError> {
    if size > limit as usize {
        return Err(DeltaError::TooLarge {
            what,
            size: size as u64,
            limit: limit.into(),
        });
    }
    Ok(())
}

/// Compresses `raw` against `dictionary`; the reverse of [`PatchDecoder::decode`].
pub(super) fn encode(dictionary: &[u8], raw: &[u8], level: i32) -> Result<Vec<u8>, &'static str> {
    let mut context = CCtx::try_create().ok_or("no memory")?;
    let set = |context: &mut CCtx<'_>, parameter| {
        context.set_parameter(parameter).map_err(get_error_name)
    };
    set(&mut context, CParameter::CompressionLevel(level))?;
    // All of the dictionary must stay in reach until the last byte.
    let both = dictionary.len() + raw.len();
    let window = both.next_power_of_two().trailing_zeros().clamp(10, 23);
    set(&mut context, CParameter::WindowLog(window))?;
    set(&mut context, CParameter::ContentSizeFlag(false))?;
    context.ref_prefix(dictionary).map_err(get_error_name)?;
    let mut frame = Vec::with_capacity(zstd::zstd_safe::compress_bound(raw.len()));
    context.compress2(&mut frame, raw).map_err(get_error_name)?;
    Ok(frame)
}
