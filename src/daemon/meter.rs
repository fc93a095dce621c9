//! Counts bytes while an image is installed, and carries the wish to stop into it.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::sync::watch;

use crate::{
    platform::slot_writer::WriteReport,
    update::{
        failure::{Class, Failure},
        status::{Progress, Wear},
    },
};

/// Live counters of one update. Written by the installer's threads, read by the updater's timer.
#[derive(Debug, Default)]
pub struct Meter {
    done: AtomicU64,
    total: AtomicU64,
    downloaded: AtomicU64,
    reused: AtomicU64,
    written: Mutex<Written>,
}

/// What was done to the slot's medium.
#[derive(Debug, Default)]
struct Written {
    /// By earlier runs of the same update.
    before: Cost,
    /// By this one.
    now: Cost,
}

#[derive(Debug, Default, Clone, Copy)]
struct Cost {
    bytes: u64,
    wear: Wear,
}

impl Written {
    fn sum(&self) -> Cost {
        let mut sum = self.before;
        sum.bytes += self.now.bytes;
        sum.wear += self.now.wear;
        sum
    }
}

impl Meter {
    /// Goes on from `progress`: that of an update before a restart, or nothing for a new one.
    pub fn restore(&self, progress: &Progress) {
        self.done.store(progress.bytes_done, Relaxed);
        self.total.store(progress.bytes_total, Relaxed);
        self.downloaded.store(progress.bytes_downloaded, Relaxed);
        self.reused.store(progress.bytes_reused, Relaxed);
        *self.written() = Written {
            before: Cost {
                bytes: progress.bytes_written,
                wear: progress.wear,
            },
            now: Cost::default(),
        };
    }

    /// The counters now.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let Cost { bytes, wear } = self.written().sum();
        Progress {
            bytes_done: self.done.load(Relaxed),
            bytes_total: self.total.load(Relaxed),
            bytes_downloaded: self.downloaded.load(Relaxed),
            bytes_reused: self.reused.load(Relaxed),
            bytes_written: bytes,
            wear,
        }
    }

    /// The slot is about to be written, `total` raw bytes (0 while that is not known), for the first time or
    /// again: what is found in place is counted anew, what was fetched and written adds up.
    pub fn begin_writing(&self, total: u64) {
        self.begin(total);
        self.reused.store(0, Relaxed);
        let mut written = self.written();
        written.before = written.sum();
        written.now = Cost::default();
    }

    /// A stage over `total` raw bytes begins; 0 while the total is not known.
    pub fn begin(&self, total: u64) {
        self.done.store(0, Relaxed);
        self.total.store(total, Relaxed);
    }

    /// Raw bytes that are in place.
    pub fn add_done(&self, bytes: u64) {
        self.done.fetch_add(bytes, Relaxed);
    }

    /// Raw bytes done so far, absolute.
    pub fn set_done(&self, bytes: u64) {
        self.done.store(bytes, Relaxed);
    }

    /// Bytes from the network.
    pub fn add_downloaded(&self, bytes: u64) {
        self.downloaded.fetch_add(bytes, Relaxed);
    }

    /// Raw bytes that the device had already.
    pub fn add_reused(&self, bytes: u64) {
        self.reused.fetch_add(bytes, Relaxed);
    }

    /// What the slot's writer did since [`Meter::begin_writing`], the bytes written included.
    pub fn set_wear(&self, report: &WriteReport) {
        self.written().now = Cost {
            bytes: report.bytes_written,
            wear: Wear {
                bytes_skipped: report.bytes_skipped,
                bytes_zeroed: report.bytes_zeroed,
                bytes_discarded: report.bytes_discarded,
                bytes_unreadable: report.bytes_unreadable,
                writes: report.writes,
                syncs: report.syncs,
            },
        };
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        // Plain numbers, whole at any moment: a thread that panicked leaves nothing half done.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The wish to stop. Cheap to clone; checked between chunks by threads, awaited by tasks.
#[derive(Debug, Clone)]
pub struct Cancel(watch::Receiver<bool>);

/// Raises the wish; so does dropping it.
#[derive(Debug)]
pub struct Canceller(Arc<watch::Sender<bool>>);

/// A pair of both.
#[must_use]
pub fn cancellation() -> (Canceller, Cancel) {
    let (sender, receiver) = watch::channel(false);
    (Canceller(Arc::new(sender)), Cancel(receiver))
}

impl Canceller {
    /// Asks everyone to stop.
    pub fn cancel(&self) {
        self.0.send_replace(true);
    }
}

impl Cancel {
    /// Returns at once, with an error when someone asked to stop.
    ///
    /// # Errors
    /// The code `cancelled`; who asked is said by the machine's own event.
    pub fn check(&self) -> Result<(), Failure> {
        if *self.0.borrow() || self.0.has_changed().is_err() {
            Err(stopped())
        } else {
            Ok(())
        }
    }

    /// Returns when someone asked to stop.
    pub async fn cancelled(&self) {
        // An error means that the sender is gone, which is a wish to stop too.
        let _ = self.0.clone().wait_for(|stop| *stop).await;
    }
}

/// What an interrupted action ends with. Never the end of an update by itself.
#[must_use]
pub fn stopped() -> Failure {
    Failure::new("cancelled", Class::Final, "the update was interrupted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_update_costs_adds_up_over_restarts_and_starts_at_nothing_for_the_next_one() {
        let meter = Meter::default();
        meter.begin_writing(100);
        meter.add_downloaded(30);
        let report = WriteReport {
            bytes_written: 25,
            bytes_skipped: 7,
            syncs: 2,
            ..WriteReport::default()
        };
        meter.set_wear(&WriteReport {
            bytes_written: 20,
            ..report
        });
        meter.set_wear(&report);
        let saved = meter.progress();

        let meter = Meter::default();
        meter.restore(&saved);
        assert_eq!(meter.progress(), saved);
        meter.begin_writing(100);
        meter.add_reused(25);
        meter.add_done(100);
        meter.add_downloaded(50);
        meter.set_wear(&WriteReport {
            bytes_written: 75,
            ..report
        });
        let progress = meter.progress();
        assert_eq!((progress.bytes_done, progress.bytes_total), (100, 100));
        assert_eq!(
            (progress.bytes_downloaded, progress.bytes_written),
            (80, 100)
        );
        assert_eq!(progress.bytes_reused, 25);
        assert_eq!((progress.wear.bytes_skipped, progress.wear.syncs), (14, 4));

        meter.restore(&Progress::default());
        assert_eq!(meter.progress(), Progress::default());
    }
}
