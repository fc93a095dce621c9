//! The configuration as it counts: each key with its value, and where that comes from.
//!
//! For people who ask why a device does what it does. What is shown is what [`super::Config`] was made of; no value
//! is a secret, since those are files that a key names.

use std::{collections::BTreeMap, fmt};

use super::{ConfigError, Layer, Place, check, layer::keys, merge, raw::RawDuration};

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave one.
    BuiltIn,
    /// The last file or variable that gives one.
    Written(Place),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in"),
            Self::Written(place) => place.fmt(f),
        }
    }
}

/// One key.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// `section.name`.
    pub key: String,
    /// What counts.
    pub value: toml::Value,
    /// Where it comes from.
    pub origin: Origin,
}

/// Each key there is, sorted.
pub(super) fn settings(layers: &[Layer]) -> Result<Vec<Setting>, ConfigError> {
    let mut raw = merge(layers)?;
    let config = check::valid(&raw).map_err(|wrong| wrong.located(layers))?;
    // Where nothing is written these depend on the bootloader.
    raw.bootloader.tries = Some(config.bootloader.tries);
    raw.health.units = Some(config.health.units);
    raw.health.newly_failed_units = Some(config.health.newly_failed_units);
    raw.policy.reboot_notice = Some(RawDuration(config.policy.reboot_notice));
    raw.policy.max_inhibit = Some(RawDuration(config.policy.max_inhibit));
    let table = toml::Table::try_from(&raw).map_err(|source| ConfigError::Merge {
        source: Box::new(config::ConfigError::Foreign(source.into())),
    })?;
    let all = keys(&table, "");
    let table = toml::Value::Table(table);
    let settings = all.into_iter().filter_map(|key| {
        let value = key
            .split('.')
            .try_fold(&table, |value, name| value.get(name));
        let value = value?.clone();
        let place = layers.iter().rev().find_map(|layer| layer.place_of(&key));
        let origin = place.map_or(Origin::BuiltIn, Origin::Written);
        Some(Setting { key, value, origin })
    });
    Ok(settings.collect())
}

/// `settings` as TOML that means the same, with the origin of each behind it.
#[must_use]
pub fn to_toml(settings: &[Setting]) -> String {
    let mut sections: BTreeMap<&str, Vec<(&str, &Setting)>> = BTreeMap::new();
    for setting in settings {
        let (section, name) = setting.key.rsplit_once('.').unwrap_or(("", &setting.key));
        sections.entry(section).or_default().push((name, setting));
    }
    let blocks = sections.iter().map(|(section, settings)| {
        let lines: Vec<_> = settings
            .iter()
            .map(|(name, setting)| (format!("{name} = {}", setting.value), &setting.origin))
            .collect();
        let width = lines.iter().map(|(line, _)| line.chars().count()).max();
        let width = width.unwrap_or(0);
        let lines = lines
            .iter()
            .map(|(line, origin)| format!("{line:width$}  # {origin}\n"));
        format!("[{section}]\n{}", lines.collect::<String>())
    });
    blocks.collect::<Vec<_>>().join("\n")
}
