//! Runs folders of executables: `health.d`, `policy.d`. An operator's own checks, in any language.
//!
//! Executables run one after the other in name order, with a minimal environment, no standard input,
//! and a time limit each; only regular, executable files count. Their last line of output explains a
//! failure.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{io::AsyncReadExt, process::Command};

/// Most of a hook's output that is kept for an explanation, bytes.
const OUTPUT_LIMIT: u64 = 4096;

/// How long a hook's output may still come after its end.
const OUTPUT_GRACE: Duration = Duration::from_millis(200);

type Pipe = std::pin::Pin<Box<dyn tokio::io::AsyncRead + Send>>;

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
        // One that cannot be looked at, such as a dangling link, is kept: it fails by its own name.
        let counts = std::fs::metadata(&path).map_or(true, |meta| {
            meta.is_file() && meta.permissions().mode() & 0o111 != 0
        });
        if counts {
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
        .process_group(0)
        .kill_on_drop(true);
    if let Err(why) = may_run(hook) {
        return failed(why);
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return failed(format!("cannot be started: {error}")),
    };
    let _group = Group(child.id());
    let said = [
        child.stderr.take().map(|pipe| Box::pin(pipe) as Pipe),
        child.stdout.take().map(|pipe| Box::pin(pipe) as Pipe),
    ]
    .map(|pipe| tokio::spawn(head(pipe)));
    let status = match tokio::time::timeout(limit, child.wait()).await {
        Err(_) => {
            return failed(format!(
                "gave no answer within {} s and was killed",
                limit.as_secs()
            ));
        }
        Ok(Err(error)) => return failed(format!("cannot be waited for: {error}")),
        Ok(Ok(status)) => status,
    };
    // What it has said is in the pipes; a child that it left behind may hold them open.
    let mut explanation = None;
    for output in said {
        let text = tokio::time::timeout(OUTPUT_GRACE, output).await;
        let text = text.ok().and_then(Result::ok).unwrap_or_default();
        explanation = explanation.or_else(|| last_line(&text));
    }
    HookResult {
        name,
        code: status.code(),
        explanation: explanation.unwrap_or_else(|| format!("said nothing ({status})")),
    }
}

/// Hooks run with the daemon's rights, so nobody with fewer may be able to change them.
fn may_run(hook: &Path) -> Result<(), String> {
    let own = nix::unistd::geteuid().as_raw();
    let folder = hook.parent().unwrap_or(Path::new("/"));
    for path in [folder, hook] {
        let name = path.display();
        let meta =
            std::fs::metadata(path).map_err(|error| format!("{name} cannot be read: {error}"))?;
        if meta.uid() != 0 && meta.uid() != own {
            return Err(format!(
                "{name} belongs to user {}; give it to root with chown, then it runs",
                meta.uid()
            ));
        }
        if meta.mode() & 0o022 != 0 {
            return Err(format!(
                "{name} can be changed by others (mode {:o}); run `chmod go-w {name}`",
                meta.mode() & 0o7777
            ));
        }
    }
    Ok(())
}

/// The hook's process group: what it started goes with it.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(|pid| i32::try_from(pid).ok()) {
            // Gone already is what is wanted.
            let group = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// The first bytes of a stream; the rest is read and thrown away.
async fn head(stream: Option<Pipe>) -> Vec<u8> {
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
    async fn what_a_hook_leaves_behind_neither_delays_nor_survives_it() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let text = format!("sleep 600 & echo $! > {}; echo fine; exit 0", pid.display());
        let hook = script(dir.path(), "h", 0o755, &text);
        let result = run(&hook, &[], Duration::from_secs(20)).await;
        assert_eq!(result.code, Some(0), "{result:?}");
        let pid = std::fs::read_to_string(pid).unwrap();
        let gone = || !Path::new("/proc").join(pid.trim()).join("exe").exists();
        for _ in 0..100 {
            if gone() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("process {pid} still runs");
    }

    #[tokio::test]
    async fn a_hook_that_others_can_change_does_not_run_and_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let hook = script(dir.path(), "h", 0o775, "exit 0");
        let result = run(&hook, &[], Duration::from_secs(20)).await;
        assert_eq!(result.code, None);
        assert!(result.explanation.contains("chmod go-w"), "{result:?}");
        let hook = script(dir.path(), "h", 0o755, "exit 0");
        assert_eq!(run(&hook, &[], Duration::from_secs(20)).await.code, Some(0));
        let all = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(dir.path(), all).unwrap();
        assert_eq!(run(&hook, &[], Duration::from_secs(20)).await.code, None);
    }

    #[tokio::test]
    async fn a_dangling_link_fails_by_its_name_and_hides_no_other() {
        let dir = tempfile::tempdir().unwrap();
        script(dir.path(), "20-b", 0o755, "");
        std::os::unix::fs::symlink("/nowhere", dir.path().join("10-a")).unwrap();
        let hooks = list(dir.path()).unwrap();
        assert_eq!(hooks.len(), 2);
        let result = run(&hooks[0], &[], Duration::from_secs(20)).await;
        assert_eq!((result.name.as_str(), result.code), ("10-a", None));
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
