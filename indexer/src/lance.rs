//! Lance datasets, read through lance.
//!
//! Invariant: the facts of a capture are derived from the captured files alone, by the same code
//! that proves a candidate on a replica. So a faithful copy proves to the same facts.

mod dataset;
mod versions;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use lance::Dataset;
use lance::index::DatasetIndexExt;
use sluice_protocol::annex::TableFacts;
use sluice_protocol::manifest::SectionKind;
use sluice_protocol::path::LakePath;
use sluice_store::table::{History, SectionView, TableCapture, TableError, TableReader};

use self::versions::{Obstacle, Versions};
use crate::listing::{self, Subset};
use crate::reader::{self, unreadable};
use crate::view_store::ViewStore;

/// Tags, one JSON file each.
const TAGS_FOLDER: &str = "_refs/tags/";
/// Branches, one JSON file each; their versions lie below `tree/`.
const BRANCHES_FOLDER: &str = "_refs/branches/";

/// Reads Lance datasets.
#[derive(Debug, Default, Clone, Copy)]
pub struct LanceReader;

impl TableReader for LanceReader {
    fn kind(&self) -> SectionKind {
        SectionKind::Lance
    }

    fn capture(&self, name: &str, root: &Path, history: History) -> Result<TableCapture, TableError> {
        reader::capture(name, root, |name, view| capture(name, view, history))
    }

    fn prove(&self, name: &str, view: Arc<dyn SectionView>) -> Result<TableFacts, TableError> {
        reader::prove(name, view, prove)
    }
}

async fn capture(name: String, view: Arc<dyn SectionView>, history: History) -> Result<TableCapture, TableError> {
    let open = Open::read(name, view).await?;
    let readable = open.versions.readable();
    let kept: Vec<u64> = match history {
        History::All => readable,
        History::Latest => vec![open.newest()],
        History::Tagged => {
            let tagged: BTreeSet<u64> = open.tags.iter().map(|(_, version)| *version).collect();
            let wanted = |v: &u64| *v == open.newest() || tagged.contains(v);
            readable.into_iter().filter(wanted).collect()
        }
    };
    let mut files = open.versions.files(&kept, &*open.view);
    files.extend(open.tag_files(&kept));
    if history == History::All {
        files.extend(open.branch_files().await?);
    }
    let subset = Arc::new(Subset::new(open.view.clone(), &files));
    let facts = prove(open.name.clone(), subset).await?;
    Ok(TableCapture { facts, files })
}

async fn prove(name: String, view: Arc<dyn SectionView>) -> Result<TableFacts, TableError> {
    let open = Open::read(name, view).await?;
    let facts = dataset::facts(&open.dataset).await.map_err(|e| unreadable(&open.name, e))?;
    let tags = open.tags.iter().map(|(tag, version)| format!("{tag}={version}"));
    Ok(TableFacts { versions: open.versions.readable(), tags: tags.collect(), ..facts })
}

/// A dataset opened at the newest version of its main branch, which is whole.
struct Open {
    name: String,
    view: Arc<dyn SectionView>,
    dataset: Dataset,
    versions: Versions,
    /// Tags on the main branch with their versions, sorted.
    tags: Vec<(String, u64)>,
}

impl Open {
    async fn read(name: String, view: Arc<dyn SectionView>) -> Result<Self, TableError> {
        let dataset = dataset::open(store(&view)).await.map_err(|e| closed(&name, e))?;
        let versions = Versions::read(&dataset, &*view, "").await.map_err(|e| unreadable(&name, e))?;
        let listed = dataset.tags().list().await.map_err(|e| unreadable(&name, e))?;
        let main = listed.into_iter().filter(|(_, tag)| tag.branch.is_none());
        let mut tags: Vec<(String, u64)> = main.map(|(name, tag)| (name, tag.version)).collect();
        tags.sort();
        let open = Self { name, view, dataset, versions, tags };
        if let Some(obstacle) = open.versions.obstacle(open.newest()) {
            return Err(open.refuse(obstacle));
        }
        open.check_indices().await?;
        Ok(open)
    }

    fn newest(&self) -> u64 {
        self.dataset.version().version
    }

    fn refuse(&self, obstacle: &Obstacle) -> TableError {
        let table = self.name.clone();
        match obstacle {
            Obstacle::Outside(uri) => TableError::External { table, uri: uri.clone() },
            Obstacle::Unfit(name) => unreadable(&table, format!("no lake may carry the file {name}")),
            Obstacle::Missing(file) => TableError::MissingFile { table, version: self.newest(), file: file.clone() },
        }
    }

    /// The indices of the newest version must be whole: without its files a query that would use
    /// an index fails, although the rows can be read.
    async fn check_indices(&self) -> Result<(), TableError> {
        let indices = self.dataset.load_indices().await.map_err(|e| unreadable(&self.name, e))?;
        for index in indices.iter() {
            if let Some(base) = index.base_id {
                let bases = &self.dataset.manifest().base_paths;
                let uri = bases.get(&base).map_or_else(|| index.name.clone(), |b| b.path.clone());
                return Err(self.refuse(&Obstacle::Outside(uri)));
            }
            for file in index.files.iter().flatten() {
                let text = format!("_indices/{}/{}", index.uuid, file.path);
                let there = LakePath::parse(&text).is_ok_and(|path| listing::find(&*self.view, &path).is_some());
                if !there {
                    return Err(self.refuse(&Obstacle::Missing(text)));
                }
            }
        }
        Ok(())
    }

    /// The files of the tags that point at a kept version.
    fn tag_files<'a>(&'a self, kept: &'a [u64]) -> impl Iterator<Item = LakePath> + 'a {
        let kept = self.tags.iter().filter(|(_, version)| kept.contains(version));
        kept.filter_map(|(tag, _)| LakePath::parse(&format!("{TAGS_FOLDER}{tag}.json")).ok())
    }

    /// All files of all branches. A branch that Lance made reads its parent's files under the
    /// absolute address the parent had then, so it cannot move and is refused.
    async fn branch_files(&self) -> Result<BTreeSet<LakePath>, TableError> {
        let fail = |e: lance::Error| unreadable(&self.name, e);
        let mut files = BTreeSet::new();
        for branch in self.dataset.list_branches().await.map_err(fail)?.into_keys() {
            let dataset = self.dataset.checkout_branch(&branch).await.map_err(fail)?;
            let versions = Versions::read(&dataset, &*self.view, &format!("tree/{branch}/"))
                .await
                .map_err(|e| unreadable(&self.name, e))?;
            if let Some(obstacle) = versions.obstacle(dataset.version().version) {
                return Err(self.refuse(obstacle));
            }
            files.extend(versions.files(&versions.readable(), &*self.view));
        }
        let refs = listing::below(&*self.view, BRANCHES_FOLDER).iter().map(|f| f.path.clone());
        files.extend(refs);
        Ok(files)
    }
}

/// The view as Lance sees it. The hint for the newest version is hidden: it may change while we
/// read, and a replica makes its own.
fn store(view: &Arc<dyn SectionView>) -> ViewStore {
    ViewStore::new(view.clone(), |path| path.ends_with("_versions/latest_version_hint.json"))
}

/// Lance refuses a dataset that uses features it does not know with an error of its own.
fn closed(name: &str, error: lance::Error) -> TableError {
    match error {
        lance::Error::NotSupported { source, .. } => {
            TableError::UnsupportedFeature { table: name.to_string(), feature: source.to_string() }
        }
        other => unreadable(name, other),
    }
}
