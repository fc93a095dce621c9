//! Linked chunks: right for a device that has only the bytes before a chunk, and for any zstd decoder.

use proptest::prelude::*;

use super::*;
use crate::image::chunk::ChunkDecoder;
use crate::image::index::ChunkEntry;

const PREFIX: u32 = 8192;

/// Pieces of what is hard: runs of one byte, short periods, text, noise, and copies of earlier pieces.
fn image(pieces: &[(u8, u16)]) -> Vec<u8> {
    // Never empty, as no group is: a first piece may be a copy of nothing.
    let mut out: Vec<u8> = vec![0];
    let mut state = 1_u64;
    for (kind, len) in pieces {
        let len = usize::from(*len);
        let at = out.len();
        match kind % 5 {
            0 => out.resize(at + len, kind >> 3),
            1 => out.extend((0..len).map(|n| (n % usize::from(kind / 16 + 1)) as u8)),
            2 => out.extend((0..len).map(|n| b"the way to the slot, "[n * n % 21])),
            3 => out.extend((0..len).map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 56) as u8
            })),
            _ => out.extend_from_within(at.saturating_sub(len)..at),
        }
    }
    out
}

fn group(raw: Vec<u8>, chunk: usize) -> Group {
    let ends = (0..raw.len())
        .step_by(chunk)
        .map(|at| (at + chunk).min(raw.len()));
    Group {
        ends: ends.collect(),
        raw,
        zeros: false,
    }
}

/// Decodes each chunk alone; gives how many stand alone.
fn decode(frames: &Frames, group: &Group) -> usize {
    let (mut at, mut file, mut in_frame, mut alone) = (0, 0, 0, 0);
    let mut raw = Vec::new();
    for chunk in &frames.chunks {
        if chunk.starts_frame {
            in_frame = 0;
            alone += 1;
        }
        let prefix_len = in_frame.min(PREFIX);
        let entry = ChunkEntry {
            raw_offset: at as u64,
            raw_len: chunk.raw_len,
            file_offset: file as u64,
            frame_len: chunk.frame_len,
            digest: chunk.digest,
            prefix_len,
            zeros: chunk.zeros,
        };
        let bytes = &frames.bytes[file..file + chunk.frame_len as usize];
        let prefix = &group.raw[at - prefix_len as usize..at];
        ChunkDecoder::new()
            .decode_chunk(&entry, prefix, bytes, &mut raw)
            .unwrap();
        assert!(raw == group.raw[at..at + raw.len()]);
        in_frame += chunk.raw_len;
        at += raw.len();
        file += bytes.len();
    }
    assert_eq!((at, file), (group.raw.len(), frames.bytes.len()));
    alone
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn linked_chunks_are_right_for_devices_and_for_plain_zstd(
        pieces in proptest::collection::vec((any::<u8>(), 1..9000_u16), 1..30),
        chunk in 300..5000_usize, level in 1..20_i32,
    ) {
        let group = group(image(&pieces), chunk);
        let frames = GroupEncoder::new(level, PREFIX).encode(&group).unwrap();
        decode(&frames, &group);
        prop_assert!(zstd::decode_all(frames.bytes.as_slice()).unwrap() == group.raw);
    }
}

#[test]
fn chunks_of_ordinary_content_share_a_frame_and_are_smaller_for_it() {
    let pieces: Vec<_> = (0..200).map(|n| (2 + n % 3, 900)).collect();
    let group = group(image(&pieces), 2000);
    let linked = GroupEncoder::new(9, PREFIX).encode(&group).unwrap();
    let alone = GroupEncoder::new(9, 0).encode(&group).unwrap();
    assert_eq!(decode(&alone, &group), group.ends.len());
    assert!(decode(&linked, &group) <= 4);
    assert!(linked.bytes.len() < alone.bytes.len());
}

#[test]
fn a_prefix_that_looks_like_a_dictionary_is_taken_for_bytes() {
    let mut raw = image(&[(3, 3000), (2, 3000)]);
    raw[..4].copy_from_slice(&chunk::DICTIONARY_MAGIC);
    let group = group(raw, 1000);
    let frames = GroupEncoder::new(3, PREFIX).encode(&group).unwrap();
    assert!(decode(&frames, &group) < group.ends.len());
}
