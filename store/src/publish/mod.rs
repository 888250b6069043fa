//! A verified version becomes the live lake.
//!
//! Layout below `.sluice`: `sections/<number>/` holds the files of one section version;
//! `generations/N/` is one version of the lake as links into sections; `live` points at one
//! generation. What users see, `<lake>/<name>`, are stable links through `live`.
//!
//! Order: the intent is recorded; files are placed (a growing table stage by stage) and made
//! durable; the generation is built and made durable; one commit makes the version live in the
//! catalog; one rename of `live` makes it visible; visible names follow; deletions come last.
//!
//! Invariant: readers see the version before or this one, never half. Stopped anywhere, a second run
//! finishes, and until then the version before stays whole. A local change is never overwritten.

mod aside;
mod cleanup;
mod commit;
mod fill;
mod generation;
mod hands;
mod intent;
mod look;
mod old;
mod place;
mod plan;
mod recover;
mod resolve;
mod strays;
mod sweep;
mod target;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use sluice_protocol::ids::{BlobHash, SnapshotId, SpaceId};
use sluice_protocol::manifest::Section;
use sluice_protocol::path::{LakePath, PathError};

use crate::blobs::BlobError;
use crate::catalog::{Batch, Catalog, CatalogError, LiveRecord, LiveSection, Lookup};
use crate::durable::Folder;
use crate::lake::{Lake, LakeError};
use crate::verify::{LinkError, Verified};
use crate::watch::Watch;
use hands::Hands;
use intent::{Intent, IntentSection, Spoiled};
use plan::{Plan, SectionPlan};

pub use aside::KEPT_FOLDER;
pub(crate) use aside::unfinished as unfinished_aside;
pub use cleanup::Cleaned;
pub(crate) use cleanup::in_section;
pub(crate) use commit::{live_annex, set_live_annex};
pub use hands::{GENERATIONS_FOLDER, LIVE_LINK, SECTIONS_FOLDER};
pub use look::{Standing, Unread, look_over};
pub(crate) use look::{TOP_TAKEN, top_names_of};
pub(crate) use old::{lake_path, section_place, walk};
pub(crate) use place::published_mode;
pub use plan::How;
pub(crate) use plan::top_text;
pub use recover::Recovered;
pub use resolve::{SetAside, keep_mine, keep_theirs};
pub(crate) use strays::links_of;
pub(crate) use target::link_text;
pub use target::{TargetError, TargetFacts, check_target};

/// Series of section folder numbers in the catalog.
const FOLDER_SERIES: &str = "section folders";
/// Series of generation numbers in the catalog.
const GENERATION_SERIES: &str = "generations";
/// Generations kept for readers that are still in them, unless told otherwise.
pub const KEEP_GENERATIONS: usize = 3;

/// How to publish.
#[derive(Debug, Clone, Copy)]
pub struct PublishOptions {
    /// Generations kept, the new one included; at least one.
    pub keep_generations: usize,
    /// A generation stays at least this long after the next one took its place, however many there are
    /// meanwhile: a program may still be reading in it.
    pub readers_grace: Duration,
}

impl Default for PublishOptions {
    fn default() -> Self {
        Self { keep_generations: KEEP_GENERATIONS, readers_grace: Duration::ZERO }
    }
}

/// Versions whose publication was begun and not finished: their metadata says which files are ours.
pub(crate) fn unfinished(reader: &impl Lookup, space: &SpaceId) -> Result<Vec<SnapshotId>, CatalogError> {
    let left = intent::load(reader, space)?;
    Ok(left.map_or(vec![], |left| left.spoiled.iter().map(|s| s.snapshot).chain([left.snapshot]).collect()))
}

/// What was done for one section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedSection {
    /// Its folder in the lake, or `.`.
    pub name: String,
    pub how: How,
    /// Files that were placed.
    pub files: u64,
}

/// A version that is live.
#[derive(Debug, Clone)]
pub struct Published {
    pub snapshot: SnapshotId,
    pub generation: u64,
    /// The version was live already.
    pub already: bool,
    pub sections: Vec<PublishedSection>,
    /// Sections that could not be proven, as `name: reason`.
    pub unproven: Vec<String>,
    /// Published files that someone removed here; those that the version still lists are back.
    pub removed_here: Vec<String>,
    /// Sections of the version that were not published, because one that was changed by hand has their
    /// place: name, and by which.
    pub held_back: Vec<(String, String)>,
    pub cleaned: Cleaned,
    /// What an earlier run had left to do.
    pub recovered: Recovered,
}

