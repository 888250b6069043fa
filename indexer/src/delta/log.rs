//! The files of `_delta_log`, by what they are.
//!
//! Invariant: a file is taken for what the kernel's own parser takes it for, and a checkpoint is
//! listed only when every part and every sidecar of it exists. Temporary and staged files have no
//! place here.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use delta_kernel::path::{LogPathFileType, ParsedLogPath};
use serde::Deserialize;
use sluice_protocol::path::LakePath;
use sluice_store::table::SectionView;
use url::Url;

use super::checkpoint;
use crate::listing;

/// The folder of the log, with its slash.
pub const LOG_FOLDER: &str = "_delta_log/";
/// The pointer to the newest checkpoint: mutable, and only a shortcut.
pub const LAST_CHECKPOINT: &str = "_delta_log/_last_checkpoint";
/// Longest `_last_checkpoint` that is read, in bytes.
const LAST_CHECKPOINT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The log of one table.
#[derive(Debug, Default)]
pub struct LogFiles {
    /// `N.json` by version.
    pub commits: BTreeMap<u64, LakePath>,
    /// Complete checkpoints by version; one version may have several.
    pub checkpoints: BTreeMap<u64, Vec<Checkpoint>>,
    /// `N.crc` by version.
    checksums: BTreeMap<u64, LakePath>,
    /// `A.B.compacted.json` with its versions.
    compacted: Vec<(RangeInclusive<u64>, LakePath)>,
    /// The checkpoint that `_last_checkpoint` names, when that file exists and can be read.
    last_checkpoint: Option<u64>,
}

/// One complete checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    parts: Vec<LakePath>,
    sidecars: Vec<LakePath>,
}

/// Parts of a checkpoint in several files: (version, number of parts) → part number → file.
type OpenParts = BTreeMap<(u64, u32), BTreeMap<u32, LakePath>>;

impl LogFiles {
    /// Sorts the log files of `view`.
    ///
    /// # Errors
    /// When a checkpoint that should list sidecars, or `_last_checkpoint`, cannot be read.
    pub fn read(view: &Arc<dyn SectionView>) -> io::Result<Self> {
        let mut log = LogFiles::default();
        let mut open = OpenParts::new();
        for file in listing::below(&**view, LOG_FOLDER) {
            if file.path.as_str() == LAST_CHECKPOINT {
                log.last_checkpoint = last_checkpoint(&**view, &file.path, file.size)?;
            } else {
                log.sort_in(view, &file.path, file.size, &mut open)?;
            }
        }
        for ((version, parts), files) in open {
            if files.len() == parts as usize {
                let parts = files.into_values().collect();
                log.add_checkpoint(version, Checkpoint { parts, sidecars: Vec::new() });
            }
        }
        Ok(log)
    }

    fn sort_in(
        &mut self,
        view: &Arc<dyn SectionView>,
        path: &LakePath,
        size: u64,
        open: &mut OpenParts,
    ) -> io::Result<()> {
        let Some((version, kind)) = parse(path) else { return Ok(()) };
        match kind {
            LogPathFileType::Commit => {
                self.commits.insert(version, path.clone());
            }
            LogPathFileType::Crc => {
                self.checksums.insert(version, path.clone());
            }
            LogPathFileType::CompactedCommit { hi } => {
                self.compacted.push((version..=hi, path.clone()));
            }
            // The kernel passes over empty checkpoints; so do we.
            _ if size == 0 => {}
            LogPathFileType::MultiPartCheckpoint { part_num, num_parts } => {
                open.entry((version, num_parts)).or_default().insert(part_num, path.clone());
            }
            LogPathFileType::SinglePartCheckpoint | LogPathFileType::UuidCheckpoint => {
                let sidecars = checkpoint::sidecars(view, path, size)?;
                if sidecars.iter().all(|s| listing::find(&**view, s).is_some()) {
                    let parts = vec![path.clone()];
                    self.add_checkpoint(version, Checkpoint { parts, sidecars });
                }
            }
            LogPathFileType::StagedCommit | LogPathFileType::Unknown => {}
        }
        Ok(())
    }

    fn add_checkpoint(&mut self, version: u64, checkpoint: Checkpoint) {
        self.checkpoints.entry(version).or_default().push(checkpoint);
    }

    /// First version of the commits that run without a gap up to `newest`; `newest + 1` when the
    /// commit of `newest` itself is gone.
    pub fn first_commit(&self, newest: u64) -> u64 {
        let mut first = newest.saturating_add(1);
        while let Some(before) = first.checked_sub(1) {
            if !self.commits.contains_key(&before) {
                break;
            }
            first = before;
        }
        first
    }

    /// The earliest version that can be rebuilt, given the commits that lead to `newest`.
    pub fn earliest(&self, newest: u64) -> Option<u64> {
        let first = self.first_commit(newest);
        if first == 0 {
            return Some(0);
        }
        self.checkpoints.range(first - 1..=newest).next().map(|(&version, _)| version)
    }

    /// The newest version that a checkpoint covers, up to `newest`.
    pub fn newest_checkpoint(&self, newest: u64) -> Option<u64> {
        self.checkpoints.range(..=newest).next_back().map(|(&version, _)| version)
    }

    /// The log files that tell the versions `from..=newest`, without gaps.
    ///
    /// `_last_checkpoint` is among them only when the checkpoint it names is: a reader that finds
    /// the pointer but not the checkpoint gives up.
    pub fn carried(&self, from: u64, newest: u64) -> BTreeSet<LakePath> {
        let from = from.max(self.first_commit(newest).saturating_sub(1));
        let commits = self.commits.range(from..=newest).map(|(_, p)| p);
        let checksums = self.checksums.range(from..=newest).map(|(_, p)| p);
        let compacted = self
            .compacted
            .iter()
            .filter(|(versions, _)| *versions.start() >= from && *versions.end() <= newest)
            .map(|(_, p)| p);
        let checkpoints = self
            .checkpoints
            .range(from..=newest)
            .flat_map(|(_, all)| all)
            .flat_map(|c| c.parts.iter().chain(&c.sidecars));
        let mut files: BTreeSet<LakePath> =
            commits.chain(checksums).chain(compacted).chain(checkpoints).cloned().collect();
        let pointer = self.last_checkpoint.filter(|v| (from..=newest).contains(v));
        if pointer.is_some_and(|v| self.checkpoints.contains_key(&v))
            && let Ok(path) = LakePath::parse(LAST_CHECKPOINT)
        {
            files.insert(path);
        }
        files
    }

    /// The checkpoint that `_last_checkpoint` names although it is not there.
    pub fn dangling_pointer(&self) -> Option<u64> {
        self.last_checkpoint.filter(|v| !self.checkpoints.contains_key(v))
    }
}

/// What the kernel takes a file of the log for.
fn parse(path: &LakePath) -> Option<(u64, LogPathFileType)> {
    let mut url = Url::parse("sluice-view://view/").ok()?;
    url.set_path(path.as_str());
    let parsed = ParsedLogPath::try_from(url).ok()??;
    Some((parsed.version, parsed.file_type))
}

#[derive(Deserialize)]
struct Pointer {
    version: u64,
}

/// An unreadable pointer counts as none, as it does for delta-rs.
fn last_checkpoint(view: &dyn SectionView, path: &LakePath, size: u64) -> io::Result<Option<u64>> {
    if size > LAST_CHECKPOINT_BYTES_MAX {
        return Ok(None);
    }
    let bytes = view.read(path, 0..size)?;
    Ok(serde_json::from_slice::<Pointer>(&bytes).ok().map(|p| p.version))
}
