//! Given several `[[table]]`s into one table of the target, disjoint or merged, and tables that go over in part and masked, or masked in rehearsals alone: while an application writes,
//! each holds what the queries that they stand for give at the source; two rows of one key stop it. What is masked on its way, with nothing else that reads its table, is nowhere at the target.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::{Crossfade, Dice, PlanFile, World, follow};

const MINUTE: Duration = Duration::from_secs(60);

const SOURCE: &str = "
    CREATE TABLE note (id int PRIMARY KEY, title text, team int);
    CREATE TABLE file (id int PRIMARY KEY, name text, size int);
    CREATE TABLE owner (member int NOT NULL, space int NOT NULL, PRIMARY KEY (member, space));
    CREATE TABLE role (id int PRIMARY KEY, member int NOT NULL, team int, level int NOT NULL);
    CREATE TABLE space (id int PRIMARY KEY, team int);
    CREATE TABLE users (id int PRIMARY KEY, name varchar(20), email text, country char(2) NOT NULL, born date);
    CREATE TABLE patron (id int PRIMARY KEY, name text, phone text, points int);
    CREATE TABLE reader (id int PRIMARY KEY, phone text, points int);
    ALTER TABLE reader REPLICA IDENTITY FULL;
    ALTER TABLE patron ALTER phone SET STORAGE EXTERNAL;
    ALTER TABLE reader ALTER phone SET STORAGE EXTERNAL;
    INSERT INTO patron SELECT i, 'p' || i, 'secret-' || i || repeat(md5(i::text), i * 5), i FROM generate_series(1, 40) AS i;
    INSERT INTO reader SELECT i, 'secret-' || i || repeat(md5(i::text), i * 5), i FROM generate_series(1, 40) AS i;
    INSERT INTO note SELECT i, 'n' || i % 5, i % 4 FROM generate_series(1, 40) AS i;
    INSERT INTO file SELECT i, 'f' || i % 5, i % 9 FROM generate_series(1, 40) AS i;
    INSERT INTO space SELECT i, i % 4 FROM generate_series(1, 12) AS i;
    INSERT INTO owner SELECT i % 10, i % 12 + 1 FROM generate_series(1, 30) AS i;
    INSERT INTO role SELECT i, i % 10, i % 4, i % 3 FROM generate_series(1, 30) AS i;
    INSERT INTO users SELECT i, 'u' || i, 'u' || i || '@shop.example', CASE i % 2 WHEN 0 THEN 'ch' ELSE 'at' END, '2000-01-01' FROM generate_series(1, 40) AS i";

const TARGET: &str = "
    CREATE SCHEMA core;
    CREATE TABLE core.document (id int PRIMARY KEY, kind text NOT NULL, title text, size bigint);
    CREATE TABLE core.principal_space (member int, space int, access int, admin bool, PRIMARY KEY (member, space));
    CREATE TABLE core.level (member int PRIMARY KEY, highest int, roles bigint);
    CREATE TABLE core.contact (id int PRIMARY KEY, email text);
    CREATE TABLE users (id int PRIMARY KEY, name varchar(20), email text);
    CREATE TABLE patron (id int PRIMARY KEY, phone text, points int);
    CREATE TABLE reader (id int PRIMARY KEY, phone text, points int)";

/// Rows that share no key; the second gives its columns in another order, and ends in what must not reach the others.
const DOCUMENT: &str = r#"
[[table]]
into = "core.document"
key = ["id"]
sql = "SELECT id * 2 AS id, 'note' AS kind, title, NULL::bigint AS size FROM shop.public.note"
[[table]]
into = "core.document"
sql = """
WITH f AS (SELECT name, size, id FROM shop.public.file WHERE size > 0)
SELECT f.size::bigint AS size, upper(f.name) AS title, 'file' AS kind, f.id * 2 + 1 AS id FROM f ORDER BY 4 -- files"""
"#;

