//! Whose signatures count here.

use super::finding::Finding;
use crate::{
    config::{PlainTrust, TrustConfig},
    image::TrustStore,
    update::failure::Failure,
};

const TOPIC: &str = "keys";

/// What was seen.
pub(super) struct Facts {
    store: Result<Keys, Failure>,
    threshold: usize,
    plain: PlainTrust,
    allow_unsigned: bool,
}

struct Keys {
    trusted: Vec<String>,
    revoked: usize,
    /// Files that are no keys.
    left_out: Vec<String>,
}

pub(super) fn gather(config: &TrustConfig) -> Facts {
    let store = TrustStore::load(&config.key_dirs, &config.revoked_dirs).map(|store| Keys {
        trusted: store.key_ids().iter().map(ToString::to_string).collect(),
        revoked: store.revoked(),
        left_out: store.warnings().to_vec(),
    });
    Facts {
        store: store.map_err(|error| Failure::from(&error)),
        threshold: config.threshold,
        plain: config.plain,
        allow_unsigned: config.allow_unsigned,
    }
}

pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = Vec::new();
    match &facts.store {
        Err(failure) => findings.push(Finding::failure(TOPIC, failure)),
        Ok(keys) => {
            let (count, needed) = (keys.trusted.len(), facts.threshold);
            let plain = match facts.plain {
                PlainTrust::Digest => "; for a plain image the digest in the request will do",
                PlainTrust::Signed => ", plain images too",
            };
            let text = format!(
                "{count} trusted ({}), {} revoked, {needed} must have signed{plain}",
                keys.trusted.join(", "),
                keys.revoked
            );
            findings.push(match count {
                _ if count >= needed => Finding::ok(TOPIC, text),
                0 if facts.allow_unsigned => Finding::ok(TOPIC, "none is trusted, none is needed"),
                0 => Finding::error(
                    TOPIC,
                    "no key is trusted, so that no image can be installed",
                    "put the public key of your images into /etc/fwupdated/keys.d as NAME.pub",
                ),
                _ => Finding::error(
                    TOPIC,
                    format!("{text}: no image can be installed"),
                    "add keys, or lower trust.threshold",
                ),
            });
            for reason in &keys.left_out {
                let advice = "replace or remove that file";
                findings.push(Finding::warning(TOPIC, reason, advice));
            }
        }
    }
    if facts.allow_unsigned {
        findings.push(Finding::warning(
            TOPIC,
            "trust.unsigned = \"allow\": whoever can send a method can install anything",
            "take it out of the configuration; it is for development only",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::finding::Level;

    fn facts(trusted: usize, threshold: usize, allow_unsigned: bool) -> Facts {
        let keys = Keys {
            trusted: vec!["RWQ".to_owned(); trusted],
            revoked: 1,
            left_out: Vec::new(),
        };
        Facts {
            store: Ok(keys),
            threshold,
            plain: PlainTrust::Digest,
            allow_unsigned,
        }
    }

    fn levels(trusted: usize, threshold: usize, allow_unsigned: bool) -> Vec<Level> {
        let found = judge(&facts(trusted, threshold, allow_unsigned));
        found.iter().map(|finding| finding.level).collect()
    }

    #[test]
    fn too_few_keys_are_an_error_and_unsigned_images_a_warning() {
        assert_eq!(levels(2, 2, false), [Level::Ok]);
        assert_eq!(levels(1, 2, false), [Level::Error]);
        assert_eq!(levels(0, 1, false), [Level::Error]);
        assert_eq!(levels(0, 1, true), [Level::Ok, Level::Warning]);
    }

    #[test]
    fn what_vouches_for_a_plain_image_is_told() {
        let mut facts = facts(1, 1, false);
        let told = |facts: &Facts| judge(facts).remove(0).text;
        assert!(told(&facts).ends_with("the digest in the request will do"));
        facts.plain = PlainTrust::Signed;
        assert!(told(&facts).ends_with("must have signed, plain images too"));
    }

    #[test]
    fn a_list_of_revoked_keys_that_cannot_be_read_and_a_file_that_is_no_key_are_told() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x.pub"), "no key").unwrap();
        let mut config = crate::config::Config::built_in().trust;
        config.key_dirs = vec![dir.path().to_owned()];
        config.revoked_dirs.clear();
        let found = judge(&gather(&config));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[1].text.contains("x.pub") && found[1].level == Level::Warning);
        config.revoked_dirs = vec![dir.path().to_owned()];
        let found = judge(&gather(&config));
        assert_eq!(
            (found.len(), found[0].level),
            (1, Level::Error),
            "{found:?}"
        );
    }
}
