//! ACTS on this board, one effect a file.

mod busy;
pub mod carry_over;
pub mod device_certificate;
pub mod fetch;
pub mod ioctl;
pub mod local_file;
pub mod logind;
pub mod reboot;
pub mod running_slot;
pub mod service_manager;
pub mod slot_writer;
pub mod slots;
pub mod state_file;
pub mod tls;
pub mod tryboot;
pub mod uboot_env;
pub mod watchdog;
