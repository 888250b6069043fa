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

mod cleanup;
mod commit;
mod generation;
mod hands;
mod intent;
mod old;
mod place;
mod plan;
mod recover;
mod target;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use sluice_protocol::ids::{BlobHash, SnapshotId, SpaceId};
use sluice_protocol::manifest::{Entry, EntryKind};
use sluice_protocol::path::{LakePath, PathError};
use sluice_protocol::stages::{Stage, stage_of};

use crate::catalog::{Catalog, CatalogError, LiveRecord, LiveSection, Lookup};
use crate::lake::{Lake, LakeError};
use crate::verify::{LinkError, Verified};
use crate::watch::Watch;
use hands::Hands;
use intent::{Intent, IntentSection};
use place::{Blobs, Inodes, Over, Placer};
use plan::{Plan, SectionPlan};

pub use cleanup::Cleaned;
pub(crate) use commit::live_annex;
pub use hands::{GENERATIONS_FOLDER, Hook, LIVE_LINK, NoHook, SECTIONS_FOLDER, Step};
pub(crate) use old::{lake_path, section_place, walk};
pub(crate) use place::published_mode;
pub use plan::How;
pub use recover::Recovered;
pub use target::{TargetError, TargetFacts, check_target};
pub(crate) use target::{generation_link_text, link_text};

/// Series of section folder numbers in the catalog.
const FOLDER_SERIES: &str = "section folders";
/// Series of generation numbers in the catalog.
const GENERATION_SERIES: &str = "generations";
/// Generations kept for readers that are still in them, unless told otherwise.
pub const KEEP_GENERATIONS: usize = 3;

/// How to publish.
#[derive(Clone, Copy)]
pub struct PublishOptions<'a> {
    /// Generations kept, the new one included; at least one.
    pub keep_generations: usize,
    /// Told of every effect before it happens.
    pub hook: &'a dyn Hook,
}

impl Default for PublishOptions<'_> {
    fn default() -> Self {
        Self { keep_generations: KEEP_GENERATIONS, hook: &NoHook }
    }
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
    #[error("the disk of `{folder}` is full")]
    DiskFull { folder: PathBuf },
    #[error("blob {hash} for `{path}` is not here any more")]
    BlobGone { path: String, hash: BlobHash },
    #[error("the entries of section `{section}` cannot be read: {cause}")]
    Entries { section: String, cause: String },
    #[error("`{path}`: {source}")]
    Path { path: String, source: PathError },
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("`{path}`: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("stopped before {step}: {reason}")]
    Halted { step: String, reason: String },
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
    options: PublishOptions<'_>,
    watch: &dyn Watch,
) -> Result<Published, PublishError> {
    let hands = Hands::open(lake, catalog, verified.space(), options.hook)?;
    let recovered = recover::recover(&hands)?;
    let reader = catalog.read()?;
    let live = reader.live(&hands.space)?;
    let left = intent::load(&reader, &hands.space)?;
    let mut plan = plan::plan(&hands, &reader, verified, live.as_ref(), left.as_ref())?;
    drop(reader);
    if let Some(live) = live.as_ref().filter(|l| plan.changes_nothing(Some(l), verified)) {
        if left.is_some() {
            hands.commit("forget intent", |b| intent::clear(b, &hands.space))?;
        }
        let cleaned = cleanup::clean(&hands, options.keep_generations)?;
        let sections = plan.sections.iter().map(|s| published(s, 0)).collect();
        return Ok(Published { already: true, ..done(verified, live.generation, sections, cleaned, recovered) });
    }
    let generation = begin(&hands, verified, &mut plan, left.as_ref())?;
    let (sections, blobs, touched) = place_all(&hands, &plan, watch)?;
    generation::build(&hands, generation, &plan.sections)?;
    let record = live_record(verified, generation, &plan);
    let annex = verified.head().annex;
    hands.commit("live", |b| {
        commit::make_live(b, &hands, &record, annex, &plan.retired, &blobs, &touched)
    })?;
    generation::switch(&hands, generation)?;
    generation::show(&hands, &plan::top_names(&plan.sections)?)?;
    let cleaned = cleanup::clean(&hands, options.keep_generations)?;
    Ok(done(verified, generation, sections, cleaned, recovered))
}

