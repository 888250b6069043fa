//! Reads one file, whole and unchanged, or says why not.
//!
//! The tree of a large file goes to a file in the home while the file is read; it gets its name,
//! which is the hash, when it is complete and durable.
//!
//! Invariant: the fingerprint that is returned was the file's before the first and after the last
//! byte was read.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::limits::FILE_BYTES_MAX;
use sluice_protocol::path::LakePath;

use super::around::Way;
use super::digest::{FileReader, Job, Scratch, WINDOW_BYTES, memory};
use super::record::{OutboardAt, ReadFile};
use super::{ChunkError, Run};
use crate::catalog::{Catalog, FILE_MODE, FOLDER_MODE, TREE_INLINE_BYTES_MAX, TREES};
use crate::disk::Partial;
use crate::lake::{Lake, Place};
use crate::outboard::outboard_bytes;
use crate::scan::{is_racy, now_ns};

/// How often a file that changes while it is read is read.
pub(super) const TRIES_MAX: u32 = 3;

/// What came of a file.
pub(super) enum Read {
    /// It was read; with its permission bits.
    Done(Box<ReadFile>, u32),
    /// Why it is left out, and whether another look may have it.
    Failed { reason: String, passing: bool },
}

/// What came of one try.
enum Tried {
    Read(Read),
    Changed,
}

/// A file that is looked at by others while we read it.
struct Watched<'a> {
    file: &'a File,
    path: &'a LakePath,
    run: &'a Run<'a>,
    way: Way,
}

impl FileReader for Watched<'_> {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.run.watch.cancelled() {
            return Err(io::Error::other("stopped"));
        }
        self.run.watch.reading(self.path, offset);
        self.way.read(self.file, buf, offset)?;
        self.run.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        if offset > 0 {
            self.run.say();
        }
        Ok(())
    }
}

impl Run<'_> {
    /// Reads the file at `path`, several times if it changes.
    pub(super) fn read(&self, path: &LakePath, parallel: bool, scratch: &mut Scratch) -> Result<Read, ChunkError> {
        for _ in 0..TRIES_MAX {
            if self.watch.cancelled() {
                return Err(ChunkError::Cancelled);
            }
            if let Tried::Read(read) = self.read_once(path, parallel, scratch)? {
                return Ok(read);
            }
        }
        let reason = format!("it changed while it was read, {TRIES_MAX} times");
        Ok(Read::Failed { reason, passing: true })
    }

    fn read_once(&self, path: &LakePath, parallel: bool, scratch: &mut Scratch) -> Result<Tried, ChunkError> {
        let failed = |e: io::Error| Ok(Tried::Read(Read::Failed { reason: reason(&e), passing: !is_gone(&e) }));
        let file = match self.lake.open_place(&Place::Lake(path.clone())) {
            Ok(file) => file,
            Err(e) => return failed(e),
        };
        let from_ns = now_ns();
        let meta = match file.metadata() {
            Ok(meta) => meta,
            Err(e) => return failed(e),
        };
        let before = crate::lake::Fingerprint::of(&meta);
        if before.size > FILE_BYTES_MAX {
            return failed(io::ErrorKind::FileTooLarge.into());
        }
        let way = if self.around { Way::around(&file, before.size) } else { Way::Cached };
        let reader = Watched { file: &file, path, run: self, way };
        let job = Job { reader: &reader, size: before.size, want_chunks: true, window: WINDOW_BYTES, parallel };
        let (hash, list, outboard) = match self.digest(&job, scratch)? {
            Ok(found) => found,
            Err(_) if self.watch.cancelled() => return Err(ChunkError::Cancelled),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(Tried::Changed),
            Err(e) => return failed(e),
        };
        match Lake::print_of(&file) {
            Ok(after) if after == before => {}
            Ok(_) => return Ok(Tried::Changed),
            Err(e) => return failed(e),
        }
        let racy = is_racy(&before, from_ns, now_ns());
        let mode = meta.permissions().mode() & 0o777;
        let file = ReadFile { path: path.clone(), print: before, racy, hash, outboard, list };
        Ok(Tried::Read(Read::Done(Box::new(file), mode)))
    }

    /// The outer error is ours (the home cannot be written), the inner one is the lake's.
    #[allow(clippy::type_complexity)]
    fn digest(
        &self,
        job: &Job<'_>,
        scratch: &mut Scratch,
    ) -> Result<io::Result<(BlobHash, Option<sluice_protocol::chunks::ChunkList>, OutboardAt)>, ChunkError> {
        if outboard_bytes(job.size) as usize <= TREE_INLINE_BYTES_MAX {
            let run = |scratch| {
                let mut outboard = memory(job.size)?;
                let (hash, list) = job.run(scratch, &mut outboard)?;
                Ok((hash, list, OutboardAt::Memory(outboard)))
            };
            return Ok(run(scratch));
        }
        let number = self.partial.fetch_add(1, Ordering::Relaxed);
        let (folder, name) = (partial_folder(self.catalog), format!("{}{number}", partial_prefix(self.space)));
        let home = |source| ChunkError::Home { path: folder.join(&name), source };
        let mut sink = Sink { file: TREES.begin(&folder, &name, FILE_MODE).map_err(home)?, failed: None };
        let found = job.run(scratch, &mut sink);
        if let Some(e) = sink.failed {
            return Err(home(e));
        }
        match found {
            Ok((hash, list)) => {
                settle_outboard(sink.file, &self.catalog.outboard_path(&hash)).map_err(home)?;
                Ok(Ok((hash, list, OutboardAt::InFile)))
            }
            Err(e) => {
                sink.file.abandon().map_err(home)?;
                Ok(Err(e))
            }
        }
    }
}

