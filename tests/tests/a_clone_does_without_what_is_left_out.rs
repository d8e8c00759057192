//! Given a table that the plan leaves out, which a foreign key references and views read: when the schema is cloned, then both are left
//! out with it, survey says so beforehand, and everything else arrives.

use std::time::Duration;

use anyhow::{Result, ensure};
use crossfade_tests::{Crossfade, World};

const MINUTE: Duration = Duration::from_secs(60);

const SCHEMA: &str = "CREATE TABLE secret (id integer PRIMARY KEY);
    CREATE TABLE owner (id integer PRIMARY KEY);
    CREATE TABLE kept (id integer PRIMARY KEY, secret integer REFERENCES secret, owner integer REFERENCES owner);
    CREATE VIEW shown AS SELECT id FROM kept;
    CREATE VIEW hidden AS SELECT k.id FROM kept k JOIN secret s ON s.id = k.secret;
    CREATE VIEW hidden_too AS SELECT * FROM hidden;
    INSERT INTO secret VALUES (1); INSERT INTO owner VALUES (1); INSERT INTO kept VALUES (1, 1, 1)";

#[tokio::test(flavor = "multi_thread")]
async fn foreign_keys_and_views_go_with_the_table() -> Result<()> {
    let world = World::embedded()?;
    world.at_source(SCHEMA)?;
    let crossfade = Crossfade::new(&world.plan().tables(&["public.*", "!public.secret"]))?;

    let survey = crossfade.run(&["survey", "--json"]).await?;
    ensure!(survey.status.code() == Some(0), "a warning is no blocker: {survey:?}");
    let text = survey.json()?.to_string();
    for named in
        ["foreign key kept_secret_fkey of table public.kept", "view public.hidden\"", "view public.hidden_too\""]
    {
        ensure!(text.contains(named), "{named} expected: {text}");
    }
    ensure!(!text.contains("kept_owner_fkey") && !text.contains("view public.shown"), "{text}");

    let mut run = crossfade.start(&["run"])?;
    crossfade.wait_for_phase(&mut run, "following", MINUTE).await?;
    world.at_source("INSERT INTO secret VALUES (2); INSERT INTO kept VALUES (2, 2, 1)")?;
    crossfade.wait_for_lag_zero(&mut run, MINUTE).await?;
    run.stop().await?;
    let there = "SELECT string_agg(name, ' ' ORDER BY name) FROM (SELECT relname::text AS name FROM pg_class
                  WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v') UNION SELECT conname FROM pg_constraint WHERE contype = 'f') x";
    ensure!(world.at_target(there)? == "kept kept_owner_fkey owner shown", "{}", world.at_target(there)?);
    let kept = "SELECT string_agg(kept::text, ' ' ORDER BY id) FROM kept";
    ensure!(world.at_target(kept)? == world.at_source(kept)?);
    Ok(())
}
