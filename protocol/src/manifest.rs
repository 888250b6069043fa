//! A manifest: all sections and entries of one version of a lake. Its hash is the snapshot id.
//!
//! Invariant: the id covers paths, sizes, blob hashes, mode bits, modification times where they
//! mean something, section kinds, table versions and parameters, and nothing derived. So an
//! unchanged lake has an unchanged id, and a better chunker never changes one.

use std::fmt;
use std::str::FromStr;

use crate::codec::{CodecError, Dec, Document, Enc, Wire, at_most, infallible};
use crate::ids::{BlobHash, SnapshotId};
use crate::limits;
use crate::path::LakePath;
use crate::record;
use crate::tree::{TreeItem, TreeRef};

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $code:literal $variant:ident $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vdoc])* $variant),* }
        impl $name {
            /// Every variant.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];
            /// The word for it.
            pub fn as_str(self) -> &'static str { match self { $($name::$variant => $text),* } }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.pad(self.as_str()) }
        }
        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                $name::ALL.iter().copied().find(|k| k.as_str() == text)
                    .ok_or_else(|| format!(concat!("`{}` is not ", $what), text))
            }
        }
        impl Wire for $name {
            fn put(&self, e: &mut Enc) { infallible(e.u8(match self { $($name::$variant => $code),* })); }
            fn get(d: &mut Dec<'_>) -> Result<Self, CodecError> {
                match d.u8()? {
                    $($code => Ok($name::$variant),)*
                    other => Err(CodecError::Invalid(format!(concat!("{} is not ", $what), other))),
                }
            }
        }
    };
}

codes!(
    /// What a section holds; found by layout, overridable in the config.
    SectionKind, "a section kind" {
        0 Files "files", 1 Delta "delta", 2 Lance "lance", 3 Parquet "parquet", 4 Faiss "faiss",
        5 Lora "lora", 6 Model "model", 7 Params "params", 8 Metadata "metadata",
        9 Knowledge "knowledge", 10 Handlers "handlers", 11 Logs "logs", 12 Raw "raw",
    }
);

codes!(
    /// Which versions of a table a snapshot keeps.
    History, "a history mode (all, tagged or latest)" {
        /// Every version whose files still exist.
        0 All "all",
        /// The newest version and those that carry a tag.
        1 Tagged "tagged",
        /// The newest version only.
        2 Latest "latest",
    }
);

codes!(
    /// What an entry is.
    EntryKind, "an entry kind" { 0 File "file", 1 Folder "folder", 2 Link "link" }
);

impl SectionKind {
    /// Whether a table reader is needed to know what belongs to it.
    pub fn is_table(self) -> bool {
        matches!(self, SectionKind::Delta | SectionKind::Lance)
    }

    /// Its turn in a transfer, lowest first: what says how the rest is to be used, then what is asked first, then tables, then
    /// what is large and of use only whole.
    pub fn turn(self) -> u8 {
        match self {
            SectionKind::Params | SectionKind::Metadata | SectionKind::Knowledge | SectionKind::Handlers => 0,
            SectionKind::Faiss | SectionKind::Lora => 1,
            SectionKind::Delta | SectionKind::Lance | SectionKind::Parquet => 2,
            SectionKind::Model => 3,
            SectionKind::Files | SectionKind::Raw | SectionKind::Logs => 4,
        }
    }
}

/// Puts sections in the order in which they are to arrive: as a person named them (by kind or name; nobody, then
/// by their kinds' turn), and else as they were.
pub fn in_turn(sections: &mut [&Section], named: &[String]) {
    let place = |s: &Section| named.iter().position(|n| s.answers_to(n)).unwrap_or(named.len());
    sections.sort_by_key(|s| (place(s), s.kind.turn()));
}

record! {
    /// One file, empty folder or link of a section.
    pub struct Entry {
        /// Path below the section root.
        0 => path: LakePath,
        1 => kind: EntryKind,
        /// Length in bytes; 0 for folders and links.
        2 => size: u64,
        /// The bytes of a file.
        3 => hash: Option<BlobHash>,
        /// Permission bits (`0o777` at most) where the file system has them.
        4 => mode: Option<u32>,
        /// Nanoseconds since the Unix epoch where the time means something (plain files, Delta commits).
        5 => mtime_ns: Option<i64>,
        /// Where a link points, relative, inside the lake.
        6 => target: Option<String>,
    }
}

