//! The device's identity, from files: what the session asks for before each attempt.
//!
//! A systemd credential comes before the file that the configuration names. A connection string comes before
//! provisioning. Every file is read anew each time, so a rotated secret counts without a restart; the TLS
//! configuration is made anew only when something it is made of has changed. What the provisioning service
//! assigned is kept in `assignment.json`; a damaged one costs no more than a registration.

use std::{
    collections::HashSet,
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::{
    config::{Config, ProvisioningConfig},
    hub::{
        credentials::{Credentials, Secret},
        provisioning::{Assignment, Enrollment},
        sas::SymmetricKey,
        session::{Identity, IdentitySource, ProxyAuthorization, Stamp, Validity},
    },
    platform::{
        device_certificate::{CertificateError, DeviceCertificate, Read},
        state_file::StateFile,
        tls,
    },
    update::{
        events,
        failure::{Class, Failure},
        status::HubStatus,
    },
};

/// How long the system's CA certificates count before they are read again.
const ROOTS_COUNT: Duration = Duration::from_secs(24 * 3600);

/// Most of a file that is read: ours have some KiB.
const MAX_FILE: u64 = 1 << 20;

/// The identity in the files that the configuration names.
pub struct FileIdentity {
    config: Arc<Config>,
    /// `$CREDENTIALS_DIRECTORY`.
    credentials: Option<PathBuf>,
    assignment: StateFile,
    tls: Mutex<Option<Tls>>,
    /// What was said already.
    said: Mutex<HashSet<String>>,
}

/// A TLS configuration and what it was made of.
struct Tls {
    stamp: Stamp,
    made: Instant,
    config: Arc<rustls::ClientConfig>,
}

/// `assignment.json`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    id_scope: String,
    registration_id: String,
    #[serde(flatten)]
    assignment: Assignment,
}

impl FileIdentity {
    /// The identity that `config` and the systemd credentials in `credentials` give.
    #[must_use]
    pub fn new(config: Arc<Config>, credentials: Option<PathBuf>) -> Self {
        let assignment = StateFile::new(config.state.directory.join("assignment.json"));
        Self {
            config,
            credentials,
            assignment,
            tls: Mutex::default(),
            said: Mutex::default(),
        }
    }

    /// What is known before the first connection.
    #[must_use]
    pub fn status(&self) -> HubStatus {
        let since = Some(jiff::Timestamp::now());
        match self.read() {
            Ok(Identity { device, .. }) => HubStatus {
                host: device.as_ref().map(|device| device.hub().to_owned()),
                device_id: device.as_ref().map(|device| device.device_id().to_owned()),
                authentication: device.map(|device| device.secret().kind().to_owned()),
                since,
                ..HubStatus::default()
            },
            Err(failure) => HubStatus {
                since,
                error: Some(failure),
                ..HubStatus::default()
            },
        }
    }

    /// The credential `name`, or the file that the configuration names; `None` when neither is there.
    fn content(&self, name: &str, file: Option<&Path>) -> Result<Option<Content>, Unreadable> {
        let credential = self.credentials.as_ref().map(|folder| folder.join(name));
        for path in credential.as_deref().into_iter().chain(file) {
            if let Some(bytes) = read_if_there(path)? {
                let from_credential = credential.as_deref() == Some(path);
                if !from_credential {
                    self.warn_if_open(path);
                }
                return Ok(Some(Content {
                    file: path.to_owned(),
                    bytes,
                }));
            }
        }
        Ok(None)
    }

    /// Secrets are nobody else's to read. Said, not refused: a device that cannot be reached helps nobody.
    fn warn_if_open(&self, file: &Path) {
        let mode = fs::metadata(file).map(|meta| meta.permissions().mode());
        if mode.is_ok_and(|mode| mode & 0o007 != 0) {
            let file = file.display();
            self.warn_once(&Failure::new(
                "hub-secret-readable",
                Class::Wait,
                format!("every user of this system can read {file}, which holds a secret; chmod 600 {file}"),
            ));
        }
    }

