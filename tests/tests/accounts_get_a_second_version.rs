//! Given examples/accounts, a first version in use: when crossfade makes the second one beside it in the same database, then every new table holds what its query gives,
//! nothing changes when it is done again, a changed ranking changes the right rows, and the cutover closes the first version alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use crossfade_tests::{Cluster, Crossfade, Dice, Nats, PlanFile, Running, follow, until};
use tokio_postgres::Client;

const MINUTE: Duration = Duration::from_secs(60);

const PLAN: &str = include_str!("../../examples/accounts/accounts.toml");
const LEGACY: &str = include_str!("../../examples/accounts/legacy.sql");
const SCHEMA: &str = include_str!("../../examples/accounts/schema.sql");
const FILL: &str = include_str!("../../examples/accounts/fill.sql");

const ACCOUNTS: u64 = 60;

struct Example {
    cluster: Cluster,
    _nats: Nats,
    client: Client,
    crossfade: Crossfade,
    dice: Dice,
}

impl Example {
    async fn new() -> Result<Example> {
        let seed = std::process::id().into();
        eprintln!("seed {seed}");
        let cluster = Cluster::start()?;
        cluster.create_db("app")?;
        cluster.psql("app", &format!("{LEGACY};\n\\set accounts {ACCOUNTS}\n{FILL};\n{SCHEMA}"))?;
        let nats = Nats::start()?;
        let plan = PlanFile::of(PLAN).env("ACCOUNTS_URL", &cluster.url("app")).env("ACCOUNTS_LOG", &nats.url());
        let client = cluster.client("app").await?;
        Ok(Example { client, crossfade: Crossfade::new(&plan)?, cluster, _nats: nats, dice: Dice::new(seed) })
    }

    fn sql(&self, sql: &str) -> Result<String> {
        self.cluster.psql("app", sql)
    }

    /// What the application does to the first version.
    async fn write(&mut self, transactions: u32) -> Result<()> {
        for _ in 0..transactions {
            let mut sql = "BEGIN;".to_owned();
            for _ in 0..self.dice.between(1, 5) {
                sql += &self.statement();
                sql += ";\n";
            }
            sql += "COMMIT";
            self.client.batch_execute(&sql).await.with_context(|| sql.clone())?;
        }
        Ok(())
    }

    fn statement(&mut self) -> String {
        let dice = &mut self.dice;
        let (w, n, v) = (dice.between(1, ACCOUNTS + 1), dice.between(1, 5), dice.between(1, 6));
        match dice.below(15) {
            0 => format!("UPDATE platform_workspaces SET name = name || '.', updated_at = now() WHERE id = 'wsp_{w}'"),
            1 => format!(
                "INSERT INTO platform_workspaces (id, name) VALUES ('wsp_new_{w}', 'New') ON CONFLICT (id) DO UPDATE SET name = 'Again', updated_at = now()"
            ),
            2 => format!("DELETE FROM platform_workspace_members WHERE id = 'mem_{w}'"),
            3 => format!(
                "INSERT INTO platform_workspace_members (id, workspace_id, user_id) VALUES ('mem_{w}', 'wsp_{w}', 'usr_{n}') ON CONFLICT DO NOTHING"
            ),
            4 => format!("DELETE FROM auth_users WHERE id = 'usr_{}'", 2 * w),
            5 => format!("INSERT INTO auth_users VALUES ('usr_{0}', 'again{0}@example.com') ON CONFLICT DO NOTHING", 2 * w),
            6 => format!(
                "UPDATE platform_managed_users SET identity_key_fingerprint = 'fp_{w}_{}', updated_at = now() WHERE id = 'mgd_{w}_{n}'",
                1 + v % 2
            ),
            7 => format!("UPDATE platform_managed_users SET status = 'deleted', updated_at = now() WHERE id = 'mgd_{w}_{n}'"),
            8 => format!("UPDATE platform_managed_users SET status = 'active', updated_at = now() WHERE id = 'mgd_{w}_{n}'"),
            9 => format!(
                "INSERT INTO platform_managed_users (id, workspace_id, display_name, user_key, identity_key_fingerprint, created_at)
                 VALUES ('mgd_{w}_{n}', 'wsp_{w}', 'Again', 'key_{n}', 'fp_{w}_1', '2024-01-0{v}') ON CONFLICT DO NOTHING"
            ),
            10 => format!("DELETE FROM platform_managed_users WHERE id = 'mgd_{w}_{n}'"),
            11 => format!("UPDATE platform_books SET current_version = current_version + 1, updated_at = now() WHERE workspace_id = 'wsp_{w}'"),
            12 => format!("DELETE FROM platform_books WHERE id = 'bok_{w}_{n}'"),
            13 => format!(
                "INSERT INTO platform_book_snapshots (id, book_id, version, cipher_object_key, cipher_sha256, wrapped_dek)
                 VALUES ('snp_{w}_{n}_{v}', 'bok_{w}_{n}', {v}, 'o', 's', 'd') ON CONFLICT DO NOTHING"
            ),
            _ => format!("INSERT INTO platform_audit_events (id, workspace_id, event_type) VALUES ('evt_{w}_{n}_{v}', 'wsp_{w}', 'x') ON CONFLICT DO NOTHING"),
        }
    }

