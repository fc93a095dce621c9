//! What is read, what is refused and where, and that a tree written out is read again.

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
            Box::new(Expr::Path(path("tags.site"))),
            Comparison::Equal,
            Box::new(Expr::Literal(json!("lab")))
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
            Box::new(Expr::Path(in_path)),
            vec![json!("x"), json!(2), json!(true)]
        ))
    );
}

#[test]
fn every_error_says_where_and_what() {
    for (query, expected) in [
        (
            "SELECT * FROM devices WHERE tags.site == 'lab'",
            "40: '=' alone compares",
        ),
        (
            "SELECT * FROM device",
            "15: expected 'devices', 'devices.modules' or 'devices.jobs', found 'device'",
        ),
        (
            "SELECT * FROM devices.twins",
            "23: expected 'modules' or 'jobs', found 'twins'",
        ),
        (
            "SELECT * FROM devices WHERE ü = 'x",
            "33: this text has no closing quote",
        ),
        (
            "SELECT * FROM devices WHERE [[a = 1",
            "29: this name has no closing ']]'",
        ),
        (
            "SELECT * FROM devices WHERE a = 'x\\y'",
            "35: after a backslash",
        ),
        (
            "SELECT * FROM devices WHERE a = 12ab",
            "33: '12ab' is no number",
        ),
        (
            "SELECT * FROM devices WHERE a ? 1",
            "31: '?' is not understood here",
        ),
        (
            "SELECT * FROM devices WHERE tags.my-tag = 1",
            "36: a name with '-' stands in double brackets: [[my-tag]]",
        ),
        (
            "SELECT * FROM devices WHERE",
            "28: expected the path of a property, found the end",
        ),
        (
            "SELECT * FROM devices WHERE a =",
            "32: expected the path of a property, found the end",
        ),
        (
            "SELECT * FROM devices WHERE (a = 1",
            "35: expected ')', found the end",
        ),
        (
            "SELECT * FROM devices WHERE a = 1)",
            "34: expected the end of the query, found ')'",
        ),
        (
            "SELECT * FROM devices WHERE a b",
            "31: expected the end of the query, found 'b'",
        ),
        (
            "SELECT * FROM devices WHERE a = b = c",
            "35: expected the end of the query, found '='",
        ),
        (
            "SELECT * FROM devices WHERE a IN []",
            "35: expected a text, number, true, false or null, found ']'",
        ),
        (
            "SELECT * FROM devices WHERE a IN ('x')",
            "34: the list of IN and NIN stands in brackets",
        ),
        (
            "SELECT * FROM devices WHERE a IN ['x'",
            "38: expected ']', found the end",
        ),
        (
            "SELECT * FROM devices WHERE CONTAINS(a, 'b')",
            "29: there is no function 'CONTAINS' here",
        ),
        (
            "SELECT * FROM devices WHERE IS_DEFINED('a')",
            "40: expected the path of a property, found the text 'a'",
        ),
        (
            "SELECT * FROM devices WHERE STARTSWITH(a, b)",
            "43: expected a text in quotes, found 'b'",
        ),
        (
            "SELECT * FROM devices extra",
            "23: expected the end of the query, found 'extra'",
        ),
        (
            "SELECT * FROM devices ORDER BY a",
            "23: the hub knows no ORDER",
        ),
        ("SELECT * FROM devices JOIN x", "23: the hub knows no JOIN"),
        (
            "SELECT FROM devices",
            "8: expected the path of a property, found 'FROM'",
        ),
        (
            "SELECT TOP x * FROM devices",
            "12: expected a count after TOP, found 'x'",
        ),
        (
            "SELECT COUNT(a) FROM devices",
            "14: expected ')', found 'a'",
        ),
        (
            "SELECT LENGTH(a) FROM devices",
            "8: expected a property, COUNT, SUM, AVG, MIN or MAX",
        ),
        (
            "SELECT a AS FROM devices",
            "18: expected FROM, found 'devices'",
        ),
        (
            "SELECT a, COUNT() FROM devices",
            "31: 'a' is selected beside groups",
        ),
        (
            "SELECT a, b FROM devices GROUP BY a",
            "26: 'b' is selected beside groups",
        ),
        (
            "SELECT * FROM devices GROUP BY a",
            "23: SELECT * cannot be grouped",
        ),
        (
            "SELECT a FROM devices GROUP a",
            "29: expected BY, found 'a'",
        ),
        (
            "SELECT jobId FROM devices.jobs",
            "8: queries FROM devices.jobs can only SELECT *",
        ),
        ("tags.site = 'lab'", "1: expected SELECT, found 'tags'"),
        ("", "1: expected SELECT, found the end"),
    ] {
        let problem = problem(query);
        let expected = format!("Query syntax error at character {expected}");
        assert!(problem.starts_with(&expected), "{query}: {problem}");
    }
}

#[test]
fn a_condition_is_what_stands_after_where() {
    let query = parse("SELECT * FROM devices WHERE tags.a = 1 OR deviceId IN ['x']").unwrap();
    assert_eq!(
        condition("tags.a = 1 OR deviceId IN ['x']").ok(),
        query.filter
    );
    let problem = condition("SELECT * FROM devices WHERE a = 1").unwrap_err();
    assert!(
        problem.to_string().contains("only the part after WHERE"),
        "{problem}"
    );
    assert!(condition("").is_err());
    assert!(condition("a = 1 GROUP BY a").is_err());
}

