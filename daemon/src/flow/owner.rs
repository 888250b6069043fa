//! The owner's half: from the files of a lake to a signed head.
//!
//! Invariant: a head is signed only for a snapshot that was read whole, whose losses were refused or agreed to.

use std::time::Instant;

use sluice_protocol::api::ApiError;
use sluice_protocol::codec::Document;
use sluice_protocol::head::Head;
use sluice_protocol::ids::SpaceId;
use sluice_protocol::limits::HEAD_LIFE_MS;
use sluice_protocol::manifest::{History, Manifest};
use sluice_protocol::signed::Signed;
use sluice_store::catalog::{CatalogError, Lookup, SiteLookup, SnapshotRecord, SpaceRecord};
use sluice_store::chunk::{Chunks, Lost, chunk};
use sluice_store::deed;
use sluice_store::lake::Lake;
use sluice_store::pins::{self, PinOptions, PinReport};
use sluice_store::scan::{Previous, ScanOptions, scan};
use sluice_store::snapshot::{self, Snapshot};
use sluice_store::watch::Watch;

use crate::clock::now_ms;
use crate::config::Config;
use crate::errors::OrExplain;
use crate::follow;
use crate::jobs::Job;
use crate::journal;
use crate::site::Site;

/// How often a table that moves on while it is read is captured.
const CAPTURES_MAX: u32 = 3;

/// A snapshot that was taken, and the head that points at it.
pub struct Taken {
    pub snapshot: Snapshot,
    pub head: Signed<Head>,
    /// Whether it differs from the one before.
    pub changed: bool,
    /// Whether a new head was signed for it.
    pub signed: bool,
    pub seconds: f64,
}

/// The owner's half: makes a snapshot of what lies in the lake now. Blocks.
///
/// `raise` begins a new epoch: this site was set back, and goes on from what its peers had seen.
pub fn take_snapshot(
    site: &Site,
    space: &SpaceId,
    record: &SpaceRecord,
    tag: Option<String>,
    raise: bool,
    job: &Job,
) -> Result<Taken, ApiError> {
    let started = Instant::now();
    let lake = site.lake_of(record)?;
    let before = site.catalog.read().or_explain()?.newest_head(space, &site.id).or_explain()?;

    let options = scan_options(&site.config, record, before.as_deref());
    let chunks = read_lake(site, space, &lake, &options, job)?;
    if job.is_automatic()
        && let Some(before) = &before
        && let Err(refused) = refuse_losses(site, space, record, before, &chunks)
    {
        // The next round need not read it all again.
        chunks.give_up(&lake, space, &site.catalog).or_explain()?;
        return Err(refused);
    }
    job.stage("manifest");
    let snapshot = snapshot::manifest(&lake, space, &site.catalog, chunks, job).or_explain()?;
    job.stage("sign");
    let known = before.as_ref().map(Signed::<Head>::id);
    let (head, changed) = sign(site, space, &snapshot, before, tag, raise)?;
    let signed = known != Some(head.id());
    job.stage("pin");
    if changed {
        keep(site, &lake, space, &snapshot, job);
    }
    keep_deed(site, space, record);

    Ok(Taken { snapshot, head, changed, signed, seconds: started.elapsed().as_secs_f64() })
}

/// Scans and reads the lake. A table that moves on meanwhile is captured again, a few times; after
/// that its last good version stands in for it.
fn read_lake(site: &Site, space: &SpaceId, lake: &Lake, options: &ScanOptions, job: &Job) -> Result<Chunks, ApiError> {
    let mut tries = 1;
    let mut earlier = Lost::default();
    loop {
        job.stage("scan");
        let entries = scan(lake, space, &site.catalog, options, &site.readers, job).or_explain()?;
        job.stage("chunk");
        let chunks = chunk(lake, space, &site.catalog, entries, job).or_explain()?.after(earlier);
        if !chunks.moved_on() || tries >= CAPTURES_MAX || job.cancelled() {
            return Ok(chunks);
        }
        earlier = chunks.give_up(lake, space, &site.catalog).or_explain()?;
        std::thread::sleep(options.retry_wait);
        tries += 1;
    }
}

