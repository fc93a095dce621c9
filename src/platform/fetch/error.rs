//! Why a download failed, told apart so that a person knows what to do. No text here ever holds more of
//! a URL than scheme, host, port and path, which is all that the errors know of it.

use std::{io, path::PathBuf, time::Duration};

use jiff::Timestamp;
use reqwest::StatusCode;
use rustls::CertificateError;

use crate::{
    platform::tls::{self, TlsError},
    update::{
        failure::{Class, Coded},
        uri::{PackageUri, UriError},
    },
};

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The CA certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The HTTP client refused its settings.
    #[error("the HTTP client cannot be set up; check the proxy variables of this system")]
    Setup(#[source] reqwest::Error),
    /// Plain http to a host that may not use it.
    #[error(transparent)]
    Transport(#[from] UriError),
    /// The file with the `Authorization` header cannot be read.
    #[error("cannot read {}; check fetch.authorization_file", .file.display())]
    AuthorizationUnreadable {
        /// The file.
        file: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The file with the `Authorization` header does not hold one.
    #[error("{} must hold a single line, the value of the Authorization header (for example `Bearer ...`)", .file.display())]
    AuthorizationInvalid {
        /// The file.
        file: PathBuf,
    },
    /// No connection, or it broke before an answer came.
    #[error("cannot reach {host} for {uri}; check the network, DNS and proxy")]
    Unreachable {
        /// What was asked for.
        uri: String,
        /// Who was asked; another host than the URL's after a redirect.
        host: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// No answer in time.
    #[error("{host} did not answer for {uri} within {} s; check the network, or raise fetch.connect_timeout and fetch.read_timeout", .after.as_secs())]
    NoAnswer {
        /// What was asked for.
        uri: String,
        /// Who was asked.
        host: String,
        /// How long was waited.
        after: Duration,
    },
    /// The certificate is not valid at the time this device believes it is.
    #[error(
        "the certificate of {host} {problem}; a wrong clock is the usual reason (see `timedatectl`), else the server needs a new certificate"
    )]
    CertificateTime {
        /// Whose.
        host: String,
        /// In words, with both times.
        problem: String,
    },
    /// Nobody this device trusts has signed the certificate.
    #[error(
        "the certificate of {host} is signed by nobody this device trusts; install the CA certificate (update-ca-certificates) or name it in fetch.ca_file"
    )]
    UnknownIssuer {
        /// Whose.
        host: String,
    },
    /// The certificate is wrong in another way.
    #[error(
        "the certificate of {host} cannot be accepted; check the server's certificate and the URL's host name"
    )]
    CertificateInvalid {
        /// Whose.
        host: String,
        /// What is wrong with it.
        #[source]
        source: rustls::Error,
    },
    /// The server cannot do it now.
    #[error(
        "the server answered {status} for {uri}: it cannot give the file now; look at the server"
    )]
    Busy {
        /// What was asked for.
        uri: String,
        /// The status.
        status: StatusCode,
        /// How long the server asked to wait.
        retry_after: Option<Duration>,
    },
    /// There is no such file.
    #[error(
        "the server has no file at {uri} ({status}); check the URL and that the image was uploaded"
    )]
    NotFound {
        /// What was asked for.
        uri: String,
        /// The status.
        status: StatusCode,
    },
    /// The server refuses this device.
    #[error(
        "the server refuses access to {uri} ({status}); check the URL's signature, or fetch.authorization_file and fetch.authorization_hosts"
    )]
    Forbidden {
        /// What was asked for.
        uri: String,
        /// The status.
        status: StatusCode,
    },
    /// The signed URL is outside its time frame.
    #[error(
        "the signed URL for {uri} is not valid at this time ({status}); send the update again with a new URL"
    )]
    UrlExpired {
        /// What was asked for.
        uri: String,
        /// The status.
        status: StatusCode,
    },
    /// A status that means no download.
    #[error("the server answered {status} for {uri}, which is no download; check the URL")]
    Status {
        /// What was asked for.
        uri: String,
        /// The status.
        status: StatusCode,
    },
    /// A redirect from https to http, or to a host that may not use http.
    #[error(
        "{uri} redirects to http://{host}, which is not encrypted; fix the server or use its https address"
    )]
    RedirectInsecure {
        /// What was asked for.
        uri: String,
        /// Where it leads.
        host: String,
    },
    /// Too many redirects.
    #[error(
        "{uri} redirects more than {limit} times; fix the server, or raise fetch.max_redirects"
    )]
    RedirectLimit {
        /// What was asked for.
        uri: String,
        /// The most that are followed.
        limit: u8,
    },
    /// A redirect without a usable target.
    #[error("{uri} redirects ({status}) to no usable address; fix the server")]
    RedirectInvalid {
        /// What was asked for.
        uri: String,
        /// The status.
        status: StatusCode,
    },
    /// The file is another one than before.
    #[error(
        "the file at {uri} changed during the download ({what}); it must be downloaded from the start"
    )]
    Changed {
        /// What was asked for.
        uri: String,
        /// What differs.
        what: String,
    },
    /// The server sent the whole file, and whether it is still the same cannot be told.
    #[error(
        "the server ignores ranges for {uri} and names neither ETag nor Last-Modified, so the download cannot be continued; use a server that supports ranges"
    )]
    RangeIgnored {
        /// What was asked for.
        uri: String,
    },
    /// A partial answer that is not what was asked for.
    #[error(
        "asked for {uri} from byte {asked}, the server answered with {answered}; a proxy or the server is broken"
    )]
    RangeMismatch {
        /// What was asked for.
        uri: String,
        /// First byte asked for.
        asked: u64,
        /// What came, in words.
        answered: String,
    },
    /// The range starts behind the end.
    #[error("{uri} has {} bytes, so there is nothing from byte {start}; the file is not the one this device knows", .total.map_or_else(|| "fewer".to_owned(), |t| t.to_string()))]
    RangeUnsatisfiable {
        /// What was asked for.
        uri: String,
        /// First byte asked for.
        start: u64,
        /// Length of the file, if the server said.
        total: Option<u64>,
    },
    /// The body is encoded though that was declined.
    #[error(
        "the server sends {uri} with Content-Encoding {encoding}, though none was asked for; store the file without a content encoding and turn off compression for it"
    )]
    ContentEncoding {
        /// What was asked for.
        uri: String,
        /// The encoding.
        encoding: String,
    },
    /// The connection ended before the body did.
    #[error("the connection broke after {at} bytes of {uri}; check the network and the server")]
    Dropped {
        /// What was asked for.
        uri: String,
        /// The next byte that is missing.
        at: u64,
        /// Why; `None` when the server just ended the body early.
        #[source]
        source: Option<reqwest::Error>,
    },
    /// Nothing came for too long.
    #[error("nothing came for {} s after {at} bytes of {uri}; check the network, or raise fetch.read_timeout", .after.as_secs())]
    Stalled {
        /// What was asked for.
        uri: String,
        /// The next byte that is missing.
        at: u64,
        /// How long was waited.
        after: Duration,
    },
    /// Something came, but too little of it to ever end.
    #[error(
        "only {bytes} bytes came in {} s of waiting, after {at} bytes of {uri}, fewer than 1024 a second; check the \
         network and the server", .after.as_secs()
    )]
    TooSlow {
        /// What was asked for.
        uri: String,
        /// The next byte that is missing.
        at: u64,
        /// What came.
        bytes: u64,
        /// In how long.
        after: Duration,
    },
    /// More came than the server had promised.
    #[error(
        "the server sent more than the {promised} bytes that it had promised for {uri}; a proxy or the server is broken"
    )]
    TooLong {
        /// What was asked for.
        uri: String,
        /// Where the body was to end.
        promised: u64,
    },
    /// A small file that is not small.
    #[error(
        "{uri} has more than {limit} bytes, which is more than such a file can have; check what was uploaded there"
    )]
    TooLarge {
        /// What was asked for.
        uri: String,
        /// The most that is taken.
        limit: usize,
    },
}

