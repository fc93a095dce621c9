//! Configuration: as written ([`raw`]) -> merged -> valid ([`valid`]).

pub mod valid;

pub use valid::*;
