//! `fwupdatectl image ...`: makes keys and images, signs, checks and shows them. Runs on a
//! workstation or in CI and needs neither a device nor a daemon.
//!
//! Exit codes: 0 done and good; 1 the image is not good (or not trusted); 2 the command could not be
//! carried out (wrong usage, a file that cannot be read or written, a key that cannot be used). Files
//! are replaced as a whole or not at all.

mod build;
mod delta;
mod diff;
mod input;
mod keys;
mod old;
mod output;
mod plain;
mod show;
mod sign;

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    image::{ImageError, KeyFileError, PlainError, SigningError},
    update::failure::{Class, Coded, Failure},
};

/// Make keys and images, sign, check and show them.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Make a key pair: KEY (secret, for the build machine) and KEY.pub (for the devices)
    Keygen(KeygenArgs),
    /// Build an image from a root file system
    Build(BuildArgs),
    /// Make a delta: a small file beside NEW for devices that run OLD
    Delta(DeltaArgs),
    /// Add a signature to an image, or write one beside a plain image (FILE.minisig)
    Sign(SignArgs),
    /// Write the signed bytes (the manifest), for signing elsewhere
    Manifest(ManifestArgs),
    /// Check an image from the first byte to the last (a plain one with FILE.minisig beside it)
    Verify(VerifyArgs),
    /// Show what an image says, without checking who signed it
    Inspect(InspectArgs),
    /// Show what a device that runs OLD would download to install NEW
    Diff(DiffArgs),
}

/// How a secret key is protected.
#[derive(Debug, Args)]
pub struct PasswordArgs {
    /// File whose first line is the password of the secret key
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

/// `keygen`.
#[derive(Debug, Args)]
pub struct KeygenArgs {
    /// File for the secret key; the public key goes to the same name with `.pub`
    #[arg(long, short, value_name = "KEY")]
    output: PathBuf,
    #[command(flatten)]
    password: PasswordArgs,
    /// Do not protect the secret key with a password
    #[arg(long, conflicts_with = "password_file")]
    no_password: bool,
}

/// `build`.
#[derive(Debug, Args)]
#[command(disable_version_flag = true)]
pub struct BuildArgs {
    /// Root file system: an image file or a block device that is not in use
    #[arg(long, value_name = "FILE")]
    rootfs: PathBuf,
    /// Boot partition: an image file or a block device that is not in use
    #[arg(long, value_name = "FILE")]
    boot: Option<PathBuf>,
    /// Version of the firmware
    #[arg(long, value_name = "V")]
    version: String,
    /// Boards that can run it, as in /proc/device-tree/compatible
    #[arg(long, value_name = "NAME", required = true, num_args = 1..)]
    compatible: Vec<String>,
    /// Name of the product
    #[arg(long, default_value = "firmware")]
    name: String,
    /// Raised when older versions must never come back
    #[arg(long, value_name = "E", default_value_t = 0)]
    security_epoch: u64,
    /// Time to write into the manifest (RFC 3339) [default: $SOURCE_DATE_EPOCH, else now]
    #[arg(long, value_name = "TIME")]
    created: Option<jiff::Timestamp>,
    /// Secret key to sign with; may be given several times
    #[arg(long, value_name = "KEY")]
    key: Vec<PathBuf>,
    #[command(flatten)]
    password: PasswordArgs,
    /// zstd level, up to 22
    #[arg(long, default_value_t = crate::image::limits::DEFAULT_LEVEL, allow_negative_numbers = true)]
    level: i32,
    /// Average size of a chunk, like 16K [default: 16K, more for large images]
    #[arg(long, value_name = "S", value_parser = parse_size)]
    chunk_size: Option<u32>,
    /// Threads that compress [default: one for each processor]
    #[arg(long, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,
    /// File for the image; replaced if it exists
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Older images that devices run: makes a delta from each, beside the new image
    #[arg(long, value_name = "OLD", num_args = 1..)]
    base: Vec<PathBuf>,
}

/// `delta`.
#[derive(Debug, Args)]
pub struct DeltaArgs {
    /// What the devices run: an image, or the raw file or block device that was installed
    old: PathBuf,
    /// Image to be installed
    new: PathBuf,
    /// File for the delta; replaced if it exists [default: where devices look for it, NEW.from-DIGITS.delta]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// zstd level, up to 22
    #[arg(long, default_value_t = crate::image::delta::build::DEFAULT_LEVEL, allow_negative_numbers = true)]
    level: i32,
    /// Threads that compress [default: one for each processor]
    #[arg(long, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,
    /// Result as one JSON document
    #[arg(long)]
    json: bool,
}

/// `sign`.
#[derive(Debug, Args)]
pub struct SignArgs {
    /// Image to be signed; replaced as a whole, but a plain one stays as it is
    file: PathBuf,
    /// Secret key to sign with; may be given several times
    #[arg(long, value_name = "KEY", required_unless_present = "signature")]
    key: Vec<PathBuf>,
    #[command(flatten)]
    password: PasswordArgs,
    /// Signature over the manifest made elsewhere: by `minisign -S`, or `openssl dgst -sha256 -sign`
    #[arg(long, value_name = "FILE")]
    signature: Vec<PathBuf>,
}

/// `manifest`.
#[derive(Debug, Args)]
pub struct ManifestArgs {
    /// Image, `-` for standard input
    file: PathBuf,
    /// File for the manifest [default: standard output]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// `verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Image, `-` for standard input
    file: PathBuf,
    /// Public key that must have signed it; may be given several times
    #[arg(long, value_name = "KEY.pub", required_unless_present = "unsigned")]
    key: Vec<PathBuf>,
    /// How many of the keys must have signed it
    #[arg(long, value_name = "N", default_value = "1")]
    threshold: std::num::NonZeroUsize,
    /// Check that it is complete and undamaged, not who made it
    #[arg(long, conflicts_with_all = ["key", "threshold"])]
    unsigned: bool,
}

/// `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Image, `-` for standard input
    file: PathBuf,
    /// As one JSON document
    #[arg(long)]
    json: bool,
}