fn done(
    verified: &Verified,
    generation: u64,
    sections: Vec<PublishedSection>,
    cleaned: Cleaned,
    recovered: Recovered,
) -> Published {
    Published {
        snapshot: verified.snapshot(),
        generation,
        already: false,
        sections,
        unproven: verified.unproven(),
        cleaned,
        recovered,
    }
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
    let spoiled = plan.spoiled.clone();
    hands.commit("intent", |b| {
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
        let intent =
            Intent { snapshot, generation, sections: chosen, spoiled, unknown: Default::default() };
        intent::store(b, &hands.space, &intent)?;
        Ok(generation)
    })
}

/// Places the files of every section and makes them durable.
fn place_all(
    hands: &Hands<'_>,
    plan: &Plan<'_>,
    watch: &dyn Watch,
) -> Result<(Vec<PublishedSection>, Blobs, Inodes), PublishError> {
    let mut placer = Placer::new(hands, hands.catalog.read()?);
    let mut sections = Vec::new();
    for s in &plan.sections {
        let files = match s.how {
            How::Kept => 0,
            How::Grown => grow(&mut placer, s, watch)?,
            How::Made => make(&mut placer, s, watch)?,
        };
        sections.push(published(s, files));
    }
    let (blobs, touched) = placer.finish();
    Ok((sections, blobs, touched))
}

fn tell(watch: &dyn Watch, n: u64, total: u64) -> Result<(), PublishError> {
    if n.is_multiple_of(1024) || n == total {
        watch.amount("publish", n, total, 0, 0);
        if watch.cancelled() {
            return Err(PublishError::Cancelled);
        }
    }
    Ok(())
}

/// Fills a section folder that nobody sees yet.
fn make(placer: &mut Placer<'_, '_>, s: &SectionPlan<'_>, watch: &dyn Watch) -> Result<u64, PublishError> {
    let hands = placer.hands;
    let name = s.folder.as_deref().unwrap_or_default();
    let shown = format!(".sluice/{SECTIONS_FOLDER}/{name}");
    let begun = hands.sections.open(name).is_ok();
    hands.folder(&hands.sections, name, &shown)?;
    placer.unsynced.name_in(None);
    let mut placed = 0;
    for (n, entry) in s.entries.iter().enumerate() {
        tell(watch, n as u64, s.entries.len() as u64)?;
        placed += u64::from(make_entry(placer, s, name, entry, begun)?);
    }
    hands.flush(&mut placer.unsynced, &hands.sections, &shown)?;
    Ok(placed)
}

/// Puts one entry into a folder of ours; says whether a file was placed.
fn make_entry(
    placer: &mut Placer<'_, '_>,
    s: &SectionPlan<'_>,
    folder: &str,
    entry: &Entry,
    begun: bool,
) -> Result<bool, PublishError> {
    if entry.kind != EntryKind::File {
        if !(s.section.shallow && entry.kind == EntryKind::Link) {
            other_entry(placer, s, folder, entry)?;
        }
        return Ok(false);
    }
    let place = section_place(folder, &entry.path)?;
    let hash = entry.hash.unwrap_or(BlobHash([0; 32]));
    if begun {
        if placer.is_at(&hash, &place)? {
            return Ok(false);
        }
        // What an earlier run left here and recovery could not prove is not worth keeping.
        clear_spot(placer.hands, folder, &entry.path)?;
    }
    placer.place(folder, entry, Over::Nothing)?;
    Ok(true)
}

fn clear_spot(hands: &Hands<'_>, folder: &str, path: &LakePath) -> Result<(), PublishError> {
    let text = format!("{folder}/{path}");
    let full = LakePath::parse(&text).map_err(|source| PublishError::Path { path: text.clone(), source })?;
    let shown = format!(".sluice/{SECTIONS_FOLDER}/{text}");
    match hands.sections.descend(full.parent().as_ref()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(hands.failed(&shown, e)),
        Ok(parent) => match parent.look(full.file_name()).map_err(|e| hands.failed(&shown, e))? {
            None => Ok(()),
            Some(_) => hands.remove(&parent, full.file_name(), &shown),
        },
    }
}

