//! What the integration tests and the demo share.

// Each program uses its own part of this.
#![allow(dead_code)]

pub(crate) mod browser;
pub(crate) mod bus;
pub(crate) mod connect_proxy;
pub(crate) mod figures;
pub(crate) mod guest_shell;
pub(crate) mod image_server;
pub(crate) mod loop_mount;
pub(crate) mod own_hub;
pub(crate) mod process;
pub(crate) mod promtool;
pub(crate) mod random;
pub(crate) mod rig;
pub(crate) mod sdk;
pub(crate) mod skip;
pub(crate) mod story;

pub(crate) use self::skip::skipped;
