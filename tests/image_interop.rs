//! Whatever an image is made of, the `zstd` of every Linux gives back the raw bytes, and `fwupdatectl` finds it good:
//! images of one sector, sizes around every border that the format knows, holes at every place, one and two
//! partitions, small and large chunks.

mod support;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    process::Command,
};

use fwupdated::{image::limits, update::digest::Sha256};
use support::rig::{COMPATIBLE, fwupdatectl, make_key, run};

const SECTOR: usize = limits::SECTOR as usize;
const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Bytes that do not compress.
fn noise(size: usize, seed: u64) -> Vec<u8> {
    let mut random = support::random::Random(seed);
    let mut bytes: Vec<_> = (0..size.div_ceil(8))
        .flat_map(|_| random.next().to_le_bytes())
        .collect();
    bytes.truncate(size);
    bytes
}

/// Bytes that compress as text does.
fn text(size: usize) -> Vec<u8> {
    let lines =
        (0_u64..).flat_map(|n| format!("{n}: the {} of {}\n", n * n % 911, n % 37).into_bytes());
    lines.take(size).collect()
}

/// Builds and signs an image of these files in `dir`; returns the file.
fn built(dir: &Path, boot: Option<&Path>, rootfs: &Path, options: &[&str]) -> PathBuf {
    let key = dir.join("signing.key");
    let signed = [&["--key", key.to_str().unwrap()], options].concat();
    unsigned(dir, boot, rootfs, &signed)
}

/// The same without a signature, which has chance in it.
fn unsigned(dir: &Path, boot: Option<&Path>, rootfs: &Path, options: &[&str]) -> PathBuf {
    let file = dir.join("image.zst");
    let mut command = fwupdatectl();
    command.args([
        "image",
        "build",
        "--version",
        "1",
        "--compatible",
        COMPATIBLE,
    ]);
    command
        .args(["--created", "2026-01-02T03:04:05Z", "--output"])
        .arg(&file);
    command.arg("--rootfs").arg(rootfs);
    if let Some(boot) = boot {
        command.arg("--boot").arg(boot);
    }
    run(command.args(options));
    file
}

/// The image decompresses to `raw`, and is good.
fn assert_good(dir: &Path, image: &Path, raw: &[u8], what: &str) {
    let found = run(Command::new("zstd").arg("-dcq").arg(image)).stdout;
    assert_eq!(found.len(), raw.len(), "{what}");
    assert_eq!(Sha256::of(&found), Sha256::of(raw), "{what}");
    let key = dir.join("signing.key.pub");
    run(fwupdatectl()
        .args(["image", "verify"])
        .arg(image)
        .arg("--key")
        .arg(key));
}

fn workshop() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    make_key(dir.path());
    dir
}

#[test]
fn zstd_gives_back_images_of_every_awkward_size() {
    let dir = workshop();
    let raw = dir.path().join("raw");
    let borders = [
        SECTOR,
        limits::BLOCK,
        limits::MIN_HOLE,
        limits::MAX_HOLE,
        limits::DEFAULT_AVERAGE as usize,
        limits::MAX_AVERAGE as usize,
    ];
    let mut sizes: Vec<_> = borders
        .iter()
        .flat_map(|at| [at - at.min(&(SECTOR * 2)) / 2, *at, at + SECTOR])
        .collect();
    sizes
        .iter_mut()
        .for_each(|size| *size = size.next_multiple_of(SECTOR));
    sizes.sort_unstable();
    sizes.dedup();
    for (seed, size) in (1..).zip(sizes) {
        for (kind, bytes) in [
            ("noise", noise(size, seed)),
            ("text", text(size)),
            ("zeros", vec![0; size]),
        ] {
            fs::write(&raw, &bytes).unwrap();
            let image = built(dir.path(), None, &raw, &["--level", "3"]);
            assert_good(
                dir.path(),
                &image,
                &bytes,
                &format!("{size} bytes of {kind}"),
            );
        }
    }
}

