//! From what went wrong to what a person is told: one sentence, a hint, an exit code.
//!
//! Invariant: an error keeps its own sentence; here it only gains what to do about it and what it
//! means for whoever called. No secret and no file content is in either.

use std::io;

use sluice_protocol::api::{ApiError, Failure};
use sluice_protocol::head::ChainError;
use sluice_protocol::messages::{
    REFUSED_EXPIRED, REFUSED_GRANT, REFUSED_LATER, REFUSED_NO_HEAD, REFUSED_TICKET, REFUSED_USED,
};
use sluice_protocol::ticket::TicketError;
use sluice_store::blobs::BlobError;
use sluice_store::catalog::CatalogError;
use sluice_store::chunk::ChunkError;
use sluice_store::deed::DeedError;
use sluice_store::gc::GcError;
use sluice_store::lake::LakeError;
use sluice_store::pins::PinError;
use sluice_store::publish::{PublishError, TargetError};
use sluice_store::scan::ScanError;
use sluice_store::snapshot::SnapshotError;
use sluice_store::staging::StagingError;
use sluice_store::verify::VerifyError;

use crate::lanes::{FetchError, LaneError};
use crate::news::NewsError;
use crate::sync::SyncError;

/// An error that can say what to do about it.
pub trait Explain: std::fmt::Display {
    /// What it means for whoever called.
    fn failure(&self) -> Failure {
        Failure::Error
    }
    /// What to do about it.
    fn hint(&self) -> Option<String> {
        None
    }
    /// The sentence, the hint and the exit code.
    fn explain(&self) -> ApiError {
        ApiError { error: self.to_string(), hint: self.hint(), failure: self.failure() }
    }
}

/// Explains the error of a result.
pub trait OrExplain<T> {
    fn or_explain(self) -> Result<T, ApiError>;
}

impl<T, E: Explain> OrExplain<T> for Result<T, E> {
    fn or_explain(self) -> Result<T, ApiError> {
        self.map_err(|e| e.explain())
    }
}

fn hint(text: &str) -> Option<String> {
    Some(text.to_string())
}

const DISK_FULL: &str = "make room on that disk and run the same command again: it goes on where it was";

impl Explain for CatalogError {
    fn failure(&self) -> Failure {
        match self {
            CatalogError::DiskFull => Failure::Incomplete,
            _ => Failure::Error,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            CatalogError::Corrupt { path, .. } => Some(format!(
                "stop the site and run `sluice repair --lake DIR` for each of its lakes: it moves `{}` aside and makes it again from what lies in them",
                path.display()
            )),
            CatalogError::UnknownSchema { .. } => hint("use the build that wrote it, or a newer one"),
            CatalogError::InUse { .. } => hint("another daemon runs on this home; `sluice status` shows it"),
            CatalogError::DiskFull => hint(DISK_FULL),
            CatalogError::Io { source, .. } => io_hint(source),
            _ => None,
        }
    }
}

fn io_hint(e: &io::Error) -> Option<String> {
    match e.kind() {
        io::ErrorKind::StorageFull => hint(DISK_FULL),
        io::ErrorKind::PermissionDenied => hint("check who owns the file, and that the daemon's user may use it"),
        io::ErrorKind::ReadOnlyFilesystem => hint("the file system is mounted read-only"),
        _ => None,
    }
}

impl Explain for LakeError {
    fn hint(&self) -> Option<String> {
        match self {
            LakeError::Missing(_) => hint("check the path; it is taken as the daemon's machine sees it"),
            LakeError::NotAFolder(_) => hint("a lake is a folder; share the folder that the file lies in"),
            LakeError::Denied(_) => hint("let the daemon's user enter the folder"),
            LakeError::ReadOnly { source, .. } | LakeError::Io { source, .. } => io_hint(source),
        }
    }
}

impl Explain for ScanError {
    fn hint(&self) -> Option<String> {
        ScanError::hint(self).map(str::to_string)
    }
}

impl Explain for ChunkError {
    fn failure(&self) -> Failure {
        match self {
            ChunkError::Catalog(e) => e.failure(),
            _ => Failure::Error,
        }
    }
}

impl Explain for SnapshotError {
    fn failure(&self) -> Failure {
        match self {
            SnapshotError::Catalog(e) => e.failure(),
            _ => Failure::Error,
        }
    }
}

impl Explain for BlobError {}

impl Explain for DeedError {
    fn failure(&self) -> Failure {
        match self {
            DeedError::Damaged { .. } => Failure::Verification,
            DeedError::Catalog(e) => e.failure(),
            _ => Failure::Error,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            DeedError::None(_) => hint(
                "name the folder of a lake that this site shared or received; without a deed, add an owned space anew, and join a received one anew",
            ),
            DeedError::OtherSite { .. } => hint("run it with the home of the site that made it"),
            DeedError::Damaged { .. } => {
                hint("restore the home from a backup; or add an owned space anew, and join a received one anew")
            }
            DeedError::Io { source, .. } => io_hint(source),
            DeedError::Lake(e) => Explain::hint(e),
            DeedError::Catalog(e) => Explain::hint(e),
        }
    }
}

