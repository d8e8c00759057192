use model::Problem;
use plan::{Check, Fix};

use super::databases::Databases;
use super::found::Found;
use super::query;
use super::rows::{Rows, Statement};
use super::tenant::Tenant;

/// How a fix went.
pub(super) enum Fixed {
    /// It is committed, and the check passes; so many rows were written.
    Yes(u64),
    /// This was still found after it, so it was rolled back.
    No(Found),
}

/// Runs the check's fix for one tenant, and the check behind it in the same transaction, which is committed only if that then finds nothing.
pub(super) async fn run(
    check: &Check,
    sql: &str,
    fix: &Fix,
    tenant: &Tenant,
    databases: &mut Databases,
) -> Result<Fixed, Problem> {
    let visit = databases.write(check).await?;
    let mut written = 0;
    for statement in &fix.statements {
        let Statement { sql, values, .. } = Statement::of(&visit, statement, tenant).await?;
        written += Rows::start(&visit, &sql, &values).await?.finish().await?;
    }
    // What waits for the end of the transaction is part of what the check looks at.
    visit.immediately().await?;
    let left = query(check, sql, tenant, &visit).await?;
    if left.count > 0 {
        return Ok(Fixed::No(left));
    }
    visit.commit().await?;
    Ok(Fixed::Yes(written))
}
