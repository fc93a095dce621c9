//! Environment variables `FWUPDATED_SECTION__KEY` as layers of the configuration.
//!
//! A variable has no type, so its text is read as a string, then as a TOML value, then as a list with
//! commas, and the first that fits the key's type counts. Each variable is one layer, read as strictly as
//! a file; errors name the variable.

use std::ffi::OsString;

use super::{
    error::{ConfigError, Place},
    layer::Layer,
};

const PREFIX: &str = "FWUPDATED_";

/// Between section and key; a single `_` could not tell them from a key with an underscore.
const SEPARATOR: &str = "__";

/// The variables that are settings, in name order so that the outcome never depends on theirs.
pub(super) fn settings(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let mut settings = Vec::new();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| path(name).is_some()) else {
            continue;
        };
        let value = value.into_string().map_err(|_| ConfigError::Value {
            place: Place {
                name: name.to_owned(),
                position: None,
            },
            message: "the variable's value is not UTF-8 text".to_owned(),
        })?;
        settings.push((name.to_owned(), value));
    }
    settings.sort();
    Ok(settings)
}

fn path(name: &str) -> Option<Vec<String>> {
    let rest = name
        .strip_prefix(PREFIX)
        .filter(|rest| rest.contains(SEPARATOR))?;
    Some(rest.split(SEPARATOR).map(str::to_lowercase).collect())
}

/// The layer that `name=value` stands for; `None` when it is no setting.
pub(super) fn layer(name: &str, value: &str) -> Result<Option<Layer>, ConfigError> {
    let Some(path) = path(name) else {
        return Ok(None);
    };
    let attempt = |value: toml::Value| {
        let document = path.iter().rev().fold(value, |value, key| {
            toml::Value::Table([(key.clone(), value)].into_iter().collect())
        });
        // A bare `Value` would be written as an inline table, which is no document.
        let text = document
            .as_table()
            .map(toml::Table::to_string)
            .unwrap_or_default();
        let layer = Layer {
            name: name.to_owned(),
            text,
            has_lines: false,
        };
        layer.read_strictly().map(|()| layer)
    };
    let as_string = match attempt(toml::Value::String(value.to_owned())) {
        Err(error @ ConfigError::Type { .. }) => error,
        settled => return settled.map(Some),
    };
    let as_toml = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .map(attempt);
    let as_list = || attempt(value.split(',').map(str::trim).collect::<Vec<_>>().into());
    match as_toml {
        Some(Ok(layer)) => Ok(Some(layer)),
        Some(Err(error)) => as_list().map(Some).map_err(|_| error),
        None => as_list().map(Some).map_err(|_| as_string),
    }
}
