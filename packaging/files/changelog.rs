//! `CHANGELOG.md` in the form of deb-changelog(5): one entry a version, the newest first.

use std::error::Error;

use jiff::{Timestamp, tz::TimeZone};
use pulldown_cmark::{Event, HeadingLevel, Parser, Tag, TagEnd};

/// Width of a line, as Debian's tools write it.
const WIDTH: usize = 78;

/// The whole file. What is not released yet counts as `version`, changed when it was `built`; a released version's
/// heading is `## 1.2.3 - 2026-12-31`.
pub(crate) fn debian(
    markdown: &str,
    package: &str,
    version: &str,
    maintainer: &str,
    built: Timestamp,
) -> Result<String, Box<dyn Error>> {
    let mut text = String::new();
    for (heading, changes) in entries(markdown) {
        let (version, at) = match heading.split_once(" - ") {
            Some((version, day)) => {
                let day: jiff::civil::Date = day.parse()?;
                (version, TimeZone::UTC.to_timestamp(day.at(0, 0, 0, 0))?)
            }
            None => (version, built),
        };
        text += &format!("{package} ({version}-1) unstable; urgency=medium\n\n");
        for change in changes {
            text += &wrapped(&change);
        }
        let at = at.strftime("%a, %d %b %Y %H:%M:%S +0000");
        text += &format!("\n -- {maintainer}  {at}\n\n");
    }
    match text.is_empty() {
        true => Err("CHANGELOG.md has no entry".into()),
        false => Ok(text.trim_end().to_owned() + "\n"),
    }
}

/// Each second heading with the paragraphs and items below it, as plain text.
fn entries(markdown: &str) -> Vec<(String, Vec<String>)> {
    let mut entries: Vec<(String, Vec<String>)> = Vec::new();
    let mut text = String::new();
    for event in Parser::new(markdown) {
        match event {
            Event::Text(more) | Event::Code(more) => text.push_str(&more),
            Event::SoftBreak | Event::HardBreak => text.push(' '),
            Event::Start(Tag::Heading { .. } | Tag::Item | Tag::Paragraph) => text.clear(),
            Event::End(TagEnd::Heading(HeadingLevel::H2)) => {
                entries.push((std::mem::take(&mut text), Vec::new()));
            }
            Event::End(TagEnd::Paragraph | TagEnd::Item) if !text.is_empty() => {
                if let Some((_, changes)) = entries.last_mut() {
                    changes.push(std::mem::take(&mut text));
                }
            }
            _ => {}
        }
    }
    entries
}

/// One change: a bullet, with the lines below it indented.
fn wrapped(change: &str) -> String {
    let mut text = String::from("  *");
    let mut column = text.len();
    for word in change.split_whitespace() {
        if column + 1 + word.chars().count() > WIDTH {
            text.push_str("\n   ");
            column = 3;
        }
        text.push(' ');
        text.push_str(word);
        column += 1 + word.chars().count();
    }
    text + "\n"
}
