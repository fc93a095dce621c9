//! What every command shares in showing things: lines that survive a closed pipe, times, sizes, tables.
//!
//! Guarantee: text that came from elsewhere (hub, twin, daemon) goes through [`clean`] first, so that no
//! device can send escape sequences to an operator's terminal.

use std::{
    borrow::Cow,
    io::{self, Write as _},
};

use jiff::Timestamp;

use super::exit;

/// Prints one line to standard output. Ends the program when nobody reads it any more.
pub(super) fn line(text: impl AsRef<str>) {
    let mut out = io::stdout().lock();
    if let Err(error) = writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush()) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(exit::BROKEN_PIPE.into());
        }
        note(format!("cannot write to standard output: {error}"));
        std::process::exit(exit::FAILED.into());
    }
}

/// Prints one line to standard error, where it does not disturb what a script reads.
pub(super) fn note(text: impl AsRef<str>) {
    // There is nobody left to tell when this fails.
    let _ = writeln!(io::stderr().lock(), "fwupdatectl: {}", text.as_ref());
}

/// `text` with control characters replaced: safe for a terminal, and one line.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    // The bidirectional controls can make a line read as another one.
    let unsafe_for_terminals = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if text.contains(unsafe_for_terminals) {
        Cow::Owned(text.replace(unsafe_for_terminals, "\u{fffd}"))
    } else {
        Cow::Borrowed(text)
    }
}

/// `2026-01-31T12:34:56Z`.
pub(super) fn time(time: Timestamp) -> String {
    crate::update::status::seconds(time)
}

/// `999 B`, `1.0 kB`, `21.5 MB`: decimal units, one decimal, rounded down.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut unit = 1000_u64;
    let mut name = 0;
    while bytes / unit >= 1000 {
        unit *= 1000;
        name += 1;
    }
    format!(
        "{}.{} {}",
        bytes / unit,
        bytes % unit / (unit / 10),
        UNITS[name]
    )
}

/// Rows under a heading, columns aligned, two blanks apart, no blanks at the end of a line.
pub(super) fn table(heading: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| {
        let cell = |row: &Vec<String>| row.get(column).map_or(0, |cell| cell.chars().count());
        rows.iter()
            .map(cell)
            .max()
            .unwrap_or(0)
            .max(heading[column].len())
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let format = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![format(&mut heading.iter().copied())];
    lines.extend(
        rows.iter()
            .map(|row| format(&mut row.iter().map(String::as_str))),
    );
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_have_one_decimal_and_never_claim_too_much() {
        for (size, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_999, "999.9 kB"),
            (21_550_000, "21.5 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn times_are_utc_seconds() {
        assert_eq!(time(Timestamp::UNIX_EPOCH), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn columns_line_up_without_blanks_at_the_end() {
        let rows = vec![
            vec!["pi-é1".to_owned(), "x".to_owned()],
            vec!["p".to_owned(), String::new()],
        ];
        assert_eq!(
            table(&["ID", "STATE"], &rows),
            ["ID     STATE", "pi-é1  x", "p"]
        );
    }

    proptest! {
        #[test]
        fn cleaned_text_has_no_control_character(text in any::<String>()) {
            prop_assert!(!clean(&text).contains(char::is_control));
        }

        #[test]
        fn every_size_has_a_text(size in any::<u64>()) {
            prop_assert!(bytes(size).len() <= 8);
        }
    }
}
