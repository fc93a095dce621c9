//! Key files, signature files, and verification of whatever they turn out to be.
#![no_main]

use fwupdated::image::{DetachedSignatures, PublicKey, Signature, Signatures, SigningKey, TrustStore};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = PublicKey::parse(bytes);
    let _ = DetachedSignatures::parse(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = SigningKey::needs_password(text);
    }
    if let Ok(signature) = Signature::from_file_content(bytes) {
        let mut all = Signatures::none();
        if all.add(signature).is_ok() {
            let nobody = TrustStore::default();
            assert!(nobody.verify(b"message", &all, 1).is_err());
        }
    }
});
