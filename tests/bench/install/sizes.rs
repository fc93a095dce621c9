//! How long a build takes and how large the image is, beside zstd.

use super::{
    Command, Cost, Instant, LEVEL, Row, Stage, Table, Target, board, fs, io, ratios, run, words,
};

impl Stage {
    /// Puts the size and the time of a build beside zstd's.
    pub(super) fn sizes(&mut self, mut ours: Row) -> io::Result<()> {
        let raw = self.new[0].1.clone();
        let level = LEVEL;
        let mut zstd = Row {
            tool: format!("zstd -T0 -{level}"),
            ..Row::default()
        };
        let to = self.scratch.join("whole.zst");
        for run_number in 0..self.wish.runs {
            if run_number > 0 {
                let began = Instant::now();
                board::build(
                    &self.rig,
                    &raw,
                    "2.0.0",
                    &self.scratch.join("again.zst"),
                    &[],
                )?;
                let wall = began.elapsed().as_secs_f64();
                ours.runs.push(Cost {
                    wall,
                    ..Cost::default()
                });
                fs::remove_file(self.scratch.join("again.zst"))?;
            }
            let began = Instant::now();
            run(Command::new("zstd")
                .args(["-q", "-f", "-T0", &format!("-{level}")])
                .arg(&raw)
                .arg("-o")
                .arg(&to))?;
            let wall = began.elapsed().as_secs_f64();
            zstd.runs.push(Cost {
                wall,
                ..Cost::default()
            });
        }
        let same_level = fs::metadata(&to)?.len();
        zstd.note = format!("{same_level} bytes");
        fs::remove_file(&to)?;
        self.report.target(Target {
            what: "building an image, wall, against `zstd -T0` at the same level".to_owned(),
            at_most: "≤ 1.3",
            measured: words(&ratios(&ours, &zstd, |cost| cost.wall)),
            met: ratios(&ours, &zstd, |cost| cost.wall).median() <= 1.3,
            bound: "each chunk may refer to what lies before it: to the compressor a dictionary of its own"
                .to_owned(),
        });
        let mut rows = vec![ours, zstd];
        if let Some(size) = self.kept_size("v2r.19.size", &["-19"])? {
            let own = fs::metadata(self.ours(0))?.len() as f64 / size as f64;
            self.report.target(Target {
                what: "size of the image, against `zstd -19` of the raw image as one frame"
                    .to_owned(),
                at_most: "≤ 1.05",
                measured: format!("{own:.3}"),
                met: own <= 1.05,
                bound: format!(
                    "`zstd -{level}` itself: {:.3}",
                    same_level as f64 / size as f64
                ),
            });
            rows.push(Row {
                tool: "zstd -19".to_owned(),
                runs: Vec::new(),
                note: format!("{size} bytes"),
            });
        }
        self.report.table(Table {
            title: "Building an image of v2r".to_owned(),
            about: "The file's size is in the last column.".to_owned(),
            rows,
            base: 1,
        });
        Ok(())
    }

    /// The size of what `zstd` makes of v2r with these options: as it was kept, or made now with `--slow`.
    fn kept_size(&mut self, file: &str, options: &[&str]) -> io::Result<Option<u64>> {
        self.kept(file, |stage| {
            if !stage.wish.slow {
                stage.report.skip(format!(
                    "zstd {}: takes long; --slow makes it once and keeps its size",
                    options.join(" ")
                ));
                return Ok(None);
            }
            let options = [&["-T0"], options].concat();
            stage.compressed_size(&options, &stage.new[0].1).map(Some)
        })
    }
}
