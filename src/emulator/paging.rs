//! Pages of query results: `x-ms-max-item-count` and `x-ms-continuation`.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::digest;
use serde_json::Value;

use crate::hub_error::HubError;

/// Rows on a page, at most and when the caller does not say.
const LARGEST: usize = 1000;

/// Which part of the rows is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    start: usize,
    length: usize,
    /// Ties a continuation to its query.
    query: String,
}

impl Page {
    pub(crate) fn parse(
        max_items: Option<&str>,
        continuation: Option<&str>,
        query: &str,
    ) -> Result<Self, HubError> {
        let length = match max_items.filter(|text| !text.is_empty()).map(str::parse) {
            // -1 is "as you like", as in the service's own samples.
            None | Some(Ok(-1)) => LARGEST,
            Some(Ok(count)) if (1..=LARGEST as i64).contains(&count) => count as usize,
            Some(_) => {
                return Err(HubError::argument("x-ms-max-item-count must be 1 to 1000."));
            }
        };
        let query = fingerprint(query);
        let start = match continuation.filter(|text| !text.is_empty()) {
            None => 0,
            Some(token) => start_of(token, &query).ok_or_else(|| {
                HubError::argument("x-ms-continuation is not a token of this query.")
            })?,
        };
        Ok(Self {
            start,
            length,
            query,
        })
    }

    /// The rows of this page, and the token of the next if there is one.
    pub(crate) fn cut(&self, rows: Vec<Value>) -> (Vec<Value>, Option<String>) {
        let end = self.start.saturating_add(self.length);
        let more = (rows.len() > end)
            .then(|| BASE64_URL_SAFE_NO_PAD.encode(format!("{end} {}", self.query)));
        let page = rows.into_iter().skip(self.start).take(self.length);
        (page.collect(), more)
    }
}

fn start_of(token: &str, query: &str) -> Option<usize> {
    let text = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let (start, of) = text.split_once(' ')?;
    (of == query).then(|| start.parse().ok()).flatten()
}

fn fingerprint(query: &str) -> String {
    let digest = digest::digest(&digest::SHA256, query.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(&digest.as_ref()[..9])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_pages_together_are_all_rows(count in 0_usize..50, length in 1_usize..20) {
            let rows: Vec<Value> = (0..count).map(Value::from).collect();
            let mut seen = Vec::new();
            let mut token = None;
            loop {
                let page = Page::parse(Some(&length.to_string()), token.as_deref(), "q").unwrap();
                let (page, more) = page.cut(rows.clone());
                prop_assert!(page.len() <= length);
                seen.extend(page);
                token = more;
                if token.is_none() {
                    break;
                }
            }
            prop_assert_eq!(seen, rows);
        }

        #[test]
        fn no_header_makes_the_parser_panic(count in ".*", token in ".*") {
            let _ = Page::parse(Some(&count), Some(&token), "q");
        }
    }

    #[test]
    fn a_token_is_good_for_its_query_only() {
        let page = Page::parse(Some("1"), None, "q").unwrap();
        let token = page.cut(vec![1.into(), 2.into()]).1.unwrap();
        assert!(Page::parse(None, Some(&token), "q").is_ok());
        assert!(Page::parse(None, Some(&token), "other").is_err());
        assert!(Page::parse(Some("0"), None, "q").is_err());
        assert!(Page::parse(Some("1001"), None, "q").is_err());
    }
}
