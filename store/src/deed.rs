//! The deed of a space: what lies in its lake so that a lost catalog can be made again.
//!
//! `.sluice/space/deed` holds the signed documents (grants, newest heads, manifests, annex), the site's own
//! record of the space, what is published, and the cards and peers that its grants name;
//! `.sluice/space/pages/` the pages of the published sections, each under its hash. Both are written
//! after each snapshot, publication and decision, and only when they changed.
//!
//! Invariant: a deed is replaced in one step, after everything it names is durable. What is read from one
//! is believed only as far as signatures and hashes go; of the files, only as far as they were hashed
//! again.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::PathBuf;

use sluice_protocol::codec::{Bytes, CodecError, Dec, Document, Enc, Wire};
use sluice_protocol::grants::GrantSet;
use sluice_protocol::head::Head;
use sluice_protocol::ids::{BlobHash, SiteId, SnapshotId, SpaceId};
use sluice_protocol::limits::{DEED_BYTES_MAX, PAGE_BYTES_MAX};
use sluice_protocol::manifest::Manifest;
use sluice_protocol::record;
use sluice_protocol::signed::Signed;
use sluice_protocol::tree::{Page, TreeRef};

use crate::catalog::{
    Catalog, CatalogError, LiveRecord, Lookup, PeerRecord, Reader, SiteLookup, SnapshotRecord, SpaceRecord,
};
use crate::disk::{self, Room};
use crate::durable::Folder;
use crate::lake::{Lake, LakeError};
use crate::publish::live_annex;

/// The room of its changes to the disk.
const ROOM: Room = "deed";
/// Folder below `.sluice`.
const FOLDER: &str = "space";
const FILE: &str = "deed";
const PAGES: &str = "pages";
/// Newest heads among which those of the published versions are looked for.
const HEADS_LOOKED_AT: u64 = 10_000;
/// What a deed begins with; its hash and its record follow.
const MAGIC: &[u8] = b"sluice deed 1\n";

record! {
    /// A site that the space's grants name, as this site knows it.
    pub struct DeedPeer {
        0 => site: SiteId,
        1 => record: PeerRecord,
    }
}

record! {
    /// See the module's page.
    pub struct Deed {
        /// The site whose catalog it can make again.
        0 => site: SiteId,
        1 => space: SpaceId,
        2 => record: SpaceRecord,
        /// The signed grant set in force.
        3 => grants: Bytes,
        /// Signed heads: the newest that is known, and those that the published versions came with.
        4 => heads: Vec<Bytes>,
        /// Manifests of the version that is shown, and of those that sections stayed at.
        5 => manifests: Vec<Bytes>,
        /// The annex of the version that is shown.
        6 => annex: Option<Bytes>,
        /// What is published; at a replica.
        7 => live: Option<LiveRecord>,
        /// Signed cards of sites that may hold the space.
        8 => cards: Vec<Bytes>,
        9 => peers: Vec<DeedPeer>,
        /// Totals of the version that is shown.
        10 => totals: Option<SnapshotRecord>,
        /// That version.
        11 => shown: Option<SnapshotId>,
    }
}

