//! The line of a database in PgBouncer's file: `name = host=… port=… dbname=…`, in its section `[databases]`, or in a file without sections that is included there.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

/// What stands above a line that was switched; the epoch follows. A comment in PgBouncer's words.
const NOTE: &str = "; crossfade wrote the next line in epoch ";

/// How long another process that is about to switch may take.
const LOCK: Duration = Duration::from_secs(3);

/// Between two tries.
const AGAIN: Duration = Duration::from_millis(20);

/// A file with the line in it.
#[derive(Debug)]
struct Found {
    /// Everything above it, without the note.
    above: String,
    /// The line up to what it says.
    head: String,
    says: String,
    /// From the line's end on.
    below: String,
    /// Of the last switch.
    epoch: Option<i64>,
}

/// What the line says, and the epoch that has switched it, if one has. Makes sure that it could be switched, too.
///
/// # Errors
/// Why there is no such line, more than one, or no way to write it.
pub(super) fn look(file: &Path, database: &str) -> Result<(String, Option<i64>), String> {
    let file = real(file)?;
    let found = find(&read(&file)?, database).map_err(|why| format!("{why} in {}", file.display()))?;
    let beside = Beside::make(&file)?;
    drop(beside);
    Ok((found.says, found.epoch))
}

/// Lets the line say something else, unless a later epoch has switched it. Nothing else in the file changes, and neither do its owner and mode; whoever reads it meanwhile
/// reads the old file or the new one.
///
/// # Errors
/// Why that cannot be done, or must not.
pub(super) async fn switch(file: &Path, database: &str, says: &str, plan: &str, epoch: i64) -> Result<(), String> {
    let file = real(file)?;
    let folder = File::open(folder(&file)).map_err(|error| told(&file, "its folder cannot be opened", &error))?;
    let begun = Instant::now();
    // Between reading and writing nobody else is to write. The lock ends with the process that has it.
    while folder.try_lock().is_err() {
        if begun.elapsed() > LOCK {
            return Err(format!("another process holds the lock on the folder of {}", file.display()));
        }
        tokio::time::sleep(AGAIN).await;
    }
    let text = read(&file)?;
    let found = find(&text, database).map_err(|why| format!("{why} in {}", file.display()))?;
    let new = found.switched(says, plan, epoch)?;
    if new == text {
        return Ok(());
    }
    let mut beside = Beside::make(&file)?;
    beside.become_it(&file, &new)?;
    folder.sync_all().map_err(|error| told(&file, "its folder cannot be synced", &error))
}

/// Whether two lines say the same.
pub(super) fn same(one: &str, other: &str) -> bool {
    one.split_whitespace().eq(other.split_whitespace())
}

/// What a line says of a key.
pub(super) fn value<'l>(line: &'l str, key: &str) -> Option<&'l str> {
    let pair = line.split_whitespace().filter_map(|word| word.split_once('=')).find(|(word, _)| *word == key)?;
    Some(pair.1.trim_matches('\''))
}

impl Found {
    fn switched(&self, says: &str, plan: &str, epoch: i64) -> Result<String, String> {
        match self.epoch {
            Some(later) if later > epoch => {
                Err(format!("epoch {later} has switched the line, and this is epoch {epoch}"))
            }
            _ => {
                let Found { above, head, below, .. } = self;
                Ok(format!("{above}{NOTE}{epoch} of plan {plan}\n{head}{says}{below}"))
            }
        }
    }
}

fn find(text: &str, database: &str) -> Result<Found, String> {
    let (mut found, mut inside, mut at, mut note) = (None, true, 0, None);
    for line in text.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let body = line.trim();
        if let Some(section) = body.strip_prefix('[') {
            inside = section.trim_end_matches(']').trim() == "databases";
        }
        if inside && let Some(head) = head(line, database) {
            if found.is_some() {
                return Err(format!("there are several lines of database {database:?}"));
            }
            let (above, epoch) = match note {
                Some((before, epoch)) => (before, Some(epoch)),
                None => (start, None),
            };
            let end = start + line.trim_end().len();
            found = Some(Found {
                above: text[..above].to_owned(),
                head: line[..head].to_owned(),
                says: text[(start + head).min(end)..end].to_owned(),
                below: text[end..].to_owned(),
                epoch,
            });
        }
        let epoch = body.strip_prefix(NOTE).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        note = epoch.map(|epoch: i64| (start, epoch));
    }
    found.ok_or_else(|| format!("there is no line of database {database:?}"))
}

