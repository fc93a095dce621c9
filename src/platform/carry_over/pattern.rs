//! Which files a pattern names: a path from `/`, where `*` and `?` stand for characters of one name.
//!
//! As in a shell, they do not stand for a name's leading dot. What a pattern names and is not there, is nothing.

use std::{
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// What `pattern` names below `root`, relative to it, in order. With an error, what it is about.
pub(super) fn expand(root: &Path, pattern: &str) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let mut found = vec![PathBuf::new()];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        if !part.contains(['*', '?']) {
            found.iter_mut().for_each(|path| path.push(part));
            continue;
        }
        let mut next = Vec::new();
        for folder in found {
            let names = names(&root.join(&folder)).map_err(|error| (root.join(&folder), error))?;
            let fits = |name: &&PathBuf| matches(part.as_bytes(), name.as_os_str().as_bytes());
            next.extend(names.iter().filter(fits).map(|name| folder.join(name)));
        }
        next.sort();
        found = next;
    }
    let mut there = Vec::new();
    for path in found {
        match fs::symlink_metadata(root.join(&path)) {
            Ok(_) => there.push(path),
            Err(error) if is_nothing(&error) => {}
            Err(error) => return Err((root.join(path), error)),
        }
    }
    Ok(there)
}

fn is_nothing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn names(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries
            .map(|entry| Ok(PathBuf::from(entry?.file_name())))
            .collect(),
        Err(error) if is_nothing(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Whether `name` fits `pattern`. Linear but for each `*`, where the last one is tried again further on.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let hidden = name.first() == Some(&b'.');
    if hidden && pattern.first() != Some(&b'.') {
        return false;
    }
    let (mut at, mut here) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while here < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, here));
                at += 1;
            }
            Some(&one) if one == b'?' || one == name[here] => {
                at += 1;
                here += 1;
            }
            _ => match star {
                // One character more for the last star.
                Some((star_at, taken)) => {
                    star = Some((star_at, taken + 1));
                    (at, here) = (star_at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|&rest| rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks_stand_for_characters_of_one_name() {
        let fits = |pattern: &str, name: &str| matches(pattern.as_bytes(), name.as_bytes());
        assert!(fits("ssh_host_*", "ssh_host_rsa_key.pub"));
        assert!(fits("*_key", "ssh_host_rsa_key") && !fits("*_key", "ssh_host_rsa_key.pub"));
        assert!(fits("a*b*c", "a-b-b-c") && !fits("a*b*c", "a-c-b"));
        assert!(fits("?", "x") && !fits("?", "") && !fits("?", "xy"));
        assert!(fits("*", "") && fits("***", "x") && fits("", "") && !fits("", "x"));
        // A leading dot wants to be written.
        assert!(!fits("*", ".netrc") && !fits("?netrc", ".netrc") && fits(".n*", ".netrc"));
    }

    #[test]
    fn a_pattern_names_what_is_there_in_order_and_nothing_that_is_not() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            "etc/ssh/b_key",
            "etc/ssh/a_key",
            "etc/ssh/config",
            "home/x/.k",
            "home/y/.k",
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        std::os::unix::fs::symlink("/nowhere", dir.path().join("etc/link")).unwrap();
        let names = |pattern| {
            let found = expand(dir.path(), pattern).unwrap();
            found
                .iter()
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(names("/etc/ssh/*_key"), ["etc/ssh/a_key", "etc/ssh/b_key"]);
        assert_eq!(names("/home/*/.k"), ["home/x/.k", "home/y/.k"]);
        assert_eq!(names("/etc/link"), ["etc/link"]);
        for nothing in [
            "/etc/machine-id",
            "/no/*",
            "/etc/ssh/config/*",
            "/etc/ssh/config/x",
        ] {
            assert!(names(nothing).is_empty(), "{nothing}");
        }
    }
}
