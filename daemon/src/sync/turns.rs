//! Whose turn it is: the sources of one sync, one after the other.
//!
//! Invariant: a source that failed is not asked again in the same sync; what it brought, proven, stays.
//! A failure that is ours is no source's, and ends the sync.

use std::sync::Arc;

use sluice_protocol::head::Head;
use sluice_protocol::ids::{SiteId, SpaceId};
use sluice_protocol::signed::Signed;
use sluice_store::catalog::SpaceRecord;
use sluice_store::watch::Watch;

use super::ask::Asking;
use super::source::Source;
use super::{SyncError, ask};
use crate::site::Site;

/// A source that answered, and the newest head that it knows.
pub type Answered = (Arc<Source>, Signed<Head>);

/// The turns of one sync.
pub struct Turns<'a> {
    site: &'a Site,
    space: &'a SpaceId,
    record: &'a SpaceRecord,
    /// One that has answered already.
    first: Option<Answered>,
    failed: Vec<SiteId>,
    /// Those of them that were only too slow for one among others.
    lagged: Vec<SiteId>,
    /// Nobody else came: who is left may take its time.
    patient: bool,
    /// Why the last source failed.
    last: Option<SyncError>,
    /// Bytes that came from those that failed.
    moved: u64,
}

impl<'a> Turns<'a> {
    /// With `first`, which was asked just now, or nobody who was asked yet.
    pub fn new(site: &'a Site, space: &'a SpaceId, record: &'a SpaceRecord, first: Option<Answered>) -> Self {
        Self {
            site,
            space,
            record,
            first,
            failed: Vec::new(),
            lagged: Vec::new(),
            patient: false,
            last: None,
            moved: 0,
        }
    }

    /// The next source that answers, and the newest head that it knows. When there is none any more, why
    /// the last one failed.
    pub async fn next(&mut self, watch: &dyn Watch) -> Result<Answered, SyncError> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let mut asked = self.ask(watch).await;
        if asked.is_err() && !self.patient && !self.lagged.is_empty() {
            // A slow source is better than none: it had to hurry for the sake of others, and there are none.
            self.patient = true;
            let lagged = std::mem::take(&mut self.lagged);
            self.failed.retain(|site| !lagged.contains(site));
            asked = self.ask(watch).await;
        }
        match (asked, self.last.take()) {
            (Ok(next), Some(last)) => {
                watch.note(format!("{last}; site {} is asked instead", next.0.peer().site().short()));
                Ok(next)
            }
            (Err(e), Some(last)) if !ask::is_fork(&e) => Err(last),
            (asked, _) => asked,
        }
    }

    async fn ask(&self, watch: &dyn Watch) -> Result<Answered, SyncError> {
        let asking = Asking { except: &self.failed, patient: self.patient };
        ask::newest(self.site, self.space, self.record, watch, asking).await
    }

    /// A source failed; the error comes back where no other source would help.
    pub fn failed(&mut self, source: &Source, e: SyncError) -> Result<(), SyncError> {
        let from = source.peer().site();
        if !e.is_fault_of_source() {
            return Err(e);
        }
        let rests_s = self.left(source, &e);
        tracing::warn!(space = %self.record.name, site = %from.short(), error = %e, rests_s, "a source failed");
        self.moved += source.moved_bytes();
        self.last = Some(e);
        Ok(())
    }

    /// Further sources took part in a transfer: what they brought counts, and those that failed rest.
    pub fn helped(&mut self, helpers: Vec<(Arc<Source>, Option<SyncError>)>) {
        for (source, failure) in helpers {
            let from = source.peer().site();
            self.moved += source.moved_bytes();
            let Some(e) = failure else { continue };
            self.left(&source, &e);
            tracing::warn!(space = %self.record.name, site = %from.short(), error = %e, "a helping source failed");
        }
    }

    /// The first source failed, and others did its work.
    pub fn replaced(&mut self, source: &Source, e: &SyncError) {
        let from = source.peer().site();
        self.left(source, e);
        tracing::warn!(space = %self.record.name, site = %from.short(), error = %e, "a source failed; others did its work");
    }

    /// Sites that are not to be asked again in this sync.
    pub fn over(&self) -> &[SiteId] {
        &self.failed
    }

    /// A source is left: it rests, unless it is the owner. Returns for how long, in seconds.
    fn left(&mut self, source: &Source, e: &SyncError) -> u64 {
        let from = source.peer().site();
        self.failed.push(from);
        if source.peer().is_hurried() && e.is_lag() {
            self.lagged.push(from);
        }
        if from == self.record.owner { 0 } else { self.site.faults.blame(self.space, &from).as_secs() }
    }

    /// A source brought the whole version. Returns the bytes that came, from it and from those before it.
    pub fn came_from(&self, source: &Source) -> u64 {
        let from = source.peer().site();
        if !self.failed.contains(&from) {
            self.site.faults.praise(self.space, &from);
        }
        self.moved + source.moved_bytes()
    }
}
