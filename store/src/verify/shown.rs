//! Whether what is published is also shown: the names at the lake's top, and the links of the live generation.
//!
//! Invariant: what is missing and what something else has taken are told apart: the first comes back by
//! itself, the second is a person's.

use std::collections::BTreeSet;
use std::io;

use sluice_protocol::manifest::Entry;

use super::live::Report;
use crate::catalog::{LiveRecord, LiveSection};
use crate::durable::Folder;
use crate::publish::{GENERATIONS_FOLDER, TOP_TAKEN, links_of, top_names_of, top_text};

/// What is said of a name at the lake's top, or of a link below it, that was removed.
const NAME_GONE: &str = "the link into the live version is missing";

/// The links by which the live version is seen.
pub(super) struct Shown<'a> {
    top: &'a Folder,
    /// `.sluice`.
    own: &'a Folder,
    generation: u64,
    /// Names at the lake's top that were looked at.
    told: BTreeSet<String>,
}

impl<'a> Shown<'a> {
    pub fn new(top: &'a Folder, own: &'a Folder, record: &LiveRecord) -> Self {
        Self { top, own, generation: record.generation, told: BTreeSet::new() }
    }

    /// Checks how one section is seen; `entries` as far as they can be read.
    pub fn check(&mut self, section: &LiveSection, entries: &[Entry], report: &mut Report) {
        for name in top_names_of(section, entries) {
            // Sections that lie side by side are seen through one name.
            if !self.told.insert(name.clone()) {
                continue;
            }
            match self.top.read_link(&name) {
                Ok(text) if text == top_text(&name) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => report.add("", &name, NAME_GONE),
                _ => report.add("", &name, TOP_TAKEN),
            }
        }
        match links_of(self.generation, section, entries) {
            Err(e) => report.add(section.name(), "", e.to_string()),
            Ok(links) => links.iter().for_each(|(path, text)| self.check_link(section, path, text, report)),
        }
    }

    /// One link of the generation, at a path of the lake.
    fn check_link(&self, section: &LiveSection, path: &str, wanted: &str, report: &mut Report) {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let number = self.generation.to_string();
        let folder = self.own.open(GENERATIONS_FOLDER).and_then(|f| f.open(&number));
        let folder = folder.and_then(|f| above.split('/').filter(|n| !n.is_empty()).try_fold(f, |f, n| f.open(n)));
        match folder.and_then(|f| f.read_link(name)) {
            Ok(text) if text == wanted => {}
            Ok(text) => report.add(section.name(), path, format!("the link leads to `{text}`")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => report.add(section.name(), path, "the link is missing"),
            Err(_) => report.add(section.name(), path, "was replaced here"),
        }
    }
}
