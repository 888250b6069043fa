//! Reads what changed: the second step of the flow.
//!
//! Each file that the scan does not know is read once: its root, its tree, its chunks. Small files
//! are spread over the threads, large ones are digested by several threads each.
//!
//! A file is taken whole or not at all: its fingerprint is the same before and after it was read, or
//! it is read again, three times at most, and then reported. A table of which one file cannot be
//! had, or is not what it was when the table was captured, is not taken at all. What only this look
//! could not have is kept as it was in the snapshot before (`keep`).
//!
//! Invariant: every file in [`Chunks`] has a hash, and the hash is of bytes that were the file's
//! bytes at one moment. What was read is in the catalog or in `Chunks`, never only half of it.

mod around;
mod cut;
mod digest;
mod keep;
mod mounts;
mod read;
pub(crate) mod record;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::path::LakePath;

pub use digest::{Digest, FileReader, digest_file, digest_reader};

use crate::catalog::{BlobRecord, Catalog, CatalogError};
use crate::lake::Lake;
use crate::scan::{Entries, Item, SectionEntries, Skip, What, tables};
use crate::watch::Watch;
use digest::Scratch;
use read::Read;
pub use read::remake_tree;
use record::ReadFile;

/// Files up to this length are digested by one thread each, in bytes.
const SMALL_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Most large files that are digested at once.
const LARGE_AT_ONCE_MAX: usize = 4;
/// Trees and chunk lists that wait in memory before they are committed, in bytes.
const PENDING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A lake whose files all have a hash.
#[derive(Debug)]
pub struct Chunks {
    /// As the scan saw it, with the hashes filled in; what could not be read is moved to `skipped`.
    pub entries: Entries,
    /// Files that were read.
    pub read_files: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// What the snapshot before lists, this look could not have, and of which no bytes are here any more:
    /// a snapshot of these chunks would say that it was deleted.
    pub missing: Vec<Skip>,
    /// What was read and is not committed yet.
    pub(crate) pending: Vec<ReadFile>,
    /// Blobs that lost their last recorded place on the way.
    pub(crate) lost: Vec<(BlobHash, BlobRecord)>,
    moved_on: bool,
}

/// What an earlier, given up reading of the same lake leaves for the next one to know.
#[derive(Debug, Default)]
pub struct Lost(Vec<(BlobHash, BlobRecord)>);

impl Chunks {
    /// Whether a table changed between its capture and its reading: `_last_checkpoint` may name a
    /// checkpoint that the capture has not seen, and such a copy would not open. The last good version
    /// stands in for it; another scan would see the table as it is now.
    pub fn moved_on(&self) -> bool {
        self.moved_on
    }

    /// A file that is out of sight only because its device is: a mount that went away, or one that lies over it.
    pub fn unmounted(&self, space: &SpaceId, catalog: &Catalog) -> Result<Option<LakePath>, CatalogError> {
        mounts::unmounted(&catalog.read()?, space, &self.entries)
    }

    /// Gives these up for another scan; what was read is committed, so that it is not read again.
    pub fn give_up(self, lake: &Lake, space: &SpaceId, catalog: &Catalog) -> Result<Lost, CatalogError> {
        record::settle(lake, &self.pending)?;
        let mut lost = self.lost;
        lost.extend(catalog.write(|batch| record::record(batch, space, &self.pending))?);
        Ok(Lost(lost))
    }

    /// Takes over what an earlier reading left.
    pub fn after(mut self, earlier: Lost) -> Self {
        self.lost.extend(earlier.0);
        self
    }
}

/// Why the reading stopped.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("`{path}` cannot be written: {source}")]
    Home { path: PathBuf, source: io::Error },
    #[error("the reading was stopped")]
    Cancelled,
}

/// Reads every file of `entries` that has no hash yet.
///
/// Long runs commit what they have read now and then, so that a kill costs little; one run at a
/// time for each space. Uses rayon's global pool.
pub fn chunk(
    lake: &Lake,
    space: &SpaceId,
    catalog: &Catalog,
    entries: Entries,
    watch: &dyn Watch,
) -> Result<Chunks, ChunkError> {
    chunk_holding(PENDING_BYTES_MAX, lake, space, catalog, entries, watch)
}

