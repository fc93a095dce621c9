//! Carrying over onto real file systems on loop devices.

use std::{
    fs::Permissions,
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    process::Command,
};

use super::*;

/// Runs a program, which must succeed.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A slot on a loop device, and a running system in a folder.
struct Scene {
    dir: tempfile::TempDir,
    device: PathBuf,
}

impl Drop for Scene {
    fn drop(&mut self) {
        run("losetup", &["--detach", self.device.to_str().unwrap()]);
    }
}

impl Scene {
    /// `None`, after saying why, where there are no loop devices.
    fn new(megabytes: u64) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            // Past the test runner's capture.
            let _ = io::Write::write_all(&mut io::stderr(), b"SKIPPED: loop devices need root\n");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("slot.img");
        fs::File::create(&image)
            .unwrap()
            .set_len(megabytes << 20)
            .unwrap();
        let image = image.to_str().unwrap();
        run("mkfs.ext4", &["-q", "-O", "^has_journal", image]);
        let device = run("losetup", &["--find", "--show", image]).into();
        fs::create_dir(dir.path().join("old")).unwrap();
        Some(Self { dir, device })
    }

    fn old(&self) -> PathBuf {
        self.dir.path().join("old")
    }

    /// A file of the running system.
    fn write(&self, path: &str, text: &str) -> PathBuf {
        let file = self.old().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        file
    }

    fn carry(&self, patterns: &[&str]) -> Result<Carried, CarryOverError> {
        let patterns: Vec<_> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        carry(&self.old(), &patterns, &self.device)
    }

    /// Does something to the new system, mounted as anybody would.
    fn inside<T>(&self, work: impl FnOnce(&Path) -> T) -> T {
        let point = self.dir.path().join("new");
        fs::create_dir_all(&point).unwrap();
        let at = point.to_str().unwrap();
        let mounted = patiently(
            || {
                let mut mount = Command::new("mount");
                let done = mount.arg(&self.device).arg(at).output().unwrap();
                if done.status.success() {
                    Ok(())
                } else {
                    Err(done)
                }
            },
            |_| true,
        );
        mounted.unwrap();
        let done = work(&point);
        run("umount", &[at]);
        done
    }
}

#[test]
fn contents_owners_modes_times_attributes_and_links_are_carried_over() {
    let Some(scene) = Scene::new(16) else { return };
    let key = scene.write("etc/ssh/ssh_host_key", "secret");
    let rustix_name = "user.note";
    fs::set_permissions(&key, Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&key, Some(1234), Some(2345)).unwrap();
    let old = fs::File::open(&key).unwrap();
    old.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000))
        .unwrap();
    // Where temporary files are, there may be no such attributes.
    let has_attributes =
        rustix::fs::fsetxattr(&old, rustix_name, b"x", rustix::fs::XattrFlags::empty()).is_ok();
    scene.write("etc/other", "not listed");
    scene.write("var/lib/app/data/x", "1");
    let app = scene.old().join("var/lib/app");
    fs::set_permissions(app.join("data"), Permissions::from_mode(0o2750)).unwrap();
    symlink("/nowhere/at/all", app.join("link")).unwrap();
    run("mkfifo", &[app.join("pipe").to_str().unwrap()]);
    scene.inside(|new| {
        // What is there already: a folder stays, a file is replaced.
        fs::create_dir_all(new.join("var/lib/app")).unwrap();
        fs::write(new.join("var/lib/app/shipped"), "by the image").unwrap();
        symlink("elsewhere", new.join("var/lib/app/data")).unwrap();
        fs::create_dir(new.join("var/lib/app/elsewhere")).unwrap();
    });

    let carried = scene
        .carry(&["/etc/ssh/ssh_host_*", "/var/lib/app", "/etc/absent"])
        .unwrap();
    assert_eq!(carried.bytes, 7);
    assert_eq!(carried.left_out, [PathBuf::from("/var/lib/app/pipe")]);
    scene.inside(|new| {
        let file = new.join("etc/ssh/ssh_host_key");
        let meta = fs::metadata(&file).unwrap();
        assert_eq!(
            (meta.uid(), meta.gid(), meta.mode() & 0o7777),
            (1234, 2345, 0o640)
        );
        assert_eq!(
            (meta.mtime(), fs::read(&file).unwrap()),
            (1_000_000, b"secret".to_vec())
        );
        if has_attributes {
            let mut value = [0; 8];
            assert_eq!(
                rustix::fs::getxattr(&file, rustix_name, &mut value[..]),
                Ok(1)
            );
        }
        assert!(!new.join("etc/other").exists());
        let app = new.join("var/lib/app");
        assert_eq!(
            fs::read_link(app.join("link")).unwrap(),
            Path::new("/nowhere/at/all")
        );
        assert_eq!(
            fs::read_to_string(app.join("shipped")).unwrap(),
            "by the image"
        );
        assert!(!app.join("pipe").exists());
        // The image's link to a folder within itself counts.
        assert_eq!(fs::read_to_string(app.join("elsewhere/x")).unwrap(), "1");
        assert_eq!(
            fs::metadata(app.join("elsewhere")).unwrap().mode() & 0o7777,
            0o2750
        );
    });
    // Nothing holds the slot any more.
    let mut exclusive = fs::File::options();
    exclusive.read(true).custom_flags(nix::libc::O_EXCL);
    patiently(|| exclusive.open(&scene.device), |_| true).unwrap();
}

#[test]
fn a_device_that_is_busy_for_a_moment_is_waited_for_and_one_that_stays_so_is_an_error() {
    let Some(scene) = Scene::new(16) else { return };
    scene.write("etc/passwd", "carried");
    let held = mount(&scene.device, "ext4", Access::Read).unwrap();
    let refused = scene.carry(&["/etc/passwd"]).unwrap_err();
    assert_eq!(refused.code(), "carry-over-mount", "{refused}");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(150));
            drop(held);
        });
        assert_eq!(scene.carry(&["/etc/passwd"]).unwrap().bytes, 7);
    });
}