    fn warn_once(&self, failure: &Failure) {
        if lock(&self.said).insert(failure.message.clone()) {
            warn!(
                message_id = events::PROBLEM_FOUND,
                fwupdated_error_code = failure.code,
                "{failure}"
            );
        }
    }

    fn notice_once(&self, text: &str) {
        if lock(&self.said).insert(text.to_owned()) {
            info!("{text}");
        }
    }

    /// The device's certificate; `None` when no file of it is there.
    fn certificate(&self, stamp: &mut Stamper) -> Result<Option<DeviceCertificate>, Failure> {
        let hub = &self.config.hub;
        let failure = |error: CertificateError| Failure::from(&error);
        let unreadable =
            |Unreadable { file, source }| failure(CertificateError::Unreadable { file, source });
        // A certificate may be read by everybody.
        let public = self
            .credentials
            .as_ref()
            .map(|folder| folder.join("device_certificate"));
        let mut certificate = None;
        for path in public
            .as_deref()
            .into_iter()
            .chain(hub.certificate_file.as_deref())
        {
            if let Some(bytes) = read_if_there(path).map_err(unreadable)? {
                certificate = Some(Content {
                    file: path.to_owned(),
                    bytes,
                });
                break;
            }
        }
        let key = self
            .content("device_key", hub.private_key_file.as_deref())
            .map_err(unreadable)?;
        let (certificate, key) = match (certificate, key) {
            (None, None) if hub.certificate_file.is_none() => return Ok(None),
            (Some(certificate), Some(key)) => (certificate, key),
            (certificate, _) => {
                let (missing, credential) = match certificate {
                    None => (&hub.certificate_file, "device_certificate"),
                    Some(_) => (&hub.private_key_file, "device_key"),
                };
                let file = missing.clone().unwrap_or_else(|| {
                    self.credentials
                        .clone()
                        .unwrap_or_default()
                        .join(credential)
                });
                let source = io::ErrorKind::NotFound.into();
                return Err(failure(CertificateError::Unreadable { file, source }));
            }
        };
        stamp.add(&certificate.bytes);
        stamp.add(&key.bytes);
        DeviceCertificate::parse(certificate.as_read(), key.as_read())
            .map(Some)
            .map_err(failure)
    }

    fn with_connection_string(
        &self,
        content: &Content,
        stamp: &mut Stamper,
    ) -> Result<Found, Failure> {
        stamp.add(&content.bytes);
        let text = String::from_utf8_lossy(&content.bytes);
        let credentials: Credentials = text.parse().map_err(|error| Failure::from(&error))?;
        if self.config.provisioning.is_some() {
            let file = content.file.display();
            let text =
                format!("[provisioning] is not used: there is a connection string in {file}");
            self.notice_once(&text);
        }
        let certificate = match credentials.secret() {
            Secret::Certificate => Some(self.certificate(stamp)?.ok_or_else(no_certificate)?),
            Secret::Key(_) => {
                if self.config.hub.certificate_file.is_some() {
                    let text = "hub.certificate_file is not used: the connection string has a symmetric key";
                    self.notice_once(text);
                }
                None
            }
        };
        Ok(Found {
            device: Some(credentials),
            enrollment: None,
            certificate,
        })
    }

