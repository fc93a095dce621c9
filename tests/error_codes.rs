//! Every stable error code of the product is explained in `docs/reference/errors.md`, once, with the class
//! that it has in the sources; and no code means two things.
//!
//! The codes are found in the sources' text: the arms of each `impl Coded`, the first argument of each
//! `Failure::new`, and `"code": "..."` in an answer. The emulator speaks the hub's codes, not ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    ops::Range,
    path::Path,
};

// The other half of it serves `architecture`.
#[allow(dead_code)]
#[path = "architecture/source.rs"]
mod source;

use source::{blanked, is_test_file, sources, uncommented, without_tests};

/// Codes that several places give, and why that is one thing.
const SHARED: &[(&str, &str)] = &[
    (
        "boot-disagreement",
        "the running slot is not the expected one: at the request, at the start, before writing",
    ),
    (
        "cancelled",
        "what the stages end with is what the update ends with",
    ),
    (
        "control-not-allowed",
        "the daemon refuses, the command passes it on",
    ),
    ("hub-unavailable", "the same hub says so, over MQTT or HTTP"),
    ("hub-unreachable", "the same hub, over MQTT or HTTP"),
    (
        "image-changed",
        "noticed within the download, or between the header and the rest",
    ),
    (
        "image-truncated",
        "an image with a manifest, or a plain one",
    ),
    ("image-unsigned", "an image with a manifest, or a plain one"),
    ("internal", "a defect, wherever it shows"),
    (
        "known-bad",
        "known by its version at the request, or by its content in the header",
    ),
    (
        "slot-is-confirmed",
        "with U-Boot, or with the Raspberry Pi's firmware",
    ),
    (
        "local-file-open",
        "opened by the command, and by the daemon after a restart",
    ),
    ("slot-not-a-device", "at the start, or when it is opened"),
    (
        "state-write-failed",
        "the failure that was kept, or that there was one",
    ),
];

/// A code as the sources give it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Given {
    code: String,
    /// `retry`, `wait` or `final`; `None` in an answer, which has no class.
    class: Option<String>,
    /// The file, and the enum where there is one.
    place: String,
}

/// A source twice, character by character: `code` without comments, literals and test modules, to find
/// one's way; `text` without comments only, to read from.
struct Source {
    file: String,
    code: Vec<char>,
    text: Vec<char>,
}

impl Source {
    fn new(file: &str, source: &str) -> Self {
        let whole = blanked(source);
        let code: Vec<char> = without_tests(&whole).chars().collect();
        // What `without_tests` took away, is taken away here.
        let text = uncommented(source);
        let text = text.chars().zip(whole.chars()).zip(&code);
        let mut in_test = false;
        let text: Vec<char> = text
            .map(|((text, whole), code)| {
                if !whole.is_whitespace() {
                    in_test = code.is_whitespace();
                }
                if in_test { ' ' } else { text }
            })
            .collect();
        Self {
            file: file.to_owned(),
            code,
            text,
        }
    }

    /// Where `needle` ends in the code within `range`, everywhere.
    fn after_each(&self, needle: &str, range: Range<usize>) -> Vec<usize> {
        let needle: Vec<char> = needle.chars().collect();
        let windows = self.code[range.clone()].windows(needle.len()).enumerate();
        windows
            .filter(|(_, window)| *window == needle)
            .map(|(at, _)| range.start + at + needle.len())
            .collect()
    }

    fn after(&self, needle: &str, range: Range<usize>) -> Option<usize> {
        self.after_each(needle, range).first().copied()
    }

    fn all(&self) -> Range<usize> {
        0..self.code.len()
    }