/// Makes the tree of a blob again from its bytes, in one pass over `file`; `false` when the bytes are not
/// the blob, and nothing is stored then.
pub fn remake_tree(catalog: &Catalog, space: &SpaceId, file: &File, size: u64, hash: &BlobHash) -> io::Result<bool> {
    let job = |parallel| Job { reader: file, size, want_chunks: false, window: WINDOW_BYTES, parallel };
    if outboard_bytes(size) as usize <= TREE_INLINE_BYTES_MAX {
        let mut outboard = memory(size)?;
        let (found, _) = job(true).run(&mut Scratch::default(), &mut outboard)?;
        if found == *hash {
            catalog.write(|b| b.put_outboard(hash, &outboard)).map_err(io::Error::other)?;
        }
        return Ok(found == *hash);
    }
    // Each run has a name of its own, so that two never write into one file.
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    let name = format!("{}again-{hash}-{}-{run}", partial_prefix(space), std::process::id());
    let mut sink = Sink { file: TREES.begin(&partial_folder(catalog), &name, FILE_MODE)?, failed: None };
    match job(true).run(&mut Scratch::default(), &mut sink) {
        Ok((found, _)) if found == *hash => {}
        other => {
            sink.file.abandon()?;
            return other.map(|_| false);
        }
    }
    settle_outboard(sink.file, &catalog.outboard_path(hash))?;
    catalog.write(|b| b.outboard_in_file(hash)).map_err(io::Error::other)?;
    Ok(true)
}

/// Tells a failure to write the tree from a failure to read the file.
struct Sink {
    file: Partial,
    failed: Option<io::Error>,
}

impl crate::outboard::PairSink for Sink {
    fn put(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset).inspect_err(|e| {
            self.failed = Some(e.raw_os_error().map_or(e.kind().into(), io::Error::from_raw_os_error));
        })
    }
}

/// Makes a complete tree durable and gives it its name.
fn settle_outboard(file: Partial, path: &Path) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    TREES.folder(folder, FOLDER_MODE)?;
    file.finish(folder, path.file_name().and_then(|n| n.to_str()).ok_or(io::ErrorKind::InvalidInput)?)
}

fn partial_folder(catalog: &Catalog) -> PathBuf {
    catalog.home().join("obao")
}

fn partial_prefix(space: &SpaceId) -> String {
    format!("partial-{space}-")
}

/// Removes what a run that was killed left behind.
pub(super) fn clear_partial(catalog: &Catalog, space: &SpaceId) -> Result<(), ChunkError> {
    let folder = partial_folder(catalog);
    let clear = || -> io::Result<()> {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&partial_prefix(space)) {
                TREES.remove(&entry.path())?;
            }
        }
        Ok(())
    };
    clear().map_err(|source| ChunkError::Home { path: folder.clone(), source })
}

/// Whether what the scan saw is not there any more, or nothing that could travel.
fn is_gone(e: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, InvalidInput, NotADirectory, NotFound};
    is_link(e) || matches!(e.kind(), FileTooLarge | InvalidInput | NotADirectory | NotFound)
}

fn is_link(e: &io::Error) -> bool {
    e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

fn reason(e: &io::Error) -> String {
    if is_link(e) {
        return "it is no regular file any more".into();
    }
    match e.kind() {
        io::ErrorKind::NotFound => "it vanished during the scan".into(),
        io::ErrorKind::PermissionDenied => "it may not be read: permission denied".into(),
        io::ErrorKind::InvalidInput => "it is no regular file any more".into(),
        io::ErrorKind::FileTooLarge => {
            format!("it is larger than {FILE_BYTES_MAX} bytes, the most that a file may have")
        }
        _ => format!("it cannot be read: {e}"),
    }
}
