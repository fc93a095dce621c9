//! WIRES the parts into a daemon.

pub mod control_names;