impl Explain for PinError {}

impl Explain for GcError {
    fn failure(&self) -> Failure {
        match self {
            GcError::Unreadable { .. } => Failure::Verification,
            GcError::Catalog(e) => e.failure(),
            _ => Failure::Incomplete,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            GcError::Unreadable { .. } => hint(
                "the disk of the site's home may be failing: check it, and restore the home from a backup if its files are damaged",
            ),
            GcError::Io { source, .. } => io_hint(source),
            GcError::Staging(e) => Explain::hint(e),
            GcError::Lake(e) => Explain::hint(e),
            GcError::Catalog(e) => Explain::hint(e),
            GcError::Pin(e) => Explain::hint(e),
        }
    }
}

impl Explain for StagingError {
    fn failure(&self) -> Failure {
        Failure::Incomplete
    }
    fn hint(&self) -> Option<String> {
        match self {
            StagingError::DiskFull { .. } => hint(DISK_FULL),
            StagingError::Io { source, .. } => io_hint(source),
            StagingError::Lake(e) => Explain::hint(e),
            StagingError::Catalog(e) => Explain::hint(e),
            _ => hint("run `sluice sync` again: only what is missing is fetched"),
        }
    }
}

impl Explain for VerifyError {
    fn failure(&self) -> Failure {
        match self {
            VerifyError::Cancelled | VerifyError::MissingBlobs { .. } => Failure::Incomplete,
            VerifyError::Catalog(e) => e.failure(),
            VerifyError::Blob(_) => Failure::Error,
            _ => Failure::Verification,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            VerifyError::Cancelled | VerifyError::MissingBlobs { .. } => {
                hint("run `sluice sync` again: only what is missing is fetched")
            }
            _ => hint("nothing of this version was published; what was live stays live"),
        }
    }
}

impl Explain for PublishError {
    fn failure(&self) -> Failure {
        match self {
            PublishError::Diverged { .. } => Failure::Verification,
            PublishError::Occupied { .. }
            | PublishError::Stranger { .. }
            | PublishError::NotThere { .. }
            | PublishError::SetBack { .. } => Failure::Error,
            _ => Failure::Incomplete,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            PublishError::Diverged { .. } => hint(
                "this copy was changed by hand while it was synced, and is kept as it is: run `sluice sync` again, then `sluice resolve` to decide",
            ),
            PublishError::Occupied { .. } | PublishError::Stranger { .. } => {
                hint("move it away, and run `sluice sync` again")
            }
            PublishError::DiskFull { .. } => hint(DISK_FULL),
            PublishError::NotThere { .. } => hint(
                "mount it and run the same command again; if its contents are gone for good, make a folder `.sluice` in it, and all is fetched again",
            ),
            PublishError::SetBack { .. } => hint(
                "stop the site, move `catalog.redb`, `meta` and `obao` out of its home, and run `sluice repair --lake DIR` for each of its lakes: they hold what was published",
            ),
            _ => hint("run `sluice sync` again; what was live stays live until the new version is whole"),
        }
    }
}

impl Explain for TargetError {
    fn hint(&self) -> Option<String> {
        match self {
            TargetError::NotEmpty { .. } => hint("name an empty or new folder with `--into`"),
            TargetError::Taken { .. } => hint("use another folder, or remove its `.sluice` if nothing in it is needed"),
            TargetError::NoLinks { .. } => hint("choose a folder on ext4, xfs, btrfs or another Linux file system"),
            TargetError::Io { source, .. } => io_hint(source),
            TargetError::Lake(e) => Explain::hint(e),
            TargetError::Catalog(e) => Explain::hint(e),
        }
    }
}

impl Explain for TicketError {
    fn failure(&self) -> Failure {
        Failure::Usage
    }
    fn hint(&self) -> Option<String> {
        match self {
            TicketError::NotATicket => {
                hint("a ticket is one word that begins with `sluice1-`; `sluice invite SPACE --read` prints one")
            }
            TicketError::Damaged => hint("copy the whole word again"),
            TicketError::Unreadable(_) => hint("the ticket was made by another version of Sluice"),
        }
    }
}

impl Explain for LaneError {
    fn hint(&self) -> Option<String> {
        match self {
            LaneError::PortInUse { .. } | LaneError::TcpPortInUse { .. } => {
                hint("set another port with SLUICE__P2P__PORT or `[p2p] port`; 0 takes any free one")
            }
            LaneError::Unreachable { .. } | LaneError::NoAddress { .. } => hint(
                "check that the other site runs and that its UDP port is open from here; `sluice doctor` there shows its addresses",
            ),
            LaneError::NotPaired { .. } => hint("ask the owner for a new ticket"),
            _ => None,
        }
    }
}

