//! Which rows a query gives of a small fleet.

use serde_json::json;

use super::*;
use crate::query::parse;

fn fleet() -> Vec<Value> {
    let twin = |id: &str, site: &str, status: Option<&str>, disk: i64| {
        let mut reported = json!({ "disk": disk });
        if let Some(status) = status {
            reported["update"] = json!({ "status": status });
        }
        json!({ "deviceId": id, "tags": { "site": site }, "properties": { "reported": reported } })
    };
    vec![
        twin("a", "lab", Some("downloading"), 10),
        twin("b", "lab", Some("applyComplete"), 20),
        twin("c", "roof", Some("applyComplete"), 31),
        twin("d", "roof", None, 40),
    ]
}

fn found(
    query: &Query,
    documents: impl Iterator<Item = (String, Value)>,
) -> impl Iterator<Item = (String, Found)> {
    documents.filter_map(move |(key, document)| Some((key, find(query, &document)?)))
}

fn rows(query: &str) -> Value {
    let query = parse(query).unwrap();
    let fleet = fleet().into_iter();
    let fleet = fleet.map(|twin| (twin["deviceId"].as_str().unwrap().to_owned(), twin));
    let (rows, more) = super::rows(&query, &Page::whole(), found(&query, fleet));
    assert_eq!(more, None);
    rows.into()
}

fn ids(condition: &str) -> String {
    let rows = rows(&format!("SELECT * FROM devices WHERE {condition}"));
    let rows = rows.as_array().unwrap().iter();
    rows.map(|row| row["deviceId"].as_str().unwrap()).collect()
}

#[test]
fn conditions_pick_their_rows() {
    assert_eq!(ids("tags.site = 'lab'"), "ab");
    assert_eq!(ids("devices.tags.site = \"lab\""), "ab");
    assert_eq!(ids("tags.site <> 'lab' OR deviceId = 'a'"), "acd");
    assert_eq!(
        ids("properties.reported.disk >= 20 AND properties.reported.disk < 40"),
        "bc"
    );
    assert_eq!(ids("deviceId IN ['a', 'd', 'x']"), "ad");
    assert_eq!(ids("deviceId NIN ['a', 'd']"), "bc");
    assert_eq!(ids("IS_DEFINED(properties.reported.update)"), "abc");
    assert_eq!(ids("NOT IS_DEFINED(properties.reported.update)"), "d");
    assert_eq!(ids("STARTSWITH(tags.site, 'ro')"), "cd");
}

#[test]
fn the_undefined_is_neither_equal_nor_different() {
    assert_eq!(
        ids("properties.reported.update.status != 'downloading'"),
        "bc"
    );
    assert_eq!(
        ids("NOT (properties.reported.update.status = 'downloading')"),
        "bc"
    );
    assert_eq!(
        ids("properties.reported.update.status = 'x' OR deviceId = 'd'"),
        "d"
    );
    assert_eq!(
        ids("properties.reported.disk = '10'"),
        "",
        "no comparison across types"
    );
}

#[test]
fn projections_name_their_columns_and_leave_out_what_is_missing() {
    assert_eq!(
        rows(
            "SELECT deviceId, properties.reported.update.status AS s FROM devices WHERE tags.site = 'roof'"
        ),
        json!([{ "deviceId": "c", "s": "applyComplete" }, { "deviceId": "d" }])
    );
    assert_eq!(
        rows("SELECT TOP 1 tags.site FROM devices"),
        json!([{ "site": "lab" }])
    );
}

#[test]
fn groups_count_and_compute() {
    assert_eq!(
        rows(
            "SELECT properties.reported.update.status AS s, COUNT() AS n FROM devices \
              GROUP BY properties.reported.update.status"
        ),
        json!([{ "s": "applyComplete", "n": 2 }, { "s": "downloading", "n": 1 }, { "n": 1 }])
    );
    assert_eq!(
        rows(
            "SELECT tags.site, SUM(properties.reported.disk) AS sum, AVG(properties.reported.disk) AS avg, \
              MIN(properties.reported.disk) AS min, MAX(properties.reported.disk) AS max FROM devices GROUP BY tags.site"
        ),
        json!([
            { "site": "lab", "sum": 30, "avg": 15, "min": 10, "max": 20 },
            { "site": "roof", "sum": 71, "avg": 35.5, "min": 31, "max": 40 },
        ])
    );
    assert_eq!(
        rows("SELECT COUNT() FROM devices WHERE deviceId = 'none'"),
        json!([{ "$1": 0 }])
    );
}

