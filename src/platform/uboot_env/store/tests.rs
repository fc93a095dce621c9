//! The store on files: what is written, what is read after damage, and the lock.

use super::*;

const SIZE: usize = 0x1000;

fn env(dir: &Path, copies: usize) -> UbootEnv {
    let file = dir.join("env");
    fs::write(&file, vec![0xff; SIZE * copies]).unwrap();
    let lines: Vec<_> = (0..copies)
        .map(|n| format!("{} {:#x} {SIZE:#x}", file.display(), n * SIZE))
        .collect();
    let location = EnvLocation::parse(Path::new("c"), &lines.join("\n")).unwrap();
    UbootEnv::new(location, &dir.join("lock"))
}

fn damage(dir: &Path, at: usize) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(dir.join("env"))
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 0xff], at as u64).unwrap();
}

#[test]
fn the_copy_in_force_is_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let env = env(dir.path(), 2);
    env.initialise([("n", "0")]).unwrap();
    for number in 1..600 {
        let before = fs::read(dir.path().join("env")).unwrap();
        let in_force = env.load().unwrap().index;
        env.update(|vars| vars.set("n", &number.to_string()).unwrap())
            .unwrap();
        let after = fs::read(dir.path().join("env")).unwrap();
        let range = in_force * SIZE..(in_force + 1) * SIZE;
        assert_eq!(before[range.clone()], after[range], "write {number}");
        assert_eq!(
            env.read().unwrap().get("n"),
            Some(number.to_string().as_str())
        );
    }
}

#[test]
fn a_torn_copy_falls_back_to_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let env = env(dir.path(), 2);
    env.initialise([("n", "old")]).unwrap();
    env.update(|vars| vars.set("n", "new").unwrap()).unwrap();
    let newest = env.load().unwrap().index;
    damage(dir.path(), newest * SIZE + 40);
    assert_eq!(env.read().unwrap().get("n"), Some("old"));
    // The next change goes over the torn copy and leaves the good one.
    env.update(|vars| vars.set("n", "again").unwrap()).unwrap();
    assert_eq!(env.load().unwrap().index, newest);
    assert_eq!(env.read().unwrap().get("n"), Some("again"));
}

#[test]
fn an_environment_that_cannot_be_read_is_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let env = env(dir.path(), 2);
    env.initialise([("n", "1")]).unwrap();
    damage(dir.path(), 40);
    damage(dir.path(), SIZE + 40);
    let before = fs::read(dir.path().join("env")).unwrap();
    let error = env.update(|vars| vars.set("n", "2").unwrap()).unwrap_err();
    assert_eq!(error.code(), "env-no-good-copy");
    assert_eq!(fs::read(dir.path().join("env")).unwrap(), before);
}

#[test]
fn a_change_that_changes_nothing_or_does_not_fit_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let env = env(dir.path(), 2);
    env.initialise([("n", "1")]).unwrap();
    let before = fs::read(dir.path().join("env")).unwrap();
    env.update(|vars| vars.set("n", "1").unwrap()).unwrap();
    let error = env
        .update(|vars| vars.set("big", &"x".repeat(SIZE)).unwrap())
        .unwrap_err();
    assert_eq!(error.code(), "env-full");
    assert_eq!(
        env.initialise([("n", "2")]).unwrap_err().code(),
        "env-exists"
    );
    assert_eq!(fs::read(dir.path().join("env")).unwrap(), before);
}

#[test]
fn a_single_copy_and_a_negative_offset_work_too() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("env");
    fs::write(&file, vec![0; 3 * SIZE]).unwrap();
    let text = format!("{} -{SIZE:#x} {SIZE:#x}", file.display());
    let location = EnvLocation::parse(Path::new("c"), &text).unwrap();
    let env = UbootEnv::new(location, &dir.path().join("lock"));
    env.initialise([("a", "b")]).unwrap();
    env.update(|vars| vars.set("a", "c").unwrap()).unwrap();
    assert_eq!(env.read().unwrap().get("a"), Some("c"));
    let bytes = fs::read(&file).unwrap();
    assert!(
        bytes[..2 * SIZE].iter().all(|b| *b == 0),
        "only the last copy's place was written"
    );
}

#[test]
fn a_held_lock_is_waited_for_and_then_named() {
    let dir = tempfile::tempdir().unwrap();
    let env = env(dir.path(), 1);
    env.initialise([("a", "b")]).unwrap();
    let held = env.lock(LOCK_LIMIT).unwrap();
    let waiting = env.clone();
    let reader = std::thread::spawn(move || waiting.read());
    std::thread::sleep(Duration::from_millis(100));
    drop(held);
    reader.join().unwrap().unwrap();
    let _held = env.lock(LOCK_LIMIT).unwrap();
    assert_eq!(env.read().unwrap_err().code(), "env-locked");
}

#[test]
fn what_is_no_file_at_the_locks_name_is_neither_waited_for_nor_followed() {
    use std::os::unix::{fs::symlink, net::UnixListener};
    type Make = fn(&Path);
    let made: [(&str, Make); 5] = [
        ("a pipe", |lock| {
            nix::unistd::mkfifo(lock, nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
        }),
        ("a link to a file", |lock| {
            let target = lock.with_extension("target");
            fs::write(&target, "").unwrap();
            symlink(target, lock).unwrap();
        }),
        ("a link to nothing", |lock| {
            symlink(lock.with_extension("nothing"), lock).unwrap();
        }),
        ("a socket", |lock| drop(UnixListener::bind(lock).unwrap())),
        ("a folder", |lock| fs::create_dir(lock).unwrap()),
    ];
    for (what, make) in made {
        let dir = tempfile::tempdir().unwrap();
        let env = env(dir.path(), 2);
        env.initialise([("n", "1")]).unwrap();
        let lock = dir.path().join("lock");
        fs::remove_file(&lock).unwrap();
        make(&lock);
        let (done, finished) = std::sync::mpsc::channel();
        let changed = env.clone();
        std::thread::spawn(move || {
            let read = changed.read().unwrap_err().code();
            let update = changed.update(|env| env.set("n", "2").unwrap());
            let _ = done.send((read, update.unwrap_err().code()));
        });
        let codes = finished.recv_timeout(Duration::from_secs(60));
        let refused = "env-lock-not-a-file";
        assert_eq!(codes.expect(what), (refused, refused), "{what}");
        assert!(!lock.with_extension("nothing").exists(), "{what}: followed");
        assert_eq!(env.load().unwrap().copy.env.get("n"), Some("1"), "{what}");
    }
}

#[test]
fn what_the_older_copy_said_is_forgotten_on_demand_and_then_not_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let env = env(dir.path(), 2);
    env.initialise([("n", "old")]).unwrap();
    env.update(|vars| vars.set("n", "new").unwrap()).unwrap();
    env.forget_older().unwrap();
    let before = fs::read(dir.path().join("env")).unwrap();
    env.forget_older().unwrap();
    assert_eq!(fs::read(dir.path().join("env")).unwrap(), before);
    for bad in 0..2 {
        fs::write(dir.path().join("env"), &before).unwrap();
        damage(dir.path(), bad * SIZE + 40);
        assert_eq!(env.read().unwrap().get("n"), Some("new"), "copy {bad}");
        // A damaged one is healed.
        env.forget_older().unwrap();
        damage(dir.path(), (1 - bad) * SIZE + 40);
        assert_eq!(env.read().unwrap().get("n"), Some("new"), "copy {bad}");
    }
}
