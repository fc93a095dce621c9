//! A query's text in pieces.

use std::fmt;

use serde_json::Value;

use super::tree::{begins_word, in_word};

/// A piece of a query.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    /// A bare word: keyword or name.
    Word(String),
    /// `[[name]]`.
    Quoted(String),
    Text(String),
    Number(Value),
    Symbol(&'static str),
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "'{word}'"),
            Self::Quoted(name) => write!(f, "'[[{name}]]'"),
            Self::Text(text) => write!(f, "the text '{text}'"),
            Self::Number(number) => write!(f, "the number {number}"),
            Self::Symbol(symbol) => write!(f, "'{symbol}'"),
            Self::End => f.write_str("the end"),
        }
    }
}

/// Longest first, so that `<=` is not read as `<`.
const SYMBOLS: [&str; 18] = [
    "!=", "<>", "<=", ">=", "=", "<", ">", "(", ")", "[", "]", ",", ".", "*", "/", "%", "+", "-",
];

/// The pieces with their offsets in bytes, [`Token::End`] last; or where it cannot be read, and why.
pub(super) fn tokens(text: &str) -> Result<Vec<(usize, Token)>, (usize, String)> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let at = text.len() - rest.len();
        let Some(first) = rest.chars().next() else {
            tokens.push((at, Token::End));
            return Ok(tokens);
        };
        let found = if first == '\'' || first == '"' {
            quoted(rest, first)
        } else if let Some(name) = rest.strip_prefix("[[") {
            match name.find("]]") {
                Some(end) => Ok((Token::Quoted(name[..end].to_owned()), end + 4)),
                None => Err((0, "this name has no closing ']]'".to_owned())),
            }
        } else if first.is_ascii_digit() {
            number(rest)
        } else if begins_word(first) {
            word(rest)
        } else if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
            Ok((Token::Symbol(symbol), symbol.len()))
        } else {
            Err((0, format!("'{first}' is not understood here")))
        };
        let (token, length) = found.map_err(|(within, problem)| (at + within, problem))?;
        tokens.push((at, token));
        rest = &rest[length..];
    }
}

type Found = Result<(Token, usize), (usize, String)>;

/// A text up to the same quote, with `\'`, `\"`, `\\` and `\uXXXX` in it.
fn quoted(rest: &str, quote: char) -> Found {
    let mut text = String::new();
    let mut characters = rest.char_indices().skip(1);
    while let Some((at, c)) = characters.next() {
        if c == quote {
            return Ok((Token::Text(text), at + 1));
        }
        if c != '\\' {
            text.push(c);
            continue;
        }
        let escaped = match characters.next() {
            Some((_, c @ ('\\' | '\'' | '"'))) => Some(c),
            Some((_, 'u')) => {
                let digits: String = characters.by_ref().take(4).map(|(_, c)| c).collect();
                let hexadecimal =
                    digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_hexdigit());
                hexadecimal
                    .then(|| u32::from_str_radix(&digits, 16).ok())
                    .flatten()
                    .and_then(char::from_u32)
            }
            _ => None,
        };
        text.push(escaped.ok_or_else(|| {
            let problem = "after a backslash in a text stands \\, ', \" or uXXXX";
            (at, problem.to_owned())
        })?);
    }
    Err((0, "this text has no closing quote".to_owned()))
}

/// `12`, `1.5`, `2e-3` or `0x1F`, without a sign.
fn number(rest: &str) -> Found {
    let mut last = ' ';
    let in_number = |c: char| {
        let sign = matches!(c, '+' | '-') && matches!(last, 'e' | 'E') && !rest.starts_with("0x");
        last = c;
        c.is_ascii_alphanumeric() || c == '.' || sign
    };
    let end = rest.find(negated(in_number)).unwrap_or(rest.len());
    let text = &rest[..end];
    let value = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok().map(Value::from),
        None => serde_json::from_str(text).ok(),
    };
    match value {
        Some(value) => Ok((Token::Number(value), end)),
        None => Err((0, format!("'{text}' is no number"))),
    }
}

fn negated(mut test: impl FnMut(char) -> bool) -> impl FnMut(char) -> bool {
    move |c| !test(c)
}

fn word(rest: &str) -> Found {
    let end = rest.find(|c| !in_word(c)).unwrap_or(rest.len());
    let word = &rest[..end];
    // Read as a subtraction, `tags.my-tag` would be a query that silently finds nothing.
    if let Some(after) = rest[end..].strip_prefix('-')
        && after.starts_with(begins_word)
    {
        let second = &after[..after.find(|c| !in_word(c)).unwrap_or(after.len())];
        let problem = format!(
            "a name with '-' stands in double brackets: [[{word}-{second}]]; a minus has a space on each side"
        );
        return Err((end, problem));
    }
    Ok((Token::Word(word.to_owned()), end))
}
