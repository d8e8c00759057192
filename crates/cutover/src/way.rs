//! One epoch, from its beginning to the decision.

use model::TableName;
use pg::Session;
use tokio::time::Instant;
use tracing::info;

use crate::back;
use crate::bolts;
use crate::bouncer;
use crate::drain::Ear;
use crate::error::CutoverError;
use crate::hooks::{self, Told};
use crate::journal::{self, State};
use crate::old::{self, Old};
use crate::report::milliseconds;
use crate::run::Job;
use crate::sequences::{self, Values};
use crate::triggers;

pub(crate) struct Way<'a> {
    job: &'a Job,
    epoch: i64,
    token: i64,
    /// Then it is given up.
    pub until: Instant,
    /// When the last step was taken.
    last: Instant,
    /// When the first source was closed.
    closed: Option<Instant>,
    lsn: Option<String>,
    /// What was compared while nobody could write.
    pub rest: verify::Rest,
    pub sequences_left: Vec<String>,
    /// Nothing is to be carried back afterwards.
    no_way_back: bool,
    /// The plan's PgBouncers may be.
    pub paused: bool,
}

/// What goes with the decision.
pub(crate) struct Switch {
    values: Vec<Values>,
    /// Statements.
    triggers: String,
}

impl<'a> Way<'a> {
    pub fn new(job: &'a Job, epoch: i64, token: i64, until: Instant, no_way_back: bool) -> Self {
        let rest = verify::Rest::default();
        let last = Instant::now();
        Way {
            job,
            epoch,
            token,
            until,
            last,
            closed: None,
            lsn: None,
            rest,
            sequences_left: Vec::new(),
            no_way_back,
            paused: false,
        }
    }

    async fn step(&mut self, target: &Session, from: State, to: State) -> Result<(), CutoverError> {
        let ms = milliseconds(self.last);
        journal::step(target, self.epoch, self.token, from, to, ms).await?;
        info!(epoch = self.epoch, ms, "{}", to.as_str());
        self.last = Instant::now();
        Ok(())
    }

    /// Everything up to the decision.
    pub async fn prepare(
        &mut self,
        target: &Session,
        olds: &mut [Old],
        ear: &mut Ear,
        remainder: &mut verify::Remainder<'_>,
    ) -> Result<Switch, CutoverError> {
        let plan = &self.job.verify.plan;
        let mut back = None;
        if let Some(old) = olds.first().filter(|_| !self.no_way_back && !self.job.is_back()) {
            back = Some(back::prepare(self.job, target, &old.session).await?);
        }
        let mut schemas = Vec::new();
        for (old, source) in olds.iter_mut().zip(&plan.sources) {
            let query = "SELECT schema, name FROM crossfade.tables WHERE source = $1::text ORDER BY 1, 2";
            let rows = target.query(query, &[&old.name]).await?;
            let mut tables: Vec<TableName> =
                rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect();
            tables.retain(|table| !source.shared.selects(table));
            let mut own: Vec<String> = tables.iter().map(|table| table.schema.clone()).collect();
            own.dedup();
            schemas.push(own);
            old.enter(self.epoch).await?;
            old.prepare(self.epoch, tables, self.until).await?;
        }
        model::failpoint!("fence_prepared");
        self.hook(target, "before_fence", plan.cutover.hooks.before_fence.as_deref(), "begun", self.job.closes())
            .await?;
        remainder.read_on().await?;
        self.pause(target).await?;
        self.step(target, State::Begun, State::Fencing).await?;
        model::failpoint!("cutover_fencing");
        let what = if plan.is_back() { "rolled back to its source" } else { "cut over to another database" };
        let why = format!("Plan {:?} is {what} (epoch {}).", plan.name, self.epoch);
        for old in olds.iter() {
            old.close(self.epoch, &why, self.until).await?;
            self.closed.get_or_insert_with(Instant::now);
        }
        for old in olds.iter() {
            bolts::close(plan, old, target, self.epoch).await?;
        }
        self.step(target, State::Fencing, State::Fenced).await?;
        model::failpoint!("cutover_fenced");
        for old in olds.iter() {
            let lsn = ear.drained(old).await?;
            self.lsn.get_or_insert(lsn);
        }
        journal::note_lsn(target, self.epoch, self.token, self.lsn.as_deref().unwrap_or("0/0")).await?;
        if let Some(name) = &back {
            let from = back::from(target, ear, name).await?;
            journal::note_back(target, self.epoch, self.token, from).await?;
        }
        self.step(target, State::Fenced, State::Drained).await?;
        model::failpoint!("cutover_drained");
        self.rest = remainder.compare().await?;
        self.judge()?;
        let mut switch = Switch { values: Vec::new(), triggers: String::new() };
        let derived: Vec<TableName> = plan.derived.iter().map(|derived| derived.into.clone()).collect();
        if !derived.is_empty() {
            switch.values.push(sequences::of_derived(target, &derived, plan.cutover.sequence_margin).await?);
        }
        for (old, schemas) in olds.iter().zip(&schemas) {
            let values = sequences::read(&old.session, target, old.relations(), plan.cutover.sequence_margin).await?;
            self.sequences_left.extend(values.left.iter().cloned());
            switch.values.push(values);
            if plan.target.schema == plan::SchemaMode::Clone {
                switch.triggers += &triggers::switch(&old.session, target, schemas).await?;
            }
        }
        self.hook(target, "drained", plan.cutover.hooks.drained.as_deref(), "drained", "none").await?;
        // It may have taken its time.
        self.rest.drifted = remainder.drifted().await?;
        self.judge()?;
        for old in olds.iter() {
            if !old.holds().await? {
                let why = format!(
                    "somebody has disabled triggers of the fence at the {} ({}): writes may have passed",
                    self.job.closes(),
                    old.name
                );
                return Err(CutoverError::GivenUp(why));
            }
        }
        self.step(target, State::Drained, State::Prepared).await?;
        model::failpoint!("cutover_prepared");
        Ok(switch)
    }

