//! Faults that no real device produces on demand: power cuts with any subset of the unsynced sectors
//! lost, errors of the nth request, sectors that cannot be read. Real devices are in
//! `tests/slot_writer.rs`.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex},
};

use proptest::prelude::*;

use super::*;
use crate::update::failure::Coded;

const SECTOR: usize = 512;

#[derive(Default)]
struct State {
    /// What survives a power cut for certain.
    durable: Vec<u8>,
    /// Sectors written since the last sync, in order.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Sectors that cannot be read until they are written.
    bad: BTreeSet<usize>,
    /// Writes and syncs so far, the failed one included.
    operations: usize,
    /// The operation that fails, and every one after it when the power is gone.
    fails_at: Option<usize>,
    power_cut: bool,
}

#[derive(Clone)]
struct FakeDisk {
    state: Arc<Mutex<State>>,
    block: usize,
    /// Whether it zeroes by itself.
    zeroes: bool,
}

impl FakeDisk {
    fn new(contents: &[u8], block: usize) -> Self {
        let state = State {
            durable: contents.to_vec(),
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            block,
            zeroes: true,
        }
    }

    fn failing_at(self, operation: usize, power_cut: bool) -> Self {
        {
            let mut state = self.state.lock().unwrap();
            state.fails_at = Some(operation);
            state.power_cut = power_cut;
        }
        self
    }

    fn writer(&self) -> SlotWriter {
        SlotWriter::over(Path::new("/dev/fake"), Box::new(self.clone()))
    }

    fn operations(&self) -> usize {
        self.state.lock().unwrap().operations
    }

    /// What is read now.
    fn contents(&self) -> Vec<u8> {
        self.after_cut(|_| true)
    }

    /// What is on the medium after the power failed now and of the unsynced sectors those survived that
    /// `survives` says.
    fn after_cut(&self, mut survives: impl FnMut(usize) -> bool) -> Vec<u8> {
        let state = self.state.lock().unwrap();
        let mut contents = state.durable.clone();
        for (number, (offset, bytes)) in state.unsynced.iter().enumerate() {
            if survives(number) {
                contents[*offset..*offset + bytes.len()].copy_from_slice(bytes);
            }
        }
        contents
    }
}

impl State {
    fn operation(&mut self) -> io::Result<()> {
        self.operations += 1;
        let failed = match self.fails_at {
            Some(at) if self.power_cut => self.operations >= at,
            Some(at) => self.operations == at,
            None => false,
        };
        if failed {
            Err(io::Error::other("injected"))
        } else {
            Ok(())
        }
    }
}

impl Medium for FakeDisk {
    fn capacity(&self) -> u64 {
        self.state.lock().unwrap().durable.len() as u64
    }

    fn block(&self) -> usize {
        self.block
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check_alignment(offset, buf);
        let start = at(offset);
        let state = self.state.lock().unwrap();
        if (start..start + buf.len()).any(|byte| state.bad.contains(&(byte / SECTOR))) {
            return Err(io::Error::other("unreadable sector"));
        }
        drop(state);
        buf.copy_from_slice(&self.contents()[start..start + buf.len()]);
        Ok(())
    }

    fn write(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.check_alignment(offset, buf);
        let mut state = self.state.lock().unwrap();
        let done = state.operation();
        // A failed write may have reached the medium in part: its sectors are up to the cut to decide.
        let mut start = at(offset);
        for sector in buf.chunks(SECTOR) {
            state.bad.remove(&(start / SECTOR));
            state.unsynced.push((start, sector.to_vec()));
            start += sector.len();
        }
        done
    }

    fn zero(&mut self, offset: u64, length: u64) -> io::Result<bool> {
        if !self.zeroes {
            return Ok(false);
        }
        let zeros = AlignedBuf::new(at(length));
        self.write(offset, &zeros)?;
        Ok(true)
    }

