//! Counts bytes while an image is installed, and carries the wish to stop into it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use tokio::sync::watch;

use crate::update::{
    failure::{Class, Failure},
    status::Progress,
};

/// Live counters of one update. Written by the installer's threads, read by the updater's timer.
#[derive(Debug, Default)]
pub struct Meter {
    done: AtomicU64,
    total: AtomicU64,
    downloaded: AtomicU64,
    reused: AtomicU64,
    written: AtomicU64,
}

impl Meter {
    /// The counters now.
    #[must_use]
    pub fn progress(&self) -> Progress {
        Progress {
            bytes_done: self.done.load(Relaxed),
            bytes_total: self.total.load(Relaxed),
            bytes_downloaded: self.downloaded.load(Relaxed),
            bytes_reused: self.reused.load(Relaxed),
            bytes_written: self.written.load(Relaxed),
        }
    }

    /// Counts on from `progress`: from zero for another update, from what survived after a start.
    pub fn set(&self, progress: Progress) {
        self.done.store(progress.bytes_done, Relaxed);
        self.total.store(progress.bytes_total, Relaxed);
        self.downloaded.store(progress.bytes_downloaded, Relaxed);
        self.reused.store(progress.bytes_reused, Relaxed);
        self.written.store(progress.bytes_written, Relaxed);
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

    /// Bytes written to the slot so far, absolute.
    pub fn set_written(&self, bytes: u64) {
        self.written.store(bytes, Relaxed);
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
