//! Random operations against plain memory.

use proptest::prelude::*;

use super::{
    super::{HEAD_BYTES, Neighbours, SlotPart, SlotSet},
    disk::FakeDisk,
    pattern,
};

/// What may be done to a slot.
#[derive(Debug, Clone)]
enum Act {
    Read,
    Sync,
    Write(Neighbours),
    /// What the slot holds there already.
    WriteSame,
    Zero,
}

fn act() -> impl Strategy<Value = Act> {
    let hint = (any::<bool>(), any::<bool>());
    prop_oneof![
        2 => Just(Act::Read),
        1 => Just(Act::Sync),
        5 => hint.prop_map(|(before, after)| Act::Write(Neighbours { before, after })),
        1 => Just(Act::WriteSame),
        3 => Just(Act::Zero),
    ]
}

/// A place from 0 to 1, a length, what to do.
fn steps() -> impl Strategy<Value = Vec<(f64, usize, Act)>> {
    let length = prop_oneof![0_usize..300, 0_usize..40_000];
    prop::collection::vec((0.0..1.0_f64, length, act()), 1..40)
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss
)]
fn range(place: f64, length: usize, size: usize) -> std::ops::Range<usize> {
    // Often at a border of units, where the cases are.
    let start = (place * size as f64) as usize;
    let start = if length.is_multiple_of(3) {
        start / 4096 * 4096
    } else {
        start
    };
    start..size.min(start + length)
}

#[test]
fn a_read_over_the_end_of_the_head_is_right_although_the_first_write_of_all_still_waits_behind_it()
{
    let head = usize::try_from(HEAD_BYTES).unwrap();
    let mut model = pattern(21, 2 * head);
    let mut writer = FakeDisk::new(&model, 1).writer();
    let bytes = pattern(100, 3822);
    writer.write_at(HEAD_BYTES, &bytes).unwrap();
    model[head..head + bytes.len()].copy_from_slice(&bytes);
    let mut found = vec![0; 2000];
    writer.read_at(HEAD_BYTES - 1000, &mut found).unwrap();
    assert!(found == model[head - 1000..head + 1000]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Any ranges, in any order, with holes, hints, reads and syncs between: the slot ends as a plain array
    /// would, and shows that array at any time.
    #[test]
    fn the_slot_ends_as_if_it_were_plain_memory(
        block in prop::sample::select(vec![1_usize, 512, 4096]),
        blocks in 1_usize..80,
        odd in 0_usize..4096,
        zeroes in any::<bool>(),
        steps in steps(),
    ) {
        let size = blocks * 4096 + if block == 4096 { 0 } else { odd / block * block };
        let mut model = pattern(21, size);
        let disk = FakeDisk::new(&model, block);
        let disk = if zeroes { disk } else { disk.without_zeroing() };
        let mut writer = disk.writer();
        for (number, (place, length, act)) in steps.into_iter().enumerate() {
            let range = range(place, length, size);
            let start = range.start as u64;
            match act {
                Act::Read => {
                    let mut found = vec![0; range.len()];
                    writer.read_at(start, &mut found).unwrap();
                    prop_assert_eq!(&found, &model[range]);
                }
                Act::Sync => writer.sync().unwrap(),
                Act::Write(later) => {
                    let bytes = pattern(100 + number as u64, range.len());
                    writer.write_piece(start, &bytes, later).unwrap();
                    model[range].copy_from_slice(&bytes);
                }
                Act::WriteSame => writer.write_at(start, &model[range]).unwrap(),
                Act::Zero => {
                    writer.zero_at(start, range.len() as u64).unwrap();
                    model[range].fill(0);
                }
            }
        }
        let report = writer.finish().unwrap();
        prop_assert_eq!(disk.contents(), model);
        prop_assert!(disk.all_is_durable());
        prop_assert_eq!(report.bytes_unreadable, 0);
        prop_assert_eq!(report.writes, disk.writes().len() as u64);
        let written: usize = disk.writes().iter().map(|(_, length)| length).sum();
        prop_assert_eq!(
            report.bytes_written + report.bytes_zeroed + report.bytes_discarded,
            written as u64
        );
    }

    /// Three partitions are one array; what lies behind each part is left alone.
    #[test]
    fn several_partitions_end_as_if_they_were_one_plain_memory(
        lengths in prop::collection::vec((1_usize..50_000, 0_usize..3), 1..4),
        steps in steps(),
    ) {
        let disk = |number: usize, (length, spare): (usize, usize)| {
            let contents = pattern(50 + number as u64, (length / 4096 + 1 + spare) * 4096);
            FakeDisk::new(&contents, 512)
        };
        let disks: Vec<_> = lengths.iter().enumerate().map(|(n, l)| disk(n, *l)).collect();
        let before: Vec<_> = disks.iter().map(FakeDisk::contents).collect();
        let parts: Vec<_> = lengths
            .iter()
            .map(|(length, _)| SlotPart::new("/dev/fake".as_ref(), *length as u64))
            .collect();
        let writers = disks.iter().map(FakeDisk::writer).collect();
        let mut set = SlotSet::over(&parts, writers).unwrap();
        let mut model: Vec<u8> = lengths
            .iter()
            .zip(&before)
            .flat_map(|((length, _), contents)| contents[..*length].to_vec())
            .collect();
        prop_assert_eq!(set.length(), model.len() as u64);
        for (number, (place, length, act)) in steps.into_iter().enumerate() {
            let range = range(place, length, model.len());
            let start = range.start as u64;
            match act {
                Act::Read => {
                    let mut found = vec![0; range.len()];
                    set.read_at(start, &mut found).unwrap();
                    prop_assert_eq!(&found, &model[range]);
                }
                Act::Sync => set.sync().unwrap(),
                Act::Write(later) => {
                    let bytes = pattern(100 + number as u64, range.len());
                    set.write_piece(start, &bytes, later).unwrap();
                    model[range].copy_from_slice(&bytes);
                }
                Act::WriteSame => set.write_at(start, &model[range]).unwrap(),
                Act::Zero => {
                    set.zero_at(start, range.len() as u64).unwrap();
                    model[range].fill(0);
                }
            }
        }
        set.finish().unwrap();
        let mut rest = &model[..];
        for ((disk, before), (length, _)) in disks.iter().zip(&before).zip(&lengths) {
            let (part, later) = rest.split_at(*length);
            rest = later;
            prop_assert_eq!(&disk.contents()[..*length], part);
            prop_assert_eq!(&disk.contents()[*length..], &before[*length..]);
            prop_assert!(disk.all_is_durable());
        }
    }
}
