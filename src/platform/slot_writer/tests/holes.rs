//! Holes: made where they are missing, by the device where it can, and nowhere else.

use super::{
    super::{HEAD_BYTES, REQUEST_BYTES, UNIT, at},
    disk::FakeDisk,
    pattern,
};

const SIZE: usize = 3 * REQUEST_BYTES;

#[test]
fn zeros_that_are_there_already_cost_nothing() {
    let mut old = pattern(1, SIZE);
    old[10_000..3_000_000].fill(0);
    let disk = FakeDisk::new(&old, 512);
    let mut writer = disk.writer();
    writer.zero_at(10_000, 2_990_000).unwrap();
    let report = writer.finish().unwrap();
    assert_eq!(report.writes, 0);
    assert_eq!(report.bytes_skipped, 2_990_000);
    assert_eq!(disk.contents(), old);
}

#[test]
fn a_device_that_zeroes_by_itself_is_told_once_and_nothing_is_written() {
    let mut old = pattern(1, SIZE);
    let disk = FakeDisk::new(&old, 512);
    let (start, end) = (at(HEAD_BYTES), SIZE);
    let mut writer = disk.writer();
    writer.zero_at(start as u64, (end - start) as u64).unwrap();
    let report = writer.finish().unwrap();
    old[start..end].fill(0);
    assert_eq!(disk.contents(), old);
    assert_eq!(report.bytes_discarded, (end - start) as u64);
    assert_eq!(report.bytes_zeroed, 0);
    // The head's wiping and writing, nothing else.
    assert_eq!(report.bytes_written, 2 * HEAD_BYTES);
    assert_eq!(report.writes, 5);
}

#[test]
fn a_device_that_cannot_gets_zeros_written_where_there_are_none() {
    let mut old = pattern(1, SIZE);
    old[1_048_576..2_097_152].fill(0);
    let disk = FakeDisk::new(&old, 4096).without_zeroing();
    let mut writer = disk.writer();
    let start = at(HEAD_BYTES);
    writer.zero_at(HEAD_BYTES, (SIZE - start) as u64).unwrap();
    let report = writer.finish().unwrap();
    old[start..].fill(0);
    assert_eq!(disk.contents(), old);
    assert_eq!(report.bytes_zeroed, (SIZE - start - 1_048_576) as u64);
    assert_eq!(report.bytes_skipped, 1_048_576);
    assert_eq!(report.bytes_discarded, 0);
}

#[test]
fn not_a_byte_beside_a_hole_changes() {
    for (start, length) in [
        (300_000, 1),
        (300_000, 100),
        (299_999, 4096),
        (299_008, 4096),
        (299_008 + 4000, 200),
        (299_008 + 4095, 4098),
        (300_001, 1_500_000),
        (SIZE - 5000, 5000),
        (SIZE - 1, 1),
        (0, SIZE),
        (100, 200_000),
        (131_000, 200),
    ] {
        for zeroes in [true, false] {
            let mut old = pattern(3, SIZE);
            let disk = FakeDisk::new(&old, 512);
            let disk = if zeroes { disk } else { disk.without_zeroing() };
            let mut writer = disk.writer();
            writer.zero_at(start as u64, length as u64).unwrap();
            writer.finish().unwrap();
            old[start..start + length].fill(0);
            assert!(disk.contents() == old, "{start} {length}");
        }
    }
}

#[test]
fn a_hole_replaces_what_was_gathered_and_what_waits_in_it() {
    let mut old = pattern(5, SIZE);
    let disk = FakeDisk::new(&old, 512);
    let mut writer = disk.writer();
    let both = super::Neighbours {
        before: true,
        after: true,
    };
    // A unit waits in the middle of the hole to come, and gathered bytes reach into it.
    writer.write_piece(500_100, &[7; 50], both).unwrap();
    writer.sync().unwrap();
    writer.write_at(399_000, &[8; 5000]).unwrap();
    writer.zero_at(400_000, 200_000).unwrap();
    writer.write_at(599_900, &[9; 10]).unwrap();
    writer.finish().unwrap();
    old[399_000..400_000].fill(8);
    old[400_000..600_000].fill(0);
    old[599_900..599_910].fill(9);
    assert!(disk.contents() == old);
}

#[test]
fn scattered_rests_of_data_in_a_hole_are_few_requests() {
    let mut old = vec![0; SIZE];
    for place in (at(HEAD_BYTES)..SIZE).step_by(50_000) {
        old[place] = 1;
    }
    let disk = FakeDisk::new(&old, 512);
    let mut writer = disk.writer();
    writer.zero_at(0, SIZE as u64).unwrap();
    let report = writer.finish().unwrap();
    assert!(disk.contents().iter().all(|byte| *byte == 0));
    // The head was blank, so it is not wiped: one zeroing, two writes for the head.
    assert_eq!(report.writes, 3);
    assert!(report.bytes_discarded >= (SIZE - at(HEAD_BYTES) - 50_000 - UNIT) as u64);
}
