#![allow(clippy::unwrap_used)]

use std::path::Path;

use super::*;
use crate::Plan;

const PLAN: &str = r#"name = "shop"
[target]
url = "postgres://h/target"
schema = "exists"
[log]
url = "embedded"
[sources.shop]
url = "postgres://h/shop"
tables = ["public.*"]
"#;

/// The plan with more lines behind it; they begin with line 10.
fn parse(more: &str) -> Result<Plan, Problem> {
    Plan::parse(&format!("{PLAN}{more}"), Path::new("etc/shop.toml"), &|_| None)
}

const SECOND_SOURCE: &str = "[sources.other]\nurl = \"postgres://h/other\"\ntables = [\"public.*\"]\n";

#[test]
fn a_check_with_little_in_it_gets_the_defaults() {
    let plan = parse("[[check]]\nname = \"a holds\"\nsql = \" SELECT 1 WHERE false ; \"\n").unwrap();
    let asks = Asks::Rows { sql: "SELECT 1 WHERE false".into(), on: Side::Target, fix: None };
    let expected = Check {
        name: "a holds".into(),
        line: 10,
        asks,
        severity: CheckSeverity::Error,
        sample: SAMPLE,
        tenants: None,
        search_path: Vec::new(),
        timeout: TIMEOUT,
    };
    assert_eq!(plan.checks, [expected]);
}

#[test]
fn everything_that_can_be_said_is_heard() {
    let plan = parse(&format!(
        "{SECOND_SOURCE}
         [[check]]\nname = \"a\"\nsql = \"SELECT a\"\non = \"both\"\nsource = \"other\"\nsource_sql = \"SELECT b\"\nseverity = \"warning\"
         [[check]]\nname = \"b\"\nsql = \"SELECT a\"\non = \"source\"\nsource = \"shop\"\nsample = 3\ntenants = \"SELECT t\"\ntimeout = \"5min\"
         [[check]]\nname = \"c\"\nsql = \"SELECT a\"\nfix = [\"UPDATE a\", \"DELETE b;\"]\nsafe = true\nsearch_path = [\"x\", \"public\"]
         [[check]]\nname = \"d\"\nsql = \"SELECT a\"\nfix = \"UPDATE a\"
         [[check]]\nname = \"e\"\nsql = \"SELECT url\"\nprobe = \"http\"\n"
    ))
    .unwrap();
    let [a, b, c, d, e] = plan.checks.try_into().unwrap();
    let same = Asks::Same { sql: "SELECT a".into(), source: "other".into(), source_sql: "SELECT b".into() };
    assert_eq!((a.asks, a.severity), (same, CheckSeverity::Warning));
    assert_eq!(b.asks, Asks::Rows { sql: "SELECT a".into(), on: Side::Source("shop".into()), fix: None });
    assert_eq!((b.sample, b.tenants.as_deref(), b.timeout), (3, Some("SELECT t"), Duration::from_secs(300)));
    let fix = Fix { statements: vec!["UPDATE a".into(), "DELETE b".into()], safe: true };
    assert_eq!(c.asks, Asks::Rows { sql: "SELECT a".into(), on: Side::Target, fix: Some(fix) });
    assert_eq!(c.search_path, ["x", "public"]);
    let fix = Fix { statements: vec!["UPDATE a".into()], safe: false };
    assert_eq!(d.asks, Asks::Rows { sql: "SELECT a".into(), on: Side::Target, fix: Some(fix) });
    assert_eq!(e.asks, Asks::Http { sql: "SELECT url".into(), on: Side::Target });
}

#[test]
fn both_sides_are_asked_the_same_where_nothing_else_is_said() {
    let plan = parse("[[check]]\nname = \"a\"\nsql = \"SELECT 1\"\non = \"both\"\n").unwrap();
    let same = Asks::Same { sql: "SELECT 1".into(), source: "shop".into(), source_sql: "SELECT 1".into() };
    assert_eq!(plan.checks[0].asks, same);
}

