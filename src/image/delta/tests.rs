//! Deltas made and applied in memory: random edits and moves, wrong pairs, damage, and limits.

use std::{
    collections::{HashMap, HashSet},
    num::NonZeroUsize,
};

use jiff::Timestamp;
use proptest::prelude::*;

use super::{file, *};
use crate::{
    image::{
        self, BuildOptions, ChunkDigest, Cutter, Header, ManifestFrame, Part, Signatures,
        check_digest, manifest::ROOTFS,
    },
    update::failure::Coded,
};

const CHUNK: u32 = 4096;

/// An image of `raw` in memory: its header, and the frames behind it.
fn image_of(raw: &[u8]) -> (Header, Vec<u8>) {
    let options = BuildOptions {
        chunk_size: CHUNK,
        level: 1,
        threads: NonZeroUsize::MIN,
        ..BuildOptions::new("t", "1", &["board"], Timestamp::UNIX_EPOCH)
    };
    let mut frames = Vec::new();
    let part = Part {
        target: ROOTFS,
        input: raw,
        size: raw.len() as u64,
    };
    let built = image::build(vec![part], &options, &mut frames, &mut |_| {}).unwrap();
    let mut file = Vec::new();
    built
        .assemble(&Signatures::none(), &mut &frames[..], &mut file)
        .unwrap();
    let mut reader = &file[..];
    let frame = ManifestFrame::read(&mut reader).unwrap();
    let header = frame
        .accept_unsigned()
        .unwrap()
        .read_index(&mut reader)
        .unwrap();
    (header, reader.to_vec())
}

fn delta_with(old: &[u8], image: &(Header, Vec<u8>), threads: usize) -> (BuiltDelta, Vec<u8>) {
    let options = DeltaOptions {
        level: 3,
        threads: NonZeroUsize::new(threads).unwrap(),
    };
    let (header, new) = image;
    let mut frames = Vec::new();
    let size = old.len() as u64;
    let new = &mut &new[..];
    let built = build(old, size, header, new, &options, &mut frames, &mut |_| {}).unwrap();
    let mut file = Vec::new();
    let len = built.assemble(&mut &frames[..], &mut file).unwrap();
    assert_eq!(len, file.len() as u64);
    (built, file)
}

/// What a device does with the file: the chunks that it makes and that are right, by number, and how many patches
/// or chunks of them were not.
fn apply(
    file: &[u8],
    old: &[u8],
    header: &Header,
) -> Result<(HashMap<usize, Vec<u8>>, usize), DeltaError> {
    let mut reader = file;
    let head = DeltaHead::read(&mut reader)?;
    // The pair was compared before: only then do the regions lie within the old payload.
    if head.old.size != old.len() as u64 {
        return Err(DeltaError::Malformed("another pair"));
    }
    let delta = head.read_table(&mut reader, header)?;
    let chunks: Vec<_> = header.chunks().collect();
    let (mut made, mut wrong, mut decoder) = (HashMap::new(), 0, PatchDecoder::new());
    let mut raw = Vec::new();
    for patch in delta.patches() {
        let mut dictionary = Vec::new();
        for region in &patch.regions {
            let start = region.offset as usize;
            dictionary.extend_from_slice(&old[start..start + region.len as usize]);
        }
        let start = patch.frame_offset as usize;
        let Some(frame) = file.get(start..start + patch.frame_len as usize) else {
            wrong += 1;
            continue;
        };
        let numbers: Vec<_> = patch.chunks.iter().cloned().flatten().collect();
        let len = numbers.iter().map(|n| chunks[*n].raw_len).sum();
        if decoder.decode(&dictionary, frame, len, &mut raw).is_err() {
            wrong += 1;
            continue;
        }
        let mut rest = &raw[..];
        for number in numbers {
            let (bytes, more) = rest.split_at(chunks[number].raw_len as usize);
            rest = more;
            match check_digest(&chunks[number], bytes) {
                Ok(()) => drop(made.insert(number, bytes.to_vec())),
                Err(_) => wrong += 1,
            }
        }
    }
    Ok((made, wrong))
}

