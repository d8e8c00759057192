use crate::{Patterns, Plan, SchemaMode, Source, Target};

/// Which way a plan leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Direction {
    /// As the file says.
    Forward,
    /// Back into its only source, of this name.
    Back {
        /// The source's name in the file.
        source: String,
    },
}

impl Direction {
    /// As scripts and hooks see it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Direction::Forward => "forward",
            Direction::Back { .. } => "back",
        }
    }
}

impl Plan {
    /// The same plan the other way round: what the target has goes into the source, but for derived tables. None where there are several sources, or queries, for which there is no way back.
    pub fn back(&self) -> Option<Plan> {
        let ([source], false, true) = (&self.sources[..], self.is_back(), self.derived.is_empty()) else { return None };
        let direction = Direction::Back { source: source.name.clone() };
        Some(Plan {
            direction,
            sources: vec![Source {
                name: back_name(&source.name),
                url: self.target.url.clone(),
                tables: source.as_is.clone(),
                as_is: source.as_is.clone(),
                ignored: source.ignored.clone(),
                shared: source.shared.clone(),
            }],
            target: Target { url: source.url.clone(), schema: SchemaMode::Exists },
            checks: Vec::new(),
            derived: Vec::new(),
            findings: Vec::new(),
            ..self.clone()
        })
    }

    /// Whether it is one that [`back`](Plan::back) made.
    pub fn is_back(&self) -> bool {
        self.direction != Direction::Forward
    }

    /// How the fence calls the database that data leaves: what the plan's file calls it, in either direction.
    pub fn source_side(&self, source: &Source) -> String {
        match self.direction {
            Direction::Forward => source_side(&self.name, &source.name),
            Direction::Back { .. } => target_side(&self.name),
        }
    }

    /// How the fence calls the database that data enters.
    pub fn target_side(&self) -> String {
        match &self.direction {
            Direction::Forward => target_side(&self.name),
            Direction::Back { source } => source_side(&self.name, source),
        }
    }
}

/// How the fence calls a plan's target.
pub fn target_side(plan: &str) -> String {
    format!("{plan} target")
}

/// How the fence calls a source.
pub fn source_side(plan: &str, source: &str) -> String {
    format!("{plan} source {source}")
}

/// Whether the fence calls a side of this plan so: its target or one of its sources.
pub fn is_side_of(plan: &str, side: &str) -> bool {
    side == target_side(plan) || side.starts_with(&source_side(plan, ""))
}

/// What the target is called as the source of the way back.
pub fn back_name(source: &str) -> String {
    format!("{source}_back")
}

impl Source {
    /// The same source with these tables and no others.
    pub fn only(&self, tables: impl IntoIterator<Item = model::TableName>) -> Source {
        let tables = Patterns::exactly(tables);
        Source { as_is: self.as_is.within(&tables), tables, ..self.clone() }
    }
}

/// What the names of the replication origins begin with under which apply writes for a plan, in either direction; a number follows.
pub fn origins(plan: &str) -> String {
    format!("crossfade_{plan}_")
}
