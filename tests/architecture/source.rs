//! Rust sources read as text: comments and literals blanked, test modules taken out, every path found.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// All Rust files below `folder`, by their paths from the top.
pub(crate) fn sources(folder: &str) -> Vec<(String, String)> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders: Vec<PathBuf> = vec![top.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            // A fuzz target's build folder.
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(top).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty());
    found.sort();
    found
}

/// Whether `file` is a test module as a whole.
pub(crate) fn is_test_file(file: &str) -> bool {
    file.ends_with("/tests.rs") || file.contains("/tests/")
}

/// The source with comments and literals replaced by blanks; every other character stays where it is.
pub(crate) fn blanked(source: &str) -> String {
    blank(source, true)
}

/// The source with comments replaced by blanks; every other character stays where it is.
pub(crate) fn uncommented(source: &str) -> String {
    blank(source, false)
}

fn blank(source: &str, literals: bool) -> String {
    let text: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        let (length, keep) = match rest {
            ['/', '/', ..] => {
                let end = rest.iter().position(|c| *c == '\n');
                (end.unwrap_or(rest.len()), false)
            }
            ['/', '*', ..] => (block_comment(rest), false),
            ['"', ..] => (string(rest), !literals),
            ['\'', ..] => (character(rest), !literals),
            // Not at the end of a longer name; `r#name` is a name.
            ['r', '"' | '#', ..] if !is_name_end(&text, at) => (raw_string(rest), !literals),
            _ => (0, true),
        };
        let (length, keep) = if length == 0 {
            (1, true)
        } else {
            (length, keep)
        };
        let replaced = |c: &char| if keep || *c == '\n' { *c } else { ' ' };
        out.extend(rest[..length].iter().map(replaced));
        at += length;
    }
    out
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether the character before `at` belongs to a name other than the prefixes `b` and `c` of strings.
fn is_name_end(text: &[char], at: usize) -> bool {
    match at.checked_sub(1).map(|before| text[before]) {
        Some('b' | 'c') => at >= 2 && is_name(text[at - 2]),
        Some(c) => is_name(c),
        None => false,
    }
}

fn block_comment(text: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match text[at..] {
            ['/', '*', ..] => {
                depth += 1;
                at += 2;
            }
            ['*', '/', ..] => {
                depth -= 1;
                at += 2;
            }
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string(text: &[char]) -> usize {
    let mut at = 1;
    while at < text.len() {
        match text[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    text.len()
}

/// 0 for a lifetime.
fn character(text: &[char]) -> usize {
    match text {
        ['\'', '\\', ..] => {
            let end = text.iter().skip(3).position(|c| *c == '\'');
            end.map_or(0, |end| end + 4)
        }
        ['\'', _, '\'', ..] => 3,
        _ => 0,
    }
}

/// 0 for a raw name (`r#type`).
fn raw_string(text: &[char]) -> usize {
    let hashes = text.iter().skip(1).take_while(|c| **c == '#').count();
    if text.get(1 + hashes) != Some(&'"') {
        return 0;
    }
    let mut end = vec!['"'];
    end.resize(1 + hashes, '#');
    let body = 2 + hashes;
    let found = text[body..]
        .windows(end.len())
        .position(|window| window == end);
    found.map_or(text.len(), |found| body + found + end.len())
}

/// `code` (blanked) without the items under `#[cfg(test)]`.
pub(crate) fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut code = code.to_owned();
    while let Some(start) = code.find(MARK) {
        let length = item(&code[start + MARK.len()..]);
        let end = start + MARK.len() + length;
        let replaced = |c| if c == '\n' { '\n' } else { ' ' };
        let blank: String = code[start..end].chars().map(replaced).collect();
        code.replace_range(start..end, &blank);
    }
    code
}

/// How long the item is that begins here: to its `;`, or to the end of its braces.
fn item(code: &str) -> usize {
    let mut depth = 0_i32;
    for (at, c) in code.char_indices() {
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => {
                depth -= 1;
                if depth == 0 && c == '}' {
                    return at + 1;
                }
            }
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// What the code is made of: names, `::`, and single other characters, each with its line.
fn tokens(code: &str) -> Vec<(usize, String)> {
    let mut tokens: Vec<(usize, String)> = Vec::new();
    let mut line = 1;
    let mut characters = code.chars().peekable();
    while let Some(c) = characters.next() {
        if c == '\n' {
            line += 1;
        }
        if c.is_whitespace() {
            continue;
        }
        let mut token = c.to_string();
        if is_name(c) {
            while let Some(next) = characters.next_if(|c| is_name(*c)) {
                token.push(next);
            }
        } else if c == ':' && characters.next_if_eq(&':').is_some() {
            token.push(':');
        }
        tokens.push((line, token));
    }
    tokens
}

/// Every path in the code (blanked), with its line; the trees of `use` unfolded. A single name is a path
/// too.
pub(crate) fn paths(code: &str) -> Vec<(usize, Vec<String>)> {
    let tokens = tokens(code);
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        // `use<'a>` in a return type lists what is captured, and imports nothing.
        let captures = tokens.get(at + 1).is_some_and(|next| next.1 == "<");
        if tokens[at].1 == "use" && !captures {
            at = use_tree(&tokens, at + 1, &[], &mut paths);
        } else if tokens[at].1.starts_with(is_name) {
            let line = tokens[at].0;
            let mut path = vec![tokens[at].1.clone()];
            at += 1;
            while let [(_, colons), (_, name), ..] = &tokens[at..]
                && colons == "::"
                && name.starts_with(is_name)
            {
                path.push(name.clone());
                at += 2;
            }
            paths.push((line, path));
        } else {
            at += 1;
        }
    }
    paths
}

/// One branch of a `use` tree, from `at`, below `stem`; gives back where it ends.
fn use_tree(
    tokens: &[(usize, String)],
    mut at: usize,
    stem: &[String],
    paths: &mut Vec<(usize, Vec<String>)>,
) -> usize {
    let mut path = stem.to_vec();
    let mut line = tokens.get(at).map_or(0, |token| token.0);
    let mut grown = false;
    while let Some((here, token)) = tokens.get(at) {
        match token.as_str() {
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token.1 != "}") {
                    at = use_tree(tokens, at, &path, paths);
                    if tokens.get(at).is_some_and(|token| token.1 == ",") {
                        at += 1;
                    }
                }
                at += 1;
                grown = false;
            }
            "," | "}" | ";" => break,
            // The new name after `as` is no part of the path.
            "as" => at += 2,
            "::" => at += 1,
            name => {
                if name != "self" || path.is_empty() {
                    path.push(name.to_owned());
                }
                (line, grown) = (*here, true);
                at += 1;
            }
        }
    }
    if grown {
        paths.push((line, path));
    }
    at
}
