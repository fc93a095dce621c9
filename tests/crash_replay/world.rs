//! What a device is meant to hold: the contents of its slots, and the updates that it is asked for.

use fwupdated::update::{
    slot::Slot,
    status::{Stage, UpdateReport},
};

use super::script::Script;

/// An update that the device may be asked for.
pub(crate) struct Job {
    /// Its id.
    pub(crate) id: String,
    /// Where it goes.
    pub(crate) target: Slot,
    /// What the slot holds then, from its first byte.
    pub(crate) image: Vec<u8>,
    /// How it ends when nothing comes between: the stage, and the code of a failure.
    pub(crate) end: (Stage, Option<&'static str>),
}

/// What a device is meant to hold.
pub(crate) struct World {
    /// By what it boots.
    pub(crate) script: &'static Script,
    /// What the slots held at first, a and b. Slot a runs.
    pub(crate) factory: [Vec<u8>; 2],
    /// All updates, in order.
    pub(crate) jobs: Vec<Job>,
}

/// Something that a slot may hold, whole.
pub(crate) struct Content<'a> {
    /// Its bytes, from the slot's first one.
    pub(crate) bytes: &'a [u8],
    /// The update that brings it; `None`: it was there at first.
    pub(crate) job: Option<&'a Job>,
    /// It may be the confirmed one.
    pub(crate) confirmed: bool,
}

impl World {
    /// The update of this name.
    pub(crate) fn job(&self, id: &str) -> Option<&Job> {
        self.jobs.iter().find(|job| job.id == id)
    }

    /// All that `slot` may hold whole.
    pub(crate) fn contents(&self, slot: Slot) -> impl Iterator<Item = Content<'_>> {
        let factory = Content {
            bytes: &self.factory[usize::from(slot == Slot::B)],
            job: None,
            // Nothing of this world confirms slot b as it came.
            confirmed: slot == Slot::A,
        };
        let jobs = self.jobs.iter().filter(move |job| job.target == slot);
        let jobs = jobs.map(|job| Content {
            bytes: &job.image,
            job: Some(job),
            confirmed: job.end.0 == Stage::ApplyComplete,
        });
        jobs.chain([factory])
    }
}

/// Whether `report` tells this end of this update.
pub(crate) fn is_end(report: &UpdateReport, id: &str, stage: Stage) -> bool {
    report.id == id && report.stage == stage
}
