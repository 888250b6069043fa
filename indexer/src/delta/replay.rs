//! Which versions of a Delta table can be read, and which files that takes.
//!
//! The commits are replayed once from the earliest version that can be rebuilt, as the protocol
//! says a reader does: a file is in a version when it was added and not removed under its path and
//! deletion vector. Invariant: a version counts as readable only when every data file and every
//! deletion-vector file of it exists.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use delta_kernel::actions::deletion_vector::{DeletionVectorDescriptor as KernelVector, DeletionVectorStorageType};
use deltalake::kernel::{Add, AddCDCFile, DeletionVectorDescriptor, Remove};
use serde::Deserialize;
use sluice_protocol::path::{LakePath, PathError};
use sluice_store::table::SectionView;
use url::Url;

use crate::listing;
use crate::view_store::ViewStore;

/// The actions of one line of a commit that say something about files. Others are passed over.
#[derive(Deserialize)]
pub struct Line {
    add: Option<Add>,
    remove: Option<Remove>,
    cdc: Option<AddCDCFile>,
}

/// A data file under the deletion vector that applies to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    /// Path as the log gives it, percent-decoded once.
    pub path: String,
    /// The vector's unique id, as the protocol defines it.
    pub vector: Option<String>,
}

/// One file that a version needs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Inside the table, and there.
    Here(LakePath),
    /// Inside the table, and not there.
    Missing(String),
    /// Outside the table.
    Outside(String),
    /// Under a name that no lake may carry.
    Unfit(String),
}

/// The files of a version that stand behind one [`FileKey`].
#[derive(Debug, Clone)]
struct Active {
    data: Place,
    vector: Option<Place>,
}

impl Active {
    fn places(&self) -> impl Iterator<Item = &Place> {
        std::iter::once(&self.data).chain(&self.vector)
    }

    fn is_whole(&self) -> bool {
        self.places().all(|p| matches!(p, Place::Here(_)))
    }

    fn paths(&self) -> impl Iterator<Item = &LakePath> {
        self.places().filter_map(|p| match p {
            Place::Here(path) => Some(path),
            _ => None,
        })
    }
}

/// Why the newest version cannot be carried.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// A file outside the table.
    Outside(String),
    /// A file whose name no lake may carry.
    Unfit(String),
    /// A file that is not there.
    Missing(String),
}

/// The replay of one table.
pub struct Replay {
    view: Arc<dyn SectionView>,
    active: HashMap<FileKey, Active>,
    /// How many active files are not here.
    lacking: usize,
    /// Keys that became active since the last version that was kept; `None` when all must be taken.
    fresh: Option<Vec<FileKey>>,
    versions: Vec<u64>,
    files: BTreeSet<LakePath>,
}

impl Replay {
    /// Starts with nothing active; `view` says which files there are.
    pub fn new(view: Arc<dyn SectionView>) -> Self {
        Self { view, active: HashMap::new(), lacking: 0, fresh: None, versions: Vec::new(), files: BTreeSet::new() }
    }

    /// Makes a file active, as an add action or a checkpoint does.
    pub fn add(&mut self, path: &str, vector: Option<&DeletionVectorDescriptor>) {
        let key = FileKey { path: path.to_string(), vector: vector.map(vector_id) };
        let entry = Active { data: self.place(path), vector: vector.and_then(|v| self.vector_place(v)) };
        self.lacking += usize::from(!entry.is_whole());
        if let Some(fresh) = &mut self.fresh {
            fresh.push(key.clone());
        }
        if let Some(before) = self.active.insert(key, entry) {
            self.lacking -= usize::from(!before.is_whole());
        }
    }

    fn remove(&mut self, path: &str, vector: Option<&DeletionVectorDescriptor>) {
        let key = FileKey { path: path.to_string(), vector: vector.map(vector_id) };
        if let Some(before) = self.active.remove(&key) {
            self.lacking -= usize::from(!before.is_whole());
        }
    }

    /// Applies one commit. Removals come first: within a commit the order means nothing, and an
    /// add never meets a removal of the same file and vector.
    pub fn commit(&mut self, lines: &[Line]) {
        for remove in lines.iter().filter_map(|l| l.remove.as_ref()) {
            self.remove(&remove.path, remove.deletion_vector.as_ref());
        }
        for line in lines {
            if let Some(add) = &line.add {
                self.add(&add.path, add.deletion_vector.as_ref());
            }
        }
    }

