//! The state directory, as a power cut may leave it.
//!
//! It is a file system, which takes more liberties here than any that is in use: each change of a name since the last
//! sync of the folder happened or not, on its own; a file that was not synced holds any beginning of what was written,
//! or zeros in place of any sector.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    block::SECTOR,
    trace::{Inode, Op},
};
use crate::support::random::Random;

/// The files of a folder by name.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// A folder of small files.
#[derive(Clone)]
pub(crate) struct Folder {
    names: BTreeMap<String, Inode>,
    /// Changes of names since the last sync of the folder.
    pending: Vec<Op>,
    contents: Vec<Contents>,
}

#[derive(Clone, Default)]
struct Contents {
    durable: Vec<u8>,
    /// Writes since the last sync; `None`: it was emptied.
    pending: Vec<Option<(u64, Arc<[u8]>)>>,
}

impl Folder {
    /// A folder of these files, durably.
    pub(crate) fn new(files: Files) -> Self {
        Self {
            names: files.keys().cloned().zip(0..).collect(),
            pending: Vec::new(),
            contents: files
                .into_values()
                .map(|durable| Contents {
                    durable,
                    pending: Vec::new(),
                })
                .collect(),
        }
    }

    /// Does one step.
    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { inode, .. } => {
                assert_eq!(*inode, self.contents.len());
                self.contents.push(Contents::default());
                self.pending.push(op.clone());
            }
            Op::Rename { .. } | Op::Unlink(_) => self.pending.push(op.clone()),
            Op::Truncate(inode) => self.contents[*inode].pending.push(None),
            Op::WriteFile {
                inode,
                offset,
                bytes,
            } => self.contents[*inode]
                .pending
                .push(Some((*offset, bytes.clone()))),
            Op::SyncFile(inode) => self.contents[*inode].sync(),
            Op::SyncFolder { but } => {
                // Another sync may have covered some of them already.
                let synced = self.pending.len().saturating_sub(*but);
                for op in self.pending.drain(..synced) {
                    rename(&mut self.names, &op);
                }
            }
            Op::Write { .. } | Op::Sync(_) | Op::Told(_) | Op::Boot(_) => {
                unreachable!("not a step of a folder")
            }
        }
    }

    /// Every content that the file `name` may have; `None`: it is not there.
    pub(crate) fn every(&self, name: &str, random: &mut Random) -> BTreeSet<Option<Vec<u8>>> {
        let names = self.every_names(random);
        let inodes: BTreeSet<_> = names.iter().map(|names| names.get(name)).collect();
        let contents = inodes.into_iter().flat_map(|inode| match inode {
            Some(inode) => self.contents[*inode]
                .every()
                .into_iter()
                .map(Some)
                .collect(),
            None => vec![None],
        });
        contents.collect()
    }

    /// Some state of the whole folder in which the file `name` is as given.
    pub(crate) fn with(&self, name: &str, content: Option<&[u8]>, random: &mut Random) -> Files {
        let mut fitting: Vec<_> = self.every_names(random);
        fitting.retain(|names| match (names.get(name), content) {
            (Some(inode), Some(content)) => {
                self.contents[*inode].every().iter().any(|c| c == content)
            }
            (None, None) => true,
            _ => false,
        });
        let names = &fitting[random.below(fitting.len() as u64) as usize];
        let mut files = Files::new();
        for (other, inode) in names {
            let mut every = self.contents[*inode].every();
            let any = every.swap_remove(random.below(every.len() as u64) as usize);
            files.insert(other.clone(), any);
        }
        if let Some(content) = content {
            files.insert(name.to_owned(), content.to_vec());
        }
        files
    }

    /// Every set of names: each change happened or did not.
    fn every_names(&self, random: &mut Random) -> Vec<BTreeMap<String, Inode>> {
        let with = |chosen: u64| {
            let mut names = self.names.clone();
            for (number, op) in self.pending.iter().enumerate() {
                if chosen >> number & 1 == 1 {
                    rename(&mut names, op);
                }
            }
            names
        };
        // What comes last is what matters; changes far back that nobody synced are drawn.
        let count = self.pending.len().min(63);
        let sets: BTreeSet<_> = if count <= 8 {
            (0..1_u64 << count).map(with).collect()
        } else {
            let old = count - 6;
            let drawn = (0..64 * 8).map(|n| (n % 64) << old | random.next() & ((1 << old) - 1));
            drawn.map(with).collect()
        };
        sets.into_iter().collect()
    }
}

fn rename(names: &mut BTreeMap<String, Inode>, op: &Op) {
    match op {
        Op::Create { name, inode } => _ = names.insert(name.clone(), *inode),
        Op::Rename { inode, from, to } => {
            if names.get(from) == Some(inode) {
                names.remove(from);
            }
            names.insert(to.clone(), *inode);
        }
        Op::Unlink(name) => _ = names.remove(name),
        _ => unreachable!("not a change of a name"),
    }
}

impl Contents {
    fn every(&self) -> Vec<Vec<u8>> {
        let mut found = BTreeSet::from([self.durable.clone()]);
        let mut latest = self.durable.clone();
        for write in &self.pending {
            let Some((offset, bytes)) = write else {
                latest.clear();
                found.insert(Vec::new());
                continue;
            };
            let offset = usize::try_from(*offset).unwrap();
            for torn in (0..bytes.len()).step_by(SECTOR) {
                let mut state = latest.clone();
                overwrite(&mut state, offset, &bytes[..torn]);
                found.insert(state);
            }
            overwrite(&mut latest, offset, bytes);
            for sector in (offset..latest.len()).step_by(SECTOR) {
                let mut state = latest.clone();
                let end = state.len().min(sector + SECTOR);
                state[sector..end].fill(0);
                found.insert(state);
            }
            found.insert(latest.clone());
        }
        found.into_iter().collect()
    }

    fn sync(&mut self) {
        for write in self.pending.drain(..) {
            match write {
                Some((offset, bytes)) => {
                    overwrite(&mut self.durable, usize::try_from(offset).unwrap(), &bytes);
                }
                None => self.durable.clear(),
            }
        }
    }
}

fn overwrite(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    content.resize(content.len().max(offset + bytes.len()), 0);
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
}
