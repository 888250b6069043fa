//! Delta tables, read through delta-rs.
//!
//! Invariant: the facts of a capture are derived from the captured files alone, by the same code
//! that proves a candidate on a replica. So a faithful copy proves to the same facts.
//!
//! Delta has no tags: `tagged` means `latest` here.

mod checkpoint;
mod log;
mod replay;
mod table;

use std::path::Path;
use std::sync::Arc;

use deltalake::kernel::Protocol;
use deltalake::{DeltaTable, DeltaTableError};
use serde::Deserialize;
use sluice_protocol::annex::TableFacts;
use sluice_protocol::manifest::SectionKind;
use sluice_protocol::path::LakePath;
use sluice_store::table::{History, SectionView, TableCapture, TableError, TableReader};

use self::log::{LAST_CHECKPOINT, LogFiles};
use self::replay::{Line, Obstacle, Replay};
use crate::listing::{self, Subset};
use crate::reader::{self, unreadable};
use crate::view_store::ViewStore;

/// Longest commit that is read, in bytes.
const COMMIT_BYTES_MAX: u64 = 1 << 30;

/// Reads Delta tables.
#[derive(Debug, Default, Clone, Copy)]
pub struct DeltaReader;

impl TableReader for DeltaReader {
    fn kind(&self) -> SectionKind {
        SectionKind::Delta
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
    let replay = open.replay().await?;
    if history == History::All {
        let (versions, data) = replay.finish();
        let mut files = open.log.carried(0, open.newest);
        files.extend(data);
        let facts = open.facts(versions).await?;
        return Ok(TableCapture { facts, files });
    }
    let from = open.log.newest_checkpoint(open.newest).unwrap_or(0);
    let mut files = open.log.carried(from, open.newest);
    files.extend(replay.active_paths().cloned());
    // Older versions that need nothing more come along, so ask the subset which those are.
    let subset = Arc::new(Subset::new(open.view.clone(), &files));
    let facts = prove(open.name.clone(), subset).await?;
    Ok(TableCapture { facts, files })
}

async fn prove(name: String, view: Arc<dyn SectionView>) -> Result<TableFacts, TableError> {
    let open = Open::read(name, view).await?;
    if let Some(version) = open.log.dangling_pointer() {
        let cause = format!("`_last_checkpoint` names version {version}, which has no checkpoint");
        return Err(unreadable(&open.name, cause));
    }
    let (versions, _) = open.replay().await?.finish();
    open.facts(versions).await
}

/// A table opened at its newest version.
struct Open {
    name: String,
    view: Arc<dyn SectionView>,
    log: LogFiles,
    table: DeltaTable,
    newest: u64,
}

impl Open {
    async fn read(name: String, view: Arc<dyn SectionView>) -> Result<Self, TableError> {
        let opened = table::open(store(&view)).await;
        let table = opened.map_err(|e| why_closed(&name, &view, e))?;
        let snapshot = table.snapshot().map_err(|e| unreadable(&name, e))?;
        if let Some(feature) = table::unreadable_features(snapshot.protocol()) {
            return Err(TableError::UnsupportedFeature { table: name, feature });
        }
        let newest = snapshot.version();
        let log = LogFiles::read(&view).map_err(|e| unreadable(&name, e))?;
        Ok(Self { name, view, log, table, newest })
    }

    /// Replays the log up to the newest version, which must be whole.
    async fn replay(&self) -> Result<Replay, TableError> {
        let earliest = self
            .log
            .earliest(self.newest)
            .ok_or_else(|| unreadable(&self.name, "no checkpoint and no unbroken log lead to the newest version"))?;
        let mut replay = Replay::new(self.view.clone());
        let from_checkpoint = self.log.first_commit(self.newest) > 0;
        if from_checkpoint {
            self.seed(&mut replay, earliest).await?;
        }
        for (&version, path) in self.log.commits.range(self.log.first_commit(self.newest)..) {
            if version > self.newest {
                break;
            }
            let lines = self.commit(path)?;
            replay.take_change_data(&lines);
            if !from_checkpoint || version > earliest {
                replay.commit(&lines);
                replay.end_version(version);
            }
        }
        self.check(&replay)?;
        Ok(replay)
    }

