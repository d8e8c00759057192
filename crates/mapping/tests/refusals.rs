//! What is refused or warned about, at which place, and what is said to be written instead.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crossfade_mapping::{
    Catalog, Column, Compiled, Derived, Function, FunctionKind, SourceTable, Table, Target, TargetColumn, Trouble,
    TroubleKind, Usual, Volatility, Way, compile, question,
};
use model::TableName;
use plan::{Cut, MaskIn, Part, Rows, Sql};

/// `users(id, name, team)` and `teams(id, name, score)` of the source `shop`, and a target `public.t(id, v)`.
fn catalog() -> Catalog {
    let column = |name: &str, type_name: &str, not_null: bool| Column {
        name: name.to_owned(),
        type_name: type_name.to_owned(),
        not_null,
        toastable: type_name == "text",
    };
    let table = |name: &str, columns: Vec<Column>| Table {
        name: SourceTable::new("shop", TableName::new("public", name)),
        columns,
        identity: vec!["id".to_owned()],
        full: false,
    };
    let function = |name: &str, kind: FunctionKind, volatility: Volatility| Function {
        name: TableName::new("pg_catalog", name),
        kind,
        volatility,
        returns_set: name == "unnest",
        columns: Vec::new(),
    };
    let target = |name: &str, type_name: &str| TargetColumn {
        name: name.to_owned(),
        type_name: type_name.to_owned(),
        cast: None,
        not_null: name == "id",
        has_default: false,
        generated: false,
        identity_always: false,
    };
    use FunctionKind::{Aggregate, Plain, Window};
    use Volatility::{Immutable, Stable, Volatile};
    Catalog {
        tables: vec![
            table(
                "users",
                vec![column("id", "integer", true), column("name", "text", false), column("team", "integer", false)],
            ),
            table(
                "teams",
                vec![column("id", "integer", true), column("name", "text", true), column("score", "real", false)],
            ),
        ],
        functions: vec![
            function("lower", Plain, Immutable),
            function("random", Plain, Volatile),
            function("gen_random_uuid", Plain, Volatile),
            function("now", Plain, Stable),
            function("count", Aggregate, Immutable),
            function("max", Aggregate, Immutable),
            function("sum", Aggregate, Immutable),
            function("array_agg", Aggregate, Immutable),
            function("row_number", Window, Immutable),
            function("unnest", Plain, Immutable),
        ],
        target: Target {
            columns: vec![target("id", "integer"), target("v", "text")],
            unique: vec![vec!["id".to_owned()]],
        },
    }
}

fn declared(sql: &str) -> Derived {
    Derived::new(TableName::new("public", "t"), &["id"], sql)
}

fn compiled(sql: &str) -> Result<Compiled, Vec<Trouble>> {
    compile(&declared(sql), &catalog(), &Usual)
}

fn refused(sql: &str) -> Trouble {
    compiled(sql).expect_err(sql).remove(0)
}

#[track_caller]
fn refuses(sql: &str, kind: TroubleKind) -> Trouble {
    let trouble = refused(sql);
    assert_eq!(trouble.kind, kind, "{sql}: {trouble}");
    trouble
}

#[test]
fn what_the_parser_refuses_is_shown_at_its_place() {
    let trouble = refuses("SELECT id,\n  name FRM users", TroubleKind::Syntax);
    // `name FRM` is an alias; `users` is what cannot be.
    assert_eq!(trouble.at.map(|at| (at.line, at.column)), Some((2, 12)), "{trouble}");
    refuses("SELECT id FROM users; SELECT 1", TroubleKind::NotSelect);
    refuses("DELETE FROM users", TroubleKind::NotSelect);
}

#[test]
fn names_that_are_nowhere_are_shown_at_their_place() {
    let trouble = refuses("SELECT u.id, u.nam AS v FROM shop.public.users u", TroubleKind::UnknownColumn);
    assert_eq!(trouble.at.map(|at| at.offset), Some(13));
    assert!(trouble.next.contains("id, name, team"), "{trouble}");
    refuses("SELECT id FROM shop.public.orders", TroubleKind::UnknownTable);
    refuses("SELECT id FROM other.public.users", TroubleKind::UnknownTable);
    refuses("SELECT name AS id FROM users JOIN teams ON team = teams.id", TroubleKind::UnknownColumn);
    refuses("SELECT id, frobnicate(name) AS v FROM users", TroubleKind::UnknownFunction);
}

