//! Several partitions: no head before all data, whatever is lost.

use super::{
    super::{FIRST_BYTES, SlotPart, SlotSet, SlotWriteError, WriteReport, at},
    Order, Step, assert_never_half,
    disk::FakeDisk,
    fill, images, pattern,
};
use crate::update::failure::Coded;

const BOOT: usize = 200_000 / 512 * 512;

/// Old and new contents of two partitions.
struct Pair {
    old: [Vec<u8>; 2],
    new: [Vec<u8>; 2],
}

impl Pair {
    /// `boot_changes`: whether the boot partition differs at all.
    fn new(boot_changes: bool) -> Self {
        let (old, new) = images(1);
        let boot = pattern(90, BOOT);
        let new_boot = match boot_changes {
            true => pattern(91, BOOT),
            false => boot.clone(),
        };
        Self {
            old: [boot, old],
            new: [new_boot, new],
        }
    }

    fn disks(&self) -> [FakeDisk; 2] {
        let boot = FakeDisk::new(&self.old[0], 512);
        let rootfs = boot.beside(&self.old[1], 512);
        [boot, rootfs]
    }
}

fn install(
    disks: &[FakeDisk; 2],
    new: &[Vec<u8>; 2],
    order: Order,
) -> Result<WriteReport, SlotWriteError> {
    let fake = "/dev/fake".as_ref();
    let parts = [
        SlotPart::other(fake, new[0].len() as u64),
        SlotPart::new(fake, new[1].len() as u64),
    ];
    let writers = disks.iter().map(FakeDisk::writer).collect();
    let mut set = SlotSet::over(&parts, writers)?;
    let payload = new.concat();
    fill(&payload, 37_000, order, |step| match step {
        Step::Piece(offset, bytes, _) if bytes.iter().all(|byte| *byte == 0) => {
            set.zero_at(offset, bytes.len() as u64)
        }
        Step::Piece(offset, bytes, later) => set.write_piece(offset, bytes, later),
        Step::Sync => set.sync(),
    })?;
    set.finish()
}

fn has_head(contents: &[u8]) -> bool {
    contents[..FIRST_BYTES].iter().any(|byte| *byte != 0)
}

/// The promise of the set, and that of each partition.
fn assert_one_image(found: &[Vec<u8>; 2], pair: &Pair, when: &str) {
    for ((found, old), new) in found.iter().zip(&pair.old).zip(&pair.new) {
        assert_never_half(found, old, new, when);
    }
    if found.iter().all(|contents| has_head(contents)) {
        let body = |of: &Vec<u8>| of[FIRST_BYTES..].to_vec();
        let is = |image: &[Vec<u8>; 2]| (0..2).all(|part| body(&found[part]) == body(&image[part]));
        assert!(
            is(&pair.old) || is(&pair.new),
            "heads over a mixture: {when}"
        );
    }
}

#[test]
fn a_power_cut_never_leaves_heads_over_a_mixture_of_partitions() {
    for boot_changes in [true, false] {
        for order in [Order::Straight, Order::Jumping] {
            let pair = Pair::new(boot_changes);
            let disks = pair.disks();
            install(&disks, &pair.new, order).unwrap();
            assert!(disks[0].contents() == pair.new[0] && disks[1].contents() == pair.new[1]);
            assert_eq!(disks[0].writes().is_empty(), !boot_changes);
            let operations = disks[0].operations();
            for cut in 1..=operations {
                let disks = pair.disks();
                let _ = disks[0].clone().failing_at(cut, true);
                install(&disks, &pair.new, order).unwrap_err();
                for seed in 0..6 {
                    let dice = pattern(seed * 1000 + cut as u64, 20_000);
                    let left = [0, 1].map(|part: usize| {
                        disks[part].after_cut(|n| match seed {
                            0 => false,
                            1 => true,
                            // One disk loses everything, the other nothing.
                            2 => part == 0,
                            3 => part == 1,
                            _ => dice[(n + part * 77) % dice.len()].is_multiple_of(2),
                        })
                    });
                    let when = format!("{order:?}, cut {cut}, seed {seed}");
                    assert_one_image(&left, &pair, &when);
                    if seed != 4 {
                        continue;
                    }
                    let boot = FakeDisk::new(&left[0], 512);
                    let resumed = [boot.clone(), boot.beside(&left[1], 512)];
                    install(&resumed, &pair.new, order).unwrap();
                    let found = resumed.clone().map(|disk| disk.contents());
                    assert!(found == pair.new, "{when}");
                    assert!(resumed.iter().all(FakeDisk::all_is_durable));
                }
            }
        }
    }
}

#[test]
fn the_root_file_system_gets_its_head_last_wherever_it_lies_in_the_payload() {
    for rootfs_first in [true, false] {
        let (old, new) = (pattern(1, 300_032), pattern(2, 300_032));
        let first = FakeDisk::new(&old, 512);
        let second = first.beside(&old, 512);
        let disks = [first, second];
        let fake = "/dev/fake".as_ref();
        let mut parts = [SlotPart::new(fake, 300_032), SlotPart::other(fake, 300_032)];
        if !rootfs_first {
            parts.reverse();
        }
        let root = usize::from(!rootfs_first);
        // The last write and its sync are the last two operations.
        let total = {
            let mut set =
                SlotSet::over(&parts, disks.iter().map(FakeDisk::writer).collect()).unwrap();
            set.write_at(0, &new).unwrap();
            set.write_at(300_032, &new).unwrap();
            set.finish().unwrap();
            disks[0].operations()
        };
        let again = FakeDisk::new(&old, 512);
        let disks = [again.clone(), again.beside(&old, 512)];
        let _ = again.failing_at(total - 1, true);
        let mut set = SlotSet::over(&parts, disks.iter().map(FakeDisk::writer).collect()).unwrap();
        set.write_at(0, &new).unwrap();
        set.write_at(300_032, &new).unwrap();
        set.finish().unwrap_err();
        assert!(disks[1 - root].after_cut(|_| false) == new);
        assert!(!has_head(&disks[root].after_cut(|_| false)));
    }
}

#[test]
fn a_part_that_does_not_fit_is_refused_and_so_is_what_lies_behind_the_payload() {
    let disks = [
        FakeDisk::new(&[1; 8192], 512),
        FakeDisk::new(&[1; 8192], 512),
    ];
    let fake = "/dev/fake".as_ref();
    let open = |first, second| {
        let parts = [SlotPart::other(fake, first), SlotPart::new(fake, second)];
        SlotSet::over(&parts, disks.iter().map(FakeDisk::writer).collect())
    };
    assert_eq!(open(8192, 8193).unwrap_err().code(), "slot-too-small");
    let mut set = open(100, 8000).unwrap();
    // The partitions have room, the payload has not.
    assert_eq!(
        set.write_at(8000, &[2; 101]).unwrap_err().code(),
        "slot-too-small"
    );
    assert_eq!(
        set.zero_at(u64::MAX, 2).unwrap_err().code(),
        "slot-too-small"
    );
    assert_eq!(set.report().writes, 0);
    set.write_at(90, &[2; 20]).unwrap();
    set.finish().unwrap();
    let found = disks.each_ref().map(FakeDisk::contents);
    assert_eq!(found[0][89..101], [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
    assert_eq!(found[1][..at(11)], [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
}
