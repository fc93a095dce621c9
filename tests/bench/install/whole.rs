//! The scenes in which the whole image goes onto a device that has nothing of it: side by side, killed, on a slow device.

use super::{
    Command, Cost, DECODES, Duration, HASHES, Random, Row, Stage, Table, Target, Throttle, WHOLE,
    fs, io, measure, number, ours, ratios, words,
};

/// What a good SD card writes a second.
const CARD: u64 = 40 << 20;

impl Stage {
    /// The whole image onto a device that knows nothing of it.
    pub(super) async fn whole(&mut self) -> io::Result<()> {
        let mut cast = self.cast(WHOLE, 0)?;
        let (mut whole, mut unread) = (ours("fwupdated"), ours("fwupdated, without read back"));
        for _ in 0..self.wish.runs {
            self.act(&mut cast, 0)?;
            let installed = self.install(0, None, None, None).await?;
            whole.runs.push(installed.whole);
            unread.runs.push(installed.unread);
        }
        let row = |name: &str| {
            cast.iter()
                .find(|(peer, _)| peer.name.starts_with(name))
                .map(|(_, row)| row)
        };
        let wall = |cost: &Cost| cost.wall;
        let processor = |cost: &Cost| cost.processor;
        let floor = match (row(DECODES), row(HASHES)) {
            (Some(decodes), Some(hashes)) => {
                decodes.figures(processor).median() + hashes.figures(processor).median()
            }
            _ => 0.0,
        };
        let mut targets = Vec::new();
        let mut compare =
            |what: &str, at_most, limit: f64, own: &Row, peer: &str, of: fn(&Cost) -> f64| {
                let Some(peer) = row(peer) else { return };
                let ratios = ratios(own, peer, of);
                let least = floor / peer.figures(processor).median();
                targets.push(Target {
                    what: what.to_owned(),
                    at_most,
                    measured: words(&ratios),
                    met: ratios.median() <= limit,
                    bound: format!(
                        "to decode and to hash takes {} of the other's processor time",
                        number(least)
                    ),
                });
            };
        compare(
            "full install without read back, wall, against `curl | zstd | dd` (buffered)",
            "≤ 0.50",
            0.5,
            &unread,
            "curl | zstd | dd, buffered",
            wall,
        );
        compare(
            "the same, processor",
            "≤ 0.45",
            0.45,
            &unread,
            "curl | zstd | dd, buffered",
            processor,
        );
        compare(
            "full install without read back, wall, against `curl | zstd | dd` (direct)",
            "≤ 1.0",
            1.0,
            &unread,
            "curl | zstd | dd, direct",
            wall,
        );
        compare(
            "full install with read back, wall, against RAUC",
            "≤ 0.65",
            0.65,
            &whole,
            "RAUC",
            wall,
        );
        compare(
            "the same, processor",
            "≤ 0.60",
            0.6,
            &whole,
            "RAUC",
            processor,
        );
        compare(
            "full install with read back, wall, against SWUpdate",
            "≤ 0.75",
            0.75,
            &whole,
            "SWUpdate",
            wall,
        );
        compare(
            "the same, processor",
            "≤ 0.60",
            0.6,
            &whole,
            "SWUpdate",
            processor,
        );
        for target in targets {
            self.report.target(target);
        }
        self.full.clone_from(&whole.runs);
        let mut rows: Vec<_> = cast.into_iter().map(|(_, row)| row).collect();
        rows.extend([whole, unread]);
        self.report.table(Table {
            title: "Full installation of v2r".to_owned(),
            about: "Onto a slot full of noise, by a device that has nothing of the image. The base of the ratios is \
                `curl | zstd | dd`, buffered."
                .to_owned(),
            base: 1.min(rows.len() - 1),
            rows,
        });
        Ok(())
    }

    /// What a kill in the middle costs.
    pub(super) async fn kill(&mut self) -> io::Result<()> {
        let undisturbed = self.install(0, None, None, None).await?;
        let mut random = Random(self.wish.runs as u64);
        let mut row = ours("fwupdated, killed once");
        for _ in 0..self.wish.runs.max(3) {
            let share = 0.1 + random.below(80) as f64 / 100.0;
            let after = Duration::from_secs_f64(undisturbed.unread.wall * share);
            row.runs
                .push(self.install(0, None, Some(after), None).await?.whole);
        }
        // What is downloaded twice stands for so much of the raw image.
        let raw = fs::metadata(&self.new[0].1)?.len() as f64;
        let once = undisturbed.whole.served.bytes as f64;
        let extra = row.figures(|cost| {
            (cost.served.bytes as f64 - once).max(0.0) / once * raw / (1 << 20) as f64
        });
        self.report.target(Target {
            what: "after SIGKILL at a random moment, what is fetched again, MiB of image"
                .to_owned(),
            at_most: "≤ 64, median ≤ 32",
            measured: words(&extra),
            met: extra.most() <= 64.0 && extra.median() <= 32.0,
            bound: "checkpoints every 64 MiB".to_owned(),
        });
        let mut once = ours("fwupdated");
        once.runs.push(undisturbed.whole);
        self.report.table(Table {
            title: "Full installation, killed at a random moment and started again".to_owned(),
            about: "The rows count from the method call to the request for the reboot.".to_owned(),
            rows: vec![once, row],
            base: 0,
        });
        Ok(())
    }

    /// The same on a device that writes no faster than a card.
    pub(super) async fn throttled(&mut self) -> io::Result<()> {
        let throttle = match Throttle::new(self.board.target(), CARD) {
            Ok(throttle) => throttle,
            Err(error) => {
                self.report.skip(format!(
                    "a device as slow as a card: the kernel cannot limit it here: {error}"
                ));
                return Ok(());
            }
        };
        let mut dd = Row {
            tool: "dd, raw image, direct".to_owned(),
            ..Row::default()
        };
        let (mut whole, mut unread) = (ours("fwupdated"), ours("fwupdated, without read back"));
        // Minutes each, and steady: the limit decides.
        for _ in 0..self.wish.runs.min(2) {
            self.board.target().fill(&self.noise)?;
            let mut command = Command::new("bash");
            command.args(["-euc", "echo $$ >\"$GROUP/cgroup.procs\"; exec dd if=\"$RAW\" of=\"$DEVICE\" bs=4M oflag=direct conv=fsync status=none"]);
            command
                .env("GROUP", &throttle.group)
                .env("RAW", &self.new[0].1)
                .env("DEVICE", &self.board.target().device);
            dd.runs.push(measure(
                &mut command,
                &self.server,
                Some(self.board.target()),
                &self.scratch,
            )?);
            let installed = self.install(0, None, None, Some(&throttle.group)).await?;
            whole.runs.push(installed.whole);
            unread.runs.push(installed.unread);
        }
        let ratio = ratios(&unread, &dd, |cost| cost.wall);
        self.report.target(Target {
            what: "full install on a device as slow as a card (40 MiB/s), without the read, wall, against `dd`".to_owned(),
            at_most: "≤ 1.05",
            measured: words(&ratio),
            met: ratio.median() <= 1.05,
            bound: "the card; zeros that are there already are not written".to_owned(),
        });
        self.report.table(Table {
            title: "Full installation on a device as slow as a card".to_owned(),
            about: "Writes are limited to 40 MiB a second by the kernel (control groups); reads are not.".to_owned(),
            rows: vec![dd, whole, unread],
            base: 0,
        });
        Ok(())
    }
}