#[test]
fn what_gives_another_result_each_time_is_refused() {
    refuses("SELECT id, random()::text AS v FROM users", TroubleKind::Volatile);
    let trouble = refuses("SELECT id, gen_random_uuid()::text AS v FROM users", TroubleKind::Volatile);
    assert!(trouble.next.contains("crossfade_id"), "{trouble}");
}

#[test]
fn constructs_that_nothing_can_be_derived_from_are_refused() {
    refuses("WITH RECURSIVE r AS (SELECT id FROM users) SELECT id FROM r", TroubleKind::Recursive);
    refuses("SELECT id FROM users ORDER BY id LIMIT 3", TroubleKind::Limit);
    for sql in [
        "SELECT id FROM users FOR UPDATE",
        "SELECT id FROM users TABLESAMPLE SYSTEM (10)",
        "SELECT id, $1 AS v FROM users",
        "SELECT id, count(users) AS v FROM users GROUP BY id",
        "SELECT id, xmlelement(name x)::text AS v FROM users",
        "SELECT id, json_object('a': name) AS v FROM users",
        "SELECT id, (SELECT max(u.name)) AS v FROM users u",
        "SELECT u.id FROM users u, unnest((SELECT array_agg(t.id) FROM teams t)) e",
    ] {
        refuses(sql, TroubleKind::Unsupported);
    }
}

#[test]
fn a_key_has_to_be_there_and_never_null() {
    refuses("SELECT name AS v FROM users", TroubleKind::KeyMissing);
    refuses("SELECT team AS id FROM users", TroubleKind::KeyNull);
    refuses("SELECT t.id FROM users u LEFT JOIN teams t ON t.id = u.team", TroubleKind::KeyNull);
    assert!(compiled("SELECT team AS id FROM users WHERE team IS NOT NULL GROUP BY team").is_ok());
    assert!(compiled("SELECT coalesce(t.id, u.id) AS id FROM users u LEFT JOIN teams t ON t.id = u.team").is_ok());
}

#[test]
fn a_unit_that_does_not_follow_from_each_row_is_refused_with_columns_that_do() {
    let sql = "SELECT id, name AS v FROM (SELECT id, name, row_number() OVER (PARTITION BY name ORDER BY id) AS n FROM users) s WHERE n = 1";
    let trouble = refuses(sql, TroubleKind::UnitUnclear);
    assert!(trouble.next.contains("v"), "{trouble}");
    let mut derived = declared(sql);
    derived.recompute_by = vec!["v".to_owned()];
    assert!(compile(&derived, &catalog(), &Usual).is_ok());
    refuses("SELECT coalesce(max(id), 0) AS id, name AS v FROM users GROUP BY name", TroubleKind::UnitUnclear);
}

#[test]
fn what_the_target_cannot_take_is_refused() {
    refuses("SELECT id, team AS v FROM users", TroubleKind::TargetUnfit);
    refuses("SELECT id, name AS w FROM users", TroubleKind::TargetUnfit);
    let mut derived = declared("SELECT id, name AS v FROM users");
    derived.key = vec!["id".to_owned(), "v".to_owned()];
    let troubles = compile(&derived, &catalog(), &Usual).unwrap_err();
    assert!(troubles.iter().any(|trouble| trouble.next.contains("ADD PRIMARY KEY (id, v)")), "{troubles:?}");
}

#[test]
fn changes_that_affect_all_units_are_announced() {
    let warnings = compiled("SELECT u.id, u.name AS v FROM users u WHERE u.team < ANY (SELECT t.id FROM teams t)")
        .unwrap()
        .warnings;
    assert!(
        warnings.iter().any(|warning| warning.kind == TroubleKind::Unbounded && warning.at.is_some()),
        "{warnings:?}"
    );
    let warnings = compiled("SELECT u.id, t.name AS v FROM users u JOIN teams t ON t.id = u.team").unwrap().warnings;
    assert_eq!(warnings, []);
}

