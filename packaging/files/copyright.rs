//! `copyright` in Debian's machine-readable form (DEP-5): our own licence, and that of every crate that is linked.
//!
//! The crates are those that cargo links into the programs for the three architectures. Where a crate may be used under
//! the Apache License or another one, we use it under the Apache License, whose text Debian has in common-licenses. For
//! all others the licence files of the crate stand here to the letter, since they ask for that.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    fs,
    path::Path,
    process::Command,
};

use serde_json::Value;

/// What the packages are built for.
const TARGETS: [&str; 3] = [
    "x86_64-unknown-linux-gnu",
    "aarch64-unknown-linux-gnu",
    "armv7-unknown-linux-gnueabihf",
];

/// What crates have in common: one paragraph.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Terms {
    /// As DEP-5 writes it: `MIT`, `Apache-2.0 and ISC`.
    license: String,
    copyright: Vec<String>,
    /// The licence files; empty where common-licenses has it all.
    text: String,
}

/// The file for the programs of `package`.
pub(crate) fn of(root: &Path, package: &str) -> Result<String, Box<dyn Error>> {
    let mut terms: BTreeMap<Terms, Vec<String>> = BTreeMap::new();
    for krate in linked(root, package)? {
        let name = format!("third-party/{}-{}/*", krate.name, krate.version);
        terms.entry(krate.terms()?).or_default().push(name);
    }
    let mut text = format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\
         Upstream-Name: {package}\n\
         Comment:\n \
         The programs are linked with crates of the Rust world. Below, third-party/NAME-VERSION stands for\n \
         the crate of that name and version, whose source is at https://crates.io/crates/NAME/VERSION.\n\
         \n\
         Files: *\n\
         Copyright: 2026 The fwupdated authors\n\
         License: Apache-2.0\n"
    );
    for (terms, files) in terms {
        text += &format!(
            "\nFiles: {}\nCopyright: {}\nLicense: {}\n{}",
            files.join("\n "),
            terms.copyright.join("\n "),
            terms.license,
            indented(&terms.text)
        );
    }
    text += "\nLicense: Apache-2.0\n \
             On Debian systems the text of the Apache License, version 2.0, is in\n \
             /usr/share/common-licenses/Apache-2.0.\n";
    Ok(text)
}

/// A text as a field's continuation lines.
fn indented(text: &str) -> String {
    text.lines()
        .map(|line| match line.trim() {
            "" => " .\n".to_owned(),
            _ => format!(" {}\n", line.trim_end()),
        })
        .collect()
}

struct Crate {
    name: String,
    version: String,
    license: String,
    authors: Vec<String>,
    /// Licence files: name in upper case, text.
    files: Vec<(String, String)>,
}

impl Crate {
    fn terms(&self) -> Result<Terms, Box<dyn Error>> {
        let chosen = chosen(&self.license);
        // The Apache License asks for no more than the notices.
        let shown = self
            .files
            .iter()
            .filter(|(name, _)| chosen != "Apache-2.0" || name.starts_with("NOTICE"));
        let shown: Vec<_> = shown.map(|(_, text)| text.as_str()).collect();
        let text = match chosen.as_str() {
            "Apache-2.0" => shown.join("\n\n"),
            _ if self.files.is_empty() => {
                return Err(format!(
                    "{} {} is under {}, and brings no licence file that could be shown",
                    self.name, self.version, self.license
                )
                .into());
            }
            _ => shown.join("\n\n"),
        };
        let lines = self.files.iter().flat_map(|(_, text)| text.lines());
        let holders: BTreeSet<_> = lines.filter_map(holder).collect();
        let copyright = match (holders.is_empty(), self.authors.is_empty()) {
            (false, _) => holders.into_iter().collect(),
            (true, false) => self.authors.clone(),
            (true, true) => vec![format!("the authors of {}", self.name)],
        };
        Ok(Terms {
            license: chosen,
            copyright,
            text,
        })
    }
}

/// A line that says whose the copyright is, without the word itself.
fn holder(line: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("Copyright ")?;
    let rest = rest.trim_start_matches("(c)").trim_start_matches("(C)");
    let rest = rest.trim_start_matches('©').trim();
    // "Copyright [yyyy] [name of copyright owner]" and sentences about copyright are no claims.
    let claim = rest.starts_with(|first: char| first.is_ascii_digit()) || line.contains("(c)");
    (claim && !rest.contains('[')).then(|| rest.to_owned())
}

