//! Text to syntax tree.
//!
//! ```text
//! query   = SELECT [TOP n] ( '*' | column {',' column} ) FROM collection [WHERE or] [GROUP BY path {',' path}]
//! column  = ( path | COUNT '(' ')' | (SUM|AVG|MIN|MAX) '(' path ')' ) [AS name]
//! collection = devices | devices.modules | devices.jobs
//! or      = and {OR and}
//! and     = not {AND not}
//! not     = {NOT} compare
//! compare = sum [ ('=' | '!=' | '<>' | '<' | '<=' | '>' | '>=') sum | [NOT] IN list | NIN list ]
//! sum     = product {('+' | '-') product}
//! product = unary {('*' | '/' | '%') unary}
//! unary   = '-' unary | '(' or ')' | literal | path
//!         | IS_DEFINED '(' path ')' | STARTSWITH '(' path ',' text ')'
//! list    = '[' literal {',' literal} ']'
//! path    = name {'.' name}          name = identifier | '[[' any text ']]'
//! ```
//! Keywords are case-insensitive, names are not. Every error says where and what was expected.

use serde_json::{Number, Value};

use super::tokens::{Token, tokens};
use super::tree::{
    Aggregate, Collection, Column, Comparison, Expr, Operator, Path, Query, RESERVED, Select,
    Source,
};

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
    whole(text, "the end of the query", Parser::query)
}

/// Parses a condition on twins: what stands after WHERE.
pub(crate) fn condition(text: &str) -> Result<Expr, SyntaxError> {
    whole(text, "the end of the condition", |parser| {
        if parser.at_keyword("SELECT") {
            return Err(parser.error("only the part after WHERE belongs here, no whole query"));
        }
        parser.or()
    })
}

fn whole<T>(
    text: &str,
    end: &str,
    parse: impl FnOnce(&mut Parser) -> Result<T, Problem>,
) -> Result<T, SyntaxError> {
    let located = |(offset, problem): Problem| SyntaxError {
        at: text[..offset].chars().count() + 1,
        problem,
    };
    let mut parser = Parser {
        tokens: tokens(text).map_err(located)?,
        next: 0,
        depth: 0,
        from: Collection::Devices,
    };
    let parsed = parse(&mut parser).map_err(located)?;
    match parser.peek() {
        Token::End => Ok(parsed),
        _ => Err(located(parser.expected(end))),
    }
}

