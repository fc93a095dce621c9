//! Runs folders of executables: `health.d`, `policy.d`. An operator's own checks, in any language.
//!
//! Executables run one after the other in name order, with a minimal environment, no standard input,
//! and a time limit each; only regular, executable files count. Their last line of output explains a
//! failure.
//!
//! - Hooks run with the daemon's rights. One that somebody else could have written does not run, it fails:
//!   owner of file and folder must be root or the daemon's user, and nobody else may write there.
//! - What cannot be looked at (a dangling link) fails under its name; it neither hides nor skips anything.
//! - A hook has ended when its process has, whatever it leaves in the background. One that is given up is
//!   killed together with its children.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    pin::pin,
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, geteuid},
};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
};

/// Most of a hook's output that is kept for an explanation, bytes.
const OUTPUT_LIMIT: usize = 4096;
/// How long output may still come after a hook's end: a child that it left behind may hold the pipe open.
const OUTPUT_GRACE: Duration = Duration::from_millis(200);

/// An executable in a folder of hooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    path: PathBuf,
    /// Why it must not run.
    fault: Option<String>,
}

impl Hook {
    /// The file's name.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }
}

/// How one hook ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookResult {
    /// The file's name.
    pub name: String,
    /// Its exit code; `None` when it must not run, was killed, timed out or could not be started.
    pub code: Option<i32>,
    /// Its last line of output, or why it has no exit code.
    pub explanation: String,
}

/// The executables in `dir`, by name. A folder that does not exist is empty.
///
/// # Errors
/// When the folder exists and cannot be read.
pub fn list(dir: &Path) -> std::io::Result<Vec<Hook>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let folder_fault = fault(dir, &std::fs::metadata(dir)?);
    let mut hooks = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let fault = match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => {
                folder_fault.clone().or_else(|| fault_of_file(&path, &meta))
            }
            Ok(_) => continue,
            Err(error) => Some(format!("cannot be looked at ({error}); mend or remove it")),
        };
        hooks.push(Hook { path, fault });
    }
    hooks.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(hooks)
}

/// Why the file must not run: itself, or the folder that a link leads to.
fn fault_of_file(path: &Path, meta: &std::fs::Metadata) -> Option<String> {
    if let Some(fault) = fault(path, meta) {
        return Some(fault);
    }
    let is_link = std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink());
    let home = std::fs::canonicalize(path).ok().filter(|_| is_link)?;
    let home = home.parent()?;
    fault(home, &std::fs::metadata(home).ok()?)
}

/// Why nothing may run that lies at, or in, `path`.
fn fault(path: &Path, meta: &std::fs::Metadata) -> Option<String> {
    let path = path.display();
    let us = geteuid().as_raw();
    if meta.uid() != 0 && meta.uid() != us {
        let owner = meta.uid();
        return Some(format!(
            "does not run, because {path} belongs to user {owner}, not to root; `chown root {path}`"
        ));
    }
    let mode = meta.permissions().mode() & 0o7777;
    (mode & 0o022 != 0).then(|| {
        format!("does not run, because others may write to {path} (mode {mode:04o}); `chmod go-w {path}`")
    })
}

/// A child that leads a process group. All of the group is killed when this is dropped before the child has
/// ended; as long as the child is not waited for, nobody else can have the group's number.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.0.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}

