//! Where the environment lies: `/etc/fw_env.config`, as `fw_printenv` reads it.
//!
//! One line a copy, two for a redundant environment: `device offset size [sector-size [sectors]]`. The
//! offset is a number as in C (`0x` hexadecimal, leading `0` octal), negative from the end of the device;
//! the others are hexadecimal with or without `0x`, since those tools read them with `%lx`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Largest copy that is believed, bytes. Boards use 4 KiB to 256 KiB.
const MAX_SIZE: u64 = 1 << 20;

/// One copy's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Area {
    /// Block device, regular file, or raw flash (`/dev/mtdN`).
    pub device: PathBuf,
    /// Its first byte; negative: from the end of the device.
    pub offset: i64,
    /// Its size in bytes.
    pub size: usize,
}

/// Both copies' places, or the only one's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvLocation(pub(super) Vec<Area>);

/// Why the places are not known.
#[derive(Debug, thiserror::Error)]
pub enum LocationError {
    /// The file cannot be read.
    #[error("{} cannot be read; it must say where the U-Boot environment lies (see fw_env.config(5))", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is not of the form.
    #[error("{}:{line}: {what}; each line is `device offset size [sector-size [sectors]]`", .file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// Not one or two lines.
    #[error("{} names {found} copies of the environment; one or two are possible", .file.display())]
    Copies {
        /// The file.
        file: PathBuf,
        /// Lines found.
        found: usize,
    },
    /// The copies do not fit together.
    #[error("{}: the two copies {what}; correct their offsets or sizes", .file.display())]
    Mismatch {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
}

impl EnvLocation {
    /// Reads `file`.
    ///
    /// # Errors
    /// [`LocationError`].
    pub fn read(file: &Path) -> Result<Self, LocationError> {
        let text = fs::read_to_string(file).map_err(|source| LocationError::Unreadable {
            file: file.to_owned(),
            source,
        })?;
        Self::parse(file, &text)
    }

    /// Takes the text of `file`.
    ///
    /// # Errors
    /// [`LocationError`].
    pub fn parse(file: &Path, text: &str) -> Result<Self, LocationError> {
        let mut areas = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let area = area(line).map_err(|what| LocationError::Syntax {
                file: file.to_owned(),
                line: number + 1,
                what,
            })?;
            areas.push(area);
        }
        let mismatch = |what| LocationError::Mismatch {
            file: file.to_owned(),
            what,
        };
        match areas.as_slice() {
            [_] => {}
            [first, second] if first.size != second.size => {
                return Err(mismatch("have different sizes"));
            }
            [first, second] if first.overlaps(second) => return Err(mismatch("overlap")),
            [_, _] => {}
            other => {
                return Err(LocationError::Copies {
                    file: file.to_owned(),
                    found: other.len(),
                });
            }
        }
        Ok(Self(areas))
    }

    /// True with two copies: then a power cut while one is written leaves the other.
    #[must_use]
    pub fn is_redundant(&self) -> bool {
        self.0.len() == 2
    }
}

impl Area {
    fn overlaps(&self, other: &Self) -> bool {
        // Offsets of different kinds can only be compared once the device's size is known.
        let same_kind = (self.offset < 0) == (other.offset < 0);
        let size = i64::try_from(self.size).unwrap_or(i64::MAX);
        self.device == other.device && same_kind && (self.offset - other.offset).abs() < size
    }
}

fn area(line: &str) -> Result<Area, String> {
    let words: Vec<_> = line.split_whitespace().collect();
    let [device, offset, size, rest @ ..] = words.as_slice() else {
        return Err(format!("{} words instead of at least 3", words.len()));
    };
    if rest.len() > 2 {
        return Err(format!("{} words instead of at most 5", words.len()));
    }
    for word in rest {
        hexadecimal(word).ok_or_else(|| format!("`{word}` is not a hexadecimal number"))?;
    }
    let offset = match offset.strip_prefix('-') {
        Some(digits) => number(digits).map(|n| -n),
        None => number(offset),
    }
    .ok_or_else(|| format!("the offset `{offset}` is not a number"))?;
    let size = hexadecimal(size)
        .ok_or_else(|| format!("the size `{size}` is not a hexadecimal number"))?;
    let size = u64::try_from(size)
        .ok()
        .filter(|size| (16..=MAX_SIZE).contains(size));
    let size = size.ok_or_else(|| format!("the size is not between 16 and {MAX_SIZE} bytes"))?;
    let size = usize::try_from(size).map_err(|_| "the size is too large".to_owned())?;
    Ok(Area {
        device: PathBuf::from(device),
        offset,
        size,
    })
}

/// A number as C's `%lli` reads it.
fn number(word: &str) -> Option<i64> {
    if word.starts_with("0x") || word.starts_with("0X") {
        return hexadecimal(word);
    }
    match word.strip_prefix('0') {
        Some(octal) if !octal.is_empty() => digits(octal, 8),
        _ => digits(word, 10),
    }
}

/// A number as C's `%lx` reads it: without `0x` too.
fn hexadecimal(word: &str) -> Option<i64> {
    let prefix = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"));
    digits(prefix.unwrap_or(word), 16)
}

fn digits(text: &str, radix: u32) -> Option<i64> {
    let all = !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
    all.then(|| i64::from_str_radix(text, radix).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<EnvLocation, String> {
        EnvLocation::parse(Path::new("fw_env.config"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers_comments_and_both_copies_are_understood() {
        let location = parse("# device offset size\n/dev/mmcblk0 0x100000 0x4000 0x200 # copy 1\n\n/dev/mmcblk0 -0x8000 4000\n").unwrap();
        assert!(location.is_redundant());
        assert_eq!(
            location.0[0],
            Area {
                device: "/dev/mmcblk0".into(),
                offset: 0x10_0000,
                size: 0x4000
            }
        );
        assert_eq!(location.0[1].offset, -0x8000);
        assert_eq!(
            location.0[1].size, 0x4000,
            "a size needs no 0x to be hexadecimal"
        );
        let location = parse("/dev/x 010 20 30 1").unwrap();
        assert_eq!((location.0[0].offset, location.0[0].size), (8, 0x20));
    }

    #[test]
    fn mistakes_name_file_and_line() {
        for (text, expected) in [
            ("\n/dev/x 0x10", "fw_env.config:2: 2 words"),
            ("/dev/x zero 0x4000", "the offset `zero`"),
            ("/dev/x 0 size", "the size `size`"),
            ("/dev/x 0 0x4000 sector", "`sector` is not"),
            ("/dev/x 0 0", "between 16 and"),
            ("/dev/x 0 0x10000000", "between 16 and"),
            ("/dev/x 0 0x4000 1 2 3", "at most 5"),
            ("", "names 0 copies"),
            (
                "/dev/x 0 0x4000\n/dev/x 0x4000 0x4000\n/dev/x 0x8000 0x4000",
                "names 3 copies",
            ),
            ("/dev/x 0 0x4000\n/dev/x 0x2000 0x4000", "overlap"),
            ("/dev/x 0 0x4000\n/dev/x 0x8000 0x2000", "different sizes"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,80}", line in "/dev/x -?[0-9a-fx]{0,20} [0-9a-fx]{0,20}") {
            let _ = parse(&text);
            let _ = parse(&line);
        }
    }
}