    /// Takes the change-data files of one commit, those that are still here.
    pub fn take_change_data(&mut self, lines: &[Line]) {
        for cdc in lines.iter().filter_map(|l| l.cdc.as_ref()) {
            if let Place::Here(path) = self.place(&cdc.path) {
                self.files.insert(path);
            }
        }
    }

    /// Ends a version: keeps it, with its files, when all of them are here.
    pub fn end_version(&mut self, version: u64) {
        if self.lacking > 0 {
            self.fresh = None;
            return;
        }
        self.versions.push(version);
        match self.fresh.take() {
            Some(fresh) => {
                let entries = fresh.iter().filter_map(|key| self.active.get(key));
                self.files.extend(entries.flat_map(Active::paths).cloned());
            }
            None => self.files.extend(self.active.values().flat_map(Active::paths).cloned()),
        }
        self.fresh = Some(Vec::new());
    }

    /// What keeps the version that was ended last from being read, if anything does.
    pub fn obstacle(&self) -> Option<Obstacle> {
        let all = self.active.values().flat_map(Active::places);
        let found = all.filter_map(|p| match p {
            Place::Here(_) => None,
            Place::Outside(uri) => Some(Obstacle::Outside(uri.clone())),
            Place::Unfit(name) => Some(Obstacle::Unfit(name.clone())),
            Place::Missing(file) => Some(Obstacle::Missing(file.clone())),
        });
        // What is outside stays outside, so it comes first; what is missing may yet come.
        found.min()
    }

    /// The files that are active now.
    pub fn active_paths(&self) -> impl Iterator<Item = &LakePath> {
        self.active.values().flat_map(Active::paths)
    }

    /// Whether exactly these files are active.
    pub fn agrees_with(&self, keys: &[FileKey]) -> bool {
        keys.len() == self.active.len() && keys.iter().all(|k| self.active.contains_key(k))
    }

    /// The versions that can be read, ascending, and the files that they and their change data take.
    pub fn finish(self) -> (Vec<u64>, BTreeSet<LakePath>) {
        (self.versions, self.files)
    }

    fn place(&self, path: &str) -> Place {
        // delta-rs joins the path to the table's address, so anything with a scheme leads away.
        if path.starts_with('/') || Url::parse(path).is_ok() {
            return Place::Outside(path.to_string());
        }
        match LakePath::parse(path) {
            Ok(path) if listing::find(&*self.view, &path).is_some() => Place::Here(path),
            Ok(path) => Place::Missing(path.to_string()),
            Err(PathError::Dots | PathError::Absolute) => Place::Outside(path.to_string()),
            Err(e) => Place::Unfit(format!("{path}: {e}")),
        }
    }

    /// Where the vector's own file is; `None` for one that stands inside the log.
    fn vector_place(&self, vector: &DeletionVectorDescriptor) -> Option<Place> {
        let kind: DeletionVectorStorageType = match vector.storage_type.as_ref().parse() {
            Ok(kind) => kind,
            Err(_) => return Some(Place::Outside(vector.path_or_inline_dv.clone())),
        };
        let outside = || Some(Place::Outside(vector.path_or_inline_dv.clone()));
        let parsed = KernelVector::try_new(
            kind,
            &vector.path_or_inline_dv,
            vector.offset.filter(|_| kind != DeletionVectorStorageType::Inline),
            vector.size_in_bytes,
            vector.cardinality,
        );
        let root = ViewStore::table_root();
        let Ok(Ok(url)) = parsed.map(|v| v.absolute_path(&root)) else { return outside() };
        let url = url?;
        let below = url.as_str().strip_prefix(root.as_str());
        match below.map(decode) {
            Some(Some(path)) => Some(self.place(&path)),
            _ => Some(Place::Outside(url.to_string())),
        }
    }
}

/// Undoes the percent-encoding of a URL path.
fn decode(path: &str) -> Option<String> {
    let path = object_store::path::Path::from_url_path(path).ok()?;
    Some(path.to_string())
}

/// The id that the protocol gives a vector: two adds of one file with different ids are different.
pub fn vector_id(vector: &DeletionVectorDescriptor) -> String {
    let head = format!("{}{}", vector.storage_type.as_ref(), vector.path_or_inline_dv);
    match vector.offset {
        Some(offset) => format!("{head}@{offset}"),
        None => head,
    }
}
