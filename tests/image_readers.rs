//! A foreign reader of the zstd seekable format reads our images: Python's pyzstd, with a script in `tests/sdk/`.
//! Where Python or its package index is missing the test says `SKIPPED: ...`.

mod support;

use std::{fs, process::Command, time::Duration};

use support::{rig, sdk};
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_reader_of_the_seekable_format_finds_every_place() {
    let Some(mut script) = sdk::script("read_seekable.py") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // Two partitions, a hole, text that is linked, noise that is not compressed.
    let boot = b"the way to the slot ".repeat(30_000)[..512 * 1000].to_vec();
    let mut rootfs = rig::noise(9 << 20, 5);
    rootfs[3 << 20..4 << 20].copy_from_slice(&boot.repeat(3)[..1 << 20]);
    rootfs[5 << 20..7 << 20].fill(0);
    fs::write(dir.join("boot.img"), &boot).unwrap();
    fs::write(dir.join("rootfs.img"), &rootfs).unwrap();
    fs::write(dir.join("raw"), [boot, rootfs].concat()).unwrap();
    let line =
        "image build --boot boot.img --rootfs rootfs.img --version 1 --compatible b --output i.zst";
    let built = Command::new(env!("CARGO_BIN_EXE_fwupdatectl"))
        .args(line.split(' '))
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");
    let script = script.arg(dir.join("i.zst")).arg(dir.join("raw"));
    let output = timeout(Duration::from_secs(120), script.output()).await;
    let output = output.expect("the script ends").unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