    /// What stands from `at`, which is behind an opening bracket, to the closing one: divided at the commas
    /// that lie no deeper.
    fn parts(&self, at: usize) -> Vec<Range<usize>> {
        let (mut depth, mut start, mut parts) = (0, at, Vec::new());
        for here in at..self.code.len() {
            match self.code[here] {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' if depth == 0 => {
                    parts.push(start..here);
                    return parts;
                }
                ')' | ']' | '}' => depth -= 1,
                ',' if depth == 0 => {
                    parts.push(start..here);
                    start = here + 1;
                }
                _ => {}
            }
        }
        panic!("{}: a bracket is not closed", self.file);
    }

    /// Up to the bracket that closes what is open at `at`.
    fn block(&self, at: usize) -> Range<usize> {
        at..self.parts(at).last().map_or(at, |part| part.end)
    }

    fn text(&self, range: Range<usize>) -> String {
        self.text[range]
            .iter()
            .collect::<String>()
            .trim()
            .to_owned()
    }

    /// The arms of the `match self` in `function`, by variant; `_` when one value serves for all.
    fn arms(&self, function: &str, within: Range<usize>) -> Vec<(String, String)> {
        let head = self.after(function, within.clone()).expect(function);
        let body = self.block(self.after("{", head..within.end).unwrap());
        let Some(open) = self.after("match self {", body.clone()) else {
            return vec![("_".to_owned(), self.text(body))];
        };
        let mut arms = Vec::new();
        for mut part in self.parts(open) {
            while let Some(arrow) = self.after("=>", part.clone()) {
                let begin = (arrow..part.end).find(|at| !self.code[*at].is_whitespace());
                // No comma follows a value in braces.
                let (value, next) = match begin.filter(|at| self.code[*at] == '{') {
                    Some(brace) => {
                        let block = self.block(brace + 1);
                        (self.text(block.clone()), block.end + 1)
                    }
                    None => (self.text(arrow..part.end), part.end),
                };
                for pattern in self.text(part.start..arrow - 2).split('|') {
                    let variant = pattern.trim().trim_start_matches("Self::");
                    let end = variant.find(|c: char| !c.is_alphanumeric());
                    arms.push((
                        variant[..end.unwrap_or(variant.len())].to_owned(),
                        value.clone(),
                    ));
                }
                part = next..part.end;
            }
        }
        arms
    }

    /// The codes of each `impl Coded for ...`.
    fn coded(&self, every: &[Self]) -> Vec<Given> {
        let mut found = Vec::new();
        for at in self.after_each(" Coded for ", self.all()) {
            let open = self.after("{", at..self.code.len()).unwrap();
            let place = format!("{} {}", self.file, self.text(at..open - 1));
            let body = self.block(open);
            let classes: BTreeMap<_, _> =
                self.arms("fn class(", body.clone()).into_iter().collect();
            for (variant, value) in self.arms("fn code(", body) {
                // Another error's code, which is found there.
                if value.ends_with(".code()") {
                    continue;
                }
                let class = classes.get(&variant).or_else(|| classes.get("_"));
                found.push(Given {
                    code: self.code_of(&value, every),
                    class: Some(class_of(class.map_or("", String::as_str), &place)),
                    place: place.clone(),
                });
            }
        }
        found
    }

    /// The codes given to `Failure::new`, also through a function's first parameter.
    fn failures(&self, every: &[Self]) -> Vec<Given> {
        let mut found = Vec::new();
        for at in self.after_each("Failure::new(", self.all()) {
            let parts = self.parts(at);
            let class = class_of(&self.text(parts[1].clone()), &self.file);
            let argument = self.text(parts[0].clone());
            let codes = match self.function_with(&argument, at) {
                Some(function) => self.first_arguments(&function),
                None => vec![argument],
            };
            found.extend(codes.iter().map(|code| Given {
                code: self.code_of(code, every),
                class: Some(class.clone()),
                place: self.file.clone(),
            }));
        }
        found
    }

    /// The name of the function around `at`, if its first parameter is `parameter: &str`.
    fn function_with(&self, parameter: &str, at: usize) -> Option<String> {
        let head = *self.after_each("fn ", 0..at).last()?;
        let (name, parameters) = self
            .text(head..at)
            .split_once('(')
            .map(|(n, p)| (n.to_owned(), p.to_owned()))?;
        parameters
            .starts_with(&format!("{parameter}: &str"))
            .then_some(name)
    }

    fn first_arguments(&self, function: &str) -> Vec<String> {
        let call = format!("{function}(");
        let heads = self.after_each(&format!("fn {call}"), self.all());
        let calls = self.after_each(&call, self.all());
        // Neither its own head nor another function whose name ends like this one.
        let other = |at: usize| {
            let before = self.code[at - call.chars().count() - 1];
            heads.contains(&at) || before.is_alphanumeric() || ['_', ':', '.'].contains(&before)
        };
        let calls = calls.into_iter().filter(|at| !other(*at));
        calls
            .map(|at| self.text(self.parts(at)[0].clone()))
            .collect()
    }

    /// `"code": "..."` in a JSON document.
    fn answers(&self) -> Vec<Given> {
        let text: String = self.text.iter().collect();
        let codes = text.split("\"code\": \"").skip(1);
        codes
            .map(|rest| Given {
                code: rest.split('"').next().unwrap().to_owned(),
                class: None,
                place: self.file.clone(),
            })
            .collect()
    }

    /// What a literal says, or a constant of any source.
    fn code_of(&self, value: &str, every: &[Self]) -> String {
        if let Some(literal) = literal(value) {
            return literal.to_owned();
        }
        let value_of = |source: &Self| {
            let at = source.after(&format!("const {value}: &str ="), source.all())?;
            let end = source.after(";", at..source.code.len())? - 1;
            literal(&source.text(at..end)).map(str::to_owned)
        };
        every.iter().find_map(value_of).unwrap_or_else(|| {
            panic!(
                "{}: the code `{value}` cannot be followed; give a literal, a constant, or the first argument of \
                 the function around it",
                self.file
            )
        })
    }
}

