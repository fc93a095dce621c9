//! Whether files with secrets are nobody else's to read.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::finding::Finding;
use crate::config::{Config, FetchProxy};

const TOPIC: &str = "secrets";

/// A file that the configuration names.
pub(super) struct Secret {
    key: &'static str,
    file: PathBuf,
    /// Its mode; `None` when there is no such file.
    mode: io::Result<Option<u32>>,
}

pub(super) fn gather(config: &Config) -> Vec<Secret> {
    let (hub, fetch) = (&config.hub, &config.fetch);
    let provisioning = config.provisioning.as_ref();
    let fetch_proxy = match &fetch.proxy {
        FetchProxy::Through(proxy) => Some(proxy),
        FetchProxy::Environment | FetchProxy::Direct => None,
    };
    let authorization =
        |proxy: Option<&crate::config::ProxyConfig>| proxy?.authorization_file.clone();
    let named = [
        (
            "hub.connection_string_file",
            hub.connection_string_file.clone(),
        ),
        ("hub.private_key_file", hub.private_key_file.clone()),
        (
            "hub.proxy_authorization_file",
            authorization(hub.proxy.as_ref()),
        ),
        (
            "provisioning.symmetric_key_file",
            provisioning.and_then(|it| it.symmetric_key_file.clone()),
        ),
        ("fetch.authorization_file", fetch.authorization_file.clone()),
        (
            "fetch.client_key_file",
            fetch
                .client_certificate
                .as_ref()
                .map(|it| it.key_file.clone()),
        ),
        ("fetch.proxy_authorization_file", authorization(fetch_proxy)),
    ];
    let secrets = named.into_iter().filter_map(|(key, file)| {
        let file = file?;
        let mode = mode(&file);
        Some(Secret { key, file, mode })
    });
    secrets.collect()
}

fn mode(file: &Path) -> io::Result<Option<u32>> {
    match fs::metadata(file) {
        Ok(meta) => Ok(Some(meta.mode())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn judge(secrets: &[Secret]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut well = 0;
    for Secret { key, file, mode } in secrets {
        let file = file.display();
        match mode {
            // What a missing file costs is the business of whoever needs it.
            Ok(None) => {}
            Ok(Some(mode)) if mode & 0o007 != 0 => findings.push(Finding::warning(
                TOPIC,
                format!("every user of this system can read or change {file} ({key}), which holds a secret"),
                format!("chmod 600 {file}"),
            )),
            Ok(Some(_)) => well += 1,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                findings.push(Finding::forbidden(TOPIC, &format!("the folder of {file} ({key})")));
            }
            Err(error) => findings.push(Finding::error(
                TOPIC,
                format!("{file} ({key}) cannot be looked at: {error}"),
                "correct the path, or the file system",
            )),
        }
    }
    if findings.is_empty() {
        let text = match well {
            0 => "no file with a secret is there".to_owned(),
            1 => "the one file with a secret is closed to others".to_owned(),
            _ => format!("all {well} files with secrets are closed to others"),
        };
        findings.push(Finding::ok(TOPIC, text));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::finding::Level;

    fn secret(mode: io::Result<Option<u32>>) -> Secret {
        Secret {
            key: "hub.private_key_file",
            file: "/k".into(),
            mode,
        }
    }

    #[test]
    fn only_what_others_can_read_is_warned_about() {
        let found = judge(&[secret(Ok(Some(0o100_640))), secret(Ok(None))]);
        assert_eq!((found.len(), found[0].level), (1, Level::Ok));
        let found = judge(&[secret(Ok(Some(0o100_644))), secret(Ok(Some(0o100_600)))]);
        assert_eq!((found.len(), found[0].level), (1, Level::Warning));
        assert_eq!(found[0].advice.as_deref(), Some("chmod 600 /k"));
        let found = judge(&[secret(Err(io::ErrorKind::PermissionDenied.into()))]);
        assert_eq!(found[0].level, Level::Unknown);
    }
}