    /// Takes over what delta-rs finds in a version that a checkpoint covers.
    async fn seed(&self, replay: &mut Replay, version: u64) -> Result<(), TableError> {
        let table = table::open_listing(store(&self.view), version).await.map_err(|e| unreadable(&self.name, e))?;
        let snapshot = table.snapshot().map_err(|e| unreadable(&self.name, e))?.snapshot();
        for file in snapshot.log_data().iter() {
            replay.add(&file.path(), file.deletion_vector_descriptor().as_ref());
        }
        replay.end_version(version);
        Ok(())
    }

    fn commit(&self, path: &LakePath) -> Result<Vec<Line>, TableError> {
        let bytes = listing::read_whole(&*self.view, path, COMMIT_BYTES_MAX)
            .map_err(|e| unreadable(&self.name, e))?
            .unwrap_or_default();
        serde_json::Deserializer::from_slice(&bytes)
            .into_iter::<Line>()
            .collect::<Result<_, _>>()
            .map_err(|e| unreadable(&self.name, format!("`{path}`: {e}")))
    }

    /// The newest version must be whole, and the same as delta-rs makes it.
    fn check(&self, replay: &Replay) -> Result<(), TableError> {
        let table = self.name.clone();
        match replay.obstacle() {
            Some(Obstacle::Outside(uri)) => return Err(TableError::External { table, uri }),
            Some(Obstacle::Unfit(name)) => {
                return Err(unreadable(&table, format!("no lake may carry the file {name}")));
            }
            Some(Obstacle::Missing(file)) => {
                return Err(TableError::MissingFile { table, version: self.newest, file });
            }
            None => {}
        }
        let snapshot = self.table.snapshot().map_err(|e| unreadable(&table, e))?.snapshot();
        if !replay.agrees_with(&table::file_keys(snapshot)) {
            let cause = format!("the commits and delta-rs disagree on version {}", self.newest);
            return Err(unreadable(&table, cause));
        }
        Ok(())
    }

    async fn facts(&self, versions: Vec<u64>) -> Result<TableFacts, TableError> {
        let facts = table::facts(&self.table).await.map_err(|e| unreadable(&self.name, e))?;
        Ok(TableFacts { versions, ..facts })
    }
}

/// The view as delta-rs sees it. The pointer to the newest checkpoint is hidden: it is only a
/// shortcut, and the one file of a table that changes while we read.
fn store(view: &Arc<dyn SectionView>) -> ViewStore {
    ViewStore::new(view.clone(), |path| path == LAST_CHECKPOINT)
}

/// delta-rs says in many ways that it cannot read a table; a feature it lacks is called by name.
fn why_closed(name: &str, view: &Arc<dyn SectionView>, error: DeltaTableError) -> TableError {
    let lacking = newest_protocol(view).as_ref().and_then(table::unreadable_features);
    match lacking {
        Some(feature) => TableError::UnsupportedFeature { table: name.to_string(), feature },
        None => unreadable(name, error),
    }
}

#[derive(Deserialize)]
struct ProtocolLine {
    protocol: Option<Protocol>,
}

/// The newest protocol action in the commits, read without the kernel, which refuses the table.
fn newest_protocol(view: &Arc<dyn SectionView>) -> Option<Protocol> {
    let log = LogFiles::read(view).ok()?;
    log.commits.values().rev().find_map(|path| {
        let bytes = listing::read_whole(&**view, path, COMMIT_BYTES_MAX).ok()??;
        let lines = serde_json::Deserializer::from_slice(&bytes).into_iter::<ProtocolLine>();
        lines.map_while(Result::ok).filter_map(|line| line.protocol).last()
    })
}
