//! Any bytes as a chunk, behind any prefix: what comes out is what its digest says, or nothing.
#![no_main]

use fwupdated::image::{ChunkDecoder, ChunkDigest, ChunkEntry};
use libfuzzer_sys::fuzz_target;

/// A head of a frame, so that the fuzzer need not find it.
const HEAD: [u8; 10] = [0x28, 0xB5, 0x2F, 0xFD, 0x84, 56, 0, 0, 0, 0];

fuzz_target!(|input: (u16, bool, &[u8], &[u8])| {
    let (raw_len, head, prefix, blocks) = input;
    let mut bytes = Vec::new();
    if head {
        bytes.extend(HEAD);
    }
    bytes.extend(blocks);
    let chunk = ChunkEntry {
        raw_offset: 1 << 20,
        raw_len: raw_len.into(),
        file_offset: 0,
        frame_len: bytes.len() as u32,
        digest: ChunkDigest::of(b"no chunk"),
        prefix_len: prefix.len() as u32,
        zeros: false,
    };
    let mut out = vec![1];
    let mut decoder = ChunkDecoder::new();
    assert!(decoder.decode_chunk(&chunk, prefix, &bytes, &mut out).is_err());
    assert!(out.is_empty());
});
