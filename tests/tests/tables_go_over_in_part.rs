//! Given several `[[table]]`s into one table of the target, disjoint or merged, and tables that go over in part and masked, or masked in rehearsals alone: while an application writes,
//! each holds what the queries that they stand for give at the source; two rows of one key stop it.

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
    CREATE TABLE users (id int PRIMARY KEY, name varchar(20), email text)";

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

/// Each table of the target with what it must hold, asked at the source.
const HOLDS: [(&str, &str); 5] = [
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
];

fn world() -> Result<(World, PlanFile)> {
    let world = World::with_nats()?;
    world.at_source(SOURCE)?;
    world.at_target(TARGET)?;
    let plan = world.plan().target_exists().section(DOCUMENT).section(MERGED).section(USERS);
    Ok((world, plan))
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
    match dice.below(14) {
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
    for line in ["the rows of 2 [[table]]s are in it", "rows that share a key are merged", "key        id"] {
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
    crossfade.verified().await?;
    masked_in_a_rehearsal(&world, &crossfade).await?;
    world.at_target("UPDATE core.principal_space SET access = access + 1 WHERE member = 1; UPDATE users SET email = 'u2@shop.example' WHERE id = 2")?;
    let (report, code) = crossfade.says(&["verify"]).await?;
    let tables = report["tables"].as_array().context("tables")?;
    let different: Vec<&str> =
        tables.iter().filter(|table| table["verdict"] != "equal").filter_map(|table| table["table"].as_str()).collect();
    ensure!(code == Some(1) && different == ["core.principal_space", "public.users"], "{report:#}");
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

#[tokio::test(flavor = "multi_thread")]
async fn two_rows_of_one_key_stop_it_and_are_named() -> Result<()> {
    let (world, plan) = world()?;
    let crossfade = Crossfade::new(&plan)?;
    let mut run = follow::following(&crossfade).await?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    run.stop().await?;
    // Of the two, the note's is there already.
    let twice = DOCUMENT.replace("f.id * 2 + 1 AS id", "CASE f.id WHEN 77 THEN 8 ELSE f.id * 2 + 1 END AS id");
    let plan = world.plan().target_exists().section(&twice).section(MERGED).section(USERS);
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
