//! Questions to the catalog, the same inside a change and outside.

use std::fs;
use std::path::Path;

use redb::ReadableTable;
use sluice_protocol::codec::{Dec, Wire};
use sluice_protocol::ids::{BlobHash, ChunkHash, SpaceId};
use sluice_protocol::path::LakePath;

use super::memo::Memo;
use super::records::{BlobRecord, FileRecord, LiveRecord, StagingRecord};
use super::{CatalogError, Reader, Table, beside};

/// Bytes of a chunk hash that are kept in the chunk index.
pub(crate) const CHUNK_PREFIX_BYTES: usize = 8;
/// One chunk in this many is in the index, chosen by its hash.
const CHUNK_SAMPLE: u8 = 8;

/// A stored value that is not the bytes themselves but says that they lie in a file.
pub(crate) const IN_FILE: u8 = 1;
pub(crate) const INLINE: u8 = 0;

pub(crate) fn key2(a: &[u8; 32], b: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(32 + b.len());
    key.extend_from_slice(a);
    key.extend_from_slice(b);
    key
}

/// Whether a chunk is one of those in the index.
pub(crate) fn is_sampled(hash: &ChunkHash) -> bool {
    hash.0[31].is_multiple_of(CHUNK_SAMPLE)
}

pub(crate) fn decode<T: Wire>(raw: &[u8]) -> Result<T, CatalogError> {
    Ok(T::get(&mut Dec::new(raw))?)
}

/// A stored tree.
#[derive(Debug)]
pub enum StoredTree {
    Bytes(Vec<u8>),
    File(fs::File),
}

/// Takes a row, its key without the prefix; says whether to go on.
pub type EachRow<'a> = dyn FnMut(&[u8], &[u8]) -> Result<bool, CatalogError> + 'a;

/// Raw access, by a [`Reader`] or inside a change.
pub trait Raw {
    #[doc(hidden)]
    fn raw_get(&self, table: usize, key: &[u8]) -> Result<Option<Vec<u8>>, CatalogError>;
    #[doc(hidden)]
    fn raw_scan(&self, table: usize, prefix: &[u8], each: &mut EachRow<'_>) -> Result<(), CatalogError>;
    #[doc(hidden)]
    fn raw_last(&self, table: usize, prefix: &[u8]) -> Result<Option<Vec<u8>>, CatalogError>;
    #[doc(hidden)]
    fn raw_home(&self) -> &Path;
    #[doc(hidden)]
    fn raw_memo(&self) -> &Memo;
}

impl Raw for Reader {
    fn raw_get(&self, table: usize, key: &[u8]) -> Result<Option<Vec<u8>>, CatalogError> {
        Ok(self.table(table)?.get(key)?.map(|v| v.value().to_vec()))
    }
    fn raw_scan(&self, table: usize, prefix: &[u8], each: &mut EachRow<'_>) -> Result<(), CatalogError> {
        scan_table(self.table(table)?, prefix, each)
    }
    fn raw_last(&self, table: usize, prefix: &[u8]) -> Result<Option<Vec<u8>>, CatalogError> {
        last_row(self.table(table)?, prefix)
    }
    fn raw_home(&self) -> &Path {
        self.home()
    }
    fn raw_memo(&self) -> &Memo {
        &self.inner.memo
    }
}

/// Calls `each` for the rows whose key begins with `prefix`, until it says `false`.
pub(crate) fn scan_table(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    prefix: &[u8],
    each: &mut EachRow<'_>,
) -> Result<(), CatalogError> {
    for row in table.range::<&[u8]>(prefix..)? {
        let (key, value) = row?;
        if !key.value().starts_with(prefix) || !each(&key.value()[prefix.len()..], value.value())? {
            break;
        }
    }
    Ok(())
}

/// The value of the greatest key that begins with `prefix` and is at most 32 bytes longer.
pub(crate) fn last_row(
    table: &impl ReadableTable<&'static [u8], &'static [u8]>,
    prefix: &[u8],
) -> Result<Option<Vec<u8>>, CatalogError> {
    let end = [prefix, &[0xff; 33]].concat();
    let last = table.range::<&[u8]>(prefix..&end)?.next_back().transpose()?;
    Ok(last.map(|(_, value)| value.value().to_vec()))
}

fn id32(raw: &[u8]) -> Result<[u8; 32], CatalogError> {
    raw.try_into().map_err(|_| CatalogError::Store("a key has the wrong length".into()))
}

/// What can be asked. Every answer belongs to one space unless it says otherwise.
pub trait Lookup: Raw {
    /// A setting of the site.
    fn setting(&self, name: &str) -> Result<Option<Vec<u8>>, CatalogError> {
        self.raw_get(Table::Settings as usize, name.as_bytes())
    }

