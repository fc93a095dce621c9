//! Any bytes, cut in any way that a manifest may ask for: the cuts are where they are whatever pieces the bytes come
//! in, and within the bounds.
#![no_main]

use fwupdated::image::{Chunking, Cutter, limits};
use libfuzzer_sys::fuzz_target;

/// The lengths of all chunks of `bytes`, which come `piece` at a time.
fn cuts(chunking: &Chunking, bytes: &[u8], piece: usize) -> Vec<usize> {
    let mut cutter = Cutter::new(chunking);
    let (mut start, mut end, mut lengths) = (0, 0, Vec::new());
    while start < bytes.len() {
        match cutter.next(&bytes[start..end], end == bytes.len()) {
            Some(length) => {
                assert!(length > 0 && length <= end - start);
                lengths.push(length);
                start += length;
            }
            None => {
                assert!(end < bytes.len(), "all is there, and no chunk begins");
                end = bytes.len().min(end + piece);
            }
        }
    }
    assert_eq!(cutter.next(&[], true), None);
    lengths
}

fuzz_target!(|input: (u32, u32, u32, Vec<(u16, u8)>)| {
    let (min, average, max, runs) = input;
    let average = average % limits::MAX_AVERAGE + 1;
    let max = average + max % (limits::MAX_CHUNK - average + 1);
    let min = min % (average + 1);
    // Runs of one byte and of different ones, up to some megabytes together.
    let mut bytes = Vec::new();
    for (length, kind) in runs.into_iter().take(64) {
        match kind {
            0..128 => bytes.resize(bytes.len() + usize::from(length) * 4, kind / 64),
            _ => bytes.extend((0..u32::from(length)).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 ^ kind)),
        }
    }
    let chunking = Chunking { min, average, max, ..Chunking::content_defined(average) };
    let whole = cuts(&chunking, &bytes, bytes.len().max(1));
    assert_eq!(whole.iter().sum::<usize>(), bytes.len());
    let most = (max as usize).max(limits::MAX_HOLE);
    assert!(whole.iter().all(|length| *length <= most));
    assert_eq!(cuts(&chunking, &bytes, 4097), whole);
});
