//! An update as it goes on, shown alike whether the daemon or the hub tells of it: on a terminal a bar
//! on standard error that lines of standard output scroll past, otherwise one plain line per change.

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;

use super::{
    output::{self, clean},
    pace::Pace,
};

/// A state of an update, as shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    /// The status word.
    pub(super) word: String,
    /// How much of the present stage is done; `None` when unknown or without meaning.
    pub(super) percent: Option<u8>,
    /// Bytes done and in all, where they are known and mean something.
    pub(super) bytes: Option<(u64, u64)>,
    /// What it waits for, or why it failed.
    pub(super) note: Option<String>,
}

impl View {
    /// `21.0 MB of 50.0 MB`; `None` while the total is unknown.
    pub(super) fn amount(&self) -> Option<String> {
        let (done, total) = self.bytes.filter(|(_, total)| *total > 0)?;
        Some(format!(
            "{} of {}",
            output::bytes(done),
            output::bytes(total)
        ))
    }

    /// One line without the time: `downloading        42 %  21.0 MB of 50.0 MB`.
    pub(super) fn line(&self) -> String {
        let percent = self
            .percent
            .map_or_else(String::new, |percent| format!("{percent} %"));
        let mut line = format!("{:<16}  {percent:>5}", clean(&self.word));
        for more in [self.amount().as_ref(), self.note.as_ref()]
            .into_iter()
            .flatten()
        {
            line.push_str("  ");
            line.push_str(&clean(more));
        }
        line.trim_end().to_owned()
    }
}

/// Shows each change once.
pub(super) struct Display {
    bar: ProgressBar,
    began: Instant,
    pace: Pace,
    last: Option<View>,
}

impl Display {
    pub(super) fn new() -> Self {
        // Only a bar whose lines do not end up in a file or pipe.
        let target = if io::stderr().is_terminal() {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(100), target);
        bar.set_style(
            ProgressStyle::with_template(
                "{spinner} {prefix:<16} [{bar:30}] {pos:>3} %  {wide_msg}",
            )
            .expect("the template is valid")
            .progress_chars("=> "),
        );
        Self {
            bar,
            began: Instant::now(),
            pace: Pace::default(),
            last: None,
        }
    }

    /// Whether someone sits before it.
    pub(super) fn is_interactive(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// Shows `view` unless it is the last one. Returns the change, if it was one.
    pub(super) fn show(&mut self, view: View) -> Option<&View> {
        if self.last.as_ref() == Some(&view) {
            return None;
        }
        let same_stage = self
            .last
            .as_ref()
            .is_some_and(|last| last.word == view.word && last.note == view.note);
        self.bar.set_prefix(clean(&view.word).into_owned());
        self.bar.set_position(view.percent.unwrap_or(0).into());
        let pace = view.bytes.filter(|(_, total)| *total > 0);
        let pace = pace.and_then(|bytes| self.pace.see(&view.word, bytes, self.began.elapsed()));
        let message: Vec<_> = view.amount().into_iter().chain(pace).collect();
        self.bar.set_message(message.join("  "));
        if !self.bar.is_hidden() {
            self.bar.enable_steady_tick(Duration::from_millis(200));
        }
        // Where there is a bar, progress within a stage is the bar's.
        if self.bar.is_hidden() || !same_stage {
            self.line(format!(
                "{}  {}",
                output::time(Timestamp::now()),
                view.line()
            ));
        }
        self.last = Some(view);
        self.last.as_ref()
    }

    /// A line of standard output above the bar.
    pub(super) fn line(&self, text: impl AsRef<str>) {
        self.bar.suspend(|| output::line(text));
    }

    /// A line of standard error above the bar.
    pub(super) fn note(&self, text: impl AsRef<str>) {
        self.bar.suspend(|| output::note(text));
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(word: &str, percent: Option<u8>, note: Option<&str>) -> View {
        View {
            word: word.to_owned(),
            percent,
            bytes: None,
            note: note.map(str::to_owned),
        }
    }

    #[test]
    fn lines_have_fixed_columns() {
        assert_eq!(view("waiting", None, None).line(), "waiting");
        assert_eq!(
            view("downloading", Some(7), None).line(),
            "downloading         7 %"
        );
        assert_eq!(
            view("applyFailed", None, Some("boom")).line(),
            "applyFailed              boom"
        );
        let with_amount = View {
            bytes: Some((21_000_000, 50_000_000)),
            ..view("downloading", Some(42), None)
        };
        assert_eq!(
            with_amount.line(),
            "downloading        42 %  21.0 MB of 50.0 MB"
        );
        let of_unknown_size = View {
            bytes: Some((5, 0)),
            ..view("downloading", None, None)
        };
        assert_eq!(of_unknown_size.amount(), None);
    }

    #[test]
    fn the_same_state_is_shown_once() {
        let mut display = Display::new();
        assert!(display.show(view("waiting", None, None)).is_some());
        assert!(display.show(view("waiting", None, None)).is_none());
        assert!(
            display
                .show(view("waiting", None, Some("window")))
                .is_some()
        );
    }
}