    async fn ends_equal(&self, run: &mut Running) -> Result<()> {
        self.crossfade.wait_for_lag_zero(run, MINUTE).await?;
        for (into, sql) in queries()? {
            let (want, have) = (self.rows(&format!("({sql})")).await?, self.rows(&into).await?);
            let missing: Vec<_> = want.iter().filter(|row| !have.contains(row)).take(3).collect();
            let extra: Vec<_> = have.iter().filter(|row| !want.contains(row)).take(3).collect();
            ensure!(!want.is_empty() && want == have, "{into}: lacks {missing:?}, has {extra:?}");
        }
        Ok(())
    }

    async fn rows(&self, from: &str) -> Result<Vec<String>> {
        let names = "SELECT string_agg(quote_ident(key), ', ' ORDER BY key) FROM (SELECT jsonb_object_keys(to_jsonb(q)) AS key FROM (SELECT * FROM";
        let names: String =
            self.client.query_one(&format!("{names} {from} AS q LIMIT 1) AS q) AS keys"), &[]).await?.get(0);
        let sql = format!("SELECT ROW({names})::text COLLATE \"C\" FROM {from} AS q ORDER BY 1");
        Ok(self.client.query(&sql, &[]).await?.iter().map(|row| row.get(0)).collect())
    }

    /// Each row of the second version, and the transaction that wrote it.
    async fn versions(&self) -> Result<BTreeMap<String, (String, String)>> {
        let mut all = BTreeMap::new();
        for (into, _) in queries()? {
            let sql = format!("SELECT '{into} ' || id, xmin::text, t::text FROM {into} AS t");
            let rows = self.client.query(&sql, &[]).await?;
            all.extend(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))));
        }
        Ok(all)
    }
}