/// [`chunk`], which commits when more than `pending_max` bytes wait.
fn chunk_holding(
    pending_max: usize,
    lake: &Lake,
    space: &SpaceId,
    catalog: &Catalog,
    entries: Entries,
    watch: &dyn Watch,
) -> Result<Chunks, ChunkError> {
    read::clear_partial(catalog, space)?;
    let mut entries = entries;
    let todo = todo(&mut entries.sections);
    let bytes_total = todo.iter().map(Todo::size).sum();
    let run = Run {
        lake,
        space,
        catalog,
        watch,
        files_total: todo.len() as u64,
        bytes_total,
        around: around::is_much(bytes_total),
        files: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        partial: AtomicU64::new(0),
        pending_max,
        out: Mutex::default(),
        scratch: Mutex::default(),
    };
    let (small, large): (Vec<Todo>, Vec<Todo>) = todo.into_iter().partition(|t| t.size() <= SMALL_BYTES_MAX);
    small.into_par_iter().try_for_each(|t| run.one(t, false))?;
    run.large(large)?;
    let out = run.out.into_inner().expect("no thread panics while it holds the results");
    let mut chunks = Chunks {
        entries,
        read_files: out.read_files,
        read_bytes: out.read_bytes,
        pending: out.pending,
        lost: out.lost,
        missing: Vec::new(),
        moved_on: !out.changed.is_empty(),
    };
    settle(lake, space, catalog, &mut chunks, out.failed, out.changed)?;
    chunks.missing = keep::as_before(lake, space, &catalog.read()?, &mut chunks.entries)?;
    Ok(chunks)
}

/// A file to read.
struct Todo<'a> {
    /// Index of its section.
    section: usize,
    /// Whether its section was captured as a table.
    captured: bool,
    /// The section's folder.
    folder: Option<&'a LakePath>,
    /// Gets its hash when it is read.
    item: &'a mut Item,
}

impl Todo<'_> {
    /// Length that the scan saw, in bytes.
    fn size(&self) -> u64 {
        match &self.item.what {
            What::File { print, .. } => print.size,
            _ => 0,
        }
    }
}

fn todo(sections: &mut [SectionEntries]) -> Vec<Todo<'_>> {
    let mut todo = Vec::new();
    for (section, of) in sections.iter_mut().enumerate() {
        let captured = of.is_read_table();
        let SectionEntries { path, items, .. } = of;
        let unread = items.iter_mut().filter(|i| matches!(i.what, What::File { hash: None, .. }));
        todo.extend(unread.map(|item| Todo { section, captured, folder: path.as_ref(), item }));
    }
    todo
}

struct Run<'a> {
    lake: &'a Lake,
    space: &'a SpaceId,
    catalog: &'a Catalog,
    watch: &'a dyn Watch,
    files_total: u64,
    bytes_total: u64,
    /// Whether the files are read around the page cache.
    around: bool,
    files: AtomicU64,
    bytes: AtomicU64,
    /// Numbers the trees that are being written.
    partial: AtomicU64,
    pending_max: usize,
    out: Mutex<Out>,
    scratch: Mutex<Vec<Scratch>>,
}

#[derive(Default)]
struct Out {
    /// Index of the section, path below the lake, reason, whether another look may have it.
    failed: Vec<(usize, LakePath, String, bool)>,
    /// Index of the section and path of a file that was not what the scan had seen.
    changed: Vec<(usize, LakePath)>,
    pending: Vec<ReadFile>,
    pending_bytes: usize,
    lost: Vec<(BlobHash, BlobRecord)>,
    read_files: u64,
    read_bytes: u64,
}

