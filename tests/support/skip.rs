//! Says that something was not tested here, past the test runner's capture: a skipped test must not look like one
//! that passed.

use std::{fmt::Display, io::Write};

/// Says it on standard error.
pub(crate) fn skipped(what: impl Display) {
    // The runner captures what the print macros say. Nobody to tell is no reason to fail.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}