/// What nobody asked for must not take from every copy what is only out of sight: a lake that is
/// empty all at once (an empty mount point), a mount within it that is gone, a table that is being
/// written, a file that cannot be read.
fn refuse_losses(
    site: &Site,
    space: &SpaceId,
    record: &SpaceRecord,
    before: &Head,
    chunks: &Chunks,
) -> Result<(), ApiError> {
    let raw = site.catalog.read().or_explain()?.meta(space, &before.manifest.into()).or_explain()?;
    let Some(before) = raw.and_then(|bytes| Manifest::from_bytes(&bytes).ok()) else { return Ok(()) };
    let now = &chunks.entries;
    if before.entries() > 0 && now.sections.iter().all(|s| s.items.is_empty()) {
        return Err(follow::refuse_emptied(&record.name));
    }
    for table in before.sections.iter().filter(|s| s.kind.is_table()) {
        let here = now.sections.iter().any(|s| s.path == table.path);
        if let Some(skip) = now.skipped.iter().find(|k| !here && k.path == table.name()) {
            return Err(follow::refuse_lost_table(table.name(), &skip.reason));
        }
    }
    if let Some(skip) = chunks.missing.first() {
        return Err(follow::refuse_missing(&record.name, &skip.path, &skip.reason));
    }
    match chunks.unmounted(space, &site.catalog).or_explain()? {
        Some(path) => Err(follow::refuse_unmounted(&record.name, path.as_str())),
        None => Ok(()),
    }
}

/// How a lake is scanned.
pub fn scan_options(config: &Config, record: &SpaceRecord, before: Option<&Head>) -> ScanOptions {
    ScanOptions {
        history: record.history.unwrap_or(History::All),
        opaque: record.opaque,
        opaque_folders: config.scan.opaque.iter().cloned().collect(),
        sections: config.scan.sections.clone(),
        previous: before.map(|h| Previous { snapshot: h.manifest, annex: h.annex }),
        ..ScanOptions::default()
    }
}

/// Signs a head for a snapshot, unless the newest head says the same and is young enough.
fn sign(
    site: &Site,
    space: &SpaceId,
    snapshot: &Snapshot,
    before: Option<Signed<Head>>,
    tag: Option<String>,
    raise: bool,
) -> Result<(Signed<Head>, bool), ApiError> {
    let now = now_ms();
    let changed = before.as_ref().is_none_or(|h| h.manifest != snapshot.id);
    if let Some(before) = &before {
        let young = now < before.time_ms.saturating_add(HEAD_LIFE_MS / 2);
        if !changed && young && tag.is_none() && !raise && before.annex == snapshot.annex_hash {
            return Ok((before.clone(), false));
        }
    }
    let stored = site.catalog.write(|b| -> Result<_, CatalogError> {
        // A renewal may have been signed while the lake was read.
        let before = b.newest_head(space, &site.id)?;
        let grants = b.grants(space)?.ok_or_else(|| CatalogError::Store("the space has no grant set".into()))?;
        let head = Signed::sign(
            &site.key,
            Head {
                space: *space,
                writer: site.id,
                epoch: before.as_ref().map_or(0, |h| h.epoch + u64::from(raise)),
                seq: before.as_ref().map_or(0, |h| h.seq + 1),
                manifest: snapshot.id,
                annex: snapshot.annex_hash,
                grants: b.put_meta(space, grants.bytes())?,
                prev: before.as_ref().map(Signed::<Head>::id),
                time_ms: now,
                not_after_ms: now.saturating_add(HEAD_LIFE_MS),
                tag,
                untag: None,
                unknown: Default::default(),
            },
        );
        b.put_head(&head)?;
        b.put_snapshot(
            space,
            &snapshot.id,
            &SnapshotRecord {
                head: head.id(),
                files: snapshot.manifest.entries(),
                bytes: snapshot.stats.bytes,
                skipped: snapshot.skipped.iter().flat_map(|s| [s.path.clone(), s.reason.clone()]).collect(),
                unknown: Default::default(),
            },
        )?;
        journal::write(b, "snapshot", Some(*space), None, &format!("{} (seq {})", snapshot.id, head.seq))?;
        Ok(head)
    });
    Ok((stored.or_explain()?, changed))
}

/// Leaves in the lake what makes a lost catalog again. It is a spare: that it cannot be written stops nothing.
pub fn keep_deed(site: &Site, space: &SpaceId, record: &SpaceRecord) {
    let kept = site.lake_of(record).and_then(|lake| deed::keep(&lake, &site.catalog, site.id, space).or_explain());
    if let Err(e) = kept {
        tracing::warn!(space = %record.name, error = %e, "the deed of the space could not be written into its lake");
    }
}

/// Pins what the snapshot needs where the file system can; a lake without pins is still shared.
fn keep(site: &Site, lake: &Lake, space: &SpaceId, snapshot: &Snapshot, job: &Job) {
    let options = PinOptions { copy: site.config.pins.copy };
    match pins::pin(lake, space, &site.catalog, &snapshot.manifest, options, job) {
        Ok(PinReport { unavailable: Some(why), .. }) => job.note(format!("old versions are not kept: {why}")),
        Ok(pinned) => {
            if pinned.unpinned > 0 {
                job.note(format!(
                    "{} files ({} bytes) are not pinned: once they change, this snapshot's bytes of them are gone",
                    pinned.unpinned, pinned.unpinned_bytes
                ));
            }
        }
        Err(e) => job.note(format!("old versions may not be kept: {e}")),
    }
}