fn literal(text: &str) -> Option<&str> {
    text.strip_prefix('"')?.strip_suffix('"')
}

/// `Class::Wait`, also behind a path -> `wait`.
fn class_of(text: &str, place: &str) -> String {
    let class = text
        .rsplit_once("Class::")
        .map(|(_, class)| class.to_lowercase());
    let known = class.filter(|class| ["retry", "wait", "final"].contains(&&**class));
    known.unwrap_or_else(|| panic!("{place}: `{text}` is no class"))
}

fn given_in(sources: &[(String, String)]) -> BTreeSet<Given> {
    let read = |(file, source): &(String, String)| {
        (!is_test_file(file)).then(|| Source::new(file, source))
    };
    let every: Vec<_> = sources.iter().filter_map(read).collect();
    let mut found = BTreeSet::new();
    for source in &every {
        found.extend(source.coded(&every));
        found.extend(source.failures(&every));
        found.extend(source.answers());
    }
    found
}

/// The codes of the daemon and its tools.
fn given() -> BTreeSet<Given> {
    let mut sources = sources("src");
    sources.retain(|(file, _)| !file.starts_with("src/emulator/"));
    let given = given_in(&sources);
    assert!(given.len() > 100, "{given:?}");
    given
}

/// A row of the reference.
struct Row {
    line: usize,
    code: String,
    classes: Vec<String>,
    seen: Vec<String>,
    /// What it means, and what to do.
    words: [String; 2],
}

const PAGE: &str = "docs/reference/errors.md";

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE)).unwrap()
}

/// The rows of the tables of codes: those that begin with a code in backticks.
fn rows(page: &str) -> Vec<Row> {
    let list = |cell: &str| cell.split(", ").map(str::to_owned).collect();
    let lines = page.lines().enumerate();
    lines
        .filter(|(_, line)| line.starts_with("| `"))
        .map(|(number, text)| {
            let line = number + 1;
            let cells: Vec<_> = text.trim_matches('|').split(" | ").map(str::trim).collect();
            let [code, classes, seen, means, remedy] = cells.as_slice() else {
                panic!("{PAGE}:{line}: {} cells instead of 5", cells.len());
            };
            Row {
                line,
                code: code.trim_matches('`').to_owned(),
                classes: list(classes),
                seen: list(seen),
                words: [(*means).to_owned(), (*remedy).to_owned()],
            }
        })
        .collect()
}