impl Run<'_> {
    fn large(&self, todo: Vec<Todo<'_>>) -> Result<(), ChunkError> {
        let at_once = (rayon::current_num_threads() / 2).clamp(1, LARGE_AT_ONCE_MAX).min(todo.len());
        let todo = Mutex::new(todo.into_iter());
        let next = || todo.lock().expect("no thread panics while it takes a file").next();
        let work = || -> Result<(), ChunkError> {
            while let Some(t) = next() {
                // Within the pool: a thread outside would be woken for every window.
                rayon::scope(|_| self.one(t, true))?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            // Threads of their own, which take files one at a time: so no more are open than these.
            let workers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
        })
    }

    fn one(&self, todo: Todo<'_>, parallel: bool) -> Result<(), ChunkError> {
        let path = match todo.folder {
            None => todo.item.path.clone(),
            Some(folder) => folder.join(&todo.item.path).expect("the scan found the item under this very path"),
        };
        let mut scratch = self.lock_scratch().pop().unwrap_or_default();
        let read = self.read(&path, parallel, &mut scratch);
        self.lock_scratch().push(scratch);
        let ready = match read? {
            Read::Done(file, mode) => {
                let as_captured = matches!(&todo.item.what, What::File { print, .. } if *print == file.print);
                if todo.captured && !as_captured {
                    self.lock_out().changed.push((todo.section, path));
                }
                todo.item.what = What::File { print: file.print.clone(), mode, hash: Some(file.hash) };
                self.keep(*file)
            }
            Read::Failed { reason, passing } => {
                self.lock_out().failed.push((todo.section, path, reason, passing));
                Vec::new()
            }
        };
        self.files.fetch_add(1, Ordering::Relaxed);
        self.say();
        if !ready.is_empty() {
            record::settle(self.lake, &ready)?;
            let lost = self.catalog.write(|batch| record::record(batch, self.space, &ready))?;
            self.lock_out().lost.extend(lost);
        }
        Ok(())
    }

    /// Notes a file that was read; returns files to commit when enough have come together.
    fn keep(&self, file: ReadFile) -> Vec<ReadFile> {
        let mut out = self.lock_out();
        out.read_files += 1;
        out.read_bytes += file.print.size;
        out.pending_bytes += file.weight();
        out.pending.push(file);
        if out.pending_bytes <= self.pending_max {
            return Vec::new();
        }
        out.pending_bytes = 0;
        std::mem::take(&mut out.pending)
    }

    fn say(&self) {
        let (files, bytes) = (self.files.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        self.watch.amount("read", files, self.files_total, bytes.min(self.bytes_total), self.bytes_total);
    }

    fn lock_out(&self) -> std::sync::MutexGuard<'_, Out> {
        self.out.lock().expect("no thread panics while it holds the results")
    }

    fn lock_scratch(&self) -> std::sync::MutexGuard<'_, Vec<Scratch>> {
        self.scratch.lock().expect("no thread panics while it holds the buffers")
    }
}

/// Takes what could not be read out of the entries.
fn settle(
    lake: &Lake,
    space: &SpaceId,
    catalog: &Catalog,
    chunks: &mut Chunks,
    mut failed: Vec<(usize, LakePath, String, bool)>,
    mut changed: Vec<(usize, LakePath)>,
) -> Result<(), ChunkError> {
    failed.sort();
    changed.sort();
    if !failed.is_empty() || !changed.is_empty() {
        chunks.entries.recorded = None;
    }
    let mut broken: HashMap<usize, String> = HashMap::new();
    for (section, path) in changed.into_iter().rev() {
        broken.insert(section, format!("its file `{path}` changed after the table was captured"));
    }
    for (section, path, reason, passing) in failed {
        let Entries { sections, skipped, .. } = &mut chunks.entries;
        if sections[section].is_read_table() {
            broken.insert(section, format!("its file `{path}` cannot be taken: {reason}"));
        } else {
            skipped.push(Skip { passing, ..Skip::new(path, reason) });
        }
    }
    for section in &mut chunks.entries.sections {
        section.items.retain(|i| !matches!(i.what, What::File { hash: None, .. }));
    }
    replace_broken(lake, space, catalog, chunks, broken)
}

fn replace_broken(
    lake: &Lake,
    space: &SpaceId,
    catalog: &Catalog,
    chunks: &mut Chunks,
    broken: HashMap<usize, String>,
) -> Result<(), ChunkError> {
    if broken.is_empty() {
        return Ok(());
    }
    let reader = catalog.read()?;
    let Entries { sections, skipped, previous, .. } = &mut chunks.entries;
    let mut kept = Vec::with_capacity(sections.len());
    for (s, section) in sections.drain(..).enumerate() {
        match broken.get(&s) {
            None => kept.push(section),
            Some(reason) => {
                let before = tables::last_good(lake, space, &reader, *previous, &section)?;
                kept.extend(tables::instead(&section, before, reason, skipped));
            }
        }
    }
    *sections = kept;
    Ok(())
}

