//! The index from bytes that fit and bytes that do not.

use proptest::prelude::*;

use super::*;
use crate::{image::manifest::tests::sample, update::failure::Coded};

fn signed_for(index: &ChunkIndex, size: u64) -> Manifest {
    let mut manifest = sample();
    manifest.payload.size = size;
    manifest.images[0].size = size;
    manifest.index = index.reference();
    manifest
}

fn chunk(raw_len: u32, frame_len: u32, starts_frame: bool) -> NewChunk {
    NewChunk {
        raw_len,
        frame_len,
        digest: ChunkDigest::of(&raw_len.to_le_bytes()),
        starts_frame,
        zeros: false,
    }
}

fn index_of(max_prefix: u32, entries: &[(u32, u32, bool)]) -> ChunkIndex {
    let mut builder = IndexBuilder::new(max_prefix);
    for (raw, frame, starts) in entries {
        builder.push(&chunk(*raw, *frame, *starts)).unwrap();
    }
    builder.finish()
}

#[test]
fn offsets_are_sums_of_the_lengths_before() {
    let index = index_of(0, &[(512, 20, true), (1024, 700, true)]);
    let parsed = ChunkIndex::parse(index.bytes.clone(), &signed_for(&index, 1536)).unwrap();
    assert_eq!(parsed, index);
    let offsets: Vec<_> = parsed
        .chunks(1000)
        .map(|c| (c.raw_offset, c.raw_len, c.file_offset, c.frame_len))
        .collect();
    assert_eq!(offsets, [(0, 512, 1000, 20), (512, 1024, 1020, 700)]);
    assert_eq!(parsed.frames_len(), 720);
}

#[test]
fn a_prefix_reaches_back_to_the_start_of_the_frame_and_no_further_than_said() {
    let entries = [
        (512, 20, true),
        (1024, 30, false),
        (1024, 30, false),
        (2048, 40, true),
        (512, 50, false),
    ];
    let index = index_of(1200, &entries);
    let parsed = ChunkIndex::parse(index.bytes.clone(), &signed_for(&index, 5120)).unwrap();
    let prefixes: Vec<_> = parsed.chunks(0).map(|c| c.prefix_len).collect();
    assert_eq!(prefixes, [0, 512, 1200, 0, 1200]);
    assert_eq!(
        parsed.frames().collect::<Vec<_>>(),
        [(80, 2560), (90, 2560)]
    );
}

#[test]
fn lengths_beyond_the_limits_and_wrong_sums_are_refused() {
    for (entries, code) in [
        ([(0, 20, true), (512, 20, true)], "image-malformed"),
        ([(512, 0, true), (512, 20, true)], "image-malformed"),
        ([(512, 20, true), (513, 20, true)], "image-malformed"),
        ([(512, 20, false), (512, 20, true)], "image-malformed"),
        (
            [(512, 20, true), (MAX_CHUNK + 1, 20, true)],
            "image-limit-exceeded",
        ),
        (
            [(512, 20, true), (512, MAX_FRAME + 1, true)],
            "image-limit-exceeded",
        ),
        (
            [(u32::MAX, 20, true), (512, 20, true)],
            "image-limit-exceeded",
        ),
    ] {
        let index = index_of(1024, &entries);
        let error = ChunkIndex::parse(index.bytes.clone(), &signed_for(&index, 1024)).unwrap_err();
        assert_eq!(error.code(), code, "{entries:?}");
    }
    let entries = [(512, 20, true), (512, 20, false)];
    for (prefix, code) in [
        (0, "image-malformed"),
        (MAX_PREFIX + 1, "image-limit-exceeded"),
    ] {
        let index = index_of(prefix, &entries);
        let error = ChunkIndex::parse(index.bytes.clone(), &signed_for(&index, 1024)).unwrap_err();
        assert_eq!(error.code(), code, "prefix {prefix}");
    }
}

#[test]
fn no_chunk_spans_two_partition_images() {
    let code = |cut: u32| {
        let index = index_of(0, &[(cut, 20, true), (4096 - cut, 20, true)]);
        let mut manifest = signed_for(&index, 4096);
        let mut boot = manifest.images[0].clone();
        boot.target = "boot".to_owned();
        boot.size = 1024;
        manifest.images[0].size = 3072;
        manifest.images.insert(0, boot);
        ChunkIndex::parse(index.bytes.clone(), &manifest).map_err(|error| error.code())
    };
    code(1024).unwrap();
    assert_eq!(code(1536).unwrap_err(), "image-malformed");
    assert_eq!(code(512).unwrap_err(), "image-malformed");
}

#[test]
fn an_index_that_was_not_signed_is_refused() {
    let index = index_of(0, &[(512, 20, true)]);
    let manifest = signed_for(&index, 512);
    let mut bytes = index.bytes;
    *bytes.last_mut().unwrap() ^= 1;
    let error = ChunkIndex::parse(bytes, &manifest).unwrap_err();
    assert_eq!(error.code(), "image-index-digest");
}

proptest! {
    #[test]
    fn a_number_has_one_form(number in 0..1_u64 << 35, bytes in any::<[u8; 6]>()) {
        let mut written = Vec::new();
        put_number(&mut written, number);
        prop_assert_eq!(take_number(&written), Some((number, &[][..])));
        if let Some((number, rest)) = take_number(&bytes) {
            let mut again = Vec::new();
            put_number(&mut again, number);
            prop_assert_eq!([&again[..], rest].concat(), bytes);
        }
    }

    #[test]
    fn a_signed_but_arbitrary_index_never_panics(
        bytes in proptest::collection::vec(any::<u8>(), 0..200), count in any::<u64>(),
        magic in any::<bool>(),
    ) {
        let bytes = if magic { [INDEX_MAGIC, &bytes[..]].concat() } else { bytes };
        let mut manifest = sample();
        manifest.index = IndexRef {
            sha256: Sha256::of(&bytes), chunks: count, size: bytes.len() as u64,
        };
        let _ = ChunkIndex::check_size(&manifest.index);
        let _ = ChunkIndex::parse(bytes, &manifest);
    }
}
