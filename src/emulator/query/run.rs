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

/// What a query looks into. Only what it asks for has to be there as JSON.
pub(crate) trait Document {
    /// What the path leads to.
    fn look_up(&self, path: &[String]) -> Option<Cow<'_, Value>>;
    /// All of it.
    fn whole(&self) -> Value;
}

impl Document for Value {
    fn look_up(&self, path: &[String]) -> Option<Cow<'_, Value>> {
        let found = path.iter().try_fold(self, |value, name| value.get(name));
        found.map(Cow::Borrowed)
    }

    fn whole(&self) -> Value {
        self.clone()
    }
}

/// What a query needs of a document that it found.
pub(crate) struct Found {
    /// All of it; null when only columns are wanted.
    whole: Value,
    /// For each column the value that its path leads to.
    columns: Vec<Option<Value>>,
    /// For each path of GROUP BY its value.
    group: Vec<Option<Value>>,
}

/// Whether the condition is true of the document.
pub(crate) fn holds(condition: &Expr, document: &impl Document) -> bool {
    truth(condition, document) == Some(true)
}

/// What the query needs of the document; `None` when its condition is not true of it.
pub(crate) fn find(query: &Query, document: &impl Document) -> Option<Found> {
    let filter = query.filter.as_ref();
    if !filter.is_none_or(|filter| holds(filter, document)) {
        return None;
    }
    let value = |path: &Path| document.look_up(path).map(Cow::into_owned);
    let (whole, columns) = match &query.select {
        Select::Whole => (document.whole(), Vec::new()),
        Select::Columns(columns) => {
            let column = |column: &Column| match &column.source {
                Source::Path(path) | Source::Aggregate(_, path) => value(path),
                Source::Count => None,
            };
            (Value::Null, columns.iter().map(column).collect())
        }
    };
    Some(Found {
        whole,
        columns,
        group: query.group_by.iter().map(value).collect(),
    })
}

/// The rows of `page`, and the token of the next page if there is one.
///
/// What was found comes with the documents' keys and in their order; for a query without groups only what
/// is after the page's key is needed. Since a page starts after a key and not at a count, no row is given
/// twice or left out because documents came or went in between.
pub(crate) fn rows(
    query: &Query,
    page: &Page,
    found: impl Iterator<Item = (String, Found)>,
) -> (Vec<Value>, Option<String>) {
    match &query.select {
        Select::Whole => page.cut(query.top, found.map(|(key, found)| (key, found.whole))),
        Select::Columns(columns) if query.is_grouped() => {
            page.cut(query.top, grouped(query, columns, found).into_iter())
        }
        Select::Columns(columns) => {
            let row = |(key, found): (String, Found)| (key, row(columns, found.columns));
            page.cut(query.top, found.map(row))
        }
    }
}

/// A row of the columns' values; a column without a value is left out.
fn row(columns: &[Column], values: Vec<Option<Value>>) -> Value {
    let mut row = Map::new();
    for (index, (column, value)) in columns.iter().zip(values).enumerate() {
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

/// What was gathered of a group so far.
struct Group {
    /// Those of the columns that are paths, which are the same in all members.
    values: Vec<Option<Value>>,
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
    found: impl Iterator<Item = (String, Found)>,
) -> Vec<(String, Value)> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    if query.group_by.is_empty() {
        // Without GROUP BY everything is one group, also when nothing was found.
        groups.insert("[]".to_owned(), Group::new(vec![None; columns.len()]));
    }
    for (_, found) in found {
        // An array of arrays, so that a missing value is another group than null.
        let values: Vec<Vec<&Value>> = found.group.iter().map(|v| v.iter().collect()).collect();
        let key = serde_json::to_string(&values).unwrap_or_default();
        let group = groups
            .entry(key)
            .or_insert_with(|| Group::new(found.columns.clone()));
        group.count += 1;
        for (numbers, value) in group.numbers.iter_mut().zip(&found.columns) {
            numbers.add(value.as_ref().and_then(Value::as_f64));
        }
    }
    groups
        .into_iter()
        .map(|(key, group)| (key, row(columns, group.into_values(columns))))
        .collect()
}

impl Group {
    fn new(values: Vec<Option<Value>>) -> Self {
        let none = Numbers {
            count: 0,
            sum: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
        };
        Self {
            numbers: vec![none; values.len()],
            values,
            count: 0,
        }
    }

    fn into_values(mut self, columns: &[Column]) -> Vec<Option<Value>> {
        for (index, column) in columns.iter().enumerate() {
            match &column.source {
                Source::Path(_) => {}
                Source::Count => self.values[index] = Some(self.count.into()),
                Source::Aggregate(aggregate, _) => {
                    self.values[index] = self.numbers[index].result(*aggregate);
                }
            }
        }
        self.values
    }
}

impl Numbers {
    fn add(&mut self, number: Option<f64>) {
        if let Some(number) = number {
            self.count += 1;
            self.sum += number;
            self.min = self.min.min(number);
            self.max = self.max.max(number);
        }
    }

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

/// `None` is undefined, and so is the truth of what is no boolean.
fn truth(expr: &Expr, document: &impl Document) -> Option<bool> {
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
        Expr::IsDefined(path) => Some(document.look_up(path).is_some()),
        Expr::StartsWith(path, prefix) => Some(
            document
                .look_up(path)?
                .as_str()?
                .starts_with(prefix.as_str()),
        ),
        Expr::Arithmetic(..) | Expr::Negative(_) => None,
        Expr::Literal(value) => value.as_bool(),
        Expr::Path(path) => document.look_up(path)?.as_bool(),
    }
}

/// The result of a chain in which one term that is `deciding` decides; without such a term an undefined
/// one leaves the whole undefined.
fn decided_by(deciding: bool, terms: &[Expr], document: &impl Document) -> Option<bool> {
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

fn value<'a>(expr: &'a Expr, document: &'a impl Document) -> Option<Cow<'a, Value>> {
    match expr {
        Expr::Literal(value) => Some(Cow::Borrowed(value)),
        Expr::Path(path) => document.look_up(path),
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

fn number(expr: &Expr, document: &impl Document) -> Option<f64> {
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