fn report(mistakes: Vec<String>) {
    assert!(mistakes.is_empty(), "\n{}\n", mistakes.join("\n"));
}

#[test]
fn every_code_is_explained_once_and_nothing_else_is() {
    let mut places: BTreeMap<String, String> = BTreeMap::new();
    for given in given() {
        places.entry(given.code).or_insert(given.place);
    }
    let mut explained: BTreeMap<String, usize> = BTreeMap::new();
    let mut mistakes = Vec::new();
    for row in rows(&page()) {
        if let Some(first) = explained.insert(row.code.clone(), row.line) {
            mistakes.push(format!(
                "{PAGE}:{}: `{}` is explained at line {first} already",
                row.line, row.code
            ));
        }
        if !places.contains_key(&row.code) {
            mistakes.push(format!(
                "{PAGE}:{}: no source gives `{}`; remove the row",
                row.line, row.code
            ));
        }
    }
    for (code, place) in &places {
        if !explained.contains_key(code) {
            mistakes.push(format!(
                "`{code}` ({place}) is not in {PAGE}; explain it there"
            ));
        }
    }
    report(mistakes);
}

#[test]
fn each_row_has_the_classes_of_the_sources_and_all_its_words() {
    let mut classes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for given in given() {
        classes.entry(given.code).or_default().extend(given.class);
    }
    let known = [
        "start", "problem", "hub", "method", "twin", "cli", "journal",
    ];
    let mut mistakes = Vec::new();
    for row in rows(&page()) {
        let place = format!("{PAGE}:{}: `{}`", row.line, row.code);
        let said: BTreeSet<_> = row.classes.iter().cloned().collect();
        match classes.get(&row.code) {
            Some(given) if !given.is_empty() && *given != said => {
                mistakes.push(format!("{place} is {given:?} in the sources"));
            }
            _ if !said
                .iter()
                .all(|class| ["retry", "wait", "final"].contains(&&**class)) =>
            {
                mistakes.push(format!("{place}: {said:?} is no class"));
            }
            _ => {}
        }
        for seen in row.seen.iter().filter(|seen| !known.contains(&&***seen)) {
            mistakes.push(format!("{place}: `{seen}` is no place; they are {known:?}"));
        }
        for words in &row.words {
            if words.len() < 7 || !words.ends_with('.') {
                mistakes.push(format!("{place}: `{words}` is no sentence"));
            }
        }
    }
    report(mistakes);
}

#[test]
fn codes_are_kebab_case() {
    let kebab = |code: &str| {
        let words = code.split('-');
        code.len() <= 40
            && words.into_iter().all(|word| {
                word.starts_with(|c: char| c.is_ascii_lowercase())
                    && word
                        .chars()
                        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
            })
    };
    for (code, good) in [
        ("a-b2", true),
        ("a", true),
        ("A-b", false),
        ("a_b", false),
        ("a--b", false),
        ("", false),
    ] {
        assert_eq!(kebab(code), good, "{code}");
    }
    let wrong = given().into_iter().filter(|given| !kebab(&given.code));
    report(
        wrong
            .map(|given| format!("{}: `{}` is not kebab-case", given.place, given.code))
            .collect(),
    );
}

#[test]
fn no_code_means_two_things() {
    let mut places: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for given in given() {
        places.entry(given.code).or_default().insert(given.place);
    }
    let shared: BTreeMap<_, _> = SHARED.iter().copied().collect();
    let mut mistakes = Vec::new();
    for (code, places) in &places {
        match (places.len() > 1, shared.contains_key(&**code)) {
            (true, false) => mistakes.push(format!(
                "`{code}` is given by {places:?}: give one of them another code, or say in SHARED why it is one thing"
            )),
            (false, true) => mistakes.push(format!("`{code}` is given in one place; take it out of SHARED")),
            _ => {}
        }
    }
    for (code, _) in SHARED
        .iter()
        .filter(|(code, _)| !places.contains_key(*code))
    {
        mistakes.push(format!("`{code}` in SHARED is given nowhere"));
    }
    report(mistakes);
}