#[test]
fn no_link_in_the_new_root_leads_to_a_file_outside() {
    let Some(scene) = Scene::new(16) else { return };
    scene.write("etc/passwd", "carried");
    scene.write("etc/ssh/key", "carried");
    let outside = scene.dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("passwd"), "untouched").unwrap();
    let up = format!("../../../../../../..{}", outside.display());
    for target in [outside.to_str().unwrap(), &up] {
        // The folder is a link: within the new root it leads to nothing.
        scene.inside(|new| {
            let _ = fs::remove_dir_all(new.join("etc"));
            let _ = fs::remove_file(new.join("etc"));
            symlink(target, new.join("etc")).unwrap();
        });
        let refused = scene.carry(&["/etc/passwd"]).unwrap_err();
        assert_eq!(refused.code(), "carry-over-write", "{refused}");
        // The file is a link: it is replaced, not followed. A folder below it is a link.
        scene.inside(|new| {
            fs::remove_file(new.join("etc")).unwrap();
            fs::create_dir(new.join("etc")).unwrap();
            symlink(format!("{target}/passwd"), new.join("etc/passwd")).unwrap();
            symlink(target, new.join("etc/ssh")).unwrap();
        });
        scene.carry(&["/etc/passwd"]).unwrap();
        scene.carry(&["/etc/ssh/key"]).unwrap_err();
        scene.carry(&["/etc"]).unwrap_err();
        scene.inside(|new| {
            assert!(
                fs::symlink_metadata(new.join("etc/passwd"))
                    .unwrap()
                    .is_file()
            );
        });
        assert_eq!(
            fs::read_to_string(outside.join("passwd")).unwrap(),
            "untouched"
        );
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }
}

#[test]
fn a_link_in_the_running_system_is_copied_as_a_link_and_what_is_mounted_there_is_left() {
    let Some(scene) = Scene::new(16) else { return };
    scene.write("secret/shadow", "root's");
    let home = scene.old().join("home/user");
    fs::create_dir_all(home.join("mounted")).unwrap();
    symlink("../../secret", home.join("folder")).unwrap();
    let point = home.join("mounted");
    run("mount", &["-t", "tmpfs", "tmpfs", point.to_str().unwrap()]);
    fs::write(point.join("x"), "of another file system").unwrap();
    let carried = scene.carry(&["/home/user"]);
    run("umount", &[point.to_str().unwrap()]);
    carried.unwrap();
    scene.inside(|new| {
        let home = new.join("home/user");
        assert!(
            fs::symlink_metadata(home.join("folder"))
                .unwrap()
                .is_symlink()
        );
        assert_eq!(fs::read_dir(home.join("mounted")).unwrap().count(), 0);
        assert!(!new.join("secret").exists());
    });
}

#[test]
fn what_does_not_fit_cannot_be_read_or_is_in_the_way_is_an_error_with_its_name() {
    let Some(scene) = Scene::new(4) else { return };
    scene.write("data/large", &"x".repeat(6 << 20));
    let full = scene.carry(&["/data"]).unwrap_err();
    assert_eq!(full.code(), "carry-over-full");
    assert!(full.to_string().contains("/data/large"), "{full}");
    scene.write("etc/file", "x");
    scene.inside(|new| fs::create_dir_all(new.join("etc/file")).unwrap());
    let in_the_way = scene.carry(&["/etc/file"]).unwrap_err();
    assert_eq!(in_the_way.code(), "carry-over-write");
    assert!(in_the_way.to_string().contains("/etc/file"), "{in_the_way}");
}

#[test]
fn only_a_device_with_a_file_system_that_can_be_written_to_is_taken() {
    let Some(scene) = Scene::new(4) else { return };
    scene.write("etc/machine-id", "1");
    let code = |magic: &[u8], offset: u64| {
        let device = fs::File::options().write(true).open(&scene.device).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&device, &[0; 0x1_1000], 0).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&device, magic, offset).unwrap();
        device.sync_all().unwrap();
        scene.carry(&["/etc/machine-id"]).unwrap_err().code()
    };
    assert_eq!(code(b"hsqs", 0), "carry-over-read-only");
    assert_eq!(
        code(&[0xe2, 0xe1, 0xf5, 0xe0], 0x400),
        "carry-over-read-only"
    );
    assert_eq!(code(b"", 0), "carry-over-file-system");
    assert_eq!(code(&[0x53, 0xef], 0x438), "carry-over-mount");
    let file = scene.dir.path().join("slot.img");
    let refused = carry(&scene.old(), &["/etc/machine-id".to_owned()], &file).unwrap_err();
    assert_eq!(refused.code(), "carry-over-not-a-device");
}

#[test]
fn what_reads_back_otherwise_is_found() {
    let Some(scene) = Scene::new(4) else { return };
    scene.write("etc/machine-id", "1");
    let files = {
        let root = mount(&scene.device, "ext4", Access::Write).unwrap();
        let old = scene.old();
        let mut copy = copy::Copy::new(&old, &root);
        copy.take(Path::new("etc/machine-id")).unwrap();
        copy.finish().1
    };
    let check = || {
        let root = mount(&scene.device, "ext4", Access::Read).unwrap();
        files[0].check(&root)
    };
    check().unwrap();
    scene.inside(|new| fs::write(new.join("etc/machine-id"), "2").unwrap());
    assert_eq!(check().unwrap_err().code(), "carry-over-read-back-mismatch");
}
