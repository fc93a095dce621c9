//! Whether what a server answers is what it was asked for.

use reqwest::{
    Response, StatusCode,
    header::{
        ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue,
        TRANSFER_ENCODING,
    },
};

use super::{
    FetchError,
    validator::{ByteRange, Comparison, ContentRange, Validator},
};
use crate::update::uri::PackageUri;

/// An answer that was found to be what was asked for.
pub(super) struct Answer {
    pub(super) response: Response,
    /// Where in the file the body's next byte lies.
    pub(super) at: u64,
    /// Where in the file the body must end, if that is known.
    pub(super) end: Option<u64>,
    /// Length of the whole file.
    pub(super) total: Option<u64>,
    pub(super) validator: Validator,
    pub(super) ranges: bool,
    /// It says that it is a web page; its first bytes tell whether it is.
    pub(super) page: bool,
}

impl Answer {
    /// Whether an answer with a file in it is the file, and the part of it, that was asked for.
    pub(super) fn judge(
        uri: &PackageUri,
        range: ByteRange,
        before: Option<&Validator>,
        response: Response,
    ) -> Result<Self, FetchError> {
        let headers = response.headers();
        if let Some(encoding) = headers.get(CONTENT_ENCODING)
            && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
        {
            let encoding = String::from_utf8_lossy(encoding.as_bytes());
            return Err(FetchError::ContentEncoding {
                uri: uri.to_string(),
                encoding: encoding.chars().take(40).collect(),
            });
        }
        let other = |value: &HeaderValue| {
            let value = value.as_bytes().trim_ascii();
            !value.is_empty() && !value.eq_ignore_ascii_case(b"chunked")
        };
        if headers.get_all(TRANSFER_ENCODING).iter().any(other) {
            return Err(FetchError::ContentEncoding {
                uri: uri.to_string(),
                encoding: "in the transfer".to_owned(),
            });
        }
        let kind = |prefix: &str| {
            let kind = text_of(&response, CONTENT_TYPE)
                .unwrap_or_default()
                .trim_start();
            kind.get(..prefix.len())
                .is_some_and(|kind| kind.eq_ignore_ascii_case(prefix))
        };
        let page = kind("text/html");
        let length = response.content_length();
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let (at, end, total) = if partial {
            let mismatch = |answered: String| FetchError::RangeMismatch {
                uri: uri.to_string(),
                asked: range.start,
                answered,
            };
            let (start, end, total) = match content_range(&response) {
                _ if range == ByteRange::WHOLE => {
                    return Err(mismatch(
                        "a part, though the whole was asked for".to_owned(),
                    ));
                }
                _ if kind("multipart/") => {
                    return Err(mismatch(
                        "several parts, though one was asked for".to_owned(),
                    ));
                }
                Some(ContentRange::Bytes { start, end, total }) => (start, end, total),
                _ => return Err(mismatch("no usable Content-Range".to_owned())),
            };
            if start != range.start || range.end.is_some_and(|asked| end > asked) {
                return Err(mismatch(format!("bytes {start} to {end}")));
            }
            if length.is_some_and(|length| length != end - start) {
                return Err(mismatch(
                    "a body of another length than its Content-Range".to_owned(),
                ));
            }
            (start, Some(end), total)
        } else {
            (0, length, length)
        };
        // The whole file ends before the part begins: a page has that length, or the file never had more.
        if let (None, false, Some(length)) = (before, partial, length)
            && range.start > 0
            && length <= range.start
        {
            let uri = uri.to_string();
            return Err(match page {
                true => FetchError::WebPage { uri },
                false => FetchError::RangeUnsatisfiable {
                    uri,
                    start: range.start,
                    total,
                },
            });
        }
        let validator = Validator::from_headers(headers, total);
        let compared = before.map(|before| before.compare(&validator));
        match compared {
            // Something on the way answers in the server's place.
            Some(Comparison::Changed(_) | Comparison::Unknown) if page => {
                return Err(FetchError::WebPageMidway {
                    uri: uri.to_string(),
                });
            }
            Some(Comparison::Changed(what)) => {
                return Err(FetchError::Changed {
                    uri: uri.to_string(),
                    what,
                });
            }
            // Nobody can say that the whole file which comes is the one whose beginning is here already.
            Some(Comparison::Unknown) if !partial && range.start > 0 => {
                return Err(FetchError::RangeIgnored {
                    uri: uri.to_string(),
                });
            }
            Some(Comparison::Same | Comparison::Unknown) | None => {}
        }
        let accepts = headers
            .get(ACCEPT_RANGES)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"bytes"));
        let ranges = partial || (range == ByteRange::WHOLE && accepts);
        Ok(Self {
            response,
            at,
            end,
            total,
            validator,
            ranges,
            page,
        })
    }
}

pub(super) fn text_of(response: &Response, name: HeaderName) -> Option<&str> {
    response.headers().get(name)?.to_str().ok()
}

pub(super) fn content_range(response: &Response) -> Option<ContentRange> {
    ContentRange::parse(text_of(response, CONTENT_RANGE)?)
}
