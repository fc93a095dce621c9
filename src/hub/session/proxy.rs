//! The way through an HTTP proxy: CONNECT (RFC 9110, 9.3.6).

use std::{io, str};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::identity::ProxyAuthorization;

/// Longest answer to a CONNECT.
const MAX_ANSWER: usize = 16 * 1024;

/// Why the proxy is no way.
#[derive(Debug)]
pub(super) enum ProxyError {
    /// It answered with this status.
    Refused(u16),
    /// It wants a password, or another one.
    Authorization,
    /// The connection to it failed, or it is no HTTP proxy.
    Io(io::Error),
}

impl From<io::Error> for ProxyError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Makes `stream` lead to `authority` (`host:port`).
pub(super) async fn connect(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    authority: &str,
    authorization: Option<&ProxyAuthorization>,
) -> Result<(), ProxyError> {
    let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
    if let Some(authorization) = authorization {
        request.push_str(&format!(
            "Proxy-Authorization: {}\r\n",
            authorization.header()
        ));
    }
    request.push_str("\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    // Byte by byte, since what follows the empty line is no longer the proxy's. It is short and comes once.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() == MAX_ANSWER {
            return Err(no_proxy());
        }
        answer.push(stream.read_u8().await?);
    }
    match status(&answer).ok_or_else(no_proxy)? {
        200..=299 => Ok(()),
        407 => Err(ProxyError::Authorization),
        status => Err(ProxyError::Refused(status)),
    }
}

fn no_proxy() -> ProxyError {
    ProxyError::Io(io::Error::new(
        io::ErrorKind::InvalidData,
        "its answer is not HTTP",
    ))
}

/// The status in an HTTP answer.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|&byte| byte == b'\r').next()?;
    let rest = str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?;
    let status = rest.split(' ').nth(1)?;
    status
        .parse()
        .ok()
        .filter(|code| (100..1000).contains(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a proxy that answers `answer` was sent, and what came of it.
    async fn ask(answer: &[u8], password: Option<&str>) -> (String, Result<Vec<u8>, ProxyError>) {
        let (mut near, mut far) = tokio::io::duplex(64 * 1024);
        far.write_all(answer).await.unwrap();
        let authorization = password.map(|text| ProxyAuthorization::new(text).unwrap());
        let (mut request, mut rest) = (vec![0; 1024], Vec::new());
        let outcome = tokio::time::timeout(
            std::time::Duration::from_secs(5),
            connect(&mut near, "[fd00::1]:443", authorization.as_ref()),
        );
        let outcome = match outcome.await {
            Ok(outcome) => outcome,
            Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
        };
        let length = far.read(&mut request).await.unwrap();
        drop(far);
        near.read_to_end(&mut rest).await.unwrap();
        let request = String::from_utf8(request[..length].to_vec()).unwrap();
        (request, outcome.map(|()| rest))
    }

    #[tokio::test]
    async fn what_follows_the_answer_belongs_to_the_server() {
        let answer = b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\nhello";
        let (request, outcome) = ask(answer, None).await;
        assert_eq!(
            request,
            "CONNECT [fd00::1]:443 HTTP/1.1\r\nHost: [fd00::1]:443\r\n\r\n"
        );
        assert_eq!(outcome.unwrap(), b"hello");
        let (request, _) = ask(answer, Some("me:hunter2")).await;
        assert!(request.contains("\r\nProxy-Authorization: Basic bWU6aHVudGVyMg==\r\n"));
    }

    #[tokio::test]
    async fn a_refusal_a_missing_password_and_nonsense_are_told_apart() {
        let (_, outcome) = ask(b"HTTP/1.1 407 Who?\r\n\r\n", None).await;
        assert!(matches!(outcome, Err(ProxyError::Authorization)));
        let (_, outcome) = ask(b"HTTP/1.1 403 No\r\n\r\n", None).await;
        assert!(matches!(outcome, Err(ProxyError::Refused(403))));
        for nonsense in [
            &b"SSH-2.0-x\r\n\r\n"[..],
            b"HTTP/1.1 \xff\r\n\r\n",
            &[b'x'; 20_000],
        ] {
            let (_, outcome) = ask(nonsense, None).await;
            assert!(matches!(outcome, Err(ProxyError::Io(_))), "{outcome:?}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_panics(answer in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = status(&answer);
            let _ = status(&[b"HTTP/1.", answer.as_slice()].concat());
        }
    }
}