impl Explain for FetchError {
    fn failure(&self) -> Failure {
        match self {
            FetchError::TooLarge { .. } => Failure::Verification,
            _ if self.is_corrupt() => Failure::Verification,
            _ => Failure::Incomplete,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            FetchError::Lane(e) => Explain::hint(e),
            FetchError::NotThere { .. } | FetchError::Refused { .. } => hint(
                "the source changed since its snapshot, or took the grant back: run `sluice snapshot` there, then `sluice sync` here",
            ),
            FetchError::Sink { source, .. } => io_hint(source),
            _ => hint("run `sluice sync` again: only what is missing is fetched"),
        }
    }
}

impl Explain for NewsError {
    fn failure(&self) -> Failure {
        match self {
            NewsError::Catalog(e) => e.failure(),
            _ => Failure::Verification,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            NewsError::Catalog(e) => Explain::hint(e),
            NewsError::Chain(ChainError::Fork { .. }) => hint(
                "the space is frozen here: ask the owner which head is the right one; `sluice resolve SPACE` shows both, and `--fork HEAD` goes on from one",
            ),
            NewsError::SetAside(_) => hint(
                "ask the owner which head is the right one; `sluice resolve SPACE` shows the branches, and `--fork HEAD` takes another one",
            ),
            NewsError::Chain(_) | NewsError::Grants(_) => {
                hint("ask the owner: the source was set back to an older state, or somebody rewrites its history")
            }
            _ => None,
        }
    }
}

impl Explain for SyncError {
    fn failure(&self) -> Failure {
        match self {
            SyncError::Manifest(_) | SyncError::Frozen(_) | SyncError::Corrupt { .. } => Failure::Verification,
            SyncError::Stopped | SyncError::Worker(_) => Failure::Incomplete,
            SyncError::Gone { .. } | SyncError::NoRoom { .. } => Failure::Incomplete,
            SyncError::NothingGranted => Failure::Error,
            SyncError::Fetch(e) => e.failure(),
            SyncError::Staging(e) => e.failure(),
            SyncError::News(e) => e.failure(),
            SyncError::Catalog(e) => e.failure(),
            SyncError::Unreachable(_)
            | SyncError::Late { .. }
            | SyncError::Refused { .. }
            | SyncError::Confused { .. } => Failure::Error,
            SyncError::Lane(_) | SyncError::Lake(_) => Failure::Error,
        }
    }
    fn hint(&self) -> Option<String> {
        match self {
            SyncError::Unreachable(_) | SyncError::Late { .. } => {
                hint("check that the other site runs and that its UDP port is open from here")
            }
            SyncError::Refused { code, .. } => refusal_hint(*code),
            SyncError::Frozen(_) => hint(
                "`sluice resolve SPACE` shows the branches of its history, and `--fork HEAD` goes on from one of them",
            ),
            SyncError::Corrupt { .. } => {
                hint("nothing wrong was kept; check the other site's disk with `sluice verify --deep` there")
            }
            SyncError::Gone { .. } => hint(
                "the source changed since that snapshot and keeps only its newest ones: run `sluice snapshot` there, then `sluice sync` here; what arrived is kept",
            ),
            SyncError::NoRoom { .. } => hint(DISK_FULL),
            SyncError::NothingGranted => hint("ask the owner which sections the ticket was for"),
            SyncError::Stopped => hint("run `sluice sync` again: it goes on where it was"),
            SyncError::Fetch(e) => Explain::hint(e),
            SyncError::Staging(e) => Explain::hint(e),
            SyncError::News(e) => Explain::hint(e),
            SyncError::Catalog(e) => Explain::hint(e),
            SyncError::Lane(e) => Explain::hint(e),
            SyncError::Lake(e) => Explain::hint(e),
            _ => None,
        }
    }
}

/// What to do about a refusal with this code.
pub fn refusal_hint(code: u32) -> Option<String> {
    match code {
        REFUSED_TICKET => hint("ask for a new ticket: `sluice invite SPACE --read` on the owner's site"),
        REFUSED_EXPIRED => hint("ask for a new ticket; they live ten minutes unless `--expires` says otherwise"),
        REFUSED_USED => {
            hint("a ticket admits one site: ask for one of your own, and tell the owner if you did not expect this")
        }
        REFUSED_GRANT => hint("the grant ended or was taken back: ask the owner for a new ticket"),
        REFUSED_LATER => hint("try again in a while"),
        REFUSED_NO_HEAD => hint("run `sluice snapshot` on the owner's site first"),
        _ => None,
    }
}
