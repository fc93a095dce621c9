//! The man pages: one for each command, out of the definitions of `--help`, and `fwupdated.toml(5)`, out of the
//! reference of the configuration. What `--help` does not say (files, exit status, environment) is in `packaging/man`
//! and in the reference pages.

use std::{error::Error, fs, path::Path};

use clap::{Command, CommandFactory as _};
use clap_mangen::Man;

use super::markdown;

/// A program that has man pages and completions.
pub(crate) struct Program {
    /// Its command line.
    pub(crate) command: fn() -> Command,
    /// The manual's section.
    section: &'static str,
    /// Pages that its own page and its subcommands' pages point to.
    see_also: &'static [&'static str],
}

/// All of them.
pub(crate) const PROGRAMS: [Program; 3] = [
    Program {
        command: fwupdated::daemon::command,
        section: "8",
        see_also: &["fwupdatectl(1)", "fwupdated.toml(5)"],
    },
    Program {
        command: fwupdated::ctl::command,
        section: "1",
        see_also: &["fwupdated(8)", "fwupdated.toml(5)"],
    },
    Program {
        command: iothub_emulator::Arguments::command,
        section: "1",
        see_also: &["fwupdated(8)", "fwupdatectl(1)"],
    },
];

/// A man page.
pub(crate) struct Page {
    /// `fwupdatectl-status.1`
    pub(crate) file: String,
    /// In roff.
    pub(crate) text: String,
}

/// Every page; `root` is the project's folder.
pub(crate) fn pages(root: &Path) -> Result<Vec<Page>, Box<dyn Error>> {
    let mut pages = vec![configuration(root)?];
    for program in PROGRAMS {
        // `help` is no command that anybody looks up.
        let mut command = (program.command)().disable_help_subcommand(true);
        command.build();
        let name = command.get_name().to_owned();
        let mut top = page(&command, program.section)?;
        top.text += &markdown::roff(&read(root, &format!("packaging/man/{name}.md"))?);
        top.text += &environment(&read(root, "docs/reference/cli.md")?, &name);
        if name == "fwupdatectl" {
            let codes = read(root, "docs/reference/exit-codes.md")?;
            top.text += &format!(".SH \"EXIT STATUS\"\n{}", markdown::roff(&codes));
        }
        top.text += &see_also(program.see_also.iter().map(|page| (*page).to_owned()));
        pages.push(top);
        let parent = format!("{name}({})", program.section);
        for below in command.get_subcommands() {
            subcommand(below, program.section, &parent, &mut pages)?;
        }
    }
    Ok(pages)
}

/// A subcommand's page and those of its own subcommands.
fn subcommand(
    command: &Command,
    section: &str,
    parent: &str,
    pages: &mut Vec<Page>,
) -> Result<(), Box<dyn Error>> {
    if command.is_hide_set() {
        return Ok(());
    }
    let mut own = page(command, section)?;
    own.text += &see_also([parent.to_owned()]);
    let name = format!(
        "{}({section})",
        own.file.trim_end_matches(&format!(".{section}"))
    );
    pages.push(own);
    for below in command.get_subcommands() {
        subcommand(below, section, &name, pages)?;
    }
    Ok(())
}

/// What `--help` says.
fn page(command: &Command, section: &str) -> Result<Page, Box<dyn Error>> {
    let name = command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_owned();
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .section(section)
        .source(concat!("fwupdated ", env!("CARGO_PKG_VERSION")))
        .manual("fwupdated");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    let mut text = String::from_utf8(text)?;
    // As it is laid out: it shows commands, line by line.
    if let Some(more) = command.get_after_long_help().or(command.get_after_help()) {
        let more = markdown::verbatim(&more.to_string());
        text += &format!(".SH EXAMPLES\n.nf\n{more}.fi\n");
    }
    Ok(Page {
        file: format!("{name}.{section}"),
        text,
    })
}

/// `fwupdated.toml(5)`.
fn configuration(root: &Path) -> Result<Page, Box<dyn Error>> {
    let text = format!(
        ".TH FWUPDATED.TOML 5 \"\" \"fwupdated {}\" fwupdated\n\
         .SH NAME\nfwupdated.toml \\- configuration of fwupdated and fwupdatectl\n\
         .SH DESCRIPTION\n{}{}{}",
        env!("CARGO_PKG_VERSION"),
        markdown::roff(&read(root, "docs/reference/configuration.md")?),
        markdown::roff(&read(root, "packaging/man/fwupdated.toml.md")?),
        see_also(["fwupdated(8)".to_owned(), "fwupdatectl(1)".to_owned()]),
    );
    Ok(Page {
        file: "fwupdated.toml.5".to_owned(),
        text,
    })
}

/// The environment variables that the reference names for `program`, or for one of its subcommands.
fn environment(reference: &str, program: &str) -> String {
    let rows = markdown::table(reference, "## Environment variables");
    let of_it = rows.iter().filter(|row| {
        let whose = row[1].replace('`', "");
        let mut whose = whose.split(", ");
        whose.any(|name| name.split(' ').next() == Some(program))
    });
    let rows: String = of_it
        .map(|row| format!("| {} | {} |\n", row[0], row[2]))
        .collect();
    match rows.is_empty() {
        true => String::new(),
        false => format!(
            ".SH ENVIRONMENT\n{}",
            markdown::roff(&format!("| Variable | Means |\n|---|---|\n{rows}"))
        ),
    }
}

fn see_also(pages: impl IntoIterator<Item = String>) -> String {
    let pages: Vec<_> = pages
        .into_iter()
        .map(|page| {
            let (name, section) = page.split_once('(').unwrap_or((&page, ""));
            format!("\\fB{}\\fR({section}", markdown::escape(name))
        })
        .collect();
    format!(".SH \"SEE ALSO\"\n{}\n", pages.join(", "))
}

fn read(root: &Path, file: &str) -> Result<String, Box<dyn Error>> {
    fs::read_to_string(root.join(file)).map_err(|error| format!("{file}: {error}").into())
}
