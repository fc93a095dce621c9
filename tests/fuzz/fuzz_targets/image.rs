//! A whole image behind a manifest whose digests fit, because a fuzzer cannot guess SHA-256: any index
//! entries, any frames, any end.
#![no_main]

use fwupdated::{
    image::{ManifestFrame, check_payload},
    update::digest::Sha256,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, u64, &[u8])| {
    let (chunks, size, bytes) = input;
    let chunks = usize::from(chunks % 8);
    let (entries, rest) = bytes.split_at(bytes.len().min(chunks * 40));
    let mut index = b"FWUPDIDX".to_vec();
    index.extend((chunks as u64).to_le_bytes());
    index.extend(entries);
    let payload = Sha256::of(rest);
    let manifest = format!(
        r#"{{"format":1,"name":"n","version":"1","compatible":["b"],"created":"2026-01-02T03:04:05Z",
        "securityEpoch":0,"payload":{{"size":{size},"sha256":"{payload}"}},
        "images":[{{"target":"rootfs","size":{size},"sha256":"{payload}"}}],
        "chunking":{{"method":"any"}},
        "index":{{"sha256":"{}","chunks":{chunks},"size":{}}}}}"#,
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
    file.extend(rest);

    let mut reader = file.as_slice();
    let header = ManifestFrame::read(&mut reader)
        .and_then(|frame| frame.accept_unsigned())
        .and_then(|manifest| manifest.read_index(&mut reader));
    if let Ok(header) = header {
        assert_eq!(header.index().len(), chunks);
        let _ = check_payload(&header, &mut reader, &mut |_| ());
    }
});
