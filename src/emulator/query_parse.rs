//! The query language of `POST /devices/query`: text to syntax tree.
//!
//! ```text
//! query   = SELECT [TOP n] ( '*' | column {',' column} ) FROM devices [WHERE or] [GROUP BY path {',' path}]
//! column  = ( path | COUNT '(' ')' | (SUM|AVG|MIN|MAX) '(' path ')' ) [AS name]
//! or      = and {OR and}
//! and     = not {AND not}
//! not     = NOT not | primary
//! primary = '(' or ')' | IS_DEFINED '(' path ')' | STARTSWITH '(' path ',' text ')'
//!         | operand ( ('=' | '!=' | '<>' | '<' | '<=' | '>' | '>=') operand | [NOT] IN list | NIN list )
//! operand = literal | path
//! list    = '[' literal {',' literal} ']'
//! path    = name {'.' name}          name = identifier | '[[' any text ']]'
//! ```
//! Keywords are case-insensitive, names are not. Every error says where and what was expected.

use serde_json::Value;

/// A query, ready to run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Query {
    pub(crate) top: Option<usize>,
    pub(crate) select: Select,
    pub(crate) filter: Option<Expr>,
    pub(crate) group_by: Vec<Path>,
}

/// What the rows hold.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Select {
    /// `*`: whole twins.
    Twins,
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

/// Names from the twin's root to a member.
pub(crate) type Path = Vec<String>;

/// A condition.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expr {
    /// Flat, so that a long chain is no deep tree.
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Not(Box<Expr>),
    Compare(Operand, Comparison, Operand),
    In(Operand, Vec<Value>),
    IsDefined(Path),
    StartsWith(Path, String),
}

/// One side of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    Literal(Value),
    Path(Path),
}

/// How two operands are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// What is wrong with a query, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Query syntax error at character {at}: {problem}")]
pub(crate) struct SyntaxError {
    /// Counted in characters from 1.
    at: usize,
    problem: String,
}

/// Conditions nested deeper than this are refused, so that no query can exhaust the stack.
const DEPTH: usize = 64;

/// Parses a whole query.
pub(crate) fn parse(text: &str) -> Result<Query, SyntaxError> {
    let mut parser = Parser {
        tokens: tokens(text)?,
        next: 0,
        depth: 0,
    };
    let query = parser.query()?;
    match parser.peek() {
        Token::End => Ok(query),
        _ => Err(parser.expected("the end of the query")),
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// A bare word: keyword or name.
    Word(String),
    /// `[[name]]`.
    Quoted(String),
    Text(String),
    Number(Value),
    Symbol(&'static str),
    End,
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(word) => write!(f, "'{word}'"),
            Self::Quoted(name) => write!(f, "'[[{name}]]'"),
            Self::Text(text) => write!(f, "the text '{text}'"),
            Self::Number(number) => write!(f, "the number {number}"),
            Self::Symbol(symbol) => write!(f, "'{symbol}'"),
            Self::End => f.write_str("the end"),
        }
    }
}