/// Makes an empty folder or a link.
fn other_entry(
    placer: &mut Placer<'_, '_>,
    s: &SectionPlan<'_>,
    folder: &str,
    entry: &Entry,
) -> Result<(), PublishError> {
    let hands = placer.hands;
    let text = format!("{folder}/{}", entry.path);
    let path = LakePath::parse(&text).map_err(|source| PublishError::Path { path: text.clone(), source })?;
    let shown = format!(".sluice/{SECTIONS_FOLDER}/{text}");
    if entry.kind == EntryKind::Folder {
        hands.section_folder(&path)?;
        place::ancestors(&path).into_iter().for_each(|above| placer.unsynced.name_in(above));
        return Ok(());
    }
    let target = entry.target.as_deref().unwrap_or(".");
    let target = link_text(s.section.path.as_ref(), &entry.path, target)?;
    let parent = path.parent().expect("a section folder is above");
    let parent = hands.section_folder(&parent)?;
    place::ancestors(&path).into_iter().for_each(|above| placer.unsynced.name_in(above));
    let failed = |e| hands.failed(&shown, e);
    if parent.look(path.file_name()).map_err(failed)?.is_some() {
        if parent.read_link(path.file_name()).is_ok_and(|text| text == target) {
            return Ok(());
        }
        return Err(PublishError::Diverged {
            section: s.section.name().to_string(),
            path: entry.path.to_string(),
            what: "was added here",
        });
    }
    hands.symlink(&target, (&parent, path.file_name()), &shown)
}

/// Adds files to a folder that readers see, each stage durable before the next begins.
fn grow(placer: &mut Placer<'_, '_>, s: &SectionPlan<'_>, watch: &dyn Watch) -> Result<u64, PublishError> {
    let folder = s.folder.as_deref().unwrap_or_default();
    let mut stages: BTreeMap<Stage, Vec<&plan::Addition>> = BTreeMap::new();
    for addition in &s.additions {
        stages.entry(stage_of(s.section.kind, &addition.entry.path)).or_default().push(addition);
    }
    let (mut n, mut placed) = (0, 0);
    for (stage, additions) in stages {
        for addition in additions {
            tell(watch, n, s.additions.len() as u64)?;
            n += 1;
            placed += u64::from(grow_entry(placer, s, folder, addition)?);
        }
        let what = format!("stage {}.{} of {}", stage.rank, stage.version, s.section.name());
        let hands = placer.hands;
        hands.flush(&mut placer.unsynced, &hands.sections, &what)?;
    }
    Ok(placed)
}

fn grow_entry(
    placer: &mut Placer<'_, '_>,
    s: &SectionPlan<'_>,
    folder: &str,
    addition: &plan::Addition,
) -> Result<bool, PublishError> {
    let entry = &addition.entry;
    let Some(hash) = entry.hash else {
        other_entry(placer, s, folder, entry)?;
        return Ok(false);
    };
    let place = section_place(folder, &entry.path)?;
    let path = lake_path(s.section.path.as_ref(), &entry.path)?;
    // The bytes that a pointer had before are not at this place any more.
    let before = placer.hands.catalog.read()?.file(&placer.hands.space, &path)?;
    if let Some(before) = before.filter(|b| b.hash != hash) {
        placer.forget(&before.hash, &place)?;
    }
    if addition.here {
        placer.found(&hash, entry.size, place)?;
        return Ok(false);
    }
    placer.place(folder, entry, addition.over)?;
    Ok(true)
}

fn live_record(verified: &Verified, generation: u64, plan: &Plan<'_>) -> LiveRecord {
    let sections = plan.sections.iter().map(|s| LiveSection {
        path: s.section.path.clone(),
        kind: s.section.kind,
        shallow: s.section.shallow,
        folder: s.folder.clone().unwrap_or_default(),
        tree: s.section.tree.page,
        unknown: Default::default(),
    });
    LiveRecord {
        generation,
        snapshot: verified.snapshot(),
        sections: sections.collect(),
        unproven: verified.unproven(),
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
    recover::recover(&Hands::open(lake, catalog, *space, &NoHook)?)
}

/// The real folder of the live generation, or of one section in it, for readers that need one
/// consistent view. `None` when nothing is published or there is no such section.
pub fn live_path(
    lake: &Lake,
    catalog: &Catalog,
    space: &SpaceId,
    section: Option<&LakePath>,
) -> Result<Option<PathBuf>, PublishError> {
    let Some(live) = catalog.read()?.live(space)? else { return Ok(None) };
    let generation = lake
        .root()
        .join(sluice_protocol::path::OWN_FOLDER)
        .join(GENERATIONS_FOLDER)
        .join(live.generation.to_string());
    let Some(section) = section else { return Ok(Some(generation)) };
    let known = live.sections.iter().any(|s| s.path.as_ref() == Some(section));
    Ok(known.then(|| generation.join(section.as_str())))
}
