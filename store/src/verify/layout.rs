//! That all paths of a lake can lie in one folder tree.
//!
//! Invariant: after this check no path comes twice, and no file or link has anything below it, over
//! all sections. So publishing needs to make no choice between two entries.

use std::collections::HashSet;

use sluice_protocol::manifest::{Entry, EntryKind, Section};
use sluice_protocol::path::{LakePath, PathError};

use super::links::{LinkError, resolve};

/// Why the entries of a lake contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error("`{path}` is both a file and a folder")]
    FileAndFolder { path: String },
    #[error("`{path}` comes twice")]
    Twice { path: String },
    #[error("section `{section}` holds only the files of its folder, but lists `{path}`")]
    TooDeep { section: String, path: LakePath },
    #[error("section `{section}` lists `{path}`: {source}")]
    Path { section: String, path: LakePath, source: PathError },
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// Longest prefix that Sluice puts before a path of a section, in bytes and in names:
/// `sections/<number>/`.
const OWN_PREFIX: &str = "sections/00000000000000000000";

/// Checks one section by itself, entry by entry in the order of its tree.
pub(super) struct Check<'s> {
    section: &'s Section,
    own: LakePath,
    /// Files and links whose path the last one begins with, each a beginning of the next: what lies below one
    /// of them can only come as long as it is here. So no more is held than a path has characters.
    above: Vec<LakePath>,
}

impl<'s> Check<'s> {
    pub fn new(section: &'s Section) -> Self {
        Self { section, own: LakePath::parse(OWN_PREFIX).expect("a constant path"), above: vec![] }
    }

    /// Checks the next entry.
    pub fn entry(&mut self, entry: &Entry) -> Result<(), LayoutError> {
        let (section, path) = (self.section, &entry.path);
        let name = || section.name().to_string();
        let failed = |source| LayoutError::Path { section: name(), path: path.clone(), source };
        let lake_path = section.lake_path(path).map_err(failed)?;
        self.own.join(path).map_err(failed)?;
        if section.shallow && path.parent().is_some() {
            return Err(LayoutError::TooDeep { section: name(), path: path.clone() });
        }
        if let (EntryKind::Link, Some(target)) = (entry.kind, &entry.target) {
            resolve(&lake_path, target)?;
        }
        // `a-b` sorts between `a` and `a/b`, and begins with `a`, too.
        while self.above.pop_if(|above| !path.as_str().starts_with(above.as_str())).is_some() {}
        let below = |above: &&LakePath| path.as_str()[above.as_str().len()..].starts_with('/');
        if let Some(above) = self.above.iter().find(below) {
            return Err(LayoutError::FileAndFolder { path: full_name(section, above) });
        }
        if entry.kind != EntryKind::Folder {
            self.above.push(path.clone());
        }
        Ok(())
    }
}

fn full_name(section: &Section, path: &LakePath) -> String {
    section.lake_path(path).map_or_else(|_| path.to_string(), |p| p.to_string())
}

/// Checks that sections do not get into each other's way. The manifest has seen to it that no
/// section lies inside a deep one, so only entries of shallow sections can meet another section.
///
/// `shallow` holds the entries of the shallow ones among `sections`.
pub(super) fn check_between(sections: &[&Section], shallow: &[(&Section, Vec<Entry>)]) -> Result<(), LayoutError> {
    let mut folders: HashSet<&str> = HashSet::new();
    let mut roots: HashSet<&str> = HashSet::new();
    for path in sections.iter().filter_map(|s| s.path.as_ref()) {
        roots.insert(path.as_str());
        let mut text = path.as_str();
        while folders.insert(text)
            && let Some((above, _)) = text.rsplit_once('/')
        {
            text = above;
        }
    }
    for (section, entries) in shallow {
        for entry in entries {
            let path = full_name(section, &entry.path);
            if entry.kind == EntryKind::Folder {
                if roots.contains(path.as_str()) {
                    return Err(LayoutError::Twice { path });
                }
            } else if folders.contains(path.as_str()) {
                return Err(LayoutError::FileAndFolder { path });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_protocol::manifest::{SectionKind, SectionState};
    use sluice_protocol::tree::TreeRef;

    fn path(text: &str) -> LakePath {
        LakePath::parse(text).unwrap()
    }

    fn entry(text: &str, kind: EntryKind) -> Entry {
        Entry {
            path: path(text),
            kind,
            size: 0,
            hash: None,
            mode: None,
            mtime_ns: None,
            target: (kind == EntryKind::Link).then(|| "x".to_string()),
            unknown: Default::default(),
        }
    }

    fn section(at: Option<&str>, shallow: bool) -> Section {
        let tree = TreeRef {
            page: sluice_protocol::ids::BlobHash([0; 32]),
            height: 0,
            items: 0,
            weight: 0,
            unknown: Default::default(),
        };
        Section {
            kind: SectionKind::Files,
            path: at.map(path),
            shallow,
            state: SectionState {
                table_version: None,
                params: None,
                history: None,
                opaque: false,
                unknown: Default::default(),
            },
            tree,
            unknown: Default::default(),
        }
    }

    fn check_section(section: &Section, entries: &[Entry]) -> Result<(), LayoutError> {
        let mut check = Check::new(section);
        entries.iter().try_for_each(|e| check.entry(e))
    }

    #[test]
    fn a_file_with_something_below_it_is_refused() {
        let s = section(Some("raw"), false);
        let file = |p| entry(p, EntryKind::File);
        // `a-b` sorts between `a` and `a/b`.
        let bad = [file("a"), file("a-b"), file("a/b")];
        assert!(matches!(check_section(&s, &bad), Err(LayoutError::FileAndFolder { path }) if path == "raw/a"));
        let bad = [entry("a", EntryKind::Link), file("a/b/c")];
        assert!(check_section(&s, &bad).is_err());
        let bad = [file("a"), file("a-"), file("a-/b")];
        assert!(matches!(check_section(&s, &bad), Err(LayoutError::FileAndFolder { path }) if path == "raw/a-"));
        let bad = [file("a"), file("a-"), file("a-b"), file("a/b")];
        assert!(matches!(check_section(&s, &bad), Err(LayoutError::FileAndFolder { path }) if path == "raw/a"));
        let fine = [entry("a", EntryKind::Folder), file("a/b"), file("a/c/d"), file("b")];
        assert_eq!(check_section(&s, &fine), Ok(()));
    }

    #[test]
    fn sections_do_not_meet() {
        let top = section(None, true);
        let deep = section(Some("a/b"), false);
        let check = |e: Entry| check_between(&[&top, &deep], &[(&top, vec![e])]);
        for clash in ["a", "a/b"] {
            let entry = entry(clash, EntryKind::File);
            assert!(matches!(check(entry), Err(LayoutError::FileAndFolder { .. })), "{clash}");
        }
        assert!(check(entry("a/b", EntryKind::Folder)).is_err());
        assert!(check(entry("c", EntryKind::File)).is_ok());
        assert!(check(entry("a", EntryKind::Folder)).is_ok());
    }

    #[test]
    fn a_shallow_section_is_flat() {
        let s = section(None, true);
        assert!(matches!(check_section(&s, &[entry("a/b", EntryKind::File)]), Err(LayoutError::TooDeep { .. })));
    }
}
