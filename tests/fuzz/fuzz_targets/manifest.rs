//! Any bytes in the place of the manifest: refused, or within all limits.
#![no_main]

use fwupdated::image::ManifestFrame;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|manifest: &[u8]| {
    let len = manifest.len() as u32;
    let mut file = 0x184D_2A5A_u32.to_le_bytes().to_vec();
    file.extend((20 + len).to_le_bytes());
    file.extend(b"FWUPDIMG");
    for number in [1, len, 0] {
        file.extend(u32::to_le_bytes(number));
    }
    file.extend(manifest);
    let frame = ManifestFrame::read(&mut file.as_slice());
    if let Ok(verified) = frame.and_then(|frame| frame.accept_unsigned()) {
        let manifest = verified.manifest();
        assert!(manifest.payload.size % 512 == 0 && manifest.index.size <= 64 << 20);
        assert_eq!(manifest.rootfs().size, manifest.payload.size);
    }
});
