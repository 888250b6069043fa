//! What a site knows, in one redb file in its home.
//!
//! Every change is one transaction with two-phase commit, because parts of what is stored come from
//! peers: the one-phase commit trusts a checksum that a hostile value could be made to match.
//!
//! Invariant: nothing is written here about bytes that are not durable yet. Whoever commits "this
//! blob is here" has fsynced it before. Larger values lie beside the file, and are fsynced, named
//! and their folder fsynced before the row that points at them is committed.
//!
//! Assumptions about the disk: a completed fsync is durable; writes within a sector do not tear
//! silently (redb checks its pages); a rename is atomic.

mod backend;
pub(crate) mod lookup;
mod memo;
mod records;
pub mod site;
mod write;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use redb::{Database, Durability, ReadOnlyTable, ReadTransaction, ReadableDatabase, TableDefinition, WriteTransaction};
use sluice_protocol::codec::CodecError;
use sluice_protocol::ids::BlobHash;

use crate::disk::WholeFiles;

pub use lookup::{Lookup, Raw, StoredTree};
pub use records::{
    BlobRecord, CHANGES_MAX, FileRecord, JournalRecord, LeaseRecord, LiveRecord, LiveSection, LocalChange, Located,
    PeerRecord, Rival, Role, SnapshotRecord, SpaceRecord, StagingRecord, TicketRecord,
};
pub use site::SiteLookup;
pub use write::Batch;

/// The layout of the tables; another number is refused.
const SCHEMA: u64 = 1;
/// The catalog's file in the home.
const FILE: &str = "catalog.redb";
/// Page cache of redb, in bytes. Its default of 1 GiB would break the memory promise.
const CACHE_BYTES: usize = 64 * 1024 * 1024;
/// Values above this lie in files of their own, in bytes.
pub(crate) const INLINE_BYTES_MAX: usize = 64 * 1024;
/// Trees above this lie in files of their own, in bytes: those of blobs above 16 MiB.
pub(crate) const TREE_INLINE_BYTES_MAX: usize = 8 * 1024;
/// Folder of large metadata blobs in the home.
pub(crate) const META_FOLDER: &str = "meta";
/// Folder of large outboards in the home.
pub(crate) const TREE_FOLDER: &str = "obao";
/// Large metadata blobs.
pub(crate) const META_FILES: WholeFiles = WholeFiles("meta");
/// Large outboards.
pub(crate) const TREES: WholeFiles = WholeFiles("tree");
/// Permission bits of files beside the catalog, less the umask.
pub(crate) const FILE_MODE: u32 = 0o600;
/// Permission bits of their folders, less the umask.
pub(crate) const FOLDER_MODE: u32 = 0o700;

pub(crate) type Def = TableDefinition<'static, &'static [u8], &'static [u8]>;

