//! Looks at each copy of the environment, for people. Changes nothing and takes no lock.

use std::{io, path::PathBuf, time::Duration};

use super::{codec, location::EnvLocation, store::read_area};

/// How long a program that writes the copy may take: then a damaged one is looked at again.
const WRITE: Duration = Duration::from_millis(200);

/// One copy, and what it is worth.
#[derive(Debug)]
pub struct CopySeen {
    /// Block device, MTD or file.
    pub device: PathBuf,
    /// Its first byte; negative: from the end of the device.
    pub offset: i64,
    /// What it is worth.
    pub state: CopyState,
}

/// What a copy is worth.
#[derive(Debug)]
pub enum CopyState {
    /// Its CRC is right.
    Good,
    /// Its CRC is wrong: damaged, or never written.
    Damaged,
    /// It cannot be read.
    Unreadable(io::Error),
}

/// Looks at each copy. Blocks.
#[must_use]
pub fn inspect(location: &EnvLocation) -> Vec<CopySeen> {
    let redundant = location.is_redundant();
    let look = |area| match read_area(area) {
        Ok(bytes) if codec::decode(&bytes, redundant).is_some() => CopyState::Good,
        Ok(_) => CopyState::Damaged,
        Err(error) => CopyState::Unreadable(error),
    };
    let copies = location.0.iter().map(|area| {
        let mut state = look(area);
        if matches!(state, CopyState::Damaged) {
            std::thread::sleep(WRITE);
            state = look(area);
        }
        CopySeen {
            device: area.device.clone(),
            offset: area.offset,
            state,
        }
    });
    copies.collect()
}
