//! Which links travel: relative ones that stay inside the lake.
//!
//! Invariant: the target of a link that is kept leads, name by name and in truth, to somewhere
//! inside the lake and outside Sluice's own folder. An absolute link does not travel even if it
//! points inside: on another site the lake lies elsewhere.

use std::os::fd::AsFd;
use std::path::PathBuf;

use sluice_protocol::limits::LINK_TARGET_BYTES_MAX;
use sluice_protocol::path::{LakePath, OWN_FOLDER};

use crate::lake::Lake;

/// Reads the link at `path`, which lies in the open folder `dir`, and says where it points or why it stays behind.
pub(super) fn check(lake: &Lake, dir: &cap_std::fs::Dir, path: &LakePath) -> Result<String, String> {
    let raw = rustix::fs::readlinkat(dir.as_fd(), path.file_name(), Vec::new())
        .map_err(|e| format!("the link cannot be read: {}", std::io::Error::from(e)))?;
    let target = raw.into_string().map_err(|_| "the link's target is not UTF-8".to_string())?;
    if target.starts_with('/') {
        return Err(format!("it is an absolute link, to `{target}`; a relative one would travel"));
    }
    if target.is_empty() || target.len() > LINK_TARGET_BYTES_MAX || target.contains('\\') {
        return Err("the link's target cannot travel".into());
    }
    let names = resolve(path, &target).ok_or_else(|| format!("it leads out of the lake, to `{target}`"))?;
    match names.first() {
        None => return Err("it leads to the lake's top".into()),
        Some(top) if top.eq_ignore_ascii_case(OWN_FOLDER) => {
            return Err(format!("it leads into `{OWN_FOLDER}`"));
        }
        Some(_) => {}
    }
    if stays_inside(lake, path, &target) {
        Ok(target)
    } else {
        Err(format!("it leads out of the lake through another link, by `{target}`"))
    }
}

/// The names that `target` leads to from the folder of `path`, without looking at the disk; none when it leads above the top.
fn resolve<'a>(path: &'a LakePath, target: &'a str) -> Option<Vec<&'a str>> {
    let mut names: Vec<&str> = path.names().collect();
    names.pop();
    for name in target.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop()?;
            }
            name => names.push(name),
        }
    }
    Some(names)
}

/// Whether the target, with all links on the way followed as far as they exist, is inside the lake.
fn stays_inside(lake: &Lake, path: &LakePath, target: &str) -> bool {
    let own = lake.root().join(OWN_FOLDER);
    let mut at: PathBuf = lake.root().to_path_buf();
    at.extend(path.parent().iter().flat_map(|p| p.names()));
    for name in target.split('/').filter(|n| !n.is_empty()) {
        at.push(name);
        match at.canonicalize() {
            Ok(real) if real.starts_with(&own) || !real.starts_with(lake.root()) => return false,
            Ok(real) => at = real,
            // What is not there leads nowhere; the names alone have been checked before.
            Err(_) => return !is_link_out(&at, lake),
        }
    }
    true
}

/// Whether a name that cannot be followed is a link whose own target is not inside the lake.
fn is_link_out(at: &std::path::Path, lake: &Lake) -> bool {
    let (Ok(target), Some(folder)) = (std::fs::read_link(at), at.parent()) else { return false };
    let above = folder.join(target);
    let real = above.ancestors().find_map(|p| p.canonicalize().ok());
    real.is_some_and(|r| !r.starts_with(lake.root()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_followed_without_the_disk() {
        let from = LakePath::parse("a/b/link").unwrap();
        assert_eq!(resolve(&from, "c"), Some(vec!["a", "b", "c"]));
        assert_eq!(resolve(&from, "../../x/./y"), Some(vec!["x", "y"]));
        assert_eq!(resolve(&from, "../.."), Some(vec![]));
        assert_eq!(resolve(&from, "../../.."), None);
        assert_eq!(resolve(&from, "../../../lake/x"), None);
    }
}
