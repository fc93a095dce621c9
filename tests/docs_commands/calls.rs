//! The calls of our programs in what people are told to type, held against the command lines that the programs have:
//! those that `--help`, man pages and completions come from.

use std::collections::BTreeSet;

use clap::{CommandFactory as _, error::ErrorKind};

/// Words that stand before a command.
const BEFORE: [&str; 12] = [
    "sudo", "-E", "do", "then", "else", "if", "while", "until", "!", "{", "exec", "$",
];

/// The program's command line, where it is one of ours.
fn program(name: &str) -> Option<clap::Command> {
    let mut command = match name.rsplit('/').next()? {
        "fwupdatectl" => fwupdated::ctl::command(),
        "fwupdated" => fwupdated::daemon::command(),
        "iothub-emulator" => iothub_emulator::Arguments::command(),
        _ => return None,
    };
    command.build();
    Some(command)
}

/// The words of each call of one of our programs.
pub(crate) fn ours(shell: &str) -> Vec<Vec<String>> {
    let mut calls = simple_commands(shell);
    calls.retain(|words| program(&words[0]).is_some());
    calls
}

/// Holds a whole call against the program's own parser.
///
/// # Errors
/// What the parser says.
pub(crate) fn parse(words: &[String]) -> Result<(), String> {
    let command = program(&words[0]).ok_or("none of our programs")?;
    match command.try_get_matches_from(words) {
        Err(error)
            if !matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            ) =>
        {
            Err(error.to_string())
        }
        _ => Ok(()),
    }
}

/// Holds a call that names a part only (`fwupdatectl image build ... --base OLD...`) against the program's commands,
/// options and number of arguments.
///
/// # Errors
/// What does not exist.
pub(crate) fn exists(words: &[String]) -> Result<(), String> {
    let top = program(&words[0]).ok_or("none of our programs")?;
    let mut here = &top;
    let mut arguments = 0;
    let mut words = words[1..].iter();
    while let Some(word) = words.next() {
        let word = word.trim_matches(['[', ']']);
        if word.is_empty() || word == "..." {
            continue;
        }
        if word.len() > 1 && word.starts_with('-') {
            let (name, value) = match word.split_once('=') {
                Some((name, _)) => (name, true),
                None => (word, false),
            };
            let option = here.get_arguments().find(|argument| {
                let long = argument.get_long().map(|long| format!("--{long}"));
                let short = argument.get_short().map(|short| format!("-{short}"));
                [long, short].iter().flatten().any(|own| own == name)
            });
            let option = option.ok_or_else(|| format!("`{}` has no {name}", bin_name(here)))?;
            if option.get_action().takes_values() && !value {
                words.next();
            }
        } else if let Some(below) = here.find_subcommand(word) {
            here = below;
        } else if here.has_subcommands() {
            return Err(format!("`{}` has no {word}", bin_name(here)));
        } else {
            arguments += 1;
        }
    }
    let most = match here.get_positionals().any(|one| {
        one.get_num_args()
            .is_some_and(|number| number.max_values() > 1)
    }) {
        true => usize::MAX,
        false => here.get_positionals().count(),
    };
    match arguments > most {
        true => Err(format!("`{}` takes {most} arguments", bin_name(here))),
        false => Ok(()),
    }
}

/// `fwupdatectl image build`
fn bin_name(command: &clap::Command) -> &str {
    command.get_bin_name().unwrap_or(command.get_name())
}

/// Every long option that one of our programs has.
pub(crate) fn options() -> BTreeSet<String> {
    fn collect(command: &clap::Command, found: &mut BTreeSet<String>) {
        let longs = command.get_arguments().filter_map(clap::Arg::get_long);
        found.extend(longs.map(|long| format!("--{long}")));
        for below in command.get_subcommands() {
            collect(below, found);
        }
    }
    let mut found = BTreeSet::new();
    for name in ["fwupdatectl", "fwupdated", "iothub-emulator"] {
        collect(&program(name).unwrap(), &mut found);
    }
    found
}

/// The words of each simple command in a shell text: in pipes, lists, loops and substitutions too. Without quotes,
/// redirections, assignments before the command, and comments. What a substitution gives is `$()`.
pub(crate) fn simple_commands(shell: &str) -> Vec<Vec<String>> {
    let mut reader = Reader {
        rest: shell.chars().peekable(),
        found: Vec::new(),
    };
    reader.list();
    reader.found
}

struct Reader<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    found: Vec<Vec<String>>,
}

/// The simple command under way.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    word: Option<String>,
    /// The next word is where a redirection leads.
    file: bool,
}

impl Words {
    fn push(&mut self, text: &str) {
        self.word.get_or_insert_default().push_str(text);
    }

    fn end_word(&mut self) {
        if let Some(word) = self.word.take()
            && !std::mem::take(&mut self.file)
        {
            self.done.push(word);
        }
    }

    fn redirection(&mut self) {
        let number = |word: &String| word.chars().all(|c| c.is_ascii_digit());
        if self.word.as_ref().is_some_and(number) {
            self.word = None;
        }
        self.end_word();
        self.file = true;
    }

    fn end(&mut self) -> Option<Vec<String>> {
        self.end_word();
        let words = std::mem::take(self).done;
        let assigns = |word: &str| {
            word.split_once('=').is_some_and(|(name, _)| {
                !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            })
        };
        let command: Vec<_> = words
            .into_iter()
            .skip_while(|word| BEFORE.contains(&word.as_str()) || assigns(word))
            .collect();
        (!command.is_empty()).then_some(command)
    }
}

impl Reader<'_> {
    /// Reads commands up to the bracket that closes what has been opened, or to the end.
    fn list(&mut self) {
        let mut words = Words::default();
        while let Some(c) = self.rest.next() {
            match c {
                '\'' => {
                    let quoted: String = self.rest.by_ref().take_while(|c| *c != '\'').collect();
                    words.push(&quoted);
                }
                '"' => {
                    let quoted = self.quoted();
                    words.push(&quoted);
                }
                '\\' => match self.rest.next() {
                    Some('\n') | None => words.end_word(),
                    Some(next) => words.push(&next.to_string()),
                },
                '$' if self.rest.next_if_eq(&'(').is_some() => {
                    self.list();
                    words.push("$()");
                }
                '#' if words.word.is_none() => while self.rest.next_if(|c| *c != '\n').is_some() {},
                ' ' | '\t' => words.end_word(),
                '<' | '>' => {
                    words.redirection();
                    while self.rest.next_if(|c| "<>&-".contains(*c)).is_some() {}
                }
                '|' | '&' | ';' | '\n' => self.found.extend(words.end()),
                '(' => {
                    self.found.extend(words.end());
                    self.list();
                }
                ')' => break,
                c => words.push(&c.to_string()),
            }
        }
        self.found.extend(words.end());
    }

    /// Reads up to the closing double quote.
    fn quoted(&mut self) -> String {
        let mut text = String::new();
        while let Some(c) = self.rest.next() {
            match c {
                '"' => break,
                '\\' => text.extend(self.rest.next()),
                '$' if self.rest.next_if_eq(&'(').is_some() => {
                    self.list();
                    text.push_str("$()");
                }
                c => text.push(c),
            }
        }
        text
    }
}
