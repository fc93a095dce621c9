//! A valid image of two partitions, with holes, whose payload was changed here and there or cut: each chunk is the
//! right bytes or an error, and the whole is found good only if it is.
#![no_main]

use std::{num::NonZeroUsize, sync::LazyLock};

use fwupdated::image::{
    BuildOptions, ChunkDecoder, Header, ManifestFrame, Part, Signatures, build, check_payload,
};
use libfuzzer_sys::fuzz_target;

/// The file, and what it decompresses to.
static IMAGE: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
    let text = |from: u64, count: u64| {
        let lines = (from..from + count).map(|n| format!("{}: {}\n", n % 97, n * n % 8191));
        lines.collect::<String>().into_bytes()
    };
    let mut boot = text(0, 900);
    boot.resize(boot.len().next_multiple_of(4096) + (80 << 10), 0);
    let mut rootfs = [text(400, 2000), vec![0; 70 << 10], text(0, 900)].concat();
    rootfs.resize(rootfs.len().next_multiple_of(512), 7);
    let options = BuildOptions {
        chunk_size: 2048,
        level: 3,
        threads: NonZeroUsize::MIN,
        ..BuildOptions::new("n", "1", &["b"], "2026-01-02T03:04:05Z".parse().unwrap())
    };
    let part = |target, input| Part::<&[u8]> { target, input, size: input.len() as u64 };
    let parts = vec![part("boot", &boot[..]), part("rootfs", &rootfs[..])];
    let mut frames = Vec::new();
    let built = build(parts, &options, &mut frames, &mut |_| ()).unwrap();
    let mut file = Vec::new();
    built.assemble(&Signatures::none(), &mut frames.as_slice(), &mut file).unwrap();
    (file, [boot, rootfs].concat())
});

fn header(mut file: &[u8]) -> Header {
    let frame = ManifestFrame::read(&mut file).unwrap();
    frame.accept_unsigned().unwrap().read_index(&mut file).unwrap()
}

fuzz_target!(|input: (u16, Vec<(u16, u8)>)| {
    let (cut, edits) = input;
    let (good, raw) = &*IMAGE;
    let header = header(good);
    let payload = usize::try_from(header.payload_offset()).unwrap();
    let mut file = good.clone();
    for (at, change) in edits {
        let at = payload + usize::from(at) % (file.len() - payload);
        file[at] ^= change;
    }
    file.truncate(file.len() - usize::from(cut) % (file.len() - payload));
    let mut decoder = ChunkDecoder::new();
    let mut out = Vec::new();
    for chunk in header.chunks() {
        let place = |offset: u64, length: u32| offset as usize..offset as usize + length as usize;
        let Some(bytes) = file.get(place(chunk.file_offset, chunk.frame_len)) else {
            break;
        };
        let place = place(chunk.raw_offset, chunk.raw_len);
        let prefix = &raw[place.start - chunk.prefix_len as usize..place.start];
        match decoder.decode_chunk(&chunk, prefix, bytes, &mut out) {
            Ok(()) => assert!(out == raw[place]),
            Err(_) => assert!(out.is_empty()),
        }
    }
    let whole = check_payload(&header, &mut &file[payload..], &mut |_| ());
    assert!(whole.is_ok() || file != *good);
    assert!(whole.is_err() || file.len() == good.len());
});
