//! A good image with holes and linked chunks, damaged anywhere: refused, or the bytes that were signed for.
#![no_main]

use std::sync::LazyLock;

use fwupdated::image::{
    BuildOptions, ChunkDecoder, ImageError, ManifestFrame, Part, Signatures, build, check_payload,
};
use libfuzzer_sys::fuzz_target;

struct Good {
    raw: Vec<u8>,
    file: Vec<u8>,
    manifest: Vec<u8>,
}

static GOOD: LazyLock<Good> = LazyLock::new(|| {
    let mut raw: Vec<u8> = (0..200_u32 << 10).map(|n| (n * n >> 7) as u8).collect();
    raw[40_000..160_000].fill(0);
    let created = "2026-01-02T03:04:05Z".parse().unwrap();
    let options = BuildOptions::new("n", "1", &["b"], created);
    let part = Part { target: "rootfs", size: raw.len() as u64, input: raw.as_slice() };
    let mut frames = Vec::new();
    let built = build(vec![part], &options, &mut frames, &mut |_| ()).unwrap();
    let mut file = Vec::new();
    built.assemble(&Signatures::none(), &mut frames.as_slice(), &mut file).unwrap();
    let manifest = built.manifest_bytes().to_vec();
    Good { raw, file, manifest }
});

fn install(mut file: &[u8], good: &Good) -> Result<(), ImageError> {
    let header = ManifestFrame::read(&mut file)?.accept_unsigned()?.read_index(&mut file)?;
    if header.manifest_bytes() != good.manifest {
        // A signature would have refused it.
        return Ok(());
    }
    let mut rest = file;
    let (mut decoder, mut raw, mut slot) = (ChunkDecoder::new(), Vec::new(), Vec::new());
    for chunk in header.chunks() {
        let (bytes, more) = rest
            .split_at_checked(chunk.frame_len as usize)
            .ok_or(ImageError::Trailing)?;
        rest = more;
        let prefix = &slot[slot.len() - chunk.prefix_len as usize..];
        decoder.decode_chunk(&chunk, prefix, bytes, &mut raw)?;
        slot.extend_from_slice(&raw);
    }
    assert!(slot == good.raw);
    check_payload(&header, &mut file, &mut |_| ())
}

fuzz_target!(|damage: (Vec<(u16, u8)>, u16)| {
    let good = &*GOOD;
    let mut file = good.file.clone();
    for (at, byte) in damage.0 {
        let at = usize::from(at) % file.len();
        file[at] ^= byte;
    }
    file.truncate(file.len() - usize::from(damage.1) % file.len());
    let _ = install(&file, good);
});
