//! Prometheus' own checker, promtool, which `tests/promtool.sh` fetches into target/.

use std::{
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use super::skip::skipped;

/// Gives `text` to `promtool check ...` and fails with what it says unless it is content. Without promtool it says
/// `SKIPPED`, or fails with `PROMTOOL=required`.
pub(crate) fn check(what: &[&str], text: &str) {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/promtool/promtool");
    if !program.exists() {
        assert!(
            std::env::var_os("PROMTOOL").is_none_or(|value| value != "required"),
            "{} is missing",
            program.display()
        );
        skipped(format_args!(
            "promtool check {}: {} is missing; tests/promtool.sh fetches it",
            what.join(" "),
            program.display()
        ));
        return;
    }
    let mut child = Command::new(&program)
        .arg("check")
        .args(what)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(text.as_bytes()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}{}\n{text}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
