//! Whether a boot partition holds what the Raspberry Pi's firmware needs to start a kernel. Reads only, and without
//! mounting: firmware that is told to try a partition without its files may hang until the power is cut.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

/// More is read of no text file.
const MOST: u64 = 256 << 10;
/// What the firmware looks for when `config.txt` names no kernel.
const KERNELS: &[&str] = &[
    "kernel8.img",
    "kernel_2712.img",
    "kernel7l.img",
    "kernel7.img",
    "kernel.img",
];

/// A device that is read only.
struct ReadOnly(File);

impl Read for ReadOnly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Seek for ReadOnly {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

/// Never called while files are only read; the FAT library wants it.
impl Write for ReadOnly {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `config.txt` says for one partition, as far as it decides which files are needed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    /// `kernel=` of lines that hold on any board.
    kernel: Option<String>,
    /// `kernel=` of lines that hold on some.
    kernel_of_some: Vec<String>,
    cmdline: String,
    prefix: String,
    ramdisk: bool,
}

/// The settings for `partition`. A filter by partition is decided; one by board, serial number or the like may hold.
fn wanted(config: &str, partition: u8) -> Wanted {
    let mut wanted = Wanted {
        cmdline: "cmdline.txt".to_owned(),
        ..Wanted::default()
    };
    let (mut here, mut any_board) = (true, true);
    for line in config.lines().map(str::trim) {
        if let Some(filter) = line.strip_prefix('[').and_then(|f| f.strip_suffix(']')) {
            match filter.to_ascii_lowercase().as_str() {
                "all" => (here, any_board) = (true, true),
                "none" => here = false,
                filter => match filter.strip_prefix("boot_partition=") {
                    Some(number) => here = number.parse() == Ok(partition),
                    None => any_board = false,
                },
            }
            continue;
        }
        let Some((name, value)) = line.split_once('=').filter(|_| here) else {
            continue;
        };
        let value = value.trim();
        match name.trim() {
            "kernel" if any_board => wanted.kernel = Some(value.to_owned()),
            "kernel" => wanted.kernel_of_some.push(value.to_owned()),
            "cmdline" if any_board => value.clone_into(&mut wanted.cmdline),
            "os_prefix" if any_board => value.clone_into(&mut wanted.prefix),
            "boot_ramdisk" if any_board => wanted.ramdisk = value == "1",
            _ => {}
        }
    }
    wanted
}

/// Looks at the FAT file system on `device`, partition `partition` of its disk.
///
/// # Errors
/// What is missing, as the end of a sentence.
pub(super) fn check(device: &Path, partition: u8) -> Result<(), String> {
    let file = File::open(device).map_err(|error| format!("it cannot be opened ({error})"))?;
    let no_fat = |error| format!("it holds no FAT file system ({error})");
    let options = fatfs::FsOptions::new().update_accessed_date(false);
    let fat = fatfs::FileSystem::new(ReadOnly(file), options).map_err(no_fat)?;
    let root = fat.root_dir();
    let has = |name: &str| {
        root.open_file(name).is_ok_and(|mut file| {
            let mut first = [0];
            file.read_exact(&mut first).is_ok()
        })
    };
    let mut config = Vec::new();
    root.open_file("config.txt")
        .and_then(|file| file.take(MOST).read_to_end(&mut config))
        .map_err(|_| "config.txt is missing".to_owned())?;
    let wanted = wanted(&String::from_utf8_lossy(&config), partition);
    if wanted.ramdisk {
        return if has("boot.img") {
            Ok(())
        } else {
            Err("boot.img is missing or empty, which config.txt asks for".to_owned())
        };
    }
    let under = |name: &str| format!("{}{name}", wanted.prefix);
    // Without a file at the prefix the firmware ignores the prefix, but only for all of them: asking for either
    // here would let a mixture pass.
    let kernel = match &wanted.kernel {
        Some(kernel) => has(&under(kernel)),
        None => {
            let of_some = wanted.kernel_of_some.iter().map(String::as_str);
            KERNELS
                .iter()
                .copied()
                .chain(of_some)
                .any(|name| has(&under(name)))
        }
    };
    if !kernel {
        let name = wanted
            .kernel
            .as_deref()
            .unwrap_or("a kernel (kernel8.img or the like)");
        return Err(format!("{} is missing or empty", under(name)));
    }
    let cmdline = under(&wanted.cmdline);
    if !has(&cmdline) {
        return Err(format!(
            "{cmdline} is missing or empty, so that the kernel would not find its root"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A FAT file system with these files.
    fn partition(files: &[(&str, &str)]) -> tempfile::NamedTempFile {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(2 << 20).unwrap();
        let disk = image.reopen().unwrap();
        fatfs::format_volume(&disk, fatfs::FormatVolumeOptions::new()).unwrap();
        let fat = fatfs::FileSystem::new(disk, fatfs::FsOptions::new()).unwrap();
        for (name, text) in files {
            if let Some((folder, _)) = name.split_once('/') {
                fat.root_dir().create_dir(folder).unwrap();
            }
            let mut file = fat.root_dir().create_file(name).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }
        fat.unmount().unwrap();
        image
    }

    fn missing(files: &[(&str, &str)], number: u8) -> String {
        check(partition(files).path(), number).unwrap_err()
    }

    const AB: &str = "dtparam=audio=on\n[boot_partition=2]\ncmdline=cmdline-a.txt\n[boot_partition=3]\ncmdline=cmdline-b.txt\n[all]\n";

    #[test]
    fn a_partition_with_its_files_is_fit_to_be_tried() {
        let stock = [
            ("config.txt", "arm_64bit=1\n"),
            ("kernel8.img", "k"),
            ("cmdline.txt", "root=x"),
        ];
        check(partition(&stock).path(), 2).unwrap();
        let ab = [
            ("CONFIG.TXT", AB),
            ("kernel_2712.img", "k"),
            ("cmdline-b.txt", "root=x"),
        ];
        check(partition(&ab).path(), 3).unwrap();
        let ramdisk = [("config.txt", "boot_ramdisk=1"), ("boot.img", "x")];
        check(partition(&ramdisk).path(), 3).unwrap();
        let prefix = [
            ("config.txt", "os_prefix=new/\nkernel=vmlinuz"),
            ("new/vmlinuz", "k"),
        ];
        assert!(missing(&prefix, 3).contains("new/cmdline.txt"));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(missing(&[], 3).contains("config.txt"));
        assert!(missing(&[("config.txt", "")], 3).contains("a kernel"));
        let named = [("config.txt", "kernel=u-boot.bin\n"), ("kernel8.img", "k")];
        assert!(missing(&named, 3).contains("u-boot.bin"));
        let empty = [
            ("config.txt", ""),
            ("kernel8.img", ""),
            ("cmdline.txt", "x"),
        ];
        assert!(missing(&empty, 3).contains("kernel"));
        let other = [
            ("config.txt", AB),
            ("kernel8.img", "k"),
            ("cmdline-a.txt", "x"),
        ];
        assert!(missing(&other, 3).contains("cmdline-b.txt"));
        let blank = tempfile::NamedTempFile::new().unwrap();
        blank.as_file().set_len(1 << 20).unwrap();
        assert!(check(blank.path(), 3).unwrap_err().contains("FAT"));
        assert!(
            check(Path::new("/nowhere"), 3)
                .unwrap_err()
                .contains("opened")
        );
    }

    #[test]
    fn a_kernel_for_some_boards_only_need_not_be_there_and_may_be_enough() {
        let stock = "[pi3]\nkernel=kernel7.img\n[pi4]\nkernel=vmlinuz-pi4\n[all]\n";
        let there = [
            ("config.txt", stock),
            ("vmlinuz-pi4", "k"),
            ("cmdline.txt", "x"),
        ];
        check(partition(&there).path(), 2).unwrap();
        let none = [("config.txt", stock), ("cmdline.txt", "x")];
        assert!(missing(&none, 2).contains("a kernel"));
    }
}
