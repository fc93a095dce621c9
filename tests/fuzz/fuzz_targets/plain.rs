//! Plain images of every compression, with a bound on what may come out.
#![no_main]

use std::io::{self, Read};

use fwupdated::image::{ImageKind, plain_decoder};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    if let Ok(ImageKind::Plain(kind)) = ImageKind::detect(file)
        && let Ok(decoder) = plain_decoder(kind, file)
    {
        let _ = io::copy(&mut decoder.take(8 << 20), &mut io::sink());
    }
});