#[test]
fn the_collection_before_a_path_is_not_part_of_it() {
    let filter = |query: &str| parse(query).unwrap().filter;
    let plain = filter("SELECT * FROM devices WHERE status = 'x'");
    assert_eq!(
        filter("SELECT * FROM devices WHERE devices.status = 'x'"),
        plain
    );
    assert_eq!(
        filter("SELECT * FROM devices.jobs WHERE devices.jobs.status = 'x'"),
        plain
    );
    assert_eq!(
        filter("SELECT * FROM devices.jobs WHERE status = 'x'"),
        plain
    );
    assert_ne!(
        filter("SELECT * FROM devices WHERE [[devices]].status = 'x'"),
        plain
    );
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

/// A name, often an odd one; `]]` cannot stand in one.
fn name() -> impl Strategy<Value = String> {
    let odd = "[ -~äß]{0,6}".prop_filter("ends the brackets", |name| {
        !name.contains("]]") && !name.ends_with(']')
    });
    let keyword = proptest::sample::select(vec!["devices", "Select", "null", "is_defined"]);
    prop_oneof!["[a-z][a-z0-9_]{0,5}", odd, keyword.prop_map(str::to_owned)]
}

fn some_path() -> impl Strategy<Value = Path> {
    proptest::collection::vec(name(), 1..4)
}

fn literal() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i64>().prop_map(Value::from),
        // Of these every reader makes the same number.
        any::<i32>().prop_map(|eighths| Value::from(f64::from(eighths) / 8.0)),
        Just(json!(1e300)),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
        ".{0,6}".prop_map(Value::from),
    ]
}

fn any_expression() -> impl Strategy<Value = Expr> {
    let leaf = prop_oneof![
        literal().prop_map(Expr::Literal),
        some_path().prop_map(Expr::Path),
        some_path().prop_map(Expr::IsDefined),
        (some_path(), ".{0,6}").prop_map(|(path, prefix)| Expr::StartsWith(path, prefix)),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        let several = proptest::collection::vec(inner.clone(), 2..4);
        let boxed = inner.clone().prop_map(Box::new);
        let comparison = proptest::sample::select(vec![
            Comparison::Equal,
            Comparison::NotEqual,
            Comparison::Less,
            Comparison::LessOrEqual,
            Comparison::Greater,
            Comparison::GreaterOrEqual,
        ]);
        let operators = |operators: Vec<Operator>| {
            let operator = proptest::sample::select(operators);
            let rest = proptest::collection::vec((operator, inner.clone()), 1..3);
            (inner.clone().prop_map(Box::new), rest)
                .prop_map(|(first, rest)| Expr::Arithmetic(first, rest))
        };
        prop_oneof![
            several.clone().prop_map(Expr::Or),
            several.prop_map(Expr::And),
            // What is negated twice is not negated.
            boxed
                .clone()
                .prop_filter("double negation", |inner| !matches!(**inner, Expr::Not(_)))
                .prop_map(Expr::Not),
            (boxed.clone(), comparison, boxed.clone())
                .prop_map(|(left, comparison, right)| Expr::Compare(left, comparison, right)),
            (boxed.clone(), proptest::collection::vec(literal(), 1..4))
                .prop_map(|(value, items)| Expr::In(value, items)),
            operators(vec![Operator::Plus, Operator::Minus]),
            operators(vec![Operator::Times, Operator::Over, Operator::Modulo]),
            // The negative of a number is a number.
            boxed
                .prop_filter("a number", |inner| !matches!(
                    **inner,
                    Expr::Literal(Value::Number(_))
                ))
                .prop_map(Expr::Negative),
        ]
    })
}

fn any_query() -> impl Strategy<Value = Query> {
    let aggregate = proptest::sample::select(vec![
        Aggregate::Sum,
        Aggregate::Avg,
        Aggregate::Min,
        Aggregate::Max,
    ]);
    let computed = prop_oneof![
        Just(Source::Count),
        (aggregate, some_path()).prop_map(|(aggregate, path)| Source::Aggregate(aggregate, path)),
    ];
    let columns = |source| {
        let alias = proptest::option::of(name());
        let column = (source, alias).prop_map(|(source, alias)| Column { source, alias });
        proptest::collection::vec(column, 1..4)
    };
    let top = proptest::option::of(0_usize..99);
    let groups = proptest::collection::vec(some_path(), 0..3);
    let select = prop_oneof![
        Just((Select::Whole, Vec::new())),
        columns(some_path().prop_map(Source::Path).boxed())
            .prop_map(|columns| (Select::Columns(columns), Vec::new())),
        (columns(computed.boxed()), groups).prop_map(|(mut columns, groups)| {
            let grouped = groups.iter().map(|path| Column {
                source: Source::Path(path.clone()),
                alias: None,
            });
            columns.extend(grouped);
            (Select::Columns(columns), groups)
        }),
    ];
    let filter = proptest::option::of(any_expression());
    (top, select, filter).prop_map(|(top, (select, group_by), filter)| Query {
        top,
        select,
        from: Collection::Devices,
        filter,
        group_by,
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
            Just("'x'"), Just("1"), Just("+"), Just("-"), Just("%"), Just("*"), Just("NIN"), Just("IS_DEFINED("), Just("COUNT()"), Just("GROUP BY"), Just("TOP"), Just("AS"), Just("[[é]]"),
        ],
        0..20,
    )) {
        let _ = parse(&words.join(" "));
    }

    #[test]
    fn a_tree_written_out_becomes_the_same_tree_again(query in any_query()) {
        let text = query.to_string();
        prop_assert_eq!(parse(&text), Ok(query), "{}", text);
    }
}
