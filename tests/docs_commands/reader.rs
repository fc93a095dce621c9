//! The reader: types a page's commands, one after another, on a machine of their own (`machine.sh`), and compares what
//! they print with what the page shows.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command as Process, Stdio},
};

use super::{
    pages::{Command, root},
    table::{GOES_ON, Scene},
};

/// Longest time for a page, in seconds; one that takes longer has failed.
const PATIENCE: &str = "600";

/// What stands before each place and each exit status in what the script prints.
const MARK: char = '\u{1e}';

/// A page as a reader takes it.
pub(crate) struct Reading {
    /// Its file, from the project's folder.
    pub(crate) page: String,
    /// The commands that are typed.
    pub(crate) commands: Vec<Command>,
    /// What the page takes for granted.
    pub(crate) scene: Scene,
}

impl Reading {
    /// Whether the page says that it fails.
    fn fails(&self, command: &Command) -> bool {
        let mut fails = self.scene.fails.iter();
        fails.any(|begins| command.text.starts_with(begins))
    }

    /// The commands as a script: what `. SCRIPT` types.
    fn script(&self) -> String {
        let mut script = format!("set -e\n{}\nset +e\n", self.scene.before);
        for command in &self.commands {
            let Command { place, text, .. } = command;
            writeln!(script, "typed '{place}'").unwrap();
            if let Some(program) = goes_on(text) {
                let text = text.strip_suffix('&').unwrap_or(text);
                writeln!(script, "stop '{program}'").unwrap();
                writeln!(script, "{{ {text} & }} >>\"$(terminal '{program}')\" 2>&1").unwrap();
                writeln!(script, "running['{program}']=$!\nstatus=0").unwrap();
            } else {
                writeln!(script, "{text}\nstatus=$?").unwrap();
            }
            let well = if self.fails(command) { "no" } else { "yes" };
            writeln!(script, "ended $status {well}").unwrap();
            let mut after = self.scene.after.iter();
            if let Some((_, shell)) = after.find(|(begins, _)| text.starts_with(begins)) {
                writeln!(script, "set -e\n{shell}\nset +e").unwrap();
            }
        }
        script
    }

    /// Types all of it; the scripts of all pages are in `others`, for those that go on where another page ends.
    ///
    /// # Errors
    /// The command that did not end or did not print as the page says, and what it printed.
    pub(crate) fn read(&self, others: &[Self]) -> Result<(), String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        for other in others {
            let file = folder.path().join("pages").join(&other.page);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, other.script()).unwrap();
        }
        let here = root().join("tests/docs_commands");
        let script = folder.path().join("script");
        let prelude = fs::read_to_string(here.join("reader.sh")).unwrap();
        let page = format!("{prelude}\nread_page '{}'\ntyped 'the end'\n", self.page);
        fs::write(&script, page).unwrap();
        let programs = own_programs();
        let path = std::env::var("PATH").unwrap();
        let output = Process::new("timeout")
            .args(["--kill-after=5", PATIENCE])
            .arg(here.join("machine.sh"))
            .args([folder.path(), &script])
            // From inside: that machine has a /tmp of its own, and this checkout may be in there.
            .env("PATH", format!("/host{}:{path}", programs.display()))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout);
        let told = String::from_utf8_lossy(&output.stderr);
        self.judge(&said)
            .map_err(|error| format!("{error}\n{told}"))
    }

    /// Whether each command was typed, ended as it should, and printed what the page shows.
    fn judge(&self, said: &str) -> Result<(), String> {
        // Before the first mark nothing is typed; then what was typed with its output, and its status, by turns.
        let parts: Vec<_> = said.split(MARK).collect();
        let (typed, how) = match parts[..] {
            [.., last] if last.starts_with("the end\n") => ("", None),
            [_, .., typed] if parts.len().is_multiple_of(2) => (typed, Some("it did not end")),
            [_, .., typed, ended] => (typed, Some(ended.trim())),
            _ => (said, Some("nothing was typed")),
        };
        if let Some(how) = how {
            let (place, output) = typed.split_once('\n').unwrap_or((typed, ""));
            return Err(format!(
                "{place}: not as the page says, or what follows failed; exit status: {how}\n{output}"
            ));
        }
        for command in &self.commands {
            let place = command.place.to_string();
            let found = said.split_once(&format!("{MARK}{place}\n"));
            let (_, from) = found.ok_or_else(|| format!("{place}: was not typed"))?;
            let output = match goes_on(&command.text) {
                Some(_) => from,
                None => from.split(MARK).next().unwrap_or_default(),
            };
            shows(command, output)?;
        }
        Ok(())
    }
}

/// The program of a command that goes on until someone ends it.
fn goes_on(command: &str) -> Option<&'static str> {
    let mut programs = GOES_ON.iter();
    programs
        .find(|program| command.starts_with(**program))
        .copied()
}

/// Where the programs of this build are.
fn own_programs() -> std::path::PathBuf {
    let own = std::env::current_exe().expect("this program has a path");
    let folder = own.parent().and_then(Path::parent);
    folder.expect("target/debug/deps").to_owned()
}

/// Whether the lines that the page shows are among those that were printed, in order. Of a command that watches only the
/// last one: which stages it sees depends on the moment.
fn shows(command: &Command, output: &str) -> Result<(), String> {
    let mut lines = output.lines().map(words);
    let watches = command.text.contains(" --watch");
    let shown = command.shown.iter();
    for shown in shown.skip(if watches {
        command.shown.len().saturating_sub(1)
    } else {
        0
    }) {
        if shown == "..." {
            continue;
        }
        let mut wanted = words(shown);
        let left_out = wanted.iter().position(|word| word.contains("..."));
        wanted.truncate(left_out.unwrap_or(wanted.len()));
        if !lines.any(|line| line.starts_with(&wanted)) {
            let place = &command.place;
            return Err(format!(
                "{place}: the page shows, and the command does not print: {shown}\n{output}"
            ));
        }
    }
    Ok(())
}

/// A line's words. What differs from run to run counts as the same: numbers, times, ids (whatever of letters, digits and
/// hyphens has a digit), units of sizes.
fn words(line: &str) -> Vec<String> {
    let units = ["B", "kB", "MB", "GB", "KiB", "MiB", "GiB"];
    let ends = |c: char| !c.is_ascii_alphanumeric() && c != '-';
    let masked = |part: &str| -> String {
        let name = part.strip_suffix(ends).unwrap_or(part);
        match name.contains(|c: char| c.is_ascii_digit()) {
            true => format!("#{}", &part[name.len()..]),
            false => part.to_owned(),
        }
    };
    line.split_whitespace()
        .map(
            |word| match units.contains(&word.trim_end_matches([',', '.'])) {
                true => "B".to_owned(),
                false => {
                    let mut word: String = word.split_inclusive(ends).map(masked).collect();
                    while word.contains("#.#") {
                        word = word.replace("#.#", "#");
                    }
                    word
                }
            },
        )
        .collect()
}
