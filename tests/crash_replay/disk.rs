//! All media of a device, and how each step changes them.

use fwupdated::update::slot::Slot;

use super::{
    block::Block,
    folder::{Files, Folder},
    trace::{Medium, Op},
};

/// All media of a device.
#[derive(Clone)]
pub(crate) struct Disk {
    /// The slots, a and b.
    pub(crate) slots: [Block; 2],
    /// The environment.
    pub(crate) env: Block,
    /// The state directory.
    pub(crate) folder: Folder,
}

impl Disk {
    /// Media that hold this, durably.
    pub(crate) fn new(slots: [Vec<u8>; 2], env: Vec<u8>, files: Files) -> Self {
        Self {
            slots: slots.map(Block::new),
            env: Block::new(env),
            folder: Folder::new(files),
        }
    }

    /// A slot's medium.
    pub(crate) fn slot(&self, slot: Slot) -> &Block {
        &self.slots[usize::from(slot == Slot::B)]
    }

    /// Does one step.
    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::Write {
                medium,
                offset,
                bytes,
            } => self.medium(*medium).write(*offset, bytes.clone()),
            Op::Sync(medium) => self.medium(*medium).sync(),
            Op::Told(_) | Op::Boot(_) => {}
            _ => self.folder.apply(op),
        }
    }

    fn medium(&mut self, medium: Medium) -> &mut Block {
        match medium {
            Medium::Slot(slot) => &mut self.slots[usize::from(slot == Slot::B)],
            Medium::Env => &mut self.env,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{block::SECTOR, support::random::Random};

    fn write(bytes: Vec<u8>, offset: u64) -> Op {
        Op::Write {
            medium: Medium::Env,
            offset,
            bytes: bytes.into(),
        }
    }

    #[test]
    fn what_was_not_synced_is_there_by_any_sectors_and_what_was_synced_is_there() {
        let mut disk = Disk::new([vec![], vec![]], vec![0; 4 * SECTOR], Files::new());
        disk.apply(&write(vec![1; 2 * SECTOR], 0));
        disk.apply(&write(vec![2; 2 * SECTOR], SECTOR as u64));
        let states = disk.env.every(&mut Random(1));
        assert_eq!(states.len(), 2 * 3 * 2);
        let reordered: Vec<_> = [0, 1, 2, 0].iter().flat_map(|n| vec![*n; SECTOR]).collect();
        assert!(states.contains(&reordered));
        assert!(disk.env.surely(3 * SECTOR..4 * SECTOR, &[0; SECTOR]));
        assert!(!disk.env.surely(0..SECTOR, &[1; SECTOR]));
        assert!(disk.env.may_hold(SECTOR..2 * SECTOR, &[1; SECTOR]));
        disk.apply(&Op::Sync(Medium::Env));
        assert_eq!(disk.env.every(&mut Random(1)).len(), 1);
        assert!(disk.env.surely(SECTOR..3 * SECTOR, &[2; 2 * SECTOR]));
    }

    #[test]
    fn a_renamed_file_is_old_or_new_only_when_it_was_synced_before() {
        let create = Op::Create {
            name: "new".into(),
            inode: 1,
        };
        let written = Op::WriteFile {
            inode: 1,
            offset: 0,
            bytes: vec![7; 700].into(),
        };
        let rename = Op::Rename {
            inode: 1,
            from: "new".into(),
            to: "file".into(),
        };
        let states = |ops: &[&Op]| {
            let files = Files::from([("file".to_owned(), vec![1])]);
            let mut disk = Disk::new([vec![], vec![]], vec![], files);
            ops.iter().for_each(|op| disk.apply(op));
            disk.folder.every("file", &mut Random(1))
        };
        let (old, new) = (Some(vec![1]), Some(vec![7; 700]));
        let synced = states(&[&create, &written, &Op::SyncFile(1), &rename]);
        assert_eq!(synced, [old.clone(), new.clone()].into());
        let torn = states(&[&create, &written, &rename]);
        for state in [old, new.clone(), Some(vec![7; 512]), Some(vec![])] {
            assert!(torn.contains(&state), "{state:?}");
        }
        let whole = states(&[
            &create,
            &written,
            &Op::SyncFile(1),
            &rename,
            &Op::SyncFolder { but: 0 },
        ]);
        assert_eq!(whole, [new].into());
    }
}
