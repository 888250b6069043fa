//! Where a reader finds one version of a space.
//!
//! Invariant: path, snapshot and table versions of one answer are of the same moment: they come from
//! one view of the catalog.

use std::collections::BTreeMap;

use sluice_protocol::api::{ApiError, Failure, PathAnswer, SectionInfo};
use sluice_protocol::path::LakePath;
use sluice_store::catalog::{Lookup, Role};
use sluice_store::publish;

use super::SiteNode;
use super::spaces::text_of;
use crate::errors::OrExplain;

impl SiteNode {
    pub(super) fn path(&self, name: &str, section: Option<String>) -> Result<PathAnswer, ApiError> {
        let (space, record) = self.site.space_named(name)?;
        let reader = self.site.catalog.read().or_explain()?;
        let not_yet = || {
            let hint = format!("run `sluice sync {name}` and wait until it is ready");
            ApiError::new(Failure::Incomplete, format!("nothing of `{name}` is published here yet"), hint)
        };
        let lake = self.site.lake_of(&record)?;
        let live = reader.live(&space).or_explain()?;
        let snapshot = match record.role {
            Role::Owner => self.live_snapshot(&reader, &space, &record)?,
            Role::Replica => live.as_ref().map(|l| l.snapshot),
        };
        let snapshot = snapshot.ok_or_else(not_yet)?;
        let sections = self.sections_of(&reader, &space, &snapshot)?;
        let asked = section.map(|text| called(&sections, &text).map(|()| text)).transpose()?;
        let below = match asked.as_deref() {
            None | Some(".") => None,
            Some(text) => LakePath::parse(text).ok(),
        };
        let path = match (record.role, &live) {
            (Role::Owner, _) => {
                Some(below.as_ref().map_or(lake.root().to_path_buf(), |p| lake.root().join(p.as_str())))
            }
            (Role::Replica, Some(live)) => publish::path_of(&lake, live, below.as_ref()),
            (Role::Replica, None) => None,
        };
        let tables = tables_below(&sections, asked.as_deref());
        Ok(PathAnswer { path: text_of(&path.ok_or_else(not_yet)?)?, snapshot, tables })
    }
}

/// Fails unless there is a section of this name.
fn called(sections: &[SectionInfo], text: &str) -> Result<(), ApiError> {
    if sections.iter().any(|s| s.name == text) {
        return Ok(());
    }
    let names: Vec<&str> = sections.iter().map(|s| s.name.as_str()).collect();
    let hint = format!("the sections are: {}", names.join(", "));
    Err(ApiError::new(Failure::Error, format!("there is no section `{text}`"), hint))
}

/// Versions of the tables in the section asked for, or in all.
fn tables_below(sections: &[SectionInfo], asked: Option<&str>) -> BTreeMap<String, u64> {
    let version = |s: &SectionInfo| s.table.as_ref().map(|t| t.version);
    match asked {
        Some(name) => {
            let table = sections.iter().find(|s| s.name == name).and_then(version);
            table.map(|v| (".".to_string(), v)).into_iter().collect()
        }
        None => sections.iter().filter_map(|s| Some((s.name.clone(), version(s)?))).collect(),
    }
}
