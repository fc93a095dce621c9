//! The scenes in which the device has something already: updates, and the same release again.

use super::{
    Command, Cost, Figures, Instant, Path, Row, Stage, Table, Target, UPDATES, board, fs,
    fwupdatectl, has, io, number, ours, output, pair, ratios, run, words,
};
use std::os::unix::fs::FileExt;

/// The name of the pair of squashfs images.
const SQUASHFS: &str = "squashfs";

/// Takes kernel and initramfs out of both releases; says how long patches from the old to the new ones are.
const COMPRESSED: &str = r#"
sum=0
for kind in vmlinuz initrd.img; do
    for release in OLD NEW; do
        file=$(debugfs -R 'ls -p /boot' "${!release}" 2>/dev/null | cut -d/ -f6 | grep "^$kind-" | tail -n 1)
        debugfs -R "dump /boot/$file boot-$release" "${!release}" 2>/dev/null
    done
    zstd -q -f -19 --long=31 --patch-from=boot-OLD boot-NEW -o boot-patch 2>/dev/null
    sum=$((sum + $(stat -c %s boot-patch)))
    rm boot-OLD boot-NEW boot-patch
done
echo "$sum"
"#;

impl Stage {
    /// From the old release to a new one, by every tool.
    pub(super) async fn updates(&mut self, index: usize) -> io::Result<()> {
        let name = self.new[index].0;
        let smoke = self.wish.smoke;
        let mut cast = if smoke {
            Vec::new()
        } else {
            self.cast(UPDATES, index)?
        };
        let (mut full, mut any, mut delta) = (
            ours("fwupdated, full image"),
            ours("fwupdated, any to any"),
            ours("fwupdated, static delta"),
        );
        full.note = "another device, which has nothing of it".to_owned();
        for _ in 0..self.wish.runs {
            self.act(&mut cast, index)?;
            any.runs
                .push(self.install(index, None, None, None).await?.whole);
        }
        if name == "v2r" {
            full.runs.clone_from(&self.full);
        }
        let mut in_place = ours("fwupdated, any to any, the target holds the old release");
        let old = self.old.clone();
        for _ in 0..self.wish.runs {
            in_place
                .runs
                .push(self.install(index, Some(&old), None, None).await?.whole);
        }
        if self.make_delta(index)? {
            for _ in 0..self.wish.runs {
                delta
                    .runs
                    .push(self.install(index, None, None, None).await?.whole);
            }
        }
        let differ = pair::differing(&self.old, &self.new[index].1)?;
        let written = in_place.figures(|cost| cost.written as f64 / differ as f64);
        let mut rows: Vec<_> = cast.into_iter().map(|(_, row)| row).collect();
        if !smoke {
            rows.push(computed(
                "RAUC adaptive (computed)",
                pair::rauc_adaptive(&self.old, &self.new[index].1)?,
                "index and squashfs blocks with a new block of 4 KiB: this kernel lacks what RAUC needs",
            ));
            for level in ["-3", "-19"] {
                let patch = format!("--patch-from={}", self.old.display());
                let file = format!("{name}.patch{level}.size");
                let options = [level, "--long=31", patch.as_str()];
                if let Some(size) = self.kept_patch(index, &file, &options)? {
                    let tool = format!("zstd --patch-from {level} --long=31");
                    rows.push(computed(
                        &tool,
                        size,
                        "this pair only, over the raw images; gigabytes to make and to apply",
                    ));
                }
            }
        }
        let compressed = match smoke {
            true => None,
            false => self.compressed(index, name)?,
        };
        if let Some(bytes) = compressed {
            rows.push(computed(
                "of which kernel and initramfs",
                bytes,
                "compressed files that change as a whole, by `zstd --patch-from -19` from the old ones: what every tool downloads",
            ));
        }
        self.update_targets(name, &rows, &full, &any, &delta, &written);
        let base = rows.len();
        rows.push(any);
        rows.extend(
            [in_place, delta, full]
                .into_iter()
                .filter(|row| !row.runs.is_empty()),
        );
        self.report.table(Table {
            title: match name {
                SQUASHFS => "Update of a squashfs from v1 to v2".to_owned(),
                _ => format!("Update from v1 to {name}"),
            },
            about: format!(
                "The device runs v1; the other slot holds noise, or what the row says. {} MB of blocks of 4 KiB differ between \
                 the two releases at the same place. fwupdated counts from the method call to the request for the reboot, \
                 so with all of the image read back.",
                number(differ as f64 / 1e6)
            ),
            rows,
            base,
        });
        Ok(())
    }

