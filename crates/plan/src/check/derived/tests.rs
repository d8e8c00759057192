#![allow(clippy::unwrap_used)]

use std::path::Path;

use model::{Code, Problem, TableName};

use crate::{OnConflict, Plan, Rows, WhenMissing};

const PLAN: &str = r#"name = "shop"
mirror = ["public.country"]
ignore = ["*.tmp_*"]
[sources.shop]
url = "postgres://app@source/shop"
tables = ["public.*"]
[log]
url = "nats://127.0.0.1:4222"
[target]
url = "postgres://app@target/shop"
schema = "exists"
[[table]]
into = "sales.customer"
key = ["id"]
sql = "SELECT id, name FROM shop.public.customer"
[[table]]
into = "sales.total"
key = "customer_id"
recompute_by = ["customer_id"]
on_conflict = { status = "keep", updated_at = "greatest" }
when_missing = "keep"
affected_by = { "shop.public.orders" = "SELECT customer_id FROM changed" }
sql = """
SELECT customer_id,
       sum(total) AS total
  FROM shop.public.orders GROUP BY customer_id"""
"#;

fn parse(text: &str) -> Result<Plan, Problem> {
    Plan::parse(text, Path::new("shop.toml"), &|_| None)
}

#[test]
fn everything_that_is_said_of_a_table_is_heard() {
    let plan = parse(PLAN).unwrap();
    let [customer, total] = &plan.derived[..] else { panic!() };
    assert_eq!((&customer.into, customer.line), (&TableName::new("sales", "customer"), 12));
    assert_eq!((customer.key.as_slice(), customer.when_missing), (&["id".to_owned()][..], WhenMissing::Delete));
    assert_eq!(customer.place(), (15, 8));
    assert_eq!(
        (total.key.as_slice(), total.recompute_by.as_slice()),
        (&["customer_id".to_owned()][..], &total.key[..])
    );
    assert_eq!(total.on_conflict["updated_at"], OnConflict::Greatest);
    assert_eq!((total.on_conflict["status"], total.when_missing), (OnConflict::Keep, WhenMissing::Keep));
    let [affected] = &total.affected_by[..] else { panic!() };
    assert_eq!((affected.source.as_str(), &affected.table), ("shop", &TableName::new("public", "orders")));
    assert_eq!(affected.sql.place(7).0, 22);
    let sql = total.parts[0].sql();
    assert_eq!(sql.place(sql.text.find("sum").unwrap()), (25, 8));
}

#[test]
fn a_source_is_captured_but_for_what_is_ignored_and_goes_over_as_it_is_where_mirror_says_so() {
    let of = |plan: &Plan, name: &str| {
        let (source, table) = (plan.source("shop").unwrap().clone(), TableName::new("public", name));
        (source.tables.selects(&table), source.as_is.selects(&table), source.ignored.selects(&table))
    };
    let plan = parse(PLAN).unwrap();
    assert_eq!(of(&plan, "orders"), (true, false, false));
    assert_eq!(of(&plan, "country"), (true, true, false));
    assert_eq!(of(&plan, "tmp_1"), (false, false, true));
    // A source's own stand beside those of the top.
    let text = PLAN.replace("tables =", "mirror = [\"public.region\"]\nignore = [\"public.old\"]\ntables =");
    let plan = parse(&text).unwrap();
    assert_eq!((of(&plan, "country"), of(&plan, "region")), ((true, true, false), (true, true, false)));
    assert_eq!((of(&plan, "tmp_1"), of(&plan, "old")), ((false, false, true), (false, false, true)));
    assert!(plan.back().is_none());
    // Without a [[table]] everything goes over as it is.
    let text = PLAN.split("[[table]]").next().unwrap().replace("mirror = [\"public.country\"]\n", "");
    let plan = parse(&text).unwrap();
    assert_eq!((of(&plan, "orders"), of(&plan, "tmp_1")), ((true, true, false), (false, false, true)));
}