    /// A counter of the site; 0 when it was never raised.
    fn counter(&self, name: &str) -> Result<u64, CatalogError> {
        let raw = self.raw_get(Table::Counters as usize, name.as_bytes())?;
        Ok(raw.and_then(|r| r.try_into().ok()).map_or(0, u64::from_le_bytes))
    }

    /// What was last seen of a file of the lake.
    fn file(&self, space: &SpaceId, path: &LakePath) -> Result<Option<FileRecord>, CatalogError> {
        let key = key2(&space.0, path.as_str().as_bytes());
        self.raw_get(Table::Files as usize, &key)?.map(|r| decode(&r)).transpose()
    }

    /// All files, by path.
    fn files(&self, space: &SpaceId, each: &mut dyn FnMut(LakePath, FileRecord)) -> Result<(), CatalogError> {
        self.files_below(space, None, each)
    }

    /// The files below a folder (`None` is the lake), by path.
    fn files_below(
        &self,
        space: &SpaceId,
        folder: Option<&LakePath>,
        each: &mut dyn FnMut(LakePath, FileRecord),
    ) -> Result<(), CatalogError> {
        let above = folder.map_or(String::new(), |f| format!("{f}/"));
        let prefix = key2(&space.0, above.as_bytes());
        self.raw_scan(Table::Files as usize, &prefix, &mut |key, raw| {
            let text = std::str::from_utf8(key).map_err(|e| CatalogError::Store(e.to_string()))?;
            let path = LakePath::parse(&format!("{above}{text}")).map_err(|e| CatalogError::Store(e.to_string()))?;
            each(path, decode(raw)?);
            Ok(true)
        })
    }

    /// Where a blob lies.
    fn blob(&self, space: &SpaceId, hash: &BlobHash) -> Result<Option<BlobRecord>, CatalogError> {
        let raw = self.raw_get(Table::Blobs as usize, &key2(&space.0, &hash.0))?;
        raw.map(|r| decode(&r)).transpose()
    }

    /// Whether a blob has at least one recorded place.
    fn has_blob(&self, space: &SpaceId, hash: &BlobHash) -> Result<bool, CatalogError> {
        Ok(self.blob(space, hash)?.is_some_and(|b| !b.places.is_empty()))
    }

    /// All blobs.
    fn blobs(&self, space: &SpaceId, each: &mut dyn FnMut(BlobHash, BlobRecord)) -> Result<(), CatalogError> {
        self.raw_scan(Table::Blobs as usize, &space.0, &mut |key, raw| {
            each(BlobHash(id32(key)?), decode(raw)?);
            Ok(true)
        })
    }

    /// The bytes of a metadata blob, checked against their hash.
    fn meta(&self, space: &SpaceId, hash: &BlobHash) -> Result<Option<Vec<u8>>, CatalogError> {
        let Some(raw) = self.raw_get(Table::Meta as usize, &key2(&space.0, &hash.0))? else {
            return Ok(None);
        };
        let bytes = match raw.split_first() {
            Some((&INLINE, bytes)) => bytes.to_vec(),
            _ => match read_beside(self.raw_home(), "meta", hash) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return Ok(None),
                // A place on the disk that cannot be read any more counts as a flipped bit does.
                Err(CatalogError::Io { source, .. }) if is_unreadable(&source) => return Ok(None),
                Err(e) => return Err(e),
            },
        };
        // A flipped bit here counts as absence: the blob is fetched or made again.
        Ok((BlobHash::of(&bytes) == *hash).then_some(bytes))
    }

