use crate::{Cutover, Limits, Log, OnWalCritical, Plan, Secret, Source, Target, Verify};

/// What the source of a drill is called.
const SOURCE: &str = "copy";

impl Plan {
    /// The same migration between two databases that nobody needs, under another name and through an embedded log in a folder of that name: nothing that it makes has a name of
    /// this plan's, and nobody is led over, asked or told. `also` is a table that is not this plan's. None where there are several sources, which one database cannot play.
    pub fn drill(&self, name: &str, source: Secret, target: Secret, also: &model::TableName) -> Option<Plan> {
        let ([only], false) = (&self.sources[..], self.is_back()) else { return None };
        Some(Plan {
            name: name.to_owned(),
            sources: vec![Source {
                // Queries name their source.
                name: if self.derived.is_empty() { SOURCE.to_owned() } else { only.name.clone() },
                url: source,
                tables: only.tables.and(also),
                as_is: only.as_is.and(also),
                ignored: only.ignored.clone(),
                shared: only.shared.clone(),
            }],
            log: Log::Embedded,
            target: Target { url: target, schema: self.target.schema },
            state_dir: self.state_dir.join(name),
            limits: Limits { on_wal_critical: OnWalCritical::Keep, ..self.limits.clone() },
            // No application is to be spared.
            verify: Verify {
                connections: self.limits.copy_workers,
                rows_per_second: None,
                rest: 0,
                ..self.verify.clone()
            },
            cutover: Cutover { sequence_margin: self.cutover.sequence_margin, ..Cutover::default() },
            checks: Vec::new(),
            findings: Vec::new(),
            stages: None,
            http: None,
            ..self.clone()
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use model::TableName;

    use super::*;

    const PLAN: &str = r#"name = "shop"
[sources.shop]
url = "postgres://app@source/shop"
tables = ["public.*", "!public.tmp_*"]
[log]
url = "nats://127.0.0.1:4222"
[target]
url = "postgres://app@target/shop"
schema = "clone"
[state]
dir = "/state"
[limits]
on_wal_critical = "drop_slot"
[http]
listen = "127.0.0.1:7654"
[cutover]
sequence_margin = 7
[cutover.hooks]
route = "./route.sh"
[cutover.pgbouncer]
url = "postgres://crossfade@127.0.0.1:6432/pgbouncer"
database = "shop"
file = "/etc/pgbouncer/pgbouncer.ini"
source = "host=db1"
target = "host=db2"
[[check]]
name = "nobody"
sql = "SELECT 1"
severity = "error"
"#;

    fn drill(text: &str) -> Option<Plan> {
        let plan = Plan::parse(text, Path::new("shop.toml"), &|_| None).unwrap();
        let also = TableName::new("crossfade_drill", "written");
        plan.drill("drill_1", Secret::new("postgres://a/s"), Secret::new("postgres://a/t"), &also)
    }

    #[test]
    fn a_drill_shares_no_name_with_its_plan_and_leads_nobody_over() {
        let drill = drill(PLAN).unwrap();
        assert_eq!((drill.name.as_str(), drill.sources[0].name.as_str()), ("drill_1", "copy"));
        assert_eq!((drill.sources[0].url.expose(), drill.target.url.expose()), ("postgres://a/s", "postgres://a/t"));
        assert!(matches!(drill.log, Log::Embedded));
        assert_eq!(drill.state_dir, Path::new("/state/drill_1"));
        assert_eq!(drill.cutover, Cutover { sequence_margin: 7, ..Cutover::default() });
        assert!(drill.checks.is_empty() && drill.findings.is_empty() && drill.stages.is_none() && drill.http.is_none());
        assert_eq!(drill.limits.on_wal_critical, OnWalCritical::Keep);
        let selects = |schema, name| drill.sources[0].tables.selects(&TableName::new(schema, name));
        assert!(selects("public", "orders") && selects("crossfade_drill", "written"));
        assert!(!selects("public", "tmp_1") && !selects("crossfade_drill", "other"));
    }

    #[test]
    fn several_sources_have_none() {
        let second = "[sources.other]\nurl = \"postgres://app@source/other\"\ntables = [\"public.*\"]\n[log]";
        assert!(drill(&PLAN.replace("[log]", second)).is_none());
    }
}