    /// What was compared while both sides stood still.
    fn judge(&self) -> Result<(), CutoverError> {
        if let Some((table, why)) = self.rest.drifted.first() {
            return Err(CutoverError::GivenUp(format!("table {table}: {why}")));
        }
        match self.rest.different.first() {
            None => Ok(()),
            Some((_, table, _)) => Err(CutoverError::GivenUp(format!(
                "{} rows that were just written are not the same on both sides, the first in table {table}: `crossfade verify` shows them",
                self.rest.different.len()
            ))),
        }
    }

    /// Pauses the plan's PgBouncers, if this process still leads: what it would pause after that, nobody resumes.
    async fn pause(&mut self, target: &Session) -> Result<(), CutoverError> {
        let plan = &self.job.verify.plan;
        if plan.cutover.bouncers.is_empty() {
            return Ok(());
        }
        match journal::last(target).await? {
            Some(entry) if (entry.epoch, entry.token, entry.state) == (self.epoch, self.token, State::Begun) => {}
            _ => return Err(CutoverError::Overtaken("another process leads, or has cancelled it".to_owned())),
        }
        self.paused = true;
        bouncer::pause(plan).await?;
        model::failpoint!("pgbouncer_paused");
        Ok(())
    }

    async fn hook(
        &self,
        target: &Session,
        name: &str,
        command: Option<&str>,
        phase: &str,
        writable: &str,
    ) -> Result<(), CutoverError> {
        let lsn = self.lsn.as_deref().unwrap_or_default();
        let plan = &self.job.verify.plan;
        let told = Told {
            plan: &plan.name,
            epoch: self.epoch,
            direction: plan.direction.as_str(),
            phase,
            lsn,
            writable,
            side: &[],
        };
        hooks::noted(plan, Some(target), name, command, &told).await
    }

    /// The decision: one transaction of the side that it opens.
    pub async fn decide(&mut self, target: &Session, switch: &Switch) -> Result<(), CutoverError> {
        let decided = self.write(target, switch).await;
        if decided.is_err() {
            // Nobody is to wait for what comes to nothing. If the answer was lost, this finds no transaction.
            let _ = target.batch_execute("ROLLBACK").await;
        }
        decided?;
        let gap = self.closed.map(milliseconds);
        model::failpoint!("decision_committed");
        info!(epoch = self.epoch, write_gap_ms = gap, "committed: the {} is the writable side", self.job.opens());
        let query = "UPDATE crossfade.journal SET write_gap_ms = $2 WHERE epoch = $1";
        // It is decided, whatever becomes of this.
        let _ = target.execute(query, &[&self.epoch, &gap]).await;
        Ok(())
    }

    async fn write(&mut self, target: &Session, switch: &Switch) -> Result<(), CutoverError> {
        target
            .batch_execute(&format!(
                "BEGIN; SET LOCAL lock_timeout = '2s'; SET LOCAL idle_in_transaction_session_timeout = {}",
                old::IDLE.as_millis()
            ))
            .await?;
        let ms = milliseconds(self.last);
        journal::step(target, self.epoch, self.token, State::Prepared, State::Committed, ms).await?;
        // Nothing that apply has under way lands behind this.
        apply::bar(target, self.epoch).await?;
        if !target.query_one(WHOLE, &[]).await?.get::<_, bool>(0) {
            let why = "tables are being copied again: wait for the phase `following`".to_owned();
            return Err(CutoverError::GivenUp(why));
        }
        for values in &switch.values {
            sequences::set(target, values).await?;
        }
        model::failpoint!("sequences_set");
        target.batch_execute(&switch.triggers).await?;
        let opened = "UPDATE crossfade.fence SET opened = $2, epoch = $2 WHERE side = $1::text AND opened < closed";
        let side = self.job.verify.plan.target_side();
        if target.execute(opened, &[&side, &self.epoch]).await? != 1 {
            return Err(CutoverError::GivenUp(format!(
                "the fence of the {} has lost its state, or is open already",
                self.job.opens()
            )));
        }
        pg::read_only::lift(target, &side).await?;
        model::failpoint!("decision_written");
        Ok(target.batch_execute("COMMIT").await?)
    }
}

/// True if every table is whole: no copy of one has begun again, or been asked for.
const WHOLE: &str = "
    SELECT coalesce((SELECT bool_and(joined AND asked IS NULL) FROM crossfade.checkpoint), false)
       AND NOT EXISTS (SELECT FROM crossfade.tables WHERE epoch <= 0 OR next_epoch IS NOT NULL)
       AND NOT EXISTS (SELECT FROM crossfade.copied c JOIN crossfade.tables t USING (source, schema, name, epoch) WHERE c.worker IS NULL)";