/// Why a deed cannot be written or used.
#[derive(Debug, thiserror::Error)]
pub enum DeedError {
    #[error("`{path}`: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("there is no deed of a space in `{0}`")]
    None(PathBuf),
    #[error("the deed in `{path}` is damaged: {cause}")]
    Damaged { path: PathBuf, cause: String },
    #[error("the deed in `{path}` was made by site {}", site.short())]
    OtherSite { path: PathBuf, site: SiteId },
    #[error(transparent)]
    Lake(#[from] LakeError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// Writes the deed of a space as the catalog knows it now; says whether anything had changed.
pub fn keep(lake: &Lake, catalog: &Catalog, site: SiteId, space: &SpaceId) -> Result<bool, DeedError> {
    let reader = catalog.read()?;
    let Some(deed) = draw_up(&reader, site, space)? else { return Ok(false) };
    let failed = |source| DeedError::Io { path: lake.root().join(".sluice").join(FOLDER), source };
    let own = Folder::of(lake.own()?, ROOM).map_err(failed)?;
    let (folder, made) = own.make(FOLDER).map_err(failed)?;
    if made {
        folder.set_mode(0o700).map_err(failed)?;
        own.sync().map_err(failed)?;
    }
    let needed = keep_pages(&reader, space, &deed, &folder).map_err(|e| e.named(lake))?;
    let bytes = sealed(&deed);
    if read_bounded(&folder, FILE, bytes.len() as u64).map_err(failed)?.is_some_and(|old| old == bytes) {
        return Ok(false);
    }
    replace(&folder, FILE, &bytes).map_err(failed)?;
    drop_pages(&folder, &needed).map_err(failed)?;
    Ok(true)
}

/// The deed as of now; none when the site does not have the space.
fn draw_up(r: &Reader, site: SiteId, space: &SpaceId) -> Result<Option<Deed>, CatalogError> {
    let (Some(record), Some(grants)) = (r.space(space)?, r.grants(space)?) else { return Ok(None) };
    let live = r.live(space)?;
    let newest = r.newest_head(space, &record.owner)?;
    let mut wanted: Vec<SnapshotId> = live.iter().map(|l| l.snapshot).collect();
    wanted.extend(live.iter().flat_map(|l| &l.sections).filter_map(|s| s.of));
    let shown = live.as_ref().map(|l| l.snapshot).or(newest.as_ref().map(|h| h.manifest));
    wanted.extend(shown);
    let from = newest.as_ref().map_or(0, |h| h.seq.saturating_sub(HEADS_LOOKED_AT));
    let mut heads: Vec<Signed<Head>> = r.heads_since(space, &record.owner, (0, from), usize::MAX)?;
    heads.retain(|h| h.seq >= from);
    let newest_of = |id: &SnapshotId| heads.iter().rposition(|h| h.manifest == *id);
    let mut kept: BTreeSet<usize> = wanted.iter().filter_map(newest_of).collect();
    kept.extend(heads.len().checked_sub(1));
    kept.extend(heads.iter().position(|h| Some(h.id()) == record.held));
    let mut at = 0;
    heads.retain(|_| (kept.contains(&at), at += 1).0);
    wanted.sort_unstable();
    wanted.dedup();
    let manifests = wanted.iter().filter_map(|id| r.meta(space, &(*id).into()).transpose());
    let annex = live_annex(r, space)?.or(newest.as_ref().map(|h| h.annex));
    let annex = annex.map(|hash| r.meta(space, &hash)).transpose()?.flatten();
    let named = grants.grants.iter().map(|g| g.site).chain([record.owner]).chain(record.sources.iter().copied());
    let named: BTreeSet<SiteId> = named.filter(|s| *s != site).collect();
    let mut peers = Vec::new();
    let mut cards = Vec::new();
    for one in named {
        cards.extend(r.card(&one)?.map(|c| Bytes(c.bytes().to_vec())));
        // When it was last seen changes with every word it says, and is no reason to write.
        let known = r.peer(&one)?.map(|p| PeerRecord { last_seen_ms: None, moved_bytes: None, ..p });
        peers.extend(known.map(|record| DeedPeer { site: one, record, unknown: Default::default() }));
    }
    Ok(Some(Deed {
        site,
        space: *space,
        grants: Bytes(grants.bytes().to_vec()),
        heads: heads.iter().map(|h| Bytes(h.bytes().to_vec())).collect(),
        manifests: manifests.map(|m| m.map(Bytes)).collect::<Result<_, _>>()?,
        annex: annex.map(Bytes),
        totals: shown.map(|id| r.snapshot(space, &id)).transpose()?.flatten(),
        shown,
        live,
        cards,
        peers,
        record,
        unknown: Default::default(),
    }))
}

/// A failed effect on the pages.
struct PagesFailed(io::Error);

impl From<io::Error> for PagesFailed {
    fn from(e: io::Error) -> Self {
        Self(e)
    }
}

impl PagesFailed {
    fn named(self, lake: &Lake) -> DeedError {
        DeedError::Io { path: lake.root().join(".sluice").join(FOLDER).join(PAGES), source: self.0 }
    }
}

/// Writes the pages of what is published that are not there yet; returns all that are needed.
fn keep_pages(r: &Reader, space: &SpaceId, deed: &Deed, folder: &Folder) -> Result<BTreeSet<String>, PagesFailed> {
    let (pages, _) = folder.make(PAGES)?;
    let there: BTreeSet<String> = pages.names()?.0.into_iter().collect();
    let mut needed = BTreeSet::new();
    let mut written = Vec::new();
    let mut todo = deed.trees();
    while let Some(tree) = todo.pop() {
        let name = tree.page.to_string();
        let inner = tree.height > 0;
        let missing = !there.contains(&name);
        if !needed.insert(name.clone()) || !(inner || missing) {
            continue;
        }
        let Some(bytes) = r.meta(space, &tree.page).map_err(io::Error::other)? else { continue };
        if missing {
            let partial = format!("{name}.tmp");
            pages.remove(&partial)?;
            disk::write_all_at(ROOM, &pages.file_rw(&partial, true)?, &bytes, 0)?;
            written.push(name);
        }
        if inner && let Ok(page) = Page::from_bytes(&bytes) {
            todo.extend(page.child_pages().filter(|c| c.height < tree.height).cloned());
        }
    }
    if !written.is_empty() {
        // A page gets its name when it is durable, so that a name which is there is believed. One flush for all.
        pages.sync_system()?;
        written.iter().try_for_each(|name| pages.replace(&format!("{name}.tmp"), &pages, name))?;
        pages.sync()?;
    }
    Ok(needed)
}

fn drop_pages(folder: &Folder, needed: &BTreeSet<String>) -> io::Result<()> {
    let pages = folder.open(PAGES)?;
    for name in pages.names()?.0.iter().filter(|n| !needed.contains(*n)) {
        pages.remove(name)?;
    }
    Ok(())
}

impl Deed {
    /// The trees of the published sections, as their manifests list them.
    fn trees(&self) -> Vec<TreeRef> {
        let manifests = self.manifests.iter().filter_map(|m| Manifest::from_bytes(&m.0).ok());
        let sections: Vec<_> = manifests.flat_map(|m| m.sections).collect();
        let live = self.live.iter().flat_map(|l| &l.sections);
        let listed = live.filter_map(|l| sections.iter().find(|s| s.path == l.path && s.tree.page == l.tree));
        listed.map(|s| s.tree.clone()).collect()
    }

    /// The signed documents, after their signatures and their belonging together were checked.
    pub fn checked(&self) -> Result<(Signed<GrantSet>, Vec<Signed<Head>>), String> {
        let grants = Signed::<GrantSet>::from_bytes(&self.grants.0).map_err(|e| format!("its grants: {e}"))?;
        if grants.space_id() != self.space || grants.genesis.owner != self.record.owner {
            return Err("its grants belong to another space".into());
        }
        let mut heads = Vec::new();
        for raw in &self.heads {
            let head = Signed::<Head>::from_bytes(&raw.0).map_err(|e| format!("a head: {e}"))?;
            if head.space != self.space || head.writer != self.record.owner {
                return Err("a head belongs to another space".into());
            }
            heads.push(head);
        }
        Ok((grants, heads))
    }
}

fn sealed(deed: &Deed) -> Vec<u8> {
    let mut e = Enc::new(Vec::new());
    deed.put(&mut e);
    let payload = e.into_writer();
    [MAGIC, &BlobHash::of(&payload).0, &payload].concat()
}

/// Reads the deed in a lake and checks that it is whole.
pub fn read(lake: &Lake) -> Result<Deed, DeedError> {
    let path = lake.root().join(".sluice").join(FOLDER).join(FILE);
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => DeedError::None(lake.root().to_path_buf()),
        _ => DeedError::Io { path: path.clone(), source },
    };
    let damaged = |cause: &str| DeedError::Damaged { path: path.clone(), cause: cause.to_string() };
    let own = lake.own_if_present().ok_or_else(|| DeedError::None(lake.root().to_path_buf()))?;
    let folder = Folder::of(own, ROOM).and_then(|own| own.open(FOLDER)).map_err(failed)?;
    let bytes = read_bounded(&folder, FILE, DEED_BYTES_MAX).map_err(failed)?;
    let bytes = bytes.ok_or_else(|| DeedError::None(lake.root().to_path_buf()))?;
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| damaged("it begins with something else"))?;
    let (hash, payload) = rest.split_at_checked(32).ok_or_else(|| damaged("it is cut off"))?;
    if BlobHash::of(payload).0 != hash {
        return Err(damaged("its bytes are not those that were written"));
    }
    let decoded = || -> Result<Deed, CodecError> { Deed::get(&mut Dec::new(payload)) };
    decoded().map_err(|e| damaged(&e.to_string()))
}

