//! What was seen of a hub where it is free to differ: printed as a table at the end.

use std::{
    collections::BTreeMap,
    fmt::Display,
    io::Write,
    sync::{Mutex, PoisonError},
};

/// The notes of a run.
#[derive(Default)]
pub(crate) struct Notes(Mutex<BTreeMap<String, Vec<String>>>);

impl Notes {
    /// Notes what was `seen` of a `point`. Another test may have seen the same, or something else.
    pub(crate) fn note(&self, point: impl Display, seen: impl Display) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = notes.entry(point.to_string()).or_default();
        let seen = seen.to_string();
        if !all.contains(&seen) {
            all.push(seen);
        }
    }

    /// Prints the table, past the harness, which has said its last word.
    pub(crate) fn print(&self, hub: &str) {
        let notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let width = notes.keys().map(|point| point.chars().count()).max();
        let width = width.unwrap_or_default();
        let mut text = format!("\nObserved on {hub}:\n\n");
        for (point, seen) in &*notes {
            text.push_str(&format!("  {point:width$}  {}\n", seen.join(" | ")));
        }
        // Nobody to tell is no reason to fail.
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}
