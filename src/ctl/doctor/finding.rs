//! What a look at the device found: one line, how bad it is, and what to do about it.

use serde::Serialize;

use crate::update::failure::Failure;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// It could not be looked at.
    Unknown,
    /// Updates work, but something is weaker than it should be.
    Warning,
    /// Updates do not work, or the device is in danger.
    Error,
}

impl Level {
    /// As it is shown.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was looked at: stable, for scripts.
    pub(super) topic: &'static str,
    /// How bad it is.
    pub(super) level: Level,
    /// What was found.
    pub(super) text: String,
    /// What to do. `None` when there is nothing to do, or the text says it (as errors do).
    pub(super) advice: Option<String>,
    /// The code of the error that was met, if it was one.
    pub(super) code: Option<String>,
}

impl Finding {
    fn new(topic: &'static str, level: Level, text: impl Into<String>) -> Self {
        Self {
            topic,
            level,
            text: text.into(),
            advice: None,
            code: None,
        }
    }

    /// It is well.
    pub(super) fn ok(topic: &'static str, text: impl Into<String>) -> Self {
        Self::new(topic, Level::Ok, text)
    }

    /// It works, but.
    pub(super) fn warning(
        topic: &'static str,
        text: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let advice = Some(advice.into());
        Self {
            advice,
            ..Self::new(topic, Level::Warning, text)
        }
    }

    /// It does not work.
    pub(super) fn error(
        topic: &'static str,
        text: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        let advice = Some(advice.into());
        Self {
            advice,
            ..Self::new(topic, Level::Error, text)
        }
    }

    /// It does not work, for a reason that says itself what to do.
    pub(super) fn failure(topic: &'static str, failure: &Failure) -> Self {
        Self {
            code: Some(failure.code.clone()),
            ..Self::new(topic, Level::Error, &failure.message)
        }
    }

    /// It could not be looked at.
    pub(super) fn unknown(topic: &'static str, text: impl Into<String>) -> Self {
        Self::new(topic, Level::Unknown, text)
    }

    /// It could not be looked at for want of rights.
    pub(super) fn forbidden(topic: &'static str, what: &str) -> Self {
        let advice = Some("run `sudo fwupdatectl doctor`".to_owned());
        Self {
            advice,
            ..Self::unknown(topic, format!("{what} may only be read by root"))
        }
    }
}