/// Runs `hook` for at most `limit`, with `variables` added to its environment. Dropping the future kills it.
pub async fn run(hook: &Hook, variables: &[(&str, String)], limit: Duration) -> HookResult {
    let name = hook.name();
    let failed = |explanation: String| HookResult {
        name: name.clone(),
        code: None,
        explanation,
    };
    if let Some(fault) = &hook.fault {
        return failed(fault.clone());
    }
    let mut command = Command::new(&hook.path);
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
    let mut group = match command.spawn() {
        Ok(child) => Group(child),
        Err(error) => return failed(format!("cannot be started: {error}")),
    };
    let (stdout, stderr) = (group.0.stdout.take(), group.0.stderr.take());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let ended = {
        // Read both to their ends: a hook must not block on a full pipe, nor we on a silent one.
        let mut reading =
            pin!(async { tokio::join!(head(stdout, &mut out), head(stderr, &mut err)) });
        let mut is_read = false;
        let ended = tokio::time::timeout(limit, async {
            loop {
                tokio::select! {
                    status = group.0.wait() => return status,
                    _ = &mut reading, if !is_read => is_read = true,
                }
            }
        })
        .await;
        if ended.is_ok() && !is_read {
            let _ = tokio::time::timeout(OUTPUT_GRACE, reading).await;
        }
        ended
    };
    match ended {
        Err(_) => failed(format!(
            "gave no answer within {} s and was killed",
            limit.as_secs()
        )),
        Ok(Err(error)) => failed(format!("cannot be waited for: {error}")),
        Ok(Ok(status)) => {
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

/// Reads a stream to its end; its first bytes are `kept`, whenever the reading is given up.
async fn head(stream: Option<impl tokio::io::AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut piece = [0; 1024];
    // An unreadable pipe only costs the explanation.
    while let Ok(length @ 1..) = stream.read(&mut piece).await {
        let room = OUTPUT_LIMIT - kept.len();
        kept.extend_from_slice(&piece[..length.min(room)]);
    }
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

    fn set_mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn script(dir: &Path, name: &str, mode: u32, text: &str) -> Hook {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        set_mode(&path, mode);
        Hook { path, fault: None }
    }

    async fn run_all(dir: &Path) -> Vec<HookResult> {
        let mut results = Vec::new();
        for hook in list(dir).unwrap() {
            results.push(run(&hook, &[], Duration::from_secs(20)).await);
        }
        results
    }

    /// Whether the process still runs; one that only waits to be reaped does not.
    fn runs(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap().starts_with(" Z"))
    }

    /// Waits, for a bounded time, until the process is gone.
    async fn ends(pid: &str) -> bool {
        for _ in 0..200 {
            if !runs(pid) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }

    #[test]
    fn only_executables_count_and_they_come_in_name_order() {
        let dir = tempfile::tempdir().unwrap();
        script(dir.path(), "20-b", 0o755, "");
        script(dir.path(), "10-a", 0o755, "");
        script(dir.path(), "README", 0o644, "");
        let names: Vec<_> = list(dir.path()).unwrap().iter().map(Hook::name).collect();
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

    #[tokio::test]
    async fn a_hook_has_ended_with_its_process_whatever_it_leaves_behind() {
        let dir = tempfile::tempdir().unwrap();
        let text = "sleep 60 & echo $!\nexit 0";
        let hook = script(dir.path(), "h", 0o755, text);
        let result = run(&hook, &[], Duration::from_secs(20)).await;
        assert_eq!(result.code, Some(0), "{result:?}");
        // Said before the end, though the pipe is still open; and the child is the operator's business.
        let pid = result.explanation;
        assert!(runs(&pid), "{pid}");
        let pid = Pid::from_raw(pid.parse().unwrap());
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    }

    #[tokio::test]
    async fn a_hook_that_is_given_up_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let text = format!(
            "sleep 600 & echo $! >{0}.new; mv {0}.new {0}; wait",
            file.display()
        );
        let hook = script(dir.path(), "h", 0o755, &text);
        // By its own limit; and by whoever waits for it, the health gate's deadline for example.
        for own_limit in [true, false] {
            let limit = Duration::from_secs(if own_limit { 2 } else { 600 });
            let result = tokio::time::timeout(Duration::from_secs(4), run(&hook, &[], limit)).await;
            assert_eq!(result.is_ok(), own_limit, "{result:?}");
            let pid = std::fs::read_to_string(&file).unwrap();
            assert!(ends(&pid).await, "the child {pid} still runs");
        }
    }

    #[tokio::test]
    async fn what_others_may_write_does_not_run_and_fails_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let ran = dir.path().join("ran");
        let text = format!("touch {}", ran.display());
        for (name, mode) in [("10-group", 0o775), ("20-all", 0o757)] {
            script(dir.path(), name, mode, &text);
        }
        script(dir.path(), "30-fine", 0o755, "");
        let results = run_all(dir.path()).await;
        let codes: Vec<_> = results.iter().map(|result| result.code).collect();
        assert_eq!(codes, [None, None, Some(0)]);
        assert!(!ran.exists());
        let explanation = &results[0].explanation;
        assert!(explanation.contains("(mode 0775)"), "{explanation}");

        // The folder: whoever may write there may put anything there.
        set_mode(dir.path(), 0o775);
        let result = run_all(dir.path()).await.pop().unwrap();
        assert_eq!((result.name.as_str(), result.code), ("30-fine", None));
        let named = format!("`chmod go-w {}`", dir.path().display());
        assert!(result.explanation.contains(&named), "{result:?}");
    }

    #[tokio::test]
    async fn a_link_counts_by_what_it_leads_to_and_a_dangling_one_fails_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let target = script(elsewhere.path(), "check", 0o755, "exit 0").path;
        let link = |target: &Path, name: &str| {
            std::os::unix::fs::symlink(target, dir.path().join(name)).unwrap();
        };
        link(&target, "10-link");
        link(Path::new("/nowhere/at/all"), "20-dangling");
        script(dir.path(), "30-fine", 0o755, "");
        let results = run_all(dir.path()).await;
        let codes: Vec<_> = results.iter().map(|result| result.code).collect();
        assert_eq!(codes, [Some(0), None, Some(0)]);
        assert_eq!(results[1].name, "20-dangling");
        assert!(results[1].explanation.contains("cannot be looked at"));

        set_mode(elsewhere.path(), 0o777);
        assert_eq!(run_all(dir.path()).await[0].code, None);
    }

    #[tokio::test]
    async fn a_hook_of_another_user_does_not_run() {
        if !geteuid().is_root() {
            // Only root may give a file away; a file of root's is run by anyone.
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let hook = script(dir.path(), "h", 0o755, "");
        std::os::unix::fs::chown(&hook.path, Some(4711), None).unwrap();
        let result = run_all(dir.path()).await.pop().unwrap();
        assert_eq!(result.code, None);
        assert!(result.explanation.contains("belongs to user 4711"));
    }
}
