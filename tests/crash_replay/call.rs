//! One system call as strace writes it, all strings in hexadecimal.

use std::path::PathBuf;

/// A call, put together of its two halves where another thread came between.
pub(crate) struct Call<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// All between its brackets.
    pub(crate) arguments: String,
    /// What it returned; `None`: not yet.
    pub(crate) result: Option<i64>,
}

/// Reads one line, or the beginning of one.
pub(crate) fn parse(text: &str) -> Call<'_> {
    let (name, rest) = text.split_once('(').expect("a call");
    // Strings are in hexadecimal: no bracket and no equals sign is within one.
    let (arguments, result) = match rest.rsplit_once(") ") {
        Some((arguments, result)) => {
            let result = result.trim_start().trim_start_matches("= ");
            let number: String = result
                .chars()
                .take_while(|c| c.is_ascii_digit() || *c == '-')
                .collect();
            (arguments, number.parse().ok())
        }
        None => (rest, None),
    };
    Call {
        name,
        arguments: arguments.to_owned(),
        result,
    }
}

/// Bytes that strace wrote as `\x00\x01`.
fn unhex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).expect("a hexadecimal digit") as u8;
    text.as_bytes()
        .chunks_exact(4)
        .map(|byte| digit(byte[2]) << 4 | digit(byte[3]))
        .collect()
}

/// The strings among the arguments.
pub(crate) fn strings(arguments: &str) -> Vec<Vec<u8>> {
    arguments.split('"').skip(1).step_by(2).map(unhex).collect()
}

/// The paths among the arguments: of descriptors, and strings that begin as one. Data is no path of ours.
pub(crate) fn paths(arguments: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut rest = arguments;
    while let Some(start) = rest.find(['<', '"']) {
        let close = if rest.as_bytes()[start] == b'<' {
            '>'
        } else {
            '"'
        };
        let inner = &rest[start + 1..];
        let Some(end) = inner.find(close) else { break };
        // No path is longer, and data need not be decoded twice.
        if inner[..end].starts_with("\\x2f") && end < 4 * 1024 {
            let path = String::from_utf8_lossy(&unhex(&inner[..end])).into_owned();
            found.push(path.into());
        }
        rest = &inner[end + 1..];
    }
    found
}

/// The plain numbers among the arguments.
pub(crate) fn numbers(arguments: &str) -> Vec<u64> {
    arguments
        .split(", ")
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// What a call wrote, and where if it says so.
pub(crate) fn written(call: &Call<'_>) -> (Vec<u8>, Option<u64>) {
    let mut bytes = strings(&call.arguments).concat();
    let offset =
        (call.name == "pwrite64").then(|| *numbers(&call.arguments).last().expect("an offset"));
    if let Some(result) = call.result {
        bytes.truncate(usize::try_from(result).unwrap());
    }
    (bytes, offset)
}
