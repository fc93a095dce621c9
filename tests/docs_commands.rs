//! Every command that the documentation tells people to type is held: it is typed here, page by page, in order and as it
//! stands, by a reader with a machine of its own (as root; `SKIPPED` without), or stands in the table of
//! `docs_commands/table.rs` with the reason. Wherever a page names our programs' commands and options, in a sentence too,
//! they exist; every configuration that it shows is accepted; every target and test that it names is there.
//!
//! `cargo test --test docs_commands sign-images` reads one page.

mod support;

#[path = "docs_commands/calls.rs"]
mod calls;
#[path = "docs_commands/pages.rs"]
mod pages;
#[path = "docs_commands/reader.rs"]
mod reader;
#[path = "docs_commands/table.rs"]
mod table;

use std::{
    fs,
    process::{Command as Process, ExitCode},
    sync::Arc,
};

use fwupdated::config::{Config, Layer};
use libtest_mimic::{Arguments, Failed, Trial};
use pages::{Code, Command, Place};
use reader::Reading;
use table::{NOT_TYPED, SCENES, Scene};

/// Options in sentences that are other programs': of Azure's command line, of tests, of zstd.
const FOREIGN: [&str; 6] = [
    "--as-user",
    "--include-ignored",
    "--list",
    "--test-threads",
    "--long",
    "--ultra",
];

/// The documentation, taken apart.
struct Docs {
    code: Vec<Code>,
    commands: Vec<Command>,
}

impl Docs {
    fn read() -> Result<Self, String> {
        let mut docs = Self {
            code: Vec::new(),
            commands: Vec::new(),
        };
        for (_, code) in pages::pages() {
            docs.commands.extend(pages::commands(&code)?);
            docs.code.extend(code);
        }
        Ok(docs)
    }

    /// The code of blocks marked so.
    fn blocks(&self, language: &str) -> impl Iterator<Item = &Code> {
        let marked = move |code: &&Code| code.language.as_deref() == Some(language);
        self.code.iter().filter(marked)
    }

    /// The pages with something to type.
    fn readings(&self) -> Vec<Reading> {
        let mut readings: Vec<Reading> = Vec::new();
        for command in &self.commands {
            if NOT_TYPED.iter().any(|row| row.is_for(command)) {
                continue;
            }
            let page = &command.place.page;
            if readings.last().is_none_or(|last| last.page != *page) {
                let scene = SCENES.iter().find(|scene| scene.page == page);
                readings.push(Reading {
                    page: page.clone(),
                    commands: Vec::new(),
                    scene: scene.copied().unwrap_or(Scene::empty("")),
                });
            }
            let reading = readings.last_mut().expect("it was just made");
            reading.commands.push(command.clone());
        }
        readings
    }
}

/// Fails with all that is wrong, if anything is.
fn report(wrong: Vec<String>) -> Result<(), Failed> {
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(format!("\n{}", wrong.join("\n")).into()),
    }
}

fn each_call_of_our_programs_is_one_that_they_take(docs: &Docs) -> Result<(), Failed> {
    let mut wrong = Vec::new();
    let mut seen = 0;
    let mut hold = |place: &Place, text: &str, how: fn(&[String]) -> Result<(), String>| {
        for words in calls::ours(text) {
            seen += 1;
            if let Err(error) = how(&words) {
                wrong.push(format!("{place}: {}: {error}", words.join(" ")));
            }
        }
    };
    for command in &docs.commands {
        hold(&command.place, &command.text, calls::parse);
    }
    let inline = docs.code.iter().filter(|code| code.language.is_none());
    for code in inline {
        hold(&code.place, &code.text, calls::exists);
    }
    // Synopses, and what a demo prints of what it does.
    for code in docs.blocks("text") {
        for line in code.text.lines() {
            hold(&code.place, line, calls::exists);
        }
    }
    assert!(seen > 150, "only {seen} calls were found");
    report(wrong)
}

fn each_option_in_a_sentence_exists(docs: &Docs) -> Result<(), Failed> {
    let options = calls::options();
    let inline = docs.code.iter().filter(|code| code.language.is_none());
    let named: Vec<_> = inline
        .filter(|code| code.text.starts_with("--"))
        .map(|code| (code, code.text.split([' ', '=', '[']).next().unwrap()))
        .collect();
    assert!(named.len() > 50, "only {} options were found", named.len());
    let unknown = named
        .iter()
        .filter(|(_, name)| !options.contains(*name) && !FOREIGN.contains(name))
        .map(|(code, name)| format!("{}: none of our programs has {name}", code.place));
    let idle = FOREIGN
        .iter()
        .filter(|foreign| !named.iter().any(|(_, name)| name == *foreign))
        .map(|foreign| format!("FOREIGN: no page names {foreign}"));
    report(unknown.chain(idle).collect())
}