/// Of a crate's licence what we use it under, in DEP-5's words: of alternatives the Apache License, or else the first.
pub(crate) fn chosen(expression: &str) -> String {
    let parts = split(expression, " AND ");
    let chosen: BTreeSet<_> = parts
        .iter()
        .map(|part| {
            let part = part.trim_start_matches('(').trim_end_matches(')');
            let alternatives = split(&part.replace('/', " OR "), " OR ");
            let apache = alternatives.iter().find(|one| *one == "Apache-2.0");
            apache.unwrap_or(&alternatives[0]).clone()
        })
        .collect();
    let chosen: Vec<_> = chosen.into_iter().collect();
    chosen.join(" and ")
}

/// Splits at `between`, but not inside parentheses.
fn split(expression: &str, between: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    for piece in expression.split_inclusive(between) {
        let last = parts.last_mut().expect("it begins with one");
        last.push_str(piece);
        if last.matches('(').count() == last.matches(')').count() {
            let whole = last.trim_end_matches(between).trim().to_owned();
            *last = whole;
            parts.push(String::new());
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// The crates that are linked, without ours.
fn linked(root: &Path, package: &str) -> Result<Vec<Crate>, Box<dyn Error>> {
    let metadata: Value =
        serde_json::from_str(&cargo(root, &["metadata", "--format-version", "1"])?)?;
    let known: BTreeMap<(&str, &str), &Value> = metadata["packages"]
        .as_array()
        .ok_or("cargo metadata lists no packages")?
        .iter()
        .filter_map(|package| {
            Some((
                (package["name"].as_str()?, package["version"].as_str()?),
                package,
            ))
        })
        .collect();
    let mut names = BTreeSet::new();
    for target in TARGETS {
        let tree = cargo(
            root,
            &[
                "tree",
                "--package",
                package,
                "--edges",
                "normal,no-proc-macro",
                "--prefix",
                "none",
                "--format",
                "{p}",
                "--target",
                target,
            ],
        )?;
        for line in tree.lines() {
            let mut words = line.split_whitespace();
            if let (Some(name), Some(version)) = (words.next(), words.next()) {
                names.insert((name.to_owned(), version.trim_start_matches('v').to_owned()));
            }
        }
    }
    let mut crates = Vec::new();
    for (name, version) in names {
        let package = known
            .get(&(name.as_str(), version.as_str()))
            .ok_or_else(|| format!("cargo metadata does not know {name} {version}"))?;
        if package["source"].is_null() {
            continue;
        }
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let folder = manifest.parent().ok_or("a manifest has a folder")?;
        let mut files = Vec::new();
        licence_files(folder, 2, &mut files)?;
        let authors = package["authors"].as_array().map_or(&[][..], Vec::as_slice);
        crates.push(Crate {
            name: name.clone(),
            version: version.clone(),
            license: package["license"].as_str().unwrap_or_default().to_owned(),
            authors: authors
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            files,
        });
    }
    Ok(crates)
}

/// The texts of the licence files in `folder` and `depth` folders below, those of C libraries included. Not the texts
/// of alternatives that we do not use: the Apache License's own, and GPL's.
fn licence_files(
    folder: &Path,
    depth: u32,
    found: &mut Vec<(String, String)>,
) -> Result<(), Box<dyn Error>> {
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let name = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().to_uppercase();
    let has_licence = entries.iter().any(|entry| name(entry) == "LICENSE");
    for entry in &entries {
        let name = name(entry);
        let begins = ["LICENSE", "LICENCE", "NOTICE", "COPYRIGHT", "UNLICENSE"];
        let copying = name.starts_with("COPYING") && !has_licence;
        if entry.file_type()?.is_dir() && depth > 0 {
            licence_files(&entry.path(), depth - 1, found)?;
        } else if entry.file_type()?.is_file()
            && (copying || begins.iter().any(|begin| name.starts_with(begin)))
            && !["APACHE", "GPL", ".RS", ".HTML"]
                .iter()
                .any(|part| name.contains(part))
        {
            let text = String::from_utf8_lossy(&fs::read(entry.path())?)
                .trim_end()
                .to_owned();
            // A file that only points to others, or holds the Apache License, is named like the rest.
            if !text.contains("Apache License\n") && !found.iter().any(|(_, known)| *known == text)
            {
                found.push((name, text));
            }
        }
    }
    Ok(())
}

fn cargo(root: &Path, arguments: &[&str]) -> Result<String, Box<dyn Error>> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(program)
        .args(arguments)
        .arg("--locked")
        .current_dir(root)
        .output()?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?),
        false => Err(format!(
            "cargo {} failed: {}",
            arguments[0],
            String::from_utf8_lossy(&output.stderr)
        )
        .into()),
    }
}
