//! What is right is not written, what two pieces share is written once, and looking stays cheap.

use super::{
    super::{HEAD_BYTES, Neighbours, REQUEST_BYTES, SlotWriter, UNIT, at},
    disk::FakeDisk,
    pattern,
};

const SIZE: usize = 8 * REQUEST_BYTES;

#[test]
fn of_a_piece_only_the_units_that_differ_are_written() {
    let old = pattern(1, SIZE);
    let mut new = old.clone();
    new[1_000_000] ^= 1;
    new[1_020_000] ^= 1;
    let disk = FakeDisk::new(&old, 512);
    let mut writer = disk.writer();
    // A chunk with odd ends around both.
    writer.write_at(990_001, &new[990_001..1_050_003]).unwrap();
    let report = writer.finish().unwrap();
    assert_eq!(disk.contents(), new);
    assert_eq!(report.bytes_written, 2 * HEAD_BYTES + 2 * UNIT as u64);
}

#[test]
fn an_image_that_is_there_already_is_not_written_though_nobody_compared() {
    let image = pattern(1, SIZE);
    let disk = FakeDisk::new(&image, 512);
    let mut writer = disk.writer();
    for (number, bytes) in image.chunks(50_001).enumerate() {
        writer.write_at(number as u64 * 50_001, bytes).unwrap();
    }
    let report = writer.finish().unwrap();
    assert_eq!(report.writes, 0);
    assert_eq!(report.bytes_skipped, SIZE as u64);
}

#[test]
fn a_slot_full_of_something_else_is_hardly_read() {
    let disk = FakeDisk::new(&pattern(1, 3 * SIZE), 512);
    let new = pattern(2, 3 * SIZE);
    let mut writer = disk.writer();
    for (number, bytes) in new.chunks(SIZE).enumerate() {
        writer.write_at((number * SIZE) as u64, bytes).unwrap();
        writer.sync().unwrap();
    }
    writer.finish().unwrap();
    assert!(disk.contents() == new);
    // 24 requests: the first few are looked at, then one in 2, 4, 8, ...
    let read = disk.bytes_read();
    assert!(read <= 9 * REQUEST_BYTES, "{read}");
}

/// Every other chunk first, then the rest: bytes written apart from the head's.
fn jumping(hints: bool) -> u64 {
    let disk = FakeDisk::new(&pattern(1, SIZE), 512);
    let new = pattern(2, SIZE);
    let mut writer = disk.writer();
    let pieces: Vec<_> = new.chunks(15_001).enumerate().collect();
    for pass in 0..2 {
        for (number, bytes) in pieces.iter().filter(|(number, _)| number % 2 == pass) {
            let later = Neighbours {
                before: hints && pass == 0 && *number > 0,
                after: hints && pass == 0 && number + 1 < pieces.len(),
            };
            writer
                .write_piece(*number as u64 * 15_001, bytes, later)
                .unwrap();
        }
        writer.sync().unwrap();
    }
    let report = writer.finish().unwrap();
    assert!(disk.contents() == new);
    report.bytes_written - 2 * HEAD_BYTES
}

#[test]
fn a_unit_that_two_pieces_share_is_written_once_when_the_second_is_announced() {
    let body = SIZE as u64 - HEAD_BYTES;
    assert_eq!(jumping(true), body);
    // Without the hint each border costs a unit.
    assert!(jumping(false) > body + body / 8);
}

#[test]
fn more_waiting_units_than_there_is_room_for_are_written_and_right() {
    let size = 1400 * 8192;
    let disk = FakeDisk::new(&pattern(1, size), 512);
    let new = pattern(2, size);
    let later = Neighbours {
        before: true,
        after: true,
    };
    let mut writer = disk.writer();
    // One unit in two gets 100 bytes.
    for place in (0..size).step_by(8192) {
        writer
            .write_piece(place as u64 + 50, &new[place + 50..place + 150], later)
            .unwrap();
    }
    let mut found = vec![0; size];
    writer.read_at(0, &mut found).unwrap();
    let mut wanted = pattern(1, size);
    for place in (0..size).step_by(8192) {
        wanted[place + 50..place + 150].copy_from_slice(&new[place + 50..place + 150]);
    }
    assert!(found == wanted);
    writer.finish().unwrap();
    assert!(disk.contents() == wanted);
}

#[test]
fn requests_end_where_a_multiple_of_their_size_does() {
    let disk = FakeDisk::new(&pattern(1, SIZE), 512);
    let mut writer = disk.writer();
    writer.write_at(1_500_000, &pattern(2, 5_000_000)).unwrap();
    writer.finish().unwrap();
    let body: Vec<_> = disk.writes();
    let body = body.iter().filter(|(start, _)| *start >= at(HEAD_BYTES));
    for (start, length) in body {
        assert!(
            start % REQUEST_BYTES + length <= REQUEST_BYTES,
            "{start} {length}"
        );
    }
}

#[test]
fn a_writer_may_be_given_to_another_thread() {
    fn check<T: Send>(_: T) {}
    check::<Option<SlotWriter>>(None);
    check::<Option<super::super::SlotSet>>(None);
}
