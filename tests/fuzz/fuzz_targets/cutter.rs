//! Any bytes, cut with any parameters that a manifest may have: all of them, each piece within its bounds.
#![no_main]

use fwupdated::image::{Chunking, Cutter, limits::MAX_HOLE};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u16, u16, u16, u8, &[u8])| {
    let (min, average, max, zeros, bytes) = input;
    let average = u32::from(average).max(1);
    let chunking = Chunking {
        method: "gear".to_owned(),
        min: u32::from(min).min(average),
        average,
        max: average + u32::from(max),
    };
    let mut stream = bytes.to_vec();
    stream.resize(bytes.len() + usize::from(zeros) * 1024, 0);
    let mut cutter = Cutter::new(&chunking);
    let mut at = 0;
    while let Some(len) = cutter.next(&stream[at..], true) {
        assert!(len > 0 && len <= MAX_HOLE.max(chunking.max as usize));
        at += len;
    }
    assert_eq!(at, stream.len());
});