/// `diff`.
#[derive(Debug, Args)]
pub struct DiffArgs {
    /// What the device runs: an image, a raw or packed file system, or a block device
    old: PathBuf,
    /// Image to be installed
    new: PathBuf,
    /// As one JSON document
    #[arg(long)]
    json: bool,
}

/// Why a command was not carried out, or its image is not good.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    /// An image, in its own words.
    #[error("{path}")]
    Image { path: String, source: ImageError },
    /// An image without a manifest, or what is none.
    #[error("{path}")]
    Plain { path: String, source: PlainError },
    /// A secret key.
    #[error("{path}")]
    SecretKey { path: String, source: SigningError },
    /// A public key.
    #[error(transparent)]
    PublicKey(#[from] KeyFileError),
    /// A file.
    #[error("cannot {action} {path}")]
    File {
        action: &'static str,
        path: String,
        source: io::Error,
    },
    /// Options that do not fit together, or with what is there.
    #[error("{0}")]
    Usage(String),
}

impl CommandError {
    fn file(action: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::File {
            action,
            path,
            source,
        }
    }

    fn image(path: &std::path::Path) -> impl Fn(ImageError) -> Self {
        let path = path.display().to_string();
        move |source| Self::Image {
            path: path.clone(),
            source,
        }
    }

    fn plain(path: &std::path::Path) -> impl FnOnce(PlainError) -> Self {
        let path = path.display().to_string();
        move |source| Self::Plain { path, source }
    }

    /// 1 says something about the image, 2 about everything else.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Image { source, .. } => match source {
                ImageError::Read(_) | ImageError::Write(_) | ImageError::Build(_) => 2,
                _ => 1,
            },
            Self::Plain { .. } => 1,
            Self::SecretKey { .. } | Self::PublicKey(_) | Self::File { .. } | Self::Usage(_) => 2,
        }
    }
}