    fn update_targets(
        &mut self,
        name: &str,
        peers: &[Row],
        full: &Row,
        any: &Row,
        delta: &Row,
        written: &Figures,
    ) {
        let bytes = |row: &Row| row.figures(|cost| cost.served.bytes as f64).median();
        let of = |start: &'static str| peers.iter().filter(move |row| row.tool.starts_with(start));
        let mb = |bytes: f64| format!("{} MB", number(bytes / 1e6));
        let chunked = ["casync", "zchunk", "bita", "RAUC"]
            .iter()
            .flat_map(|start| of(start));
        let best = chunked.min_by(|one, other| bytes(one).total_cmp(&bytes(other)));
        if let Some(best) = best {
            let ratio = bytes(any) / bytes(best);
            self.report.target(Target {
                what: format!("bytes v1 to {name}, any to any, against the best of the others"),
                at_most: "≤ 0.95",
                measured: format!(
                    "{ratio:.3} ({} to {} of {})",
                    mb(bytes(any)),
                    mb(bytes(best)),
                    best.tool
                ),
                met: ratio <= 0.95,
                bound: match delta.runs.is_empty() {
                    true => String::new(),
                    false => format!("with a static delta: {}", mb(bytes(delta))),
                },
            });
        }
        if let (Some(patch), false) = (of("zstd --patch-from -19").next(), delta.runs.is_empty()) {
            let ratio = bytes(delta) / bytes(patch);
            let same = of("of which").next().map_or(0.0, bytes);
            self.report.target(Target {
                what: format!("bytes v1 to {name} with a static delta, against `zstd --patch-from -19 --long=31`"),
                at_most: "≤ 0.78",
                measured: format!(
                    "{ratio:.3} ({} to {} of {})",
                    mb(bytes(delta)),
                    mb(bytes(patch)),
                    patch.tool
                ),
                met: ratio <= 0.78,
                bound: format!(
                    "{} of both are kernel and initramfs, which are compressed and change as a whole; without them {:.3}",
                    mb(same),
                    (bytes(delta) - same) / (bytes(patch) - same)
                ),
            });
        }
        if !delta.runs.is_empty() {
            let requests = delta.figures(|cost| cost.served.requests as f64);
            self.report.target(Target {
                what: format!("requests of an update from v1 to {name} by static delta"),
                at_most: "≤ 400",
                measured: number(requests.most()),
                met: requests.most() <= 400.0,
                bound: format!(
                    "any to any: {}",
                    number(any.figures(|cost| cost.served.requests as f64).median())
                ),
            });
            if !full.runs.is_empty() {
                let ratio = ratios(delta, full, |cost| cost.wall);
                self.report.target(Target {
                    what: "update by static delta, wall, against the full installation, both with read back".to_owned(),
                    at_most: "≤ 0.60",
                    measured: words(&ratio),
                    met: ratio.median() <= 0.6,
                    bound: "reading the running slot, reading back".to_owned(),
                });
            }
        }
        if name == "v2i" {
            self.report.target(Target {
                what: "bytes written for v1 to v2i when the target holds v1, against the blocks that differ".to_owned(),
                at_most: "≤ 1.1",
                measured: words(written),
                met: written.median() <= 1.1,
                bound: String::new(),
            });
        }
    }

    /// The same releases as squashfs: content that is compressed already.
    pub(super) async fn squashfs(&mut self) -> io::Result<()> {
        let [old, new] = ["v1", "v2"].map(|name| self.wish.pairs.join(format!("{name}.squashfs")));
        if !old.is_file() || !new.is_file() {
            self.report
                .skip(format!("squashfs: {} is missing", old.display()));
            return Ok(());
        }
        (self.old, self.old_image) = (old, "old.squashfs.img.zst");
        self.new = vec![(SQUASHFS, new)];
        board::build(
            &self.rig,
            &self.old,
            "1.1.0",
            &self.files.join(self.old_image),
            &["--level", "1"],
        )?;
        board::build(&self.rig, &self.new[0].1, "2.0.0", &self.ours(0), &[])?;
        let url = self.server.url(self.old_image);
        self.board.live_on(&self.rig, &url).await?;
        self.updates(0).await
    }

    /// What of a release are compressed files that change as a whole, patched as well as can be: the kernel and its initramfs.
    fn compressed(&mut self, index: usize, name: &str) -> io::Result<Option<u64>> {
        if name == SQUASHFS || !has("debugfs") || !has("zstd") {
            return Ok(None);
        }
        self.kept(&format!("{name}.compressed.size"), |stage| {
            // debugfs ends with 0 whatever happens: that there is a file says that it went well.
            let said = output(
                Command::new("bash")
                    .args(["-euc", COMPRESSED])
                    .env("OLD", &stage.old)
                    .env("NEW", &stage.new[index].1)
                    .current_dir(&stage.scratch),
            )?;
            said.trim().parse().map(Some).map_err(io::Error::other)
        })
    }

