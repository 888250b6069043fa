//! The whole journey of the data, in order. Read this first.
//!
//! ```text
//! owner:    scan → Entries → chunk → Chunks → manifest → Snapshot → sign → Head
//! replica:  look → Standing → ask → Head → describe → Manifest → plan → Plan → transfer → Received
//!                 → verify → Verified → publish → Published
//! ```
//!
//! Each arrow is one function of one module, and the types between them say what has been done:
//! only `verify` can make a `Verified`, and `publish` takes nothing else. `plan` is pure.
//!
//! Invariant: a journey that is cut anywhere leaves what was live as it was, and the next one goes
//! on from what is durable.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_protocol::annex::ChunkListRef;
use sluice_protocol::api::{ApiError, Failure};
use sluice_protocol::chunks::ChunkList;
use sluice_protocol::codec::Document;
use sluice_protocol::head::Head;
use sluice_protocol::ids::{BlobHash, HeadId, SiteId, SpaceId};
use sluice_protocol::limits::HEAD_LIFE_MS;
use sluice_protocol::manifest::{History, Manifest, Section, in_turn};
use sluice_protocol::plan::Plan;
use sluice_protocol::signed::Signed;
use sluice_store::catalog::{CatalogError, LiveRecord, Lookup, SiteLookup, SnapshotRecord, SpaceRecord};
use sluice_store::chunk::{Chunks, Lost, chunk};
use sluice_store::deed;
use sluice_store::lake::{Lake, Place};
use sluice_store::pins::{self, PinOptions, PinReport};
use sluice_store::publish::{self, PublishOptions, Published, Standing};
use sluice_store::scan::{Previous, ScanOptions, scan};
use sluice_store::snapshot::{self, Snapshot};
use sluice_store::staging::Staging;
use sluice_store::verify::{Received, Verified, verify};
use sluice_store::watch::Watch;

use crate::clock::now_ms;
use crate::config::Config;
use crate::errors::OrExplain;
use crate::follow;
use crate::holdings::SpaceHoldings;
use crate::jobs::Job;
use crate::journal;
use crate::site::Site;
use crate::sync::metadata::Metadata;
use crate::sync::source::Source;
use crate::sync::survey::{Before, Survey, chosen, published as published_sections, reachable};
use crate::sync::transfer::{REUSED_TOTAL, Transfer};
use crate::sync::turns::{Answered, Turns};
use crate::sync::{SyncError, ask, blocking, recruit, survey};

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

/// A version as it is known before its bytes are: head, manifest, chunk lists, and the plan.
pub struct Described {
    pub head: Signed<Head>,
    pub manifest: Manifest,
    /// The sections to take, by name; empty for all.
    pub sections: Vec<String>,
    /// Chunk lists that arrived with the description.
    pub lists: Vec<ChunkListRef>,
    pub plan: Plan,
    /// What `rsync -a` would have moved, in bytes.
    pub rsync_bytes: u64,
    /// How what is published was found.
    pub standing: Standing,
    source: Arc<Source>,
    /// Damaged files with good parts, by the blob that they were.
    salvage: Arc<HashMap<BlobHash, Place>>,
}

impl Described {
    /// The site that it comes from.
    pub fn from_site(&self) -> SiteId {
        self.source.peer().site()
    }
}

/// The replica's half up to the plan: what is new, and how each byte would come.
pub async fn describe(
    site: &Site,
    space: &SpaceId,
    record: &SpaceRecord,
    job: &Arc<Job>,
) -> Result<Described, ApiError> {
    describe_in_turn(site, space, record, job, &mut Turns::new(site, space, record, None)).await
}

/// The same from the first source whose turn it is and that gives what describes the version.
async fn describe_in_turn(
    site: &Site,
    space: &SpaceId,
    record: &SpaceRecord,
    job: &Arc<Job>,
    turns: &mut Turns<'_>,
) -> Result<Described, ApiError> {
    job.stage("look");
    let standing = look(site, space, record).await?;
    loop {
        job.stage("ask");
        let (source, newest) = turns.next(&**job).await.or_explain()?;
        let head = match &record.held {
            None => newest,
            Some(id) => held_head(site, space, record, id)?,
        };
        match describe_from(site, space, record, (source.clone(), head, standing.clone()), job).await {
            Ok(described) => return Ok(described),
            Err(e) => turns.failed(&source, e).or_explain()?,
        }
    }
}