impl Coded for FetchError {
    fn code(&self) -> &'static str {
        match self {
            Self::Tls(error) => error.code(),
            Self::Setup(_) => "fetch-setup",
            Self::Transport(error) => error.code(),
            Self::AuthorizationUnreadable { .. } => "authorization-file-unreadable",
            Self::AuthorizationInvalid { .. } => "authorization-file-invalid",
            Self::Unreachable { .. } => "server-unreachable",
            Self::NoAnswer { .. } => "server-no-answer",
            Self::CertificateTime { .. } => "certificate-time",
            Self::UnknownIssuer { .. } => "certificate-unknown-issuer",
            Self::CertificateInvalid { .. } => "certificate-invalid",
            Self::Busy { .. } => "server-busy",
            Self::NotFound { .. } => "image-not-found",
            Self::Forbidden { .. } => "image-forbidden",
            Self::UrlExpired { .. } => "url-expired",
            Self::Status { .. } => "http-status",
            Self::RedirectInsecure { .. } => "redirect-insecure",
            Self::RedirectLimit { .. } => "redirect-limit",
            Self::RedirectInvalid { .. } => "redirect-invalid",
            Self::Changed { .. } => "image-changed",
            Self::RangeIgnored { .. } => "range-ignored",
            Self::RangeMismatch { .. } => "range-mismatch",
            Self::RangeUnsatisfiable { .. } => "range-unsatisfiable",
            Self::ContentEncoding { .. } => "content-encoding",
            Self::Dropped { .. } => "download-dropped",
            Self::Stalled { .. } => "download-stalled",
            Self::TooSlow { .. } => "download-too-slow",
            Self::TooLong { .. } => "body-too-long",
            Self::TooLarge { .. } => "file-too-large",
        }
    }

    fn class(&self) -> Class {
        match self {
            Self::Tls(error) => error.class(),
            Self::Transport(error) => error.class(),
            Self::Unreachable { .. }
            | Self::NoAnswer { .. }
            | Self::Busy { .. }
            | Self::Dropped { .. }
            | Self::Stalled { .. }
            | Self::TooSlow { .. }
            // The whole update may start over with the new file; this download cannot go on.
            | Self::Changed { .. } => Class::Retry,
            Self::CertificateTime { .. } => Class::Wait,
            Self::Setup(_)
            | Self::AuthorizationUnreadable { .. }
            | Self::AuthorizationInvalid { .. }
            | Self::UnknownIssuer { .. }
            | Self::CertificateInvalid { .. }
            | Self::NotFound { .. }
            | Self::Forbidden { .. }
            | Self::UrlExpired { .. }
            | Self::Status { .. }
            | Self::RedirectInsecure { .. }
            | Self::RedirectLimit { .. }
            | Self::RedirectInvalid { .. }
            | Self::RangeIgnored { .. }
            | Self::RangeMismatch { .. }
            | Self::RangeUnsatisfiable { .. }
            | Self::ContentEncoding { .. }
            | Self::TooLong { .. }
            | Self::TooLarge { .. } => Class::Final,
        }
    }
}