    /// The delta beside the image, where `fwupdatectl` makes one.
    fn make_delta(&mut self, index: usize) -> io::Result<bool> {
        let can = fwupdatectl()
            .args(["image", "delta", "--help"])
            .output()?
            .status
            .success();
        if !can {
            self.report
                .skip("static deltas: this fwupdatectl makes none".to_owned());
            return Ok(false);
        }
        let began = Instant::now();
        let old = self.files.join(self.old_image);
        let said = output(
            fwupdatectl()
                .args(["image", "delta"])
                .arg(old)
                .arg(self.ours(index)),
        )?;
        println!(
            "{} ({} s)",
            said.trim(),
            number(began.elapsed().as_secs_f64())
        );
        Ok(true)
    }

    /// The size of a patch made by `zstd`, as it was kept, or made now: `-19` only with `--slow`.
    fn kept_patch(
        &mut self,
        index: usize,
        file: &str,
        options: &[&str],
    ) -> io::Result<Option<u64>> {
        self.kept(file, |stage| {
            let (name, new) = &stage.new[index];
            if !has("zstd") || (options.contains(&"-19") && !stage.wish.slow) {
                let what = format!("zstd --patch-from {} for {name}", options[0]);
                stage.report.skip(format!(
                    "{what}: takes half an hour and 5 GB; --slow makes it once and keeps its size"
                ));
                return Ok(None);
            }
            stage.compressed_size(options, new).map(Some)
        })
    }

    /// The release that the target holds already.
    pub(super) async fn same(&mut self) -> io::Result<()> {
        let raw = self.new[0].1.clone();
        let (mut read, mut whole, mut unread) = (
            ours("dd, one read of the slot, direct"),
            ours("fwupdated"),
            ours("fwupdated, without read back"),
        );
        self.server.mark(first_frames(&self.ours(0))?);
        for _ in 0..self.wish.runs {
            let installed = self.install(0, Some(&raw), None, None).await?;
            whole.runs.push(installed.whole);
            unread.runs.push(installed.unread);
            let began = Instant::now();
            let device = format!("if={}", self.board.target().device.display());
            run(Command::new("dd").args([
                &device,
                "of=/dev/null",
                "bs=4M",
                "iflag=direct",
                "status=none",
            ]))?;
            let wall = began.elapsed().as_secs_f64();
            read.runs.push(Cost {
                wall,
                ..Cost::default()
            });
        }
        let payload = whole.figures(|cost| cost.served.behind as f64);
        let written = whole.figures(|cost| cost.written as f64);
        self.report.target(Target {
            what: "the same release again: payload fetched, bytes written".to_owned(),
            at_most: "0, 0",
            measured: format!("{}, {}", number(payload.most()), number(written.most())),
            met: payload.most() == 0.0 && written.most() == 0.0,
            bound: "header and index are fetched twice: to be checked before the slot is touched, and to be used".to_owned(),
        });
        let ratio = ratios(&unread, &read, |cost| cost.wall);
        self.report.target(Target {
            what: "the same release again, without read back, wall, against one read of the slot"
                .to_owned(),
            at_most: "≤ 1.2",
            measured: words(&ratio),
            met: ratio.median() <= 1.2,
            bound: "SHA-256 of all chunks".to_owned(),
        });
        self.report.table(Table {
            title: "The same release again".to_owned(),
            about: "The target holds what is to be installed.".to_owned(),
            rows: vec![read, whole, unread],
            base: 0,
        });
        Ok(())
    }
}

/// A line for what was computed or made without a client.
fn computed(tool: &str, bytes: u64, note: &str) -> Row {
    let mut cost = Cost::default();
    cost.served.bytes = bytes;
    Row {
        tool: tool.to_owned(),
        runs: vec![cost],
        note: note.to_owned(),
    }
}

/// Bytes of the skippable frames at the start of a file: manifest and index (RFC 8878, 3.1.2).
fn first_frames(path: &Path) -> io::Result<u64> {
    let file = fs::File::open(path)?;
    let mut at = 0;
    loop {
        let mut head = [0; 8];
        file.read_exact_at(&mut head, at)?;
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        if word(0) & 0xffff_fff0 != 0x184d_2a50 {
            return Ok(at);
        }
        at += 8 + u64::from(word(4));
    }
}
