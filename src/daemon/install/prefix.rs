//! The raw bytes right before a chunk, which the decoder of a linked chunk needs.
//!
//! They come from what was decoded last, which may not be written yet, and for the chunks between from the slot,
//! where they are in place. Pure: the caller reads the slot.

/// The last bytes of the image that went by.
pub struct Prefix {
    bytes: Vec<u8>,
    /// Where in the image `bytes` ends.
    end: u64,
    /// No chunk needs more.
    most: usize,
}

impl Prefix {
    /// For an image whose chunks need at most `most` bytes.
    #[must_use]
    pub fn new(most: u32) -> Self {
        Self {
            bytes: Vec::new(),
            end: 0,
            most: most as usize,
        }
    }

    /// The `length` bytes before `offset`, the place of the chunk to be decoded. `read` gives those that did not go by
    /// here, which are in place: at an offset of the image.
    ///
    /// # Errors
    /// That of `read`.
    pub fn before<E>(
        &mut self,
        offset: u64,
        length: u32,
        read: impl FnOnce(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<&[u8], E> {
        let length = length as usize;
        let start = offset - length as u64;
        if length > 0 && self.end != offset {
            // Chunks link within a frame and go by in order: what is needed is not before what was needed last.
            if self.end <= start || offset < self.end || self.start() > start {
                self.bytes.clear();
                self.end = start;
            }
            let known = self.bytes.len();
            let gap = usize::try_from(offset - self.end).expect("at most the length");
            self.bytes.resize(known + gap, 0);
            read(self.end, &mut self.bytes[known..])?;
            self.end = offset;
        }
        Ok(&self.bytes[self.bytes.len().saturating_sub(length)..])
    }

    /// The chunk at `offset` was decoded to `raw`.
    pub fn went_by(&mut self, offset: u64, raw: &[u8]) {
        if self.most == 0 {
            return;
        }
        if self.end != offset {
            self.bytes.clear();
        }
        // Seldom, so that each byte is moved down less than once.
        if self.bytes.len() > 4 * self.most {
            self.bytes.drain(..self.bytes.len() - self.most);
        }
        self.bytes.extend_from_slice(raw);
        self.end = offset + raw.len() as u64;
    }

    fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_chunk_gets_the_bytes_before_it_and_reads_only_what_did_not_go_by(
            chunks in proptest::collection::vec((1_usize..300, any::<bool>(), 0..8_u8), 1..60),
            most in 0_u32..500,
        ) {
            let length: usize = chunks.iter().map(|(length, ..)| length).sum();
            let image: Vec<u8> = (0..length).map(|n| (n * 31 % 251) as u8).collect();
            let mut written = vec![true; length];
            let mut prefix = Prefix::new(most);
            let (mut offset, mut frame) = (0, 0);
            for (length, missing, starts) in chunks {
                if starts == 0 {
                    frame = offset;
                }
                let needed = (offset - frame).min(most as usize);
                if missing {
                    let before = prefix.before(offset as u64, needed as u32, |at, buffer| {
                        let at = at as usize;
                        // What was decoded may still be on its way.
                        assert!(written[at..at + buffer.len()].iter().all(|written| *written));
                        buffer.copy_from_slice(&image[at..at + buffer.len()]);
                        Ok::<(), Infallible>(())
                    });
                    let Ok(before) = before;
                    prop_assert_eq!(before, &image[offset - needed..offset]);
                    prefix.went_by(offset as u64, &image[offset..offset + length]);
                    written[offset..offset + length].fill(false);
                }
                offset += length;
            }
        }
    }
}
