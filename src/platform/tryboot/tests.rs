//! Of the back end on plain folders: decisions, refusals, healing. On real FAT file systems: `tests/tryboot.rs`.

use super::*;
use crate::update::failure::Coded;

struct Board {
    dir: tempfile::TempDir,
}

impl Board {
    /// Slot a, partition 2, runs.
    fn new() -> Self {
        let board = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        board.put(&Autoboot::new(2, 3));
        board.booted(2, false);
        for slot in Slot::ALL {
            let image = fs::File::create_new(board.boot(slot)).unwrap();
            image.set_len(1 << 20).unwrap();
            let disk = || {
                fs::File::options()
                    .read(true)
                    .write(true)
                    .open(board.boot(slot))
            };
            fatfs::format_volume(disk().unwrap(), fatfs::FormatVolumeOptions::new()).unwrap();
            let fat = fatfs::FileSystem::new(disk().unwrap(), fatfs::FsOptions::new()).unwrap();
            for name in ["config.txt", "kernel8.img", "cmdline.txt"] {
                let mut file = fat.root_dir().create_file(name).unwrap();
                io::Write::write_all(&mut file, b"x=y").unwrap();
            }
        }
        board
    }

    fn boot(&self, slot: Slot) -> PathBuf {
        self.dir.path().join(format!("boot-{slot}"))
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("autoboot.txt")
    }

    fn put(&self, decision: &Autoboot) {
        fs::write(self.file(), decision.render().unwrap()).unwrap();
    }

    /// The firmware booted `partition`.
    fn booted(&self, partition: u32, tryboot: bool) {
        let cells = self.dir.path().join("chosen/bootloader");
        fs::create_dir_all(&cells).unwrap();
        fs::write(cells.join("partition"), partition.to_be_bytes()).unwrap();
        fs::write(cells.join("tryboot"), u32::from(tryboot).to_be_bytes()).unwrap();
    }

    fn try_open(&self) -> Result<TrybootBootloader> {
        let boot = Slot::ALL.map(|slot| self.boot(slot));
        TrybootBootloader::open(&self.file(), self.dir.path(), boot, true)
    }

    fn open(&self) -> TrybootBootloader {
        self.try_open().unwrap()
    }

    fn decision(&self) -> Option<Autoboot> {
        Autoboot::parse(&fs::read(self.file()).unwrap())
    }
}

fn trial(slot: Slot, tries_left: u8, job: Option<&str>) -> Option<PendingTrial> {
    Some(PendingTrial {
        slot,
        tries_left,
        job: job.map(str::to_owned),
    })
}

#[test]
fn a_trial_is_armed_started_and_confirmed() {
    let board = Board::new();
    let mut bootloader = board.open();
    let before = fs::read(board.file()).unwrap();
    bootloader.mark_bad(Slot::B).unwrap();
    bootloader.arm_trial(Slot::B, 1, "u1").unwrap();
    let state = bootloader.state().unwrap();
    assert_eq!(state.confirmed, Slot::A);
    assert_eq!(state.trial, trial(Slot::B, 1, Some("u1")));
    assert!(bootloader.trial_not_started().unwrap());
    assert_eq!(bootloader.start_trial().unwrap(), Some("0 tryboot"));
    assert!(!bootloader.trial_not_started().unwrap());
    // Until the new slot is proved, what the firmware reads was not touched.
    assert_eq!(fs::read(board.file()).unwrap(), before);
    board.booted(3, true);
    assert_eq!(
        bootloader.state().unwrap().trial,
        trial(Slot::B, 0, Some("u1"))
    );
    bootloader.mark_good(Slot::B).unwrap();
    let state = bootloader.state().unwrap();
    assert_eq!((state.confirmed, state.trial), (Slot::B, None));
    assert_eq!(board.decision().unwrap(), Autoboot::new(3, 2));
}

#[test]
fn a_trial_that_no_note_tells_of_is_told_by_the_flag() {
    let board = Board::new();
    board.booted(3, true);
    assert_eq!(board.open().state().unwrap().trial, trial(Slot::B, 0, None));
    board.booted(2, true);
    assert_eq!(board.open().state().unwrap().trial, None);
}

#[test]
fn a_reboot_is_not_flagged_when_nothing_is_armed() {
    let failure = Board::new().open().start_trial().unwrap_err();
    assert_eq!(failure.code, "tryboot-not-armed");
}

#[test]
fn the_confirmed_slot_is_never_disabled_or_put_on_trial() {
    let board = Board::new();
    let mut bootloader = board.open();
    for failure in [
        bootloader.mark_bad(Slot::A).unwrap_err(),
        bootloader.arm_trial(Slot::A, 1, "u").unwrap_err(),
    ] {
        assert_eq!(failure.code, "slot-is-confirmed");
    }
    assert_eq!(board.decision().unwrap(), Autoboot::new(2, 3));
}

#[test]
fn only_the_slot_whose_boot_partition_was_booted_is_confirmed() {
    let board = Board::new();
    let mut bootloader = board.open();
    // Root b runs, but its kernel came from boot partition a.
    assert_eq!(
        bootloader.mark_good(Slot::B).unwrap_err().code,
        "tryboot-wrong-partition"
    );
    board.booted(0, false);
    assert_eq!(
        bootloader.arm_trial(Slot::B, 1, "u").unwrap_err().code,
        "tryboot-wrong-partition"
    );
    assert_eq!(board.decision().unwrap(), Autoboot::new(2, 3));
}

