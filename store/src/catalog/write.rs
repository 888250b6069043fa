//! Changes to the catalog. A [`Batch`] is one transaction; it sees its own writes.

use std::path::Path;
use std::sync::Arc;

use redb::WriteTransaction;
use sluice_protocol::chunks::ChunkList;
use sluice_protocol::codec::{Enc, Wire};
use sluice_protocol::ids::{BlobHash, SpaceId};
use sluice_protocol::path::LakePath;

use super::backend::CATALOG;
use super::lookup::{CHUNK_PREFIX_BYTES, EachRow, IN_FILE, INLINE, Raw, is_sampled, key2, last_row, scan_table};
use super::memo::Memo;
use super::records::{BlobRecord, FileRecord, LiveRecord, Located, StagingRecord};
use super::{
    CatalogError, DEFS, FILE_MODE, FOLDER_MODE, INLINE_BYTES_MAX, Inner, Lookup, META_FILES, META_FOLDER, TREE_FOLDER,
    TREE_INLINE_BYTES_MAX, TREES, Table, beside,
};
use crate::disk;
use crate::lake::Place;

/// One change in the making; dropped without [`super::Catalog::write`] finishing, nothing of it stays.
pub struct Batch {
    txn: WriteTransaction,
    inner: Arc<Inner>,
}

pub(crate) fn encode<T: Wire>(value: &T) -> Vec<u8> {
    let mut e = Enc::new(Vec::new());
    value.put(&mut e);
    e.into_writer()
}

impl Raw for Batch {
    fn raw_get(&self, table: usize, key: &[u8]) -> Result<Option<Vec<u8>>, CatalogError> {
        let table = self.txn.open_table(DEFS[table])?;
        let found = redb::ReadableTable::get(&table, key)?.map(|v| v.value().to_vec());
        Ok(found)
    }
    fn raw_scan(&self, table: usize, prefix: &[u8], each: &mut EachRow<'_>) -> Result<(), CatalogError> {
        scan_table(&self.txn.open_table(DEFS[table])?, prefix, each)
    }
    fn raw_last(&self, table: usize, prefix: &[u8]) -> Result<Option<Vec<u8>>, CatalogError> {
        last_row(&self.txn.open_table(DEFS[table])?, prefix)
    }
    fn raw_home(&self) -> &Path {
        &self.inner.home
    }
    fn raw_memo(&self) -> &Memo {
        &self.inner.memo
    }
}

impl Batch {
    pub(super) fn new(txn: WriteTransaction, inner: Arc<Inner>) -> Self {
        Self { txn, inner }
    }

    pub(crate) fn commit(self) -> Result<(), CatalogError> {
        disk::before_commit(CATALOG, &self.inner.home).map_err(redb::StorageError::from)?;
        Ok(self.txn.commit()?)
    }

    /// Ends the transaction without any change.
    pub(crate) fn abort(self) -> Result<(), CatalogError> {
        Ok(self.txn.abort()?)
    }

    pub(crate) fn make_tables(&mut self) -> Result<(), CatalogError> {
        for def in DEFS {
            self.txn.open_table(*def)?;
        }
        Ok(())
    }

    pub(crate) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<(), CatalogError> {
        self.txn.open_table(table.def())?.insert(key, value)?;
        Ok(())
    }

    pub(crate) fn remove(&mut self, table: Table, key: &[u8]) -> Result<(), CatalogError> {
        self.txn.open_table(table.def())?.remove(key)?;
        Ok(())
    }

    /// Removes every row whose key begins with `prefix`.
    pub(crate) fn remove_all(&mut self, table: Table, prefix: &[u8]) -> Result<(), CatalogError> {
        let mut keys = Vec::new();
        self.raw_scan(table as usize, prefix, &mut |rest, _| {
            keys.push([prefix, rest].concat());
            Ok(true)
        })?;
        keys.iter().try_for_each(|key| self.remove(table, key))
    }

