//! What every error of the product has: a stable code, a message for people, and a class.
//!
//! Each area has its own error enum; all implement [`Coded`]. Where an error leaves its area (state
//! file, twin, journal, method answer, CLI) it travels as a [`Failure`], which is plain data. The codes
//! are listed in `docs/reference/errors.md`; a test compares the list with the sources.

use std::{error::Error, fmt};

use serde::{Deserialize, Serialize};

/// What can be done about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Trying the same again soon may work (network, server busy).
    Retry,
    /// It can work later, once something outside changed (clock, disk space, policy).
    Wait,
    /// The same will fail again: someone must change the image, the configuration or the device.
    Final,
}

/// An error with a stable, kebab-case code.
pub trait Coded: Error {
    /// Stable name, the same in journal, twin, method answers, CLI and documentation.
    fn code(&self) -> &'static str;
    /// What can be done about it.
    fn class(&self) -> Class;
}

/// An error as data: what is stored, reported and shown. Holds no secrets, as no error text may.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Stable kebab-case name.
    pub code: String,
    /// What failed, on what, why, and what to do about it.
    pub message: String,
    /// What can be done about it.
    pub class: Class,
}

impl Failure {
    /// A failure that is born outside an error enum (for example a reason to roll back).
    pub fn new(code: &str, class: Class, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            class,
        }
    }

    /// Why a request is not taken while the program ends.
    #[must_use]
    pub fn stopping() -> Self {
        let text = "fwupdated is stopping; try again when it runs";
        Failure::new("stopping", Class::Wait, text)
    }
}

impl<E: Coded> From<&E> for Failure {
    fn from(error: &E) -> Self {
        Self {
            code: error.code().to_owned(),
            message: chain(error),
            class: error.class(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.message, self.code)
    }
}

/// The whole text of `error`: itself and each cause, separated by `: `, each once.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let next = source.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = source.source();
    }
    text
}