/// Bytes that do not compress, the same for the same seed.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Whether every chunk of `new` is zeros, or one of those that `old` is cut into, or made by the delta, once.
fn check_complete(old: &[u8], new: &[u8], header: &Header, made: &HashMap<usize, Vec<u8>>) {
    let mut cutter = Cutter::new(&header.manifest().chunking);
    let (mut held, mut rest) = (HashSet::new(), old);
    while let Some(len) = cutter.next(rest, true) {
        held.insert(ChunkDigest::of(&rest[..len]));
        rest = &rest[len..];
    }
    for (number, chunk) in header.chunks().enumerate() {
        let start = chunk.raw_offset as usize;
        match made.get(&number) {
            Some(bytes) => {
                assert_eq!(bytes, &new[start..start + chunk.raw_len as usize]);
                // Once is enough: a device copies it from there.
                held.insert(chunk.digest);
            }
            None => assert!(chunk.zeros || held.contains(&chunk.digest)),
        }
    }
}

#[test]
fn what_moved_and_changed_a_little_costs_little() {
    let old = noise(1 << 20, 1);
    // Everything moves by 100 bytes, and one byte in each 10 000 changes.
    let mut new = noise(100, 2);
    new.extend_from_slice(&old[..(1 << 20) - 512]);
    new.extend_from_slice(&noise(412, 3));
    new.iter_mut().step_by(10_000).for_each(|byte| *byte ^= 1);
    let image = image_of(&new);
    let (built, file) = delta_with(&old, &image, 2);
    assert!(built.raw > 100 * u64::from(CHUNK));
    assert!(file.len() < 8 * 1024, "{}", file.len());
    let (made, wrong) = apply(&file, &old, &image.0).unwrap();
    assert_eq!(wrong, 0);
    check_complete(&old, &new, &image.0, &made);
}

#[test]
fn chunks_that_the_old_payload_holds_and_zeros_are_in_no_patch() {
    let old = noise(64 * 1024, 1);
    let mut new = old[32 * 1024..].to_vec();
    new.extend_from_slice(&[0; 8192]);
    new.extend_from_slice(&old[..4096]);
    let (built, file) = delta_with(&old, &image_of(&new), 1);
    // But for those at the seams.
    assert!(built.patches == 1 && built.raw < 24 * 1024, "{built:?}");
    assert!(file.len() < 1024, "{}", file.len());
}

#[test]
fn the_number_of_threads_does_not_change_the_file() {
    let old = noise(700_000, 5);
    let mut new = old.clone();
    new.rotate_left(33_333);
    new.truncate(512 * 1300);
    let image = image_of(&new);
    let (_, one) = delta_with(&old, &image, 1);
    assert_eq!(delta_with(&old, &image, 5).1, one);
}

#[test]
fn a_delta_for_another_pair_is_told_apart() {
    let old = noise(8192, 1);
    let image = image_of(&noise(8192, 2));
    let (built, file) = delta_with(&old, &image, 1);
    let head = DeltaHead::read(&mut &file[..]).unwrap();
    head.check_pair(&built.old, &image.0).unwrap();
    let other = OldPayload {
        sha256: Sha256::of(b"another"),
        ..built.old
    };
    for error in [
        head.check_pair(&other, &image.0).unwrap_err(),
        head.check_pair(&built.old, &image_of(&old).0).unwrap_err(),
    ] {
        assert_eq!(error.code(), "delta-other-pair");
    }
}

