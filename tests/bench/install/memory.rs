//! The scene that shows whether the daemon's memory grows with the image.

use std::os::unix::fs::FileExt;

use super::{
    Board, Duration, Figures, GIB, Path, Slot, Stage, Table, Target, board, fs, io, number, ours,
    words,
};

impl Stage {
    /// The daemon's memory by size of the image.
    pub(super) async fn memory(&mut self) -> io::Result<()> {
        let sizes: &[u64] = if self.wish.smoke {
            &[GIB / 16]
        } else {
            &[GIB, 4 * GIB, 16 * GIB]
        };
        let mut rows = Vec::new();
        for size in sizes {
            let label = format!("fwupdated, {} GiB", number(*size as f64 / GIB as f64));
            let name = format!("memory-{size}");
            let (raw, file) = (self.dir.path().join(&name), format!("{name}.img.zst"));
            scattered(&raw, *size)?;
            board::build(
                &self.rig,
                &raw,
                "3.0.0",
                &self.files.join(&file),
                &["--level", "1"],
            )?;
            let slots = ["a", "b"].map(|slot| {
                Slot::new(&self.dir.path().join(format!("{name}-{slot}")), *size, true)
            });
            let [a, b] = slots;
            let mut board = Board::new(
                &self.rig,
                &self.dir.path().join(format!("{name}-device")),
                [a?, b?],
            )
            .await?;
            let installed = board
                .install(&self.rig, &self.server, &self.server.url(&file), None, None)
                .await?;
            if !board.target().holds(&raw)? {
                return Err(io::Error::other(format!(
                    "{label}: the slot does not hold the image afterwards"
                )));
            }
            let mut row = ours(&label);
            row.runs.push(installed.whole);
            rows.push(row);
            fs::remove_file(&raw)?;
            fs::remove_file(self.files.join(&file))?;
        }
        let peak = Figures::new(
            rows.iter()
                .flat_map(|row| &row.runs)
                .filter_map(|cost| cost.memory)
                .map(|bytes| bytes as f64 / (1 << 20) as f64),
        );
        self.report.target(Target {
            what: "peak resident memory of the daemon, installing 1, 4 and 16 GiB, MiB".to_owned(),
            at_most: "≤ 32, flat",
            measured: words(&peak),
            met: peak.most() <= 32.0 && peak.most() - peak.least() < 4.0,
            bound: String::new(),
        });
        self.report.table(Table {
            title: "Memory by size".to_owned(),
            about: "Sparse images, 1 MiB of data in every 16 MiB.".to_owned(),
            rows,
            base: 0,
        });
        // A moment for the hub to see the device go.
        tokio::time::sleep(Duration::from_millis(100)).await;
        Ok(())
    }
}

/// A sparse file with data in every sixteenth MiB.
fn scattered(path: &Path, size: u64) -> io::Result<()> {
    let file = fs::File::create(path)?;
    file.set_len(size)?;
    let mut piece = vec![0; 1 << 20];
    for place in (0..size).step_by(16 << 20) {
        for (at, word) in piece.chunks_exact_mut(8).enumerate() {
            let value = (place + at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            word.copy_from_slice(&(value ^ (value >> 29)).to_le_bytes());
        }
        file.write_all_at(&piece, place)?;
    }
    Ok(())
}
