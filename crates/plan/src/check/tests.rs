#![allow(clippy::unwrap_used)]

use super::*;
use crate::{Fence, FenceCommand};

const PLAN: &str = r#"name = "shop"
[sources.shop]
url = "postgres://app:hunter2@source/shop"
tables = ["public.*"]
[log]
url = "nats://127.0.0.1:4222"
[target]
url_env = "TARGET_URL"
schema = "clone"
[limits]
memory = "256MiB"
"#;

fn parse(text: &str) -> Result<Plan, Problem> {
    let env = |name: &str| match name {
        "TARGET_URL" => Some("postgres://app:hunter2@target/shop".to_owned()),
        "SAME_URL" => Some("postgres://other@SOURCE:5432/shop".to_owned()),
        "EMPTY" => Some(" ".to_owned()),
        _ => None,
    };
    Plan::parse(text, Path::new("etc/shop.toml"), &env)
}

#[test]
fn a_plan_with_little_in_it_gets_the_defaults() {
    let plan = parse(PLAN).unwrap();
    assert_eq!(plan.name, "shop");
    assert_eq!(plan.source("shop").unwrap().url.expose(), "postgres://app:hunter2@source/shop");
    assert_eq!(plan.target.schema, SchemaMode::Clone);
    assert_eq!(plan.state_dir, Path::new("etc/.crossfade"));
    assert_eq!(plan.limits, Limits::default());
    assert!(matches!(plan.log, Log::Nats { replicas: 1, sync: SYNC, .. }));
    assert!(!format!("{plan:?}").contains("hunter2"));
}

#[test]
fn everything_that_can_be_said_is_heard() {
    let text = PLAN.replace("url = \"nats://127.0.0.1:4222\"", "url = \"tls://a:4222, tls://b:4222\"\nreplicas = 3\nca_file = \"/ca.pem\"\ncert_file = \"c.pem\"\nkey_file = \"c.key\"\ncredentials_file = \"c.creds\"\nmax_bytes = \"100GiB\"")
        + "wal_warn = \"1GiB\"\nwal_critical = \"2GiB\"\non_wal_critical = \"drop_slot\"\ncopy_workers = 2\nbarrier_timeout = \"1min\"\nlock_timeout = \"500ms\"\n[state]\ndir = \"/var/lib/crossfade\"\n[identity]\n\"public.with.dot\" = \"insert_only\"\n\"public.f\" = \"full\"\n";
    let plan = parse(&text).unwrap();
    let Log::Nats { replicas: 3, sync: Duration::ZERO, ca_file, cert_file, max_bytes, .. } = plan.log else { panic!() };
    assert_eq!((ca_file.unwrap(), cert_file.unwrap()), ("/ca.pem".into(), "etc/c.pem".into()));
    assert_eq!(max_bytes, Some(100 << 30));
    assert_eq!(plan.state_dir, Path::new("/var/lib/crossfade"));
    assert_eq!(plan.limits.on_wal_critical, OnWalCritical::DropSlot);
    assert_eq!((plan.limits.copy_workers, plan.limits.lock_timeout), (2, Duration::from_millis(500)));
    assert_eq!(plan.identity[&TableName::new("public", "with.dot")], Identity::InsertOnly);
    assert_eq!(plan.identity[&TableName::new("public", "f")], Identity::Full);
}

#[test]
fn the_embedded_log_needs_no_more_than_its_name() {
    let text = PLAN.replace("nats://127.0.0.1:4222", "embedded");
    assert!(matches!(parse(&text).unwrap().log, Log::Embedded));
}

#[test]
fn the_template_is_a_plan() {
    let url = |name: &str| Some(format!("postgres://crossfade@127.0.0.1/{name}"));
    let plan = Plan::parse(crate::template(), Path::new("crossfade.toml"), &url).unwrap();
    assert_eq!(plan.limits, Limits::default());
    assert_eq!(plan.state_dir, Path::new(".crossfade"));
    // Whoever takes the embedded log need change nothing else.
    let embedded = crate::template().replace("nats://127.0.0.1:4222", "embedded");
    assert!(matches!(Plan::parse(&embedded, Path::new("crossfade.toml"), &url).unwrap().log, Log::Embedded));
    // What is commented out must be right as well.
    let all: String = crate::template()
        .lines()
        .map(|line| format!("{}\n", line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line)))
        .collect();
    assert_eq!(Plan::parse(&all, Path::new("crossfade.toml"), &url).unwrap().identity.len(), 1);
    assert_eq!(Plan::parse(&all, Path::new("crossfade.toml"), &url).unwrap().checks.len(), 3);
}

