//! Writes what the Debian packages hold and nobody writes by hand: `cargo run --example package-files -- FOLDER`.
//!
//! Man pages and completions come out of the commands' own definitions, which are those of `--help`, and the reference
//! pages; Debian's changelog out of `CHANGELOG.md`; `copyright` out of the licences of all crates that are linked. They
//! are made at build time and never committed, so they cannot differ from what they describe. The same sources give the
//! same bytes: the one date in them is `SOURCE_DATE_EPOCH`, or the time now.

mod changelog;
mod copyright;
mod man;
mod markdown;
#[cfg(test)]
mod tests;

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use clap_complete::Shell;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(folder), None) = (arguments.next(), arguments.next()) else {
        return Err("usage: package-files FOLDER".into());
    };
    let folder = PathBuf::from(folder);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for page in man::pages(root)? {
        write(&folder.join("man").join(&page.file), &page.text)?;
    }
    for program in man::PROGRAMS {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut command = (program.command)();
            let name = command.get_name().to_owned();
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut command, &name, &mut text);
            let file = match shell {
                Shell::Zsh => format!("_{name}"),
                Shell::Fish => format!("{name}.fish"),
                _ => name,
            };
            write(&folder.join("completions").join(file), &text)?;
        }
    }
    let seconds = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(seconds) => seconds.parse()?,
        Err(_) => jiff::Timestamp::now().as_second(),
    };
    let built = jiff::Timestamp::from_second(seconds)?;
    let manifest: toml::Table = fs::read_to_string(root.join("Cargo.toml"))?.parse()?;
    let deb = &manifest["package"]["metadata"]["deb"];
    let version = manifest["package"]["version"]
        .as_str()
        .ok_or("no version")?;
    let maintainer = deb["maintainer"].as_str().ok_or("no maintainer")?;
    let changes = fs::read_to_string(root.join("CHANGELOG.md"))?;
    for (package, crates) in [
        ("fwupdated", "fwupdated"),
        ("fwupdated-tools", "fwupdated"),
        ("iothub-emulator", "iothub-emulator"),
    ] {
        let folder = folder.join(package);
        let text = changelog::debian(&changes, package, version, maintainer, built)?;
        write(&folder.join("changelog"), text)?;
        write(&folder.join("copyright"), copyright::of(root, crates)?)?;
    }
    Ok(())
}

fn write(file: &Path, text: impl AsRef<[u8]>) -> Result<(), Box<dyn Error>> {
    let folder = file.parent().ok_or("a file has a folder")?;
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(file, text))
        .map_err(|error| format!("cannot write {}: {error}", file.display()).into())
}