    fn with_provisioning(
        &self,
        config: &ProvisioningConfig,
        stamp: &mut Stamper,
    ) -> Result<Found, Failure> {
        let invalid = |text: String| Failure::new("dps-configuration", Class::Final, text);
        let unreadable = |Unreadable { file, source }: Unreadable| {
            invalid(format!("{} cannot be read: {source}", file.display()))
        };
        let key_file = config.symmetric_key_file.as_deref();
        let key = self
            .content("provisioning_key", key_file)
            .map_err(unreadable)?;
        let (secret, certificate) = match (key, key_file) {
            (Some(content), _) => {
                stamp.add(&content.bytes);
                let text = String::from_utf8_lossy(&content.bytes);
                let key = SymmetricKey::from_base64(&text).map_err(|error| {
                    let file = content.file.display();
                    invalid(format!("{file} holds no key of this device: {error}"))
                })?;
                (Secret::Key(key), None)
            }
            (None, Some(file)) => {
                return Err(invalid(format!(
                    "there is no {}, which should hold this device's symmetric key",
                    file.display()
                )));
            }
            (None, None) => {
                let certificate = self.certificate(stamp)?.ok_or_else(|| {
                    invalid(
                        "the device has neither a symmetric key nor a certificate to be provisioned with; name one \
                         in provisioning.symmetric_key_file or hub.certificate_file"
                            .to_owned(),
                    )
                })?;
                (Secret::Certificate, Some(certificate))
            }
        };
        let name = certificate.as_ref().and_then(|c| c.common_name.as_deref());
        let registration_id = config.registration_id.as_deref().or(name).ok_or_else(|| {
            invalid(
                "the device has no name for the provisioning service; set provisioning.registration_id"
                    .to_owned(),
            )
        })?;
        let registration_id = match registration_id.contains(['/', '+', '#', '?', '&']) {
            false => registration_id.to_owned(),
            true => {
                return Err(invalid(format!(
                    "the certificate's common name `{registration_id}` cannot be a registration id; set \
                     provisioning.registration_id"
                )));
            }
        };
        let payload = config.payload_file.as_deref().map(|file| {
            let content = read_if_there(file).map_err(unreadable)?;
            let bytes =
                content.ok_or_else(|| invalid(format!("there is no {}", file.display())))?;
            stamp.add(&bytes);
            serde_json::from_slice(&bytes)
                .map_err(|error| invalid(format!("{} is not JSON: {error}", file.display())))
        });
        let enrollment = Enrollment {
            id_scope: config.id_scope.clone(),
            registration_id,
            payload: payload.transpose()?,
            secret,
        };
        Ok(Found {
            device: self.assigned(&enrollment),
            enrollment: Some(enrollment),
            certificate,
        })
    }

    /// What was assigned to `enrollment` before.
    fn assigned(&self, enrollment: &Enrollment) -> Option<Credentials> {
        let kept = match self.assignment.load::<Kept>() {
            Ok(kept) => kept?,
            Err(error) => {
                // A registration makes it good.
                self.warn_once(&Failure::from(&error));
                return None;
            }
        };
        let ours = kept.id_scope == enrollment.id_scope
            && kept.registration_id == enrollment.registration_id;
        ours.then(|| kept.assignment.credentials(enrollment.secret.clone()).ok())
            .flatten()
    }

    fn tls(
        &self,
        certificate: Option<&DeviceCertificate>,
        stamp: Stamp,
    ) -> Result<Arc<rustls::ClientConfig>, Failure> {
        let ca_file = self.config.hub.ca_file.as_deref();
        let mut tls = lock(&self.tls);
        if let Some(made) = &*tls
            && made.stamp == stamp
            && (ca_file.is_some() || made.made.elapsed() < ROOTS_COUNT)
        {
            return Ok(Arc::clone(&made.config));
        }
        let config = tls::roots(ca_file)
            .and_then(|roots| tls::client_config_as(roots, certificate))
            .map_err(|error| Failure::from(&error))?;
        *tls = Some(Tls {
            stamp,
            made: Instant::now(),
            config: Arc::clone(&config),
        });
        Ok(config)
    }

    fn proxy_authorization(
        &self,
        stamp: &mut Stamper,
    ) -> Result<Option<ProxyAuthorization>, Failure> {
        let proxy = self.config.hub.proxy.as_ref();
        let Some(file) = proxy.and_then(|proxy| proxy.authorization_file.as_deref()) else {
            return Ok(None);
        };
        let invalid = |why: String| {
            let file = file.display();
            let text = format!("hub.proxy_authorization_file {file} cannot be used: {why}");
            Failure::new("hub-proxy-authorization-file", Class::Final, text)
        };
        let bytes = read_if_there(file)
            .map_err(|error| invalid(error.source.to_string()))?
            .ok_or_else(|| invalid("it does not exist".to_owned()))?;
        self.warn_if_open(file);
        stamp.add(&bytes);
        let text = String::from_utf8_lossy(&bytes);
        let authorization = ProxyAuthorization::new(&text)
            .ok_or_else(|| invalid("it must hold `user:password`".to_owned()))?;
        Ok(Some(authorization))
    }
}

