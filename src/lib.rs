//! fwupdated: a firmware updater for fleets of Raspberry Pis on Azure IoT Hub.
//!
//! The map. Each effect on the world has one file:
//!
//! | effect | file |
//! |---|---|
//! | **the partition is written** | [`platform::slot_writer`] |
//! | the running slot is read | [`platform::running_slot`] |
//! | files of the running system are copied into the new one | [`platform::carry_over`] |
//! | who is logged in and what inhibits a reboot is asked, users are warned | [`platform::logind`] |
//! | **the boot slot is changed** | [`platform::uboot_env`], or [`platform::tryboot`] |
//! | the image is downloaded | [`platform::fetch`] |
//! | the image is read from a file of the device | [`platform::local_file`] |
//! | the hub is spoken to (MQTT) | [`hub::session`] |
//! | state becomes durable | [`platform::state_file`] |
//! | the device reboots | [`platform::reboot`] |
//! | systemd is told and asked | [`platform::service_manager`] |
//! | what happens next is decided | [`update::machine`] (pure) |
//!
//! Which folder may use which: `bin` -> [`daemon`], [`ctl`] -> [`hub`], [`platform`] -> [`image`],
//! [`config`] -> [`update`]. `hub` and `platform` never name each other. `tests/architecture.rs` keeps
//! it so.

pub mod config;
pub mod ctl;
pub mod daemon;
pub mod hub;
pub mod image;
pub mod platform;
pub mod update;
