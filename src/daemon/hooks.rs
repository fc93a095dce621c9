//! Runs folders of executables: `health.d`, `policy.d`. An operator's own checks, in any language.
//!
//! Executables run one after the other in name order, with a minimal environment, no standard input,
//! and a time limit each; only regular, executable files count. Their last line of output explains a
//! failure.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{io::AsyncReadExt, process::Command};

/// Most of a hook's output that is kept for an explanation, bytes.
const OUTPUT_LIMIT: u64 = 4096;

/// How one hook ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookResult {
    /// The file's name.
    pub name: String,
    /// Its exit code; `None` when it was killed, timed out or could not be started.
    pub code: Option<i32>,
    /// Its last line of output, or why it has no exit code.
    pub explanation: String,
}

/// The executables in `dir`, by name. A folder that does not exist is empty.
///
/// # Errors
/// When the folder exists and cannot be read.
pub fn list(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut hooks = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let meta = std::fs::metadata(&path)?;
        if meta.is_file() && meta.permissions().mode() & 0o111 != 0 {
            hooks.push(path);
        }
    }
    hooks.sort();
    Ok(hooks)
}

/// Runs `hook` for at most `limit`, with `variables` added to its environment.
pub async fn run(hook: &Path, variables: &[(&str, String)], limit: Duration) -> HookResult {
    let name = hook
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let failed = |explanation: String| HookResult {
        name: name.clone(),
        code: None,
        explanation,
    };
    let mut command = Command::new(hook);
    command
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .envs(variables.iter().map(|(key, value)| (*key, value.as_str())))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return failed(format!("cannot be started: {error}")),
    };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let ended = tokio::time::timeout(limit, async {
        // Read both to their ends: a hook must not block on a full pipe, nor we on a silent one.
        let (out, err, status) = tokio::join!(head(stdout), head(stderr), child.wait());
        (out, err, status)
    })
    .await;
    match ended {
        Err(_) => failed(format!(
            "gave no answer within {} s and was killed",
            limit.as_secs()
        )),
        Ok((_, _, Err(error))) => failed(format!("cannot be waited for: {error}")),
        Ok((out, err, Ok(status))) => {
            let said = last_line(&err).or_else(|| last_line(&out));
            let explanation = said.unwrap_or_else(|| format!("said nothing ({status})"));
            HookResult {
                name,
                code: status.code(),
                explanation,
            }
        }
    }
}

/// The first bytes of a stream; the rest is read and thrown away.
async fn head(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> Vec<u8> {
    let Some(mut stream) = stream else {
        return Vec::new();
    };
    let mut kept = Vec::new();
    // An unreadable pipe only costs the explanation.
    let _ = (&mut stream)
        .take(OUTPUT_LIMIT)
        .read_to_end(&mut kept)
        .await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    kept
}

fn last_line(output: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(output);
    let line = text
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| !line.is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(dir: &Path, name: &str, mode: u32, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn only_executables_count_and_they_come_in_name_order() {
        let dir = tempfile::tempdir().unwrap();
        script(dir.path(), "20-b", 0o755, "");
        script(dir.path(), "10-a", 0o755, "");
        script(dir.path(), "README", 0o644, "");
        let names: Vec<_> = list(dir.path())
            .unwrap()
            .iter()
            .map(|p| p.file_name().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["10-a", "20-b"]);
        assert!(list(&dir.path().join("absent")).unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_failing_hook_explains_itself_by_its_last_line() {
        let dir = tempfile::tempdir().unwrap();
        let hook = script(
            dir.path(),
            "h",
            0o755,
            "echo first; echo \"port $PORT is closed\" >&2; exit 3",
        );
        let result = run(&hook, &[("PORT", "80".into())], Duration::from_secs(20)).await;
        assert_eq!(result.code, Some(3));
        assert_eq!(result.explanation, "port 80 is closed");
    }

    #[tokio::test]
    async fn a_hook_that_hangs_is_killed_and_one_that_floods_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let hook = script(dir.path(), "h", 0o755, "exec sleep 600");
        let result = run(&hook, &[], Duration::from_millis(200)).await;
        assert_eq!(result.code, None);
        assert!(
            result.explanation.contains("killed"),
            "{}",
            result.explanation
        );
        let flood = script(dir.path(), "f", 0o755, "head -c 1000000 /dev/zero; exit 0");
        assert_eq!(
            run(&flood, &[], Duration::from_secs(20)).await.code,
            Some(0)
        );
    }
}
