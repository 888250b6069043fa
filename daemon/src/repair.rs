//! Makes a lost or damaged catalog again from the lakes, while the site is down.
//!
//! ```text
//! the home is locked → a damaged catalog is moved aside → each lake: deed → documents → hash what lies there
//! ```
//!
//! Invariant: nothing is deleted and no byte of a lake is moved. A space comes back with its id, its
//! newest head and its grants; what its files are is what their hashes say.

use std::path::{Path, PathBuf};

use serde::Serialize;
use sluice_protocol::api::ApiError;
use sluice_protocol::ids::{SnapshotId, SpaceId};
use sluice_store::catalog::{Catalog, CatalogError, Role, SiteLookup, SnapshotRecord};
use sluice_store::chunk::chunk;
use sluice_store::deed::{self, Deed, DeedError};
use sluice_store::lake::Lake;
use sluice_store::rebuild;
use sluice_store::scan::scan;
use sluice_store::snapshot;
use sluice_store::watch::Silent;

use crate::clock::{now_ms, rfc3339};
use crate::config::Config;
use crate::errors::OrExplain;
use crate::flow::scan_options;
use crate::home::Home;
use crate::journal;
use crate::node::readers;

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Repaired {
    /// Where the damaged catalog and what lay beside it are now.
    pub moved_aside: Vec<PathBuf>,
    pub spaces: Vec<RepairedSpace>,
}

/// One lake.
#[derive(Debug, Clone, Serialize)]
pub struct RepairedSpace {
    pub space: SpaceId,
    pub name: String,
    pub lake: PathBuf,
    /// The catalog knew the space: nothing was done.
    pub known: bool,
    /// The version that its newest head names (owner), or that is published (replica).
    pub snapshot: Option<SnapshotId>,
    /// Everything here is that version, byte for byte.
    pub proven: bool,
    /// Files that are what the version says.
    pub files: u64,
    pub bytes: u64,
    /// Files that are not, or are not there.
    pub other: u64,
}

/// Repairs the catalog of a locked home from these lakes.
pub fn repair(home: &Home, config: &Config, lakes: &[PathBuf]) -> Result<Repaired, ApiError> {
    // All deeds are read first: when one lake was named wrongly, nothing is moved.
    let deeds = lakes.iter().map(|at| with_deed(home, at)).collect::<Result<Vec<_>, _>>()?;
    let moved_aside = match Catalog::is_sound(home.root()).or_explain()? {
        true => vec![],
        false => move_aside(home.root())?,
    };
    let catalog = Catalog::open(home.root()).or_explain()?;
    let spaces = deeds.iter().map(|(lake, deed)| one(&catalog, config, lake, deed)).collect::<Result<_, _>>()?;
    Ok(Repaired { moved_aside, spaces })
}

fn with_deed(home: &Home, at: &Path) -> Result<(Lake, Deed), ApiError> {
    let lake = Lake::open(at).or_explain()?;
    let deed = deed::read(&lake).or_explain()?;
    if deed.site != home.site() {
        return Err(DeedError::OtherSite { path: at.to_path_buf(), site: deed.site }).or_explain();
    }
    Ok((lake, deed))
}

/// Renames the catalog and its folders, so that a person can still look at them.
fn move_aside(home: &Path) -> Result<Vec<PathBuf>, ApiError> {
    let time = rfc3339(now_ms()).replace(['-', ':'], "");
    let mut moved = Vec::new();
    for name in ["catalog.redb", "meta", "obao"] {
        let to = home.join(format!("{name}.damaged-{time}"));
        match std::fs::rename(home.join(name), &to) {
            Ok(()) => moved.push(to),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(CatalogError::Io { path: to, source }).or_explain(),
        }
    }
    Ok(moved)
}

fn one(catalog: &Catalog, config: &Config, lake: &Lake, deed: &Deed) -> Result<RepairedSpace, ApiError> {
    let space = deed.space;
    let mut done = RepairedSpace {
        space,
        name: deed.record.name.clone(),
        lake: lake.root().to_path_buf(),
        known: catalog.read().or_explain()?.space(&space).or_explain()?.is_some(),
        snapshot: deed.shown,
        proven: false,
        files: 0,
        bytes: 0,
        other: 0,
    };
    if done.known {
        return Ok(done);
    }
    rebuild::documents(lake, catalog, deed).or_explain()?;
    match deed.record.role {
        Role::Owner => read_again(catalog, config, lake, deed, &mut done)?,
        Role::Replica => {
            let found = rebuild::published(lake, catalog, &space, &Silent).or_explain()?;
            done.proven = found.other == 0 && found.unread.is_empty();
            (done.files, done.bytes, done.other) = (found.files, found.bytes, found.other);
        }
    }
    let finished: Result<(), CatalogError> = catalog.write(|b| {
        rebuild::finish(b, lake, deed)?;
        let how = if done.proven { "proven the same" } else { "not all of it is that version" };
        let version = deed.shown.map_or("no version".to_string(), |id| id.short());
        journal::write(b, "repaired", Some(space), None, &format!("{}: {version}, {how}", deed.record.name))
    });
    finished.or_explain()?;
    Ok(done)
}

/// An owner's lake is read whole, as for a first snapshot; nothing is signed.
fn read_again(
    catalog: &Catalog,
    config: &Config,
    lake: &Lake,
    deed: &Deed,
    done: &mut RepairedSpace,
) -> Result<(), ApiError> {
    let space = deed.space;
    let newest = catalog.read().or_explain()?.newest_head(&space, &deed.record.owner).or_explain()?;
    let options = scan_options(config, &deed.record, newest.as_deref());
    let entries = scan(lake, &space, catalog, &options, &readers(), &Silent).or_explain()?;
    let chunks = chunk(lake, &space, catalog, entries, &Silent).or_explain()?;
    let taken = snapshot::manifest(lake, &space, catalog, chunks, &Silent).or_explain()?;
    (done.files, done.bytes) = (taken.stats.files, taken.stats.bytes);
    let Some(head) = newest else { return Ok(()) };
    done.snapshot = Some(head.manifest);
    done.proven = head.manifest == taken.id && head.annex == taken.annex_hash;
    if head.manifest == taken.id {
        let totals = SnapshotRecord {
            head: head.id(),
            files: taken.manifest.entries(),
            bytes: taken.stats.bytes,
            skipped: taken.skipped.iter().flat_map(|s| [s.path.clone(), s.reason.clone()]).collect(),
            unknown: Default::default(),
        };
        let stored: Result<(), CatalogError> = catalog.write(|b| b.put_snapshot(&space, &head.manifest, &totals));
        stored.or_explain()?;
    }
    Ok(())
}
