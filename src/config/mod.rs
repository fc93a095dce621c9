//! Configuration: as written ([`raw`]) -> merged -> valid ([`valid`]).
//!
//! Layers, a later one wins: built-in defaults, `/usr/lib/fwupdated/fwupdated.toml`,
//! `/etc/fwupdated/fwupdated.toml`, `/etc/fwupdated/conf.d/*.toml` in name order, environment variables
//! `FWUPDATED_SECTION__KEY`. A file named on the command line replaces all files.
//!
//! Guarantees: a misspelt key, a wrong type or a value out of range never passes silently, and the error
//! names file, line and column (or the variable); whoever holds a [`Config`] holds a valid one. No value
//! here is a secret: secrets are files that the configuration names.

pub mod effective;
pub mod error;
pub mod raw;
pub mod valid;

mod check;
mod environment;
mod layer;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use error::{ConfigError, Place};
pub use layer::Layer;
pub use valid::*;

use raw::RawConfig;

/// The files read without `--config`, before those in [`DROP_IN_DIR`].
pub const FILES: [&str; 2] = [
    "/usr/lib/fwupdated/fwupdated.toml",
    "/etc/fwupdated/fwupdated.toml",
];

/// Where drop-in files (`*.toml`) are looked for.
pub const DROP_IN_DIR: &str = "/etc/fwupdated/conf.d";

impl Config {
    /// Reads the configuration: the search path, or only `explicit` when given; the environment in both
    /// cases.
    ///
    /// # Errors
    /// [`ConfigError`]: `explicit` is missing, a file cannot be read, or something in it is wrong.
    /// Missing files of the search path are no error.
    pub fn load(explicit: Option<&Path>) -> Result<Self, ConfigError> {
        Self::load_from(&written(explicit)?, variables()?)
    }

    /// Merges `files` (a later one wins) and `environment` over the defaults. Touches nothing outside.
    /// Variables that are no settings (without the prefix `FWUPDATED_` or without `__`) are passed over.
    ///
    /// # Errors
    /// [`ConfigError`] for the first thing that is wrong.
    pub fn load_from(
        files: &[Layer],
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let layers = layers(files, environment)?;
        let raw = merge(&layers)?;
        check::valid(&raw).map_err(|wrong| wrong.located(&layers))
    }

    /// What an empty configuration means.
    ///
    /// # Panics
    /// Never: a test makes it.
    #[must_use]
    pub fn built_in() -> Self {
        check::valid(&RawConfig::default()).expect("the built-in defaults are valid")
    }
}

/// The files of the search path that are there, or only `explicit` when given, in the order in which they count.
///
/// # Errors
/// As [`Config::load`], but for what is wrong in them.
pub fn written(explicit: Option<&Path>) -> Result<Vec<Layer>, ConfigError> {
    match explicit {
        Some(file) => Ok(vec![named(file)?]),
        None => search(&FILES.map(PathBuf::from), Path::new(DROP_IN_DIR)),
    }
}

/// The environment variables that are settings: their names and values.
///
/// # Errors
/// [`ConfigError::Value`]: one is no text.
pub fn variables() -> Result<Vec<(String, String)>, ConfigError> {
    environment::settings(std::env::vars_os())
}

/// What counts of `files` and `environment`, key by key, with where it comes from.
///
/// # Errors
/// As [`Config::load_from`].
pub fn effective(
    files: &[Layer],
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<effective::Setting>, ConfigError> {
    effective::settings(&layers(files, environment)?)
}

/// Both as layers, each read strictly.
fn layers(
    files: &[Layer],
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Vec<Layer>, ConfigError> {
    let mut layers = files.to_vec();
    for layer in &layers {
        layer.read_strictly()?;
    }
    for (name, value) in environment {
        layers.extend(environment::layer(&name, &value)?);
    }
    Ok(layers)
}

/// One setting of each key, the last layer's where several give it.
fn merge(layers: &[Layer]) -> Result<RawConfig, ConfigError> {
    layers
        .iter()
        .fold(config::Config::builder(), |merged, layer| {
            merged.add_source(config::File::from_str(
                &layer.text,
                config::FileFormat::Toml,
            ))
        })
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(|source| ConfigError::Merge {
            source: Box::new(source),
        })
}

fn named(file: &Path) -> Result<Layer, ConfigError> {
    match fs::read(file) {
        Ok(bytes) => Layer::from_bytes(file, bytes),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Err(ConfigError::MissingFile {
            file: file.to_owned(),
            source,
        }),
        Err(source) => Err(ConfigError::Unreadable {
            file: file.to_owned(),
            source,
        }),
    }
}

fn search(files: &[PathBuf], drop_in_dir: &Path) -> Result<Vec<Layer>, ConfigError> {
    let unreadable = |source| ConfigError::Unreadable {
        file: drop_in_dir.to_owned(),
        source,
    };
    let mut drop_ins = Vec::new();
    match fs::read_dir(drop_in_dir) {
        Ok(entries) => {
            for entry in entries {
                let path = entry.map_err(unreadable)?.path();
                if path
                    .extension()
                    .is_some_and(|extension| extension == "toml")
                {
                    drop_ins.push(path);
                }
            }
        }
        Err(source) if source.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(unreadable(source)),
    }
    drop_ins.sort();
    let mut layers = Vec::new();
    for file in files.iter().chain(&drop_ins) {
        match named(file) {
            Err(ConfigError::MissingFile { .. }) => {}
            other => layers.push(other?),
        }
    }
    Ok(layers)
}

#[cfg(test)]
mod tests;
