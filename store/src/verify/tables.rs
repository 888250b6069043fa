//! Whether a table made of the received bytes is the table that its source described.
//!
//! Invariant: a table is called proven only when a reader opened it here, from these bytes, and its
//! facts are those of the annex. What could not be opened is said to be unproven, with the reason.

use std::sync::Arc;

use sluice_protocol::annex::{Annex, TableFacts};
use sluice_protocol::manifest::{Entry, Section};

use super::{Proof, VerifyError};
use crate::blobs::BlobError;
use crate::table::TableReader;
use crate::view::ManifestView;

pub(super) struct Check<'a> {
    /// Makes a view of a section's files.
    pub view: &'a dyn Fn(&[Entry]) -> Result<ManifestView, BlobError>,
    pub annex: &'a Annex,
    pub readers: &'a [Arc<dyn TableReader>],
}

impl Check<'_> {
    /// Opens the section through a view of its verified blobs and compares. `entries` is asked only
    /// for tables that can be opened.
    pub fn prove(
        &self,
        section: &Section,
        entries: &dyn Fn() -> Result<Vec<Entry>, VerifyError>,
    ) -> Result<Proof, VerifyError> {
        if !section.kind.is_table() {
            return Ok(Proof::Files);
        }
        if section.state.opaque {
            return Ok(Proof::Unproven("carried as files, not read as a table".into()));
        }
        let table = section.name();
        let said = self.annex.facts(section.path.as_ref());
        let said = said.ok_or_else(|| VerifyError::NoFacts { table: table.into() })?;
        let listed = section.state.table_version.unwrap_or(said.version);
        if listed != said.version {
            return Err(disagrees(table, "the version in the manifest", &listed, &said.version));
        }
        let Some(reader) = self.readers.iter().find(|r| r.kind() == section.kind) else {
            return Ok(Proof::Unproven(format!("this build cannot read {} tables", section.kind)));
        };
        let found = reader.prove(table, Arc::new((self.view)(&entries()?)?))?;
        compare(table, &found, said)?;
        Ok(Proof::Proven(Box::new(found)))
    }
}

fn disagrees<T: std::fmt::Debug>(table: &str, what: &'static str, found: &T, said: &T) -> VerifyError {
    VerifyError::Disagrees {
        table: table.to_string(),
        what,
        found: format!("{found:?}"),
        source_says: format!("{said:?}"),
    }
}

/// Names the first fact that differs, with both values.
fn compare(table: &str, found: &TableFacts, said: &TableFacts) -> Result<(), VerifyError> {
    let same = |what, equal: bool, error: &dyn Fn(&'static str) -> VerifyError| {
        if equal { Ok(()) } else { Err(error(what)) }
    };
    same("the version", found.version == said.version, &|w| disagrees(table, w, &found.version, &said.version))?;
    same("the list of readable versions", found.versions == said.versions, &|w| {
        disagrees(table, w, &found.versions, &said.versions)
    })?;
    same("the number of rows", found.rows == said.rows, &|w| disagrees(table, w, &found.rows, &said.rows))?;
    same("the schema's fingerprint", found.schema_fingerprint == said.schema_fingerprint, &|w| {
        let hex = |f: &TableFacts| short_hex(&f.schema_fingerprint);
        disagrees(table, w, &hex(found), &hex(said))
    })?;
    same("the vector dimensions", found.dimensions == said.dimensions, &|w| {
        disagrees(table, w, &found.dimensions, &said.dimensions)
    })?;
    same("the list of indices", found.indices == said.indices, &|w| disagrees(table, w, &found.indices, &said.indices))
}

fn short_hex(bytes: &[u8; 32]) -> String {
    sluice_protocol::ids::BlobHash(*bytes).short()
}