#[test]
fn every_cut_is_said_or_costs_only_the_patches_behind_it() {
    let old = noise(512 * 1400, 1);
    let mut new = old.clone();
    new.iter_mut().step_by(1000).for_each(|byte| *byte ^= 1);
    let image = image_of(&new);
    let (built, file) = delta_with(&old, &image, 1);
    assert!(built.patches > 1);
    for len in (0..built.table_len() as usize).step_by(3) {
        let error = apply(&file[..len], &old, &image.0).unwrap_err();
        assert_eq!(error.code(), "delta-truncated", "{len}");
    }
    let (made, wrong) = apply(&file[..file.len() - 1], &old, &image.0).unwrap();
    assert_eq!(wrong, 1);
    assert!(!made.is_empty());
}

#[test]
fn lengths_beyond_the_limits_are_refused_before_anything_is_allocated() {
    let (_, file) = delta_with(&noise(8192, 1), &image_of(&noise(8192, 2)), 1);
    for (at, code) in [
        (0, "delta-not-recognised"),
        (8, "delta-format-version"),
        (file_table_len(), "delta-limit-exceeded"),
        (file_table_len() + 4, "delta-limit-exceeded"),
    ] {
        let mut hostile = file.clone();
        hostile[at..at + 4].fill(0xFF);
        let error = DeltaHead::read(&mut &hostile[..]).unwrap_err();
        assert_eq!(error.code(), code);
    }
}

fn file_table_len() -> usize {
    file::HEAD_LEN as usize - 8
}

/// A file with `table` instead of its own.
fn with_table(file: &[u8], table: &[u8], claimed: usize) -> Vec<u8> {
    let packed = zstd::bulk::compress(table, 3).unwrap();
    let mut hostile = file[..file_table_len()].to_vec();
    hostile.extend_from_slice(&(claimed as u32).to_le_bytes());
    hostile.extend_from_slice(&(packed.len() as u32).to_le_bytes());
    hostile.extend_from_slice(&packed);
    hostile
}

#[test]
fn a_table_that_claims_what_cannot_be_is_refused() {
    let old = noise(8192, 1);
    let image = image_of(&noise(8192, 2));
    let (_, file) = delta_with(&old, &image, 1);
    let huge = [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1];
    let tables: [(&[u8], &str); 12] = [
        (&[0], "delta-malformed"),                        // makes nothing
        (&[1, 0, 0, 0, 1], "delta-malformed"),            // an empty run
        (&[1, 0, 99, 0, 1], "delta-malformed"),           // chunks behind the last
        (&[1, 99, 1, 0, 1], "delta-malformed"),           // a chunk behind the last
        (&[1, 0, 1, 1, 1, 1, 1], "delta-malformed"),      // a region before the start
        (&[1, 0, 1, 1, 4, 1, 1], "delta-malformed"),      // a region behind the end
        (&[1, 0, 1, 1, 0, 3, 1], "delta-malformed"),      // a region over the end
        (&[1, 0, 1, 1, 0, 0, 1], "delta-malformed"),      // an empty region
        (&[9, 0, 1, 0, 1], "delta-limit-exceeded"),       // more runs than bytes
        (&[1, 0, 1, 0xFF, 0x7F], "delta-limit-exceeded"), // too many regions
        (
            &[1, 0, 1, 0, 0xFF, 0xFF, 0xFF, 0x7F],
            "delta-limit-exceeded",
        ), // too long a frame
        (&[1, 0, 1, 0], "delta-malformed"),               // no end
    ];
    for (table, code) in tables {
        let hostile = with_table(&file, table, table.len());
        let error = apply(&hostile, &old, &image.0).unwrap_err();
        assert_eq!(error.code(), code, "{table:?}: {error}");
    }
    for number in [0, 1, 2, 3, 4, 5] {
        // The largest number there is, at every place where one stands.
        let mut table = vec![1, 0, 1, 1, 0, 1, 1];
        table.splice(number..=number, huge);
        apply(&with_table(&file, &table, table.len()), &old, &image.0).unwrap_err();
    }
    // A bomb: a short frame that claims, or has, more than it says.
    let bomb = vec![1; 100_000];
    for claimed in [1, 99_999, 100_001] {
        let error = apply(&with_table(&file, &bomb, claimed), &old, &image.0).unwrap_err();
        assert_eq!(error.code(), "delta-malformed");
    }
}

