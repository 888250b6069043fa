//! Which versions of a Lance dataset can be read, and which files each of them takes.
//!
//! Lance itself says which files its manifests name; what it leaves out is added here: the blob
//! sidecars beside a data file. Invariant: a version counts as readable only when its manifest, its
//! data files and its deletion files exist, all inside the dataset. Transaction and index files are
//! not needed to read rows, so they are carried when they are there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use arrow::array::{ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use arrow::error::ArrowError;
use datafusion::error::DataFusionError;
use futures_util::TryStreamExt;
use lance::Dataset;
use sluice_protocol::path::LakePath;
use sluice_store::table::SectionView;

use crate::listing;

/// The kinds of files without which rows cannot be read, as Lance calls them.
const NEEDED: [&str; 3] = ["manifest", "data file", "deletion file"];

/// Every version that has a manifest.
#[derive(Default)]
pub struct Versions {
    /// Where the branch lies below the dataset: empty, or with a slash at its end.
    prefix: String,
    /// Each path once; versions hold positions in here.
    paths: Vec<LakePath>,
    by_text: HashMap<String, u32>,
    versions: BTreeMap<u64, Version>,
}

/// What one version takes.
#[derive(Default)]
struct Version {
    /// Positions of the files that are there.
    files: Vec<u32>,
    obstacle: Option<Obstacle>,
}

/// Why a version cannot be carried.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Obstacle {
    /// A file outside the dataset, as base address and path.
    Outside(String),
    /// A file whose name no lake may carry.
    Unfit(String),
    /// A file that is not there.
    Missing(String),
}

impl Versions {
    /// Asks Lance for the files of every version on the dataset's branch, which lies at `prefix`
    /// below the dataset: empty for the main branch, else with a slash at its end.
    ///
    /// # Errors
    /// When a manifest cannot be read.
    pub async fn read(dataset: &Dataset, view: &dyn SectionView, prefix: &str) -> Result<Self, DataFusionError> {
        let mut found = Self { prefix: prefix.to_string(), ..Self::default() };
        let mut rows = dataset.tracked_files().await;
        while let Some(batch) = rows.try_next().await? {
            found.take(&batch, dataset.uri(), view)?;
        }
        for version in found.versions.values_mut() {
            version.files.sort_unstable();
            version.files.dedup();
        }
        Ok(found)
    }

    fn take(&mut self, batch: &RecordBatch, own_uri: &str, view: &dyn SectionView) -> Result<(), ArrowError> {
        let versions = batch.column(0).as_primitive::<Int64Type>();
        let (bases, paths, kinds) = (text(batch.column(1))?, text(batch.column(2))?, text(batch.column(3))?);
        let (bases, paths, kinds) = (bases.as_string::<i32>(), paths.as_string::<i32>(), kinds.as_string::<i32>());
        for row in 0..batch.num_rows() {
            let version = versions.value(row).unsigned_abs();
            let needed = NEEDED.contains(&kinds.value(row));
            let seen = if bases.value(row) == own_uri {
                self.place(&format!("{}{}", self.prefix, paths.value(row)), view)
            } else {
                Err(Obstacle::Outside(format!("{}/{}", bases.value(row), paths.value(row))))
            };
            let version = self.versions.entry(version).or_default();
            match seen {
                Ok(at) => version.files.push(at),
                Err(obstacle) if needed => {
                    let worst = version.obstacle.take().into_iter().chain([obstacle]).min();
                    version.obstacle = worst;
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn place(&mut self, text: &str, view: &dyn SectionView) -> Result<u32, Obstacle> {
        if let Some(&at) = self.by_text.get(text) {
            return Ok(at);
        }
        let path = LakePath::parse(text).map_err(|e| Obstacle::Unfit(format!("{text}: {e}")))?;
        if listing::find(view, &path).is_none() {
            return Err(Obstacle::Missing(text.to_string()));
        }
        let at = u32::try_from(self.paths.len()).map_err(|_| Obstacle::Unfit(format!("{text}: too many files")))?;
        self.paths.push(path);
        self.by_text.insert(text.to_string(), at);
        Ok(at)
    }

    /// What keeps `version` from being read, if anything does.
    pub fn obstacle(&self, version: u64) -> Option<&Obstacle> {
        self.versions.get(&version).and_then(|v| v.obstacle.as_ref())
    }

    /// The versions that can be read, ascending.
    pub fn readable(&self) -> Vec<u64> {
        let whole = self.versions.iter().filter(|(_, v)| v.obstacle.is_none());
        whole.map(|(&number, _)| number).collect()
    }

    /// The files of `versions` that are there, with the blob sidecars of their data files.
    pub fn files(&self, versions: &[u64], view: &dyn SectionView) -> BTreeSet<LakePath> {
        let mut wanted: Vec<u32> = versions
            .iter()
            .filter_map(|number| self.versions.get(number))
            .flat_map(|version| version.files.iter().copied())
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut files = BTreeSet::new();
        for path in wanted.into_iter().map(|at| &self.paths[at as usize]) {
            if let Some(folder) = blob_folder(&self.prefix, path.as_str()) {
                let blobs = listing::below(view, &folder).iter().map(|f| &f.path);
                files.extend(blobs.filter(|p| p.as_str().ends_with(".blob")).cloned());
            }
            files.insert(path.clone());
        }
        files
    }
}

/// Large values of `data/STEM.lance` lie in `data/STEM/*.blob`; no manifest names them.
fn blob_folder(prefix: &str, path: &str) -> Option<String> {
    let stem = path.strip_prefix(prefix)?.strip_prefix("data/")?.strip_suffix(".lance")?;
    let name = stem.rsplit('/').next().unwrap_or(stem);
    Some(format!("{prefix}data/{name}/"))
}

fn text(column: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    cast(column, &DataType::Utf8)
}
