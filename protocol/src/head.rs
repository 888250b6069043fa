//! Heads: the signed pointers to a writer's newest manifest, in one chain per (space, writer).
//!
//! Invariant: a site that stored a head accepts only heads that come after it in the same chain.
//! A lower one is a replay, an equal place with other content is a fork, and a chain that does not
//! lead back to the stored head is a fork across a jump.

use std::collections::HashSet;

use crate::codec::{CodecError, Document, check_name};
use crate::ids::{BlobHash, HeadId, SiteId, SnapshotId, SpaceId};
use crate::limits;
use crate::record;
use crate::signed::{Signable, Signed};

record! {
    /// The pointer itself.
    pub struct Head {
        0 => space: SpaceId,
        1 => writer: SiteId,
        /// Raised when an owner was restored from an old backup.
        2 => epoch: u64,
        /// Counts up from 0 within the chain, across epochs.
        3 => seq: u64,
        4 => manifest: SnapshotId,
        5 => annex: BlobHash,
        /// The signed grant set in force, as a blob.
        6 => grants: BlobHash,
        /// The head before this one.
        7 => prev: Option<HeadId>,
        /// When it was signed, in milliseconds since the Unix epoch.
        8 => time_ms: u64,
        /// Until when it may be served on, in milliseconds since the Unix epoch.
        9 => not_after_ms: u64,
        /// A name that its writer gave this version.
        10 => tag: Option<String>,
        /// A tag of an earlier head that its writer takes back.
        11 => untag: Option<String>,
    }
}

impl Document for Head {
    const KIND: &'static str = "sluice/head";
    const VERSION: u64 = 1;
    const BYTES_MAX: usize = limits::SIGNED_BYTES_MAX;

    fn check(&self) -> Result<(), CodecError> {
        if (self.seq == 0) != self.prev.is_none() {
            return Err(CodecError::Invalid("only the first head of a chain has none before it".into()));
        }
        self.tag.iter().chain(&self.untag).try_for_each(|tag| check_name("a tag", tag))
    }
}

impl Signable for Head {
    const DOMAIN: &'static str = "sluice v1 head";
    fn signer(&self) -> SiteId {
        self.writer
    }
}

impl Head {
    /// The place in the chain; later is greater.
    pub fn place(&self) -> (u64, u64) {
        (self.epoch, self.seq)
    }

    /// Whether it may still be served on.
    pub fn is_stale(&self, now_ms: u64) -> bool {
        now_ms > self.not_after_ms
    }
}

/// Which tags stand. Asked of each head of a chain, from the newest to the oldest.
#[derive(Debug, Default)]
pub struct Tags(HashSet<String>);

impl Tags {
    /// The tag that this head still gives its version: no newer head gave it to another one or took it back.
    pub fn standing(&mut self, tag: Option<&str>, untag: Option<&str>) -> Option<String> {
        self.0.extend(untag.map(str::to_string));
        tag.filter(|tag| self.0.insert(tag.to_string())).map(str::to_string)
    }
}

impl Signed<Head> {
    /// The head's id.
    pub fn id(&self) -> HeadId {
        HeadId(self.payload_hash())
    }
}

/// Why a head is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("the head belongs to another space or writer")]
    Foreign,
    #[error(
        "the head (epoch {epoch}, seq {seq}) is older than the one already seen (epoch {seen_epoch}, seq {seen_seq})"
    )]
    Replayed { epoch: u64, seq: u64, seen_epoch: u64, seen_seq: u64 },
    #[error("two heads claim the same place: {ours} and {theirs} (epoch {epoch}, seq {seq})")]
    Fork { ours: HeadId, theirs: HeadId, epoch: u64, seq: u64 },
    #[error("the chain is broken between seq {before} and seq {after}")]
    Broken { before: u64, after: u64 },
    #[error("the head was signed {ahead_ms} ms in the future")]
    FromTheFuture { ahead_ms: u64 },
    #[error("the chain is empty")]
    Empty,
}

/// Checks that `chain` (ascending) leads from `stored` to its last head.
///
/// `chain` may begin at the stored head or right after it; without a stored head it may begin
/// anywhere, because the first contact has nothing to compare with. Returns how many heads are new.
pub fn check_chain(
    space: SpaceId,
    writer: SiteId,
    stored: Option<&Signed<Head>>,
    chain: &[Signed<Head>],
    now_ms: u64,
) -> Result<usize, ChainError> {
    let newest = chain.last().ok_or(ChainError::Empty)?;
    if chain.iter().any(|h| h.space != space || h.writer != writer) {
        return Err(ChainError::Foreign);
    }
    if newest.time_ms > now_ms.saturating_add(limits::CLOCK_SKEW_MS_MAX) {
        return Err(ChainError::FromTheFuture { ahead_ms: newest.time_ms - now_ms });
    }
    for pair in chain.windows(2) {
        check_step(&pair[0], &pair[1])?;
    }
    let Some(stored) = stored else {
        return Ok(chain.len());
    };
    if newest.place() < stored.place() {
        return Err(ChainError::Replayed {
            epoch: newest.epoch,
            seq: newest.seq,
            seen_epoch: stored.epoch,
            seen_seq: stored.seq,
        });
    }
    match chain.iter().position(|h| h.place() >= stored.place()) {
        Some(i) if chain[i].id() == stored.id() => Ok(chain.len() - i - 1),
        Some(i) if chain[i].place() == stored.place() || chain[i].seq <= stored.seq => Err(fork(stored, &chain[i])),
        Some(i) if chain[i].prev == Some(stored.id()) => {
            check_step(stored, &chain[i])?;
            Ok(chain.len() - i)
        }
        Some(i) if chain[i].seq == stored.seq + 1 => Err(fork(stored, &chain[i])),
        Some(i) => Err(ChainError::Broken { before: stored.seq, after: chain[i].seq }),
        None => Err(ChainError::Empty),
    }
}

fn check_step(before: &Signed<Head>, after: &Signed<Head>) -> Result<(), ChainError> {
    let follows =
        after.prev == Some(before.id()) && before.seq.checked_add(1) == Some(after.seq) && after.epoch >= before.epoch;
    if follows { Ok(()) } else { Err(ChainError::Broken { before: before.seq, after: after.seq }) }
}

fn fork(ours: &Signed<Head>, theirs: &Signed<Head>) -> ChainError {
    ChainError::Fork { ours: ours.id(), theirs: theirs.id(), epoch: theirs.epoch, seq: theirs.seq }
}