impl IdentitySource for FileIdentity {
    fn read(&self) -> Result<Identity, Failure> {
        let mut stamp = Stamper::new();
        let file = self.config.hub.connection_string_file.as_deref();
        let text =
            self.content("connection_string", file)
                .map_err(|Unreadable { file, source }| {
                    missing(format!(
                        "the device connection string cannot be read from {}: {source}",
                        file.display()
                    ))
                })?;
        let found = match (text, &self.config.provisioning) {
            (Some(content), _) => self.with_connection_string(&content, &mut stamp)?,
            (None, Some(config)) => self.with_provisioning(config, &mut stamp)?,
            (None, None) => {
                let place = match file {
                    Some(file) => format!("there is no {}", file.display()),
                    None => "hub.connection_string_file is empty".to_owned(),
                };
                return Err(missing(format!(
                    "no device identity: {place}. Put the device connection string there, or set up [provisioning]; `fwupdatectl config init` does either"
                )));
            }
        };
        let proxy_authorization = self.proxy_authorization(&mut stamp)?;
        if let Some(file) = &self.config.hub.ca_file {
            // One that cannot be read is told when it is used.
            stamp.add(&fs::read(file).unwrap_or_default());
        }
        let stamp = stamp.finish();
        let certificate = found.certificate.as_ref();
        Ok(Identity {
            tls: self.tls(certificate, stamp)?,
            certificate: certificate.map(|certificate| Validity {
                from: certificate.valid_from,
                to: certificate.valid_to,
            }),
            device: found.device,
            enrollment: found.enrollment,
            proxy_authorization,
            stamp,
        })
    }

    fn keep(&self, enrollment: &Enrollment, assignment: &Assignment) -> Result<(), Failure> {
        let kept = Kept {
            id_scope: enrollment.id_scope.clone(),
            registration_id: enrollment.registration_id.clone(),
            assignment: assignment.clone(),
        };
        self.assignment
            .save(&kept)
            .map_err(|error| Failure::from(&error))
    }
}

/// What the files say.
struct Found {
    device: Option<Credentials>,
    enrollment: Option<Enrollment>,
    certificate: Option<DeviceCertificate>,
}

struct Content {
    file: PathBuf,
    bytes: Vec<u8>,
}

impl Content {
    fn as_read(&self) -> Read<'_> {
        Read {
            file: &self.file,
            bytes: &self.bytes,
        }
    }
}

#[derive(Debug)]
struct Unreadable {
    file: PathBuf,
    source: io::Error,
}

/// The content of `file`; `None` when there is no such file.
fn read_if_there(file: &Path) -> Result<Option<Vec<u8>>, Unreadable> {
    use io::Read as _;
    let read = || {
        let mut bytes = Vec::new();
        fs::File::open(file)?
            .take(MAX_FILE)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if io::Error::kind(&error) == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Unreadable {
            file: file.to_owned(),
            source,
        }),
    }
}

fn missing(text: String) -> Failure {
    Failure::new("hub-identity-missing", Class::Wait, text)
}

fn no_certificate() -> Failure {
    let text = "the connection string asks for the device's certificate (`x509=true`), and there is none; name it in \
                hub.certificate_file, and its key in hub.private_key_file";
    Failure::new("hub-certificate-missing", Class::Final, text)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic left is whole: each is replaced in one go.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Digests what an identity is made of, piece by piece.
struct Stamper(ring::digest::Context);

impl Stamper {
    fn new() -> Self {
        Self(ring::digest::Context::new(&ring::digest::SHA256))
    }

    fn add(&mut self, bytes: &[u8]) {
        // The length first, so that no two ways of cutting the same bytes look alike.
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn finish(self) -> Stamp {
        let mut stamp = Stamp::default();
        stamp.copy_from_slice(self.0.finish().as_ref());
        stamp
    }
}
