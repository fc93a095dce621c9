//! How the demo talks: chapters, and one line at a time from each voice, as it is said.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

/// Who says a line.
#[derive(Clone, Copy)]
pub(crate) enum Voice {
    Operator,
    Device,
    Loader,
    Status,
}

/// The one that prints. Clones print in turn.
#[derive(Clone, Default)]
pub(crate) struct Story {
    chapters: Arc<AtomicU32>,
    printing: Arc<Mutex<()>>,
}

/// Follows a log until it is dropped.
pub(crate) struct Following(Arc<AtomicBool>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Story {
    fn print(&self, line: &str) {
        let _turn = self.printing.lock().expect("no panic while printing");
        // A closed pipe is no reason to leave an update half way.
        let _ = writeln!(std::io::stdout(), "{line}");
    }

    pub(crate) fn text(&self, text: &str) {
        self.print(text);
    }

    pub(crate) fn chapter(&self, title: &str) {
        let number = self.chapters.fetch_add(1, Ordering::Relaxed) + 1;
        self.print(&format!("\n{number}. {title}"));
    }

    pub(crate) fn fact(&self, name: &str, value: &str) {
        self.print(&format!("   {name:<32} {value}"));
    }

    pub(crate) fn command(&self, command: &str) {
        self.print(&format!("   $ {command}"));
    }

    pub(crate) fn result(&self, text: &str) {
        self.print(&format!("   => {text}"));
    }

    pub(crate) fn line(&self, voice: Voice, line: &str) {
        let name = match voice {
            Voice::Operator => "back end |",
            Voice::Device => "device   |",
            Voice::Loader => "loader   |",
            Voice::Status => "         |",
        };
        self.print(&format!("   {name} {line}"));
    }

    /// Starts `command` and passes on what it says.
    pub(crate) fn run(&self, voice: Voice, command: &mut Command) -> Child {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let outputs: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|output| Box::new(output) as _),
            child.stderr.take().map(|output| Box::new(output) as _),
        ];
        for output in outputs.into_iter().flatten() {
            let story = self.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    story.line(voice, &line);
                }
            });
        }
        child
    }

    /// Passes on what is appended to `log`, without the time and level of each line.
    pub(crate) fn follow(&self, voice: Voice, log: &Path) -> Following {
        let done = Arc::new(AtomicBool::new(false));
        let (story, log, stop) = (self.clone(), log.to_owned(), done.clone());
        std::thread::spawn(move || {
            let mut position = 0_usize;
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(50));
                let mut text = String::new();
                // Not there before the first boot.
                let _ = File::open(&log).and_then(|mut file| file.read_to_string(&mut text));
                let new = text.get(position..).unwrap_or_default();
                let Some(end) = new.rfind('\n') else { continue };
                for line in new[..end].lines() {
                    story.line(voice, message(line));
                }
                position += end + 1;
            }
        });
        Following(done)
    }

    /// Lets the other threads pass on what has been said.
    pub(crate) fn settle(&self) {
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A line of the log without its time, level and fields.
fn message(line: &str) -> &str {
    let rest = line
        .split_once(' ')
        .map_or(line, |(_time, rest)| rest)
        .trim_start();
    let rest = rest
        .split_once(' ')
        .map_or(rest, |(_level, rest)| rest)
        .trim_start();
    rest.split(" fwupdated_").next().unwrap_or(rest)
}