async fn describe_from(
    site: &Site,
    space: &SpaceId,
    record: &SpaceRecord,
    (source, head, standing): (Arc<Source>, Signed<Head>, Standing),
    job: &Arc<Job>,
) -> Result<Described, SyncError> {
    job.stage("describe");
    let metadata = Metadata { catalog: &site.catalog, space: *space, source: &source };
    let (manifest, annex) = metadata.roots(&head).await?;
    for lost in &standing.unread {
        job.note(format!("the list of files of `{}` cannot be read here any more: it is fetched again", lost.section));
    }
    if let Err(e) = metadata.again(&standing.unread).await {
        job.note(format!("a list of files could not be fetched again: {e}"));
    }
    let sections = wanted_sections(site, space, record, &manifest)?;
    let before = published_sections(&site.catalog.read()?, space)?;
    // What is live with the same tree was read when it was published.
    let same = |s: &Section| before.iter().any(|b| b.section.tree == s.tree);
    let mut taken = taken(&manifest, &sections, standing.live.as_ref());
    in_turn(&mut taken, &record.sections);
    let trees: Vec<_> = taken.iter().filter(|s| s.shallow || !same(s)).map(|s| s.tree.clone()).collect();
    metadata.pages(&trees).await?;

    job.stage("plan");
    let lake = Lake::open(Path::new(&record.lake))?;
    let taken = taken.into_iter().cloned().collect();
    let survey = compare(site, space, before, taken).await?;
    let salvage = Arc::new(survey.salvage());
    let wanted = survey.worth_lists(&site.catalog.read()?, space);
    let lists = metadata.chunk_lists(&annex, &wanted).await?;
    let (plan, rsync_bytes) = plan(site, space, lake, survey, &lists).await?;
    Ok(Described { head, manifest, sections, lists, plan, rsync_bytes, standing, source, salvage })
}

/// The head of the version that a replica is held at.
fn held_head(site: &Site, space: &SpaceId, record: &SpaceRecord, id: &HeadId) -> Result<Signed<Head>, ApiError> {
    let reader = site.catalog.read().or_explain()?;
    ask::head_by_id(&reader, space, &record.owner, id).or_explain()?.ok_or_else(|| {
        ApiError::new(
            Failure::Error,
            format!("the version that `{}` is held at is not known any more", record.name),
            format!("follow the newest again with `sluice sync {} --at newest`", record.name),
        )
    })
}

/// Looks whether everything published is still there and as it was.
pub async fn look(site: &Site, space: &SpaceId, record: &SpaceRecord) -> Result<Standing, ApiError> {
    let (site, space, record) = (site.clone(), *space, record.clone());
    off_reactor(move || {
        let lake = site.lake_of(&record)?;
        publish::look_over(&lake, &site.catalog, &space).or_explain()
    })
    .await
}

/// The chosen sections of a manifest but those whose place a changed one keeps.
fn taken<'m>(manifest: &'m Manifest, sections: &[String], live: Option<&LiveRecord>) -> Vec<&'m Section> {
    let all = chosen(manifest, sections).into_iter();
    all.filter(|s| live.is_none_or(|l| l.holds_back(s).is_none())).collect()
}

/// The sections that this replica asked for and may have.
fn wanted_sections(
    site: &Site,
    space: &SpaceId,
    record: &SpaceRecord,
    manifest: &Manifest,
) -> Result<Vec<String>, SyncError> {
    let grants = site.catalog.read()?.grants(space)?;
    let granted = grants.as_ref().and_then(|g| g.of(site.id)).map(|g| g.sections.clone()).unwrap_or_default();
    reachable(manifest, &record.sections, &granted)
}

