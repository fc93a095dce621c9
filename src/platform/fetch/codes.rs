//! The stable code and the class of each way in which a download fails, and which of them may pass by themselves.

use std::time::Duration;

use super::FetchError;
use crate::update::failure::{Class, Coded};

impl Coded for FetchError {
    fn code(&self) -> &'static str {
        match self {
            Self::Tls(error) => error.code(),
            Self::Setup(_) => "fetch-setup",
            Self::Transport(error) => error.code(),
            Self::AuthorizationUnreadable { .. } => "authorization-file-unreadable",
            Self::AuthorizationInvalid { .. } => "authorization-file-invalid",
            Self::ProxyAuthorizationFile { .. } => "proxy-authorization-file",
            Self::ProxyAuthorization { .. } => "proxy-authorization",
            Self::ClientCertificateFile(_) => "client-certificate-file",
            Self::ClientCertificateRefused { .. } => "client-certificate-refused",
            Self::Unreachable { .. } => "server-unreachable",
            Self::AnswerBroken { .. } => "server-answer-broken",
            Self::NoAnswer { .. } => "server-no-answer",
            Self::CertificateTime { .. } => "certificate-time",
            Self::UnknownIssuer { .. } => "certificate-unknown-issuer",
            Self::CertificateInvalid { .. } => "certificate-invalid",
            Self::Busy { .. } => "server-busy",
            Self::NotFound { .. } => "image-not-found",
            Self::Forbidden { .. } => "image-forbidden",
            Self::UrlExpired { .. } => "url-expired",
            Self::UrlNotYetValid { .. } => "url-not-yet-valid",
            Self::WebPage { .. } => "web-page",
            Self::WebPageMidway { .. } => "web-page-midway",
            Self::Status { .. } => "http-status",
            Self::RedirectInsecure { .. } => "redirect-insecure",
            Self::RedirectLimit { .. } => "redirect-limit",
            Self::RedirectLoop { .. } => "redirect-loop",
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
            | Self::AnswerBroken { .. }
            | Self::UrlNotYetValid { .. }
            | Self::WebPageMidway { .. }
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
            | Self::ProxyAuthorizationFile { .. }
            | Self::ProxyAuthorization { .. }
            | Self::ClientCertificateFile(_)
            | Self::ClientCertificateRefused { .. }
            | Self::WebPage { .. }
            | Self::RedirectLoop { .. }
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
}
