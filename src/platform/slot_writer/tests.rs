//! Faults that no real device produces on demand: power cuts with any subset of the unsynced sectors
//! lost, errors of the nth request, sectors that cannot be read. Real devices are in
//! `tests/slot_writer.rs`.

mod disk;
mod holes;
mod model;
mod several;
mod wear;

use self::disk::{FakeDisk, SECTOR};
use super::*;
use crate::update::failure::Coded;

/// Bytes without a zero, different for each `seed` and place.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u8::try_from(state % 255).unwrap() + 1
    };
    (0..length).map(|_| next()).collect()
}

/// In what order an image is written.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Order {
    /// From begin to end.
    Straight,
    /// Every other piece, then the others, as when some come from elsewhere.
    Jumping,
}

/// What the installer does: compare, write what differs, make holes, sync now and then, finish.
fn install(
    disk: &FakeDisk,
    image: &[u8],
    piece: usize,
    order: Order,
) -> Result<WriteReport, SlotWriteError> {
    let mut writer = disk.writer();
    writer.check_fits(image.len() as u64)?;
    fill(image, piece, order, |step| match step {
        Step::Piece(offset, wanted, later) => {
            let mut held = vec![0; wanted.len()];
            // A place that cannot be read is a place that differs.
            if writer.read_at(offset, &mut held).is_ok() && held == wanted {
                Ok(())
            } else if wanted.iter().all(|byte| *byte == 0) {
                writer.zero_at(offset, wanted.len() as u64)
            } else {
                writer.write_piece(offset, wanted, later)
            }
        }
        Step::Sync => writer.sync(),
    })?;
    writer.finish()
}

enum Step<'a> {
    Piece(u64, &'a [u8], Neighbours),
    Sync,
}

/// Gives `image` in pieces, and syncs between them, to `act`.
fn fill<'a>(
    image: &'a [u8],
    piece: usize,
    order: Order,
    mut act: impl FnMut(Step<'a>) -> Result<(), SlotWriteError>,
) -> Result<(), SlotWriteError> {
    let pieces: Vec<_> = image.chunks(piece).enumerate().collect();
    let (first, second): (Vec<_>, Vec<_>) = pieces
        .iter()
        .partition(|(number, _)| order == Order::Straight || number % 2 == 1);
    for (pass, pieces) in [first, second].into_iter().enumerate() {
        let jumped = order == Order::Jumping && pass == 0;
        let later = Neighbours {
            before: jumped,
            after: jumped,
        };
        for (number, bytes) in pieces {
            act(Step::Piece((number * piece) as u64, bytes, later))?;
            if number % 7 == 6 {
                act(Step::Sync)?;
            }
        }
    }
    Ok(())
}

/// The three things a medium may hold at any instant, from the module's documentation.
fn assert_never_half(medium: &[u8], old: &[u8], new: &[u8], when: &str) {
    let (first, rest) = medium.split_at(FIRST_BYTES);
    let sectors_of = |image: &[u8]| {
        first
            .chunks(SECTOR)
            .zip(image.chunks(SECTOR))
            .all(|(found, wanted)| found == wanted || found.iter().all(|byte| *byte == 0))
    };
    let blank = first.iter().all(|byte| *byte == 0);
    let is_old = sectors_of(old) && rest == &old[FIRST_BYTES..];
    let is_new = sectors_of(new) && rest == &new[FIRST_BYTES..];
    assert!(blank || is_old || is_new, "a half image has a head: {when}");
    // btrfs: its superblock at 64 KiB counts, whatever the first block holds.
    let superblock = 0x1_0000..0x1_0000 + SECTOR;
    let body = &medium[at(HEAD_BYTES)..];
    for (image, which) in [(old, "old"), (new, "new")] {
        let there = medium[superblock.clone()] == image[superblock.clone()];
        assert!(
            !there || body == &image[at(HEAD_BYTES)..],
            "the superblock at 64 KiB is {which}, the rest is not: {when}"
        );
    }
}

const SIZE: usize = 600 * 1024;

