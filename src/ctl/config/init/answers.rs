//! What `config init` is told: secrets from files or without an echo, and answers to questions. No error repeats a
//! secret.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

use super::error::InitError;
use crate::hub::sas::SymmetricKey;

/// Longest secret that is read, bytes.
const MAX_SECRET: u64 = 64 << 10;

pub(super) fn provisioning_key(text: &str, what: &str) -> Result<String, InitError> {
    let text = text.trim();
    SymmetricKey::from_base64(text).map_err(|_| InitError::Key(what.to_owned()))?;
    Ok(text.to_owned())
}

/// The content of a file with a secret, or of standard input for `-`.
pub(super) fn secret(file: &Path) -> Result<String, InitError> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        io::stdin().take(MAX_SECRET).read_to_string(&mut text)
    } else {
        fs::File::open(file).and_then(|file| file.take(MAX_SECRET).read_to_string(&mut text))
    };
    read.map_err(|source| InitError::Read {
        what: file.display().to_string(),
        source,
    })?;
    Ok(text)
}

pub(super) fn ask(question: &str) -> Result<String, InitError> {
    eprint!("{question}");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(unanswered)?;
    Ok(answer.trim().to_owned())
}

pub(super) fn ask_secret(question: &str) -> Result<String, InitError> {
    rpassword::prompt_password(question).map_err(unanswered)
}

fn unanswered(source: io::Error) -> InitError {
    InitError::Read {
        what: "the answer".to_owned(),
        source,
    }
}
