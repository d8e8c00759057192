//! Tables of any shape and any number of sources, changed by statements, and a derived table over them kept current. A
//! source's tables lie in a schema of its name; in plans they are `source.public.table`.

use crossfade_mapping::{
    Catalog, Column, Compiled, Derived, Places, Side, SourceTable, Step, Table, Usual, Way, compile,
};
use model::{TableName, quote};

use super::maintain::into;
use super::server::{Server, Session};
use super::world::{functions, target};

pub struct Ground {
    pub session: Session,
    pub catalog: Catalog,
    _server: Server,
}

impl Ground {
    /// Creates `source.table (columns)`, each with a primary key `id`.
    pub async fn new(tables: &[(&str, &str, &str)]) -> Ground {
        let server = Server::start();
        let session = server.connect().await;
        session.run("CREATE SCHEMA crossfade").await;
        let mut catalog = Catalog { functions: functions(&session).await, ..Catalog::default() };
        for (source, name, columns) in tables {
            let table = SourceTable::new(*source, TableName::new("public", *name));
            let home = home(&table);
            session.run(&format!("CREATE SCHEMA IF NOT EXISTS {source}; CREATE TABLE {home} ({columns})")).await;
            let mirror = Usual.mirror(&table).quoted();
            session.run(&format!("CREATE TABLE {mirror} (LIKE {home} INCLUDING INDEXES)")).await;
            for side in [Side::Old, Side::New] {
                let changed = Usual.changed(&table, side);
                session.run(&format!("CREATE TEMP TABLE {} (LIKE {home})", quote::ident(&changed.name))).await;
            }
            let columns = columns_of(&session, &home).await;
            catalog.tables.push(Table { name: table, columns, identity: vec!["id".to_owned()], full: false });
        }
        Ground { session, catalog, _server: server }
    }

    /// Compiles a table whose target is made as its query is, and fills it.
    pub async fn derive(&mut self, derived: &Derived) -> Compiled {
        self.derive_like(derived, &derived.parts[0].sql().text).await
    }

    /// The same, where the target's columns are those of another query.
    pub async fn derive_like(&mut self, derived: &Derived, sql: &str) -> Compiled {
        let compiled = self.compile(derived, sql).await;
        match &compiled.way {
            Way::Maintained(maintained) => {
                self.session.run(&maintained.prepare.join(";")).await;
                self.session.run(&maintained.fill).await;
            }
            Way::Streamed(streamed) => {
                let new = Usual.changed(&streamed.source, Side::New).quoted();
                let mirror = Usual.mirror(&streamed.source).quoted();
                self.session.run(&format!("DELETE FROM {new}; INSERT INTO {new} SELECT * FROM {mirror}")).await;
                for step in &streamed.steps {
                    self.session.run(&step.sql).await;
                }
            }
        }
        compiled
    }

    async fn compile(&mut self, derived: &Derived, sql: &str) -> Compiled {
        // The query runs as it is written where each source's schema is called `public`.
        let mut sql = sql.to_owned();
        for table in &self.catalog.tables {
            sql = sql.replace(&table.name.to_string(), &home(&table.name));
        }
        self.session.run("DROP TABLE IF EXISTS public.derived").await;
        for name in ["found", "units", "result", "guards"] {
            self.session.run(&format!("DROP TABLE IF EXISTS pg_temp.\"{name} public.derived\"")).await;
        }
        self.session.run(&format!("CREATE TABLE public.derived AS {sql} WITH NO DATA")).await;
        if !derived.key.is_empty() {
            let key = derived.key.join(", ");
            self.session.run(&format!("ALTER TABLE public.derived ADD PRIMARY KEY ({key})")).await;
        }
        self.catalog.target = target(&self.session, &into(), &derived.key).await;
        compile(derived, &self.catalog, &Usual).unwrap_or_else(|troubles| panic!("{sql}\n{}", troubles[0]))
    }

