//! See `fwupdated::lib`.
fn main() {}
