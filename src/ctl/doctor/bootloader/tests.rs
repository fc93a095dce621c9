//! The judgements about the bootloader.

use super::*;
use crate::{
    ctl::doctor::finding::Level,
    update::{
        machine::{Content, ImageFacts, Job, Prepared, Written},
        ports::PendingTrial,
        request::{Origin, Request},
        status::Times,
    },
};

fn copy(medium: Medium, state: CopyState) -> Copy {
    Copy {
        place: "/dev/x at 0x0".to_owned(),
        medium,
        state,
    }
}

fn levels(copies: &[Copy]) -> Vec<Level> {
    environment(copies).iter().map(|it| it.level).collect()
}

#[test]
fn two_whole_copies_are_well_and_anything_less_is_said() {
    let good = || copy(Medium::Raw, CopyState::Good);
    let bad = || copy(Medium::Raw, CopyState::Damaged);
    let unreadable = |kind: io::ErrorKind| copy(Medium::Raw, CopyState::Unreadable(kind.into()));
    assert_eq!(levels(&[good(), good()]), [Level::Ok]);
    assert_eq!(levels(&[good(), bad()]), [Level::Warning]);
    assert_eq!(levels(&[bad(), bad()]), [Level::Error, Level::Error]);
    assert_eq!(levels(&[good()]), [Level::Warning]);
    assert_eq!(levels(&[bad()]), [Level::Error]);
    assert_eq!(
        levels(&[unreadable(io::ErrorKind::NotFound)]),
        [Level::Error]
    );
    let closed = || unreadable(io::ErrorKind::PermissionDenied);
    assert_eq!(levels(&[closed(), closed()]), [Level::Unknown]);
    let fat = environment(&[copy(Medium::Fat, CopyState::Good)]);
    assert!(fat[0].text.contains("file on FAT"), "{fat:?}");
}

fn written(target: Slot) -> Written {
    Written {
        job: Job {
            id: "u1".into(),
            request: Request::new("https://h/x".parse().unwrap(), Origin::Method),
            target,
            from_version: None,
            times: Times::default(),
            consent: crate::update::policy::Consent::default(),
        },
        image: ImageFacts {
            version: None,
            size: None,
            boot_size: 0,
            manifest: None,
            security_epoch: 0,
        },
        content: Content {
            size: 1,
            sha256: crate::update::digest::Sha256::of(b"x"),
        },
    }
}

fn agree(confirmed: Slot, trial: Option<Slot>, booted: Slot, machine: Option<&State>) -> Level {
    let trial = trial.map(|slot| PendingTrial {
        slot,
        tries_left: 2,
        job: None,
    });
    agreement(&BootState { confirmed, trial }, booted, machine).level
}

#[test]
fn bootloader_kernel_and_state_file_must_tell_one_story() {
    let idle = State::Idle;
    let rebooting = State::Rebooting {
        written: written(Slot::B),
        armed_in: "1".into(),
    };
    let Written { job, image, .. } = written(Slot::A);
    let writing = State::Writing(Prepared { job, image });
    let trial = State::Trial(written(Slot::B));
    let (a, b) = (Slot::A, Slot::B);
    assert_eq!(agree(a, None, a, Some(&idle)), Level::Ok);
    assert_eq!(agree(a, Some(b), b, Some(&trial)), Level::Ok);
    assert_eq!(agree(a, Some(b), a, Some(&rebooting)), Level::Ok);
    assert_eq!(agree(b, None, b, Some(&trial)), Level::Ok);
    // Somebody switched, or left a trial.
    assert_eq!(agree(b, None, a, Some(&idle)), Level::Error);
    assert_eq!(agree(b, None, a, None), Level::Error);
    assert_eq!(agree(a, Some(b), a, Some(&idle)), Level::Warning);
    assert_eq!(agree(a, None, a, Some(&writing)), Level::Warning);
    // A state file that cannot be read accuses nobody.
    assert_eq!(agree(a, Some(b), a, None), Level::Ok);
}

#[test]
fn the_script_is_known_by_what_it_tells_the_kernel() {
    let level = |line: &str| script(line).level;
    assert_eq!(level("fwupdated.slot=a fwupdated.script=1"), Level::Ok);
    assert_eq!(level("fwupdated.slot=a fwupdated.script=0"), Level::Warning);
    assert_eq!(level("fwupdated.slot=a"), Level::Warning);
    assert_eq!(level("root=/dev/sda1"), Level::Warning);
}

#[test]
fn our_script_tells_the_version_that_is_looked_for() {
    let text = include_str!("../../../../packaging/uboot/boot.cmd");
    let told = format!("fwupdated.script={SCRIPT_VERSION}\"");
    assert_eq!(text.matches(&told).count(), 1);
}
