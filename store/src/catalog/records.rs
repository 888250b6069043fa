//! The records of the catalog: the same encoding as on the wire, so unknown fields survive a downgrade.

use sluice_protocol::codec::{Bytes, CodecError, Dec, Enc, Wire};
use sluice_protocol::ids::{BlobHash, HeadId, SiteId, SnapshotId, SpaceId};
use sluice_protocol::manifest::{History, SectionKind};
use sluice_protocol::path::LakePath;
use sluice_protocol::record;

use crate::lake::{Fingerprint, Place};

record! {
    /// What the last scan (owner) or publish (replica) saw of a file.
    pub struct FileRecord {
        0 => print: Fingerprint,
        1 => hash: BlobHash,
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
    }
}

record! {
    /// What is published in a space.
    pub struct LiveRecord {
        0 => generation: u64,
        1 => snapshot: SnapshotId,
        2 => sections: Vec<LiveSection>,
        /// Sections that could not be proven here, as `name: reason`.
        3 => unproven: Vec<String>,
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
