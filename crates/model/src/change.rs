use crate::{Lsn, Oid, Tuple, Xid};

/// What one transaction did to one row, or said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new row.
    Insert {
        /// Its table.
        relation: Oid,
        /// Every column.
        new: Tuple,
    },
    /// A new version of a row.
    Update {
        /// Its table.
        relation: Oid,
        /// There when the key changed, or the replica identity is full.
        old: Option<Old>,
        /// Every column, [`Cell::Unchanged`](crate::Cell::Unchanged) among them.
        new: Tuple,
    },
    /// A row's end.
    Delete {
        /// Its table.
        relation: Oid,
        /// What identifies it.
        old: Old,
    },
    /// Tables emptied by one statement.
    Truncate {
        /// All of them.
        relations: Vec<Oid>,
        /// CASCADE was given.
        cascade: bool,
        /// RESTART IDENTITY was given.
        restart_identity: bool,
    },
    /// A logical message of this plan.
    Marker(Marker),
}

impl Change {
    /// What its rows, names and texts take, in bytes.
    pub fn bytes(&self) -> usize {
        let old = |old: &Old| old.tuple().bytes().len();
        match self {
            Change::Insert { new, .. } => new.bytes().len(),
            Change::Update { old: before, new, .. } => new.bytes().len() + before.as_ref().map_or(0, old),
            Change::Delete { old: before, .. } => old(before),
            Change::Truncate { relations, .. } => relations.len() * size_of::<Oid>(),
            Change::Marker(marker) => marker.nonce.len() + marker.id.len() + marker.data.len(),
        }
    }
}

/// What the WAL holds of a row's old version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Old {
    /// The key's columns; the others are null.
    Key(Tuple),
    /// Every column.
    Full(Tuple),
}

impl Old {
    /// The columns, whichever they are.
    pub fn tuple(&self) -> &Tuple {
        match self {
            Old::Key(tuple) | Old::Full(tuple) => tuple,
        }
    }
}

/// A logical message (`pg_logical_emit_message`) that everyone downstream sees in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// The plan's; messages with another one are somebody else's.
    pub nonce: String,
    /// What it announces.
    pub kind: MarkerKind,
    /// Unique within the plan.
    pub id: String,
    /// What it says besides; as a rule nothing.
    pub data: String,
}

/// What a [`Marker`] announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MarkerKind {
    /// A table's copy starts; emitted before its snapshot is taken.
    Copy,
    /// Emitted after the last table's snapshot was taken: from here on copy and tail are joined.
    Joined,
    /// The catalogs were looked at.
    Catalog,
    /// Somebody wants to know when the target has got here.
    Fence,
    /// Somebody wants the target to stand still here for a moment.
    Hold,
    /// What the target held at some commits: a comparison of both sides found it equal, or not.
    Verified,
}

impl MarkerKind {
    /// The prefix of our logical messages.
    pub const PREFIX: &'static str = "crossfade";

    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            MarkerKind::Copy => "copy",
            MarkerKind::Joined => "joined",
            MarkerKind::Catalog => "catalog",
            MarkerKind::Fence => "fence",
            MarkerKind::Hold => "hold",
            MarkerKind::Verified => "verified",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Copy, Self::Joined, Self::Catalog, Self::Fence, Self::Hold, Self::Verified]
            .into_iter()
            .find(|kind| kind.as_str() == name)
    }
}

impl Marker {
    /// One that says nothing but that it is there.
    pub fn new(nonce: &str, kind: MarkerKind, id: &str) -> Marker {
        Marker { nonce: nonce.to_owned(), kind, id: id.to_owned(), data: String::new() }
    }

    /// The message's content.
    pub fn content(&self) -> String {
        let mut content = format!("{}\n{}\n{}", self.nonce, self.kind.as_str(), self.id);
        if !self.data.is_empty() {
            content.push('\n');
            content.push_str(&self.data);
        }
        content
    }

    /// Reads a message's content; `None` if it is not of that form.
    pub fn parse(content: &str) -> Option<Marker> {
        let mut lines = content.splitn(4, '\n');
        let (nonce, kind, id) = (lines.next()?, lines.next()?, lines.next()?);
        let data = lines.next().unwrap_or_default().to_owned();
        Some(Marker { data, ..Marker::new(nonce, MarkerKind::from_name(kind)?, id) })
    }
}

/// A committed transaction, or a part of one that is too large for a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Of the top-level transaction.
    pub xid: Xid,
    /// Where its commit record starts.
    pub commit_lsn: Lsn,
    /// Microseconds since 1970 UTC.
    pub commit_time: i64,
    /// Nothing of the transaction comes before.
    pub first: bool,
    /// On the last part: where the commit record ends.
    pub end_lsn: Option<Lsn>,
    /// In the order in which they were made.
    pub changes: Vec<Change>,
}