#[test]
fn a_frame_that_holds_more_than_its_chunks_writes_nothing_past_them() {
    let frame = zstd::bulk::compress(&[7; 1 << 20], 3).unwrap();
    let mut out = vec![1; 10];
    let mut decoder = PatchDecoder::new();
    let error = decoder.decode(&[], &frame, 4096, &mut out).unwrap_err();
    assert_eq!(error.code(), "delta-patch");
    assert!(out.is_empty() && out.capacity() < 100_000);
    let error = decoder
        .decode(&[], &frame, MAX_PATCH + 1, &mut out)
        .unwrap_err();
    assert_eq!(error.code(), "delta-limit-exceeded");
}

#[test]
fn a_dictionary_that_looks_like_one_of_zstd_is_plain_content() {
    // The magic number of a trained dictionary, which would be parsed.
    let mut old = 0xEC30_A437_u32.to_le_bytes().to_vec();
    old.extend_from_slice(&noise(40_000, 1));
    // A copy: zstd leaves a dictionary aside that lies where the content does.
    let copy = old[..30_000].to_vec();
    let frame = patch::encode(&old, &copy, 9).unwrap();
    assert!(frame.len() < 100, "{}", frame.len());
    let mut out = Vec::new();
    let mut decoder = PatchDecoder::new();
    decoder.decode(&old, &frame, 30_000, &mut out).unwrap();
    assert_eq!(out, old[..30_000]);
}

#[test]
fn the_suffix_is_the_documented_one() {
    let digest = Sha256::of(b"");
    assert_eq!(suffix(digest), ".from-e3b0c44298fc1c14.delta");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Edits of an old payload: (kind, where, length, seed).
    #[test]
    fn any_edits_are_made_again(
        len in 1usize..200,
        edits in prop::collection::vec((0u8..4, any::<u32>(), 1usize..20_000, any::<u64>()), 0..12),
    ) {
        let old = noise(len * 512, 9);
        let mut new = old.clone();
        for (kind, place, len, seed) in edits {
            let at = place as usize % (new.len() + 1);
            let end = (at + len).min(new.len());
            match kind {
                0 => drop(new.splice(at..end, noise(len, seed))),
                1 => drop(new.drain(at..end)),
                2 => new.splice(at..at, old[..len.min(old.len())].iter().copied()).for_each(drop),
                _ => new[at..end].fill(0),
            }
        }
        new.resize(new.len().next_multiple_of(512).max(512), 0);
        let image = image_of(&new);
        let (_, file) = delta_with(&old, &image, 2);
        let (made, wrong) = apply(&file, &old, &image.0).unwrap();
        prop_assert_eq!(wrong, 0);
        check_complete(&old, &new, &image.0, &made);
    }

    /// A wrong byte anywhere, also in the old payload, never makes a wrong chunk.
    #[test]
    fn damage_never_makes_a_wrong_chunk(place in any::<usize>(), flip in 1u8.., in_old in any::<bool>()) {
        let mut old = noise(60_000, 4);
        let mut new = old.clone();
        new.rotate_left(777);
        new.truncate(512 * 117);
        let image = image_of(&new);
        let (_, mut file) = delta_with(&old, &image, 1);
        let damaged = if in_old { &mut old } else { &mut file };
        let at = place % damaged.len();
        damaged[at] ^= flip;
        if let Ok((made, _)) = apply(&file, &old, &image.0) {
            let chunks: Vec<_> = image.0.chunks().collect();
            for (number, bytes) in made {
                let start = chunks[number].raw_offset as usize;
                prop_assert_eq!(&bytes[..], &new[start..start + bytes.len()]);
            }
        }
    }
}