impl Entry {
    /// Checks that the fields belong together.
    pub fn check(&self) -> Result<(), CodecError> {
        let ok = match self.kind {
            EntryKind::File => self.hash.is_some() && self.target.is_none() && self.size <= limits::FILE_BYTES_MAX,
            EntryKind::Folder => self.hash.is_none() && self.target.is_none() && self.size == 0,
            EntryKind::Link => {
                self.hash.is_none()
                    && self.size == 0
                    && self.target.as_ref().is_some_and(|t| {
                        !t.is_empty()
                            && t.len() <= limits::LINK_TARGET_BYTES_MAX
                            && !t.starts_with('/')
                            && !t.contains(['\0', '\\'])
                    })
            }
        };
        if !ok || self.mode.is_some_and(|m| m > 0o777) {
            return Err(CodecError::Invalid(format!("the entry `{}` contradicts itself", self.path)));
        }
        Ok(())
    }
}

impl TreeItem for Entry {
    fn key(&self) -> &[u8] {
        self.path.as_str().as_bytes()
    }
    fn weight(&self) -> u64 {
        self.size
    }
    fn check_item(&self) -> Result<(), CodecError> {
        self.check()
    }
}

record! {
    /// What a section's version is, in the words of its format.
    pub struct SectionState {
        /// The newest table version that the section holds.
        0 => table_version: Option<u64>,
        /// The hash of the installation parameters.
        1 => params: Option<[u8; 32]>,
        /// Which table versions are kept.
        2 => history: Option<History>,
        /// Carried as files, not read as a table: shown as unproven.
        3 => opaque: bool,
    }
}

record! {
    /// A typed part of a lake.
    pub struct Section {
        0 => kind: SectionKind,
        /// The section's folder; none for the lake's top.
        1 => path: Option<LakePath>,
        /// Only the files directly in the folder belong to it, not what lies deeper.
        2 => shallow: bool,
        3 => state: SectionState,
        /// The entries, sorted by path.
        4 => tree: TreeRef,
    }
}

impl Section {
    /// Whether a person means this section by `name`: its kind, its folder or one above it.
    pub fn answers_to(&self, name: &str) -> bool {
        let folder = self.name();
        let below = |folder: &str| folder.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
        name == self.kind.as_str() || name == folder || below(folder)
    }

    /// How people name it: its folder, or `.` for the lake's top.
    pub fn name(&self) -> &str {
        self.path.as_ref().map_or(".", LakePath::as_str)
    }

    /// The path below the lake of an entry of this section.
    pub fn lake_path(&self, entry: &LakePath) -> Result<LakePath, crate::path::PathError> {
        match &self.path {
            None => Ok(entry.clone()),
            Some(folder) => folder.join(entry),
        }
    }
}

record! {
    /// All sections of one version, sorted by folder.
    pub struct Manifest {
        0 => sections: Vec<Section>,
    }
}

impl Manifest {
    /// A manifest of these sections, in order.
    pub fn new(mut sections: Vec<Section>) -> Self {
        sections.sort_by(|a, b| a.path.cmp(&b.path));
        Self { sections, unknown: Default::default() }
    }

    /// The snapshot id.
    pub fn id(&self) -> SnapshotId {
        BlobHash::of(&self.to_bytes()).into()
    }

    /// Entries in all sections.
    pub fn entries(&self) -> u64 {
        self.sections.iter().fold(0, |n, s| n.saturating_add(s.tree.items))
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.sections.iter().fold(0, |n, s| n.saturating_add(s.tree.weight))
    }
}

impl Document for Manifest {
    const KIND: &'static str = "sluice/manifest";
    const VERSION: u64 = 1;
    const BYTES_MAX: usize = limits::MANIFEST_BYTES_MAX;

    fn check(&self) -> Result<(), CodecError> {
        at_most("the number of sections", self.sections.len() as u64, limits::SECTIONS_MAX as u64)?;
        self.sections.iter().try_for_each(|s| s.tree.check())?;
        at_most("the number of entries", self.entries(), limits::ENTRIES_MAX)?;
        at_most("the number of bytes", self.bytes(), limits::LAKE_BYTES_MAX)?;
        check_layout(&self.sections)
    }
}

/// Sections are sorted, each folder once, and a deep section contains no other.
fn check_layout(sections: &[Section]) -> Result<(), CodecError> {
    for pair in sections.windows(2) {
        if pair[0].path >= pair[1].path {
            return Err(CodecError::NotCanonical);
        }
    }
    let deep: std::collections::BTreeSet<&str> =
        sections.iter().filter(|s| !s.shallow).map(|s| s.path.as_ref().map_or("", LakePath::as_str)).collect();
    for s in sections {
        let Some(path) = &s.path else { continue };
        let mut above = path.parent();
        while let Some(folder) = above {
            if deep.contains(folder.as_str()) {
                return Err(CodecError::Invalid(format!("the section `{path}` lies inside the section `{folder}`")));
            }
            above = folder.parent();
        }
        if deep.contains("") {
            return Err(CodecError::Invalid(format!("the section `{path}` lies inside the section at the top")));
        }
    }
    Ok(())
}
