//! WIRES the parts into a daemon.
