//! One layer of the configuration, read strictly: what `config` would coerce or pass over is an error
//! here, with the place where it stands.

use std::{ops::Range, path::Path, sync::LazyLock};

use serde::Deserialize as _;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{ConfigError, Place},
    raw::RawConfig,
};

/// Every key there is, with its default.
static KNOWN: LazyLock<toml::Table> = LazyLock::new(|| {
    toml::Table::try_from(RawConfig::default()).expect("the built-in defaults are TOML")
});

/// The text of one layer and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// File, or environment variable: what errors name.
    pub name: String,
    /// TOML.
    pub text: String,
    /// False for an environment variable, whose `text` nobody wrote.
    pub(super) has_lines: bool,
}

impl Layer {
    /// A file's text.
    #[must_use]
    pub fn file(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
            has_lines: true,
        }
    }

    pub(super) fn from_bytes(file: &Path, bytes: Vec<u8>) -> Result<Self, ConfigError> {
        let name = file.display().to_string();
        String::from_utf8(bytes)
            .map(|text| Self::file(name.clone(), text))
            .map_err(|error| {
                let good = error.utf8_error().valid_up_to();
                let before = String::from_utf8_lossy(&error.as_bytes()[..good]).into_owned();
                ConfigError::Syntax {
                    place: Self::file(name, before).place(Some(good..good)),
                    message: "the file is not UTF-8 text".to_owned(),
                }
            })
    }

    /// Refuses what is not TOML, keys that do not exist and values of the wrong type.
    pub(super) fn read_strictly(&self) -> Result<(), ConfigError> {
        let table = DeTable::parse(&self.text).map_err(|error| ConfigError::Syntax {
            place: self.place(error.span()),
            message: one_line(error.message()),
        })?;
        self.refuse_unknown(table.get_ref(), &KNOWN, "")?;
        toml::Deserializer::parse(&self.text)
            .and_then(RawConfig::deserialize)
            .map(drop)
            .map_err(|error| {
                let place = self.place(error.span());
                let message = one_line(error.message());
                // serde's own words for a wrong type; everything else is a value our types refuse.
                if message.starts_with("invalid type") {
                    ConfigError::Type { place, message }
                } else {
                    ConfigError::Value { place, message }
                }
            })
    }

    fn refuse_unknown(
        &self,
        found: &DeTable<'_>,
        known: &toml::Table,
        section: &str,
    ) -> Result<(), ConfigError> {
        for (key, value) in found {
            let name: &str = key.get_ref();
            let path = join(section, name);
            match (known.get(name), value.get_ref()) {
                (None, _) => {
                    return Err(ConfigError::UnknownKey {
                        place: self.place(Some(key.span())),
                        advice: advice(&path, known, section),
                        key: path,
                    });
                }
                (Some(toml::Value::Table(known)), DeValue::Table(found)) => {
                    self.refuse_unknown(found, known, &path)?;
                }
                (Some(_), _) => {}
            }
        }
        Ok(())
    }

    /// Where this layer gives `key` (`section.name`) a value, if it does.
    pub(super) fn place_of(&self, key: &str) -> Option<Place> {
        let table = DeTable::parse(&self.text).ok()?;
        let mut path = key.split('.');
        let mut value: &Spanned<DeValue<'_>> = table.get_ref().get(path.next()?)?;
        for name in path {
            value = value.get_ref().as_table()?.get(name)?;
        }
        Some(self.place(Some(value.span())))
    }

    fn place(&self, span: Option<Range<usize>>) -> Place {
        let position = span.filter(|_| self.has_lines).map(|span| {
            let mut end = span.start.min(self.text.len());
            while !self.text.is_char_boundary(end) {
                end -= 1;
            }
            let before = &self.text[..end];
            let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
            (
                before.matches('\n').count() + 1,
                before[line_start..].chars().count() + 1,
            )
        });
        Place {
            name: self.name.clone(),
            position,
        }
    }
}

/// Every key in `table`, as `section.name`, sorted.
pub(super) fn keys(table: &toml::Table, section: &str) -> Vec<String> {
    let mut all = Vec::new();
    for (name, value) in table {
        let path = join(section, name);
        match value {
            toml::Value::Table(inner) => all.extend(keys(inner, &path)),
            _ => all.push(path),
        }
    }
    all
}

fn join(section: &str, name: &str) -> String {
    if section.is_empty() {
        name.to_owned()
    } else {
        format!("{section}.{name}")
    }
}

/// The closest key, by letters or because only its section is missing; else what there is to choose from.
fn advice(unknown: &str, siblings: &toml::Table, section: &str) -> String {
    let name = unknown.rsplit('.').next().unwrap_or(unknown);
    let close = |candidate: &String| {
        let whole = strsim::normalized_damerau_levenshtein(unknown, candidate);
        let last = candidate.rsplit('.').next().unwrap_or(candidate);
        // A right name in the wrong section beats a similar name.
        whole.max(if last == name { 0.95 } else { 0.0 })
    };
    let closest = keys(&KNOWN, "")
        .into_iter()
        .chain(siblings.keys().map(|sibling| join(section, sibling)))
        .map(|candidate| (close(&candidate), candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match closest {
        Some((similarity, key)) if similarity > 0.6 => format!("did you mean `{key}`?"),
        _ => {
            let place = if section.is_empty() {
                "the sections are".to_owned()
            } else {
                format!("[{section}] has")
            };
            format!(
                "{place} {}",
                siblings.keys().cloned().collect::<Vec<_>>().join(", ")
            )
        }
    }
}

/// The parser writes some messages on several lines.
fn one_line(message: &str) -> String {
    message
        .lines()
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(", ")
}