    fn next_data(&mut self, offset: u64, _end: u64) -> u64 {
        offset
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.operation()?;
        for (offset, bytes) in std::mem::take(&mut state.unsynced) {
            state.durable[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }
}

impl FakeDisk {
    fn check_alignment(&self, offset: u64, buf: &[u8]) {
        if self.block > 1 {
            assert!(offset.is_multiple_of(self.block as u64), "offset {offset}");
            assert!(buf.len().is_multiple_of(self.block), "length {}", buf.len());
            assert_eq!(buf.as_ptr().addr() % SECTOR, 0, "address of the buffer");
        }
        assert!(offset + buf.len() as u64 <= self.capacity());
    }
}

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

/// What the installer does: compare, write what differs, sync now and then, finish.
fn install(disk: &FakeDisk, image: &[u8], piece: usize) -> Result<WriteReport, SlotWriteError> {
    let mut writer = disk.writer();
    writer.check_fits(image.len() as u64)?;
    let mut held = vec![0; piece];
    for (number, wanted) in image.chunks(piece).enumerate() {
        let offset = (number * piece) as u64;
        let held = &mut held[..wanted.len()];
        // A place that cannot be read is a place that differs.
        if writer.read_at(offset, held).is_err() || held != wanted {
            writer.write_at(offset, wanted)?;
        }
        if number % 7 == 6 {
            writer.sync()?;
        }
    }
    writer.finish()
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
    (old, new)
}

#[test]
fn a_power_cut_at_any_write_or_sync_never_leaves_a_half_image_with_a_head() {
    let (old, new) = images(1);
    let disk = FakeDisk::new(&old, 512);
    install(&disk, &new, 29_000).unwrap();
    assert_eq!(disk.contents(), new);
    let operations = disk.operations();
    assert!(operations > 12, "{operations}");
    for cut in 1..=operations {
        let disk = FakeDisk::new(&old, 512).failing_at(cut, true);
        let error = install(&disk, &new, 29_000).unwrap_err();
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
            install(&resumed, &new, 29_000).unwrap();
            assert_eq!(resumed.contents(), new, "cut {cut}, seed {seed}");
            assert!(resumed.state.lock().unwrap().unsynced.is_empty());
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
            install(&disk, &new, 29_000).unwrap_err();
            let disk = disk.failing_at(killed + cut, true);
            // Late cuts find the second run finished.
            let _ = install(&disk, &new, 29_000);
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
        install(&disk, &new, 50_000).unwrap();
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
    let report = install(&disk, &new, 29_000).unwrap();
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
    let disk = FakeDisk::new(&old, 512);
    // One in the head, one inside a range that differs, one where a range ends.
    disk.state.lock().unwrap().bad = [3, 500, 29_000 * 15 / SECTOR].into();
    let report = install(&disk, &new, 29_000).unwrap();
    assert_eq!(disk.contents(), new);
    assert!(report.bytes_unreadable > 0);
    assert!(disk.state.lock().unwrap().bad.is_empty());
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Any ranges, in any order, with reads and syncs between: the slot ends as a plain array would.
    #[test]
    fn the_slot_ends_as_if_it_were_plain_memory(
        block in prop::sample::select(vec![1_usize, 512, 4096]),
        blocks in 1_usize..80,
        odd in 0_usize..4096,
        steps in prop::collection::vec((0.0..1.0_f64, 0_usize..40_000, 0_u8..4), 1..40),
    ) {
        let size = blocks * 4096 + if block == 1 { odd } else { 0 };
        let old = pattern(21, size);
        let mut model = old.clone();
        let disk = FakeDisk::new(&old, block);
        let mut writer = disk.writer();
        for (number, (place, length, kind)) in steps.into_iter().enumerate() {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let start = (place * size as f64) as usize;
            let end = size.min(start + length);
            match kind {
                0 => {
                    let mut found = vec![0; end - start];
                    writer.read_at(start as u64, &mut found).unwrap();
                    prop_assert_eq!(&found, &model[start..end]);
                }
                1 => writer.sync().unwrap(),
                _ => {
                    let bytes = pattern(100 + number as u64, end - start);
                    writer.write_at(start as u64, &bytes).unwrap();
                    model[start..end].copy_from_slice(&bytes);
                }
            }
        }
        writer.finish().unwrap();
        prop_assert_eq!(disk.contents(), model);
        prop_assert!(disk.state.lock().unwrap().unsynced.is_empty());
    }
}