/// Each error: what is replaced in a right plan, by what, the line and key that are named, and words of why and next.
#[test]
fn what_has_no_meaning_is_told_with_file_line_and_what_to_write_instead() {
    let end = "memory = \"256MiB\"\n";
    let tables = "[\"public.*\"]";
    let target = "schema = \"clone\"";
    let log = "\"nats://127.0.0.1:4222\"";
    let mut wrong = Vec::new();
    for (old, new, place, why, next) in [
        // syntax
        ("name = \"shop\"", "name = shop", "1", "not TOML", "double quotes"),
        (tables, "[\"public.*\"", "5", "not TOML", "brackets"),
        ("[log]", "[sources.shop]\n[log]", "5", "duplicate", "different names"),
        // keys
        ("name = ", "nane = ", "1 (nane)", "no key `nane`", "did you mean `name`?"),
        ("tables =", "table =", "4 (sources.shop.table)", "no key `table`", "did you mean `tables`?"),
        (end, "memroy = \"1GiB\"\n", "11 (limits.memroy)", "no key", "`memory`"),
        (end, "colour = 1\n", "11 (limits.colour)", "no key", "memory, wal_warn"),
        (end, "[stat]\ndir = \"x\"\n", "11 (stat)", "no key `stat`", "`state`"),
        (target, "schema = \"clone\"\nurl = \"postgres://h/d\"", "8 (target.url_env)", "both", "keep one"),
        ("name = \"shop\"", "", "1 (name)", "missing", "name = \"shop\""),
        // words of later versions
        (end, "[ddl]\nwatch = \"trigger\"\n", "11 (ddl)", "DDL", "take it out"),
        // names
        ("name = \"shop\"", "name = \"my shop\"", "1 (name)", "\"my shop\"", "a-z"),
        ("[sources.shop]", "[sources.Shop]", "2 (sources.Shop)", "\"Shop\"", "a-z"),
        ("name = \"shop\"", "name = 7", "1 (name)", "integer", "name = \"shop\""),
        // sections
        ("[log]", "[sources.other]\n[log]", "5 (sources.other.url)", "missing", "url_env = \"NAME\""),
        ("tables = [\"public.*\"]", "", "2 (sources.shop.tables)", "missing", "tables = "),
        ("[sources.shop]", "sources = 1\n[state]", "2 (sources)", "integer", "[sources]"),
        ("[log]\nurl = \"nats://127.0.0.1:4222\"\n", "", "1 (log)", "missing", "[log]"),
        // patterns
        (tables, "\"public.*\"", "4 (sources.shop.tables)", "not a list", "[\"public.*\""),
        (tables, "[]", "4 (sources.shop.tables)", "no pattern selects", "without `!`"),
        (tables, "[\"!public.a\"]", "4 (sources.shop.tables)", "no pattern selects", "without `!`"),
        (tables, "[\n\"public.*\",\n\"users\"]", "6 (sources.shop.tables)", "\"users\"", "\"public.*\""),
        (tables, "[\"public.[a\"]", "4 (sources.shop.tables)", "\"public.[a\"", "like this"),
        (tables, "[1]", "4 (sources.shop.tables)", "integer", "\"public.*\""),
        // amounts
        (end, "memory = \"256\"\n", "11 (limits.memory)", "\"256\" is not a size", "memory = \"256MiB\""),
        (end, "memory = 256\n", "11 (limits.memory)", "256 is not a size", "256MiB"),
        (end, "memory = \"1MiB\"\n", "11 (limits.memory)", "too small", "at least 64MiB"),
        (end, "wal_warn = \"much\"\n", "11 (limits.wal_warn)", "\"much\"", "10GiB"),
        (end, "wal_warn = \"60GiB\"\n", "11 (limits.wal_warn)", "not below", "50GiB"),
        (end, "copy_workers = 0\n", "11 (limits.copy_workers)", "range", "from 1 to 64"),
        (end, "barrier_timeout = \"10\"\n", "11 (limits.barrier_timeout)", "\"10\"", "10min"),
        (end, "lock_timeout = \"0s\"\n", "11 (limits.lock_timeout)", "zero", "5s"),
        (end, "on_wal_critical = \"panic\"\n", "11 (limits.on_wal_critical)", "\"panic\"", "\"keep\" or \"drop_slot\""),
        (target, "schema = \"copy\"", "9 (target.schema)", "\"copy\"", "\"clone\" or \"exists\""),
        (target, "", "7 (target.schema)", "missing", "schema = \"clone\""),
        (end, "[identity]\nhistory = \"full\"\n", "12 (identity.history)", "with its schema", "\"public.history\""),
        (end, "[identity]\n\"a.b\" = \"none\"\n", "12 (identity.a.b)", "\"none\"", "\"full\""),
        // HTTP
        (end, "[http]\n", "11 (http.listen)", "missing", "listen = \"127.0.0.1:7654\""),
        (end, "[http]\nlisten = \"localhost:80\"\n", "12 (http.listen)", "\"localhost:80\"", "127.0.0.1:7654"),
        (end, "[http]\nlisten = \"127.0.0.1:0\"\n", "12 (http.listen)", "with a port", "127.0.0.1:7654"),
        (end, "[http]\nport = 7654\n", "12 (http.port)", "no key `port`", "listen"),
        // the log
        (log, "\"redis://h\"", "6 (log.url)", "neither", "nats://"),
        (log, "\"nats://\"", "6 (log.url)", "neither", "nats://"),
        (log, "\"embedded\"\nreplicas = 3", "7 (log.replicas)", "no such setting", "nats://"),
        (log, "\"nats://h\"\nreplicas = 9", "7 (log.replicas)", "range", "from 1 to 5"),
        (log, "\"nats://h\"\ncert_file = \"c\"", "5 (log.key_file)", "missing", "both"),
        (log, "\"nats://h\"\nca_file = \"\"", "7 (log.ca_file)", "empty", "ca.pem"),
        // databases
        (
            "postgres://app:hunter2@source/shop",
            "mysql://app:hunter2@h/d",
            "3 (sources.shop.url)",
            "postgres://",
            "host:5432",
        ),
        (
            "postgres://app:hunter2@source/shop",
            "postgres://app:hunter2@h",
            "3 (sources.shop.url)",
            "no database",
            "/database",
        ),
        ("TARGET_URL", "SAME_URL", "2 (sources.shop)", "its own target", "another database"),
        ("TARGET_URL", "postgres://app:hunter2@h/d", "8 (target.url_env)", "not the name of", "url = "),
    ] {
        let problem = parse(&PLAN.replacen(old, new, 1)).expect_err(new);
        let right = problem.code == Code::PlanInvalid
            && problem.what == format!("etc/shop.toml:{place}")
            && problem.why.contains(why)
            && problem.next.contains(next)
            && !problem.to_string().contains("hunter2");
        if !right {
            wrong.push(format!("{new:?}: {problem:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_plan_without_source_says_so() {
    let without = PLAN.split("[log]").last().unwrap();
    for (sources, place) in [("", "1 (sources)"), ("[sources]\n", "2 (sources)")] {
        let problem = parse(&format!("name = \"shop\"\n{sources}[log]{without}")).unwrap_err();
        assert_eq!(problem.what, format!("etc/shop.toml:{place}"));
        assert!(problem.next.contains("[sources.shop]"), "{problem}");
    }
}

#[test]
fn a_missing_secret_names_its_variable() {
    for name in ["NOWHERE", "EMPTY"] {
        let problem = parse(&PLAN.replace("TARGET_URL", name)).unwrap_err();
        assert_eq!((problem.code, problem.what.as_str()), (Code::SecretMissing, "etc/shop.toml:8 (target.url_env)"));
        assert!(problem.why.contains(name) && problem.next.contains(&format!("export {name}=")), "{problem}");
    }
}

#[test]
fn several_missing_secrets_are_told_together() {
    let text = PLAN.replace("TARGET_URL", "NOWHERE").replace("url = \"nats://127.0.0.1:4222\"", "url_env = \"EMPTY\"");
    let problem = parse(&text).unwrap_err();
    assert_eq!((problem.code, problem.what.as_str()), (Code::SecretMissing, "etc/shop.toml:8 (target.url_env)"));
    assert_eq!(problem.why, "the environment variables NOWHERE, EMPTY are not set");
    assert_eq!(problem.next, "set them before crossfade starts: export NOWHERE='…' EMPTY='…'");
}

#[test]
fn a_syntax_error_does_not_show_the_line_it_is_in() {
    let problem = parse(&PLAN.replace("source/shop\"", "source/shop")).unwrap_err();
    assert_eq!(problem.what, "etc/shop.toml:3");
    assert!(!problem.to_string().contains("hunter2"), "{problem}");
}

#[test]
fn a_plan_that_cannot_be_read_is_named() {
    let problem = Plan::load(Path::new("/nowhere/shop.toml")).unwrap_err();
    assert_eq!((problem.code, problem.what.as_str()), (Code::PlanInvalid, "/nowhere/shop.toml"));
}

const BOUNCER: &str = "url = \"postgres://admin@pool:6432/pgbouncer\"\ndatabase = \"shop\"\nfile = \"pgbouncer.ini\"\nsource = \"host=source password=hunter2\"\ntarget = \"host=target\"\n";

#[test]
fn one_pgbouncer_or_several_are_heard() {
    let plan = parse(&format!("{PLAN}[cutover.pgbouncer]\n{BOUNCER}")).unwrap();
    let [bouncer] = &plan.cutover.bouncers[..] else { panic!() };
    assert_eq!((bouncer.database.as_str(), bouncer.file.as_path()), ("shop", Path::new("etc/pgbouncer.ini")));
    assert_eq!((bouncer.target.expose(), bouncer.pause_timeout), ("host=target", Duration::from_secs(2)));
    assert!(!format!("{plan:?}").contains("hunter2"));
    let two = format!("{PLAN}[[cutover.pgbouncer]]\n{BOUNCER}[[cutover.pgbouncer]]\n{BOUNCER}pause_timeout = \"1s\"\n");
    let plan = parse(&two).unwrap();
    let timeouts: Vec<u64> = plan.cutover.bouncers.iter().map(|bouncer| bouncer.pause_timeout.as_secs()).collect();
    assert_eq!(timeouts, [2, 1]);
}

#[test]
fn a_pgbouncer_that_cannot_be_led_is_refused_without_showing_its_lines() {
    for (from, to, key) in [
        ("database = \"shop\"\n", "", "database"),
        ("database = \"shop\"", "database = \"sh;op\"", "database"),
        ("host=target", "target", "target"),
        ("host=source", "host=a\\nother = host=b", "source"),
        ("postgres://admin@pool:6432/pgbouncer", "pool:6432", "url"),
        ("file = \"pgbouncer.ini\"\n", "file = \"x\"\npause_timeout = \"0s\"\n", "pause_timeout"),
    ] {
        let problem = parse(&format!("{PLAN}[cutover.pgbouncer]\n{}", BOUNCER.replace(from, to))).unwrap_err();
        assert!(problem.what.contains(&format!("cutover.pgbouncer.{key}")), "{problem}");
        assert!(!problem.to_string().contains("hunter2"), "{problem}");
    }
}

#[test]
fn what_closes_a_side_is_there_with_what_opens_it() {
    assert_eq!(parse(PLAN).unwrap().cutover.fence, Fence::default());
    let fence = "[cutover.fence]\nread_only = true\ncommand = \"./block.sh\"\nundo = \"./unblock.sh\"\n";
    let plan = parse(&format!("{PLAN}{fence}")).unwrap();
    let command = FenceCommand { close: "./block.sh".to_owned(), undo: "./unblock.sh".to_owned() };
    assert_eq!(plan.cutover.fence, Fence { read_only: true, command: Some(command) });
    for (from, to, key) in [
        ("command = \"./block.sh\"\n", "", "command"),
        ("undo = \"./unblock.sh\"\n", "", "undo"),
        ("./unblock.sh", " ", "undo"),
        ("true", "\"yes\"", "read_only"),
    ] {
        let problem = parse(&format!("{PLAN}{}", fence.replace(from, to))).unwrap_err();
        assert!(problem.what.contains(&format!("cutover.fence.{key}")), "{problem}");
    }
}