macro_rules! tables {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// The tables; the number is the index into [`Reader`]'s open tables.
        #[derive(Clone, Copy)]
        #[repr(usize)]
        #[allow(clippy::upper_case_acronyms)]
        pub(crate) enum Table { $($(#[$doc])* $name),* }
        const DEFS: &[Def] = &[$(TableDefinition::new($text)),*];
    };
}

tables! {
    Settings = "settings",
    /// (space, path) → what the last scan or publish saw.
    Files = "files",
    /// (space, blob) → where its bytes lie.
    Blobs = "blobs",
    /// (space, blob) → a metadata blob's bytes, or that they lie in a file.
    Meta = "meta",
    /// blob → its outboard's bytes, or that they lie in a file.
    Outboards = "outboards",
    /// (space, first bytes of a chunk hash, blob) → nothing.
    Chunks = "chunks",
    /// (space, blob) → what of it is durable in staging.
    Staging = "staging",
    /// space → what is published.
    Live = "live",
    Counters = "counters",
    Spaces = "spaces",
    /// (space, writer, epoch, seq) → signed head.
    Heads = "heads",
    /// (space, snapshot) → its totals.
    Snapshots = "snapshots",
    /// space → signed grant set.
    Grants = "grants",
    Peers = "peers",
    Tickets = "tickets",
    /// number → event.
    Journal = "journal",
    /// (space, peer, snapshot) → until when the peer needs it.
    Leases = "leases",
}

impl Table {
    pub(crate) fn def(self) -> Def {
        DEFS[self as usize]
    }
}

/// Why the catalog did not answer.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("the catalog `{path}` is damaged: {cause}")]
    Corrupt { path: PathBuf, cause: String },
    #[error("the catalog `{path}` has layout {found}; this build knows layout {SCHEMA}")]
    UnknownSchema { path: PathBuf, found: u64 },
    #[error("the catalog `{path}` is in use by another process")]
    InUse { path: PathBuf },
    #[error("the disk is full: the catalog could not be written")]
    DiskFull,
    #[error("`{path}`: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("a record in the catalog cannot be read: {0}")]
    Record(#[from] CodecError),
    #[error("the catalog failed: {0}")]
    Store(String),
    #[error("{0}")]
    Refused(String),
}

macro_rules! from_redb {
    ($($t:ty),*) => { $(impl From<$t> for CatalogError {
        fn from(e: $t) -> Self { store_error(redb::Error::from(e)) }
    })* };
}
from_redb!(redb::TransactionError, redb::TableError, redb::StorageError, redb::CommitError, redb::SetDurabilityError);

fn store_error(e: redb::Error) -> CatalogError {
    match e {
        redb::Error::Io(e) if e.kind() == io::ErrorKind::StorageFull => CatalogError::DiskFull,
        redb::Error::Corrupted(cause) => CatalogError::Store(format!("it is damaged: {cause}")),
        other => CatalogError::Store(other.to_string()),
    }
}

struct Inner {
    /// None while it could not be opened again after a failed write.
    db: RwLock<Option<Database>>,
    home: PathBuf,
    memo: memo::Memo,
}

/// The open catalog.
#[derive(Clone)]
pub struct Catalog(Arc<Inner>);

impl Catalog {
    /// Opens or makes `catalog.redb` in `home`, with `meta/` and `obao/` beside it.
    pub fn open(home: &Path) -> Result<Self, CatalogError> {
        let path = home.join(FILE);
        for (files, folder) in [(META_FILES, META_FOLDER), (TREES, TREE_FOLDER)] {
            let at = home.join(folder);
            files.folder(&at, FOLDER_MODE).map_err(|source| CatalogError::Io { path: at, source })?;
        }
        let db = open_db(&path)?;
        let catalog =
            Self(Arc::new(Inner { db: RwLock::new(Some(db)), home: home.to_path_buf(), memo: Default::default() }));
        catalog.prepare(&path)?;
        Ok(catalog)
    }

    /// Whether the catalog in `home` can be read from its first page to its last; slow. That there is none is
    /// no damage.
    pub fn is_sound(home: &Path) -> Result<bool, CatalogError> {
        let path = home.join("catalog.redb");
        if !path.exists() {
            return Ok(true);
        }
        let mut db = match open_db(&path) {
            Ok(db) => db,
            Err(CatalogError::Corrupt { .. }) => return Ok(false),
            Err(e) => return Err(e),
        };
        let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            db.check_integrity().is_ok() && every_row(&db).is_ok()
        }));
        Ok(checked.unwrap_or(false))
    }

    fn prepare(&self, path: &Path) -> Result<(), CatalogError> {
        let found = self.write(|b| -> Result<u64, CatalogError> {
            b.make_tables()?;
            match b.setting("schema")? {
                Some(raw) => Ok(raw.try_into().map(u64::from_le_bytes).unwrap_or(0)),
                None => {
                    b.put_setting("schema", &SCHEMA.to_le_bytes())?;
                    Ok(SCHEMA)
                }
            }
        })?;
        if found == SCHEMA { Ok(()) } else { Err(CatalogError::UnknownSchema { path: path.to_path_buf(), found }) }
    }

    /// One consistent view of everything.
    pub fn read(&self) -> Result<Reader, CatalogError> {
        let (txn, tables) = self.begin(|db| {
            let txn = db.begin_read()?;
            // One is opened at once: redb says only then that a write failed before.
            let first = OnceLock::from(txn.open_table(DEFS[0])?);
            Ok((txn, std::iter::once(first).chain((1..DEFS.len()).map(|_| OnceLock::new())).collect()))
        })?;
        Ok(Reader { txn, tables, inner: self.0.clone() })
    }

    fn begin_write(&self) -> Result<WriteTransaction, CatalogError> {
        self.begin(|db| Ok(db.begin_write()?))
    }

    /// Begins a transaction. redb answers nothing more once a write failed, so that nobody reads what may
    /// not be on the disk; then the file is opened anew, as the last commit left it.
    fn begin<T>(&self, act: impl Fn(&Database) -> Result<T, redb::Error>) -> Result<T, CatalogError> {
        let failed_before = |e: &redb::Error| matches!(e, redb::Error::PreviousIo | redb::Error::DatabaseClosed);
        let attempt = |db: &Option<Database>| match db.as_ref().map(&act) {
            None => None,
            Some(Err(e)) if failed_before(&e) => None,
            Some(answer) => Some(answer.map_err(store_error)),
        };
        if let Some(answer) = attempt(&self.0.db.read().unwrap_or_else(PoisonError::into_inner)) {
            return answer;
        }
        let mut db = self.0.db.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have opened it meanwhile.
        if let Some(answer) = attempt(&db) {
            return answer;
        }
        // Its lock on the file goes with it.
        *db = None;
        let fresh = open_db(&self.0.home.join(FILE))?;
        let answer = act(&fresh).map_err(store_error);
        *db = Some(fresh);
        answer
    }

    /// One durable change: all of it or nothing.
    pub fn write<T, E: From<CatalogError>>(&self, change: impl FnOnce(&mut Batch) -> Result<T, E>) -> Result<T, E> {
        let begin = || -> Result<_, CatalogError> {
            let mut txn = self.begin_write()?;
            txn.set_durability(Durability::Immediate)?;
            txn.set_two_phase_commit(true);
            Ok(txn)
        };
        let mut batch = Batch::new(begin()?, self.0.clone());
        let value = change(&mut batch)?;
        batch.commit()?;
        Ok(value)
    }

    /// Runs `look` while nobody can write, and changes nothing: what it finds named or not named in the
    /// catalog is so until it ends.
    pub(crate) fn while_still<T>(
        &self,
        look: impl FnOnce(&Batch) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let batch = Batch::new(self.begin_write()?, self.0.clone());
        let found = look(&batch);
        batch.abort()?;
        found
    }

    /// Where the outboard of a large blob lies.
    pub fn outboard_path(&self, hash: &BlobHash) -> PathBuf {
        beside(&self.0.home, TREE_FOLDER, &hash.to_string())
    }

    /// The home that the catalog lies in.
    pub fn home(&self) -> &Path {
        &self.0.home
    }
}