/// The plan, and what rsync would have moved. Pure but for reading the catalog.
async fn plan(
    site: &Site,
    space: &SpaceId,
    lake: Lake,
    survey: Survey,
    lists: &[ChunkListRef],
) -> Result<(Plan, u64), SyncError> {
    let (site, space) = (site.clone(), *space);
    let lists: HashMap<BlobHash, BlobHash> = lists.iter().map(|l| (l.blob, l.list)).collect();
    blocking(move || {
        let reader = site.catalog.read()?;
        let here = SpaceHoldings::new(&reader, space, &lake);
        let read = |list: &BlobHash| {
            let bytes = reader.meta(&space, list).ok().flatten()?;
            ChunkList::from_bytes(&bytes).ok()
        };
        let new_list = |blob: &BlobHash| lists.get(blob).and_then(&read);
        let old_list = |blob: &BlobHash| read(&reader.blob(&space, blob).ok()??.list?);
        let plan = survey.plan(&here, &new_list);
        Ok((plan, survey.rsync_bytes(&old_list, &new_list)))
    })
    .await
}

async fn compare(site: &Site, space: &SpaceId, before: Vec<Before>, taken: Vec<Section>) -> Result<Survey, SyncError> {
    let (site, space) = (site.clone(), *space);
    blocking(move || {
        let reader = site.catalog.read()?;
        let taken: Vec<&Section> = taken.iter().collect();
        Survey::take(&reader, &space, &before, &taken)
    })
    .await
}

/// A version that arrived and is live.
pub struct Arrived {
    pub described: Described,
    pub published: Published,
    pub unproven: Vec<String>,
    /// Bytes received for it, proofs and metadata included.
    pub moved_bytes: u64,
    pub seconds: f64,
}

/// The replica's half: brings the newest version here and makes it live; from `first`, if it was asked just now.
pub async fn receive(
    site: &Site,
    space: &SpaceId,
    record: &SpaceRecord,
    first: Option<Answered>,
    job: &Arc<Job>,
) -> Result<Arrived, ApiError> {
    let started = Instant::now();
    let shown_again = recover(site, space, record).await?;
    let lake = site.lake_of(record)?;
    let mut turns = Turns::new(site, space, record, first);
    let (mut described, received) = loop {
        let mut described = describe_in_turn(site, space, record, job, &mut turns).await?;
        job.stage("transfer");
        match transfer(site, (space, record), &lake, &mut described, &mut turns, job).await {
            Ok(received) => break (described, received),
            Err(e) => turns.failed(&described.source, in_words(site, space, &described, e)).or_explain()?,
        }
    };
    described.standing.to_mend += shown_again;
    let moved_bytes = turns.came_from(&described.source);
    job.stage("verify");
    let verified = verified(site, &lake, received, job).await?;
    refuse_frozen(site, space)?;
    let unproven = verified.unproven();
    job.stage("publish");
    let published = published(site, &lake, verified, &described, job).await?;

    Ok(Arrived { moved_bytes, described, published, unproven, seconds: started.elapsed().as_secs_f64() })
}

/// A fork may have been found while the bytes came.
fn refuse_frozen(site: &Site, space: &SpaceId) -> Result<(), ApiError> {
    let record = site.catalog.read().or_explain()?.space(space).or_explain()?;
    match record.and_then(|r| r.frozen) {
        Some(why) => Err(SyncError::Frozen(why)).or_explain(),
        None => Ok(()),
    }
}

/// Brings catalog and live link together again after a kill, and makes names again that are missing at the
/// lake's top; returns how many of these were removed here.
pub async fn recover(site: &Site, space: &SpaceId, record: &SpaceRecord) -> Result<u64, ApiError> {
    let (site, space, record) = (site.clone(), *space, record.clone());
    off_reactor(move || {
        let lake = site.lake_of(&record)?;
        let recovered = publish::recover(&lake, &site.catalog, &space).or_explain()?;
        Staging::open(&lake, space, &site.catalog).and_then(|staging| staging.adopt()).or_explain()?;
        if let Some(generation) = recovered.switched {
            tracing::info!(generation, "an interrupted publication was finished");
            return Ok(0);
        }
        Ok(recovered.shown)
    })
    .await
}

