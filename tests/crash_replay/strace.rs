//! Records what the real daemon does to its media, by `strace`: no seam in the daemon, nothing of it replaced.
//!
//! A write counts from the moment it was asked for, since part of it may then be on the medium; a sync only once it
//! has returned. Calls that the model has no word for (a slot that is mapped, spliced into...) end the test.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use fwupdated::update::{slot::Slot, status::Stage};
use serde_json::Value;

use super::{
    call::{Call, numbers, parse, paths, strings, written},
    folder::Files,
    trace::{Inode, Medium, Op, Told},
};

/// Calls by which a file or a folder changes, or the outside is told something.
const CALLS: &str = "trace=openat,open,creat,write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,rename,renameat,\
                     renameat2,unlink,unlinkat,link,linkat,symlink,symlinkat,fallocate,truncate,ftruncate,sendto,sendmsg,\
                     sendfile,copy_file_range,splice,msync,sync_file_range,io_uring_setup";

/// The words that start a program under the recorder.
pub(crate) fn launcher(log: &Path) -> Vec<String> {
    // -D: the daemon stays our child, so that signals reach it.
    let words = ["strace", "-D", "-f", "--seccomp-bpf", "-q", "-y", "-xx"];
    let mut words: Vec<_> = words.map(str::to_owned).to_vec();
    words.extend(["-s", "100000000", "-e", CALLS, "-e", "signal=none", "-o"].map(str::to_owned));
    words.push(log.display().to_string());
    words
}

/// Whether there is a recorder at all.
pub(crate) fn assert_installed() {
    let version = Command::new("strace").arg("--version").output();
    let found = version.is_ok_and(|output| output.status.success());
    assert!(found, "strace is missing; tests/setup.sh installs it");
}

