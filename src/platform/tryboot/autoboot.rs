//! `autoboot.txt`, which tells the Raspberry Pi's firmware what to boot, and our note of a trial beside it. Pure.
//!
//! Guarantees: what is written fits the firmware's 512 bytes, always has the length [`LENGTH`] (so that a change is one
//! sector and no change of the file's size), begins with what the firmware needs, and keeps the lines of others. Source of the format: the Raspberry Pi documentation, `autoboot.txt` and
//! "conditional filters".

use std::fmt::Write;

use crate::update::slot::Slot;

/// Most bytes that the firmware reads.
pub const LIMIT: usize = 512;
/// Bytes of what we write: below the limit, since nothing says whether the last bytes count.
pub const LENGTH: usize = 480;

/// A pending trial, as written down in a file of its own: one line, `trial=b armed job=...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The slot.
    pub slot: Slot,
    /// Whether the reboot into it was asked for: the firmware counts nothing.
    pub started: bool,
    /// The update that armed it.
    pub job: String,
}

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Autoboot {
    /// The partition that boots.
    pub default: u8,
    /// The partition that boots once after `reboot "0 tryboot"`.
    pub flagged: u8,
    /// Others' lines, with the section that each group stands in.
    kept: Vec<(String, Vec<String>)>,
}

/// Others' lines leave no room.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

impl Autoboot {
    /// The plain content for two partitions.
    #[must_use]
    pub fn new(default: u8, flagged: u8) -> Self {
        Self {
            default,
            flagged,
            kept: Vec::new(),
        }
    }

    /// Reads what the firmware would. `None` when it would find no partition there: cut off, damaged, or not text.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > LIMIT {
            return None;
        }
        // A file that was made longer, and lost its last lines with the power, ends in zeros.
        let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = std::str::from_utf8(bytes).ok()?;
        let default = boot_partition(text, false)?;
        let mut autoboot = Self::new(default, boot_partition(text, true).unwrap_or(default));
        let mut group = ("all".to_owned(), Vec::new());
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            if let Some(section) = section(line) {
                let next = (section.to_owned(), Vec::new());
                autoboot.keep(std::mem::replace(&mut group, next));
            } else if !matches!(
                assignment(line),
                Some(("boot_partition" | "tryboot_a_b", _))
            ) {
                group.1.push(line.to_owned());
            }
        }
        autoboot.keep(group);
        Some(autoboot)
    }

    fn keep(&mut self, group: (String, Vec<String>)) {
        if !group.1.is_empty() {
            self.kept.push(group);
        }
    }

    /// The bytes to write, [`LENGTH`] of them.
    ///
    /// # Errors
    /// When others' lines leave no room.
    pub fn render(&self) -> Result<Vec<u8>, TooLong> {
        let mut text = format!(
            "[all]\ntryboot_a_b=1\nboot_partition={}\n[tryboot]\nboot_partition={}\n",
            self.default, self.flagged
        );
        for (section, lines) in &self.kept {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "[{section}]\n{}", lines.join("\n"));
        }
        let mut bytes = text.into_bytes();
        if bytes.len() > LENGTH {
            return Err(TooLong);
        }
        bytes.resize(LENGTH, b'\n');
        Ok(bytes)
    }
}

impl Note {
    /// Reads a note. `None` for no trial, and for whatever is no note of ours.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (slot, rest) = text.trim_end().strip_prefix("trial=")?.split_once(' ')?;
        let (word, job) = rest.split_once(" job=")?;
        let started = match word {
            "armed" => false,
            "started" => true,
            _ => return None,
        };
        Some(Self {
            slot: slot.parse().ok()?,
            started,
            job: job.to_owned(),
        })
    }

    /// The bytes to write for a trial, or for none: [`LENGTH`] of them. A job's name has at most 64 characters.
    #[must_use]
    pub fn render(note: Option<&Self>) -> Vec<u8> {
        let text = note.map_or(String::new(), |Self { slot, started, job }| {
            let word = if *started { "started" } else { "armed" };
            format!("trial={slot} {word} job={job}")
        });
        let mut bytes = text.into_bytes();
        bytes.resize(LENGTH, b'\n');
        bytes
    }
}

/// The partition that the firmware boots by this text, with and without the `tryboot` flag: the last
/// `boot_partition` in a section that holds.
#[must_use]
pub fn boot_partition(text: &str, flag: bool) -> Option<u8> {
    let mut holds = true;
    let mut partition = None;
    for line in text.lines().map(str::trim) {
        if let Some(section) = section(line) {
            holds = match section.to_ascii_lowercase().as_str() {
                "all" => true,
                "tryboot" => flag,
                // `none`, and what only config.txt knows.
                _ => false,
            };
        } else if holds && let Some(("boot_partition", value)) = assignment(line) {
            partition = value.parse().ok().filter(|number| *number > 0);
        }
    }
    partition
}

