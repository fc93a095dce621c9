//! Azure's official SDKs for Python and Node.js, in environments made once in the target directory, and the
//! scripts that use them (`tests/sdk/*.py`, `tests/sdk/node/*.js`).

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use tokio::process::Command;

/// A command that runs a script of `tests/sdk` with its SDK; `None`, said loudly, where the language or its
/// package index is missing. With `SDK_INTEROP=required` that is a failure.
pub(crate) fn script(name: &str) -> Option<Command> {
    run_or_skip(&scripts().join(name))
}

/// As [`script`], for a file anywhere. Its extension tells the language.
pub(crate) fn run_or_skip(file: &Path) -> Option<Command> {
    let environment = match is_node(file) {
        true => node(),
        false => python(),
    };
    let environment = match environment {
        Ok(environment) => environment,
        Err(reason) => {
            let required = std::env::var_os("SDK_INTEROP").is_some_and(|value| value == "required");
            assert!(!required, "{reason}");
            super::skipped(format_args!("{}: {reason}", file.display()));
            return None;
        }
    };
    let mut command = Command::new(&environment.interpreter);
    command
        .args(environment.arguments)
        .arg(file)
        .env("NODE_PATH", environment.folder.join("node_modules"))
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    Some(command)
}

/// Whether a script is for Node.js, by its name.
pub(crate) fn is_node(file: impl AsRef<Path>) -> bool {
    let extension = file.as_ref().extension();
    extension.is_some_and(|extension| extension == "js")
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk")
}

/// An interpreter with its SDKs.
#[derive(Clone)]
struct Environment {
    folder: PathBuf,
    interpreter: PathBuf,
    arguments: &'static [&'static str],
}

/// How tests written with Node.js's own runner say what they ran.
const NODE_ARGUMENTS: &[&str] = &["--test-reporter=tap"];

fn python() -> Result<Environment, String> {
    static PYTHON: OnceLock<Result<Environment, String>> = OnceLock::new();
    let make = || {
        let requirements = scripts().join("requirements.txt");
        let folder = environment("sdk-venv", &requirements, "bin/python", |folder| {
            run("python3", &["-m", "venv", "--clear", "."], folder)?;
            let pip = ["-m", "pip", "install", "--quiet"];
            let from = ["--disable-pip-version-check", "-r"];
            let file = [&*requirements.to_string_lossy()];
            run("bin/python", &[&pip[..], &from, &file].concat(), folder)
        })?;
        Ok(Environment {
            interpreter: folder.join("bin/python"),
            arguments: &["-W", "ignore"],
            folder,
        })
    };
    PYTHON.get_or_init(make).clone()
}

fn node() -> Result<Environment, String> {
    static NODE: OnceLock<Result<Environment, String>> = OnceLock::new();
    let make = || {
        // Versions before 18 do not know them.
        let known = [NODE_ARGUMENTS, &["--version"]].concat();
        run("node", &known, &scripts())?;
        let packages = scripts().join("node/package.json");
        let folder = environment("sdk-node", &packages, "node_modules", |folder| {
            fs::copy(&packages, folder.join("package.json")).map_err(|error| error.to_string())?;
            // The SDKs need no install scripts, and a lock file would name a registry.
            let quiet = ["--loglevel=error", "--no-audit", "--no-fund"];
            let install = ["install", "--no-package-lock", "--ignore-scripts"];
            run("npm", &[&install[..], &quiet].concat(), folder)
        })?;
        Ok(Environment {
            interpreter: "node".into(),
            arguments: NODE_ARGUMENTS,
            folder,
        })
    };
    NODE.get_or_init(make).clone()
}

/// A folder of the target directory that `make` has filled with what the file `wanted` lists, and fills again
/// when the list is another or `proof` is not there.
fn environment(
    name: &str,
    wanted: &Path,
    proof: &str,
    make: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let programs = super::rig::program("");
    let folder = programs.parent().unwrap_or(&programs).join(name);
    let wanted = fs::read_to_string(wanted).map_err(|error| error.to_string())?;
    let stamp = folder.join("installed.txt");
    let is_there = folder.join(proof).exists();
    if is_there && fs::read_to_string(&stamp).is_ok_and(|text| text == wanted) {
        return Ok(folder);
    }
    fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    make(&folder)?;
    fs::write(&stamp, wanted).map_err(|error| error.to_string())?;
    Ok(folder)
}

fn run(program: &str, arguments: &[&str], folder: &Path) -> Result<(), String> {
    // A name is looked up in the PATH, a path in the folder.
    let program = match program.contains('/') {
        true => folder.join(program),
        false => program.into(),
    };
    let output = std::process::Command::new(&program)
        .args(arguments)
        .current_dir(folder)
        .output()
        .map_err(|error| format!("cannot run {}: {error}", program.display()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{} {} failed: {}",
            program.display(),
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}
