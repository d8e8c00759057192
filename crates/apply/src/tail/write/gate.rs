//! Where the tail waits for a table's copy.

use pg::Session;

use super::super::gather::copied_table;
use crate::lease::Lease;
use crate::{ApplyError, CHANNEL, Job, tables};

/// Waits at the gates that the tail is past by its checkpoint: who stood there died before the copy was in. Behind them the tail must not go
/// on: changes of a table whose epoch has not begun would be dropped, and others would not find their rows.
pub(in crate::tail) async fn gates(job: &Job, session: &Session, lease: Lease) -> Result<(), ApplyError> {
    let query = format!(
        "SELECT m.source, m.id FROM crossfade.marker m WHERE m.id ~ '^[0-9]+ ' AND NOT EXISTS (
            SELECT FROM crossfade.tables t WHERE t.source = m.source AND t.schema || '.' || t.name = substr(m.id, strpos(m.id, ' ') + 1)
               AND t.epoch >= split_part(m.id, ' ', 1)::int AND {} AND {}) ORDER BY m.lsn",
        tables::COPIED,
        tables::BUILT
    );
    for row in session.query(&query, &[]).await? {
        gate(job, session, lease, row.get(0), row.get(1)).await?;
    }
    Ok(())
}

/// How often those who watch are told what the tail waits for: a copy takes its time, so it is nothing to hurry about.
const SAID: std::time::Duration = std::time::Duration::from_secs(60);

/// Waits until the copy that `marker` announced, or a later one of the same table, is in.
pub(super) async fn gate(
    job: &Job,
    session: &Session,
    lease: Lease,
    source: &str,
    marker: &str,
) -> Result<(), ApplyError> {
    model::failpoint!("gate_reached");
    let (epoch, table) = copied_table(marker);
    let query = format!(
        "SELECT schema, name, epoch, next_epoch, {} AND {} FROM crossfade.tables t WHERE source = $1::text AND schema || '.' || name = $2::text",
        tables::COPIED,
        tables::BUILT
    );
    let mut news: Option<Session> = None;
    let mut said = tokio::time::Instant::now();
    loop {
        if said.elapsed() > SAID {
            said = tokio::time::Instant::now();
            tracing::warn!(
                source,
                table,
                "the tail waits for this table's copy; if the plan has it no more, put it back until the copy is in"
            );
        }
        let row = session.query_opt(&query, &[&source, &table]).await?;
        if let Some(row) = row {
            let (now, next, done): (i32, Option<i32>, bool) = (row.get(2), row.get(3), row.get(4));
            if next.is_some() {
                lease.begin(session).await?;
                tables::begin(
                    session,
                    &job.plan,
                    source,
                    &model::TableName::new(row.get::<_, String>(0), row.get::<_, String>(1)),
                    true,
                )
                .await?;
                session.batch_execute(&format!("NOTIFY {CHANNEL}; COMMIT")).await?;
                model::failpoint!("gated_epoch_begun");
                continue;
            }
            if now >= epoch && done {
                model::failpoint!("gate_passed");
                return Ok(());
            }
        }
        let news = match &mut news {
            Some(news) => news,
            none => {
                let session = pg::connect(&job.endpoint, "apply news").await?;
                session.batch_execute(&format!("LISTEN {CHANNEL}")).await?;
                none.insert(session)
            }
        };
        let _ = tokio::time::timeout(std::time::Duration::from_millis(500), news.notification()).await;
    }
}