/// Brings the blobs of the plan. They are taken out of it: afterwards only its totals are of use, and of a
/// million small files they are 128 MB.
async fn transfer(
    site: &Site,
    (space, record): (&SpaceId, &SpaceRecord),
    lake: &Lake,
    described: &mut Described,
    turns: &mut Turns<'_>,
    job: &Arc<Job>,
) -> Result<Received, SyncError> {
    let transfer = Transfer {
        catalog: site.catalog.clone(),
        lake: lake.clone(),
        space: *space,
        source: described.source.clone(),
        watch: job.clone(),
        streams: site.config.limits.streams(),
        shares: site.shares.clone(),
        salvage: described.salvage.clone(),
    };
    let had_turns: Vec<SiteId> = turns.over().iter().copied().chain([described.from_site()]).collect();
    let others = recruit::others(site, space, record, &had_turns, described.plan.fetch_bytes())?;
    let brought = transfer.run(std::mem::take(&mut described.plan.blobs), others).await;
    turns.helped(brought.helpers);
    if let Some(e) = &brought.first {
        turns.replaced(&described.source, e);
    }
    brought.outcome?;
    transfer.remember_lists(described.lists.clone()).await?;
    Ok(Received { space: *space, head: described.head.clone(), sections: described.sections.clone() })
}

/// Names the file of the first blob that the source no longer has.
fn in_words(site: &Site, space: &SpaceId, described: &Described, e: SyncError) -> SyncError {
    let SyncError::Gone { count, first, .. } = e else { return e };
    let find = || -> Option<String> {
        let reader = site.catalog.read().ok()?;
        for section in &described.manifest.sections {
            let mut found = None;
            survey::each_entry(&reader, space, &section.tree, &mut |entry| {
                found = found.take().or((entry.hash == Some(first)).then_some(entry.path));
                Ok(())
            })
            .ok()?;
            if let Some(path) = found {
                return Some(format!("`{}`", section.lake_path(&path).ok()?));
            }
        }
        None
    };
    let what = find().map_or_else(|| format!("blob {first}"), |path| format!("{path} (blob {first})"));
    SyncError::Gone { count, first, what, version: described.head.manifest.short() }
}

async fn verified(site: &Site, lake: &Lake, received: Received, job: &Arc<Job>) -> Result<Verified, ApiError> {
    let (site, lake, job) = (site.clone(), lake.clone(), job.clone());
    off_reactor(move || verify(&lake, &site.catalog, received, &site.readers, &*job).or_explain()).await
}

async fn published(
    site: &Site,
    lake: &Lake,
    verified: Verified,
    described: &Described,
    job: &Arc<Job>,
) -> Result<Published, ApiError> {
    let reused = described.plan.reused_bytes();
    let (files, bytes) = (described.manifest.entries(), described.manifest.bytes());
    let head = described.head.clone();
    let (site, lake, job) = (site.clone(), lake.clone(), job.clone());
    off_reactor(move || {
        let space = verified.space();
        let options = PublishOptions {
            keep_generations: site.config.publish.keep_generations,
            readers_grace: Duration::from_secs(site.config.publish.readers_grace_s),
        };
        let published = publish::publish(&lake, &site.catalog, &verified, options, &*job).or_explain()?;
        let counted: Result<(), CatalogError> = site.catalog.write(|b| {
            b.add_counter(REUSED_TOTAL, reused)?;
            b.put_snapshot(
                &space,
                &head.manifest,
                &SnapshotRecord { head: head.id(), files, bytes, skipped: vec![], unknown: Default::default() },
            )?;
            journal::write(b, "published", Some(space), None, &format!("{} (seq {})", head.manifest, head.seq))
        });
        counted.or_explain()?;
        // What an older, overtaken version had left in staging is wanted no more.
        let swept = Staging::open(&lake, space, &site.catalog).and_then(|staging| staging.sweep(&|_| false));
        if let Err(e) = swept {
            job.note(format!("what is left in staging stays for now: {e}"));
        }
        if let Ok(Some(record)) = site.catalog.read().and_then(|r| r.space(&space)) {
            keep_deed(&site, &space, &record);
        }
        Ok(published)
    })
    .await
}

/// Runs blocking work off the executor.
pub async fn off_reactor<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(e) => Err(ApiError::plain(Failure::Incomplete, format!("a worker failed: {e}"))),
    }
}