/// Each new table and its query, as one that Postgres can be asked.
fn queries() -> Result<Vec<(String, String)>> {
    let plan: toml::Table = PLAN.parse()?;
    let tables = plan["table"].as_array().context("[[table]]")?;
    let text = |table: &toml::Value, key: &str| table[key].as_str().map(str::to_owned).context("a string");
    tables
        .iter()
        .map(|table| Ok((text(table, "into")?, text(table, "sql")?.replace("legacy.public.", "public."))))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn beside_the_first_one_in_the_same_database() -> Result<()> {
    let mut example = Example::new().await?;
    let mut run = follow::following(&example.crossfade).await?;
    example.ends_equal(&mut run).await.context("copied")?;
    example.write(150).await?;
    example.ends_equal(&mut run).await.context("followed")?;
    run.hush();
    run.kill9()?;
    example.write(30).await?;
    let mut run = follow::following(&example.crossfade).await?;
    example.ends_equal(&mut run).await.context("killed")?;
    run.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn done_again_nothing_changes_and_a_ranking_changes_the_right_rows() -> Result<()> {
    let mut example = Example::new().await?;
    let mut run = follow::following(&example.crossfade).await?;
    example.write(40).await?;
    example.ends_equal(&mut run).await?;
    let before = example.versions().await?;
    run.stop().await?;
    let mut run = follow::following(&example.crossfade).await?;
    let asked = example.crossfade.run(&["recopy", "--json"]).await?;
    ensure!(asked.status.success(), "{asked:?}");
    until("everything to be copied again", MINUTE, || async {
        let again = "SELECT bool_and(joined AND asked IS NULL) AND (SELECT bool_and(epoch > 1) FROM crossfade.tables) AND (SELECT bool_and(filled) FROM crossfade.derived) FROM crossfade.checkpoint";
        Ok((example.sql(again)? == "t").then_some(()))
    })
    .await?;
    example.ends_equal(&mut run).await.context("copied again")?;
    let after = example.versions().await?;
    ensure!(
        before == after,
        "rows were written again: {:?}",
        after.iter().find(|(id, version)| before.get(*id) != Some(*version))
    );
    // In every tenth workspace the first and the third managed user have one fingerprint, and the third is younger.
    example.sql("DELETE FROM platform_managed_users WHERE workspace_id = 'wsp_20';
        INSERT INTO platform_managed_users (id, workspace_id, display_name, user_key, identity_key_fingerprint, created_at) VALUES
            ('one', 'wsp_20', 'One', 'one', 'fp', '2024-01-01'), ('two', 'wsp_20', 'Two', 'two', 'fp', '2024-01-02'),
            ('three', 'wsp_20', 'Three', 'three', 'fp', '2024-01-03'), ('four', 'wsp_20', 'Four', 'four', 'other', '2024-01-04')")?;
    example.ends_equal(&mut run).await?;
    let live =
        "SELECT string_agg(id || ':' || status, ' ' ORDER BY created_at) FROM identities WHERE account_id = 'wsp_20'";
    ensure!(example.sql(live)? == "one:active two:deleted three:deleted four:active", "{}", example.sql(live)?);
    let before = example.versions().await?;
    example.sql("UPDATE platform_managed_users SET status = 'deleted' WHERE id = 'one'")?;
    example.ends_equal(&mut run).await?;
    let after = example.versions().await?;
    ensure!(example.sql(live)? == "one:deleted two:active three:deleted four:active", "{}", example.sql(live)?);
    let changed: Vec<&str> =
        after.iter().filter(|(id, version)| before.get(*id) != Some(*version)).map(|(id, _)| id.as_str()).collect();
    ensure!(changed == ["public.identities one", "public.identities two"], "{changed:?}");
    run.stop().await
}

/// What the fixture plants: each finding and how many rows it has.
const PLANTED: [(&str, u64); 4] = [
    ("books without an identity of their account", 3),
    ("fingerprints of several live identities", ACCOUNTS / 10),
    ("members without workspace or user", 2),
    ("snapshots without a book", 1),
];

/// What the people of the first version do about the findings that are errors.
const MENDED: &str = "DELETE FROM platform_workspace_members WHERE id IN ('mem_astray', 'mem_nobody');
    DELETE FROM platform_book_snapshots WHERE id IN ('snp_astray', 'snp_orphan');
    DELETE FROM platform_books WHERE id IN ('bok_orphan', 'bok_gone', 'bok_other')";

#[tokio::test(flavor = "multi_thread")]
async fn the_cutover_closes_the_first_version_alone() -> Result<()> {
    let example = Example::new().await?;
    let crossfade = &example.crossfade;
    let mut run = follow::following(crossfade).await?;
    example.ends_equal(&mut run).await?;
    let (report, _) = crossfade.says(&["reconcile"]).await?;
    let found = report["findings"].as_array().context("findings")?.iter();
    let mut found: Vec<(String, u64)> = found
        .map(|found| {
            (found["name"].as_str().unwrap_or_default().to_owned(), found["count"].as_u64().unwrap_or_default())
        })
        .collect();
    found.sort();
    ensure!(found == PLANTED.map(|(name, rows)| (name.to_owned(), rows)), "{found:?}: {report:#}");
    example.sql(MENDED)?;
    example.ends_equal(&mut run).await?;
    let (report, code) = crossfade.says(&["reconcile"]).await?;
    ensure!(code == Some(0), "{report:#}");
    crossfade.verified().await?;
    // Both versions write to it, all the while.
    let (writer, over) = (example.cluster.client("app").await?, Arc::new(AtomicBool::new(false)));
    let stop = Arc::clone(&over);
    let writes = tokio::spawn(async move {
        let mut writes = 0;
        while !stop.load(Ordering::Relaxed) {
            writer.batch_execute("UPDATE auth_users SET name = name || '.' WHERE id = 'usr_1'").await?;
            writes += 1;
        }
        Ok::<u64, tokio_postgres::Error>(writes)
    });
    let (report, code) = crossfade.says(&["cutover", "--no-way-back"]).await?;
    over.store(true, Ordering::Relaxed);
    ensure!(writes.await?.context("a table of both versions was closed")? > 10, "nothing was written meanwhile");
    ensure!(code == Some(0) && report["outcome"] == "committed", "{report:#}");
    for refused in ["UPDATE platform_workspaces SET name = 'x'", "DELETE FROM platform_books"] {
        ensure!(example.sql(refused).is_err(), "the first version takes writes: {refused}");
    }
    example.sql("INSERT INTO auth_users VALUES ('usr_late', 'late@example.com'); INSERT INTO accounts VALUES ('acc_late', 'Late', 'active', now(), now());
        INSERT INTO account_members VALUES ('mem_late', 'acc_late', 'usr_late', 'owner', 'active', now(), now())")?;
    let (again, code) = crossfade.says(&["recopy"]).await?;
    ensure!(code != Some(0), "a backfill from the first version is accepted: {again:#}");
    run.stop().await?;
    let (done, code) = crossfade.says(&["complete", "--yes"]).await?;
    let archive = done["archive"].to_string();
    ensure!(
        code == Some(0) && archive.contains("platform_books_legacy") && !archive.contains("auth_users"),
        "{done:#}"
    );
    ensure!(
        example.sql("SELECT count(*) FROM platform_workspaces")? == ACCOUNTS.to_string(),
        "the first version was put away by a command"
    );
    let left = "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname = 'crossfade') + (SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'crossfade%')
                     + (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_origin)";
    ensure!(example.sql(left)? == "0", "something is left");
    ensure!(example.sql("SELECT count(*) FROM accounts WHERE id = 'acc_late'")? == "1", "what was written is gone");
    Ok(())
}
