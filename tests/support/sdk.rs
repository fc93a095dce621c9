//! The Python environment with Azure's official SDKs, made once in the target directory.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The interpreter; `None`, said loudly, where there is no Python or no package index. With
/// `SDK_INTEROP=required` that is a failure.
pub(crate) fn python_or_skip(what: &str) -> Option<PathBuf> {
    match python() {
        Ok(python) => Some(python),
        Err(reason) => {
            let required = std::env::var_os("SDK_INTEROP").is_some_and(|value| value == "required");
            assert!(!required, "{reason}");
            super::skipped(format_args!("{what}: {reason}"));
            None
        }
    }
}

/// Where the scripts are.
pub(crate) fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk")
}

/// The interpreter of an environment with the pinned SDKs, made when missing or outdated.
fn python() -> Result<PathBuf, String> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PYTHON.get_or_init(make_environment).clone()
}

fn make_environment() -> Result<PathBuf, String> {
    let programs = super::rig::program("");
    let environment = programs.parent().unwrap_or(&programs).join("sdk-venv");
    let python = environment.join("bin/python");
    let requirements = scripts().join("requirements.txt");
    let wanted = std::fs::read_to_string(&requirements).map_err(|error| error.to_string())?;
    let stamp = environment.join("installed.txt");
    if python.exists() && std::fs::read_to_string(&stamp).is_ok_and(|text| text == wanted) {
        return Ok(python);
    }
    let run = |program: &Path, arguments: &[&str]| {
        let output = std::process::Command::new(program)
            .args(arguments)
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
    };
    let text = |path: &Path| path.to_string_lossy().into_owned();
    run(
        Path::new("python3"),
        &["-m", "venv", "--clear", &text(&environment)],
    )?;
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
    ];
    run(&python, &[&pip[..], &[&text(&requirements)]].concat())?;
    std::fs::write(&stamp, wanted).map_err(|error| error.to_string())?;
    Ok(python)
}
