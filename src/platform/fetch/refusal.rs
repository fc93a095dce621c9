//! What an answer that brings no file means, told apart so that a person knows what to do.
//!
//! Guarantees: of an error page only its first 16 KiB are read and only known phrases and a store's error code
//! are taken from it; of a signed URL only its times are told.

use std::time::Duration;

use reqwest::{Response, Url};
use tokio::time::timeout;

use super::{
    FetchError,
    error::certificate_advice,
    patience::{retry_after, server_time},
    signed::{Outside, outside},
};
use crate::update::uri::PackageUri;

/// Most of an error page that is read to find out what a refusal means.
const PAGE_BYTES: usize = 16 * 1024;

/// What the `response` that came from `url` says. `shows`: whether that server may see the device's certificate.
pub(super) async fn refusal(
    uri: &PackageUri,
    url: &Url,
    shows: bool,
    response: Response,
    patience: Duration,
) -> FetchError {
    let status = response.status();
    let uri = uri.to_string();
    let now = server_time(response.headers());
    let retry_after = retry_after(response.headers());
    let code = response
        .headers()
        .get("x-ms-error-code")
        .and_then(|value| plain(value.to_str().ok()?));
    match status.as_u16() {
        404 | 410 => FetchError::NotFound { uri, status },
        // So Azure answers where a container is private and the URL has no signature.
        409 if code.as_deref() == Some("PublicAccessNotPermitted") => FetchError::Forbidden {
            uri,
            status,
            said: code,
        },
        401 | 403 => {
            let page = page(response, patience).await;
            let said = code.or_else(|| code_in(&page));
            match outside(url, now) {
                Some(Outside::NotYet(from)) => FetchError::UrlNotYetValid {
                    uri,
                    status,
                    from: from.to_string(),
                },
                Some(Outside::Ended(at)) => FetchError::UrlExpired {
                    uri,
                    status,
                    when: format!("it expired at {at}"),
                },
                None if tells_of_expiry(&page) => FetchError::UrlExpired {
                    uri,
                    status,
                    when: "the server says that it expired".to_owned(),
                },
                None => FetchError::Forbidden { uri, status, said },
            }
        }
        407 => FetchError::ProxyAuthorization {
            host: url.host_str().unwrap_or_default().to_owned(),
        },
        // nginx answers so where it would have had to end the handshake.
        400 if tells_of_certificate(&page(response, patience).await) => {
            FetchError::ClientCertificateRefused {
                host: url.host_str().unwrap_or_default().to_owned(),
                why: "no usable certificate was shown".to_owned(),
                advice: certificate_advice(shows),
            }
        }
        408 | 425 | 429 | 500..=599 => FetchError::Busy {
            uri,
            status,
            retry_after,
        },
        _ => FetchError::Status { uri, status },
    }
}

async fn page(mut response: Response, patience: Duration) -> String {
    let mut page = Vec::new();
    let reading = async {
        while let Ok(Some(bytes)) = response.chunk().await {
            let room = PAGE_BYTES - page.len();
            page.extend_from_slice(&bytes[..room.min(bytes.len())]);
            if page.len() == PAGE_BYTES {
                break;
            }
        }
    };
    // What came until then will do.
    let _ = timeout(patience, reading).await;
    String::from_utf8_lossy(&page).into_owned()
}

/// How Azure, S3 and Google Cloud Storage say that a signed URL is outside its time frame.
fn tells_of_expiry(page: &str) -> bool {
    [
        "Signature not valid in the specified time frame",
        "Request has expired",
        "ExpiredToken",
    ]
    .iter()
    .any(|sign| page.contains(sign))
}

fn tells_of_certificate(page: &str) -> bool {
    [
        "No required SSL certificate was sent",
        "The SSL certificate error",
    ]
    .iter()
    .any(|sign| page.contains(sign))
}

/// The error code in the XML that Azure, S3 and Google Cloud Storage answer with.
fn code_in(page: &str) -> Option<String> {
    let rest = page.split_once("<Code>")?.1;
    plain(rest.split_once("</Code>")?.0)
}

/// Such a code is letters; what is not could be anything, and is not repeated.
fn plain(code: &str) -> Option<String> {
    let fits = (1..=60).contains(&code.len()) && code.bytes().all(|b| b.is_ascii_alphanumeric());
    fits.then(|| code.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_looks_like_a_code_is_repeated() {
        for (page, code) in [
            (
                "<Error><Code>AuthenticationFailed</Code><Message>..",
                Some("AuthenticationFailed"),
            ),
            ("<Code></Code>", None),
            ("<Code>a b</Code>", None),
            ("<Code>sig=abc</Code>", None),
            ("<Code>AccessDenied", None),
            ("", None),
        ] {
            assert_eq!(code_in(page).as_deref(), code, "{page}");
        }
        assert_eq!(plain(&"x".repeat(61)), None);
    }
}
