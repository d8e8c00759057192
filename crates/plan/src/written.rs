use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::{Code, Problem};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::{Sql, size};

/// Words of later versions, at the top of the file: (key, what it will be).
const LATER: [(&str, &str); 3] = [
    ("ddl", "the event trigger that watches DDL"),
    ("tenant", "one schema per tenant"),
    ("back", "the way back of derived tables"),
];

/// Words of later versions, in any section: (key, what it will be).
const LATER_ANYWHERE: [(&str, &str); 1] = [("provision", "one schema per tenant")];

/// The plan file as it was written.
pub(crate) struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl<'a> File<'a> {
    pub(crate) fn new(path: &'a Path, text: &'a str) -> Self {
        File { path, text }
    }

    /// Its TOML.
    pub(crate) fn parse(&self) -> Result<Spanned<DeTable<'a>>, Problem> {
        DeTable::parse(self.text).map_err(|error| {
            // Only the message: the error as a whole shows the line, and there may be a password in it.
            let at = error.span().map_or(self.text.len(), |span| span.start);
            self.problem(at, "", format!("this is not TOML ({})", error.message()), next_after_syntax(error.message()))
        })
    }

    /// The number of the line with the byte `at`.
    fn line(&self, at: usize) -> usize {
        1 + self.text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count()
    }

    fn problem(&self, at: usize, key: &str, why: impl Into<String>, next: impl Into<String>) -> Problem {
        let place = format!("{}:{}", self.path.display(), self.line(at));
        let what = if key.is_empty() { place } else { format!("{place} ({key})") };
        Problem::new(Code::PlanInvalid, what, why, next)
    }
}

fn next_after_syntax(message: &str) -> &'static str {
    if message.contains("duplicate") {
        "give each key and each [section] once; sources need different names"
    } else {
        "correct the line; strings stand in double quotes, lists in brackets"
    }
}

/// A table of the file, whose keys are all known.
pub(crate) struct Section<'a> {
    file: &'a File<'a>,
    name: String,
    at: usize,
    table: &'a DeTable<'a>,
}

impl<'a> Section<'a> {
    /// The file's top.
    pub(crate) fn top(file: &'a File<'a>, table: &'a DeTable<'a>, known: &[&str]) -> Result<Self, Problem> {
        Section { file, name: String::new(), at: 0, table }.knows(known)
    }

    fn knows(self, known: &[&str]) -> Result<Self, Problem> {
        let unknown = self.table.keys().filter(|key| !known.contains(&key.get_ref().as_ref()));
        let Some(key) = unknown.min_by_key(|key| key.span().start) else { return Ok(self) };
        let word = key.get_ref();
        let at_top = LATER.iter().filter(|_| self.name.is_empty());
        let later = at_top.chain(&LATER_ANYWHERE).find(|(later, _)| *later == word.as_ref());
        let (why, next) = match (later, nearest(word, known)) {
            (Some((_, what)), _) => (
                format!("`{word}` is for {what}, which this version of crossfade does not have yet"),
                "take it out of the plan".to_owned(),
            ),
            (None, Some(near)) => (format!("there is no key `{word}` here"), format!("did you mean `{near}`?")),
            (None, None) => (
                format!("there is no key `{word}` here"),
                format!("the keys that can stand here: {}", known.join(", ")),
            ),
        };
        Err(self.file.problem(key.span().start, &self.path_of(word), why, next))
    }

    fn path_of(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// The value of a key, if the key is there.
    pub(crate) fn get(&self, key: &str) -> Option<Entry<'a>> {
        self.entries().find(|entry| entry.key == key)
    }

    /// Every key with its value, ordered by key.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Entry<'a>> {
        self.table.iter().map(|(key, value)| Entry {
            file: self.file,
            key: key.get_ref(),
            path: self.path_of(key.get_ref()),
            at: key.span().start,
            value,
        })
    }

    /// The line that it begins in.
    pub(crate) fn line(&self) -> usize {
        self.file.line(self.at)
    }

    /// A problem with something that is not there.
    pub(crate) fn lacks(&self, key: &str, next: impl Into<String>) -> Problem {
        self.file.problem(self.at, &self.path_of(key), format!("`{key}` is missing"), next)
    }
}

/// A key with its value.
#[derive(Clone)]
pub(crate) struct Entry<'a> {
    file: &'a File<'a>,
    /// The key itself.
    pub(crate) key: &'a str,
    path: String,
    at: usize,
    value: &'a Spanned<DeValue<'a>>,
}

impl<'a> Entry<'a> {
    /// A problem with it.
    pub(crate) fn problem(&self, why: impl Into<String>, next: impl Into<String>) -> Problem {
        self.file.problem(self.at, &self.path, why, next)
    }

    /// The line that it stands in.
    pub(crate) fn line(&self) -> usize {
        self.file.line(self.at)
    }

    fn is_not(&self, wanted: &str, example: &str) -> Problem {
        self.problem(
            format!("it is a {} and not {wanted}", self.value.get_ref().type_str()),
            format!("write it like this: {} = {example}", quoted_key(self.key)),
        )
    }

