//! Whether a folder can become a replica, and how links read in one.
//!
//! Invariant: a target is taken only when nothing in it could be lost and its file system can do
//! what publishing needs; otherwise the reason is said before anything is fetched.

use std::io;
use std::path::PathBuf;

use sluice_protocol::ids::SpaceId;
use sluice_protocol::path::{LakePath, OWN_FOLDER};

use super::PublishError;
use super::hands::{LIVE_LINK, SECTIONS_FOLDER};
use crate::catalog::{Catalog, CatalogError, Lookup};
use crate::durable::Folder;
use crate::lake::{Lake, LakeError};
use crate::verify::{LinkError, relative, resolve_link};

/// Names that a fresh file system may hold by itself.
const HARMLESS: [&str; 1] = ["lost+found"];
const PROBE: &str = "probe";
const PROBE_LINK: &str = "probe.link";
const PROBE_HARD: &str = "probe.hard";

/// Why a folder cannot become a replica.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("`{folder}` is not empty (it holds `{first}`): a replica needs a folder of its own")]
    NotEmpty { folder: PathBuf, first: String },
    #[error("`{folder}` is already a replica of something this site does not know")]
    Taken { folder: PathBuf },
    #[error("the file system of `{folder}` has no symbolic links ({source}); publishing needs them")]
    NoLinks { folder: PathBuf, source: io::Error },
    #[error("`{folder}`: {source}")]
    Io { folder: PathBuf, source: io::Error },
    #[error(transparent)]
    Lake(#[from] LakeError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// What the file system of a replica can do beyond what publishing needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetFacts {
    /// Without hard links, unchanged files of a replaced section are copied.
    pub hard_links: bool,
}

/// Checks that `lake` can be the replica of `space`: empty or already ours, and able to hold links.
pub fn check_target(lake: &Lake, catalog: &Catalog, space: &SpaceId) -> Result<TargetFacts, TargetError> {
    let folder = || lake.root().to_path_buf();
    let failed = |source| TargetError::Io { folder: folder(), source };
    let ours = catalog.read()?.live(space)?.is_some();
    let top = Folder::of(lake.dir(), "probe").map_err(failed)?;
    let (names, strange) = top.names().map_err(failed)?;
    let first = names.iter().find(|n| *n != OWN_FOLDER && !HARMLESS.contains(&n.as_str()));
    if !ours && (first.is_some() || strange > 0) {
        let first = first.cloned().unwrap_or_else(|| "a name that is not UTF-8".to_string());
        return Err(TargetError::NotEmpty { folder: folder(), first });
    }
    let own = Folder::of(lake.own()?, "probe").map_err(failed)?;
    if !ours && own.look(LIVE_LINK).map_err(failed)?.is_some() {
        return Err(TargetError::Taken { folder: folder() });
    }
    probe(&own, lake)
}

fn probe(own: &Folder, lake: &Lake) -> Result<TargetFacts, TargetError> {
    let folder = || lake.root().to_path_buf();
    let failed = |source| TargetError::Io { folder: folder(), source };
    let clean = || [PROBE, PROBE_LINK, PROBE_HARD].iter().try_for_each(|name| own.remove(name));
    clean().map_err(failed)?;
    let linked = own.symlink(PROBE, PROBE_LINK);
    let file = own.file_rw(PROBE, true).map_err(failed)?;
    drop(file);
    let hard_links = own.hard_link(PROBE, own, PROBE_HARD).is_ok();
    clean().map_err(failed)?;
    linked.map_err(|source| TargetError::NoLinks { folder: folder(), source })?;
    Ok(TargetFacts { hard_links })
}

/// The text a link of a deep section gets on a replica.
///
/// Inside its section it stays as it is. A link to elsewhere in the lake goes through the live
/// generation, because the section's folder does not lie beside the others.
pub(crate) fn link_text(section: Option<&LakePath>, path: &LakePath, target: &str) -> Result<String, PublishError> {
    let lake_path = super::old::lake_path(section, path)?;
    let to = resolve_link(&lake_path, target)?;
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let root: Vec<&str> = section.iter().flat_map(|s| s.names()).collect();
    let mut from: Vec<&str> = path.names().collect();
    from.pop();
    if to.len() >= root.len() && to[..root.len()] == root[..] {
        return Ok(relative(&from, &to[root.len()..]));
    }
    let mut physical = vec![SECTIONS_FOLDER, "*"];
    physical.extend(&from);
    let mut through = vec![LIVE_LINK];
    through.extend(&to);
    Ok(relative(&physical, &through))
}

/// The text of a link that lies in a generation, which has the lake's own shape.
pub(crate) fn generation_link_text(lake_path: &LakePath, target: &str) -> Result<String, LinkError> {
    let to = resolve_link(lake_path, target)?;
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let mut from: Vec<&str> = lake_path.names().collect();
    from.pop();
    Ok(relative(&from, &to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(section: Option<&str>, path: &str, target: &str) -> String {
        let parse = |t: &str| LakePath::parse(t).unwrap();
        link_text(section.map(parse).as_ref(), &parse(path), target).unwrap()
    }

    #[test]
    fn links_inside_a_section_keep_their_text() {
        assert_eq!(text(Some("raw"), "a/l", "../b"), "../b");
        assert_eq!(text(Some("raw"), "l", "2024/x"), "2024/x");
        assert_eq!(text(Some("raw"), "a/l", "."), ".");
        assert_eq!(text(Some("a/raw"), "x/l", "../../raw/y"), "../y");
    }

    #[test]
    fn links_to_elsewhere_go_through_the_live_generation() {
        assert_eq!(text(Some("raw"), "a/l", "../../delta/t"), "../../../live/delta/t");
        assert_eq!(text(Some("raw"), "l", ".."), "../../live");
        let at = LakePath::parse("m/l").unwrap();
        assert_eq!(generation_link_text(&at, "../raw/./x").unwrap(), "../raw/x");
    }
}
