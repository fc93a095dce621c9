//! Frames of chunks that are right, wrong, or more than they say.

use super::*;
use crate::{
    image::group::{Group, GroupEncoder},
    update::failure::Coded,
};

fn chunk_of(raw: &[u8]) -> (ChunkEntry, Vec<u8>) {
    let group = Group {
        raw: raw.to_vec(),
        ends: vec![raw.len()],
        zeros: false,
    };
    let frame = GroupEncoder::new(3, 0).encode(&group).unwrap().bytes;
    let chunk = ChunkEntry {
        raw_offset: 0,
        raw_len: u32::try_from(raw.len()).unwrap(),
        file_offset: 0,
        frame_len: u32::try_from(frame.len()).unwrap(),
        digest: ChunkDigest::of(raw),
        prefix_len: 0,
        zeros: false,
    };
    (chunk, frame)
}

#[test]
fn a_frame_that_holds_more_than_its_chunk_is_refused_without_writing_past_it() {
    let (mut chunk, frame) = chunk_of(&[7; 100_000]);
    chunk.raw_len = 512;
    let mut out = vec![1; 10];
    let error = ChunkDecoder::new()
        .decode_chunk(&chunk, &[], &frame, &mut out)
        .unwrap_err();
    assert_eq!(error.code(), "image-chunk-decode");
    assert!(out.is_empty() && out.capacity() < 100_000);
}

#[test]
fn two_frames_or_bytes_behind_the_frame_are_no_chunk() {
    let (mut chunk, one) = chunk_of(b"half");
    for more in [one.clone(), vec![0]] {
        let frame = [one.clone(), more].concat();
        chunk.frame_len = u32::try_from(frame.len()).unwrap();
        chunk.raw_len = 8;
        chunk.digest = ChunkDigest::of(b"halfhalf");
        let error = ChunkDecoder::new()
            .decode_chunk(&chunk, &[], &frame, &mut Vec::new())
            .unwrap_err();
        assert_eq!(error.code(), "image-chunk-decode");
    }
}

#[test]
fn wrong_lengths_and_wrong_bytes_are_told_apart() {
    let (chunk, frame) = chunk_of(b"right");
    let mut decoder = ChunkDecoder::new();
    let mut out = Vec::new();
    let longer = ChunkEntry {
        raw_len: 6,
        ..chunk
    };
    let other = ChunkEntry {
        digest: ChunkDigest::of(b"wrong"),
        ..chunk
    };
    for (chunk, prefix, frame, code) in [
        (&chunk, &[][..], &frame[1..], "image-chunk-length"),
        (&chunk, &[1], &frame[..], "image-chunk-length"),
        (&longer, &[], &frame[..], "image-chunk-decode"),
        (&other, &[], &frame[..], "image-chunk-digest"),
    ] {
        let error = decoder
            .decode_chunk(chunk, prefix, frame, &mut out)
            .unwrap_err();
        assert_eq!(error.code(), code);
        assert!(out.is_empty());
    }
    decoder.decode_chunk(&chunk, &[], &frame, &mut out).unwrap();
    assert_eq!(out, b"right");
}