#[test]
fn arithmetic_computes_with_the_usual_precedence() {
    assert_eq!(ids("properties.reported.disk + 1 = 11"), "a");
    assert_eq!(ids("properties.reported.disk % 10 = 1"), "c");
    assert_eq!(ids("properties.reported.disk / 4 = 2.5"), "a");
    assert_eq!(ids("2 + properties.reported.disk * 2 - 1 = 21"), "a");
    assert_eq!(ids("(2 + properties.reported.disk) * 2 = 24"), "a");
    assert_eq!(ids("-properties.reported.disk < -30"), "cd");
    assert_eq!(ids("properties.reported.disk IN [5 , -3, 40]"), "d");
    assert_eq!(ids("properties.reported.disk-1 = 9"), "a");
    assert_eq!(ids("10 - 5 - 5 = 0"), "abcd");
}

#[test]
fn arithmetic_on_what_is_no_number_and_division_by_zero_are_undefined() {
    for condition in [
        "tags.site + 1 = 1",
        "deviceId - deviceId = 0",
        "gone * 1 = 0",
        "1 / 0 > 1",
        "0 % 0 = 0",
    ] {
        assert_eq!(ids(condition), "", "{condition}");
        assert_eq!(ids(&format!("NOT ({condition})")), "", "{condition}");
    }
}

#[test]
fn a_condition_may_be_any_expression_and_only_true_is_true() {
    assert_eq!(ids("true"), "abcd");
    assert_eq!(ids("NOT false"), "abcd");
    assert_eq!(ids("properties.reported.disk"), "");
    assert_eq!(ids("tags.site"), "");
    assert_eq!(ids("(deviceId = 'a') = true"), "a");
    assert_eq!(ids("IS_DEFINED(properties.reported.update) = false"), "d");
}

#[test]
fn texts_compare_by_characters_and_null_equals_null() {
    assert_eq!(ids("deviceId > 'b'"), "cd");
    assert_eq!(
        ids("null = null AND NOT null = 1"),
        "",
        "null and 1 are of two types"
    );
    assert_eq!(ids("null = null"), "abcd");
    assert_eq!(ids("'it\\'s \\u0041' = \"it's A\""), "abcd");
    assert_eq!(ids("0x1F = 31"), "abcd");
    assert_eq!(ids("tags = 'lab'"), "", "an object is not compared");
}

#[test]
fn null_and_a_missing_value_are_two_groups() {
    let query = parse("SELECT a, COUNT() AS n FROM devices GROUP BY a").unwrap();
    let documents = [json!({ "a": null }), json!({}), json!({ "a": null })];
    let keyed = documents.into_iter().enumerate();
    let keyed = keyed.map(|(key, document)| (key.to_string(), document));
    let (rows, _) = super::rows(&query, &Page::whole(), found(&query, keyed));
    assert_eq!(rows, [json!({ "n": 1 }), json!({ "a": null, "n": 2 })]);
}

#[test]
fn groups_come_in_pages_too() {
    let query = "SELECT deviceId, COUNT() AS n FROM devices GROUP BY deviceId";
    let parsed = parse(query).unwrap();
    let mut token = None;
    let mut seen = Vec::new();
    loop {
        let page = Page::parse(Some("3"), token.as_deref(), query).unwrap();
        let keyed = fleet().into_iter().map(|twin| (String::new(), twin));
        let (rows, more) = super::rows(&parsed, &page, found(&parsed, keyed));
        seen.extend(
            rows.iter()
                .map(|row| row["deviceId"].as_str().unwrap().to_owned()),
        );
        token = more;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["a", "b", "c", "d"]);
}
