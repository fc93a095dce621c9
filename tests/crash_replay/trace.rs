//! What a device did to its media, in order: the steps that a crash can fall between.

use std::{fmt, sync::Arc};

use fwupdated::update::{slot::Slot, status::Stage};

/// A medium that is written by the sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Medium {
    /// A slot's partition.
    Slot(Slot),
    /// The U-Boot environment, both copies.
    Env,
}

/// A file of the state directory, whatever its name is at the moment.
pub(crate) type Inode = usize;

/// One step.
#[derive(Clone, PartialEq)]
pub(crate) enum Op {
    /// Bytes were handed to a medium; zeros that it was told to make count as such.
    Write {
        /// Which one.
        medium: Medium,
        /// From where, bytes.
        offset: u64,
        /// What.
        bytes: Arc<[u8]>,
    },
    /// The medium said that all it was given before is durable.
    Sync(Medium),
    /// A file was made in the state directory.
    Create { name: String, inode: Inode },
    /// A file of the state directory was emptied.
    Truncate(Inode),
    /// Bytes were handed to a file of the state directory.
    WriteFile {
        /// Which one.
        inode: Inode,
        /// From where, bytes.
        offset: u64,
        /// What.
        bytes: Arc<[u8]>,
    },
    /// The contents of a file of the state directory became durable; its name need not be.
    SyncFile(Inode),
    /// A file of the state directory took the name of another.
    Rename {
        inode: Inode,
        from: String,
        to: String,
    },
    /// A name of the state directory was taken away.
    Unlink(String),
    /// The names of the state directory became durable, but the so many newest, which changed meanwhile.
    SyncFolder { but: usize },
    /// The outside was told something that must stay true.
    Told(Told),
    /// The boot loader gave the machine to this slot. Nobody remembers what a page cache held.
    Boot(Slot),
}

/// What the outside was told about an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// It was accepted.
    Accepted(String),
    /// It has ended like this.
    Ended(String, Stage),
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write {
                medium,
                offset,
                bytes,
            } => {
                let zeros = bytes.iter().all(|byte| *byte == 0);
                let what = if zeros { "zeros" } else { "bytes" };
                write!(f, "write {} {what} at {offset} of {medium:?}", bytes.len())
            }
            Self::Sync(medium) => write!(f, "sync {medium:?}"),
            Self::Create { name, inode } => write!(f, "create {name} (#{inode})"),
            Self::Truncate(inode) => write!(f, "truncate #{inode}"),
            Self::WriteFile {
                inode,
                offset,
                bytes,
            } => write!(f, "write {} bytes at {offset} of #{inode}", bytes.len()),
            Self::SyncFile(inode) => write!(f, "sync #{inode}"),
            Self::Rename { inode, from, to } => write!(f, "rename {from} to {to} (#{inode})"),
            Self::Unlink(name) => write!(f, "unlink {name}"),
            Self::SyncFolder { but: 0 } => write!(f, "sync the folder"),
            Self::SyncFolder { but } => write!(f, "sync the folder, but {but} changes"),
            Self::Told(told) => write!(f, "told {told:?}"),
            Self::Boot(slot) => write!(f, "boot slot {slot}"),
        }
    }
}