/// Each error: what stands behind a right check's first lines, the line and key that are named, and words of why and next.
#[test]
fn what_has_no_meaning_is_told_with_file_line_and_what_to_write_instead() {
    let right = "[[check]]\nname = \"a\"\nsql = \"SELECT 1\"\n";
    let mut wrong = Vec::new();
    for (text, place, why, next) in [
        (format!("{right}sqll = 1\n"), "13 (check.sqll)", "no key `sqll`", "did you mean `sql`?"),
        (format!("{right}{right}"), "14 (check.name)", "line 10 has the same name", "of its own"),
        ("[[check]]\nsql = \"SELECT 1\"\n".to_owned(), "10 (check.name)", "missing", "what must hold"),
        ("[[check]]\nname = \" \"\nsql = \"SELECT 1\"\n".to_owned(), "11 (check.name)", "one line", "what must hold"),
        ("[[check]]\nname = \"a\"\n".to_owned(), "10 (check.sql)", "missing", "whose rows are findings"),
        ("[[check]]\nname = \"a\"\nsql = \" ; \"\n".to_owned(), "12 (check.sql)", "empty", "SELECT"),
        ("[check]\nname = \"a\"\n".to_owned(), "10 (check)", "not a list of sections", "[[check]]"),
        (format!("{right}fix = \"DROP TABLE a\"\n"), "13 (check.fix)", "DROP", "INSERT, UPDATE"),
        (
            format!("{right}fix = [\"UPDATE a\",\n\"-- no\\n/* no */ truncate a\"]\n"),
            "14 (check.fix)",
            "TRUNCATE",
            "by yourself",
        ),
        (format!("{right}safe = true\n"), "13 (check.safe)", "no `fix`", "add fix"),
        (format!("{right}fix = \"UPDATE a\"\nsafe = \"yes\"\n"), "14 (check.safe)", "not true or false", "safe = true"),
        (format!("{right}fix = []\n"), "13 (check.fix)", "empty", "UPDATE"),
        (format!("{right}fix = [\"UPDATE a\",\n3]\n"), "14 (check.fix)", "integer", "UPDATE"),
        (
            format!("{right}on = \"source\"\nfix = \"UPDATE a\"\n"),
            "14 (check.fix)",
            "only the target",
            "on = \"target\"",
        ),
        (format!("{right}on = \"both\"\nfix = \"UPDATE a\"\n"), "14 (check.fix)", "only the target", "on = \"target\""),
        (
            format!("{right}probe = \"http\"\nfix = \"UPDATE a\"\n"),
            "14 (check.fix)",
            "cannot be mended",
            "mend the server",
        ),
        (format!("{right}probe = \"ping\"\n"), "13 (check.probe)", "\"ping\"", "\"http\""),
        (format!("{right}probe = \"http\"\non = \"both\"\n"), "14 (check.on)", "one side", "\"target\""),
        (format!("{right}on = \"left\"\n"), "13 (check.on)", "\"left\"", "\"target\" or \"source\" or \"both\""),
        (format!("{right}source = \"shop\"\n"), "13 (check.source)", "target alone", "on = \"source\""),
        (format!("{right}source_sql = \"SELECT 2\"\n"), "13 (check.source_sql)", "both sides", "on = \"both\""),
        (format!("{right}on = \"source\"\nsource = \"x\"\n"), "14 (check.source)", "no source \"x\"", "\"shop\""),
        (format!("{right}on = \"source\"\n{SECOND_SOURCE}"), "10 (check.source)", "missing", "\"other\" or \"shop\""),
        (format!("{right}severity = \"bad\"\n"), "13 (check.severity)", "\"bad\"", "\"error\" or \"warning\""),
        (format!("{right}sample = 0\n"), "13 (check.sample)", "range", "from 1 to 1000"),
        (format!("{right}timeout = \"0s\"\n"), "13 (check.timeout)", "zero", "60s"),
        (format!("{right}tenants = \"\"\n"), "13 (check.tenants)", "empty", "SELECT"),
        (format!("{right}search_path = []\n"), "13 (check.search_path)", "empty", "public"),
    ] {
        let problem = parse(&text).expect_err(&text);
        let as_told = problem.what == format!("etc/shop.toml:{place}")
            && problem.why.contains(why)
            && problem.next.contains(next);
        if !as_told {
            wrong.push(format!("{text}{problem:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
