//! What of derived tables is in the way of a cutover.

use pg::Session;
use plan::Plan;

use crate::error::CutoverError;
use crate::refusals::refuse;
use crate::report::Refusal;
use crate::run::Options;
use crate::sequences;

/// Each is filled, was found to be what its query gives since then, and can go on giving out numbers.
pub(crate) async fn find(
    target: &Session,
    plan: &Plan,
    options: &Options,
    found: &mut Vec<Refusal>,
) -> Result<(), CutoverError> {
    if plan.derived.is_empty() {
        return Ok(());
    }
    let unfilled = ::apply::unfilled(target, plan).await?;
    for waits in &unfilled {
        let text = format!(
            "derived table {} is not filled: {}; wait for `following` in `crossfade status`",
            waits.into, waits.why
        );
        refuse(found, "not_filled", text);
    }
    let there = "SELECT to_regclass('crossfade.verdict') IS NOT NULL";
    let compared: bool = target.query_one(there, &[]).await?.get(0);
    for derived in plan.derived.iter().filter(|derived| !unfilled.iter().any(|waits| waits.into == derived.into)) {
        let into = &derived.into;
        let query = "SELECT v.verdict, v.why, extract(epoch FROM clock_timestamp() - v.at)::float8 FROM crossfade.verdict v
                       JOIN crossfade.derived d ON (d.into_schema, d.into_name) = (v.schema, v.name) AND d.filled_at::text = v.copies
                      WHERE v.source = '' AND v.schema = $1::text AND v.name = $2::text";
        let row = if compared { target.query_opt(query, &[&into.schema, &into.name]).await? } else { None };
        let Some(row) = row else {
            let text = format!("derived table {into} was never compared since it was filled: `crossfade verify`");
            refuse(found, "verify_missing", text);
            continue;
        };
        match row.get::<_, &str>(0) {
            "equal" if row.get::<_, f64>(2) > options.max_verify_age.as_secs_f64() => {
                let hours = row.get::<_, f64>(2) / 3600.0;
                let text = format!(
                    "derived table {into} was compared {hours:.1} h ago, longer than --max-verify-age: `crossfade verify`"
                );
                refuse(found, "verify_old", text);
            }
            "equal" => {}
            "different" => {
                let text = format!(
                    "derived table {into} is not what its query gives: `crossfade verify` shows the rows; somebody else wrote to it, or it is a defect to be reported"
                );
                refuse(found, "verify_different", text);
            }
            _ => {
                let why: Option<String> = row.get(1);
                let text = format!(
                    "nothing could be said of derived table {into} ({}): `crossfade verify`",
                    why.unwrap_or_default()
                );
                refuse(found, "verify_inconclusive", text);
            }
        }
    }
    let tables: Vec<_> = plan.derived.iter().map(|derived| derived.into.clone()).collect();
    for (sequence, column) in sequences::unknown(target, &tables).await? {
        let text = format!(
            "nothing tells where sequence {sequence} of the target is to go on, for column {column} holds no numbers: set it in the hook `drained`, and take its DEFAULT away until then"
        );
        refuse(found, "sequence_unknown", text);
    }
    Ok(())
}
