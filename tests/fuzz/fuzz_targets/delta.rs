//! Any bytes as the table of a static delta, and any frames behind it: no panic, nothing beyond the limits.
#![no_main]

use std::sync::LazyLock;

use fwupdated::image::{
    BuildOptions, Header, ManifestFrame, Part, Signatures, build,
    delta::{DeltaHead, MAX_DICTIONARY, MAX_PATCH, MAX_REGIONS, PatchDecoder},
    manifest::ROOTFS,
};
use libfuzzer_sys::fuzz_target;

const OLD_SIZE: u64 = 1 << 20;

/// A new image of some dozen chunks.
static NEW: LazyLock<Header> = LazyLock::new(|| {
    let raw: Vec<u8> = (0..256_u32 * 1024)
        .map(|n| (n.wrapping_mul(n) >> 7) as u8)
        .collect();
    let options = BuildOptions::new("n", "1", &["b"], "2026-01-02T03:04:05Z".parse().unwrap());
    let part = Part {
        target: ROOTFS,
        input: &raw[..],
        size: raw.len() as u64,
    };
    let mut frames = Vec::new();
    let built = build(vec![part], &options, &mut frames, &mut |_| {}).unwrap();
    let mut file = Vec::new();
    built
        .assemble(&Signatures::none(), &mut &frames[..], &mut file)
        .unwrap();
    let mut reader = &file[..];
    let manifest = ManifestFrame::read(&mut reader)
        .and_then(|frame| frame.accept_unsigned())
        .unwrap();
    manifest.read_index(&mut reader).unwrap()
});

fuzz_target!(|input: (&[u8], &[u8])| {
    let (table, frames) = input;
    // As it is, it is hardly ever a delta.
    let _ = DeltaHead::read(&mut { frames });
    let packed = zstd::bulk::compress(table, 1).unwrap();
    let mut file = b"FWUPDLTA".to_vec();
    file.extend(1_u32.to_le_bytes());
    file.extend(OLD_SIZE.to_le_bytes());
    file.extend([0; 64]);
    file.extend((table.len() as u32).to_le_bytes());
    file.extend((packed.len() as u32).to_le_bytes());
    file.extend(&packed);
    let mut reader = &file[..];
    let head = DeltaHead::read(&mut reader).unwrap();
    let Ok(delta) = head.read_table(&mut reader, &NEW) else {
        return;
    };
    let chunks: Vec<_> = NEW.chunks().collect();
    let (mut decoder, mut raw) = (PatchDecoder::new(), Vec::new());
    for patch in delta.patches() {
        assert!(patch.regions.len() <= MAX_REGIONS);
        let mut dictionary = 0;
        for region in &patch.regions {
            assert!(region.offset + u64::from(region.len) <= OLD_SIZE);
            dictionary += region.len;
        }
        assert!(dictionary <= MAX_DICTIONARY);
        let numbers = patch.chunks.iter().cloned().flatten();
        let len: u32 = numbers.map(|number| chunks[number].raw_len).sum();
        assert!(len <= MAX_PATCH);
        let start = (patch.frame_offset - head.frames_offset()) as usize;
        if let Some(frame) = frames.get(start..start + patch.frame_len as usize)
            && decoder.decode(&[7; 100], frame, len, &mut raw).is_ok()
        {
            assert_eq!(raw.len(), len as usize);
        }
    }
});
