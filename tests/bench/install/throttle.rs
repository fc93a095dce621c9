//! A device as slow as an SD card: the kernel's own limit of bytes written a second, for the processes of one control group.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::measure::Slot;

/// A control group; removed when dropped.
pub(crate) struct Throttle {
    /// Its folder; processes are put into `cgroup.procs` there.
    pub(crate) group: PathBuf,
}

impl Throttle {
    /// Direct writes to `slot` take at most `rate` bytes a second for everything in this group.
    ///
    /// # Errors
    /// The kernel has no such limit, or does not let this program set it.
    pub(crate) fn new(slot: &Slot, rate: u64) -> io::Result<Self> {
        let number = slot.number()?;
        let (old, new) = (
            Path::new("/sys/fs/cgroup/blkio"),
            Path::new("/sys/fs/cgroup"),
        );
        if old.join("tasks").exists() {
            let throttle = Self::make(old)?;
            let file = throttle.group.join("blkio.throttle.write_bps_device");
            fs::write(file, format!("{number} {rate}\n"))?;
            return Ok(throttle);
        }
        let controllers = fs::read_to_string(new.join("cgroup.controllers"))?;
        if !controllers.split_whitespace().any(|name| name == "io") {
            return Err(io::Error::other(
                "this kernel has no io controller for control groups",
            ));
        }
        fs::write(new.join("cgroup.subtree_control"), "+io")?;
        let throttle = Self::make(new)?;
        fs::write(
            throttle.group.join("io.max"),
            format!("{number} wbps={rate}\n"),
        )?;
        Ok(throttle)
    }

    fn make(below: &Path) -> io::Result<Self> {
        let group = below.join(format!("fwupdated-bench-{}", std::process::id()));
        fs::create_dir(&group)?;
        Ok(Self { group })
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        // An empty group that stays does no harm.
        let _ = fs::remove_dir(&self.group);
    }
}
