//! What the integration tests and the demo share.

// Each program uses its own part of this.
#![allow(dead_code)]

pub(crate) mod image_server;
pub(crate) mod rig;
pub(crate) mod sdk;

/// Says past the test runner's capture that something was not tested here.
pub(crate) fn skipped(what: &str, why: &str) {
    use std::io::Write;
    // The runner captures what the print macros say; a skipped test must not look like one that passed.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}: {why}");
}