fn each_configuration_that_is_shown_is_accepted(docs: &Docs) -> Result<(), Failed> {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for code in docs.blocks("toml") {
        seen += 1;
        let layer = Layer::file(code.place.to_string(), &*code.text);
        if let Err(error) = Config::load_from(&[layer], []) {
            wrong.push(format!("{}: {error}", code.place));
        }
    }
    assert!(seen > 15, "only {seen} configurations were found");
    report(wrong)
}

fn each_target_test_and_benchmark_that_is_named_is_there(docs: &Docs) -> Result<(), Failed> {
    let makefile = fs::read_to_string(pages::root().join("Makefile")).unwrap();
    let manifest = fs::read_to_string(pages::root().join("Cargo.toml")).unwrap();
    let mut wrong = Vec::new();
    let mut seen = 0;
    let inline = docs.code.iter().filter(|code| code.language.is_none());
    let inline = inline.map(|code| (&code.place, &code.text));
    let typed = docs.commands.iter().map(|one| (&one.place, &one.text));
    for (place, text) in typed.chain(inline) {
        for words in calls::simple_commands(text) {
            let is_there = |name: &str| match words[0].as_str() {
                "make" => makefile.contains(&format!("\n{name}:")),
                _ => {
                    pages::root().join(format!("tests/{name}.rs")).exists()
                        || manifest.contains(&format!("name = \"{name}\""))
                }
            };
            let names: Vec<_> = match words[0].as_str() {
                "make" => words[1..]
                    .iter()
                    .filter(|word| !word.contains('='))
                    .collect(),
                "cargo" => words
                    .windows(2)
                    .filter(|pair| ["--test", "--bench"].contains(&pair[0].as_str()))
                    .map(|pair| &pair[1])
                    .collect(),
                _ => continue,
            };
            seen += names.len();
            let missing = names.into_iter().filter(|name| !is_there(name));
            wrong.extend(missing.map(|name| format!("{place}: there is no {name}")));
        }
    }
    assert!(seen > 15, "only {seen} were found");
    report(wrong)
}

fn commands_stand_in_blocks_that_say_so(docs: &Docs) -> Result<(), Failed> {
    let shells = ["", "bash", "sh", "shell"];
    let wrong = docs.code.iter().filter_map(|code| {
        let language = code.language.as_deref()?;
        let typed = language != "console" && code.text.lines().any(|line| line.starts_with("$ "));
        (typed || shells.contains(&language)).then(|| {
            format!(
                "{}: a block marked `{language}`; commands stand in `console`, each after `$ `",
                code.place
            )
        })
    });
    report(wrong.collect())
}

fn what_is_not_typed_is_there_and_is_held_by_what_is_there(docs: &Docs) -> Result<(), Failed> {
    let mut wrong = Vec::new();
    for row in NOT_TYPED {
        if !docs.commands.iter().any(|command| row.is_for(command)) {
            wrong.push(format!("NOT_TYPED: no page has `{}`", row.begins));
        }
        let words = row.why.split([' ', ':', ',']);
        for file in words.filter(|word| word.starts_with("tests/")) {
            if !pages::root().join(file).exists() {
                wrong.push(format!("NOT_TYPED: `{}`: there is no {file}", row.begins));
            }
        }
    }
    let readings = docs.readings();
    for scene in SCENES {
        let reading = readings.iter().find(|reading| reading.page == scene.page);
        let begins = scene.after.iter().map(|(begins, _)| begins);
        for begins in begins.chain(scene.fails) {
            let is_there = reading.is_some_and(|reading| {
                let mut commands = reading.commands.iter();
                commands.any(|command| command.text.starts_with(begins))
            });
            if !is_there {
                wrong.push(format!("SCENES: {} does not type `{begins}`", scene.page));
            }
        }
    }
    report(wrong)
}

fn the_newcomer_s_path_has_under_ten_commands(docs: &Docs) -> Result<(), Failed> {
    const PAGE: &str = "docs/tutorial/first-update.md";
    let commands = docs.commands.iter();
    let number = commands
        .filter(|command| command.place.page == PAGE)
        .count();
    let text = fs::read_to_string(pages::root().join(PAGE)).unwrap();
    assert_eq!(number, 9);
    assert!(text.contains("# Tutorial: a first update in nine commands"));
    // Nothing to type is hidden in another form.
    assert_eq!(
        text.matches("```").count(),
        2 * text.matches("```console").count()
    );
    Ok(())
}