#[test]
fn results_that_rows_do_not_fix_are_warned_about() {
    for sql in [
        "SELECT id, now()::text AS v FROM users",
        "SELECT team AS id, array_agg(name)::text AS v FROM users WHERE team IS NOT NULL GROUP BY team",
        "SELECT id, sum(score)::text AS v FROM teams GROUP BY id",
        "SELECT u.id, (SELECT t.name FROM teams t WHERE t.id > u.id ORDER BY t.score LIMIT 1) AS v FROM users u",
    ] {
        let warnings = compiled(sql).unwrap_or_else(|troubles| panic!("{sql}: {troubles:?}")).warnings;
        assert!(warnings.iter().any(|warning| warning.kind == TroubleKind::NotDeterministic), "{sql}: {warnings:?}");
    }
}

#[test]
fn a_table_is_streamed_only_where_changed_rows_are_enough() {
    let way = |sql: &str| match compiled(sql).unwrap_or_else(|troubles| panic!("{sql}: {troubles:?}")).way {
        Way::Streamed(_) => "streamed".to_owned(),
        Way::Maintained(maintained) => maintained.reason,
    };
    assert_eq!(way("SELECT id, lower(name) AS v FROM users"), "streamed");
    assert_eq!(way("SELECT id FROM users WHERE team > 3"), "streamed");
    assert!(way("SELECT id, lower(name) AS v FROM users WHERE team > 3").contains("may leave out name"));
    assert_eq!(
        way("SELECT coalesce(team, 0) AS id FROM users"),
        "key column id is not a column of the replica identity, or crossfade_id of one"
    );
    assert!(way("SELECT id, name AS v FROM users WHERE name <> ''").contains("may leave out"));
    assert_eq!(way("SELECT DISTINCT id, name AS v FROM users"), "it has DISTINCT");
    assert_eq!(way("SELECT u.id FROM users u JOIN teams t ON t.id = u.team"), "it has a join");
}

/// A part whose SQL begins in this line of the plan.
fn part(sql: &str, line: usize) -> Part {
    Part { rows: Rows::Query(Sql::at_line(sql, line)), line }
}

fn of_parts(parts: &[&str], merge: &[&str]) -> Result<Compiled, Vec<Trouble>> {
    let parts = parts.iter().zip([10, 20, 30]).map(|(sql, line)| part(sql, line)).collect();
    let merge = merge.iter().map(|&sql| sql.into()).collect();
    compile(&Derived { parts, merge, ..declared("") }, &catalog(), &Usual)
}

fn users(columns: &[&str], filter: Option<&str>, masks: &[(&str, &str)]) -> Result<Compiled, Vec<Trouble>> {
    users_in(MaskIn::Everywhere, columns, filter, masks)
}

fn users_in(
    mask_in: MaskIn,
    columns: &[&str],
    filter: Option<&str>,
    masks: &[(&str, &str)],
) -> Result<Compiled, Vec<Trouble>> {
    let cut = Cut {
        source: "shop".to_owned(),
        table: TableName::new("public", "users"),
        from: "shop.public.users".into(),
        columns: columns.iter().map(|&name| name.into()).collect(),
        filter: filter.map(Into::into),
        masks: masks.iter().map(|(name, mask)| ((*name).to_owned(), (*mask).into())).collect(),
        mask_in,
    };
    let mut catalog = catalog();
    catalog.target.columns[1].name = "name".to_owned();
    let derived = declared("");
    compile(
        &Derived { key: Vec::new(), parts: vec![Part { rows: Rows::Cut(cut), line: 1 }], ..derived },
        &catalog,
        &Usual,
    )
}

const USERS: &str = "SELECT id, name AS v FROM users";

#[test]
fn what_is_wrong_with_a_part_is_shown_in_it() {
    let place = |parts: &[&str]| {
        let trouble = of_parts(parts, &[]).expect_err(parts[1]).remove(0);
        (trouble.kind, trouble.at.map(|at| (at.line, at.column)), trouble.why)
    };
    let (kind, at, _) = place(&[USERS, "SELECT id,\n  nam AS v FROM teams"]);
    assert_eq!((kind, at), (TroubleKind::UnknownColumn, Some((21, 3))));
    let (kind, at, _) = place(&[USERS, "SELECT id,\n  name v FRM teams"]);
    assert_eq!((kind, at), (TroubleKind::Syntax, Some((21, 10))));
    let (kind, at, why) = place(&[USERS, "SELECT id FROM teams"]);
    assert_eq!((kind, at), (TroubleKind::Declaration, Some((20, 1))));
    assert!(why.contains("line 10 gives it, and the one in line 20 does not"), "{why}");
    let (_, at, why) = place(&["SELECT id FROM teams", USERS]);
    assert_eq!(at, Some((20, 1)));
    assert!(why.contains("line 20 gives it, and the one in line 10 does not"), "{why}");
    let (_, _, why) = place(&[USERS, "SELECT id, id, name AS v FROM teams"]);
    assert!(why.contains("two of that name"), "{why}");
}

