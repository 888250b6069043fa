//! The annex: what is derived from a manifest. Hashed in the head, never part of the snapshot id.
//!
//! Invariant: whoever holds the manifest and the lake could make the annex again; a wrong annex can
//! cost bytes or a refusal to publish, never wrong data.

use crate::codec::{CodecError, Document, at_most};
use crate::ids::{BlobHash, SnapshotId};
use crate::limits;
use crate::manifest::SectionKind;
use crate::path::LakePath;
use crate::record;
use crate::tree::{TreeItem, TreeRef};

record! {
    /// A vector column.
    pub struct Dimension {
        0 => column: String,
        /// Length of each vector, in elements.
        1 => dim: u32,
    }
}

record! {
    /// An index that travels with a table.
    pub struct IndexFacts {
        0 => name: String,
        1 => column: String,
        /// The format's own name for the index type.
        2 => kind: String,
        /// Rows that the index covers.
        3 => rows: u64,
    }
}

record! {
    /// What a table is, as its reader says after reading it.
    #[derive(Default)]
    pub struct TableFacts {
        /// The newest version.
        0 => version: u64,
        /// Every version that can be read, ascending.
        1 => versions: Vec<u64>,
        /// Rows of the newest version, by scan.
        2 => rows: u64,
        /// BLAKE3 of the schema's canonical text.
        3 => schema_fingerprint: [u8; 32],
        4 => dimensions: Vec<Dimension>,
        5 => indices: Vec<IndexFacts>,
        /// Format features in use, sorted.
        6 => features: Vec<String>,
        /// Tag names and their versions, as `name=version`, sorted.
        7 => tags: Vec<String>,
    }
}

impl TableFacts {
    /// Fails when a list or a text is longer than it may be.
    pub fn check(&self) -> Result<(), CodecError> {
        at_most("the number of table versions", self.versions.len() as u64, limits::TABLE_VERSIONS_MAX as u64)?;
        let lists = [self.dimensions.len(), self.indices.len(), self.features.len(), self.tags.len()];
        let texts = self.dimensions.iter().map(|d| &d.column).chain(&self.features).chain(&self.tags);
        let texts = texts.chain(self.indices.iter().flat_map(|i| [&i.name, &i.column, &i.kind]));
        for len in lists {
            at_most("the number of table facts", len as u64, limits::TABLE_FACTS_MAX as u64)?;
        }
        for text in texts {
            at_most("the length of a table fact", text.len() as u64, limits::TEXT_BYTES_MAX as u64)?;
        }
        Ok(())
    }
}

record! {
    /// The facts of one table section.
    pub struct TableAnnex {
        0 => section: Option<LakePath>,
        1 => kind: SectionKind,
        2 => facts: TableFacts,
    }
}

record! {
    /// Where the chunk list of a blob is.
    pub struct ChunkListRef {
        0 => blob: BlobHash,
        /// The list, itself a blob.
        1 => list: BlobHash,
        /// Length of the list, in bytes.
        2 => list_bytes: u64,
    }
}

impl TreeItem for ChunkListRef {
    fn key(&self) -> &[u8] {
        &self.blob.0
    }
    fn weight(&self) -> u64 {
        self.list_bytes
    }
    fn check_item(&self) -> Result<(), CodecError> {
        at_most("a chunk list", self.list_bytes, limits::CHUNK_LIST_BYTES_MAX)
    }
}

record! {
    /// What is derived from one manifest.
    pub struct Annex {
        0 => manifest: SnapshotId,
        1 => tables: Vec<TableAnnex>,
        /// A tree of [`ChunkListRef`], by blob.
        2 => chunk_lists: Option<TreeRef>,
    }
}

impl Annex {
    /// The facts of the table in the given section.
    pub fn facts(&self, section: Option<&LakePath>) -> Option<&TableFacts> {
        self.tables.iter().find(|t| t.section.as_ref() == section).map(|t| &t.facts)
    }
}

impl Document for Annex {
    const KIND: &'static str = "sluice/annex";
    const VERSION: u64 = 1;
    const BYTES_MAX: usize = limits::MANIFEST_BYTES_MAX;

    fn check(&self) -> Result<(), CodecError> {
        if let Some(tree) = &self.chunk_lists {
            tree.check()?;
        }
        at_most("the number of tables", self.tables.len() as u64, limits::SECTIONS_MAX as u64)?;
        let mut sections = std::collections::BTreeSet::new();
        for table in &self.tables {
            if !sections.insert(&table.section) {
                return Err(CodecError::Invalid("the annex has two records of one table".into()));
            }
            table.facts.check()?;
        }
        Ok(())
    }
}