fn what_is_wrong_on_a_page_is_found_with_its_line() -> Result<(), Failed> {
    let page = "# A page\n\nSay `fwupdatectl statos`.\n\n```console\n$ for i in 1 2; do\n    \
                FWUPDATED_X=1 fwupdatectl image verfy $i | jq .\n  done\nok\n$ cat <<EOT\n# a\nEOT\n```\n";
    let code = pages::code("a.md", page);
    let commands = pages::commands(&code)?;
    assert_eq!(commands.len(), 2);
    assert_eq!((commands[0].place.line, commands[1].place.line), (6, 10));
    assert_eq!(commands[0].shown, ["ok"]);
    assert!(commands[1].text.ends_with("# a\nEOT"));
    assert_eq!(
        (code[0].place.line, &*code[0].text),
        (3, "fwupdatectl statos")
    );
    let wrong = [&code[0].text, &commands[0].text].map(|text| {
        let calls = calls::ours(text);
        assert_eq!(calls.len(), 1, "{calls:?}");
        (
            calls::parse(&calls[0]).is_err(),
            calls::exists(&calls[0]).is_err(),
        )
    });
    assert_eq!(wrong, [(true, true); 2]);
    for (right, whole) in [
        ("x | sudo fwupdatectl defer 2h --id a 2>/dev/null &", true),
        (
            "echo \"$(fwupdatectl hub list --ca-file \"$(pwd)/ca.pem\")\" # fwupdatectl x",
            true,
        ),
        ("fwupdatectl image build ... --base OLD...", false),
        ("fwupdatectl approve [ID]", true),
    ] {
        let calls = calls::ours(right);
        assert_eq!(calls.len(), 1, "{right}: {calls:?}");
        calls::exists(&calls[0])?;
        assert_eq!(calls::parse(&calls[0]).is_ok(), whole, "{right}");
    }
    for wrong in [
        "fwupdatectl status --jsn",
        "fwupdatectl cancel x",
        "iothub-emulator --hub NAME",
    ] {
        assert!(calls::exists(&calls::ours(wrong)[0]).is_err(), "{wrong}");
    }
    for wrong in ["# reboot", "no command before this", "$ for i in 1"] {
        let code = pages::code("a.md", &format!("```console\n{wrong}\n```\n"));
        let error = pages::commands(&code).err().ok_or(wrong)?;
        assert!(error.starts_with("a.md:2: "), "{error}");
    }
    Ok(())
}

/// Why no page can be read on this machine, if so.
fn missing() -> Option<&'static str> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("it needs root for a machine of its own");
    }
    None
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let docs = match Docs::read() {
        Ok(docs) => Arc::new(docs),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    macro_rules! claims {
        ($($claim:ident),* $(,)?) => {
            vec![$({
                let docs = Arc::clone(&docs);
                Trial::test(stringify!($claim), move || $claim(&docs))
            }),*]
        };
    }
    let mut trials = claims![
        each_call_of_our_programs_is_one_that_they_take,
        each_option_in_a_sentence_exists,
        each_configuration_that_is_shown_is_accepted,
        each_target_test_and_benchmark_that_is_named_is_there,
        commands_stand_in_blocks_that_say_so,
        what_is_not_typed_is_there_and_is_held_by_what_is_there,
        the_newcomer_s_path_has_under_ten_commands,
    ];
    let name = "what_is_wrong_on_a_page_is_found_with_its_line";
    trials.push(Trial::test(
        name,
        what_is_wrong_on_a_page_is_found_with_its_line,
    ));
    if !arguments.list && missing().is_none() {
        build_the_emulator();
    }
    let readings = Arc::new(docs.readings());
    for (number, reading) in readings.iter().enumerate() {
        let name = format!("{}_can_be_typed_as_it_stands", reading.page);
        let readings = Arc::clone(&readings);
        trials.push(Trial::test(name, move || {
            let reading = &readings[number];
            match missing() {
                Some(why) => support::skipped(format_args!("{}: {why}", reading.page)),
                None => reading.read(&readings)?,
            }
            Ok(())
        }));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// `cargo test --test` makes the programs of this package only. With the whole workspace, as the tests are built: for one
/// package alone cargo would choose other features of the crates below, and build them again.
fn build_the_emulator() {
    support::rig::run(
        Process::new(env!("CARGO"))
            .args(["build", "--locked", "--workspace", "--bins"])
            .current_dir(pages::root()),
    );
}
