//! Any bytes as a file: its frames, its signatures, its index.
#![no_main]

use fwupdated::image::{ImageKind, ManifestFrame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let _ = ImageKind::detect(file);
    let mut reader = file;
    let Ok(frame) = ManifestFrame::read(&mut reader) else {
        return;
    };
    for signature in frame.signatures().iter() {
        let _ = signature.key_id();
    }
    if let Ok(verified) = frame.accept_unsigned()
        && let Ok(header) = verified.read_index(&mut reader)
    {
        assert_eq!(header.payload_offset(), (file.len() - reader.len()) as u64);
    }
});
