//! The documentation points to what exists: its links, and the tests that it names as proof; its alerts are ones that
//! Prometheus takes.

#[path = "support/promtool.rs"]
mod promtool;
#[path = "support/skip.rs"]
mod skip;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` whose name ends like `extension`.
fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            files(&path, extension, found);
        } else if name.ends_with(extension) {
            found.push(path);
        }
    }
}

fn pages() -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(root(), ".md", &mut found);
    assert!(found.len() > 10, "{found:?}");
    found
}

/// The targets of `[text](target)`, outside of code blocks.
fn links(text: &str) -> Vec<String> {
    let mut code = false;
    let mut found = Vec::new();
    for line in text.lines() {
        code ^= line.trim_start().starts_with("```");
        if code {
            continue;
        }
        let targets = line.split("](").skip(1);
        found.extend(targets.filter_map(|rest| rest.split(')').next().map(str::to_owned)));
    }
    found
}

/// A heading's anchor, as the usual renderers make it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    let mut seen = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            let (file, fragment) = link.split_once('#').unwrap_or((&link, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().unwrap().join(file),
            };
            let anchors = || {
                let text = fs::read_to_string(&target).unwrap_or_default();
                let headings = text.lines().filter(|line| line.starts_with('#'));
                headings.map(anchor).collect::<Vec<_>>()
            };
            let leads = target.exists()
                && (fragment.is_empty() || anchors().contains(&fragment.to_owned()));
            if !leads {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(seen > 30, "only {seen} links found");
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_test_that_is_named_as_proof_exists() {
    let mut sources = Vec::new();
    files(root(), ".rs", &mut sources);
    let functions: BTreeSet<String> = sources
        .iter()
        .flat_map(|file| {
            let text = fs::read_to_string(file).unwrap();
            let names = text.split("fn ").skip(1);
            names
                .filter_map(|rest| rest.split(['(', '<']).next().map(str::to_owned))
                .collect::<Vec<_>>()
        })
        .collect();
    let mut missing = Vec::new();
    let mut seen = 0;
    let mut explanations = Vec::new();
    files(&root().join("docs/explanation"), ".md", &mut explanations);
    for page in explanations {
        let text = fs::read_to_string(&page).unwrap();
        // Names of tests are sentences; other identifiers have fewer words.
        let named = text
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| word.matches('_').count() >= 4 && !word.contains(['/', ' ']));
        for name in named {
            seen += 1;
            if !functions.contains(name) {
                missing.push(format!("{}: {name}", page.display()));
            }
        }
    }
    assert!(seen > 80, "only {seen} tests are named");
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn prometheus_takes_the_alerts() {
    let page = fs::read_to_string(root().join("docs/reference/metrics.md")).unwrap();
    let (_, rest) = page.split_once("```yaml\n").unwrap();
    let (alerts, _) = rest.split_once("```").unwrap();
    let rules = alerts.replace('\n', "\n  ");
    let file = format!("groups:\n- name: fwupdated\n  rules:\n  {rules}\n");
    promtool::check(&["rules", "/dev/stdin"], &file);
}
