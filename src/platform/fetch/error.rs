//! Why a download failed, told apart so that a person knows what to do. No text here ever holds more of
//! a URL than scheme, host, port and path, which is all that the errors know of it.

use std::{io, path::PathBuf, time::Duration};

use reqwest::{StatusCode, Url};

use crate::{
    platform::{device_certificate::CertificateError, tls::TlsError},
    update::uri::UriError,
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
    /// The file with the proxy's user and password cannot be used.
    #[error("{} must be readable and hold `user:password`; check fetch.proxy_authorization_file", .file.display())]
    ProxyAuthorizationFile {
        /// The file.
        file: PathBuf,
        /// What the system says; `None` when it is read, but holds something else.
        #[source]
        source: Option<io::Error>,
    },
    /// The proxy wants user and password, or others.
    #[error(
        "the proxy wants a user and a password, or others, to lead to {host}; check fetch.proxy_authorization_file, or the proxy variables of the daemon"
    )]
    ProxyAuthorization {
        /// Where it was to lead.
        host: String,
    },
    /// The device's certificate for image servers cannot be used.
    #[error(
        "the client certificate cannot be used; check fetch.client_certificate_file and fetch.client_key_file"
    )]
    ClientCertificateFile(#[from] CertificateError),
    /// The server wants a certificate, or another one.
    #[error("{host} refuses this device's certificate ({why}); {advice}")]
    ClientCertificateRefused {
        /// Who.
        host: String,
        /// In the words of TLS, or of the server.
        why: String,
        /// What to do.
        advice: &'static str,
    },
    /// No connection.
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
    /// An answer began and did not come whole, or it is no HTTP.
    #[error(
        "{host} gave no usable answer for {uri}: it broke off or is not HTTP; look at the server, or at a proxy on the way"
    )]
    AnswerBroken {
        /// What was asked for.
        uri: String,
        /// Who was asked.
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
        "the server refuses access to {uri} ({status}{}); check the URL's signature, or fetch.authorization_file and fetch.authorization_hosts",
        .said.as_ref().map_or_else(String::new, |said| format!(": {said}"))
    )]
    Forbidden {
        /// What was asked for.
        uri: String,
        /// The status.
        status: StatusCode,
        /// The store's error code, if it named one.
        said: Option<String>,
    },
    /// The signed URL's time is over.
    #[error(
        "the signed URL for {uri} is not valid any more: {when} ({status}); send the update again with a new URL"
    )]
    UrlExpired {
        /// What was asked for.
        uri: String,
        /// The status.
        status: StatusCode,
        /// Since when, in words.
        when: String,
    },
    /// The signed URL's time has not come.
    #[error(
        "the signed URL for {uri} is valid from {from} on ({status}); clocks differ, so sign URLs without a start time, or with one some minutes ago"
    )]
    UrlNotYetValid {
        /// What was asked for.
        uri: String,
        /// The status.
        status: StatusCode,
        /// Its start.
        from: String,
    },
    /// A web page came instead of the file.
    #[error(
        "the server answered with a web page instead of the file at {uri}: a login page, or a notice of a proxy or a public network; check the URL and how the device gets outside"
    )]
    WebPage {
        /// What was asked for.
        uri: String,
    },
    /// A web page came instead of the rest of a file that was there before.
    #[error(
        "a web page comes instead of the rest of {uri}: a notice of a proxy or a public network, which has to pass; check how the device gets outside"
    )]
    WebPageMidway {
        /// What was asked for.
        uri: String,
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
    /// Redirects in a circle.
    #[error("{uri} redirects in a circle, back to {back_to}; fix the server")]
    RedirectLoop {
        /// What was asked for.
        uri: String,
        /// An address that came twice, without its query.
        back_to: String,
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

/// What to do about a refused certificate: show one at all, or look at it.
pub(super) fn certificate_advice(shows: bool) -> &'static str {
    match shows {
        true => {
            "check fetch.client_certificate_file: its dates, and whether that server trusts who signed it"
        }
        false => {
            "it asks for one: set fetch.client_certificate_file and list the host in fetch.client_certificate_hosts"
        }
    }
}

/// An address without its secrets.
pub(super) fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url
        .port()
        .map_or_else(String::new, |port| format!(":{port}"));
    format!("{}://{host}{port}{}", url.scheme(), url.path())
}
