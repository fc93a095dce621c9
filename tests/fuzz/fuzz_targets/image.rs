//! A whole image behind a manifest whose digests fit, because a fuzzer cannot guess SHA-256: any index
//! entries, any frames, any end.
#![no_main]

use fwupdated::{
    image::{ManifestFrame, check_payload},
    update::digest::Sha256,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, u16, u32, u32, &[u8])| {
    let (chunks, split, boot, size, bytes) = input;
    let (entries, frames) = bytes.split_at(usize::from(split).min(bytes.len()));
    let index = [b"FWUPDIDX", entries].concat();
    // Whole sectors, in one partition or two.
    let (boot, size) = (u64::from(boot) * 512, u64::from(size) * 512);
    let any = Sha256::of(frames);
    let image = |target: &str, size: u64| format!(r#"{{"target":"{target}","size":{size},"sha256":"{any}"}}"#);
    let images = match boot {
        0 => image("rootfs", size),
        _ => format!("{},{}", image("boot", boot), image("rootfs", size)),
    };
    let manifest = format!(
        r#"{{"format":1,"name":"n","version":"1","compatible":["b"],"created":"2026-01-02T03:04:05Z",
        "securityEpoch":0,"payload":{{"size":{},"sha256":"{any}"}},"images":[{images}],
        "chunking":{{"method":"any"}},"index":{{"sha256":"{}","chunks":{chunks},"size":{}}}}}"#,
        boot + size,
        Sha256::of(&index),
        index.len(),
    );
    let mut file = 0x184D_2A5A_u32.to_le_bytes().to_vec();
    file.extend((20 + manifest.len() as u32).to_le_bytes());
    file.extend(b"FWUPDIMG");
    for number in [1, manifest.len() as u32, 0] {
        file.extend(number.to_le_bytes());
    }
    file.extend(manifest.as_bytes());
    file.extend(0x184D_2A5B_u32.to_le_bytes());
    file.extend((index.len() as u32).to_le_bytes());
    file.extend(&index);
    file.extend(frames);

    let mut reader = file.as_slice();
    let header = ManifestFrame::read(&mut reader)
        .and_then(|frame| frame.accept_unsigned())
        .and_then(|manifest| manifest.read_index(&mut reader));
    let Ok(header) = header else {
        return;
    };
    assert_eq!(header.chunks().count(), usize::from(chunks));
    let (mut raw, mut at) = (0, header.payload_offset());
    for chunk in header.chunks() {
        assert_eq!((chunk.raw_offset, chunk.file_offset), (raw, at));
        assert!(chunk.raw_len > 0 && u64::from(chunk.prefix_len) <= raw);
        raw += u64::from(chunk.raw_len);
        at += u64::from(chunk.frame_len);
        // No chunk spans the border of two partitions.
        assert!(boot == 0 || raw <= boot || chunk.raw_offset >= boot);
    }
    assert_eq!(raw, boot + size);
    let _ = check_payload(&header, &mut reader, &mut |_| ());
});
