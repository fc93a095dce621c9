//! Runs a query over documents: filter, group, project.
//!
//! A path that leads nowhere, a comparison of two types and arithmetic on what is no number are
//! *undefined*: neither true nor false. A row is in only when its condition is true, so `a != 1` leaves
//! out a twin without `a`.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::page::Page;
use super::tree::{Aggregate, Column, Comparison, Expr, Operator, Path, Query, Select, Source};

/// Whether the condition is true of the document.
pub(crate) fn holds(condition: &Expr, document: &Value) -> bool {
    truth(condition, document) == Some(true)
}

/// The rows of `page`, and the token of the next page if there is one.
///
/// Each document comes with its key, and the documents come in the order of their keys; for a query
/// without groups only those after the page's key are needed. Since a page starts after a key and not at
/// a count, no row is given twice or left out because documents came or went in between.
pub(crate) fn rows(
    query: &Query,
    page: &Page,
    documents: impl Iterator<Item = (String, Value)>,
) -> (Vec<Value>, Option<String>) {
    let selected = documents.filter(|(_, document)| {
        let filter = query.filter.as_ref();
        filter.is_none_or(|filter| holds(filter, document))
    });
    match &query.select {
        Select::Whole => page.cut(query.top, selected),
        Select::Columns(columns) if query.is_grouped() => {
            page.cut(query.top, grouped(query, columns, selected))
        }
        Select::Columns(columns) => page.cut(
            query.top,
            selected.map(|(key, document)| {
                let row = Row::from_document(columns, &document);
                (key, row.into_value(columns))
            }),
        ),
    }
}

/// The values of a row's columns; a column without a value is left out of the row.
struct Row(Vec<Option<Value>>);

impl Row {
    fn from_document(columns: &[Column], document: &Value) -> Self {
        let value = |column: &Column| match &column.source {
            Source::Path(path) => look_up(document, path).cloned(),
            Source::Count | Source::Aggregate(..) => None,
        };
        Self(columns.iter().map(value).collect())
    }

    fn into_value(self, columns: &[Column]) -> Value {
        let mut row = Map::new();
        for (index, (column, value)) in columns.iter().zip(self.0).enumerate() {
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
}

/// What was gathered of a group so far.
struct Group {
    /// The columns that are paths: the same in all members.
    row: Row,
    count: u64,
    /// One for each column.
    numbers: Vec<Numbers>,
}

/// The numbers of a column in a group.
#[derive(Clone, Copy)]
struct Numbers {
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
}

/// A row for each group, with the group's values as its key.
fn grouped(
    query: &Query,
    columns: &[Column],
    documents: impl Iterator<Item = (String, Value)>,
) -> impl Iterator<Item = (String, Value)> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    if query.group_by.is_empty() {
        // Without GROUP BY everything is one group, also when nothing was found.
        groups.insert("[]".to_owned(), Group::new(columns, &Value::Null));
    }
    for (_, document) in documents {
        // An array of arrays, so that a missing value is another group than null.
        let values: Vec<Vec<&Value>> = query
            .group_by
            .iter()
            .map(|path| look_up(&document, path).into_iter().collect())
            .collect();
        let key = serde_json::to_string(&values).unwrap_or_default();
        groups
            .entry(key)
            .or_insert_with(|| Group::new(columns, &document))
            .add(columns, &document);
    }
    let columns = columns.to_vec();
    groups
        .into_iter()
        .map(move |(key, group)| (key, group.into_row(&columns).into_value(&columns)))
}

impl Group {
    fn new(columns: &[Column], first: &Value) -> Self {
        let none = Numbers {
            count: 0,
            sum: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
        };
        Self {
            row: Row::from_document(columns, first),
            count: 0,
            numbers: vec![none; columns.len()],
        }
    }

    fn add(&mut self, columns: &[Column], document: &Value) {
        self.count += 1;
        for (column, numbers) in columns.iter().zip(&mut self.numbers) {
            if let Source::Aggregate(_, path) = &column.source
                && let Some(number) = look_up(document, path).and_then(Value::as_f64)
            {
                numbers.count += 1;
                numbers.sum += number;
                numbers.min = numbers.min.min(number);
                numbers.max = numbers.max.max(number);
            }
        }
    }