    /// Sets a setting of the site.
    pub fn put_setting(&mut self, name: &str, value: &[u8]) -> Result<(), CatalogError> {
        self.put(Table::Settings, name.as_bytes(), value)
    }

    /// Adds to a counter of the site and returns what it is now.
    pub fn add_counter(&mut self, name: &str, by: u64) -> Result<u64, CatalogError> {
        let value = self.counter(name)?.saturating_add(by);
        self.put(Table::Counters, name.as_bytes(), &value.to_le_bytes())?;
        Ok(value)
    }

    /// The next number of a series that begins with 1 and never repeats.
    pub fn next_number(&mut self, name: &str) -> Result<u64, CatalogError> {
        self.add_counter(name, 1)
    }

    /// Remembers what was seen of a file.
    pub fn put_file(&mut self, space: &SpaceId, path: &LakePath, record: &FileRecord) -> Result<(), CatalogError> {
        self.put(Table::Files, &key2(&space.0, path.as_str().as_bytes()), &encode(record))
    }

    /// Forgets a file.
    pub fn remove_file(&mut self, space: &SpaceId, path: &LakePath) -> Result<(), CatalogError> {
        self.remove(Table::Files, &key2(&space.0, path.as_str().as_bytes()))
    }

    /// Replaces what is known of a blob.
    pub fn put_blob(&mut self, space: &SpaceId, hash: &BlobHash, record: &BlobRecord) -> Result<(), CatalogError> {
        self.put(Table::Blobs, &key2(&space.0, &hash.0), &encode(record))
    }

    /// Adds a place to a blob, or refreshes its fingerprint there; makes the record if it is new.
    pub fn add_place(&mut self, space: &SpaceId, hash: &BlobHash, size: u64, at: Located) -> Result<(), CatalogError> {
        let mut record = self.blob(space, hash)?.unwrap_or(BlobRecord {
            size,
            places: vec![],
            list: None,
            unknown: Default::default(),
        });
        record.places.retain(|p| p.place != at.place);
        record.places.push(at);
        self.put_blob(space, hash, &record)
    }

    /// Forgets a place of a blob; the record goes with its last place.
    pub fn remove_place(&mut self, space: &SpaceId, hash: &BlobHash, place: &Place) -> Result<(), CatalogError> {
        let Some(mut record) = self.blob(space, hash)? else { return Ok(()) };
        record.places.retain(|p| p.place != *place);
        if record.places.is_empty() { self.remove_blob(space, hash) } else { self.put_blob(space, hash, &record) }
    }

    /// Forgets a blob.
    pub fn remove_blob(&mut self, space: &SpaceId, hash: &BlobHash) -> Result<(), CatalogError> {
        self.remove(Table::Blobs, &key2(&space.0, &hash.0))
    }

    /// Says which metadata blob is the chunk list of a blob.
    pub fn set_chunk_list(&mut self, space: &SpaceId, hash: &BlobHash, list: &BlobHash) -> Result<(), CatalogError> {
        match self.blob(space, hash)? {
            Some(mut record) if record.list != Some(*list) => {
                record.list = Some(*list);
                self.put_blob(space, hash, &record)
            }
            _ => Ok(()),
        }
    }

    /// Stores a metadata blob and returns its hash.
    pub fn put_meta(&mut self, space: &SpaceId, bytes: &[u8]) -> Result<BlobHash, CatalogError> {
        let hash = BlobHash::of(bytes);
        let key = key2(&space.0, &hash.0);
        if bytes.len() <= INLINE_BYTES_MAX {
            self.put(Table::Meta, &key, &tagged(bytes))?;
        } else {
            write_beside(&self.inner.home, META_FOLDER, &hash, bytes)?;
            self.put(Table::Meta, &key, &[IN_FILE])?;
        }
        Ok(hash)
    }

    /// Forgets a metadata blob. A file beside the catalog stays for other spaces that may name it; `gc`
    /// removes it when none does.
    pub fn remove_meta(&mut self, space: &SpaceId, hash: &BlobHash) -> Result<(), CatalogError> {
        self.remove(Table::Meta, &key2(&space.0, &hash.0))
    }