impl FetchError {
    /// Whether asking again for the same bytes may help.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Changed { .. } => false,
            _ => self.class() != Class::Final,
        }
    }

    /// How long the server asked to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// What a request that got no answer means.
    pub(super) fn from_send(
        error: reqwest::Error,
        uri: &PackageUri,
        host: &str,
        after: Duration,
    ) -> Self {
        let host = host.to_owned();
        // Everything else that goes wrong in a handshake may be an accident on the way.
        if let Some(rustls::Error::InvalidCertificate(problem)) = tls::error_in(&error) {
            return Self::from_certificate(problem.clone(), host);
        }
        if error.is_timeout() {
            return Self::NoAnswer {
                uri: uri.to_string(),
                host,
                after,
            };
        }
        Self::Unreachable {
            uri: uri.to_string(),
            host,
            source: error.without_url(),
        }
    }

    fn from_certificate(problem: CertificateError, host: String) -> Self {
        match problem {
            CertificateError::NotValidYet => Self::CertificateTime {
                host,
                problem: "is not valid yet".to_owned(),
            },
            CertificateError::NotValidYetContext { time, not_before } => Self::CertificateTime {
                host,
                problem: format!(
                    "is not valid before {}, and this device's clock says {}",
                    moment(not_before.as_secs()),
                    moment(time.as_secs())
                ),
            },
            CertificateError::Expired => Self::CertificateTime {
                host,
                problem: "has expired".to_owned(),
            },
            CertificateError::ExpiredContext { time, not_after } => Self::CertificateTime {
                host,
                problem: format!(
                    "expired at {}, and this device's clock says {}",
                    moment(not_after.as_secs()),
                    moment(time.as_secs())
                ),
            },
            // A CA of the right name with another key is as unknown as any.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                Self::UnknownIssuer { host }
            }
            other => Self::CertificateInvalid {
                host,
                source: rustls::Error::InvalidCertificate(other),
            },
        }
    }
}

fn moment(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .map_or_else(|| "an unknown time".to_owned(), |time| time.to_string())
}