/// Waits until the recorder has written all of `log`, whose process `pid` has ended.
pub(crate) fn finished(log: &Path, pid: u32) -> String {
    let began = Instant::now();
    loop {
        let text = fs::read_to_string(log).unwrap_or_default();
        let ended = |line: &str| {
            line.split_once(' ').is_some_and(|(id, rest)| {
                id == pid.to_string() && rest.trim_start().starts_with("+++")
            })
        };
        // The last line may be the one; threads that were killed with it can be told before it.
        if text.lines().rev().take(64).any(ended) {
            return text;
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "strace recorded no end of the daemon. It needs ptrace(2): a container may forbid it. {} holds {} bytes",
            log.display(),
            text.len()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Makes steps of recorded calls. Goes on from one boot to the next.
pub(crate) struct Reader {
    slots: BTreeMap<PathBuf, Slot>,
    env: PathBuf,
    folder: PathBuf,
    /// The state directory as the running system sees it.
    names: BTreeMap<String, Inode>,
    lengths: Vec<u64>,
    position: BTreeMap<Inode, u64>,
    ops: Vec<Op>,
}

impl Reader {
    /// Reads what is done to these. The files of the state directory are numbered in the order of their names.
    pub(crate) fn new(slots: [(PathBuf, Slot); 2], env: PathBuf, folder: PathBuf) -> Self {
        let mut reader = Self {
            slots: slots.into(),
            env,
            folder,
            names: BTreeMap::new(),
            lengths: Vec::new(),
            position: BTreeMap::new(),
            ops: Vec::new(),
        };
        for (name, content) in files(&reader.folder) {
            reader.names.insert(name, reader.lengths.len());
            reader.lengths.push(content.len() as u64);
        }
        reader
    }

    /// Adds a step that the test itself did.
    pub(crate) fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// All steps.
    pub(crate) fn into_ops(self) -> Vec<Op> {
        self.ops
    }

    /// Adds all steps of a recording.
    pub(crate) fn read(&mut self, text: &str) {
        // Calls under way, by thread: where their step is, should they only have been asked for yet.
        let mut open: BTreeMap<&str, (String, bool, usize)> = BTreeMap::new();
        for line in text.lines() {
            let (thread, rest) = line.split_once(' ').expect("a line begins with its thread");
            let rest = rest.trim_start();
            if rest.starts_with("+++") || rest.starts_with("---") {
                continue;
            }
            if let Some(resumed) = rest.strip_prefix("<... ") {
                let Some((started, counted, since)) = open.remove(thread) else {
                    continue;
                };
                let (_, end) = resumed.split_once(" resumed>").expect("the rest of a call");
                let whole = format!("{started}{end}");
                let call = parse(&whole);
                match (counted, call.result) {
                    // It counted when it was asked for.
                    (true, Some(0..)) => {}
                    // A client that is gone, a device that does not zero by itself: some of it may have happened.
                    (true, _) if !call.name.contains("write") => {}
                    (true, result) => panic!("{} of a medium ended with {result:?}", call.name),
                    (false, Some(0..)) => {
                        let before = self.ops.len();
                        self.take(&call);
                        self.mind_the_race(since, before);
                    }
                    (false, _) => {}
                }
                continue;
            }
            if let Some(started) = rest.strip_suffix(" <unfinished ...>") {
                let call = parse(started);
                let now = matches!(
                    call.name,
                    "write"
                        | "pwrite64"
                        | "writev"
                        | "pwritev"
                        | "fallocate"
                        | "sendmsg"
                        | "sendto"
                ) && self.concerns(&call);
                if now {
                    self.take(&call);
                }
                open.insert(thread, (started.to_owned(), now, self.ops.len()));
                continue;
            }
            let call = parse(rest);
            if call.result.is_some_and(|result| result >= 0) {
                self.take(&call);
            }
        }
        for (thread, (started, counted, _)) in open {
            // Killed within it: a sync or a rename that did not return is not counted, a write is.
            let call = parse(&started);
            assert!(
                counted || !self.concerns(&call) || !call.name.starts_with("rename"),
                "thread {thread} was killed within {started:.200}"
            );
        }
    }

    /// A sync promises nothing about what changed while it ran. Two files may be saved at once, and then the folder is
    /// synced while a name changes; nothing else is ever written while it is synced.
    fn mind_the_race(&mut self, since: usize, sync: usize) {
        let (before, rest) = self.ops.split_at_mut(sync);
        let Some(done) = rest.first_mut() else {
            return;
        };
        for op in &before[since..] {
            match (op, &mut *done) {
                (Op::Create { .. } | Op::Rename { .. } | Op::Unlink(_), Op::SyncFolder { but }) => {
                    *but += 1
                }
                (Op::Write { medium, .. }, Op::Sync(synced)) => {
                    assert_ne!(medium, synced, "{op:?}")
                }
                (Op::WriteFile { inode, .. } | Op::Truncate(inode), Op::SyncFile(synced)) => {
                    assert_ne!(inode, synced, "{op:?}");
                }
                _ => {}
            }
        }
    }

    fn concerns(&self, call: &Call<'_>) -> bool {
        if call.name.starts_with("send") {
            return true;
        }
        paths(&call.arguments).iter().any(|path| self.is_ours(path))
    }

    fn is_ours(&self, path: &Path) -> bool {
        self.slots.contains_key(path)
            || path == self.env
            || self.name_of(path).is_some()
            || path == self.folder
    }

    /// The name of a file directly in the state directory. The lock holds no data.
    fn name_of(&self, path: &Path) -> Option<String> {
        let name = path.strip_prefix(&self.folder).ok()?.to_str()?;
        (!name.is_empty() && name != "lock").then(|| name.to_owned())
    }

    fn take(&mut self, call: &Call<'_>) {
        if call.name.starts_with("send") && !call.name.starts_with("sendfile") {
            return self
                .ops
                .extend(told(&strings(&call.arguments).concat()).map(Op::Told));
        }
        let paths = paths(&call.arguments);
        if !paths.iter().any(|path| self.is_ours(path)) {
            return;
        }
        let path = &paths[0];
        match call.name {
            "openat" | "open" | "creat" => {
                let path = paths.last().expect("a path");
                self.open(path, &call.arguments);
            }
            "write" | "pwrite64" => {
                let (bytes, offset) = written(call);
                self.write(path, offset, bytes);
            }
            "fallocate" => {
                let numbers = numbers(&call.arguments);
                let [offset, length] = numbers[numbers.len() - 2..] else {
                    panic!("{}", call.arguments);
                };
                assert!(call.arguments.contains("PUNCH_HOLE"), "{}", call.arguments);
                self.write(
                    path,
                    Some(offset),
                    vec![0; usize::try_from(length).unwrap()],
                );
            }
            "fsync" | "fdatasync" => self.sync(path),
            "rename" | "renameat" | "renameat2" => {
                let [from, to] = [&paths[paths.len() - 2], &paths[paths.len() - 1]].map(|path| {
                    self.name_of(path)
                        .expect("files move within the state directory")
                });
                let inode = self.names.remove(&from).expect("it was there");
                self.names.insert(to.clone(), inode);
                self.ops.push(Op::Rename { inode, from, to });
            }
            "unlink" | "unlinkat" => {
                let name = paths.last().and_then(|path| self.name_of(path));
                let name = name.expect("only files of the state directory are removed");
                self.names.remove(&name);
                self.ops.push(Op::Unlink(name));
            }
            other => panic!("the model does not know {other}: {:.300}", call.arguments),
        }
    }

    fn open(&mut self, path: &Path, arguments: &str) {
        let Some(name) = self.name_of(path) else {
            return assert!(!arguments.contains("O_TRUNC"), "{path:?} is emptied");
        };
        if arguments.contains("O_DIRECTORY") {
            return;
        }
        let inode = match self.names.get(&name) {
            Some(inode) => *inode,
            None => {
                let inode = self.lengths.len();
                self.names.insert(name.clone(), inode);
                self.lengths.push(0);
                self.ops.push(Op::Create { name, inode });
                inode
            }
        };
        if arguments.contains("O_TRUNC") && self.lengths[inode] > 0 {
            self.lengths[inode] = 0;
            self.ops.push(Op::Truncate(inode));
        }
        let append = arguments.contains("O_APPEND");
        let start = if append { self.lengths[inode] } else { 0 };
        self.position.insert(inode, start);
    }

    fn write(&mut self, path: &Path, offset: Option<u64>, bytes: Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let medium = self.medium(path);
        let bytes: Arc<[u8]> = bytes.into();
        if let Some(medium) = medium {
            let offset = offset.expect("media are written by position");
            return self.ops.push(Op::Write {
                medium,
                offset,
                bytes,
            });
        }
        let name = self.name_of(path).expect("a file of the state directory");
        let inode = self.names[&name];
        let offset = offset.unwrap_or(self.position[&inode]);
        let end = offset + bytes.len() as u64;
        self.position.insert(inode, end);
        self.lengths[inode] = self.lengths[inode].max(end);
        self.ops.push(Op::WriteFile {
            inode,
            offset,
            bytes,
        });
    }

    fn sync(&mut self, path: &Path) {
        let op = match (self.medium(path), self.name_of(path)) {
            (Some(medium), _) => Op::Sync(medium),
            (None, Some(name)) => Op::SyncFile(self.names[&name]),
            (None, None) => Op::SyncFolder { but: 0 },
        };
        self.ops.push(op);
    }

    fn medium(&self, path: &Path) -> Option<Medium> {
        let slot = self.slots.get(path).copied().map(Medium::Slot);
        slot.or_else(|| (path == self.env).then_some(Medium::Env))
    }
}

/// The files of a folder.
pub(crate) fn files(folder: &Path) -> Files {
    let entries = fs::read_dir(folder)
        .expect("the state directory is there")
        .flatten();
    let files = entries.filter(|entry| entry.file_name() != "lock");
    files
        .map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect()
}

/// What a message says that must stay true. Answers and states are JSON within D-Bus messages.
fn told(message: &[u8]) -> impl Iterator<Item = Told> + use<> {
    let mut found = Vec::new();
    for start in (0..message.len()).filter(|at| message[*at..].starts_with(b"{\"")) {
        let mut documents = serde_json::Deserializer::from_slice(&message[start..]).into_iter();
        let Some(Ok::<Value, _>(document)) = documents.next() else {
            continue;
        };
        if document["status"] == 200
            && let Some(id) = document["body"]["updateId"].as_str()
        {
            found.push(Told::Accepted(id.to_owned()));
        }
        let update = &document["update"];
        if let (Some(id), Ok(stage)) = (
            update["id"].as_str(),
            serde_json::from_value::<Stage>(update["stage"].clone()),
        ) && stage.is_final()
        {
            found.push(Told::Ended(id.to_owned(), stage));
        }
    }
    found.into_iter()
}