impl Coded for CommandError {
    fn code(&self) -> &'static str {
        match self {
            Self::Image { source, .. } => source.code(),
            Self::Plain { source, .. } => source.code(),
            Self::SecretKey { source, .. } => source.code(),
            Self::PublicKey(source) => source.code(),
            Self::File { .. } => "image-command-file",
            Self::Usage(_) => "image-command-usage",
        }
    }

    fn class(&self) -> Class {
        Class::Final
    }
}

/// Carries out one command, and says on standard error why not.
pub fn run(command: ImageCommand) -> ExitCode {
    let result = match command {
        ImageCommand::Keygen(args) => keys::keygen(&args),
        ImageCommand::Build(args) => build::build(&args),
        ImageCommand::Delta(args) => delta::delta(&args),
        ImageCommand::Sign(args) => sign::sign(&args),
        ImageCommand::Manifest(args) => show::manifest(&args),
        ImageCommand::Verify(args) => show::verify(&args),
        ImageCommand::Inspect(args) => show::inspect(&args),
        ImageCommand::Diff(args) => diff::diff(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let text = Failure::from(&error);
            // Nothing is left to tell when standard error is gone.
            let _ = writeln!(io::stderr(), "fwupdatectl: {text}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Writes to standard output; a reader that went away (`| head`) is no error.
fn print(bytes: &[u8]) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CommandError::file(
            "write to",
            "standard output".as_ref(),
        )(error)),
        _ => Ok(()),
    }
}

/// A bar on standard error, if that is a terminal.
fn progress_bar(size: u64, doing: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{msg} {bar:30} {percent:>3}% {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}",
    )
    .expect("the template is constant and tested");
    ProgressBar::new(size).with_style(style).with_message(doing)
}

/// `4096`, `64K`, `1M`.
fn parse_size(text: &str) -> Result<u32, String> {
    let (digits, factor) = match text.strip_suffix(['K', 'k']) {
        Some(digits) => (digits, 1 << 10),
        None => match text.strip_suffix(['M', 'm']) {
            Some(digits) => (digits, 1 << 20),
            None => (text, 1),
        },
    };
    digits
        .parse::<u32>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| "expected a number of bytes, like 65536, 64K or 1M".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(subcommand)]
        command: ImageCommand,
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Program::command().debug_assert();
        progress_bar(1, "x").finish_and_clear();
    }

    #[test]
    fn the_documented_build_line_is_understood() {
        let line = "x build --rootfs a.img --version 1.4.0 --compatible one two --compatible three \
             --name n --security-epoch 3 --key k --level 3 --chunk-size 64K --output b.zst";
        let Ok(Program {
            command: ImageCommand::Build(args),
        }) = Program::try_parse_from(line.split_whitespace())
        else {
            panic!("not understood");
        };
        assert_eq!(args.compatible, ["one", "two", "three"]);
        assert_eq!((args.chunk_size, args.security_epoch), (Some(65536), 3));
    }

    #[test]
    fn sizes_have_units_and_limits() {
        for (text, size) in [
            ("4096", Some(4096)),
            ("64K", Some(65536)),
            ("1M", Some(1 << 20)),
        ] {
            assert_eq!(parse_size(text).ok(), size);
        }
        for text in ["", "K", "-1", "1G", "4194304K", "0x10"] {
            parse_size(text).unwrap_err();
        }
    }

    #[test]
    fn verify_wants_keys_or_an_explicit_no() {
        assert!(Program::try_parse_from(["x", "verify", "f"]).is_err());
        assert!(Program::try_parse_from(["x", "verify", "f", "--unsigned"]).is_ok());
        assert!(Program::try_parse_from(["x", "verify", "f", "--key", "k"]).is_ok());
        assert!(Program::try_parse_from(["x", "sign", "f"]).is_err());
    }
}
