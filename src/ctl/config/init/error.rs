//! Why `config init` makes no configuration.

use std::{io, path::PathBuf};

use crate::{
    config::ConfigError,
    hub::credentials::CredentialsError,
    platform::slots,
    update::failure::{Class, Coded},
};

/// Why no configuration was made. Nothing was written then, but by [`InitError::Write`].
#[derive(Debug, thiserror::Error)]
pub(super) enum InitError {
    /// A file is there.
    #[error("{} is there already; look at it, or replace it with --force", .0.display())]
    Exists(PathBuf),
    /// The slots are not known.
    #[error(
        "the partitions of the slots are not known: {0}. Give both with --slot-a and --slot-b (`lsblk -o \
         NAME,PARTLABEL,PARTUUID,MOUNTPOINT` shows them); the one that does not run is overwritten by the next update"
    )]
    Slots(String),
    /// With tryboot, boot partitions are needed.
    #[error(
        "the boot partitions of the slots are not known, which the Raspberry Pi's firmware boots (tryboot); give both with \
         --boot-a and --boot-b"
    )]
    Boot,
    /// What decides the slot is not known.
    #[error(
        "what decides the slot is not known: {0}. Give --bootloader uboot or --bootloader tryboot"
    )]
    Bootloader(String),
    /// The identity is none.
    #[error("{what} is of no use")]
    ConnectionString {
        what: String,
        source: CredentialsError,
    },
    /// It is a connection string for a certificate, which is missing.
    #[error(
        "the connection string asks for a certificate (x509=true); give --certificate-file and --private-key-file too"
    )]
    NoCertificate,
    /// The provisioning key is none.
    #[error(
        "{0} is not the device's own symmetric key in base64; copy it from the enrollment, or derive it from the group's"
    )]
    Key(String),
    /// A file with a secret cannot be read.
    #[error("{what} cannot be read")]
    Read { what: String, source: io::Error },
    /// Nothing could be written.
    #[error("{} cannot be written; run it as root", .file.display())]
    Write { file: PathBuf, source: io::Error },
    /// What would be written is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The slots are not as they should be.
    #[error(transparent)]
    Board(#[from] slots::SlotsError),
}

impl Coded for InitError {
    fn code(&self) -> &'static str {
        match self {
            Self::Exists(_) => "config-init-exists",
            Self::Slots(_) | Self::Boot => "config-init-slots",
            Self::Bootloader(_) => "config-init-bootloader",
            Self::ConnectionString { source, .. } => source.code(),
            Self::NoCertificate | Self::Key(_) => "config-init-identity",
            Self::Read { .. } => "config-init-read",
            Self::Write { .. } => "config-init-write",
            Self::Config(source) => source.code(),
            Self::Board(source) => source.code(),
        }
    }

    fn class(&self) -> Class {
        Class::Final
    }
}
