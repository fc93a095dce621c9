//! Keeps the map of `src/lib.rs`: which folder may use which, and which file alone has which effect.
//!
//! The sources are read as text: comments and literals are blanked, `use` trees are unfolded, and then every
//! path (`std::fs::rename`, `.sync_all`) is held against the [`RULES`]. That sees what people write, not
//! what they could hide in a macro. Test modules may have any effect; they may not break the layers.

use std::{fmt, fs, path::Path};

#[path = "architecture/rules.rs"]
mod rules;
// The other half of it serves `error_codes`.
#[allow(dead_code)]
#[path = "architecture/source.rs"]
mod source;

use rules::{PRODUCT, RULES, Rule};
use source::{blanked, is_test_file, paths, sources, without_tests};

/// Most lines of a file.
const MAX_LINES: usize = 1000;

/// A broken rule: where, which, and what to do.
#[derive(Debug, PartialEq)]
struct Violation {
    file: String,
    line: usize,
    text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.text)
    }
}

fn starts_with_any(file: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| file.starts_with(prefix))
}

impl Rule {
    fn holds_in(&self, file: &str) -> bool {
        starts_with_any(file, self.within) && !starts_with_any(file, self.but)
    }

    fn check(&self, file: &str, source: &str) -> Vec<Violation> {
        if !self.holds_in(file) || (!self.in_tests && is_test_file(file)) {
            return Vec::new();
        }
        let mut code = blanked(source);
        if !self.in_tests {
            code = without_tests(&code);
        }
        let broken = paths(&code).into_iter().filter_map(|(line, path)| {
            let found = self.forbidden.iter().find(|part| contains(&path, part))?;
            let fine = self.allowed.iter().any(|part| contains(&path, part));
            (!fine).then(|| Violation {
                file: file.to_owned(),
                line,
                text: format!("`{found}`: {}; {}", self.says, self.instead),
            })
        });
        broken.collect()
    }
}

/// Whether the segments of `part` stand in those of `path`, one after another.
fn contains(path: &[String], part: &str) -> bool {
    let part: Vec<_> = part.split("::").collect();
    path.windows(part.len()).any(|window| window == part)
}

/// What every source file must look like, whatever is in it.
fn check_form(file: &str, source: &str) -> Vec<Violation> {
    let violation = |line, text: &str| Violation {
        file: file.to_owned(),
        line,
        text: text.to_owned(),
    };
    let mut found = Vec::new();
    if file.starts_with("src/") && !source.starts_with("//! ") {
        let text =
            "a file's first line is its module doc; say what it is for and what it guarantees";
        found.push(violation(1, text));
    }
    let lines = source.lines().count();
    if lines > MAX_LINES {
        let text = format!(
            "{lines} lines, at most {MAX_LINES} are wanted; divide it by what changes together"
        );
        found.push(violation(MAX_LINES + 1, &text));
    }
    found
}

fn report(violations: &[Violation]) {
    let lines: Vec<_> = violations.iter().map(Violation::to_string).collect();
    assert!(violations.is_empty(), "\n{}\n", lines.join("\n"));
}

#[test]
fn every_file_keeps_to_its_place_on_the_map() {
    let sources = sources("src");
    let broken = sources
        .iter()
        .flat_map(|(file, source)| RULES.iter().flat_map(|rule| rule.check(file, source)));
    report(&broken.collect::<Vec<_>>());
}

#[test]
fn every_file_says_what_it_is_for_and_is_short_enough_to_read() {
    let mut all = sources("src");
    all.extend(sources("tests"));
    let broken = all
        .iter()
        .flat_map(|(file, source)| check_form(file, source));
    report(&broken.collect::<Vec<_>>());
}

#[test]
fn every_folder_is_on_the_map() {
    let map = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    for (file, _) in sources("src") {
        let known = starts_with_any(&file, PRODUCT) || file.starts_with("src/emulator/");
        assert!(
            known,
            "{file}: a folder that no rule knows; add it to PRODUCT and to src/lib.rs"
        );
    }
    for folder in PRODUCT
        .iter()
        .filter_map(|path| path.strip_prefix("src/")?.strip_suffix('/'))
    {
        assert!(
            map.contains(&format!("`{folder}`")),
            "src/lib.rs does not place `{folder}`"
        );
    }
}

#[test]
fn each_rule_s_exceptions_are_files_that_exist() {
    let sources = sources("src");
    for rule in RULES {
        for prefix in rule.within.iter().chain(rule.but) {
            let used = sources.iter().any(|(file, _)| file.starts_with(prefix));
            assert!(used, "{prefix} in the rule \"{}\"", rule.says);
        }
    }
}

/// The dependencies that a manifest lists in `[dependencies]`.
fn dependencies(manifest: &str) -> Vec<String> {
    let manifest: toml::Table = manifest.parse().unwrap();
    let table = manifest["dependencies"].as_table().unwrap();
    table.keys().cloned().collect()
}