/// The pages beside a deed that hash to their names.
pub fn each_page(lake: &Lake, each: &mut dyn FnMut(Vec<u8>) -> Result<(), CatalogError>) -> Result<(), DeedError> {
    let failed = |source| DeedError::Io { path: lake.root().join(".sluice").join(FOLDER).join(PAGES), source };
    let folder = Folder::of(lake.own()?, ROOM).and_then(|own| own.open(FOLDER)).and_then(|f| f.open(PAGES));
    let folder = match folder {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    for name in folder.names().map_err(failed)?.0 {
        let bytes = read_bounded(&folder, &name, PAGE_BYTES_MAX as u64).map_err(failed)?;
        if let Some(bytes) = bytes.filter(|b| BlobHash::of(b).to_string() == name) {
            each(bytes)?;
        }
    }
    Ok(())
}

/// A file of at most `limit` bytes; none when it is not there or longer.
fn read_bounded(folder: &Folder, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match folder.file(name) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

/// Replaces a file in one step, durable at the end.
fn replace(folder: &Folder, name: &str, bytes: &[u8]) -> io::Result<()> {
    let partial = format!("{name}.tmp");
    folder.remove(&partial)?;
    let file = folder.file_rw(&partial, true)?;
    disk::write_all_at(ROOM, &file, bytes, 0)?;
    disk::sync_all(ROOM, &file)?;
    folder.replace(&partial, folder, name)?;
    folder.sync()
}
