//! The file under the catalog, as redb wants it: reading and locking are redb's own, every change
//! passes through the disk layer.
//!
//! Invariant: redb's bytes are not looked at; a failed sync is handed to redb, which trusts nothing
//! after it until the catalog is opened anew.

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::path::Path;

use redb::backends::FileBackend;
use redb::{BackendError, DatabaseError, StorageBackend};

use crate::disk::{self, Room};

/// The room of the catalog's changes.
pub(super) const CATALOG: Room = "catalog";

#[derive(Debug)]
pub(super) struct Backend {
    /// Reads and locks.
    redb: FileBackend,
    /// The same open file.
    file: File,
}

impl Backend {
    /// Opens the file at `path`, made when there is none.
    pub fn open(path: &Path) -> Result<Self, DatabaseError> {
        let open = || File::options().read(true).write(true).open(path);
        let file = match open() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => make(path)?,
            other => other?,
        };
        Ok(Self { redb: FileBackend::new(file.try_clone()?)?, file })
    }
}

/// Makes an empty file whose name is durable: what is committed later must be found.
fn make(path: &Path) -> io::Result<File> {
    let folder = File::open(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
    let name = path.file_name().and_then(|n| n.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
    let file = disk::create(CATALOG, &folder, name, super::FILE_MODE)?;
    disk::sync_all(CATALOG, &folder)?;
    Ok(file)
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.redb.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.redb.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        disk::set_len(CATALOG, &self.file, len)
    }
    fn sync_data(&self) -> io::Result<()> {
        disk::sync_data(CATALOG, &self.file)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        disk::write_all_at(CATALOG, &self.file, data, offset)
    }
    fn close(&self) -> io::Result<()> {
        self.redb.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.redb.try_lock_range(start, end)
    }
    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.redb.try_lock_shared_range(start, end)
    }
    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.redb.lock_range(start, end)
    }
    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.redb.lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.redb.unlock_range(start, end)
    }
    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.redb.query_lock_range(start, end)
    }
}