/// The item at a path of the lake, if a section of the entries holds it.
pub(crate) fn find<'a>(entries: &'a Entries, path: &LakePath) -> Option<&'a Item> {
    let section_at = |folder: Option<&LakePath>| {
        let found = entries.sections.binary_search_by(|s| s.path.as_ref().cmp(&folder));
        found.ok().map(|i| &entries.sections[i])
    };
    let mut above = path.parent();
    loop {
        if let Some(section) = section_at(above.as_ref()) {
            let below = above.as_ref().map_or(Some(path.clone()), |folder| path.below(folder))?;
            let at = section.items.binary_search_by(|i| i.path.cmp(&below)).ok();
            return at.map(|i| &section.items[i]);
        }
        above = above?.parent();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::catalog::Lookup;
    use crate::lake::Place;
    use crate::scan::{ScanOptions, scan};
    use crate::snapshot;
    use crate::watch::Silent;

    const SPACE: SpaceId = SpaceId([3; 32]);

    struct World {
        dir: tempfile::TempDir,
        lake: Lake,
        catalog: Catalog,
    }

    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("lake/raw")).unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        let lake = Lake::open(&dir.path().join("lake")).unwrap();
        let catalog = Catalog::open(&dir.path().join("home")).unwrap();
        let world = World { dir, lake, catalog };
        for i in 0..40u8 {
            world.write(&format!("{i:02}"), &[i; 3]);
        }
        world
    }

    impl World {
        fn write(&self, name: &str, bytes: &[u8]) {
            let at = self.dir.path().join("lake/raw").join(name);
            fs::write(&at, bytes).unwrap();
            let old = std::time::SystemTime::now() - std::time::Duration::from_secs(9_000);
            fs::File::options().append(true).open(at).unwrap().set_modified(old).unwrap();
        }

        fn scan(&self) -> Entries {
            scan(&self.lake, &SPACE, &self.catalog, &ScanOptions::default(), &[], &Silent).unwrap()
        }

        fn chunk(&self, pending_max: usize) -> Result<Chunks, ChunkError> {
            chunk_holding(pending_max, &self.lake, &SPACE, &self.catalog, self.scan(), &Silent)
        }
    }

    #[test]
    fn a_long_run_that_is_killed_has_kept_what_it_read() {
        let world = world();
        let killed = world.chunk(0).unwrap();
        assert_eq!((killed.read_files, killed.pending.len()), (40, 0));
        drop(killed);
        assert_eq!(world.chunk(0).unwrap().read_files, 0);
    }

    #[test]
    fn early_commits_change_nothing_in_the_snapshot() {
        let (one, other) = (world(), world());
        for (world, pending_max) in [(&one, 0), (&other, PENDING_BYTES_MAX)] {
            world.chunk(pending_max).unwrap();
            world.write("00", b"changed");
            fs::remove_file(world.dir.path().join("lake/raw/01")).unwrap();
        }
        let snap = |w: &World, pending_max| {
            let chunks = w.chunk(pending_max).unwrap();
            snapshot::manifest(&w.lake, &SPACE, &w.catalog, chunks, &Silent).unwrap()
        };
        let (early, late) = (snap(&one, 0), snap(&other, PENDING_BYTES_MAX));
        let hashes = |s: &snapshot::Snapshot| (s.stats.files, s.stats.bytes, s.sections.len());
        assert_eq!(hashes(&early), hashes(&late));
        for (world, gone) in [(&one, [0u8; 3]), (&one, [1; 3]), (&other, [1; 3])] {
            let blob = world.catalog.read().unwrap().blob(&SPACE, &BlobHash::of(&gone)).unwrap();
            assert_eq!(blob, None);
        }
        let place = Place::Lake(LakePath::parse("raw/00").unwrap());
        let blob = one.catalog.read().unwrap().blob(&SPACE, &BlobHash::of(b"changed")).unwrap().unwrap();
        assert_eq!(blob.places[0].place, place);
    }

    #[test]
    fn a_home_that_cannot_be_written_is_named() {
        let world = world();
        fs::remove_dir_all(world.dir.path().join("home/obao")).unwrap();
        fs::write(world.dir.path().join("home/obao"), b"").unwrap();
        assert!(matches!(world.chunk(0), Err(ChunkError::Home { .. })));
    }

    #[test]
    fn paths_are_found_in_their_sections() {
        let world = world();
        for (folder, file) in [("a", "x"), ("a-b", "y"), ("m/models", "adapter_config.json"), ("m", "top")] {
            fs::create_dir_all(world.dir.path().join("lake").join(folder)).unwrap();
            fs::write(world.dir.path().join("lake").join(folder).join(file), b"").unwrap();
        }
        let entries = world.scan();
        let found = |p: &str| find(&entries, &LakePath::parse(p).unwrap()).is_some();
        for p in ["a/x", "a-b/y", "m/models/adapter_config.json", "m/top", "raw/00"] {
            assert!(found(p), "{p}");
        }
        for p in ["a/y", "x", "m/models/x", "raw", "none/x"] {
            assert!(!found(p), "{p}");
        }
    }
}