/// An old and a new image that share some ranges, among them a part of the head.
fn images(seed: u64) -> (Vec<u8>, Vec<u8>) {
    let old = pattern(seed, SIZE);
    let mut new = pattern(seed + 1, SIZE);
    for range in [2000..9000, 70_000..100_000, 200_000..420_000] {
        new[range.clone()].copy_from_slice(&old[range]);
    }
    // Holes: in the head, over whole pieces of the installer, and with odd ends.
    for range in [30_000..50_000, 143_000..190_000, 460_000..555_555] {
        new[range].fill(0);
    }
    (old, new)
}

#[test]
fn a_power_cut_at_any_write_or_sync_never_leaves_a_half_image_with_a_head() {
    cut_everywhere(Order::Straight);
}

#[test]
fn a_power_cut_while_units_wait_never_leaves_a_half_image_with_a_head() {
    cut_everywhere(Order::Jumping);
}

fn cut_everywhere(order: Order) {
    let (old, new) = images(1);
    let disk = FakeDisk::new(&old, 512);
    install(&disk, &new, 29_000, order).unwrap();
    assert_eq!(disk.contents(), new);
    let operations = disk.operations();
    assert!(operations > 12, "{operations}");
    for cut in 1..=operations {
        let disk = FakeDisk::new(&old, 512).failing_at(cut, true);
        let error = install(&disk, &new, 29_000, order).unwrap_err();
        assert!(
            ["slot-write-failed", "slot-sync-failed"].contains(&error.code()),
            "{error}"
        );
        for seed in 0..12 {
            let dice = pattern(seed * 1000 + cut as u64, 20_000);
            let survives = |n: usize| match seed {
                0 => false,
                1 => true,
                // Only the last sectors or only the first ones, then any mixture.
                2 => n % 9 == 8,
                _ => dice[n % dice.len()].is_multiple_of(2),
            };
            let left = disk.after_cut(survives);
            assert_never_half(&left, &old, &new, &format!("cut {cut}, seed {seed}"));

            let resumed = FakeDisk::new(&left, 512);
            install(&resumed, &new, 29_000, order).unwrap();
            assert_eq!(resumed.contents(), new, "cut {cut}, seed {seed}");
            assert!(resumed.all_is_durable());
        }
    }
}

/// A killed process leaves the device's cache unsynced; the next run reads a blank head from there.
#[test]
fn a_head_that_only_looks_blank_is_synced_before_anything_else_is_written() {
    let (old, new) = images(13);
    for killed in 1..=4 {
        for cut in 1..=20 {
            let disk = FakeDisk::new(&old, 512).failing_at(killed, true);
            install(&disk, &new, 29_000, Order::Straight).unwrap_err();
            let disk = disk.failing_at(killed + cut, true);
            // Late cuts find the second run finished.
            let _ = install(&disk, &new, 29_000, Order::Straight);
            for seed in 0..6 {
                let dice = pattern(seed * 77 + cut as u64, 20_000);
                let left = disk.after_cut(|n| dice[n % dice.len()].is_multiple_of(2));
                assert_never_half(&left, &old, &new, &format!("{killed}, {cut}, {seed}"));
            }
        }
    }
}

#[test]
fn an_error_of_any_write_or_sync_poisons_the_writer() {
    let (old, new) = images(3);
    let operations = {
        let disk = FakeDisk::new(&old, 4096);
        install(&disk, &new, 50_000, Order::Straight).unwrap();
        disk.operations()
    };
    for failing in 1..=operations {
        let disk = FakeDisk::new(&old, 4096).failing_at(failing, false);
        let mut writer = disk.writer();
        let mut failed = None;
        for (number, bytes) in new.chunks(50_000).enumerate() {
            let offset = (number * 50_000) as u64;
            let done = writer.write_at(offset, bytes).and_then(|()| writer.sync());
            match (done, &failed) {
                (Ok(()), None) => {}
                (Err(error), None) => {
                    assert_ne!(error.code(), "slot-poisoned");
                    failed = Some(error);
                }
                (Err(error), Some(_)) => assert_eq!(error.code(), "slot-poisoned"),
                (Ok(()), Some(_)) => panic!("write {number} succeeded after a failed one"),
            }
        }
        if failed.is_some() {
            assert_eq!(
                writer.read_at(0, &mut [0; 16]).unwrap_err().code(),
                "slot-poisoned"
            );
            assert_eq!(writer.finish().unwrap_err().code(), "slot-poisoned");
        } else {
            writer.finish().unwrap_err();
        }
        assert_never_half(&disk.contents(), &old, &new, &format!("error {failing}"));
    }
}

