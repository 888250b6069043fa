//! The replica's half of the journey: ask, fetch what describes the version, plan, transfer.
//!
//! `flow` joins these steps with verification and publishing. Invariant: nothing here makes anything
//! visible, and every step may be killed and begun again without losing what is durable.

pub mod ask;
mod crew;
pub mod faults;
pub mod metadata;
pub mod recruit;
pub mod shares;
pub mod source;
pub mod survey;
pub mod transfer;
pub mod turns;
mod work;

use sluice_protocol::codec::CodecError;
use sluice_protocol::ids::{BlobHash, SiteId};
use sluice_store::catalog::CatalogError;
use sluice_store::lake::LakeError;
use sluice_store::staging::StagingError;

use crate::lanes::{FetchError, LaneError};
use crate::news::NewsError;

/// Why a version did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error("the manifest is refused: {0}")]
    Manifest(String),
    #[error("the space is frozen: {0}")]
    Frozen(String),
    #[error("no site that holds the space can be reached: {0}")]
    Unreachable(String),
    #[error("site {} refused: {text}", site.short())]
    Refused { site: SiteId, code: u32, text: String },
    #[error("site {} did not answer within {seconds} s", site.short())]
    Late { site: SiteId, seconds: u64 },
    #[error("site {} answered something that makes no sense here", site.short())]
    Confused { site: SiteId },
    #[error("site {} sent {count} corrupt pieces and is not asked any more; the last: {last}", site.short())]
    Corrupt { site: SiteId, count: u32, last: String },
    #[error("the source no longer has {count} of the files of version {version}, the first: {what}")]
    Gone { count: usize, first: BlobHash, what: String, version: String },
    #[error("the disk of the lake is too full: {needed} bytes are needed and {free} are free")]
    NoRoom { free: u64, needed: u64 },
    #[error("no grant reaches any section that was asked for")]
    NothingGranted,
    #[error("the work was stopped")]
    Stopped,
    #[error("a worker failed: {0}")]
    Worker(String),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Lane(#[from] LaneError),
    #[error(transparent)]
    News(#[from] NewsError),
    #[error(transparent)]
    Staging(#[from] StagingError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Lake(#[from] LakeError),
}

impl SyncError {
    /// Whether another source may well bring what this one did not.
    pub fn is_fault_of_source(&self) -> bool {
        match self {
            SyncError::Fetch(e) => e.is_fault_of_peer(),
            SyncError::Corrupt { .. } | SyncError::Gone { .. } => true,
            _ => false,
        }
    }

    /// Whether the source sent too little, and nothing wrong.
    pub fn is_lag(&self) -> bool {
        matches!(self, SyncError::Fetch(FetchError::Stalled { .. } | FetchError::Slow { .. }))
    }

    /// A manifest that breaks a rule.
    pub fn manifest(e: CodecError) -> Self {
        SyncError::Manifest(e.to_string())
    }
}

/// Runs blocking work off the executor; a panic there becomes an error here.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SyncError> + Send + 'static,
) -> Result<T, SyncError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| SyncError::Worker(e.to_string()))?
}
