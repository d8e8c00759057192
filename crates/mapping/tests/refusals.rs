//! What is refused or warned about, at which place, and what is said to be written instead.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crossfade_mapping::{
    Catalog, Column, Compiled, Derived, Function, FunctionKind, SourceTable, Table, Target, TargetColumn, Trouble,
    TroubleKind, Usual, Volatility, Way, compile,
};
use model::TableName;

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
