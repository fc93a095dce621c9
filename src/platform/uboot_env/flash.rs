//! The environment on raw flash (`/dev/mtdN`): a block is erased before it is written.
//!
//! - A copy begins at an erase block and has its blocks for itself: what lies beside it would be lost in a power cut
//!   between erasing and writing, so that such a place is refused. Two copies are never in one block.
//! - A bad block is refused, not passed over: U-Boot and the tools disagree about where the data then are.
//! - NOR flash has boolean flags (U-Boot's `env/sf.c`, `tools/env/fw_env.c`): the new copy is written as active, and
//!   then the other one's flag is cleared in place. Whichever of the two writes decides, it decides at once.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::codec::{FLAG_OBSOLETE, FLAGS_AT, FlagScheme};
use crate::platform::ioctl::{self, MtdInfo};

/// `<mtd/mtd-abi.h>`.
const MTD_NORFLASH: u8 = 3;
const MTD_NANDFLASH: u8 = 4;
const MTD_DATAFLASH: u8 = 6;
const MTD_MLCNANDFLASH: u8 = 8;

/// What is asked of a flash device; the least with which the order of writes can be tested without one.
pub(super) trait Flash {
    /// Type and sizes.
    fn info(&self) -> MtdInfo;
    /// Whether the block at `start` is bad.
    fn is_bad(&self, start: u64) -> io::Result<bool>;
    /// Erases the block at `start`: all its bytes are 0xff then.
    fn erase(&self, start: u64) -> io::Result<()>;
    /// Reads.
    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()>;
    /// Writes; durable when it returns.
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()>;
}

/// An opened `/dev/mtdN`.
#[derive(Debug)]
pub(super) struct Mtd {
    file: File,
    info: MtdInfo,
}

impl Mtd {
    /// `file` as a flash device; `Err` when it is none.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let info = ioctl::mtd_info(&file).map_err(|_| {
            let text = "it is a character device, but no MTD (an UBI volume?); fwupdated reads environments on block \
                        devices, in files, and on /dev/mtdN";
            io::Error::new(io::ErrorKind::Unsupported, text)
        })?;
        Ok(Self { file, info })
    }
}

impl Flash for Mtd {
    fn info(&self) -> MtdInfo {
        self.info
    }

    fn is_bad(&self, start: u64) -> io::Result<bool> {
        ioctl::mtd_block_is_bad(&self.file, start)
    }

    fn erase(&self, start: u64) -> io::Result<()> {
        // Many chips cannot be locked, and say so.
        let _ = ioctl::mtd_unlock(&self.file, start, self.info.erase_size);
        ioctl::mtd_erase(&self.file, start, self.info.erase_size)
    }

    fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, at)
    }
}

/// How the flags of two copies on `flash` are meant.
pub(super) fn flag_scheme(flash: &dyn Flash) -> FlagScheme {
    match flash.info().kind {
        MTD_NORFLASH | MTD_DATAFLASH => FlagScheme::Boolean,
        _ => FlagScheme::Counter,
    }
}

/// Writes a copy to `at`, and reads it back.
pub(super) fn write_copy(flash: &dyn Flash, bytes: &[u8], at: u64) -> io::Result<()> {
    let info = flash.info();
    let block = u64::from(info.erase_size);
    let refused = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    if !matches!(
        info.kind,
        MTD_NORFLASH | MTD_NANDFLASH | MTD_DATAFLASH | MTD_MLCNANDFLASH
    ) || block == 0
    {
        let text = format!("its type of flash ({}) is not known", info.kind);
        return Err(refused(text));
    }
    if at % block != 0 {
        let text = format!(
            "the copy at {at:#x} does not begin at an erase block ({block:#x} bytes): erasing would take what is before \
             it; move it in U-Boot and fw_env.config"
        );
        return Err(refused(text));
    }
    let end = (at + bytes.len() as u64).next_multiple_of(block);
    if end > info.size {
        let text = format!(
            "the copy at {at:#x} does not fit its {:#x} bytes",
            info.size
        );
        return Err(refused(text));
    }
    let blocks = || (at..end).step_by(info.erase_size as usize);
    for start in blocks() {
        if flash.is_bad(start)? {
            let text = format!(
                "the block at {start:#x} is bad; choose another place for the environment in U-Boot and fw_env.config, \
                 or put it into an UBI volume that U-Boot alone writes"
            );
            return Err(refused(text));
        }
    }
    let written = at + bytes.len() as u64;
    let mut rest = vec![0; usize::try_from(end - written).unwrap_or(0)];
    flash.read(&mut rest, written)?;
    if rest.iter().any(|byte| *byte != 0xff) {
        let text = format!(
            "the erase block of the copy at {at:#x} holds other data from {written:#x} on, which a power cut would take \
             along; give the environment blocks of its own"
        );
        return Err(refused(text));
    }
    for start in blocks() {
        flash.erase(start)?;
        let from = usize::try_from(start - at).unwrap_or(usize::MAX);
        let part = &bytes[from..bytes.len().min(from + info.erase_size as usize)];
        // Whole pages: the rest of the last one stays as if erased.
        let mut pages = part.to_vec();
        pages.resize(
            part.len().next_multiple_of(info.write_size.max(1) as usize),
            0xff,
        );
        flash.write(&pages, start)?;
    }
    let mut found = vec![0; bytes.len()];
    flash.read(&mut found, at)?;
    if found == bytes {
        Ok(())
    } else {
        Err(io::Error::other("it reads back something else"))
    }
}

