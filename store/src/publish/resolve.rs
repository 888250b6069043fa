//! What a person decides about a section that was changed by hand.
//!
//! *Theirs*: the section gives way. The next version that is published makes its folder anew, and the
//! local changes are moved below `.sluice/kept`. *Mine*: the section is detached, the site's own from
//! then on; what the owner's version says of the changed files is copied below `.sluice/kept` first.
//!
//! Invariant: neither side is lost. A decision is one commit; stopped before it nothing was decided,
//! and stopped after it whatever publishes next finishes it.

use sluice_protocol::ids::SpaceId;
use sluice_protocol::manifest::Entry;
use sluice_protocol::path::{LakePath, OWN_FOLDER};

use super::hands::Hands;
use super::look::find_strays;
use super::old::Old;
use super::place::{copy_bytes, published_mode};
use super::{PublishError, intent};
use crate::catalog::{Batch, Catalog, CatalogError, LiveSection, Lookup, Reader};
use crate::lake::{Lake, Place};

/// What became of the owner's version when the local one was kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetAside {
    /// Lake paths of files whose published version lies in the folder that was named.
    pub kept: Vec<String>,
    /// Lake paths of files whose published version is not on this disk any more.
    pub not_here: Vec<String>,
}

/// Lets a section give way to the owner's version; `kept` is a folder below `.sluice`.
pub fn keep_theirs(b: &mut Batch, space: &SpaceId, path: Option<&LakePath>, kept: &str) -> Result<bool, CatalogError> {
    change(b, space, path, |section| {
        section.detached = false;
        section.gives_way = Some(kept.to_string());
    })
}

/// Detaches a section; `kept` is a folder below `.sluice`, made when there is anything for it.
pub fn keep_mine(
    lake: &Lake,
    catalog: &Catalog,
    space: &SpaceId,
    path: Option<&LakePath>,
    kept: &str,
) -> Result<SetAside, PublishError> {
    let hands = Hands::open(lake, catalog, *space)?;
    let reader = catalog.read()?;
    let mut aside = SetAside::default();
    let Some(live) = reader.live(space)? else { return Ok(aside) };
    let Some((at, section)) = live.sections.iter().enumerate().find(|(_, s)| s.path.as_ref() == path) else {
        return Ok(aside);
    };
    let old = Old::load(&hands, &reader, &live, section)?;
    let spoiled = intent::load(&reader, space)?.map(|i| i.spoiled()).unwrap_or_default();
    let mut changed: Vec<String> = old.inspect(&reader, &spoiled)?.changes.into_iter().map(|c| c.path).collect();
    for stray in find_strays(&hands, &reader, &live)?.strays.into_iter().filter(|s| s.section == Some(at)) {
        let below = section.path.as_ref().map_or(Some(stray.path.as_str()), |p| {
            stray.path.strip_prefix(p.as_str()).and_then(|rest| rest.strip_prefix('/'))
        });
        changed.extend(below.map(str::to_string));
    }
    for entry in changed.iter().filter_map(|path| old.entry(path)).filter(|e| e.hash.is_some()) {
        let shown = old.shown(&entry.path);
        let list = if set_aside(&hands, &reader, entry, &shown, kept)? { &mut aside.kept } else { &mut aside.not_here };
        list.push(shown);
    }
    drop(reader);
    if !aside.kept.is_empty() {
        hands.sync_all("the owner's version")?;
    }
    hands.commit("detach", |b| {
        change(b, space, path, |section| {
            section.detached = true;
            section.gives_way = None;
        })
    })?;
    Ok(aside)
}

/// Copies the published version of a file below `kept`; `false` when its bytes are not here.
fn set_aside(hands: &Hands<'_>, reader: &Reader, entry: &Entry, shown: &str, kept: &str) -> Result<bool, PublishError> {
    let Some(hash) = entry.hash else { return Ok(false) };
    let places: Vec<Place> =
        reader.blob(&hands.space, &hash)?.map_or(vec![], |b| b.places.into_iter().map(|at| at.place).collect());
    let failed = |e| hands.failed(shown, e);
    let name = format!("{hash}.kept");
    for place in places {
        let Ok(source) = hands.lake.open_place(&place) else { continue };
        let copy = hands.copy_target(&name)?;
        if !copy_bytes(&source, &copy, entry.size, &hash).map_err(failed)? {
            continue;
        }
        hands.dress(&copy, published_mode(entry), entry.mtime_ns, shown)?;
        let to = format!("{OWN_FOLDER}/{kept}/{shown}");
        let (folder, last) = to.rsplit_once('/').unwrap_or((OWN_FOLDER, &to));
        let folder = hands.make_path(folder)?;
        // An earlier try, stopped before its decision, may have left the same copy.
        hands.replace((&hands.staging, &name), (&folder, last), shown)?;
        return Ok(true);
    }
    hands.remove(&hands.staging, &name, &name)?;
    Ok(false)
}

fn change(
    b: &mut Batch,
    space: &SpaceId,
    path: Option<&LakePath>,
    change: impl FnOnce(&mut LiveSection),
) -> Result<bool, CatalogError> {
    let Some(mut live) = b.live(space)? else { return Ok(false) };
    let Some(section) = live.sections.iter_mut().find(|s| s.path.as_ref() == path) else { return Ok(false) };
    change(section);
    b.set_live(space, &live)?;
    Ok(true)
}
