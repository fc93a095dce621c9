//! Runs a query over twins: filter, group, project.
//!
//! A path that leads nowhere, and a comparison of two types, is *undefined*: neither true nor false.
//! A row is in only when its condition is true, so `a != 1` leaves out a twin without `a`.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use crate::query_parse::{Aggregate, Column, Comparison, Expr, Operand, Query, Select, Source};

/// The rows, all of them; paging is the caller's.
pub(crate) fn run(query: &Query, twins: impl IntoIterator<Item = Value>) -> Vec<Value> {
    let selected = twins.into_iter().filter(|twin| match &query.filter {
        Some(filter) => test(filter, twin) == Some(true),
        None => true,
    });
    let mut rows: Vec<Value> = match &query.select {
        Select::Twins => selected.collect(),
        Select::Columns(columns) if is_grouped(query, columns) => grouped(query, columns, selected),
        Select::Columns(columns) => selected
            .map(|twin| project(columns, std::slice::from_ref(&twin)))
            .collect(),
    };
    rows.truncate(query.top.unwrap_or(usize::MAX));
    rows
}

fn is_grouped(query: &Query, columns: &[Column]) -> bool {
    let aggregates = |column: &Column| !matches!(column.source, Source::Path(_));
    !query.group_by.is_empty() || columns.iter().any(aggregates)
}

fn grouped(query: &Query, columns: &[Column], twins: impl Iterator<Item = Value>) -> Vec<Value> {
    let mut groups: Vec<(Vec<Option<Value>>, Vec<Value>)> = Vec::new();
    if query.group_by.is_empty() {
        // Without GROUP BY everything is one group, also when nothing was found.
        groups.push((Vec::new(), Vec::new()));
    }
    for twin in twins {
        let key: Vec<_> = query
            .group_by
            .iter()
            .map(|path| look_up(&twin, path).cloned())
            .collect();
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, members)) => members.push(twin),
            None => groups.push((key, vec![twin])),
        }
    }
    groups
        .iter()
        .map(|(_, members)| project(columns, members))
        .collect()
}

/// One row out of the twins of a group; a column without a value is left out.
fn project(columns: &[Column], members: &[Value]) -> Value {
    let mut row = Map::new();
    for (index, column) in columns.iter().enumerate() {
        let value = match &column.source {
            Source::Path(path) => members
                .first()
                .and_then(|twin| look_up(twin, path))
                .cloned(),
            Source::Count => Some(members.len().into()),
            Source::Aggregate(aggregate, path) => {
                let numbers = members
                    .iter()
                    .filter_map(|twin| look_up(twin, path)?.as_f64());
                compute(*aggregate, numbers)
            }
        };
        let name = match (&column.alias, &column.source) {
            (Some(alias), _) => alias.clone(),
            (None, Source::Path(path)) => path.last().cloned().unwrap_or_default(),
            (None, _) => format!("${}", index + 1),
        };
        if let Some(value) = value {
            row.insert(name, value);
        }
    }
    row.into()
}

fn compute(aggregate: Aggregate, numbers: impl Iterator<Item = f64>) -> Option<Value> {
    let numbers: Vec<f64> = numbers.collect();
    let sum: f64 = numbers.iter().sum();
    let result = match aggregate {
        Aggregate::Sum => sum,
        _ if numbers.is_empty() => return None,
        Aggregate::Avg => sum / numbers.len() as f64,
        Aggregate::Min => numbers.into_iter().fold(f64::INFINITY, f64::min),
        Aggregate::Max => numbers.into_iter().fold(f64::NEG_INFINITY, f64::max),
    };
    // A whole number is shown as one.
    let whole = result as i64;
    Some(if whole as f64 == result {
        whole.into()
    } else {
        result.into()
    })
}

fn look_up<'a>(twin: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(twin, |value, name| value.get(name))
}

/// `None` is undefined.
fn test(expr: &Expr, twin: &Value) -> Option<bool> {
    match expr {
        Expr::And(terms) => decided_by(false, terms, twin),
        Expr::Or(terms) => decided_by(true, terms, twin),
        Expr::Not(inner) => test(inner, twin).map(|result| !result),
        Expr::Compare(left, comparison, right) => {
            compare(value_of(left, twin)?, *comparison, value_of(right, twin)?)
        }
        Expr::In(operand, items) => {
            let value = value_of(operand, twin)?;
            Some(
                items
                    .iter()
                    .any(|item| compare(value, Comparison::Equal, item) == Some(true)),
            )
        }
        Expr::IsDefined(path) => Some(look_up(twin, path).is_some()),
        Expr::StartsWith(path, prefix) => {
            Some(look_up(twin, path)?.as_str()?.starts_with(prefix.as_str()))
        }
    }
}

/// The result of a chain in which one term that is `deciding` decides; without such a term an undefined
/// one leaves the whole undefined.
fn decided_by(deciding: bool, terms: &[Expr], twin: &Value) -> Option<bool> {
    let mut result = Some(!deciding);
    for term in terms {
        match test(term, twin) {
            Some(value) if value == deciding => return Some(deciding),
            Some(_) => {}
            None => result = None,
        }
    }
    result
}

fn value_of<'a>(operand: &'a Operand, twin: &'a Value) -> Option<&'a Value> {
    match operand {
        Operand::Literal(value) => Some(value),
        Operand::Path(path) => look_up(twin, path),
    }
}

fn compare(left: &Value, comparison: Comparison, right: &Value) -> Option<bool> {
    let ordering = match (left, right) {
        (Value::Null, Value::Null) => Ordering::Equal,
        (Value::Bool(left), Value::Bool(right)) => left.cmp(right),
        (Value::String(left), Value::String(right)) => left.cmp(right),
        (Value::Number(left), Value::Number(right)) => {
            left.as_f64()?.partial_cmp(&right.as_f64()?)?
        }
        _ => return None,
    };
    Some(match comparison {
        Comparison::Equal => ordering.is_eq(),
        Comparison::NotEqual => ordering.is_ne(),
        Comparison::Less => ordering.is_lt(),
        Comparison::LessOrEqual => ordering.is_le(),
        Comparison::Greater => ordering.is_gt(),
        Comparison::GreaterOrEqual => ordering.is_ge(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::query_parse::parse;

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

    fn rows(query: &str) -> Value {
        run(&parse(query).unwrap(), fleet()).into()
    }

    fn ids(condition: &str) -> String {
        let rows = run(
            &parse(&format!("SELECT * FROM devices WHERE {condition}")).unwrap(),
            fleet(),
        );
        rows.iter()
            .map(|row| row["deviceId"].as_str().unwrap())
            .collect()
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
            json!([{ "s": "downloading", "n": 1 }, { "s": "applyComplete", "n": 2 }, { "n": 1 }])
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
}