    /// The string.
    pub(crate) fn text(&self, example: &str) -> Result<&'a str, Problem> {
        self.value.get_ref().as_str().ok_or_else(|| self.is_not("a string", &format!("{example:?}")))
    }

    /// The string as SQL, which knows where it stands.
    pub(crate) fn sql(&self, example: &str) -> Result<Sql, Problem> {
        let (text, span) = (self.text(example)?, self.value.span());
        let before = self.file.text.get(..span.start).unwrap_or_default();
        let column = 1 + before.rsplit('\n').next().unwrap_or_default().chars().count();
        Ok(Sql::new(text, self.file.text.get(span.clone()).unwrap_or_default(), self.file.line(span.start), column))
    }

    /// The list of strings, each with its position.
    pub(crate) fn list(&self, example: &str) -> Result<Vec<Entry<'a>>, Problem> {
        self.items().ok_or_else(|| self.is_not("a list of strings", example))
    }

    fn items(&self) -> Option<Vec<Entry<'a>>> {
        let entry = |item: &'a Spanned<DeValue<'a>>| {
            let at = item.span().start;
            Entry { file: self.file, key: self.key, path: self.path.clone(), at, value: item }
        };
        Some(self.value.get_ref().as_array()?.iter().map(entry).collect())
    }

    /// The string, or the list of strings.
    pub(crate) fn one_or_more(&self, example: &str) -> Result<Vec<Entry<'a>>, Problem> {
        let items = self.items().unwrap_or_else(|| vec![self.clone()]);
        if items.is_empty() {
            return Err(self.problem("the list is empty", format!("write it like this: {} = {example:?}", self.key)));
        }
        Ok(items)
    }

    /// The sections of this name, `[[…]]`.
    pub(crate) fn sections(&self, known: &[&str]) -> Result<Vec<Section<'a>>, Problem> {
        let items = self.items().ok_or_else(|| {
            let kind = self.value.get_ref().type_str();
            self.problem(
                format!("it is a {kind} and not a list of sections"),
                format!("begin each of them with [[{}]]", self.path),
            )
        })?;
        items.iter().map(|item| item.section(known)).collect()
    }

    /// The section, or, if there are several, all of them: `[…]` or `[[…]]`.
    pub(crate) fn section_or_more(&self, known: &[&str]) -> Result<Vec<Section<'a>>, Problem> {
        if self.value.get_ref().is_array() { self.sections(known) } else { Ok(vec![self.section(known)?]) }
    }

    /// `true` or `false`.
    pub(crate) fn flag(&self) -> Result<bool, Problem> {
        self.value.get_ref().as_bool().ok_or_else(|| self.is_not("true or false", "true"))
    }

    /// The section.
    pub(crate) fn section(&self, known: &[&str]) -> Result<Section<'a>, Problem> {
        self.open()?.knows(known)
    }

    /// The section whose keys are names.
    pub(crate) fn open(&self) -> Result<Section<'a>, Problem> {
        let table = self.value.get_ref().as_table().ok_or_else(|| {
            let kind = self.value.get_ref().type_str();
            self.problem(format!("it is a {kind} and not a section"), format!("write it as a section: [{}]", self.path))
        })?;
        Ok(Section { file: self.file, name: self.path.clone(), at: self.at, table })
    }

    /// The whole number.
    pub(crate) fn number(&self, range: RangeInclusive<usize>) -> Result<usize, Problem> {
        let number = self.value.get_ref().as_integer().and_then(|n| usize::from_str_radix(n.as_str(), n.radix()).ok());
        number.filter(|number| range.contains(number)).ok_or_else(|| {
            let (low, high) = (range.start(), range.end());
            self.problem("it is not a whole number in range", format!("write a number from {low} to {high}"))
        })
    }

    /// The size in bytes.
    pub(crate) fn bytes(&self, example: &str) -> Result<u64, Problem> {
        self.value.get_ref().as_str().and_then(size::bytes).ok_or_else(|| {
            self.problem(
                format!("{} is not a size", self.shown()),
                format!(
                    "write a whole number and its unit (B, KiB, MiB, GiB, TiB, kB, MB, GB, TB): {} = {example:?}",
                    self.key
                ),
            )
        })
    }

    /// The length of time.
    pub(crate) fn duration(&self, example: &str) -> Result<Duration, Problem> {
        self.value.get_ref().as_str().and_then(size::duration).ok_or_else(|| {
            self.problem(
                format!("{} is not a length of time", self.shown()),
                format!("write a number and its unit (ms, s, min, h): {} = {example:?}", self.key),
            )
        })
    }

    /// The file or folder; a relative one counts from the plan file's folder.
    pub(crate) fn path(&self, example: &str) -> Result<PathBuf, Problem> {
        let text = self.text(example)?;
        if text.is_empty() {
            return Err(self.problem("it is empty", format!("write a path: {} = {example:?}", self.key)));
        }
        Ok(self.file.path.parent().unwrap_or(Path::new("")).join(text))
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, Problem> {
        let names: Vec<String> = words.iter().map(|(name, _)| format!("{name:?}")).collect();
        let text = self.text(words.first().map_or("", |(name, _)| name))?;
        let found = words.iter().find(|(name, _)| *name == text);
        found
            .map(|(_, value)| *value)
            .ok_or_else(|| self.problem(format!("{text:?} is not known here"), format!("write {}", names.join(" or "))))
    }

    /// The value for an error; only for keys that are no secrets.
    fn shown(&self) -> String {
        match self.value.get_ref() {
            DeValue::String(text) => format!("{text:?}"),
            DeValue::Integer(number) => number.to_string(),
            other => format!("a {}", other.type_str()),
        }
    }
}

/// A key as TOML wants it.
fn quoted_key(key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if bare { key.to_owned() } else { format!("{key:?}") }
}

/// The known word that `word` was probably meant to be: at most a third of its letters differ.
fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let near = known.iter().map(|&candidate| (distance(word, candidate), candidate)).min()?;
    (near.0 * 3 <= word.chars().count().max(near.1.len())).then_some(near.1)
}

/// How many letters must be changed, added or taken out to get from one word to the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_suggested_if_it_is_near() {
        let known = ["memory", "wal_warn", "wal_critical"];
        assert_eq!(nearest("memroy", &known), Some("memory"));
        assert_eq!(nearest("wal_wran", &known), Some("wal_warn"));
        assert_eq!(nearest("colour", &known), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