/// Longest first, so that `<=` is not read as `<`.
const SYMBOLS: [&str; 14] = [
    "!=", "<>", "<=", ">=", "=", "<", ">", "(", ")", "[", "]", ",", ".", "*",
];

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, SyntaxError> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        let at = text[..text.len() - rest.len()].chars().count() + 1;
        let error = |problem: &str| SyntaxError {
            at,
            problem: problem.to_owned(),
        };
        let Some(first) = rest.chars().next() else {
            tokens.push((at, Token::End));
            return Ok(tokens);
        };
        let (token, length) = if first == '\'' || first == '"' {
            let end = rest[1..]
                .find(first)
                .ok_or_else(|| error("this text has no closing quote"))?;
            (Token::Text(rest[1..=end].to_owned()), end + 2)
        } else if let Some(name) = rest.strip_prefix("[[") {
            let end = name
                .find("]]")
                .ok_or_else(|| error("this name has no closing ']]'"))?;
            (Token::Quoted(name[..end].to_owned()), end + 4)
        } else if first.is_ascii_digit() || first == '-' {
            let in_number = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+');
            let end = rest.find(|c| !in_number(c)).unwrap_or(rest.len());
            let number = serde_json::from_str(&rest[..end])
                .map_err(|_| error(&format!("'{}' is no number", &rest[..end])))?;
            (Token::Number(number), end)
        } else if first.is_alphabetic() || first == '_' || first == '$' {
            let in_word = |c: char| c.is_alphanumeric() || matches!(c, '_' | '$' | '-');
            let end = rest.find(|c| !in_word(c)).unwrap_or(rest.len());
            (Token::Word(rest[..end].to_owned()), end)
        } else if let Some(symbol) = SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
            (Token::Symbol(symbol), symbol.len())
        } else {
            return Err(error(&format!("'{first}' is not understood here")));
        };
        tokens.push((at, token));
        rest = &rest[length..];
    }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.next].1
    }

    /// The next token; the last one, the end, is never passed.
    fn take(&mut self) -> Token {
        let token = self.peek().clone();
        if token != Token::End {
            self.next += 1;
        }
        token
    }

    fn error(&self, problem: impl Into<String>) -> SyntaxError {
        SyntaxError {
            at: self.tokens[self.next].0,
            problem: problem.into(),
        }
    }

    fn expected(&self, what: &str) -> SyntaxError {
        self.error(format!("expected {what}, found {}", self.peek()))
    }

    fn at_keyword(&self, keyword: &str) -> bool {
        matches!(self.peek(), Token::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    fn accept_keyword(&mut self, keyword: &str) -> bool {
        let found = self.at_keyword(keyword);
        if found {
            self.next += 1;
        }
        found
    }

    fn keyword(&mut self, keyword: &str) -> Result<(), SyntaxError> {
        if self.accept_keyword(keyword) {
            return Ok(());
        }
        Err(self.expected(keyword))
    }

    fn accept(&mut self, symbol: &'static str) -> bool {
        let found = *self.peek() == Token::Symbol(symbol);
        if found {
            self.next += 1;
        }
        found
    }

    fn symbol(&mut self, symbol: &'static str) -> Result<(), SyntaxError> {
        if self.accept(symbol) {
            return Ok(());
        }
        Err(self.expected(&format!("'{symbol}'")))
    }

    /// Whether the next word is `function` followed by an opening parenthesis; takes both.
    fn accept_function(&mut self, function: &str) -> bool {
        let called = self
            .tokens
            .get(self.next + 1)
            .is_some_and(|(_, token)| *token == Token::Symbol("("));
        let found = called && self.at_keyword(function);
        if found {
            self.next += 2;
        }
        found
    }

    fn query(&mut self) -> Result<Query, SyntaxError> {
        self.keyword("SELECT")?;
        let top = match self.accept_keyword("TOP") {
            true => Some(self.count()?),
            false => None,
        };
        let select = match self.accept("*") {
            true => Select::Twins,
            false => Select::Columns(self.separated(Self::column)?),
        };
        self.keyword("FROM")?;
        self.source()?;
        let filter = match self.accept_keyword("WHERE") {
            true => Some(self.or()?),
            false => None,
        };
        let group_by = match self.accept_keyword("GROUP") {
            true => {
                self.keyword("BY")?;
                self.separated(Self::path)?
            }
            false => Vec::new(),
        };
        if self.at_keyword("ORDER") || self.at_keyword("JOIN") {
            return Err(self.error("the hub knows no ORDER BY and no JOIN"));
        }
        Ok(Query {
            top,
            select,
            filter,
            group_by,
        })
    }

    fn count(&mut self) -> Result<usize, SyntaxError> {
        let count = match self.peek() {
            Token::Number(number) => number.as_u64().and_then(|n| usize::try_from(n).ok()),
            _ => None,
        };
        let count = count.ok_or_else(|| self.expected("a count after TOP"))?;
        self.next += 1;
        Ok(count)
    }

    fn separated<T>(
        &mut self,
        item: impl Fn(&mut Self) -> Result<T, SyntaxError>,
    ) -> Result<Vec<T>, SyntaxError> {
        let mut items = vec![item(self)?];
        while self.accept(",") {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn source(&mut self) -> Result<(), SyntaxError> {
        if !self.at_keyword("devices") {
            return Err(self.expected("'devices'"));
        }
        self.next += 1;
        if *self.peek() == Token::Symbol(".") {
            return Err(self.error("this emulator answers queries FROM devices only"));
        }
        Ok(())
    }

    fn column(&mut self) -> Result<Column, SyntaxError> {
        let aggregates = [
            ("SUM", Aggregate::Sum),
            ("AVG", Aggregate::Avg),
            ("MIN", Aggregate::Min),
            ("MAX", Aggregate::Max),
        ];
        let source = if self.accept_function("COUNT") {
            self.symbol(")")?;
            Source::Count
        } else if let Some((_, aggregate)) = aggregates
            .into_iter()
            .find(|(name, _)| self.accept_function(name))
        {
            let path = self.path()?;
            self.symbol(")")?;
            Source::Aggregate(aggregate, path)
        } else {
            Source::Path(self.path()?)
        };
        let alias = match self.accept_keyword("AS") {
            true => Some(self.name("a name after AS")?),
            false => None,
        };
        Ok(Column { source, alias })
    }

    fn name(&mut self, what: &str) -> Result<String, SyntaxError> {
        match self.peek() {
            Token::Word(_) | Token::Quoted(_) => {}
            _ => return Err(self.expected(what)),
        }
        match self.take() {
            Token::Word(name) | Token::Quoted(name) => Ok(name),
            _ => Err(self.expected(what)),
        }
    }

    fn path(&mut self) -> Result<Path, SyntaxError> {
        const RESERVED: [&str; 12] = [
            "SELECT", "TOP", "FROM", "WHERE", "GROUP", "BY", "AS", "AND", "OR", "NOT", "IN", "NIN",
        ];
        if RESERVED.iter().any(|keyword| self.at_keyword(keyword)) {
            return Err(self.expected("the path of a property"));
        }
        let mut path = vec![self.name("the path of a property")?];
        while self.accept(".") {
            path.push(self.name("a name after '.'")?);
        }
        // `devices.tags.site` is `tags.site`.
        if path.len() > 1 && path[0] == "devices" {
            path.remove(0);
        }
        Ok(path)
    }

    fn or(&mut self) -> Result<Expr, SyntaxError> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(self.error("the condition is nested too deeply"));
        }
        let mut terms = vec![self.and()?];
        while self.accept_keyword("OR") {
            terms.push(self.and()?);
        }
        self.depth -= 1;
        Ok(joined(terms, Expr::Or))
    }

    fn and(&mut self) -> Result<Expr, SyntaxError> {
        let mut terms = vec![self.not()?];
        while self.accept_keyword("AND") {
            terms.push(self.not()?);
        }
        Ok(joined(terms, Expr::And))
    }

    fn not(&mut self) -> Result<Expr, SyntaxError> {
        // Twice is the same as not at all, as NOT of "undefined" is "undefined" again.
        let mut negated = false;
        while self.accept_keyword("NOT") {
            negated = !negated;
        }
        let inner = self.primary()?;
        Ok(if negated {
            Expr::Not(Box::new(inner))
        } else {
            inner
        })
    }

    fn primary(&mut self) -> Result<Expr, SyntaxError> {
        if self.accept("(") {
            let inner = self.or()?;
            self.symbol(")")?;
            return Ok(inner);
        }
        if self.accept_function("IS_DEFINED") {
            let path = self.path()?;
            self.symbol(")")?;
            return Ok(Expr::IsDefined(path));
        }
        if self.accept_function("STARTSWITH") {
            let path = self.path()?;
            self.symbol(",")?;
            let Token::Text(prefix) = self.peek().clone() else {
                return Err(self.expected("a text in quotes"));
            };
            self.next += 1;
            self.symbol(")")?;
            return Ok(Expr::StartsWith(path, prefix));
        }
        let left = self.operand()?;
        if self.accept_keyword("IN") {
            return Ok(Expr::In(left, self.list()?));
        }
        if self.accept_keyword("NIN") {
            return Ok(Expr::Not(Box::new(Expr::In(left, self.list()?))));
        }
        if self.accept_keyword("NOT") {
            self.keyword("IN")?;
            return Ok(Expr::Not(Box::new(Expr::In(left, self.list()?))));
        }
        let comparison = self.comparison()?;
        Ok(Expr::Compare(left, comparison, self.operand()?))
    }

    fn comparison(&mut self) -> Result<Comparison, SyntaxError> {
        let comparison = match self.peek() {
            Token::Symbol("=") => Comparison::Equal,
            Token::Symbol("!=" | "<>") => Comparison::NotEqual,
            Token::Symbol("<") => Comparison::Less,
            Token::Symbol("<=") => Comparison::LessOrEqual,
            Token::Symbol(">") => Comparison::Greater,
            Token::Symbol(">=") => Comparison::GreaterOrEqual,
            _ => return Err(self.expected("a comparison (= != <> < <= > >= IN NIN)")),
        };
        self.next += 1;
        Ok(comparison)
    }

    fn operand(&mut self) -> Result<Operand, SyntaxError> {
        Ok(match self.literal() {
            Some(literal) => Operand::Literal(literal),
            None => Operand::Path(self.path()?),
        })
    }

    fn literal(&mut self) -> Option<Value> {
        let literal = match self.peek() {
            Token::Text(text) => Value::String(text.clone()),
            Token::Number(number) => number.clone(),
            Token::Word(word) if word.eq_ignore_ascii_case("true") => Value::Bool(true),
            Token::Word(word) if word.eq_ignore_ascii_case("false") => Value::Bool(false),
            Token::Word(word) if word.eq_ignore_ascii_case("null") => Value::Null,
            _ => return None,
        };
        self.next += 1;
        Some(literal)
    }

    fn list(&mut self) -> Result<Vec<Value>, SyntaxError> {
        self.symbol("[")?;
        let items = self.separated(|parser| {
            parser
                .literal()
                .ok_or_else(|| parser.expected("a text, number, true, false or null"))
        })?;
        self.symbol("]")?;
        Ok(items)
    }
}

fn joined(mut terms: Vec<Expr>, join: fn(Vec<Expr>) -> Expr) -> Expr {
    match terms.pop() {
        Some(only) if terms.is_empty() => only,
        Some(last) => {
            terms.push(last);
            join(terms)
        }
        None => join(terms),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn path(text: &str) -> Path {
        text.split('.').map(str::to_owned).collect()
    }

    fn problem(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn the_queries_of_a_fleet_operator_are_read() {
        let query = parse(
            "SELECT deviceId, properties.reported.iothubDM.firmwareUpdate.status AS s \
             FROM devices WHERE tags.site = 'lab'",
        )
        .unwrap();
        assert_eq!(
            query.filter,
            Some(Expr::Compare(
                Operand::Path(path("tags.site")),
                Comparison::Equal,
                Operand::Literal(json!("lab"))
            ))
        );
        let Select::Columns(columns) = query.select else {
            panic!("columns were asked for");
        };
        assert_eq!(columns[0].source, Source::Path(path("deviceId")));
        assert_eq!(columns[1].alias.as_deref(), Some("s"));

        let query = parse("select tags.a AS s, count() as n from devices group by tags.a").unwrap();
        assert_eq!(query.group_by, vec![path("tags.a")]);
    }

    #[test]
    fn and_binds_tighter_than_or_and_not_tighter_than_and() {
        let query = |text: &str| parse(&format!("SELECT * FROM devices WHERE {text}")).unwrap();
        assert_eq!(
            query("a=1 OR NOT b=2 AND c=3"),
            query("a=1 OR ((NOT (b=2)) AND c=3)")
        );
        assert_ne!(query("a=1 OR b=2 AND c=3"), query("(a=1 OR b=2) AND c=3"));
        assert_eq!(query("NOT NOT a=1"), query("a=1"));
        assert_eq!(query("a NOT IN [1]"), query("a NIN [1]"));
    }

    #[test]
    fn odd_names_stand_in_double_brackets() {
        let query = parse("SELECT [[my name]] FROM devices WHERE tags.[[a.b]] IN ['x', 2, true]");
        let query = query.unwrap();
        let in_path = vec!["tags".to_owned(), "a.b".to_owned()];
        assert_eq!(
            query.filter,
            Some(Expr::In(
                Operand::Path(in_path),
                vec![json!("x"), json!(2), json!(true)]
            ))
        );
    }

    #[test]
    fn every_error_says_where_and_what() {
        assert_eq!(
            problem("SELECT * FROM devices WHERE tags.site == 'lab'"),
            "Query syntax error at character 40: expected the path of a property, found '='"
        );
        assert_eq!(
            problem("SELECT * FROM device"),
            "Query syntax error at character 15: expected 'devices', found 'device'"
        );
        assert!(problem("SELECT * FROM devices WHERE a = 'x").contains("no closing quote"));
        assert!(problem("SELECT * FROM devices WHERE a").contains("expected a comparison"));
        assert!(problem("SELECT * FROM devices extra").contains("the end of the query"));
        assert!(problem("SELECT FROM devices").contains("the path of a property"));
        assert!(problem("SELECT * FROM devices WHERE a IN []").contains("expected a text"));
        assert!(problem("SELECT * FROM devices.jobs").contains("FROM devices only"));
        assert!(problem("tags.site = 'lab'").contains("expected SELECT"));
        assert!(problem("SELECT * FROM devices ORDER BY a").contains("no ORDER BY"));
        assert!(problem("").contains("found the end"));
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        let deep = format!(
            "SELECT * FROM devices WHERE {}a=1{}",
            "(".repeat(9999),
            ")".repeat(9999)
        );
        assert!(problem(&deep).contains("too deeply"));
        let not = format!("SELECT * FROM devices WHERE {} a=1", "NOT ".repeat(9999));
        assert!(parse(&not).is_ok());
        let chain = format!(
            "SELECT * FROM devices WHERE a=1{}",
            " OR a=1".repeat(99_999)
        );
        assert!(parse(&chain).is_ok());
    }

    /// A condition as text, with the tree it must become. No keyword begins with `tx`: a bare one is no name.
    fn condition() -> impl Strategy<Value = (String, Expr)> {
        let leaf = prop_oneof![
            ("tx[a-z]{1,5}", -99_i64..99).prop_map(|(name, number)| (
                format!("tags.{name} >= {number}"),
                Expr::Compare(
                    Operand::Path(vec!["tags".into(), name]),
                    Comparison::GreaterOrEqual,
                    Operand::Literal(number.into()),
                ),
            )),
            "tx[a-z]{1,5}"
                .prop_map(|name| (format!("is_defined( {name} )"), Expr::IsDefined(vec![name]))),
        ];
        leaf.prop_recursive(5, 32, 2, |inner| {
            prop_oneof![
                (inner.clone(), inner.clone()).prop_map(|((a, x), (b, y))| (
                    format!("({a}) and ({b})"),
                    Expr::And(vec![x, y]),
                )),
                (inner.clone(), inner.clone())
                    .prop_map(
                        |((a, x), (b, y))| (format!("({a}) OR ({b})"), Expr::Or(vec![x, y]),)
                    ),
                inner.prop_map(|(a, x)| (format!("NOT ({a})"), Expr::Not(Box::new(x)))),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".*") {
            let _ = parse(&text);
            let _ = parse(&format!("SELECT * FROM devices WHERE {text}"));
        }

        #[test]
        fn any_jumble_of_tokens_is_answered(words in proptest::collection::vec(
            prop_oneof![
                Just("SELECT"), Just("*"), Just("FROM"), Just("devices"), Just("WHERE"), Just("("), Just(")"),
                Just("NOT"), Just("IN"), Just("["), Just("]"), Just(","), Just("AND"), Just("a.b"), Just("="),
                Just("'x'"), Just("1"), Just("COUNT()"), Just("GROUP BY"), Just("TOP"), Just("AS"), Just("[[é]]"),
            ],
            0..20,
        )) {
            let _ = parse(&words.join(" "));
        }

        #[test]
        fn a_written_condition_becomes_its_tree((text, expected) in condition()) {
            let query = parse(&format!("SELECT * FROM devices WHERE {text}")).unwrap();
            prop_assert_eq!(query.filter, Some(expected));
        }
    }
}