/// Why a version was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("section `{section}` has diverged: `{path}` {what}; nothing was overwritten")]
    Diverged { section: String, path: String, what: &'static str },
    #[error("`{path}` is in the way: it was not put there by Sluice")]
    Occupied { path: PathBuf },
    #[error("`{path}` does not belong into a generation")]
    Stranger { path: PathBuf },
    #[error("another process is publishing into `{folder}`")]
    Busy { folder: PathBuf },
    #[error("the disk of `{folder}` is full")]
    DiskFull { folder: PathBuf },
    #[error("nothing of what is published lies in `{folder}`: its disk may not be mounted; nothing was changed")]
    NotThere { folder: PathBuf },
    #[error("`{folder}` shows version {shown} of the lake, and the catalog knows of {known}: the home was set back")]
    SetBack { folder: PathBuf, shown: u64, known: u64 },
    #[error("blob {hash} for `{path}` is not here any more")]
    BlobGone { path: String, hash: BlobHash },
    #[error("the entries of section `{section}` cannot be read: {cause}")]
    Entries { section: String, cause: String },
    #[error("`{path}`: {source}")]
    Path { path: String, source: PathError },
    #[error(transparent)]
    Blob(#[from] BlobError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("`{path}`: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("stopped on request")]
    Cancelled,
    #[error(transparent)]
    Lake(#[from] LakeError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// Publishes a version; see the module's page.
pub fn publish(
    lake: &Lake,
    catalog: &Catalog,
    verified: &Verified,
    options: PublishOptions,
    watch: &dyn Watch,
) -> Result<Published, PublishError> {
    let hands = Hands::open(lake, catalog, verified.space())?;
    let recovered = recover::recover(&hands)?;
    let reader = catalog.read()?;
    let live = reader.live(&hands.space)?;
    let left = intent::load(&reader, &hands.space)?;
    let mut plan = plan::plan(&hands, &reader, verified, live.as_ref(), left.as_ref())?;
    drop(reader);
    for path in &plan.removed_here {
        watch.note(format!("`{path}` was removed here"));
    }
    let standing = live.as_ref().filter(|l| plan.changes_nothing(Some(l), verified));
    let (generation, sections) = match standing {
        Some(live) => {
            if left.is_some() {
                hands.commit("forget-intent", |b| intent::clear(b, &hands.space))?;
            }
            (live.generation, plan.sections.iter().map(|s| published(s, 0)).collect())
        }
        None => go_live(&hands, verified, &mut plan, live.as_ref(), left.as_ref(), watch)?,
    };
    Ok(Published {
        snapshot: verified.snapshot(),
        generation,
        already: standing.is_some(),
        sections,
        unproven: plan.unproven,
        removed_here: plan.removed_here,
        held_back: plan.held_back,
        cleaned: cleanup::clean(&hands, options.keep_generations, options.readers_grace)?,
        recovered,
    })
}

/// All steps from the intent to the visible names.
fn go_live(
    hands: &Hands<'_>,
    verified: &Verified,
    plan: &mut Plan<'_>,
    live: Option<&LiveRecord>,
    left: Option<&Intent>,
    watch: &dyn Watch,
) -> Result<(u64, Vec<PublishedSection>), PublishError> {
    let generation = begin(hands, verified, plan, left)?;
    let (sections, blobs, touched) = fill::all(hands, plan, live, watch)?;
    let taken = plan.carried.iter().filter(|s| s.replaced).map(|s| s.path.clone()).collect();
    generation::build(hands, generation, &plan.sections, &taken)?;
    if let Some(live) = live {
        plan.moves.extend(plan.carried.iter().map(|s| strays::carry(s, live.generation, generation)));
    }
    let record = live_record(verified, generation, plan);
    let change = commit::Change { plan, record: &record, annex: verified.head().annex, blobs, touched };
    hands.commit("live", |b| commit::make_live(b, hands, &change))?;
    generation::switch(hands, generation)?;
    aside::finish(hands)?;
    generation::show(hands, &plan::top_names(&plan.sections)?)?;
    Ok((generation, sections))
}

fn published(s: &SectionPlan<'_>, files: u64) -> PublishedSection {
    PublishedSection { name: s.section.name().to_string(), how: s.how, files }
}

/// Chooses numbers and records what is about to happen.
fn begin(
    hands: &Hands<'_>,
    verified: &Verified,
    plan: &mut Plan<'_>,
    left: Option<&Intent>,
) -> Result<u64, PublishError> {
    let snapshot = verified.snapshot();
    let sections = &mut plan.sections;
    let in_use = numbers_in_use(hands)?;
    hands.commit("intent", |b| {
        // Whatever the catalog remembers, no number is given out that a folder has.
        restore_numbers(b, in_use)?;
        let generation = match left.filter(|l| l.snapshot == snapshot) {
            Some(left) => left.generation,
            None => b.next_number(GENERATION_SERIES)?,
        };
        let mut chosen = Vec::new();
        for s in sections.iter_mut().filter(|s| s.how != How::Kept) {
            if s.folder.is_none() {
                s.folder = Some(format!("{:08}", b.next_number(FOLDER_SERIES)?));
            }
            chosen.push(IntentSection {
                path: s.section.path.clone(),
                folder: s.folder.clone().unwrap_or_default(),
                grows: s.how == How::Grown,
                unknown: Default::default(),
            });
        }
        let spoiled = still_spoiled(left, snapshot, &chosen);
        let intent = Intent { snapshot, generation, sections: chosen, spoiled, unknown: Default::default() };
        intent::store(b, &hands.space, &intent)?;
        Ok::<_, CatalogError>(generation)
    })
}

/// Published folders that may hold files of an unfinished version and are not grown by this run.
fn still_spoiled(left: Option<&Intent>, snapshot: SnapshotId, chosen: &[IntentSection]) -> Vec<Spoiled> {
    let grows = |s: &Spoiled| s.snapshot == snapshot && chosen.iter().any(|c| c.grows && c.folder == s.folder);
    left.map_or(vec![], Intent::spoiled).into_iter().filter(|s| !grows(s)).collect()
}

fn live_record(verified: &Verified, generation: u64, plan: &Plan<'_>) -> LiveRecord {
    let sections = plan.sections.iter().map(|s| {
        s.stays.clone().unwrap_or_else(|| LiveSection {
            path: s.section.path.clone(),
            kind: s.section.kind,
            shallow: s.section.shallow,
            folder: s.folder.clone().unwrap_or_default(),
            tree: s.section.tree.page,
            worn: false,
            changes: vec![],
            change_count: None,
            detached: false,
            of: None,
            gives_way: None,
            unknown: Default::default(),
        })
    });
    LiveRecord {
        generation,
        snapshot: verified.snapshot(),
        sections: sections.collect(),
        unproven: plan.unproven.clone(),
        unshown: false,
        unknown: Default::default(),
    }
}

/// Brings the disk and the catalog of a replica into agreement after a stop; cheap when they agree.
pub fn recover(lake: &Lake, catalog: &Catalog, space: &SpaceId) -> Result<Recovered, PublishError> {
    let reader = catalog.read()?;
    if reader.live(space)?.is_none() && intent::load(&reader, space)?.is_none() {
        return Ok(Recovered::default());
    }
    drop(reader);
    recover::recover(&Hands::open(lake, catalog, *space)?)
}

/// How the manifest that a live section was published from lists it; none when that is gone.
pub(crate) fn section_of(
    reader: &impl Lookup,
    space: &SpaceId,
    live: &LiveRecord,
    section: &LiveSection,
) -> Result<Option<Section>, CatalogError> {
    let manifest = old::manifest_for(reader, space, live, section)?;
    Ok(old::listed_as(manifest.as_ref(), section).cloned())
}

/// The greatest numbers of section folders and generations that lie in the lake.
fn numbers_in_use(hands: &Hands<'_>) -> Result<(u64, u64), PublishError> {
    let greatest = |folder: &Folder, shown: &str| {
        let (names, _) = folder.names().map_err(|e| hands.failed(shown, e))?;
        Ok::<u64, PublishError>(names.iter().filter_map(|n| n.parse().ok()).max().unwrap_or(0))
    };
    Ok((greatest(&hands.sections, SECTIONS_FOLDER)?, greatest(&hands.generations, GENERATIONS_FOLDER)?))
}

/// Lets numbering go on above the section folders and generations that are in use.
pub(crate) fn restore_numbers(b: &mut Batch, (folders, generations): (u64, u64)) -> Result<(), CatalogError> {
    for (series, used) in [(FOLDER_SERIES, folders), (GENERATION_SERIES, generations)] {
        let now = b.counter(series)?;
        b.add_counter(series, used.saturating_sub(now))?;
    }
    Ok(())
}

/// The real folder of the live generation, or of one section in it, for readers that need one
/// consistent view. `None` when nothing is published or there is no such section.
pub fn live_path(
    lake: &Lake,
    catalog: &Catalog,
    space: &SpaceId,
    section: Option<&LakePath>,
) -> Result<Option<PathBuf>, PublishError> {
    let live = catalog.read()?.live(space)?;
    Ok(live.and_then(|live| path_of(lake, &live, section)))
}

/// As [`live_path`], of a version that the caller has looked up.
pub fn path_of(lake: &Lake, live: &LiveRecord, section: Option<&LakePath>) -> Option<PathBuf> {
    let own = lake.root().join(sluice_protocol::path::OWN_FOLDER);
    let generation = own.join(GENERATIONS_FOLDER).join(live.generation.to_string());
    let Some(section) = section else { return Some(generation) };
    let known = live.sections.iter().any(|s| s.path.as_ref() == Some(section));
    known.then(|| generation.join(section.as_str()))
}