/// The highest grant wins; and the same of one table's own rows.
const MERGED: &str = r#"
[[table]]
into = "core.principal_space"
key = ["member", "space"]
merge = ["max(access)", "bool_or(admin)"]
sql = "SELECT member, space, 3 AS access, true AS admin FROM shop.public.owner"
[[table]]
into = "core.principal_space"
sql = "SELECT r.member, s.id AS space, r.level AS access, false AS admin FROM shop.public.role r JOIN shop.public.space s ON s.team = r.team"
[[table]]
into = "core.level"
key = "member"
merge = ["max(highest)", "count(roles)"]
sql = "SELECT member, level AS highest, id AS roles FROM shop.public.role"
"#;

const USERS: &str = r#"
[[table]]
from = "shop.public.users"
columns = ["id", "name", "email"]
where = "country = 'ch'"
mask = { email = "md5(email) || '@example.invalid'" }
[[table]]
from = "shop.public.users"
into = "core.contact"
columns = ["id", "email"]
mask = { email = "'u' || id" }
mask_in = "rehearsals"
"#;

/// Streamed: the first leaves no row out, and of the second old rows come whole.
const ALONE: &str = r#"
[[table]]
from = "shop.public.patron"
columns = ["id", "phone", "points"]
mask = { phone = "md5(phone)" }
[[table]]
from = "shop.public.reader"
where = "points % 3 > 0 AND length(phone) > 9"
mask = { phone = "md5(phone || points)" }
"#;

/// Each table of the target with what it must hold, asked at the source.
const HOLDS: [(&str, &str); 7] = [
    (
        "core.document",
        "SELECT id * 2 AS id, 'note' AS kind, title, NULL::bigint AS size FROM note
         UNION ALL SELECT id * 2 + 1, 'file', upper(name), size FROM file WHERE size > 0",
    ),
    (
        "core.principal_space",
        "SELECT member, space, max(access) AS access, bool_or(admin) AS admin
           FROM (SELECT member, space, 3 AS access, true AS admin FROM owner
                 UNION ALL SELECT r.member, s.id, r.level, false FROM role r JOIN space s ON s.team = r.team) AS g GROUP BY member, space",
    ),
    ("core.level", "SELECT member, max(level) AS highest, count(*) AS roles FROM role GROUP BY member"),
    ("public.users", "SELECT id, name, md5(email) || '@example.invalid' AS email FROM users WHERE country = 'ch'"),
    ("core.contact", "SELECT id, email FROM users"),
    ("public.patron", "SELECT id, md5(phone) AS phone, points FROM patron"),
    ("public.reader", "SELECT id, md5(phone || points) AS phone, points FROM reader WHERE points % 3 > 0 AND length(phone) > 9"),
];

fn world() -> Result<(World, PlanFile)> {
    let world = World::with_nats()?;
    world.at_source(SOURCE)?;
    world.at_target(TARGET)?;
    let plan = with(&world, DOCUMENT);
    Ok((world, plan))
}

fn with(world: &World, document: &str) -> PlanFile {
    let plan = world.plan().target_exists().identity("public.reader", "full");
    plan.section(document).section(MERGED).section(USERS).section(ALONE)
}

/// Rows of a relation that hold a value as it is at the source.
async fn unmasked(world: &World) -> Result<Vec<(String, i64)>> {
    let target = world.target.client("app").await?;
    let relations = "SELECT n.nspname || '.' || quote_ident(c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                      WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't' AND n.nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1";
    let mut found = Vec::new();
    for row in target.query(relations, &[]).await? {
        let relation: String = row.get(0);
        let sql = format!("SELECT count(*) FROM {relation} AS t WHERE t::text LIKE '%secret-%'");
        found.push((relation, target.query_one(&sql, &[]).await?.get(0)));
    }
    Ok(found)
}

async fn expect_masked(world: &World) -> Result<()> {
    let all = unmasked(world).await?;
    ensure!(all.iter().any(|(relation, _)| relation == "crossfade.\"shape shop.public.patron\""), "{all:?}");
    let held: Vec<_> = all.iter().filter(|(_, rows)| *rows > 0).collect();
    ensure!(held.is_empty(), "unmasked values are in {held:?}");
    Ok(())
}

