//! THE CLI `fwupdatectl`: this device ([`local`]), images ([`image`]), the hub's service side ([`hub`]).

pub mod hub;
pub mod image;
pub mod local;
