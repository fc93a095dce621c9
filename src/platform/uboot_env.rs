//! uboot_env
