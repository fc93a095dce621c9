//! What the integration tests and the demo share.

// Each program uses its own part of this.
#![allow(dead_code)]

pub(crate) mod connect_proxy;
pub(crate) mod image_server;
pub(crate) mod rig;
pub(crate) mod sdk;
pub(crate) mod skip;

pub(crate) use self::skip::skipped;
