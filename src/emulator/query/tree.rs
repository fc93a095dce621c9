//! The syntax tree of a query. Written out, a tree is a query that parses to the same tree again.

use std::fmt;

use serde_json::Value;

/// A query, ready to run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Query {
    pub(crate) top: Option<usize>,
    pub(crate) select: Select,
    pub(crate) from: Collection,
    pub(crate) filter: Option<Expr>,
    pub(crate) group_by: Vec<Path>,
}

/// What a query looks through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Collection {
    /// The twins of all devices.
    Devices,
    /// The twins of all modules; this emulator has none.
    Modules,
    /// What each job does to each device.
    Jobs,
}

/// What the rows hold.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Select {
    /// `*`: whole documents.
    Whole,
    Columns(Vec<Column>),
}

/// One member of each row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Column {
    pub(crate) source: Source,
    pub(crate) alias: Option<String>,
}

/// Where a column comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Source {
    Path(Path),
    Count,
    Aggregate(Aggregate, Path),
}

/// What is computed over the values of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aggregate {
    Sum,
    Avg,
    Min,
    Max,
}

/// Names from the document's root to a member.
pub(crate) type Path = Vec<String>;

/// Something with a value: true, false, another value, or none at all (undefined).
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expr {
    /// `OR` and `AND` chains, and those of arithmetic, are flat: a long chain is no deep tree.
    Or(Vec<Expr>),
    And(Vec<Expr>),
    Not(Box<Expr>),
    Compare(Box<Expr>, Comparison, Box<Expr>),
    In(Box<Expr>, Vec<Value>),
    /// From left to right; the operators of one chain bind alike.
    Arithmetic(Box<Expr>, Vec<(Operator, Expr)>),
    Negative(Box<Expr>),
    Literal(Value),
    Path(Path),
    IsDefined(Path),
    StartsWith(Path, String),
}

/// How two values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// How two numbers become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operator {
    Plus,
    Minus,
    Times,
    Over,
    Modulo,
}

/// Words that no path begins with, unless in double brackets.
pub(crate) const RESERVED: [&str; 15] = [
    "SELECT", "TOP", "FROM", "WHERE", "GROUP", "BY", "AS", "AND", "OR", "NOT", "IN", "NIN", "TRUE",
    "FALSE", "NULL",
];

impl Query {
    /// Whether the rows are made of groups of documents, and not of one document each.
    pub(crate) fn is_grouped(&self) -> bool {
        let aggregates = match &self.select {
            Select::Whole => false,
            Select::Columns(columns) => columns
                .iter()
                .any(|column| !matches!(column.source, Source::Path(_))),
        };
        aggregates || !self.group_by.is_empty()
    }

    /// The value of the header `x-ms-item-type`, which some SDKs read with regard to case.
    pub(crate) fn item_type(&self) -> &'static str {
        match (&self.select, self.from) {
            (Select::Columns(_), _) => "Raw",
            (Select::Whole, Collection::Devices | Collection::Modules) => "Twin",
            (Select::Whole, Collection::Jobs) => "DeviceJob",
        }
    }
}

impl Operator {
    /// Whether it binds as tightly as a multiplication.
    pub(crate) fn multiplies(self) -> bool {
        matches!(self, Self::Times | Self::Over | Self::Modulo)
    }
}

impl Expr {
    /// How tightly it binds; what binds less tightly than its surroundings needs parentheses.
    fn level(&self) -> u8 {
        match self {
            Self::Or(_) => 1,
            Self::And(_) => 2,
            Self::Not(_) => 3,
            Self::Compare(..) | Self::In(..) => 4,
            Self::Arithmetic(_, rest) => match rest.first() {
                Some((operator, _)) if operator.multiplies() => 6,
                _ => 5,
            },
            Self::Negative(_) => 7,
            Self::Literal(_) | Self::Path(_) | Self::IsDefined(_) | Self::StartsWith(..) => 8,
        }
    }
}

impl fmt::Display for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SELECT ")?;
        if let Some(top) = self.top {
            write!(f, "TOP {top} ")?;
        }
        match &self.select {
            Select::Whole => f.write_str("*")?,
            Select::Columns(columns) => list(f, columns, |column| column.to_string())?,
        }
        write!(f, " FROM {}", self.from)?;
        if let Some(filter) = &self.filter {
            write!(f, " WHERE {filter}")?;
        }
        if !self.group_by.is_empty() {
            f.write_str(" GROUP BY ")?;
            list(f, &self.group_by, dotted)?;
        }
        Ok(())
    }
}