#[test]
fn parts_are_one_query_whatever_stands_at_their_ends() {
    let with = "WITH x AS (SELECT id, name FROM teams) SELECT name AS v, id FROM x ORDER BY id -- all";
    let compiled = of_parts(&[USERS, with, "SELECT id, name AS v FROM teams;"], &[]).unwrap();
    let Way::Maintained(maintained) = &compiled.way else { panic!("{compiled:?}") };
    assert_eq!(
        (maintained.reason.as_str(), compiled.columns.join(", ")),
        ("the rows of 3 [[table]]s are in it", "id, v".to_owned())
    );
    assert_eq!(compiled.sources.len(), 2);
}

#[test]
fn rows_that_share_a_key_are_merged_by_an_aggregate_over_each_other_column() {
    let merged = of_parts(&[USERS, "SELECT name AS v, id FROM teams"], &["max(v)"]).unwrap();
    assert!(merged.oracle.over_mirrors.contains("\"max\"(\"merged\".\"v\")"), "{}", merged.oracle.over_mirrors);
    assert!(of_parts(&["SELECT team AS id, name AS v FROM users WHERE team IS NOT NULL"], &["max(v)"]).is_ok());
    for (merge, kind, why) in [
        (&["max(w)"][..], TroubleKind::UnknownColumn, "none of the tables"),
        (&["count(*)"], TroubleKind::Declaration, "one column"),
        (&["max(id)"], TroubleKind::Declaration, "key column"),
        (&["max(v)", "count(v)"], TroubleKind::Declaration, "two aggregates"),
        (&["lower(v)"], TroubleKind::Declaration, "not a call of an aggregate"),
        (&["max(lower(v)) || ''"], TroubleKind::Declaration, "not a call of an aggregate"),
        (&["max(v), max(v)"], TroubleKind::Syntax, "more than one"),
        (&["max(v) FROM users"], TroubleKind::Syntax, "more than one"),
        (&["max(v"], TroubleKind::Syntax, "end of input"),
    ] {
        let trouble = of_parts(&[USERS], merge).expect_err(merge[0]).remove(0);
        assert!(trouble.kind == kind && trouble.why.contains(why) && trouble.at.is_some(), "{merge:?}: {trouble:?}");
    }
    let three = ["SELECT id, name AS v, team FROM users"];
    let trouble = of_parts(&three, &["max(v)"]).unwrap_err().remove(0);
    assert!(trouble.what == "column team" && trouble.next.contains("max(team)"), "{trouble}");
}

#[test]
fn a_table_in_part_has_its_own_key_and_is_refused_where_it_does_not_fit() {
    let filtered = users(&["id", "name"], Some("team > 3"), &[]).unwrap();
    assert!(matches!(&filtered.way, Way::Maintained(maintained) if maintained.reason.contains("may leave out name")));
    let compiled = users(&["id", "name"], None, &[("name", "lower(name)")]).unwrap();
    assert_eq!((compiled.key.join(","), matches!(compiled.way, Way::Streamed(_))), ("id".to_owned(), true));
    for (columns, filter, masks, kind, why) in [
        (&["id", "nam"][..], None, &[][..], TroubleKind::UnknownColumn, "does not have it"),
        (&["name"], None, &[], TroubleKind::KeyMissing, "does not give it"),
        (&["id", "name"], Some("nam = 'x'"), &[], TroubleKind::UnknownColumn, "none of the tables"),
        (&["id", "name"], Some("true, false"), &[], TroubleKind::Syntax, "more than one"),
        (&["id", "name"], None, &[("nam", "''")], TroubleKind::UnknownColumn, "does not have it"),
        (&["id", "name"], None, &[("team", "0")], TroubleKind::Declaration, "does not choose it"),
        (&["id", "name"], None, &[("id", "0")], TroubleKind::Declaration, "key column"),
        (&["id", "name"], None, &[("name", "max(name)")], TroubleKind::Unsupported, "one row"),
        (&["id", "name"], None, &[("name", "random()")], TroubleKind::Volatile, "VOLATILE"),
        (&[], None, &[], TroubleKind::TargetUnfit, "does not have it"),
    ] {
        let trouble = users(columns, filter, masks).expect_err(why).remove(0);
        assert!(trouble.kind == kind && trouble.why.contains(why), "{columns:?} {filter:?} {masks:?}: {trouble:?}");
    }
}