fn section(line: &str) -> Option<&str> {
    line.strip_prefix('[')?.strip_suffix(']')
}

fn assignment(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.split_once('=')?;
    Some((name.trim(), value.trim()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VENDOR: &str = "[all]\ntryboot_a_b=1\nboot_partition=2\n[tryboot]\nboot_partition=3\n";

    #[test]
    fn the_vendor_s_file_is_understood() {
        let autoboot = Autoboot::parse(VENDOR.as_bytes()).unwrap();
        assert_eq!(autoboot, Autoboot::new(2, 3));
        let crlf = VENDOR.replace('\n', "\r\n");
        assert_eq!(Autoboot::parse(crlf.as_bytes()).unwrap(), autoboot);
    }

    #[test]
    fn what_we_write_begins_with_what_the_firmware_needs_and_has_one_length() {
        let bytes = Autoboot::new(3, 2).render().unwrap();
        assert_eq!(bytes.len(), LENGTH);
        assert!(
            bytes.starts_with(
                b"[all]\ntryboot_a_b=1\nboot_partition=3\n[tryboot]\nboot_partition=2\n"
            )
        );
    }

    #[test]
    fn a_note_that_is_not_whole_is_none() {
        let note = Note {
            slot: Slot::B,
            started: false,
            job: "u1".to_owned(),
        };
        let bytes = Note::render(Some(&note));
        assert_eq!(bytes.len(), LENGTH);
        for broken in [
            &bytes[..12],
            &[0; 480],
            b"\n",
            b"",
            b"trial=c armed job=u",
            b"trial=b maybe job=u",
        ] {
            assert_eq!(Note::parse(broken), None, "{broken:?}");
        }
        assert_eq!(Note::parse(&Note::render(None)), None);
    }

    #[test]
    fn lines_of_others_stay_in_their_sections() {
        let text = "# mine\n[all]\nboot_partition=2\nfoo=1\n[none]\nbar=2\nboot_partition=9\n[tryboot]\nboot_partition=3\nbaz=3\n";
        let autoboot = Autoboot::parse(text.as_bytes()).unwrap();
        assert_eq!((autoboot.default, autoboot.flagged), (2, 3));
        let written = String::from_utf8(autoboot.render().unwrap()).unwrap();
        for kept in [
            "[all]\n# mine\n",
            "[all]\nfoo=1\n",
            "[none]\nbar=2\n",
            "[tryboot]\nbaz=3\n",
        ] {
            assert!(written.contains(kept), "{kept} in {written}");
        }
        assert!(!written.contains("boot_partition=9"));
    }

    #[test]
    fn without_room_for_the_lines_of_others_nothing_is_written() {
        let text = format!("{VENDOR}[all]\n{}\n", "x=".repeat(210));
        let autoboot = Autoboot::parse(text.as_bytes()).unwrap();
        assert_eq!(autoboot.render(), Err(TooLong));
    }

    #[test]
    fn what_names_no_partition_is_unusable() {
        let long = format!("{VENDOR}{}", "#".repeat(LIMIT));
        for text in [
            "",
            "[all]\n",
            "[tryboot]\nboot_partition=3\n",
            "boot_partition=0",
            "boot_partition=x",
            &long,
            "\0\0boot_partition=2",
        ] {
            assert_eq!(Autoboot::parse(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(Autoboot::parse(b"boot_partition=2\xff"), None);
    }

    proptest! {
        #[test]
        fn what_was_written_reads_back_the_same(
            default in 1_u8..8, flagged in 1_u8..8,
            foreign in "(\\[(all|none|tryboot|pi4)\\]\n|[a-z]{1,6}=[a-z0-9]{0,6}\n|#[ a-z]{0,9}\n|\n){0,12}",
        ) {
            let text = format!("{VENDOR}{foreign}");
            let mut autoboot = Autoboot::parse(text.as_bytes()).unwrap();
            (autoboot.default, autoboot.flagged) = (default, flagged);
            let bytes = autoboot.render().unwrap();
            prop_assert_eq!(Autoboot::parse(&bytes).unwrap(), autoboot.clone());
            // A second round changes nothing: the file does not grow.
            prop_assert_eq!(Autoboot::parse(&bytes).unwrap().render().unwrap(), bytes);
        }

        #[test]
        fn a_note_reads_back_the_same(b in any::<bool>(), started in any::<bool>(), job in "[A-Za-z0-9._-]{1,64}") {
            let slot = if b { Slot::B } else { Slot::A };
            let note = Note { slot, started, job };
            prop_assert_eq!(Note::parse(&Note::render(Some(&note))), Some(note));
        }

        #[test]
        fn no_bytes_are_too_much(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = (Autoboot::parse(&bytes), Note::parse(&bytes));
        }
    }
}