/// The offset in bytes, and what is wrong there.
type Problem = (usize, String);

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    depth: usize,
    from: Collection,
}

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.next].1
    }

    fn offset(&self) -> usize {
        self.tokens[self.next].0
    }

    fn error(&self, problem: impl Into<String>) -> Problem {
        (self.offset(), problem.into())
    }

    fn expected(&self, what: &str) -> Problem {
        self.error(format!("expected {what}, found {}", self.peek()))
    }

    fn at_keyword(&self, keyword: &str) -> bool {
        matches!(self.peek(), Token::Word(word) if word.eq_ignore_ascii_case(keyword))
    }

    fn accept_keyword(&mut self, keyword: &str) -> bool {
        let found = self.at_keyword(keyword);
        self.next += usize::from(found);
        found
    }

    fn keyword(&mut self, keyword: &str) -> Result<(), Problem> {
        match self.accept_keyword(keyword) {
            true => Ok(()),
            false => Err(self.expected(keyword)),
        }
    }

    fn accept(&mut self, symbol: &'static str) -> bool {
        let found = *self.peek() == Token::Symbol(symbol);
        self.next += usize::from(found);
        found
    }

    fn symbol(&mut self, symbol: &'static str) -> Result<(), Problem> {
        match self.accept(symbol) {
            true => Ok(()),
            false => Err(self.expected(&format!("'{symbol}'"))),
        }
    }

    /// Whether a word followed by an opening parenthesis is next.
    fn at_function(&self) -> bool {
        let after = self.tokens.get(self.next + 1).map(|(_, token)| token);
        matches!(self.peek(), Token::Word(_)) && after == Some(&Token::Symbol("("))
    }

    /// Whether `function` and its opening parenthesis are next; takes both.
    fn accept_function(&mut self, function: &str) -> bool {
        let found = self.at_function() && self.at_keyword(function);
        self.next += if found { 2 } else { 0 };
        found
    }

    fn query(&mut self) -> Result<Query, Problem> {
        self.keyword("SELECT")?;
        let top = match self.accept_keyword("TOP") {
            true => Some(self.count()?),
            false => None,
        };
        let columns_at = self.next;
        let select = match self.accept("*") {
            true => Select::Whole,
            false => Select::Columns(self.separated(Self::column)?),
        };
        self.keyword("FROM")?;
        self.collection()?;
        if self.from == Collection::Jobs && select != Select::Whole {
            self.next = columns_at;
            return Err(self.error("queries FROM devices.jobs can only SELECT *"));
        }
        let filter = match self.accept_keyword("WHERE") {
            true => Some(self.or()?),
            false => None,
        };
        let group_at = self.offset();
        let group_by = match self.accept_keyword("GROUP") {
            true => {
                self.keyword("BY")?;
                self.separated(Self::path)?
            }
            false => Vec::new(),
        };
        for foreign in ["ORDER", "JOIN", "HAVING", "LIMIT"] {
            if self.at_keyword(foreign) {
                return Err(self.error(format!("the hub knows no {foreign}")));
            }
        }
        let query = Query {
            top,
            select,
            from: self.from,
            filter,
            group_by,
        };
        check_groups(&query).map_err(|problem| (group_at, problem))?;
        Ok(query)
    }

    fn count(&mut self) -> Result<usize, Problem> {
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
        item: impl Fn(&mut Self) -> Result<T, Problem>,
    ) -> Result<Vec<T>, Problem> {
        let mut items = vec![item(self)?];
        while self.accept(",") {
            items.push(item(self)?);
        }
        Ok(items)
    }

    fn collection(&mut self) -> Result<(), Problem> {
        let what = "'devices', 'devices.modules' or 'devices.jobs'";
        if !self.accept_keyword("devices") {
            return Err(self.expected(what));
        }
        self.from = if !self.accept(".") {
            Collection::Devices
        } else if self.accept_keyword("modules") {
            Collection::Modules
        } else if self.accept_keyword("jobs") {
            Collection::Jobs
        } else {
            return Err(self.expected("'modules' or 'jobs'"));
        };
        Ok(())
    }

    fn column(&mut self) -> Result<Column, Problem> {
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
        } else if self.at_function() {
            return Err(self.expected("a property, COUNT, SUM, AVG, MIN or MAX"));
        } else {
            Source::Path(self.path()?)
        };
        let alias = match self.accept_keyword("AS") {
            true => Some(self.name("a name after AS")?),
            false => None,
        };
        Ok(Column { source, alias })
    }

    fn name(&mut self, what: &str) -> Result<String, Problem> {
        let name = match self.peek() {
            Token::Word(name) | Token::Quoted(name) => name.clone(),
            _ => return Err(self.expected(what)),
        };
        self.next += 1;
        Ok(name)
    }

    fn path(&mut self) -> Result<Path, Problem> {
        if RESERVED.iter().any(|keyword| self.at_keyword(keyword)) {
            return Err(self.expected("the path of a property"));
        }
        let names_collection = *self.peek() == Token::Word("devices".to_owned());
        let mut path = vec![self.name("the path of a property")?];
        while self.accept(".") {
            path.push(self.name("a name after '.'")?);
        }
        // `devices.tags.site` is `tags.site`, and FROM devices.jobs `devices.jobs.status` is `status`.
        if names_collection && path.len() > 1 {
            path.remove(0);
            let member = match self.from {
                Collection::Devices => "",
                Collection::Modules => "modules",
                Collection::Jobs => "jobs",
            };
            if path.len() > 1 && path[0] == member {
                path.remove(0);
            }
        }
        Ok(path)
    }

    /// Goes one level deeper for `parse`.
    fn nested<T>(
        &mut self,
        parse: impl FnOnce(&mut Self) -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(self.error("the condition is nested too deeply"));
        }
        let parsed = parse(self)?;
        self.depth -= 1;
        Ok(parsed)
    }

    fn or(&mut self) -> Result<Expr, Problem> {
        self.nested(|parser| {
            let mut terms = vec![parser.and()?];
            while parser.accept_keyword("OR") {
                terms.push(parser.and()?);
            }
            Ok(joined(terms, Expr::Or))
        })
    }

    fn and(&mut self) -> Result<Expr, Problem> {
        let mut terms = vec![self.not()?];
        while self.accept_keyword("AND") {
            terms.push(self.not()?);
        }
        Ok(joined(terms, Expr::And))
    }

    fn not(&mut self) -> Result<Expr, Problem> {
        // Twice is the same as not at all, as NOT of "undefined" is "undefined" again.
        let mut negated = false;
        while self.accept_keyword("NOT") {
            negated = !negated;
        }
        let inner = self.compare()?;
        Ok(if negated {
            Expr::Not(Box::new(inner))
        } else {
            inner
        })
    }

    fn compare(&mut self) -> Result<Expr, Problem> {
        let left = self.sum()?;
        if self.accept_keyword("IN") {
            return Ok(Expr::In(Box::new(left), self.list()?));
        }
        if self.accept_keyword("NIN") {
            let list = self.list()?;
            return Ok(Expr::Not(Box::new(Expr::In(Box::new(left), list))));
        }
        if self.accept_keyword("NOT") {
            self.keyword("IN")?;
            let list = self.list()?;
            return Ok(Expr::Not(Box::new(Expr::In(Box::new(left), list))));
        }
        let comparison = match self.peek() {
            Token::Symbol("=") => Comparison::Equal,
            Token::Symbol("!=" | "<>") => Comparison::NotEqual,
            Token::Symbol("<") => Comparison::Less,
            Token::Symbol("<=") => Comparison::LessOrEqual,
            Token::Symbol(">") => Comparison::Greater,
            Token::Symbol(">=") => Comparison::GreaterOrEqual,
            _ => return Ok(left),
        };
        self.next += 1;
        if *self.peek() == Token::Symbol("=") {
            return Err(self.error("'=' alone compares; there is no '=='"));
        }
        Ok(Expr::Compare(
            Box::new(left),
            comparison,
            Box::new(self.sum()?),
        ))
    }

    fn sum(&mut self) -> Result<Expr, Problem> {
        let operators = [("+", Operator::Plus), ("-", Operator::Minus)];
        self.arithmetic(&operators, Self::product)
    }

    fn product(&mut self) -> Result<Expr, Problem> {
        let operators = [
            ("*", Operator::Times),
            ("/", Operator::Over),
            ("%", Operator::Modulo),
        ];
        self.arithmetic(&operators, Self::unary)
    }

    fn arithmetic(
        &mut self,
        operators: &[(&'static str, Operator)],
        operand: impl Fn(&mut Self) -> Result<Expr, Problem>,
    ) -> Result<Expr, Problem> {
        let first = operand(self)?;
        let mut rest = Vec::new();
        while let Some((_, operator)) = operators.iter().find(|(symbol, _)| self.accept(symbol)) {
            rest.push((*operator, operand(self)?));
        }
        Ok(if rest.is_empty() {
            first
        } else {
            Expr::Arithmetic(Box::new(first), rest)
        })
    }

    fn unary(&mut self) -> Result<Expr, Problem> {
        if self.accept("-") {
            return Ok(match self.nested(Self::unary)? {
                Expr::Literal(Value::Number(number)) if !is_negative(&number) => {
                    Expr::Literal(negative(&number))
                }
                inner => Expr::Negative(Box::new(inner)),
            });
        }
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
        match self.literal() {
            Some(literal) => Ok(Expr::Literal(literal)),
            None if self.at_function() && !RESERVED.iter().any(|word| self.at_keyword(word)) => {
                let problem = format!(
                    "there is no function {} here; the functions are IS_DEFINED and STARTSWITH",
                    self.peek()
                );
                Err(self.error(problem))
            }
            None => Ok(Expr::Path(self.path()?)),
        }
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

    fn list(&mut self) -> Result<Vec<Value>, Problem> {
        if *self.peek() == Token::Symbol("(") {
            return Err(self.error("the list of IN and NIN stands in brackets: ['a', 'b']"));
        }
        self.symbol("[")?;
        let items = self.separated(|parser| {
            let minus = parser.accept("-");
            match (minus, parser.literal()) {
                (true, Some(Value::Number(number))) => Ok(negative(&number)),
                (false, Some(literal)) => Ok(literal),
                _ => Err(parser.expected("a text, number, true, false or null")),
            }
        })?;
        self.symbol("]")?;
        Ok(items)
    }
}

/// Groups have aggregates and what they are grouped by, nothing else.
fn check_groups(query: &Query) -> Result<(), String> {
    let columns = match &query.select {
        Select::Columns(columns) => columns,
        Select::Whole if query.group_by.is_empty() => return Ok(()),
        Select::Whole => return Err("SELECT * cannot be grouped".to_owned()),
    };
    if !query.is_grouped() {
        return Ok(());
    }
    for column in columns {
        if let Source::Path(path) = &column.source
            && !query.group_by.contains(path)
        {
            return Err(format!(
                "'{}' is selected beside groups, so GROUP BY must name it",
                path.join(".")
            ));
        }
    }
    Ok(())
}

fn is_negative(number: &Number) -> bool {
    number.as_f64().is_some_and(f64::is_sign_negative)
}

fn negative(number: &Number) -> Value {
    match number.as_i128().map(|number| i64::try_from(-number)) {
        Some(Ok(number)) => number.into(),
        _ => (-number.as_f64().unwrap_or_default()).into(),
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
mod tests;
