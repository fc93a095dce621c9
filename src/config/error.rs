//! What can be wrong with a configuration, and where.

use std::{fmt, io, path::PathBuf};

use crate::update::failure::{Class, Coded};

/// Where in the configuration something stands. Shown as `file:line:column`, or as the name of an
/// environment variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// File, or environment variable.
    pub name: String,
    /// Line and column, from 1, the column in characters. `None` for variables and whole files.
    pub position: Option<(usize, usize)>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match self.position {
            Some((line, column)) => write!(f, ":{line}:{column}"),
            None => Ok(()),
        }
    }
}

/// Why there is no valid configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML.
    #[error("{place}: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the parser says.
        message: String,
    },
    /// A key that does not exist.
    #[error("{place}: unknown key `{key}`; {advice}")]
    UnknownKey {
        /// Where.
        place: Place,
        /// The whole key as written.
        key: String,
        /// The closest valid key, or the keys there are.
        advice: String,
    },
    /// A value of the wrong type.
    #[error("{place}: {message}")]
    Type {
        /// Where.
        place: Place,
        /// What was found and what is expected.
        message: String,
    },
    /// A value of the right type that means nothing, is out of range or contradicts another one.
    #[error("{place}: {message}")]
    Value {
        /// Where.
        place: Place,
        /// What was found and what is allowed.
        message: String,
    },
    /// The file named on the command line does not exist.
    #[error("the configuration file {} does not exist; check the path after --config", file.display())]
    MissingFile {
        /// The file.
        file: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A file or folder is there but cannot be read.
    #[error("cannot read the configuration in {}; check its owner and mode", file.display())]
    Unreadable {
        /// The file or folder.
        file: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Files that are each right could not be merged. Not expected to happen.
    #[error("cannot merge the configuration files")]
    Merge {
        /// What the merge says.
        source: Box<config::ConfigError>,
    },
}

impl Coded for ConfigError {
    fn code(&self) -> &'static str {
        match self {
            Self::Syntax { .. } => "config-syntax",
            Self::UnknownKey { .. } => "config-unknown-key",
            Self::Type { .. } => "config-type",
            Self::Value { .. } => "config-value",
            Self::MissingFile { .. } => "config-missing-file",
            Self::Unreadable { .. } => "config-unreadable",
            Self::Merge { .. } => "config-merge",
        }
    }

    fn class(&self) -> Class {
        Class::Final
    }
}
