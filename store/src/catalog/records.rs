//! The records of the catalog: the same encoding as on the wire, so unknown fields survive a downgrade.

use sluice_protocol::codec::{Bytes, CodecError, Dec, Enc, Wire};
use sluice_protocol::ids::{BlobHash, HeadId, SiteId, SnapshotId, SpaceId};
use sluice_protocol::manifest::{History, Section, SectionKind};
use sluice_protocol::path::LakePath;
use sluice_protocol::record;

use crate::lake::{Fingerprint, Place};

record! {
    /// What the last scan (owner) or publish (replica) saw of a file.
    pub struct FileRecord {
        0 => print: Fingerprint,
        1 => hash: BlobHash,
        /// The bytes were found not to be `hash` although the fingerprint is the same.
        2 => damaged: bool,
    }
}

record! {
    /// A place that held the bytes when its fingerprint was taken.
    pub struct Located {
        0 => place: Place,
        1 => print: Fingerprint,
    }
}

record! {
    /// A blob of a space that is here, whole and proven when it was recorded.
    pub struct BlobRecord {
        /// Length in bytes.
        0 => size: u64,
        1 => places: Vec<Located>,
        /// Its chunk list, a metadata blob.
        2 => list: Option<BlobHash>,
    }
}

record! {
    /// What of a blob is durable in staging.
    pub struct StagingRecord {
        /// Length in bytes.
        0 => size: u64,
        /// Bit i (least significant first) stands for the 16 KiB group i.
        1 => bitmap: Bytes,
        /// Which boot of the machine wrote it.
        2 => boot: Option<String>,
    }
}

record! {
    /// A section as it is published.
    pub struct LiveSection {
        0 => path: Option<LakePath>,
        1 => kind: SectionKind,
        2 => shallow: bool,
        /// Name of its folder below `.sluice/sections`.
        3 => folder: String,
        /// Root page of its entries.
        4 => tree: BlobHash,
        /// Files of it are missing or damaged: the next version makes its folder anew.
        5 => worn: bool,
        /// What was changed here by hand, at most [`CHANGES_MAX`] of it: the folder stays as it lies.
        6 => changes: Vec<LocalChange>,
        /// How many changes there are.
        7 => change_count: Option<u64>,
        /// A person made the section the site's own: it is neither replaced nor looked over.
        8 => detached: bool,
        /// The snapshot that it was published from, when that is not the live one.
        9 => of: Option<SnapshotId>,
        /// Folder below `.sluice` that takes the local changes once the owner's version is live here.
        10 => gives_way: Option<String>,
    }
}

/// Local changes that a section names; more are counted.
pub const CHANGES_MAX: usize = 100;

record! {
    /// One thing of a published section that was changed here by hand.
    pub struct LocalChange {
        /// Its path in the lake.
        0 => path: String,
        /// What happened to it.
        1 => what: String,
        /// Its fingerprint then, so that a large file is not hashed again to find it still changed.
        2 => print: Option<Fingerprint>,
        /// It is a name at the lake's top, where a link into the live version should be.
        3 => top: bool,
    }
}

impl LiveSection {
    /// Its folder in the lake, or `.`.
    pub fn name(&self) -> &str {
        self.path.as_ref().map_or(".", LakePath::as_str)
    }

    /// Whether it stays as it lies, whatever the owner's newest version says.
    pub fn stays(&self) -> bool {
        self.gives_way.is_none() && (self.detached || self.change_count.is_some())
    }

    /// Whether its folder must be made anew even when the owner's version is the same.
    pub fn is_remade(&self) -> bool {
        !self.stays() && (self.worn || self.gives_way.is_some())
    }

    /// The names at the lake's top that something else has taken.
    pub fn taken_tops(&self) -> impl Iterator<Item = &str> {
        self.changes.iter().filter(|c| c.top).map(|c| c.path.as_str())
    }
}

impl LiveRecord {
    /// Whether anything of it is missing or damaged that a sync of the same version brings back.
    pub fn is_hurt(&self) -> bool {
        self.unshown || self.sections.iter().any(LiveSection::is_remade)
    }

    /// The section that stays as it lies and has no room for `section` beside it.
    pub fn holds_back(&self, section: &Section) -> Option<&LiveSection> {
        let top = section.path.as_ref().and_then(|p| p.names().next());
        let in_the_way = |s: &&LiveSection| {
            s.path == section.path
                || !s.shallow && s.path.as_ref().is_none_or(|a| section.path.as_ref().is_some_and(|b| lies_in(b, a)))
                || !section.shallow
                    && section.path.as_ref().is_none_or(|a| s.path.as_ref().is_some_and(|b| lies_in(b, a)))
                || s.taken_tops().any(|taken| Some(taken) == top)
        };
        self.sections.iter().filter(|s| s.stays()).find(in_the_way)
    }
}

