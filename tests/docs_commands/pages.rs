//! What the documentation tells people to type: the code in its pages, and the commands in that.
//!
//! A block marked `console` holds commands, each after `$ `, and below each what it prints (`...`: some of it is left
//! out). A command ends where bash finds it complete, so loops and here-documents need no marks. Root's commands begin
//! with `sudo`, never with `# `.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command as Process,
};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// Where code stands, for whoever must mend it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Place {
    /// The page, from the project's folder.
    pub(crate) page: String,
    /// The line, from 1.
    pub(crate) line: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.page, self.line)
    }
}

/// A piece of code.
pub(crate) struct Code {
    /// Its first line.
    pub(crate) place: Place,
    /// The word after the fence; `None` for code within a sentence.
    pub(crate) language: Option<String>,
    /// What it says.
    pub(crate) text: String,
}

/// A command that a page tells to type.
#[derive(Clone)]
pub(crate) struct Command {
    /// Where it begins.
    pub(crate) place: Place,
    /// All its lines.
    pub(crate) text: String,
    /// What the page says it prints.
    pub(crate) shown: Vec<String>,
}

/// The project's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All code of README, CONTRIBUTING and everything below `docs`, page by page.
pub(crate) fn pages() -> Vec<(String, Vec<Code>)> {
    let mut files = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    below(&root().join("docs"), &mut files);
    files
        .into_iter()
        .map(|file| {
            let name = file.strip_prefix(root()).unwrap().display().to_string();
            let text = fs::read_to_string(&file).unwrap();
            let code = code(&name, &text);
            (name, code)
        })
        .collect()
}

fn below(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

/// The code in a page's text.
pub(crate) fn code(page: &str, text: &str) -> Vec<Code> {
    let place = |offset: usize| Place {
        page: page.to_owned(),
        line: 1 + text[..offset].matches('\n').count(),
    };
    let mut found: Vec<Code> = Vec::new();
    let mut in_block = false;
    for (event, range) in Parser::new_ext(text, Options::ENABLE_TABLES).into_offset_iter() {
        match event {
            Event::Start(Tag::CodeBlock(kind)) => {
                let fenced = matches!(kind, CodeBlockKind::Fenced(_));
                let language = match kind {
                    CodeBlockKind::Fenced(word) => word.to_string(),
                    CodeBlockKind::Indented => String::new(),
                };
                let mut place = place(range.start);
                place.line += usize::from(fenced);
                in_block = true;
                found.push(Code {
                    place,
                    language: Some(language),
                    text: String::new(),
                });
            }
            Event::End(TagEnd::CodeBlock) => in_block = false,
            Event::Text(more) if in_block => found.last_mut().unwrap().text.push_str(&more),
            Event::Code(inline) => found.push(Code {
                place: place(range.start),
                language: None,
                text: inline.to_string(),
            }),
            _ => {}
        }
    }
    found
}

/// The commands of a page's blocks, in order; or where a block keeps to no rule.
pub(crate) fn commands(code: &[Code]) -> Result<Vec<Command>, String> {
    let mut found: Vec<Command> = Vec::new();
    for block in code {
        if block.language.as_deref() != Some("console") {
            continue;
        }
        let mut lines = block.text.lines().enumerate();
        let before = found.len();
        while let Some((number, line)) = lines.next() {
            let place = Place {
                line: block.place.line + number,
                ..block.place.clone()
            };
            if let Some(first) = line.strip_prefix("$ ") {
                let mut text = first.to_owned();
                while !is_complete(&text) {
                    let Some((_, more)) = lines.next() else {
                        return Err(format!("{place}: no whole command: {first}"));
                    };
                    text = format!("{text}\n{more}");
                }
                found.push(Command {
                    place,
                    text,
                    shown: Vec::new(),
                });
            } else if line.starts_with("# ") || found.len() == before {
                return Err(format!(
                    "{place}: a command begins with `$ `, root's with `$ sudo `: {line}"
                ));
            } else if let Some(command) = found.last_mut() {
                command.shown.push(line.to_owned());
            }
        }
    }
    Ok(found)
}

/// Whether bash has nothing to say about it, and would not wait for more.
fn is_complete(text: &str) -> bool {
    let checked = Process::new("bash").args(["-n", "-c", text]).output();
    let checked = checked.expect("bash starts");
    // An open here-document is a warning.
    !text.ends_with('\\') && checked.status.success() && checked.stderr.is_empty()
}