#[test]
fn what_has_no_meaning_is_told_with_file_line_and_what_to_write_instead() {
    let mut wrong = Vec::new();
    for (old, new, place, why, next) in [
        ("into = \"sales.customer\"\n", "", "12 (table.into)", "missing", "into = \"public.users\""),
        ("sales.customer", "customer", "13 (table.into)", "\"customer\" is not", "with its schema"),
        ("sales.customer", "crossfade.customer", "13 (table.into)", "crossfade is not the plan's", "into ="),
        ("sales.total", "sales.customer", "18 (table.key)", "line 14 says it otherwise", "in each"),
        ("sales.customer", "public.country", "13 (table.into)", "`mirror` lets", "\"!public.country\""),
        ("key = [\"id\"]", "key = [\"id\", \"id\"]", "14 (table.key)", "twice", "once"),
        ("key = [\"id\"]", "keys = [\"id\"]", "14 (table.keys)", "no key `keys`", "`key`"),
        ("key = [\"id\"]", "key = []", "14 (table.key)", "empty", "key = "),
        ("\"SELECT id, name FROM shop.public.customer\"", "\" \"", "15 (table.sql)", "empty", "SELECT"),
        ("sql = \"SELECT id, name FROM shop.public.customer\"", "", "12 (table.sql)", "missing", "SELECT"),
        ("\"keep\", updated", "\"stay\", updated", "20 (table.on_conflict.status)", "\"stay\"", "\"keep\""),
        ("when_missing = \"keep\"", "when_missing = \"no\"", "21 (table.when_missing)", "\"no\"", "\"delete\""),
        ("\"shop.public.orders\"", "orders", "22 (table.affected_by.orders)", "source's table", "\"shop.public."),
        ("when_missing = \"keep\"", "merge = []", "21 (table.merge)", "empty", "max(access)"),
        ("when_missing = \"keep\"", "merge = [\"max(total)\", \" \"]", "21 (table.merge)", "empty", "max(access)"),
        ("when_missing = \"keep\"", "where = \"true\"", "21 (table.where)", "not with `sql`", "into the query"),
        (
            "sql = \"SELECT id, name FROM shop.public.customer\"",
            "mask = { a = \"b\" }",
            "12 (table.from)",
            "missing",
            "from = ",
        ),
        (
            "sql = \"SELECT id,",
            "from = \"shop.public.a\"\nsql = \"SELECT id,",
            "15 (table.from)",
            "both",
            "one of them",
        ),
        (
            "sql = \"SELECT id, name FROM shop.public.customer\"",
            "from = \"customer\"",
            "15 (table.from)",
            "source's table",
            "shop.public",
        ),
        ("when_missing = \"keep\"", "provision = \"x\"", "21 (table.provision)", "which this version", "take it out"),
        ("[log]", "[tenant.space]\n[log]", "7 (tenant)", "one schema per tenant, which", "take it out"),
        ("[log]", "[[back]]\n[log]", "7 (back)", "which this version", "take it out"),
        ("[\"public.country\"]", "[]", "2 (mirror)", "no pattern selects", "without `!`"),
        ("[\"*.tmp_*\"]", "\"*.tmp_*\"", "3 (ignore)", "not a list", "[\"public.*\""),
    ] {
        let problem = parse(&PLAN.replacen(old, new, 1)).expect_err(new);
        let right = problem.code == Code::PlanInvalid
            && problem.what == format!("shop.toml:{place}")
            && problem.why.contains(why)
            && problem.next.contains(next);
        if !right {
            wrong.push(format!("{new:?}: {problem:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let none = PLAN.split("[[table]]").next().unwrap();
    let problem = parse(none).unwrap_err();
    assert_eq!(problem.what, "shop.toml:2 (mirror)");
    assert!(problem.why.contains("without a [[table]]"), "{problem}");
}

/// A table of two parts, and one that goes over in part.
const PARTS: &str = r#"
[[table]]
into = "core.grant"
key = ["member_id", "space_id"]
sql = "SELECT member_id, space_id, access FROM shop.public.owner"
affected_by = { "shop.public.owner" = "SELECT member_id, space_id FROM changed" }
[[table]]
into = "core.grant"
merge = "max(access)"
sql = """
SELECT access, space_id,
       member_id FROM shop.public.role -- all"""
[[table]]
from = "shop.public.users"
columns = ["id", "email"]
where = "country = 'ch'"
mask = { email = "md5(email) || '@example.invalid'" }
"#;

fn with(parts: &str) -> String {
    format!("{}{parts}", PLAN.split("[[table]]").next().unwrap())
}

#[test]
fn tables_into_one_are_one_table_whose_parts_know_their_places() {
    let plan = parse(&with(PARTS)).unwrap();
    let [grant, users] = &plan.derived[..] else { panic!("{:?}", plan.derived) };
    assert_eq!((&grant.into, grant.line, grant.parts.len()), (&TableName::new("core", "grant"), 13, 2));
    assert_eq!((grant.key.join(","), grant.merge[0].text.as_str()), ("member_id,space_id".to_owned(), "max(access)"));
    assert_eq!((grant.merge[0].place(4), grant.parts[1].line, grant.affected_by.len()), ((20, 14), 18, 1));
    let sql = grant.parts[1].sql();
    assert_eq!(sql.place(sql.text.find("member_id").unwrap()), (23, 8));
    assert_eq!((&users.into, users.key.len()), (&TableName::new("public", "users"), 0));
    let Rows::Cut(cut) = &users.parts[0].rows else { panic!() };
    assert_eq!((cut.source.as_str(), &cut.table, cut.columns[1].place(0)), ("shop", &users.into, (26, 19)));
    assert_eq!(cut.filter.as_ref().unwrap().place(0), (27, 10));
    assert_eq!((cut.masks[0].0.as_str(), cut.masks[0].1.place(4)), ("email", (28, 23)));
}

#[test]
fn masks_for_rehearsals_hold_in_their_plans_alone() {
    let says = |word: &str| parse(&with(&format!("{PARTS}mask_in = \"{word}\"\n")));
    let texts = |plan: &Plan| plan.derived.iter().map(|derived| derived.parts[0].text()).collect::<Vec<_>>();
    let plan = says("rehearsals").unwrap();
    let rehearsal = plan.rehearsal(crate::Secret::new("postgres://app@again/shop"));
    assert_eq!(rehearsal.target.url.expose(), "postgres://app@again/shop");
    let (run, rehearsed) = (texts(&plan), texts(&rehearsal));
    assert!(!run[1].contains("md5") && rehearsed[1].contains("email=md5(email)"), "{run:?} {rehearsed:?}");
    assert_eq!(run[0], rehearsed[0]);
    assert_eq!(texts(&says("everywhere").unwrap()), rehearsed);
    let problem = says("rehearsal").unwrap_err();
    assert_eq!(problem.what, "shop.toml:29 (table.mask_in)");
    assert!(problem.why.contains("\"rehearsal\" is not known") && problem.next.contains("\"rehearsals\""), "{problem}");
    let none = with("[[table]]\nfrom = \"public.users\"\nmask_in = \"rehearsals\"\n");
    assert!(parse(&none).unwrap_err().why.contains("no `mask`"));
}

#[test]
fn tables_into_one_that_contradict_each_other_are_told_with_both_lines() {
    let more = "[[table]]\ninto = \"core.grant\"\n";
    for (says, what) in [
        ("key = [\"member_id\"]", "key"),
        ("merge = \"min(access)\"", "merge"),
        ("affected_by = { \"public.owner\" = \"SELECT 1 FROM changed\" }", "affected_by.public.owner"),
    ] {
        let problem = parse(&with(&format!("{PARTS}{more}sql = \"SELECT 1\"\n{says}\n"))).expect_err(says);
        let line = match what {
            "key" => 15,
            "merge" => 20,
            _ => 17,
        };
        assert_eq!(problem.what, format!("shop.toml:32 (table.{what})"));
        assert!(problem.why.contains(&format!("line {line} ")), "{problem}");
    }
    // Said once more, or in the default's word where another is said.
    let same =
        format!("{PARTS}{more}sql = \"SELECT 1\"\nkey = [\"member_id\", \"space_id\"]\nmerge = [\"max(access)\"]\n");
    assert_eq!(parse(&with(&same)).unwrap().derived[0].parts.len(), 3);
    let missing = format!(
        "{PARTS}{more}sql = \"SELECT 1\"\nwhen_missing = \"keep\"\n{more}sql = \"SELECT 2\"\nwhen_missing = \"delete\""
    );
    assert!(parse(&with(&missing)).unwrap_err().why.contains("line 32 "));
    let same_place = "[[table]]\nfrom = \"public.country\"\n";
    assert!(parse(&with(same_place)).unwrap_err().why.contains("`mirror` lets public.country"));
}