fn lies_in(path: &LakePath, folder: &LakePath) -> bool {
    path.as_str().strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/'))
}

record! {
    /// What is published in a space.
    pub struct LiveRecord {
        0 => generation: u64,
        1 => snapshot: SnapshotId,
        2 => sections: Vec<LiveSection>,
        /// Sections that could not be proven here, as `name: reason`.
        3 => unproven: Vec<String>,
        /// A look found names missing at the lake's top: the next recovery makes them again.
        4 => unshown: bool,
    }
}

/// What this site is to a space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Owner,
    Replica,
}

impl Wire for Role {
    fn put(&self, e: &mut Enc) {
        match self {
            Role::Owner => 0u8.put(e),
            Role::Replica => 1u8.put(e),
        }
    }
    fn get(d: &mut Dec<'_>) -> Result<Self, CodecError> {
        match u8::get(d)? {
            0 => Ok(Role::Owner),
            1 => Ok(Role::Replica),
            other => Err(CodecError::Invalid(format!("role {other} is unknown"))),
        }
    }
}

record! {
    /// A space at this site.
    pub struct SpaceRecord {
        0 => name: String,
        1 => role: Role,
        /// Absolute path of the lake's folder.
        2 => lake: String,
        3 => owner: SiteId,
        4 => history: Option<History>,
        /// Tables are carried as files.
        5 => opaque: bool,
        /// Sections this replica takes (kind or folder); empty for all.
        6 => sections: Vec<String>,
        /// Sites to ask for news, the inviting site first.
        7 => sources: Vec<SiteId>,
        /// Why nothing is taken any more, after a fork.
        8 => frozen: Option<String>,
        /// Phrase of the ticket that brought it.
        9 => phrase: Option<String>,
        /// Whether the site follows it by itself; none means yes.
        10 => follow: Option<bool>,
        /// The version that a replica is held at, instead of the newest.
        11 => held: Option<HeadId>,
        /// Heads that contradict the chain that is followed: evidence, at most [`sluice_protocol::limits::RIVALS_MAX`].
        12 => rivals: Vec<Rival>,
    }
}

record! {
    /// A signed head that claims a place which another one has.
    pub struct Rival {
        /// The signed head.
        0 => head: Bytes,
        /// When it was seen, in milliseconds since the Unix epoch.
        1 => seen_ms: u64,
        /// A person decided against its branch.
        2 => set_aside: bool,
        /// The newest head of its branch that was seen since.
        3 => tip: Option<HeadId>,
        /// The number of that head.
        4 => tip_seq: Option<u64>,
    }
}

record! {
    /// A snapshot's totals and what was left out.
    pub struct SnapshotRecord {
        0 => head: HeadId,
        1 => files: u64,
        /// Bytes of all files.
        2 => bytes: u64,
        /// Path and reason of each file left out, alternating.
        3 => skipped: Vec<String>,
    }
}

record! {
    /// A paired site.
    pub struct PeerRecord {
        0 => name: String,
        /// Its newest signed card.
        1 => card: Bytes,
        /// Milliseconds since the Unix epoch.
        2 => paired_ms: u64,
        3 => last_seen_ms: Option<u64>,
        /// Bytes received from it.
        4 => moved_bytes: Option<u64>,
        /// Cut off; kept so that the journal's names stay readable.
        5 => revoked: bool,
    }
}

record! {
    /// An invitation as the inviting site remembers it.
    pub struct TicketRecord {
        0 => space: SpaceId,
        1 => sections: Vec<String>,
        /// Milliseconds since the Unix epoch.
        2 => expires_ms: u64,
        /// The site that used it.
        3 => used_by: Option<SiteId>,
    }
}

record! {
    /// A version that a peer is fetching. Milliseconds since the Unix epoch.
    pub struct LeaseRecord {
        /// When it was last asked for.
        0 => asked_ms: u64,
        1 => until_ms: u64,
    }
}

record! {
    /// One event of the journal, chained to the one before.
    pub struct JournalRecord {
        /// Milliseconds since the Unix epoch.
        0 => time_ms: u64,
        /// What happened: one word.
        1 => what: String,
        2 => space: Option<SpaceId>,
        3 => site: Option<SiteId>,
        4 => text: String,
        /// BLAKE3 of the record before.
        5 => prev: [u8; 32],
    }
}
