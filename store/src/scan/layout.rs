//! Cuts the tree of a lake into sections.
//!
//! A folder whose contents prove a kind is a section with all that lies below. A folder without
//! one below is one plain section. A mixed folder, and always the lake's top, is entered: what lies
//! in it becomes sections of their own, and the files directly in it a shallow one.
//!
//! Invariant: what comes out has the layout that `Manifest` demands: no section lies inside a deep
//! one, and every file, link and empty folder of the tree belongs to exactly one section.

use std::collections::{BTreeMap, BTreeSet};

use sluice_protocol::manifest::SectionKind;
use sluice_protocol::path::LakePath;
use sluice_protocol::sections::{FolderNames, kind_by_contents, kind_by_name};

use super::walk::Tree;
use super::{Item, Report, SectionEntries, Skip, What};

/// The kind that the contents of a folder prove.
pub(crate) fn proven_kind(tree: &Tree, index: usize) -> Option<SectionKind> {
    let folder = &tree.0[index];
    let folders: Vec<&str> = folder.folders.iter().map(|i| tree.0[*i].name()).collect();
    let files: Vec<&str> = folder.files.iter().map(|f| &*f.name).collect();
    kind_by_contents(FolderNames { name: folder.name(), folders: &folders, files: &files })
}

/// All sections, sorted by folder.
pub(super) fn sections(
    tree: Tree,
    decreed: &BTreeMap<LakePath, SectionKind>,
    report: &mut Report,
) -> Vec<SectionEntries> {
    let mut kinds: Vec<Option<SectionKind>> = (1..tree.0.len()).map(|i| proven_kind(&tree, i)).collect();
    kinds.insert(0, None);
    let mut used = BTreeSet::new();
    for (folder, kind) in tree.0.iter().zip(&mut kinds) {
        if let Some((path, decree)) = folder.path.as_ref().and_then(|p| decreed.get_key_value(p)) {
            *kind = Some(*decree);
            used.insert(path);
        }
    }
    for path in decreed.keys().filter(|p| !used.contains(p)) {
        report.notes.push(Skip::new(path, "the options name a kind for it, but there is no such folder"));
    }
    // Children come after their parents, so one pass from the end tells each folder of those below.
    let mut holds_section: Vec<bool> = kinds.iter().map(Option::is_some).collect();
    for index in (0..tree.0.len()).rev() {
        holds_section[index] |= tree.0[index].folders.iter().any(|i| holds_section[*i]);
    }
    let mut cut = Cut { tree, kinds, holds_section, sections: Vec::new(), report };
    cut.mixed(0);
    let mut sections = cut.sections;
    sections.sort_by(|a, b| a.path.cmp(&b.path));
    sections
}

struct Cut<'a> {
    /// Emptied as its things move into sections: a lake may hold millions.
    tree: Tree,
    kinds: Vec<Option<SectionKind>>,
    holds_section: Vec<bool>,
    sections: Vec<SectionEntries>,
    report: &'a mut Report,
}

impl Cut<'_> {
    /// Cuts up a mixed folder. The depth of a path is bounded, and with it the recursion.
    fn mixed(&mut self, index: usize) {
        let mut shallow = SectionEntries::new(SectionKind::Files, self.tree.0[index].path.clone(), true);
        self.take(index, &mut shallow);
        if !shallow.items.is_empty() {
            shallow.items.sort_unstable_by(|a, b| a.path.cmp(&b.path));
            self.sections.push(shallow);
        }
        for child in std::mem::take(&mut self.tree.0[index].folders) {
            match self.kinds[child] {
                Some(kind) => self.deep(child, kind),
                None if self.holds_section[child] => self.mixed(child),
                None => self.deep(child, kind_by_name(self.tree.0[child].name())),
            }
        }
    }

    fn deep(&mut self, index: usize, kind: SectionKind) {
        let mut section = SectionEntries::new(kind, self.tree.0[index].path.clone(), false);
        let mut below = vec![index];
        let mut seen = 0;
        while let Some(folder) = below.get(seen).map(|i| &self.tree.0[*i]) {
            below.extend(folder.folders.clone());
            seen += 1;
        }
        let things = |i: &usize| self.tree.0[*i].files.len() + self.tree.0[*i].links.len();
        section.items.reserve_exact(below.iter().map(things).sum());
        for at in below {
            let folder = &self.tree.0[at];
            let empty = folder.files.is_empty() && folder.links.is_empty() && folder.folders.is_empty();
            if empty && at != index {
                let (path, mode) = (folder.path.clone().expect(CHECKED), folder.mode);
                self.add(&path, What::Folder { mode }, &mut section);
            }
            self.take(at, &mut section);
        }
        section.items.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        self.sections.push(section);
    }

    /// Moves the files and links directly in a folder.
    fn take(&mut self, index: usize, section: &mut SectionEntries) {
        let folder = &mut self.tree.0[index];
        let (files, links) = (std::mem::take(&mut folder.files), std::mem::take(&mut folder.links));
        let above = folder.path.clone();
        let path = |name: &str| match &above {
            None => LakePath::parse(name).expect(CHECKED),
            Some(above) => above.child(name).expect(CHECKED),
        };
        for file in files {
            let what = What::File { print: file.print, mode: file.mode, hash: None };
            self.add(&path(&file.name), what, section);
        }
        for (name, target) in links {
            self.add(&path(&name), What::Link { target }, section);
        }
    }

    /// Adds one thing, if what is left of its path below the section is a path of its own.
    fn add(&mut self, path: &LakePath, what: What, section: &mut SectionEntries) {
        let below = match &section.path {
            None => Some(path.clone()),
            Some(root) => path.below(root),
        };
        match below {
            Some(path) => section.items.push(Item { path, what }),
            None => {
                let reason = "its name cannot travel from its section's folder";
                self.report.skipped.push(Skip::new(path, reason));
            }
        }
    }
}

const CHECKED: &str = "the walk has checked this path";