/// Where what a line says begins, if it is the database's.
fn head(line: &str, database: &str) -> Option<usize> {
    let (name, says) = line.split_once('=')?;
    let name = name.trim();
    let is = name == database || name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) == Some(database);
    is.then(|| line.len() - says.trim_start_matches([' ', '\t']).len())
}

/// A link's file: a link is not to be replaced by a file.
fn real(file: &Path) -> Result<PathBuf, String> {
    file.canonicalize().map_err(|error| told(file, "it cannot be found", &error))
}

fn read(file: &Path) -> Result<String, String> {
    std::fs::read_to_string(file).map_err(|error| told(file, "it cannot be read", &error))
}

fn folder(file: &Path) -> &Path {
    file.parent().unwrap_or(Path::new("/"))
}

fn told(file: &Path, what: &str, error: &std::io::Error) -> String {
    format!("{}: {what} ({error})", file.display())
}

/// A file beside another one, with its owner and mode. Removed when dropped, unless it has become that one.
struct Beside {
    path: PathBuf,
    file: File,
}

impl Beside {
    fn make(of: &Path) -> Result<Beside, String> {
        let like = of.metadata().map_err(|error| told(of, "it cannot be looked at", &error))?;
        let name = of.file_name().unwrap_or_default().to_string_lossy();
        let path = folder(of).join(format!(".{name}.crossfade-{}", std::process::id()));
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = opened.map_err(|error| told(of, "no file can be made beside it", &error))?;
        let beside = Beside { path, file };
        let own = beside.file.metadata().map_err(|error| told(of, "the file beside it is gone", &error))?;
        if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
            fchown(&beside.file, Some(like.uid()), Some(like.gid()))
                .map_err(|error| told(of, &format!("its owner, uid {}, cannot be kept", like.uid()), &error))?;
        }
        beside
            .file
            .set_permissions(Permissions::from_mode(like.mode() & 0o7777))
            .map_err(|error| told(of, "its mode cannot be kept", &error))?;
        Ok(beside)
    }

    fn become_it(&mut self, of: &Path, text: &str) -> Result<(), String> {
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_all());
        written.and_then(|()| std::fs::rename(&self.path, of)).map_err(|error| told(of, "it cannot be written", &error))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // What has become the other file is not here any more.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const FILE: &str = "[databases]\n; shop = host=no\nother = host=a\nshop =  host=old port=1 \nlast = host=b\n[pgbouncer]\nshop = x\n";

    #[tokio::test]
    async fn only_that_line_changes_and_owner_and_mode_stay() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pgbouncer.ini");
        std::fs::write(&file, FILE).unwrap();
        std::fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        assert_eq!(look(&file, "shop").unwrap().0, "host=old port=1");
        for epoch in [3, 3] {
            switch(&file, "shop", "host=new", "p", epoch).await.unwrap();
            let now = std::fs::read_to_string(&file).unwrap();
            assert_eq!(
                now,
                FILE.replace(
                    "shop =  host=old port=1 ",
                    "; crossfade wrote the next line in epoch 3 of plan p\nshop =  host=new "
                )
            );
        }
        switch(&file, "shop", "host=old port=1", "p", 4).await.unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().contains("epoch 4 of plan p\nshop =  host=old port=1 \nlast"));
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o640);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something stays beside it");
    }

    #[tokio::test]
    async fn an_epoch_that_is_outdated_switches_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("databases.ini");
        std::fs::write(&file, "shop = host=a").unwrap();
        switch(&file, "shop", "host=b", "p", 7).await.unwrap();
        let why = switch(&file, "shop", "host=a", "p", 6).await.unwrap_err();
        assert!(why.contains("epoch 7"), "{why}");
        assert_eq!(look(&file, "shop").unwrap().0, "host=b");
    }

    #[test]
    fn a_line_that_is_not_there_or_there_twice_is_told() {
        for (text, why) in [
            ("[databases]\nother = host=a\n", "no line"),
            ("[pgbouncer]\nshop = host=a\n", "no line"),
            ("shop = host=a\n\"shop\" = host=b\n", "several"),
        ] {
            assert!(find(text, "shop").unwrap_err().contains(why), "{text}");
        }
    }

    #[test]
    fn values_are_read_as_pgbouncer_reads_them() {
        let line = "host='db1' port=5433  dbname=shop";
        assert_eq!((value(line, "host"), value(line, "port"), value(line, "user")), (Some("db1"), Some("5433"), None));
        assert!(same("host=a  port=1", " host=a port=1"));
    }
}