    /// Whether a metadata blob is recorded.
    fn has_meta(&self, space: &SpaceId, hash: &BlobHash) -> Result<bool, CatalogError> {
        Ok(self.raw_get(Table::Meta as usize, &key2(&space.0, &hash.0))?.is_some())
    }

    /// The tree of a blob: bao-tree's pre-order outboard with 16 KiB groups, without the size in front.
    fn outboard(&self, hash: &BlobHash) -> Result<Option<Vec<u8>>, CatalogError> {
        match self.raw_get(Table::Outboards as usize, &hash.0)? {
            None => Ok(None),
            Some(raw) => match raw.split_first() {
                Some((&INLINE, bytes)) => Ok(Some(bytes.to_vec())),
                _ => read_beside(self.raw_home(), "obao", hash),
            },
        }
    }

    /// The tree of a blob as it lies: a large one is opened, not read.
    fn open_outboard(&self, hash: &BlobHash) -> Result<Option<StoredTree>, CatalogError> {
        let Some(raw) = self.raw_get(Table::Outboards as usize, &hash.0)? else { return Ok(None) };
        if let Some((&INLINE, bytes)) = raw.split_first() {
            return Ok(Some(StoredTree::Bytes(bytes.to_vec())));
        }
        let path = beside(self.raw_home(), "obao", &hash.to_string());
        match fs::File::open(&path) {
            Ok(file) => Ok(Some(StoredTree::File(file))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CatalogError::Io { path, source }),
        }
    }

    /// Blobs that may hold the chunk; only sampled chunks are in the index.
    fn chunk_candidates(&self, space: &SpaceId, chunk: &ChunkHash) -> Result<Vec<BlobHash>, CatalogError> {
        let mut found = Vec::new();
        if is_sampled(chunk) {
            let prefix = key2(&space.0, &chunk.0[..CHUNK_PREFIX_BYTES]);
            self.raw_scan(Table::Chunks as usize, &prefix, &mut |key, _| {
                found.push(BlobHash(id32(key)?));
                Ok(found.len() < 16)
            })?;
        }
        Ok(found)
    }

    /// What of a blob is durable in staging.
    fn staging(&self, space: &SpaceId, hash: &BlobHash) -> Result<Option<StagingRecord>, CatalogError> {
        let raw = self.raw_get(Table::Staging as usize, &key2(&space.0, &hash.0))?;
        raw.map(|r| decode(&r)).transpose()
    }

    /// Whether anything is recorded in staging.
    fn has_stagings(&self, space: &SpaceId) -> Result<bool, CatalogError> {
        let mut any = false;
        self.raw_scan(Table::Staging as usize, &space.0, &mut |_, _| {
            any = true;
            Ok(false)
        })?;
        Ok(any)
    }

    /// Everything in staging.
    fn stagings(&self, space: &SpaceId) -> Result<Vec<(BlobHash, StagingRecord)>, CatalogError> {
        let mut found = Vec::new();
        self.raw_scan(Table::Staging as usize, &space.0, &mut |key, raw| {
            found.push((BlobHash(id32(key)?), decode(raw)?));
            Ok(true)
        })?;
        Ok(found)
    }

    /// What is published.
    fn live(&self, space: &SpaceId) -> Result<Option<LiveRecord>, CatalogError> {
        self.raw_get(Table::Live as usize, &space.0)?.map(|r| decode(&r)).transpose()
    }
}

impl<T: Raw> Lookup for T {}

/// Whether the disk says that it cannot read what it was given.
fn is_unreadable(e: &std::io::Error) -> bool {
    e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

fn read_beside(home: &Path, folder: &str, hash: &BlobHash) -> Result<Option<Vec<u8>>, CatalogError> {
    let path = beside(home, folder, &hash.to_string());
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CatalogError::Io { path, source }),
    }
}