#[test]
fn codes_are_found_in_every_form_and_only_in_the_product_s_code() {
    let one = r##"
        //! Not here: Failure::new("comment", Class::Wait, "x")
        impl Coded for OneError {
            fn code(&self) -> &'static str {
                match self {
                    Self::First { .. } | Self::Second(_) => "one-a", // "not-this"
                    Self::Third => THIRD,
                    Self::Inner(error) => error.code(),
                }
            }
            fn class(&self) -> Class {
                match self {
                    Self::First { .. } => Class::Retry,
                    Self::Inner(error) => error.class(),
                    Self::Second(_) | Self::Third => Class::Wait,
                }
            }
        }
        fn f() -> Answer {
            let text = "Failure::new(\"text\", Class::Wait)";
            g(Failure::new("two", crate::failure::Class::Final, format!("{text}, {}", h(1, 2))));
            if x { conflict("three", text) } else { Answer::conflict(&y) }
        }
        fn conflict(code: &str, text: &str) -> Answer {
            Answer::conflict(&Failure::new(code, Class::Wait, text))
        }
        fn k() { json!({"code": "four", "message": m}) }
        #[cfg(test)]
        mod tests {
            fn t() { Failure::new("test", Class::Wait, ""); json!({"code": "test"}); }
        }
    "##;
    let two = r#"
        pub const THIRD: &str = "one-c";
        impl Coded for crate::Two { fn code(&self) -> &'static str { "five" } fn class(&self) -> Class { Class::Final } }
    "#;
    let sources = [
        ("src/one.rs", one),
        ("src/two.rs", two),
        ("src/x/tests.rs", one),
    ];
    let sources = sources.map(|(file, text)| (file.to_owned(), text.to_owned()));
    let found: BTreeSet<_> = given_in(&sources)
        .into_iter()
        .map(|given| {
            format!(
                "{} {} {}",
                given.code,
                given.class.as_deref().unwrap_or("-"),
                given.place
            )
        })
        .collect();
    let expected = [
        "five final src/two.rs crate::Two",
        "four - src/one.rs",
        "one-a retry src/one.rs OneError",
        "one-a wait src/one.rs OneError",
        "one-c wait src/one.rs OneError",
        "three wait src/one.rs",
        "two final src/one.rs",
    ];
    assert_eq!(found, expected.map(str::to_owned).into());
}

#[test]
#[should_panic(expected = "src/one.rs: the code `name` cannot be followed")]
fn a_code_that_cannot_be_followed_is_a_mistake() {
    let source = "fn f(a: u8, name: &str) { Failure::new(name, Class::Wait, text) }";
    given_in(&[("src/one.rs".to_owned(), source.to_owned())]);
}

#[test]
fn other_pages_name_only_codes_that_exist() {
    let mut known: BTreeSet<_> = given().into_iter().map(|given| given.code).collect();
    // Debian's package and its program.
    known.extend(["ca-certificates", "update-ca-certificates"].map(str::to_owned));
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut mistakes = Vec::new();
    for page in [
        "docs/how-to/troubleshoot.md",
        "docs/reference/method.md",
        "docs/reference/exit-codes.md",
    ] {
        let text = fs::read_to_string(top.join(page)).unwrap();
        for (number, line) in text.lines().enumerate() {
            for word in line.split('`').skip(1).step_by(2) {
                // What has the first word of a code and the form of one.
                let like = word.contains('-')
                    && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
                    && known
                        .iter()
                        .any(|code| code.split('-').next() == word.split('-').next());
                if like && !known.contains(word) {
                    mistakes.push(format!("{page}:{}: `{word}` is no code", number + 1));
                }
            }
        }
    }
    report(mistakes);
}
