//! Why a request got no answer, out of what the HTTP and TLS libraries say.

use std::{error::Error, time::Duration};

use jiff::Timestamp;
use rustls::{AlertDescription, CertificateError};

use super::{FetchError, error::certificate_advice};
use crate::{platform::tls, update::uri::PackageUri};

impl FetchError {
    /// What a request that got no answer means.
    pub(super) fn from_send(
        error: reqwest::Error,
        uri: &PackageUri,
        host: &str,
        shows_certificate: bool,
        after: Duration,
    ) -> Self {
        let host = host.to_owned();
        // Everything else that goes wrong in a handshake may be an accident on the way.
        if let Some(rustls::Error::InvalidCertificate(problem)) = tls::error_in(&error) {
            return Self::from_certificate(problem.clone(), host);
        }
        // Under TLS 1.3 a server judges the client's certificate after the handshake, when the request is sent.
        if let Some(rustls::Error::AlertReceived(alert)) = tls::error_in(&error)
            && (is_about_certificate(*alert)
                // A signature that does not fit: of the certificate, if one was shown.
                || (shows_certificate && *alert == AlertDescription::DecryptError))
        {
            return Self::ClientCertificateRefused {
                host,
                why: format!("TLS alert {alert:?}"),
                advice: certificate_advice(shows_certificate),
            };
        }
        if wants_proxy_authorization(&error) {
            return Self::ProxyAuthorization { host };
        }
        if error.is_timeout() {
            return Self::NoAnswer {
                uri: uri.to_string(),
                host,
                after,
            };
        }
        let (uri, connect) = (uri.to_string(), error.is_connect());
        let source = error.without_url();
        match connect {
            true => Self::Unreachable { uri, host, source },
            false => Self::AnswerBroken { uri, host, source },
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

/// How servers refuse a certificate, or its absence.
fn is_about_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::NoCertificate
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

/// The library has no better way to say it.
fn wants_proxy_authorization(error: &reqwest::Error) -> bool {
    let mut next = error.source();
    while let Some(error) = next {
        if error.to_string() == "tunnel error: proxy authorization required" {
            return true;
        }
        next = error.source();
    }
    false
}

fn moment(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok())
        .map_or_else(|| "an unknown time".to_owned(), |time| time.to_string())
}