#[test]
fn a_mask_for_rehearsals_holds_in_them_alone_and_has_to_be_right_before() {
    let of =
        |is_one: bool, mask: &str| users_in(MaskIn::Rehearsals { is_one }, &["id", "name"], None, &[("name", mask)]);
    let mask = "(SELECT max(t.name) FROM teams t WHERE t.id = team)";
    let (run, rehearsal) = (of(false, mask).unwrap(), of(true, mask).unwrap());
    assert!(!run.oracle.over_sources.contains("teams"), "{}", run.oracle.over_sources);
    assert!(rehearsal.oracle.over_sources.contains("teams"), "{}", rehearsal.oracle.over_sources);
    assert!(matches!((&run.way, &rehearsal.way), (Way::Streamed(_), Way::Maintained(_))));
    // What rehearsals read is captured and carried for them.
    assert_eq!((run.sources.len(), &run.sources), (2, &rehearsal.sources));
    for is_one in [false, true] {
        assert_eq!(of(is_one, "random()::text").expect_err("random").remove(0).kind, TroubleKind::Volatile);
    }
}

#[test]
fn a_question_is_asked_over_mirrors_and_needs_no_key() {
    let sql = "SELECT u.name, count(*) FROM shop.public.users u WHERE NOT EXISTS (SELECT FROM teams t WHERE t.id = u.team) GROUP BY u.name ORDER BY 1 LIMIT 3";
    let question = question(&sql.into(), &catalog(), &Usual).unwrap();
    assert_eq!(question.columns, ["name", "count"]);
    let sources: Vec<String> = question.sources.iter().map(ToString::to_string).collect();
    assert_eq!(sources, ["shop.public.teams", "shop.public.users"]);
    assert!(question.sql.contains("\"crossfade\".\"mirror shop.public.users\""), "{}", question.sql);
    assert!(question.sql.contains("FETCH FIRST (3) ROWS ONLY"), "{}", question.sql);
}

#[test]
fn a_table_that_is_missed_is_known_however_it_is_named() {
    let missed = |sql: &str| question(&sql.into(), &catalog(), &Usual).unwrap_err();
    let orders = SourceTable::new("shop", TableName::new("public", "orders"));
    for sql in ["SELECT 1 FROM orders", "SELECT 1 FROM public.orders", "SELECT 1 FROM shop.public.orders o"] {
        assert!(missed(sql).misses(&orders), "{sql}");
    }
    for sql in [
        "SELECT 1 FROM old.orders",
        "SELECT 1 FROM other.public.orders",
        "SELECT 1 FROM order_s",
        "SELECT orders.id FROM users",
    ] {
        assert!(!missed(sql).misses(&orders), "{sql}");
    }
}

#[test]
fn a_question_is_refused_where_it_is_wrong() {
    for (sql, kind, column) in [
        ("SELECT id FROM shop.public.orders", TroubleKind::UnknownTable, Some(16)),
        ("SELECT u.nam FROM users u", TroubleKind::UnknownColumn, Some(8)),
        ("SELECT id FROM users WHERE random() < 0.5", TroubleKind::Volatile, Some(28)),
        ("SELECT id FROM users WHERE", TroubleKind::Syntax, Some(27)),
        ("DELETE FROM users", TroubleKind::NotSelect, Some(1)),
    ] {
        let trouble = question(&sql.into(), &catalog(), &Usual).unwrap_err();
        assert_eq!((trouble.kind, trouble.at.map(|at| at.column)), (kind, column), "{trouble}");
    }
    let trouble = question(&"SELECT id FROM users TABLESAMPLE SYSTEM (10)".into(), &catalog(), &Usual).unwrap_err();
    assert!(trouble.kind == TroubleKind::Unsupported && !trouble.why.contains("kept current"), "{trouble}");
}