#[test]
fn firmware_that_would_ignore_the_flag_is_refused_before_anything_changes() {
    let board = Board::new();
    fs::remove_dir_all(board.dir.path().join("chosen")).unwrap();
    let failure = board.open().state().unwrap_err();
    assert_eq!(failure.code, "tryboot-unsupported");
    assert!(failure.message.contains("rpi-eeprom-update"), "{failure}");
}

#[test]
fn a_slot_without_its_boot_files_is_not_armed() {
    let board = Board::new();
    fs::write(board.boot(Slot::B), vec![0; 1 << 20]).unwrap();
    let failure = board.open().arm_trial(Slot::B, 1, "u").unwrap_err();
    assert_eq!(failure.code, "tryboot-boot-files");
    assert_eq!(board.decision().unwrap(), Autoboot::new(2, 3));
}

#[test]
fn a_lost_file_is_healed_from_its_copy() {
    let board = Board::new();
    board.booted(3, true);
    let mut bootloader = board.open();
    bootloader.mark_good(Slot::B).unwrap();
    let confirmed = board.decision();
    // The firmware, left to itself, takes the first partition that boots.
    board.booted(2, false);
    for damage in [
        &b""[..],
        b"[all]\ntryboot_a_b=1\nboot_par",
        &[0xff; 512],
        &[0; 600],
    ] {
        fs::write(board.file(), damage).unwrap();
        assert_eq!(bootloader.state().unwrap().confirmed, Slot::B);
        board.open();
        assert_eq!(board.decision(), confirmed, "{damage:?}");
    }
    fs::remove_file(board.file()).unwrap();
    board.open();
    assert_eq!(board.decision(), confirmed);
    fs::remove_file(bootloader.copy()).unwrap();
    board.open();
    assert_eq!(
        fs::read(bootloader.copy()).unwrap(),
        fs::read(board.file()).unwrap()
    );
}

#[test]
fn without_file_and_copy_what_the_firmware_chose_becomes_the_confirmed_slot() {
    let board = Board::new();
    fs::remove_file(board.file()).unwrap();
    // Nothing tells which slot is good while one is on trial.
    board.booted(3, true);
    assert_eq!(board.try_open().unwrap_err().code(), "autoboot-invalid");
    assert!(!board.file().exists());
    board.booted(3, false);
    assert_eq!(board.open().state().unwrap().confirmed, Slot::B);
    assert_eq!(board.decision().unwrap(), Autoboot::new(3, 2));
}

#[test]
fn a_board_that_comes_without_a_tryboot_section_gets_one_when_a_trial_is_armed() {
    let board = Board::new();
    fs::write(board.file(), "boot_partition=2\n").unwrap();
    let mut bootloader = board.open();
    bootloader.arm_trial(Slot::B, 1, "u1").unwrap();
    assert_eq!(board.decision().unwrap(), Autoboot::new(2, 3));
    assert!(
        fs::read_to_string(board.file())
            .unwrap()
            .contains("tryboot_a_b=1\n")
    );
}

#[test]
fn a_partition_that_is_neither_slot_s_is_left_alone_and_said() {
    let board = Board::new();
    board.put(&Autoboot::new(7, 3));
    let before = fs::read(board.file()).unwrap();
    assert_eq!(board.open().state().unwrap_err().code, "autoboot-foreign");
    assert_eq!(fs::read(board.file()).unwrap(), before);
}

#[test]
fn the_vendor_s_shorter_file_is_taken_over_with_the_lines_in_it() {
    let board = Board::new();
    let text = "[all]\ntryboot_a_b=1\nboot_partition=2\nfoo=1\n[tryboot]\nboot_partition=3\n";
    fs::write(board.file(), text).unwrap();
    board.booted(3, true);
    let mut bootloader = board.open();
    bootloader.mark_good(Slot::B).unwrap();
    let written = fs::read_to_string(board.file()).unwrap();
    assert_eq!(written.len(), autoboot::LENGTH);
    assert!(written.contains("foo=1\n"), "{written}");
    let long = format!("{text}[all]\n{}\n", "y=".repeat(205));
    fs::write(board.file(), &long).unwrap();
    assert_eq!(
        bootloader.mark_good(Slot::B).unwrap_err().code,
        "autoboot-too-long"
    );
    assert_eq!(fs::read_to_string(board.file()).unwrap(), long);
}

#[test]
fn on_a_real_board_partitions_are_partitions_and_the_file_lies_where_the_firmware_looks() {
    let board = Board::new();
    let boot = Slot::ALL.map(|slot| board.boot(slot));
    let opened = TrybootBootloader::open(&board.file(), board.dir.path(), boot, false);
    assert_eq!(opened.unwrap_err().code(), "tryboot-no-partition");
    let bootloader = TrybootBootloader {
        stand_in: false,
        ..board.open()
    };
    let before = fs::read(board.file()).unwrap();
    assert_eq!(bootloader.state().unwrap_err().code, "autoboot-elsewhere");
    assert_eq!(fs::read(board.file()).unwrap(), before);
}
