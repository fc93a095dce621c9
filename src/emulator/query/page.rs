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
    /// The key of the last row that was given; empty before the first page.
    after: String,
    /// How many rows the earlier pages gave.
    given: usize,
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
        let (given, after) = match continuation.filter(|text| !text.is_empty()) {
            None => (0, String::new()),
            Some(token) => read_token(token, &query).ok_or_else(|| {
                HubError::argument("x-ms-continuation is not a token of this query.")
            })?,
        };
        Ok(Self {
            after,
            given,
            length,
            query,
        })
    }

    /// One page with everything on it.
    pub(crate) fn whole() -> Self {
        Self {
            after: String::new(),
            given: 0,
            length: usize::MAX,
            query: String::new(),
        }
    }

    /// The key after which the rows of this page begin; empty for the first page.
    pub(crate) fn after(&self) -> &str {
        &self.after
    }

    /// Of rows in the order of their keys, `top` in all, those of this page, and the token of the next
    /// page if there is one.
    pub(crate) fn cut(
        &self,
        top: Option<usize>,
        rows: impl Iterator<Item = (String, Value)>,
    ) -> (Vec<Value>, Option<String>) {
        let left = top.map_or(usize::MAX, |top| top.saturating_sub(self.given));
        let mut page = Vec::new();
        let mut last = String::new();
        for (key, row) in rows.filter(|(key, _)| *key > self.after).take(left) {
            if page.len() == self.length {
                let given = self.given + page.len();
                let token = format!("{given} {} {last}", self.query);
                return (page, Some(BASE64_URL_SAFE_NO_PAD.encode(token)));
            }
            page.push(row);
            last = key;
        }
        (page, None)
    }
}

fn read_token(token: &str, query: &str) -> Option<(usize, String)> {
    let text = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let mut parts = text.splitn(3, ' ');
    let given = parts.next()?.parse().ok()?;
    (parts.next()? == query).then_some(())?;
    Some((given, parts.next()?.to_owned()))
}

fn fingerprint(query: &str) -> String {
    let digest = digest::digest(&digest::SHA256, query.as_bytes());
    BASE64_URL_SAFE_NO_PAD.encode(&digest.as_ref()[..9])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn keyed(rows: &BTreeMap<String, i32>) -> impl Iterator<Item = (String, Value)> {
        rows.iter().map(|(key, row)| (key.clone(), (*row).into()))
    }

    proptest! {
        #[test]
        fn the_pages_together_are_all_rows_up_to_the_top(
            rows in proptest::collection::btree_map("[a-f]{1,3}", any::<i32>(), 0..50),
            length in 1_usize..20,
            top in proptest::option::of(0_usize..60),
        ) {
            let mut seen = Vec::new();
            let mut token = None;
            loop {
                let page = Page::parse(Some(&length.to_string()), token.as_deref(), "q").unwrap();
                let (page, more) = page.cut(top, keyed(&rows));
                prop_assert!(page.len() <= length);
                prop_assert!(!page.is_empty() || more.is_none(), "no page is empty but a last one");
                seen.extend(page);
                token = more;
                if token.is_none() {
                    break;
                }
            }
            let expected = rows.values().take(top.unwrap_or(usize::MAX));
            prop_assert_eq!(seen, expected.copied().map(Value::from).collect::<Vec<_>>());
        }

        #[test]
        fn rows_that_come_and_go_between_pages_neither_repeat_nor_hide_others(
            rows in proptest::collection::btree_map("[a-f]{1,3}", 0..1000, 2..50),
            gone in proptest::collection::vec("[a-f]{1,3}", 0..20),
            new in proptest::collection::btree_map("[a-f]{1,3}", 1000..2000, 0..20),
        ) {
            let (first, token) = Page::parse(Some("1"), None, "q").unwrap().cut(None, keyed(&rows));
            let mut later = rows.clone();
            later.retain(|key, _| !gone.contains(key));
            for (key, row) in &new {
                later.entry(key.clone()).or_insert(*row);
            }
            let page = Page::parse(None, token.as_deref(), "q").unwrap();
            let (rest, _) = page.cut(None, keyed(&later));
            prop_assert!(!rest.contains(&first[0]) || rows.values().filter(|row| first[0] == **row).count() > 1);
            for (_, row) in rows.iter().skip(1).filter(|(key, _)| !gone.contains(key)) {
                prop_assert!(rest.contains(&Value::from(*row)));
            }
        }

        #[test]
        fn no_header_makes_the_parser_panic(count in ".*", token in ".*") {
            let _ = Page::parse(Some(&count), Some(&token), "q");
        }
    }

    #[test]
    fn a_token_is_good_for_its_query_only() {
        let rows = BTreeMap::from([
            ("a".to_owned(), 1),
            ("b c".to_owned(), 2),
            ("d".to_owned(), 3),
        ]);
        let page = Page::parse(Some("2"), None, "q").unwrap();
        let token = page.cut(None, keyed(&rows)).1.unwrap();
        let next = Page::parse(None, Some(&token), "q").unwrap();
        assert_eq!((next.after(), next.given), ("b c", 2));
        assert!(Page::parse(None, Some(&token), "other").is_err());
        assert!(Page::parse(Some("0"), None, "q").is_err());
        assert!(Page::parse(Some("1001"), None, "q").is_err());
    }
}
