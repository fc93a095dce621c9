//! What a process costs, as the kernel counts it (proc(5)).

use std::{
    fs,
    time::{Duration, Instant},
};

/// A process at one moment. Counts are since its start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// When.
    pub(crate) at: Instant,
    /// Resident memory, bytes.
    pub(crate) resident: u64,
    /// Resident memory with shared pages divided among those who share them, bytes.
    pub(crate) proportional: u64,
    /// Of it, what is the process's own and not a page of a file, bytes.
    pub(crate) anonymous: u64,
    /// Open file descriptors.
    pub(crate) descriptors: usize,
    /// Threads.
    pub(crate) threads: usize,
    /// Times that a thread which lives now went to sleep by itself: as often it was woken up.
    pub(crate) wake_ups: u64,
    /// Processor time used, in user and kernel mode.
    pub(crate) processor: Duration,
}

/// What a process did between two samples.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spent {
    /// Wake-ups a second.
    pub(crate) wake_ups: f64,
    /// Processor time a second of wall clock.
    pub(crate) processor: f64,
}

impl Sample {
    /// Looks at process `pid`; `None` when there is none, or it belongs to somebody else.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let own = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
        let rollup = own("smaps_rollup")?;
        let mut wake_ups = 0;
        let mut threads = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
            // A thread may end meanwhile.
            let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
            wake_ups += field(&status, "voluntary_ctxt_switches:").unwrap_or(0);
            threads += 1;
        }
        Some(Self {
            at: Instant::now(),
            resident: field(&rollup, "Rss:")? << 10,
            proportional: field(&rollup, "Pss:")? << 10,
            anonymous: field(&rollup, "Anonymous:")? << 10,
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count(),
            threads,
            wake_ups,
            processor: processor_time(&own("stat")?)?,
        })
    }

    /// What happened since `earlier`, by the second.
    pub(crate) fn since(&self, earlier: &Self) -> Spent {
        let seconds = (self.at - earlier.at).as_secs_f64();
        let processor = self.processor.saturating_sub(earlier.processor);
        Spent {
            wake_ups: self.wake_ups.saturating_sub(earlier.wake_ups) as f64 / seconds,
            processor: processor.as_secs_f64() / seconds,
        }
    }
}

/// The number after `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// User and kernel time of `/proc/PID/stat`: fields 14 and 15, in ticks of 10 ms. The name before may hold
/// anything, so they are counted from its closing bracket.
fn processor_time(stat: &str) -> Option<Duration> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some(Duration::from_millis((ticks()? + ticks()?) * 10))
}