fn expect_equal(world: &World) -> Result<()> {
    for (table, query) in HOLDS {
        let rows = |from: &str| {
            format!("SELECT count(*), string_agg(q::text, ' ' ORDER BY q::text COLLATE \"C\") FROM ({from}) AS q")
        };
        let (want, have) = (world.at_source(&rows(query))?, world.at_target(&rows(&format!("SELECT * FROM {table}")))?);
        ensure!(want == have, "{table}\nis   {have}\nnot  {want}");
        ensure!(!want.starts_with("0|"), "{table}: nothing to compare");
    }
    Ok(())
}

fn statement(dice: &mut Dice) -> String {
    let (id, other, few) = (dice.between(1, 50), dice.between(1, 50), dice.below(4));
    let (member, space) = (id % 10, other % 12 + 1);
    match dice.below(20) {
        0 => format!(
            "INSERT INTO note VALUES ({id}, 'x{few}', {few}) ON CONFLICT (id) DO UPDATE SET title = excluded.title"
        ),
        1 => format!("DELETE FROM note WHERE id = {id}"),
        2 => format!("INSERT INTO file VALUES ({id}, NULL, {few}) ON CONFLICT (id) DO UPDATE SET size = {few}"),
        3 => {
            format!("UPDATE file SET id = {other} WHERE id = {id} AND NOT EXISTS (SELECT FROM file WHERE id = {other})")
        }
        4 => format!("INSERT INTO owner VALUES ({member}, {space}) ON CONFLICT DO NOTHING"),
        5 => format!("DELETE FROM owner WHERE member = {member} AND space = {space}"),
        6 => format!("DELETE FROM owner WHERE space = {space}"),
        7 => format!(
            "INSERT INTO role VALUES ({id}, {member}, {few}, {few}) ON CONFLICT (id) DO UPDATE SET level = {few}, member = {}",
            other % 10
        ),
        8 => format!("DELETE FROM role WHERE id = {id}"),
        9 => format!("UPDATE role SET level = level + 1 WHERE member = {member} AND level < 5"),
        10 => format!("UPDATE space SET team = NULLIF({few}, 0) WHERE id = {space}"),
        11 => format!("UPDATE users SET country = CASE country WHEN 'ch' THEN 'at' ELSE 'ch' END WHERE id = {id}"),
        12 => format!("UPDATE users SET email = repeat('{other}', {other}00), born = NULL WHERE id IN ({id}, {other})"),
        13 => format!("UPDATE patron SET points = points + 1, name = 'x' WHERE id IN ({id}, {other})"),
        14 => format!(
            "UPDATE patron SET id = id + 100, phone = 'secret-{other}' WHERE id = {id} AND NOT EXISTS (SELECT FROM patron WHERE id = {id} + 100)"
        ),
        15 => format!(
            "DELETE FROM patron WHERE id = {id}; INSERT INTO patron VALUES ({id}, 'n', repeat('secret-', {other}00), {few})"
        ),
        16 => format!("UPDATE reader SET points = points + {few} WHERE id IN ({id}, {other})"),
        17 => format!(
            "UPDATE reader SET id = id + 100, phone = 'secret-{other}' WHERE id = {id} AND NOT EXISTS (SELECT FROM reader WHERE id = {id} + 100)"
        ),
        18 => format!(
            "DELETE FROM reader WHERE id = {id}; INSERT INTO reader VALUES ({id}, repeat('secret-', {other}00), {few})"
        ),
        _ => format!("INSERT INTO users VALUES ({id}, 'v', NULL, 'ch') ON CONFLICT (id) DO UPDATE SET name = NULL"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_merges_and_masks_follow_and_are_verified() -> Result<()> {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_122);
    let mut dice = Dice::new(seed);
    let (world, plan) = world()?;
    let crossfade = Crossfade::new(&plan)?;
    let explained = crossfade.run(&["explain"]).await?;
    for line in [
        "the rows of 2 [[table]]s are in it",
        "rows that share a key are merged",
        "key        id",
        "nothing besides these rows",
    ] {
        ensure!(explained.status.success() && explained.stdout.contains(line), "{line}: {}", explained.stdout);
    }
    let mut run = follow::following(&crossfade).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    expect_equal(&world).context("after the copy")?;
    // With the mirrors there, Postgres is asked: the units of merged rows are found in every part by an index.
    let explained = crossfade.run(&["explain"]).await?.stdout;
    let merged = explained.split("core.principal_space (").nth(1).and_then(|rest| rest.split("public.users (").next());
    ensure!(merged.is_some_and(|merged| merged.contains("  plans ") && !merged.contains("  scan ")), "{explained}");
    for round in 0..6 {
        for _ in 0..15 {
            let statements: Vec<String> = (0..dice.between(1, 6)).map(|_| statement(&mut dice)).collect();
            world.at_source(&format!("BEGIN; {}; COMMIT", statements.join("; ")))?;
        }
        crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
        expect_equal(&world).with_context(|| format!("SEED={seed}, round {round}"))?;
    }
    expect_masked(&world).await?;
    world.at_source("INSERT INTO note VALUES (900, repeat('long', 3000), 1)")?;
    crossfade.verified().await?;
    masked_in_a_rehearsal(&world, &crossfade).await?;
    world.at_target("UPDATE core.principal_space SET access = access + 1 WHERE member = 1; UPDATE users SET email = 'u2@shop.example' WHERE id = 2;
                     UPDATE core.document SET title = overlay(title PLACING 'G' FROM 12000) WHERE id = 1800")?;
    let (report, code) = crossfade.says(&["verify"]).await?;
    let tables = report["tables"].as_array().context("tables")?;
    let different: Vec<&str> =
        tables.iter().filter(|table| table["verdict"] != "equal").filter_map(|table| table["table"].as_str()).collect();
    ensure!(code == Some(1) && different == ["core.document", "core.principal_space", "public.users"], "{report:#}");
    // Of long values the beginning is shown, and what tells them apart.
    let document = tables.iter().find(|table| table["table"] == "core.document").context("core.document")?;
    let title = &document["samples"][0]["columns"]["title"];
    let shown = [&title["source"], &title["target"]].map(|value| value.as_str().unwrap_or_default());
    let [source, target] = shown.map(|text| text.split_once("… (12000 bytes, md5 ").unwrap_or_default());
    ensure!(source.0.len() == 4000 && source.0 == target.0 && source.1 != target.1, "{document:#}");
    run.stop().await
}

/// What the target has as it is, a rehearsal has masked, and nothing besides; it is compared with that.
async fn masked_in_a_rehearsal(world: &World, crossfade: &Crossfade) -> Result<()> {
    world.target.create_db("again")?;
    world.target.psql("again", TARGET)?;
    let again = world.target.url("again");
    let rehearsed = crossfade.start(&["rehearse", "--json", "--into", &again])?.finish(2 * MINUTE).await?;
    let report = rehearsed.json()?;
    let tables = report["tables"].as_array().context("tables")?;
    let contact = tables.iter().find(|table| table["table"] == "core.contact");
    ensure!(rehearsed.status.success() && contact.is_some_and(|contact| contact["verdict"] == "equal"), "{report:#}");
    let emails = |of: &str| format!("SELECT string_agg(id || ' ' || coalesce({of}, '-'), ' ' ORDER BY id)");
    let want = world.at_source(&format!("{} FROM users", emails("'u' || id")))?;
    let have = world.target.psql("again", &format!("{} FROM core.contact", emails("email")))?;
    ensure!(!want.is_empty() && have == want, "a rehearsal has\n{have}\nand not\n{want}");
    let mirrors = world.target.psql("again", "SELECT count(*) FROM pg_namespace WHERE nspname = 'crossfade'")?;
    ensure!(mirrors == "0", "mirrors are left, where values are as they are");
    Ok(())
}

/// A finding is asked of whole tables: with one there is a mirror, once that is said to be so, and the values in it are as at the source.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_masked_and_streamed_is_nowhere_else_until_a_finding_reads_it() -> Result<()> {
    let (world, plan) = world()?;
    let mut crossfade = Crossfade::new(&plan)?;
    let mut run = follow::following(&crossfade).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    expect_masked(&world).await?;
    run.stop().await?;
    crossfade.replan(&plan.section(
        "[[finding]]\nname = \"no phone\"\nreason = \"carried\"\nseverity = \"warning\"\nsql = \"SELECT id FROM shop.public.patron WHERE phone IS NULL\"",
    ))?;
    let why = "finding \"no phone\" reads it";
    // Whoever counts with the new plan is told that nothing is there to be counted.
    let (report, code) = crossfade.says(&["reconcile"]).await?;
    let told = report["findings"][0]["error"].as_str().unwrap_or_default();
    ensure!(code != Some(0) && told.contains("nothing is stored of table shop.public.patron"), "{report:#}");
    let refused = crossfade.start(&["run"])?.finish(MINUTE).await?;
    let said = format!("{}{}", refused.stdout, refused.stderr);
    ensure!(said.contains(why) && said.contains("crossfade recopy public.patron"), "{said}");
    let asked = crossfade.run(&["recopy", "--json", "public.patron"]).await?;
    ensure!(asked.status.success(), "{asked:?}");
    let mut run = crossfade.start(&["run"])?;
    world.at_source("UPDATE patron SET phone = NULL WHERE id < 4")?;
    let counted = |status: &serde_json::Value| status["findings"][0]["count"] == 3;
    crossfade.wait_for(&mut run, "three rows of the finding", MINUTE, counted).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    expect_equal(&world)?;
    let held = unmasked(&world).await?.into_iter().filter(|(_, rows)| *rows > 0).map(|(relation, _)| relation);
    ensure!(held.eq(["crossfade.\"mirror shop.public.patron\""]), "elsewhere than in the mirror");
    let explained = crossfade.run(&["explain"]).await?.stdout;
    ensure!(explained.contains(&format!("shop.public.patron has one all the same: {why}")), "{explained}");
    // Old rows come whole no longer: whether the filter lets such a row stay cannot be known, and is not guessed.
    world.at_source("ALTER TABLE reader REPLICA IDENTITY DEFAULT")?;
    world.at_source("UPDATE reader SET points = 41 WHERE id = 40")?;
    let stopped = run.finish(MINUTE).await?;
    let said = format!("{}{}", stopped.stdout, stopped.stderr);
    ensure!(stopped.status.code() == Some(1) && said.contains("without a value of phone"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_rows_of_one_key_stop_it_and_are_named() -> Result<()> {
    let (world, plan) = world()?;
    let crossfade = Crossfade::new(&plan)?;
    let mut run = follow::following(&crossfade).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    run.stop().await?;
    // Of the two, the note's is there already.
    let twice = DOCUMENT.replace("f.id * 2 + 1 AS id", "CASE f.id WHEN 77 THEN 8 ELSE f.id * 2 + 1 END AS id");
    let plan = with(&world, &twice);
    let mut crossfade = crossfade;
    crossfade.replan(&plan)?;
    let mut run = crossfade.start(&["run", "--json"])?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    expect_equal(&world)?;
    world.at_source("INSERT INTO file VALUES (77, 'twice', 1)")?;
    let stopped = run.finish(MINUTE).await?;
    for mention in ["core.document", "line ", "(id)=(8)"] {
        ensure!(stopped.status.code() == Some(1) && stopped.stdout.contains(mention), "{mention}: {}", stopped.stdout);
    }
    // Nothing was written, and nothing stepped over.
    ensure!(world.at_target("SELECT count(*) FROM core.document WHERE title = 'TWICE'")? == "0", "it was written");
    Ok(())
}
