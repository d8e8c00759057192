use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::nats;

/// A plan, as a person would write it. Begins with the embedded log, all tables of schema `public`, and a target to clone
/// into.
#[derive(Clone, Debug)]
pub struct PlanFile {
    name: String,
    sources: Vec<(String, String, Vec<String>)>,
    log: String,
    log_extra: String,
    target: String,
    schema: &'static str,
    identity: Vec<(String, &'static str)>,
    top: String,
    extra: String,
    /// All of it, but for where the state goes.
    whole: Option<String>,
    env: Vec<(String, String)>,
}

impl PlanFile {
    /// A plan of that name from `source` (a URL, whose source is named like the plan) into `target` (a URL).
    pub fn new(name: &str, source: &str, target: &str) -> PlanFile {
        PlanFile {
            name: name.into(),
            sources: vec![(name.into(), source.into(), vec!["public.*".into()])],
            log: "embedded".into(),
            log_extra: String::new(),
            target: target.into(),
            schema: "clone",
            identity: Vec::new(),
            top: String::new(),
            extra: String::new(),
            whole: None,
            env: Vec::new(),
        }
    }

    /// A plan that somebody wrote, without a `[state]`; its URLs come from the environment.
    pub fn of(text: &str) -> PlanFile {
        PlanFile { whole: Some(text.to_owned()), ..PlanFile::new("", "", "") }
    }

    /// Another source.
    pub fn source(mut self, name: &str, url: &str, tables: &[&str]) -> Self {
        self.sources.push((name.into(), url.into(), tables.iter().map(|&t| t.to_owned()).collect()));
        self
    }

    /// The first source's tables, as patterns.
    pub fn tables(mut self, patterns: &[&str]) -> Self {
        self.sources[0].2 = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        self
    }

    /// The log's URL, in place of the embedded one.
    pub fn log(mut self, url: &str) -> Self {
        self.log = url.into();
        self
    }

    /// More lines for the `[log]` section.
    pub fn log_lines(mut self, toml: &str) -> Self {
        self.log_extra += toml;
        self.log_extra.push('\n');
        self
    }

    /// The target's schema is there already.
    pub fn target_exists(mut self) -> Self {
        self.schema = "exists";
        self
    }

    /// How a table without replica identity is followed: `insert_only` or `full`.
    pub fn identity(mut self, table: &str, how: &'static str) -> Self {
        self.identity.push((table.into(), how));
        self
    }

    /// More lines in front of all sections.
    pub fn top(mut self, toml: &str) -> Self {
        self.top += toml;
        self.top.push('\n');
        self
    }

    /// More sections, as they are.
    pub fn section(mut self, toml: &str) -> Self {
        self.extra += toml;
        self.extra.push('\n');
        self
    }

    /// An environment variable for the program (secrets).
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// What [`PlanFile::env`] collected.
    pub fn environment(&self) -> &[(String, String)] {
        &self.env
    }

    /// Writes it into `folder`, where the state goes as well, and returns the file's path.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        let file = folder.join("crossfade.toml");
        std::fs::write(&file, self.text(&folder.join("state"))?)?;
        Ok(file)
    }

    fn text(&self, state: &Path) -> Result<String> {
        let state_dir = format!("[state]\ndir = {}\n", quoted(&state.display().to_string()));
        if let Some(whole) = &self.whole {
            return Ok(format!("{whole}\n{state_dir}{}", self.extra));
        }
        let mut text = format!("name = {}\n{}", quoted(&self.name), self.top);
        for (name, url, tables) in &self.sources {
            let tables: Vec<String> = tables.iter().map(|pattern| quoted(pattern)).collect();
            writeln!(text, "\n[sources.{name}]\n{}\ntables = [{}]", url_line(url), tables.join(", "))?;
        }
        writeln!(text, "\n[log]\n{}\n{}", url_line(&self.log), self.log_extra)?;
        if self.log != "embedded" && nats::syncs_always() && !self.log_extra.contains("sync") {
            writeln!(text, "sync = \"0s\"")?;
        }
        writeln!(text, "[target]\n{}\nschema = {}\n", url_line(&self.target), quoted(self.schema))?;
        writeln!(text, "{state_dir}")?;
        if !self.identity.is_empty() {
            text += "[identity]\n";
            for (table, how) in &self.identity {
                writeln!(text, "{} = {}", quoted(table), quoted(how))?;
            }
        }
        text += &self.extra;
        Ok(text)
    }
}

/// `$NAME` in place of a URL is one from the environment.
fn url_line(url: &str) -> String {
    match url.strip_prefix('$') {
        Some(variable) => format!("url_env = {}", quoted(variable)),
        None => format!("url = {}", quoted(url)),
    }
}

/// JSON's strings are TOML's basic strings.
fn quoted(text: &str) -> String {
    serde_json::Value::String(text.to_owned()).to_string()
}
