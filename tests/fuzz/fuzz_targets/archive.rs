//! Update archives and the sparse images in them, with a bound on what may come out.
#![no_main]

use std::io::{self, Read};

use fwupdated::image::archive::payload;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    if let Ok(payload) = payload(file) {
        let _ = io::copy(&mut payload.bytes.take(8 << 20), &mut io::sink());
    }
});