    /// Stores the tree of a blob (see [`Lookup::outboard`]).
    pub fn put_outboard(&mut self, hash: &BlobHash, bytes: &[u8]) -> Result<(), CatalogError> {
        if bytes.len() <= TREE_INLINE_BYTES_MAX {
            self.put(Table::Outboards, &hash.0, &tagged(bytes))
        } else {
            write_beside(&self.inner.home, TREE_FOLDER, hash, bytes)?;
            self.outboard_in_file(hash)
        }
    }

    /// Says that the tree of a blob lies, durable, at [`super::Catalog::outboard_path`]; refused when it does not.
    pub fn outboard_in_file(&mut self, hash: &BlobHash) -> Result<(), CatalogError> {
        let path = beside(&self.inner.home, "obao", &hash.to_string());
        std::fs::metadata(&path).map_err(|source| CatalogError::Io { path, source })?;
        self.put(Table::Outboards, &hash.0, &[IN_FILE])
    }

    /// Puts a sample of a blob's chunks into the index.
    pub fn index_chunks(&mut self, space: &SpaceId, hash: &BlobHash, list: &ChunkList) -> Result<(), CatalogError> {
        let mut table = self.txn.open_table(Table::Chunks.def())?;
        for chunk in list.chunks.iter().filter(|c| is_sampled(&c.hash)) {
            let mut key = key2(&space.0, &chunk.hash.0[..CHUNK_PREFIX_BYTES]);
            key.extend_from_slice(&hash.0);
            table.insert(key.as_slice(), [].as_slice())?;
        }
        Ok(())
    }

    /// Records what of a blob is durable in staging.
    pub fn put_staging(
        &mut self,
        space: &SpaceId,
        hash: &BlobHash,
        record: &StagingRecord,
    ) -> Result<(), CatalogError> {
        self.put(Table::Staging, &key2(&space.0, &hash.0), &encode(record))
    }

    /// Forgets a staged blob.
    pub fn remove_staging(&mut self, space: &SpaceId, hash: &BlobHash) -> Result<(), CatalogError> {
        self.remove(Table::Staging, &key2(&space.0, &hash.0))
    }

    /// Records what is published.
    pub fn set_live(&mut self, space: &SpaceId, record: &LiveRecord) -> Result<(), CatalogError> {
        self.put(Table::Live, &space.0, &encode(record))
    }

    /// Forgets everything about a space but its journal; the lake's files are not touched.
    pub fn remove_space(&mut self, space: &SpaceId) -> Result<(), CatalogError> {
        for table in [
            Table::Files,
            Table::Blobs,
            Table::Meta,
            Table::Chunks,
            Table::Staging,
            Table::Live,
            Table::Spaces,
            Table::Heads,
            Table::Snapshots,
            Table::Grants,
            Table::Leases,
        ] {
            self.remove_all(table, &space.0)?;
        }
        Ok(())
    }
}

fn tagged(bytes: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(bytes.len() + 1);
    value.push(INLINE);
    value.extend_from_slice(bytes);
    value
}

/// Writes a file beside the catalog so that it is whole and durable before anyone names it.
fn write_beside(home: &Path, folder: &str, hash: &BlobHash, bytes: &[u8]) -> Result<(), CatalogError> {
    let name = hash.to_string();
    let path = beside(home, folder, &name);
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::StorageFull => CatalogError::DiskFull,
        _ => CatalogError::Io { path: path.clone(), source },
    };
    let files = if folder == META_FOLDER { META_FILES } else { TREES };
    let parent = path.parent().expect("a file beside the catalog has a folder");
    let write = || -> std::io::Result<()> {
        files.folder(parent, FOLDER_MODE)?;
        files.put(&path, &format!("{name}.tmp"), FILE_MODE, bytes)
    };
    write().map_err(failed)
}
