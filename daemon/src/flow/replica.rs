//! The replica's half: from the newest head to a version that is live.
//!
//! Invariant: nothing is published that was not verified, and what a failed source brought stays.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_protocol::annex::ChunkListRef;
use sluice_protocol::api::{ApiError, Failure};
use sluice_protocol::chunks::ChunkList;
use sluice_protocol::head::Head;
use sluice_protocol::ids::{BlobHash, HeadId, SiteId, SpaceId};
use sluice_protocol::manifest::{Manifest, Section, in_turn};
use sluice_protocol::plan::Plan;
use sluice_protocol::signed::Signed;
use sluice_store::catalog::{CatalogError, LiveRecord, Lookup, SiteLookup, SnapshotRecord, SpaceRecord};
use sluice_store::lake::{Lake, Place};
use sluice_store::publish::{self, PublishOptions, Published, Standing};
use sluice_store::staging::Staging;
use sluice_store::verify::{Received, Verified, verify};
use sluice_store::watch::Watch;

use super::{keep_deed, off_reactor};
use crate::errors::OrExplain;
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
        direct_io: site.config.publish.direct_io,
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