#[test]
fn a_slot_that_holds_everything_is_synced_but_not_written() {
    let (_, new) = images(5);
    let disk = FakeDisk::new(&new, 512);
    let report = install(&disk, &new, 29_000, Order::Straight).unwrap();
    assert_eq!(
        (report.bytes_written, report.writes, report.syncs > 0),
        (0, 0, true)
    );
}

#[test]
fn a_head_found_right_in_place_is_restored_when_something_else_differs() {
    let (old, _) = images(7);
    let mut new = old.clone();
    new[500_001] ^= 0xff;
    let disk = FakeDisk::new(&old, 512);
    let mut writer = disk.writer();
    let mut held = vec![0; 150_000];
    writer.read_at(0, &mut held).unwrap();
    assert_eq!(held, new[..150_000]);
    writer.write_at(500_001, &new[500_001..500_002]).unwrap();
    writer.sync().unwrap();
    assert!(disk.contents()[..at(HEAD_BYTES)].iter().all(|b| *b == 0));
    // Reading goes on to show the slot as it will be.
    writer.read_at(0, &mut held).unwrap();
    assert_eq!(held, new[..150_000]);
    writer.finish().unwrap();
    assert_eq!(disk.contents(), new);
}

#[test]
fn dropping_a_writer_leaves_the_head_blank_only_if_something_was_written() {
    let (old, new) = images(9);
    let disk = FakeDisk::new(&old, 512);
    let mut writer = disk.writer();
    writer.read_at(0, &mut [0; 4096]).unwrap();
    writer.sync().unwrap();
    drop(writer);
    assert_eq!(disk.contents(), old);
    let mut writer = disk.writer();
    writer.write_at(0, &new[..10]).unwrap();
    drop(writer);
    let left = disk.contents();
    assert!(left[..at(HEAD_BYTES)].iter().all(|byte| *byte == 0));
    assert_eq!(left[at(HEAD_BYTES)..], old[at(HEAD_BYTES)..]);
}

#[test]
fn nothing_is_written_past_the_end_and_the_writer_goes_on() {
    let disk = FakeDisk::new(&[1; 64 * 1024], 512);
    let mut writer = disk.writer();
    assert_eq!(
        writer.check_fits(65_537).unwrap_err().code(),
        "slot-too-small"
    );
    let error = writer.write_at(65_000, &[2; 1000]).unwrap_err();
    assert_eq!(error.code(), "slot-too-small");
    assert!(writer.write_at(u64::MAX, &[2]).is_err());
    assert_eq!(disk.contents(), [1; 64 * 1024]);
    writer.write_at(64_536, &[2; 1000]).unwrap();
    writer.finish().unwrap();
    assert_eq!(disk.contents()[64_535..64_537], [1, 2]);
}

#[test]
fn unreadable_sectors_heal_by_being_written() {
    let (old, new) = images(11);
    // One in the head, one inside a range that differs, one where a range ends, one in a hole.
    let bad = [3, 870, 29_000 * 15 / SECTOR, 300];
    let disk = FakeDisk::new(&old, 512).with_bad_sectors(&bad);
    let report = install(&disk, &new, 29_000, Order::Straight).unwrap();
    assert_eq!(disk.contents(), new);
    assert!(report.bytes_unreadable > 0);
    assert_eq!(disk.bad_sectors(), 0);
}

#[test]
fn sequential_writing_makes_few_large_requests() {
    let old = pattern(1, 8 * REQUEST_BYTES);
    let new = pattern(2, 8 * REQUEST_BYTES);
    let disk = FakeDisk::new(&old, 512);
    let mut writer = disk.writer();
    for (number, bytes) in new.chunks(10_007).enumerate() {
        writer.write_at((number * 10_007) as u64, bytes).unwrap();
    }
    let report = writer.finish().unwrap();
    assert_eq!(disk.contents(), new);
    // Eight for the body, two to wipe the head, two to write it.
    assert_eq!(report.writes, 12);
    assert_eq!(
        report.bytes_written,
        (8 * REQUEST_BYTES) as u64 + HEAD_BYTES
    );
}
