//! The files of a first configuration, as text and on disk.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::error::InitError;
use crate::platform::state_file::replace_file;

/// A file in the making.
pub(super) struct Planned {
    pub(super) path: PathBuf,
    pub(super) text: String,
    pub(super) secret: bool,
}

impl Planned {
    pub(super) fn write(&self) -> Result<(), InitError> {
        let mode = if self.secret { 0o600 } else { 0o644 };
        let folder = self.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)
            .and_then(|()| replace_file(&self.path, self.text.as_bytes(), mode))
            .map_err(|source| InitError::Write {
                file: self.path.clone(),
                source,
            })
    }
}

/// A configuration in the making: sections that stay empty are left out.
#[derive(Default)]
pub(super) struct Text {
    done: String,
    section: Option<&'static str>,
}

impl Text {
    pub(super) fn section(&mut self, name: &'static str) {
        self.section = Some(name);
    }

    pub(super) fn value(&mut self, key: &str, value: impl Into<toml::Value>) {
        if let Some(section) = self.section.take() {
            self.done.push_str(&format!("\n[{section}]\n"));
        }
        self.done.push_str(&format!("{key} = {}\n", value.into()));
    }

    pub(super) fn text(&mut self, key: &str, text: &str) {
        self.value(key, text);
    }

    pub(super) fn path(&mut self, key: &str, path: Option<&Path>) {
        if let Some(path) = path {
            // The daemon runs elsewhere. Where the present folder is not known, the check says what is wrong.
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            self.value(key, path.display().to_string());
        }
    }

    pub(super) fn finish(self) -> String {
        format!(
            "# Written by `fwupdatectl config init`, and yours to change. `fwupdatectl config check` finds mistakes.\n{}",
            self.done
        )
    }
}
