//! A medium that loses power, fails and has bad sectors on demand; several of them share one power.

use std::{
    collections::BTreeSet,
    io,
    path::Path,
    sync::{Arc, Mutex},
};

use super::super::{Medium, SlotWriter, at, medium::AlignedBuf};

pub(super) const SECTOR: usize = 512;

/// What all disks of a board have in common.
#[derive(Default)]
struct Power {
    /// Writes, zeroings and syncs so far, the failed one included.
    operations: usize,
    /// The operation that fails, and every one after it when the power is gone.
    fails_at: Option<usize>,
    cut: bool,
}

#[derive(Default)]
struct State {
    /// What survives a power cut for certain.
    durable: Vec<u8>,
    /// Sectors written since the last sync, in order.
    unsynced: Vec<(usize, Vec<u8>)>,
    /// Sectors that cannot be read until they are written.
    bad: BTreeSet<usize>,
    /// Offset and length of each write and zeroing.
    writes: Vec<(usize, usize)>,
    /// Bytes read.
    read: usize,
}

#[derive(Clone)]
pub(super) struct FakeDisk {
    state: Arc<Mutex<State>>,
    power: Arc<Mutex<Power>>,
    block: usize,
    /// Whether it zeroes by itself.
    zeroes: bool,
}

impl FakeDisk {
    pub(super) fn new(contents: &[u8], block: usize) -> Self {
        let state = State {
            durable: contents.to_vec(),
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            power: Arc::default(),
            block,
            zeroes: true,
        }
    }

    /// Another disk on the same power supply.
    pub(super) fn beside(&self, contents: &[u8], block: usize) -> Self {
        Self {
            power: Arc::clone(&self.power),
            ..Self::new(contents, block)
        }
    }

    /// One that refuses to zero by itself.
    pub(super) fn without_zeroing(self) -> Self {
        Self {
            zeroes: false,
            ..self
        }
    }

    pub(super) fn failing_at(self, operation: usize, power_cut: bool) -> Self {
        {
            let mut power = self.power.lock().unwrap();
            power.fails_at = Some(operation);
            power.cut = power_cut;
        }
        self
    }

    pub(super) fn with_bad_sectors(self, bad: &[usize]) -> Self {
        self.state.lock().unwrap().bad = bad.iter().copied().collect();
        self
    }

    pub(super) fn writer(&self) -> SlotWriter {
        SlotWriter::over(Path::new("/dev/fake"), Box::new(self.clone()))
    }

    pub(super) fn operations(&self) -> usize {
        self.power.lock().unwrap().operations
    }

    pub(super) fn writes(&self) -> Vec<(usize, usize)> {
        self.state.lock().unwrap().writes.clone()
    }

    pub(super) fn bytes_read(&self) -> usize {
        self.state.lock().unwrap().read
    }

    pub(super) fn bad_sectors(&self) -> usize {
        self.state.lock().unwrap().bad.len()
    }

    /// Whether a power cut now could lose nothing.
    pub(super) fn all_is_durable(&self) -> bool {
        self.state.lock().unwrap().unsynced.is_empty()
    }

    /// What is read now.
    pub(super) fn contents(&self) -> Vec<u8> {
        self.after_cut(|_| true)
    }

    /// What is on the medium after the power failed now and of the unsynced sectors those survived that
    /// `survives` says.
    pub(super) fn after_cut(&self, mut survives: impl FnMut(usize) -> bool) -> Vec<u8> {
        let state = self.state.lock().unwrap();
        let mut contents = state.durable.clone();
        for (number, (offset, bytes)) in state.unsynced.iter().enumerate() {
            if survives(number) {
                contents[*offset..*offset + bytes.len()].copy_from_slice(bytes);
            }
        }
        contents
    }

    fn operation(&self) -> io::Result<()> {
        let mut power = self.power.lock().unwrap();
        power.operations += 1;
        let failed = match power.fails_at {
            Some(at) if power.cut => power.operations >= at,
            Some(at) => power.operations == at,
            None => false,
        };
        if failed {
            Err(io::Error::other("injected"))
        } else {
            Ok(())
        }
    }

    fn check_alignment(&self, offset: u64, length: u64) {
        if self.block > 1 {
            assert!(offset.is_multiple_of(self.block as u64), "offset {offset}");
            assert!(length.is_multiple_of(self.block as u64), "length {length}");
        }
        assert!(offset + length <= self.capacity());
    }

    fn check_buffer(&self, offset: u64, buf: &[u8]) {
        self.check_alignment(offset, buf.len() as u64);
        if self.block > 1 {
            assert_eq!(buf.as_ptr().addr() % SECTOR, 0, "address of the buffer");
        }
    }
}

impl Medium for FakeDisk {
    fn capacity(&self) -> u64 {
        self.state.lock().unwrap().durable.len() as u64
    }

    fn block(&self) -> usize {
        self.block
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.check_buffer(offset, buf);
        let start = at(offset);
        let end = start + buf.len();
        let mut state = self.state.lock().unwrap();
        state.read += buf.len();
        let bad = state.bad.range(start / SECTOR..end.div_ceil(SECTOR));
        if bad.count() > 0 {
            return Err(io::Error::other("unreadable sector"));
        }
        buf.copy_from_slice(&state.durable[start..end]);
        for (offset, bytes) in &state.unsynced {
            let from = start.max(*offset);
            let to = end.min(offset + bytes.len());
            if from < to {
                buf[from - start..to - start].copy_from_slice(&bytes[from - offset..to - offset]);
            }
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.check_buffer(offset, buf);
        let done = self.operation();
        let mut state = self.state.lock().unwrap();
        // A failed write may have reached the medium in part: its sectors are up to the cut to decide.
        let mut start = at(offset);
        state.writes.push((start, buf.len()));
        for sector in buf.chunks(SECTOR) {
            state.bad.remove(&(start / SECTOR));
            state.unsynced.push((start, sector.to_vec()));
            start += sector.len();
        }
        done
    }

    fn zero(&mut self, offset: u64, length: u64) -> io::Result<bool> {
        self.check_alignment(offset, length);
        if !self.zeroes {
            // It may have begun before it failed.
            let some = vec![0; at(length).min(SECTOR)];
            self.state.lock().unwrap().unsynced.push((at(offset), some));
            return Ok(false);
        }
        // It may be lost or half done as a write may, until the next sync.
        self.write(offset, &AlignedBuf::new(at(length)))?;
        Ok(true)
    }

    fn next_data(&mut self, offset: u64, _end: u64) -> u64 {
        offset
    }

    fn sync(&mut self) -> io::Result<()> {
        self.operation()?;
        let mut state = self.state.lock().unwrap();
        for (offset, bytes) in std::mem::take(&mut state.unsynced) {
            state.durable[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }
}