/// Clears the flag of the copy at `at`, in place: bits of NOR flash can be cleared without erasing.
pub(super) fn make_obsolete(flash: &dyn Flash, at: u64) -> io::Result<()> {
    let at = at + FLAGS_AT;
    flash.write(&[FLAG_OBSOLETE], at)?;
    let mut found = [0];
    flash.read(&mut found, at)?;
    if found == [FLAG_OBSOLETE] {
        Ok(())
    } else {
        Err(io::Error::other("the old copy's flag cannot be cleared"))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::{
        super::codec::{self, Copy, Env},
        *,
    };

    const BLOCK: usize = 0x200;
    const SIZE: usize = 0x400;

    /// Flash whose writes only clear bits, and which loses power after some of its operations.
    #[derive(Clone)]
    struct Fake {
        kind: u8,
        bytes: RefCell<Vec<u8>>,
        bad: Vec<u64>,
        /// Erasures and writes until the power is lost, the last of them half done.
        power: RefCell<usize>,
        done: RefCell<Vec<String>>,
    }

    impl Fake {
        fn new(kind: u8) -> Self {
            Self {
                kind,
                bytes: RefCell::new(vec![0xff; 4 * SIZE]),
                bad: vec![],
                power: RefCell::new(usize::MAX),
                done: RefCell::default(),
            }
        }

        /// How many of `length` bytes are still changed.
        fn spend(&self, what: String, length: usize) -> io::Result<usize> {
            let mut power = self.power.borrow_mut();
            self.done.borrow_mut().push(what);
            if *power == 0 {
                return Err(io::Error::other("no power"));
            }
            *power -= 1;
            Ok(if *power == 0 { length / 2 } else { length })
        }

        /// The copy in force, as U-Boot picks it.
        fn value(&self, scheme: FlagScheme) -> String {
            let bytes = self.bytes.borrow();
            let copies = [0, 2 * SIZE].map(|at| codec::decode(&bytes[at..at + SIZE], true));
            let copy = match &copies {
                [Some(a), Some(b)] => [a, b][codec::newer([a.flags, b.flags], scheme)],
                [Some(copy), None] | [None, Some(copy)] => copy,
                [None, None] => panic!("both copies are lost"),
            };
            copy.env.get("n").unwrap().to_owned()
        }
    }

    impl Flash for Fake {
        fn info(&self) -> MtdInfo {
            MtdInfo {
                kind: self.kind,
                size: self.bytes.borrow().len() as u64,
                erase_size: BLOCK as u32,
                write_size: if self.kind == MTD_NANDFLASH { 0x100 } else { 1 },
            }
        }

        fn is_bad(&self, start: u64) -> io::Result<bool> {
            Ok(self.bad.contains(&start))
        }

        fn erase(&self, start: u64) -> io::Result<()> {
            let changed = self.spend(format!("erase {start:#x}"), BLOCK)?;
            let start = start as usize;
            self.bytes.borrow_mut()[start..start + changed].fill(0xff);
            Ok(())
        }

        fn read(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
            let at = at as usize;
            bytes.copy_from_slice(&self.bytes.borrow()[at..at + bytes.len()]);
            Ok(())
        }

        fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
            let changed = self.spend(format!("write {at:#x}+{:#x}", bytes.len()), bytes.len())?;
            let mut flash = self.bytes.borrow_mut();
            for (old, new) in flash[at as usize..].iter_mut().zip(&bytes[..changed]) {
                *old &= new;
            }
            Ok(())
        }
    }

    fn copy(value: usize, flags: u8) -> Vec<u8> {
        let mut env = Env::default();
        env.set("n", &value.to_string()).unwrap();
        codec::encode(&Copy { flags, env }, SIZE, true).unwrap()
    }

    /// The order of [`super::super::store`]: the other copy, then the flag of the one before.
    fn update(flash: &Fake, number: usize, scheme: FlagScheme) -> io::Result<()> {
        let (new, old) = if number % 2 == 0 {
            (0, 2 * SIZE)
        } else {
            (2 * SIZE, 0)
        };
        let flags = match scheme {
            FlagScheme::Boolean => codec::FLAG_ACTIVE,
            FlagScheme::Counter => number as u8,
        };
        write_copy(flash, &copy(number, flags), new as u64)?;
        match scheme {
            FlagScheme::Boolean => make_obsolete(flash, old as u64),
            FlagScheme::Counter => Ok(()),
        }
    }

    #[test]
    fn a_power_cut_at_any_erasure_or_write_leaves_the_old_or_the_new_decision() {
        for kind in [MTD_NORFLASH, MTD_NANDFLASH] {
            let flash = Fake::new(kind);
            let scheme = flag_scheme(&flash);
            update(&flash, 0, scheme).unwrap();
            for number in 1..6 {
                let mut cuts = 0;
                loop {
                    let torn = flash.clone();
                    *torn.power.borrow_mut() = cuts;
                    let result = update(&torn, number, scheme);
                    let value = torn.value(scheme);
                    let (old, new) = ((number - 1).to_string(), number.to_string());
                    assert!(
                        value == old || value == new,
                        "{value} at cut {cuts} of {number}"
                    );
                    // The next attempt goes over what was torn.
                    *torn.power.borrow_mut() = usize::MAX;
                    update(&torn, number, scheme).unwrap();
                    assert_eq!(torn.value(scheme), new);
                    if result.is_ok() && cuts > flash.done.borrow().len() {
                        break;
                    }
                    cuts += 1;
                }
                update(&flash, number, scheme).unwrap();
                assert_eq!(flash.value(scheme), number.to_string());
            }
        }
    }

    #[test]
    fn each_block_is_erased_before_it_is_written_and_the_old_flag_is_cleared_last() {
        let nor = Fake::new(MTD_NORFLASH);
        update(&nor, 1, FlagScheme::Boolean).unwrap();
        assert_eq!(
            *nor.done.borrow(),
            [
                "erase 0x800",
                "write 0x800+0x200",
                "erase 0xa00",
                "write 0xa00+0x200",
                "write 0x4+0x1"
            ]
        );
    }

    #[test]
    fn places_that_a_power_cut_would_endanger_are_refused_untouched() {
        type Case = (&'static str, fn(&mut Fake), u64, &'static str);
        let cases: [Case; 5] = [
            (
                "not aligned",
                |_| {},
                0x100,
                "does not begin at an erase block",
            ),
            ("too far", |_| {}, 0xe00, "does not fit"),
            (
                "bad block",
                |flash| flash.bad = vec![0x200],
                0,
                "the block at 0x200 is bad",
            ),
            (
                "a neighbour",
                |flash| flash.bytes.borrow_mut()[0x3f8] = 7,
                0,
                "holds other data",
            ),
            ("not known", |flash| flash.kind = 1, 0, "type of flash (1)"),
        ];
        for (what, apply, at, said) in cases {
            let mut flash = Fake::new(MTD_NANDFLASH);
            apply(&mut flash);
            let bytes = &copy(1, 1)[..0x3f0];
            let bytes = if what == "too far" {
                &copy(1, 1)[..]
            } else {
                bytes
            };
            let error = write_copy(&flash, bytes, at).unwrap_err();
            assert!(error.to_string().contains(said), "{what}: {error}");
            assert!(flash.done.borrow().is_empty(), "{what}");
        }
    }

    #[test]
    fn a_character_device_that_is_no_flash_is_named_as_such() {
        let error = Mtd::new(File::open("/dev/null").unwrap()).unwrap_err();
        assert!(error.to_string().contains("no MTD"), "{error}");
    }
}
