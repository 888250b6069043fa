//! The journal: what was paired, granted, published, refused and removed, as a chain of records.
//!
//! Invariant: no secret and no content is written here.

use sluice_protocol::ids::{SiteId, SpaceId};
use sluice_store::catalog::{Batch, CatalogError, JournalRecord};

use crate::clock::now_ms;

/// Appends one event to the journal, inside the change that it reports.
pub fn write(
    b: &mut Batch,
    what: &str,
    space: Option<SpaceId>,
    site: Option<SiteId>,
    text: &str,
) -> Result<(), CatalogError> {
    b.log(JournalRecord {
        time_ms: now_ms(),
        what: what.to_string(),
        space,
        site,
        text: text.to_string(),
        prev: [0; 32],
        unknown: Default::default(),
    })
}