    fn into_row(mut self, columns: &[Column]) -> Row {
        for (index, column) in columns.iter().enumerate() {
            match &column.source {
                Source::Path(_) => {}
                Source::Count => self.row.0[index] = Some(self.count.into()),
                Source::Aggregate(aggregate, _) => {
                    self.row.0[index] = self.numbers[index].result(*aggregate);
                }
            }
        }
        self.row
    }
}

impl Numbers {
    fn result(self, aggregate: Aggregate) -> Option<Value> {
        match aggregate {
            Aggregate::Sum => Some(shown(self.sum)),
            _ if self.count == 0 => None,
            Aggregate::Avg => Some(shown(self.sum / self.count as f64)),
            Aggregate::Min => Some(shown(self.min)),
            Aggregate::Max => Some(shown(self.max)),
        }
    }
}

/// A whole number is shown as one.
fn shown(number: f64) -> Value {
    let whole = number as i64;
    if whole as f64 == number {
        whole.into()
    } else {
        number.into()
    }
}

fn look_up<'a>(document: &'a Value, path: &Path) -> Option<&'a Value> {
    path.iter()
        .try_fold(document, |value, name| value.get(name))
}

/// `None` is undefined, and so is the truth of what is no boolean.
fn truth(expr: &Expr, document: &Value) -> Option<bool> {
    match expr {
        Expr::And(terms) => decided_by(false, terms, document),
        Expr::Or(terms) => decided_by(true, terms, document),
        Expr::Not(inner) => truth(inner, document).map(|result| !result),
        Expr::Compare(left, comparison, right) => {
            let (left, right) = (value(left, document)?, value(right, document)?);
            compare(&left, *comparison, &right)
        }
        Expr::In(operand, items) => {
            let value = value(operand, document)?;
            let equal = |item| compare(&value, Comparison::Equal, item) == Some(true);
            Some(items.iter().any(equal))
        }
        Expr::IsDefined(path) => Some(look_up(document, path).is_some()),
        Expr::StartsWith(path, prefix) => Some(
            look_up(document, path)?
                .as_str()?
                .starts_with(prefix.as_str()),
        ),
        Expr::Arithmetic(..) | Expr::Negative(_) => None,
        Expr::Literal(value) => value.as_bool(),
        Expr::Path(path) => look_up(document, path)?.as_bool(),
    }
}

/// The result of a chain in which one term that is `deciding` decides; without such a term an undefined
/// one leaves the whole undefined.
fn decided_by(deciding: bool, terms: &[Expr], document: &Value) -> Option<bool> {
    let mut result = Some(!deciding);
    for term in terms {
        match truth(term, document) {
            Some(value) if value == deciding => return Some(deciding),
            Some(_) => {}
            None => result = None,
        }
    }
    result
}

fn value<'a>(expr: &'a Expr, document: &'a Value) -> Option<Cow<'a, Value>> {
    match expr {
        Expr::Literal(value) => Some(Cow::Borrowed(value)),
        Expr::Path(path) => look_up(document, path).map(Cow::Borrowed),
        Expr::Arithmetic(..) | Expr::Negative(_) => {
            let number = number(expr, document)?;
            number.is_finite().then(|| Cow::Owned(shown(number)))
        }
        Expr::Or(_)
        | Expr::And(_)
        | Expr::Not(_)
        | Expr::Compare(..)
        | Expr::In(..)
        | Expr::IsDefined(_)
        | Expr::StartsWith(..) => truth(expr, document).map(|truth| Cow::Owned(truth.into())),
    }
}

fn number(expr: &Expr, document: &Value) -> Option<f64> {
    match expr {
        Expr::Negative(inner) => number(inner, document).map(|number| -number),
        Expr::Arithmetic(first, rest) => {
            let first = number(first, document)?;
            rest.iter().try_fold(first, |left, (operator, right)| {
                let right = number(right, document)?;
                Some(match operator {
                    Operator::Plus => left + right,
                    Operator::Minus => left - right,
                    Operator::Times => left * right,
                    Operator::Over => left / right,
                    Operator::Modulo => left % right,
                })
            })
        }
        other => value(other, document)?.as_f64(),
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
mod tests;