#[test]
fn the_device_and_the_emulator_do_not_depend_on_each_other() {
    let read = |file| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let device = dependencies(&read("Cargo.toml"));
    assert!(device.contains(&"rumqttc".to_owned()), "{device:?}");
    assert!(
        !device.contains(&"iothub-emulator".to_owned()),
        "only tests may use it"
    );
    let emulator = dependencies(&read("src/emulator/Cargo.toml"));
    assert!(!emulator.contains(&"fwupdated".to_owned()));
}

#[test]
fn each_rule_fires_on_its_sample_and_names_file_line_rule_and_remedy() {
    for rule in RULES {
        let (file, text) = rule.sample;
        let found = rule.check(file, text);
        assert_eq!(found.len(), 1, "{}: {found:?}", rule.says);
        let shown = found[0].to_string();
        let line = 1 + text
            .lines()
            .position(|line| {
                rule.forbidden
                    .iter()
                    .any(|part| line.contains(part.rsplit("::").next().unwrap()))
            })
            .unwrap();
        assert!(shown.starts_with(&format!("{file}:{line}: `")), "{shown}");
        assert!(
            shown.contains(rule.says) && shown.contains(rule.instead),
            "{shown}"
        );
        // Behind other code it is found on its own line.
        let moved = rule.check(file, &format!("//! Doc.\n\nfn f() {{}}\n{text}"));
        assert_eq!(moved[0].line, line + 3, "{}", rule.says);
    }
}

#[test]
fn no_rule_fires_where_it_does_not_hold() {
    for rule in RULES {
        let (_, text) = rule.sample;
        for prefix in rule.but {
            let file = format!("{prefix}/x.rs");
            let file = if prefix.ends_with(".rs") {
                prefix
            } else {
                &*file
            };
            assert_eq!(rule.check(file, text), [], "{}", rule.says);
        }
        assert_eq!(rule.check("tests/x.rs", text), [], "{}", rule.says);
    }
}

#[test]
fn comments_literals_and_test_modules_do_not_count() {
    for rule in RULES {
        let (file, text) = rule.sample;
        let one_line = text.replace('\n', " ");
        for hidden in [
            format!("//! {one_line}\n/// {one_line}\nfn f() {{}} // {one_line}"),
            format!("/* {text} /* nested */ {text} */ fn f() {{}}"),
            format!(
                "const T: &str = \"\\\" {} \\\\\";",
                text.replace('"', "\\\"")
            ),
            format!("const T: &str = r##\"\" \"# {text} \"##; const C: char = '\"';"),
            format!("const T: &[u8] = br#\" {text} \"#; fn f<'a>(x: &'a str) {{}}"),
        ] {
            assert_eq!(rule.check(file, &hidden), [], "{hidden}");
            // What follows is code again.
            let exposed = rule.check(file, &format!("{hidden}\n{text}"));
            assert_eq!(exposed.len(), 1, "{hidden}");
        }
        let module =
            format!("#[cfg(test)]\nmod tests {{\n    fn g() {{ h(\"}}\"); }}\n{text}\n}}\n");
        assert_eq!(
            rule.check(file, &module).len(),
            usize::from(rule.in_tests),
            "{}",
            rule.says
        );
        let after = rule.check(file, &format!("{module}{text}"));
        assert_eq!(after.len(), 1 + usize::from(rule.in_tests), "{}", rule.says);
    }
}

#[test]
fn use_trees_are_unfolded_line_by_line() {
    let code = "use std::{\n    fs::{self, File as F},\n    io,\n};\nuse a::*;\nfn f() { fs::read(x.y::<Z>()); }";
    let found: Vec<_> = paths(code)
        .into_iter()
        .map(|(line, path)| format!("{line} {}", path.join("::")))
        .collect();
    for expected in [
        "2 std::fs",
        "2 std::fs::File",
        "3 std::io",
        "6 fs::read",
        "6 y",
    ] {
        assert!(
            found.iter().any(|found| found == expected),
            "{expected}: {found:?}"
        );
    }
    assert!(
        !found
            .iter()
            .any(|found| found.contains('F') && found.ends_with("::F")),
        "{found:?}"
    );
}

#[test]
fn a_list_of_captures_is_no_import() {
    let code = "fn f() -> impl Iterator + use<'_, T> { g::h() }";
    let expected = vec!["g".to_owned(), "h".to_owned()];
    assert!(paths(code).iter().any(|(_, path)| *path == expected));
}

#[test]
fn a_file_without_a_doc_or_with_too_many_lines_is_named() {
    let long = format!("//! Doc.\n{}", "\n".repeat(MAX_LINES));
    let found = check_form("src/update/slot.rs", &long);
    assert_eq!(found.len(), 1);
    assert!(
        found[0]
            .to_string()
            .starts_with("src/update/slot.rs:1001: 1001 lines"),
        "{}",
        found[0]
    );
    let found = check_form("src/update/slot.rs", "use std::fmt;\n//! Doc.\n");
    assert!(
        found[0]
            .to_string()
            .contains("slot.rs:1: a file's first line"),
        "{}",
        found[0]
    );
    assert_eq!(check_form("src/update/slot.rs", "//! Doc.\n"), []);
}