/// Images with holes in them, each with its name.
fn with_holes() -> Vec<(&'static str, Vec<u8>)> {
    let holed = |size: usize, holes: &[(usize, usize)]| {
        let mut bytes = [noise(size / 2, 5), text(size - size / 2)].concat();
        holes
            .iter()
            .for_each(|&(at, length)| bytes[at..at + length].fill(0));
        bytes
    };
    vec![
        ("at the start", holed(MIB, &[(0, 300 * KIB)])),
        ("at the end", holed(MIB, &[(700 * KIB, 324 * KIB)])),
        ("all but one byte", [vec![0; 3 * MIB - 1], vec![1]].concat()),
        (
            "all but the first byte",
            [vec![1], vec![0; 3 * MIB - 1]].concat(),
        ),
        (
            "of odd places",
            holed(
                2 * MIB,
                &[(77_777, 200_001), (1_000_001, 65_537), (1_500_000, 4095)],
            ),
        ),
        (
            "of the smallest kind",
            holed(
                MIB,
                &[
                    (64 * KIB, limits::MIN_HOLE),
                    (512 * KIB, limits::MIN_HOLE - 1),
                ],
            ),
        ),
        ("too many to count", {
            let mut bytes = noise(4 * MIB, 6);
            bytes
                .chunks_mut(128 * KIB)
                .for_each(|piece| piece[..68 * KIB].fill(0));
            bytes
        }),
        (
            "longer than a chunk may be",
            holed(9 * MIB, &[(MIB, 6 * MIB)]),
        ),
    ]
}

#[test]
fn zstd_gives_back_holes_at_every_place_in_chunks_of_every_size() {
    let dir = workshop();
    let raw = dir.path().join("raw");
    for (name, bytes) in with_holes() {
        fs::write(&raw, &bytes).unwrap();
        for options in [
            &["--level", "1"][..],
            &["--level", "3", "--chunk-size", "2K", "--threads", "3"],
            &["--level", "1", "--chunk-size", "256K", "--threads", "1"],
        ] {
            let image = built(dir.path(), None, &raw, options);
            assert_good(
                dir.path(),
                &image,
                &bytes,
                &format!("hole {name}, {options:?}"),
            );
        }
    }
}

#[test]
fn zstd_gives_back_two_partitions_one_after_the_other() {
    let dir = workshop();
    let (boot, rootfs) = (dir.path().join("boot"), dir.path().join("rootfs"));
    let hole = vec![0; 200 * KIB];
    let cases = [
        ("of one sector each", noise(SECTOR, 1), noise(SECTOR, 2)),
        ("alike", text(MIB), text(MIB)),
        (
            "whose holes meet",
            [text(300 * KIB), hole.clone()].concat(),
            [hole.clone(), noise(MIB, 3)].concat(),
        ),
        ("that are holes", hole.clone(), hole),
        (
            "that end within a block",
            noise(KIB + SECTOR, 4),
            noise(5 * KIB + SECTOR, 5),
        ),
    ];
    for (name, first, second) in cases {
        fs::write(&boot, &first).unwrap();
        fs::write(&rootfs, &second).unwrap();
        let image = built(dir.path(), Some(&boot), &rootfs, &["--level", "3"]);
        assert_good(
            dir.path(),
            &image,
            &[first, second].concat(),
            &format!("partitions {name}"),
        );
    }
}

#[test]
fn the_same_bytes_give_the_same_image_however_they_lie_on_the_disk_and_however_many_work_on_it() {
    let dir = workshop();
    let (dense, sparse) = (dir.path().join("dense"), dir.path().join("sparse"));
    for (name, bytes) in with_holes() {
        fs::write(&dense, &bytes).unwrap();
        let file = File::create(&sparse).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for (at, piece) in (0..)
            .step_by(limits::BLOCK)
            .zip(bytes.chunks(limits::BLOCK))
        {
            if piece.iter().any(|byte| *byte != 0) {
                file.write_all_at(piece, at).unwrap();
            }
        }
        let blocks = |file: &Path| fs::metadata(file).unwrap().blocks();
        assert!(
            blocks(&sparse) < blocks(&dense),
            "{name}: this file system has no holes"
        );
        let of = |raw: &Path, threads| {
            let image = unsigned(
                dir.path(),
                None,
                raw,
                &["--level", "1", "--threads", threads],
            );
            fs::read(image).unwrap()
        };
        let first = of(&dense, "1");
        assert!(of(&sparse, "1") == first, "hole {name}: sparse");
        assert!(of(&sparse, "5") == first, "hole {name}: threads");
    }
}