    /// One transaction: `statements` run at the sources, and what they changed goes through all steps.
    pub async fn transaction(&self, compiled: &Compiled, statements: &str) {
        self.change(statements).await;
        self.all_steps(compiled).await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// What was changed goes through all steps.
    pub async fn all_steps(&self, compiled: &Compiled) -> Result<(), String> {
        let session = &self.session;
        let mut changed = Vec::new();
        for table in &self.catalog.tables {
            let sides = [Side::Old, Side::New].map(|side| Usual.changed(&table.name, side).quoted());
            let any = session.bag(&format!("SELECT 1 FROM {} UNION ALL SELECT 1 FROM {}", sides[0], sides[1])).await;
            if !any.is_empty() {
                changed.push(table.name.clone());
            }
        }
        let run = |steps: &[Step]| -> String {
            let due = steps.iter().filter(|step| step.tables.iter().any(|table| changed.contains(table)));
            due.map(|step| format!("{};", step.sql)).collect()
        };
        let sql = match &compiled.way {
            Way::Streamed(streamed) => self.moves() + &run(&streamed.steps),
            Way::Maintained(maintained) => [
                maintained.clear.join(";"),
                run(&maintained.before),
                self.moves(),
                run(&maintained.after),
                maintained.recompute.join(";"),
                maintained.write.join(";"),
            ]
            .join(";"),
        };
        session.try_run(&format!("BEGIN; {sql}; COMMIT")).await
    }

    /// Runs statements at the sources and puts the rows that they changed into the temp tables.
    pub async fn change(&self, statements: &str) {
        let mut sql = format!("{statements};");
        for Table { name, .. } in &self.catalog.tables {
            let (home, mirror) = (home(name), Usual.mirror(name).quoted());
            for (side, these, those) in [(Side::Old, &mirror, &home), (Side::New, &home, &mirror)] {
                let changed = Usual.changed(name, side).quoted();
                sql += &format!(
                    "DELETE FROM {changed}; INSERT INTO {changed} SELECT * FROM {these} EXCEPT SELECT * FROM {those}; ANALYZE {changed};"
                );
            }
        }
        self.session.run(&sql).await;
    }

    /// The changed rows, put into the mirrors.
    pub fn moves(&self) -> String {
        let each = |table: &Table| {
            let [old, new] = [Side::Old, Side::New].map(|side| Usual.changed(&table.name, side).quoted());
            let mirror = Usual.mirror(&table.name).quoted();
            format!(
                "DELETE FROM {mirror} WHERE id IN (SELECT id FROM {old}); INSERT INTO {mirror} SELECT * FROM {new};"
            )
        };
        self.catalog.tables.iter().map(each).collect()
    }

    /// Fills sources and mirrors, before a table is derived.
    pub async fn load(&self, statements: &str) {
        self.change(statements).await;
        self.session.run(&self.moves()).await;
    }

    /// The rows of the target as texts.
    pub async fn target(&self) -> Vec<String> {
        self.session.bag("SELECT t::text FROM public.derived t").await
    }

    /// Asserts that the target is the query in full.
    pub async fn holds(&self, compiled: &Compiled) {
        let rows = |query: &str| format!("SELECT t::text FROM ({query}) AS t");
        let want = self.session.bag(&rows(&compiled.oracle.over_mirrors)).await;
        assert_eq!(want, self.session.bag(&rows(&compiled.oracle.target)).await);
    }
}

fn home(table: &SourceTable) -> String {
    TableName::new(&table.source, &table.table.name).quoted()
}

async fn columns_of(session: &Session, home: &str) -> Vec<Column> {
    let sql = format!(
        "SELECT attname, format_type(atttypid, NULL), attnotnull, attstorage <> 'p' FROM pg_attribute WHERE attrelid = {}::regclass AND attnum > 0 ORDER BY attnum",
        quote::literal(home)
    );
    let rows = session.rows(&sql).await.into_iter();
    rows.map(|row| {
        let row: Vec<String> = row.into_iter().map(Option::unwrap_or_default).collect();
        Column { name: row[0].clone(), type_name: row[1].clone(), not_null: row[2] == "t", toastable: row[3] == "t" }
    })
    .collect()
}