/// Reads everything once.
fn every_row(db: &Database) -> Result<(), CatalogError> {
    let txn = db.begin_read()?;
    for def in DEFS {
        let table = match txn.open_table(*def) {
            // Stopped before its first change.
            Err(redb::TableError::TableDoesNotExist(_)) => continue,
            table => table?,
        };
        for row in redb::ReadableTable::iter(&table)? {
            row?;
        }
    }
    Ok(())
}

fn open_db(path: &Path) -> Result<Database, CatalogError> {
    let at = || path.to_path_buf();
    let corrupt = |cause: String| CatalogError::Corrupt { path: at(), cause };
    // redb may panic on a file that is cut or overwritten; a damaged catalog is an error, not a crash.
    let opened = std::panic::catch_unwind(|| {
        let backend = backend::Backend::open(path)?;
        Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)
    });
    match opened {
        Err(_) => Err(corrupt("its pages contradict each other".into())),
        Ok(Ok(db)) => Ok(db),
        Ok(Err(redb::DatabaseError::DatabaseAlreadyOpen)) => Err(CatalogError::InUse { path: at() }),
        Ok(Err(redb::DatabaseError::UpgradeRequired(v))) => {
            Err(CatalogError::UnknownSchema { path: at(), found: u64::from(v) })
        }
        Ok(Err(redb::DatabaseError::Storage(redb::StorageError::Io(e)))) => match e.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Err(corrupt(e.to_string())),
            io::ErrorKind::StorageFull => Err(CatalogError::DiskFull),
            _ => Err(CatalogError::Io { path: at(), source: e }),
        },
        Ok(Err(e)) => Err(corrupt(e.to_string())),
    }
}

/// A file beside the catalog: `<home>/<folder>/<2 digits>/<name>`.
pub(crate) fn beside(home: &Path, folder: &str, name: &str) -> PathBuf {
    home.join(folder).join(&name[..2]).join(name)
}

type Rows = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// A consistent view; cheap to make, to be dropped soon.
pub struct Reader {
    txn: ReadTransaction,
    /// Opened when they are first asked: most views ask two or three.
    tables: Vec<OnceLock<Rows>>,
    inner: Arc<Inner>,
}

impl Reader {
    pub(crate) fn home(&self) -> &Path {
        &self.inner.home
    }

    fn table(&self, number: usize) -> Result<&Rows, CatalogError> {
        let cell = &self.tables[number];
        match cell.get() {
            Some(table) => Ok(table),
            None => {
                let table = self.txn.open_table(DEFS[number])?;
                Ok(cell.get_or_init(|| table))
            }
        }
    }
}