impl fmt::Display for Collection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Devices => "devices",
            Self::Modules => "devices.modules",
            Self::Jobs => "devices.jobs",
        })
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Path(path) => f.write_str(&dotted(path))?,
            Source::Count => f.write_str("COUNT()")?,
            Source::Aggregate(aggregate, path) => {
                let function = match aggregate {
                    Aggregate::Sum => "SUM",
                    Aggregate::Avg => "AVG",
                    Aggregate::Min => "MIN",
                    Aggregate::Max => "MAX",
                };
                write!(f, "{function}({})", dotted(path))?;
            }
        }
        match &self.alias {
            Some(alias) => write!(f, " AS [[{alias}]]"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Or(terms) => chain(f, terms, " OR ", 2),
            Self::And(terms) => chain(f, terms, " AND ", 3),
            Self::Not(inner) => {
                f.write_str("NOT ")?;
                inside(f, inner, 4)
            }
            Self::Compare(left, comparison, right) => {
                inside(f, left, 5)?;
                write!(f, " {comparison} ")?;
                inside(f, right, 5)
            }
            Self::In(value, items) => {
                inside(f, value, 5)?;
                f.write_str(" IN [")?;
                list(f, items, literal)?;
                f.write_str("]")
            }
            Self::Arithmetic(first, rest) => {
                inside(f, first, self.level() + 1)?;
                for (operator, operand) in rest {
                    write!(f, " {operator} ")?;
                    inside(f, operand, self.level() + 1)?;
                }
                Ok(())
            }
            Self::Negative(inner) => {
                f.write_str("-")?;
                inside(f, inner, 7)
            }
            Self::Literal(value) => f.write_str(&literal(value)),
            Self::Path(path) => f.write_str(&dotted(path)),
            Self::IsDefined(path) => write!(f, "IS_DEFINED({})", dotted(path)),
            Self::StartsWith(path, prefix) => {
                write!(f, "STARTSWITH({}, {})", dotted(path), text(prefix))
            }
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        })
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plus => "+",
            Self::Minus => "-",
            Self::Times => "*",
            Self::Over => "/",
            Self::Modulo => "%",
        })
    }
}

fn inside(f: &mut fmt::Formatter<'_>, expr: &Expr, level: u8) -> fmt::Result {
    if expr.level() < level {
        write!(f, "({expr})")
    } else {
        write!(f, "{expr}")
    }
}

fn chain(f: &mut fmt::Formatter<'_>, terms: &[Expr], word: &str, level: u8) -> fmt::Result {
    for (index, term) in terms.iter().enumerate() {
        if index > 0 {
            f.write_str(word)?;
        }
        inside(f, term, level)?;
    }
    Ok(())
}

fn list<T>(f: &mut fmt::Formatter<'_>, items: &[T], write: impl Fn(&T) -> String) -> fmt::Result {
    let items: Vec<String> = items.iter().map(write).collect();
    f.write_str(&items.join(", "))
}

/// A path as text; names that are no plain words stand in double brackets.
fn dotted(path: &Path) -> String {
    let mut names = Vec::new();
    for (index, name) in path.iter().enumerate() {
        let mut characters = name.chars();
        let plain = characters.next().is_some_and(begins_word) && characters.all(in_word);
        // `devices` at the head would be taken for the collection.
        let taken = index == 0
            && (name == "devices" || RESERVED.iter().any(|word| name.eq_ignore_ascii_case(word)));
        names.push(match plain && !taken {
            true => name.clone(),
            false => format!("[[{name}]]"),
        });
    }
    names.join(".")
}

fn literal(value: &Value) -> String {
    match value {
        Value::String(value) => text(value),
        other => other.to_string(),
    }
}

fn text(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Whether a name may begin with `c` without double brackets.
pub(crate) fn begins_word(c: char) -> bool {
    c.is_alphabetic() || matches!(c, '_' | '$')
}

/// Whether `c` may stand in a name without double brackets.
pub(crate) fn in_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '$')
}
