//! A section as a read-only object store, so that delta-rs and Lance read a candidate wherever its
//! bytes lie: in staging, pinned, or live.
//!
//! Invariant: the store shows exactly the files of the view less those that were hidden, in the
//! order of their paths, and never writes. Bytes come only from [`SectionView::read`].

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use lance_io::object_store::{ObjectStore as LanceStore, ObjectStoreParams, ObjectStoreProvider};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use sluice_protocol::path::LakePath;
use sluice_store::table::{SectionView, ViewFile};
use url::Url;

/// Scheme of the addresses under which a view is opened. It must not be `file`: Lance would go
/// around the object store and read the disk.
pub const SCHEME: &str = "sluice-view";
/// Address of the table in a view. The format libraries handle a table at the very root of a store
/// badly, so it lies one folder down.
pub const TABLE_URL: &str = "sluice-view://view/table";
/// The folder of [`TABLE_URL`].
const FOLDER: &str = "table";
/// A file is handed out in pieces of this length, in bytes.
const PIECE_BYTES: u64 = 8 * 1024 * 1024;
/// Lance keeps this many reads in flight.
const LANCE_READS: usize = 8;
/// Lance reads at least this much at once, in bytes.
const LANCE_BLOCK_BYTES: usize = 64 * 1024;

/// The store.
#[derive(Clone)]
pub struct ViewStore {
    view: Arc<dyn SectionView>,
    /// Positions in the view's listing that are shown, ascending.
    shown: Arc<[u32]>,
}

impl ViewStore {
    /// Shows the files of `view` for which `hidden` is false.
    pub fn new(view: Arc<dyn SectionView>, hidden: impl Fn(&str) -> bool) -> Self {
        let shown = (0u32..).zip(view.files()).filter(|(_, f)| !hidden(f.path.as_str())).map(|(at, _)| at).collect();
        Self { view, shown }
    }

    /// [`TABLE_URL`] with a slash at its end, so that paths can be joined to it.
    pub fn table_root() -> Url {
        Url::parse(&format!("{TABLE_URL}/")).expect("a constant address")
    }

    fn file(&self, at: u32) -> &ViewFile {
        &self.view.files()[at as usize]
    }

    fn find(&self, location: &Path) -> Result<&ViewFile> {
        let missing = || Error::NotFound { path: location.to_string(), source: "not in the section".into() };
        let below = location.as_ref().strip_prefix(FOLDER).and_then(|r| r.strip_prefix('/'));
        let below = below.ok_or_else(missing)?;
        let at = self.shown.binary_search_by(|&at| self.file(at).path.as_str().cmp(below)).map_err(|_| missing())?;
        Ok(self.file(self.shown[at]))
    }

    /// Positions in `shown` of the files below `prefix`.
    fn below(&self, prefix: Option<&Path>) -> Range<usize> {
        let whole = prefix.map_or("", |p| p.as_ref());
        let Some(rest) = whole.strip_prefix(FOLDER) else {
            return if whole.is_empty() { 0..self.shown.len() } else { 0..0 };
        };
        match rest.strip_prefix('/') {
            None if rest.is_empty() => 0..self.shown.len(),
            None => 0..0,
            Some(folder) => {
                let first = format!("{folder}/");
                // `0` is the character after `/`, so this is the first path past the folder.
                let past = format!("{folder}0");
                let from = self.shown.partition_point(|&at| *self.file(at).path.as_str() < *first);
                let to = self.shown.partition_point(|&at| *self.file(at).path.as_str() < *past);
                from..to
            }
        }
    }
}

fn meta(file: &ViewFile) -> ObjectMeta {
    let since = Duration::from_nanos(file.mtime_ns.unsigned_abs());
    let modified = if file.mtime_ns >= 0 {
        SystemTime::UNIX_EPOCH.checked_add(since)
    } else {
        SystemTime::UNIX_EPOCH.checked_sub(since)
    };
    ObjectMeta {
        location: Path::parse(format!("{FOLDER}/{}", file.path)).unwrap_or_default(),
        last_modified: modified.unwrap_or(SystemTime::UNIX_EPOCH).into(),
        size: file.size,
        e_tag: None,
        version: None,
    }
}

/// Reads `range` piece by piece on blocking threads.
fn pieces(view: Arc<dyn SectionView>, path: LakePath, range: Range<u64>) -> BoxStream<'static, Result<Bytes>> {
    let path = Arc::new(path);
    stream::unfold(range, move |left| {
        let (view, path) = (view.clone(), path.clone());
        async move {
            if left.is_empty() {
                return None;
            }
            let end = left.end.min(left.start + PIECE_BYTES);
            let piece = read(view, path, left.start..end).await;
            // After an error there is nothing more to say.
            let next = if piece.is_ok() { end..left.end } else { left.end..left.end };
            Some((piece, next))
        }
    })
    // The kernel's JSON reader asks again after the end.
    .fuse()
    .boxed()
}

async fn read(view: Arc<dyn SectionView>, path: Arc<LakePath>, range: Range<u64>) -> Result<Bytes> {
    let wanted = range.end - range.start;
    let name = path.clone();
    let got = tokio::task::spawn_blocking(move || view.read(&path, range)).await.map_err(|e| generic(Box::new(e)))?;
    match got {
        Ok(bytes) if bytes.len() as u64 == wanted => Ok(bytes),
        Ok(bytes) => Err(generic(format!("`{name}` gave {} bytes where {wanted} were asked for", bytes.len()).into())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::NotFound { path: name.to_string(), source: Box::new(e) })
        }
        Err(e) => Err(generic(Box::new(e))),
    }
}

fn generic(source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::Generic { store: "section view", source }
}

fn read_only() -> Error {
    Error::NotSupported { source: "a section view is read-only".into() }
}

#[async_trait]
impl ObjectStore for ViewStore {
    async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> Result<PutResult> {
        Err(read_only())
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(read_only())
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let file = self.find(location)?;
        let meta = meta(file);
        options.check_preconditions(&meta)?;
        let range = match &options.range {
            Some(wanted) => wanted.as_range(meta.size).map_err(|e| generic(Box::new(e)))?,
            None => 0..meta.size,
        };
        let payload = if options.head {
            stream::empty().boxed()
        } else {
            pieces(self.view.clone(), file.path.clone(), range.clone())
        };
        Ok(GetResult { payload: GetResultPayload::Stream(payload), meta, range, attributes: Attributes::default() })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        locations.map(|_| Err(read_only())).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let store = self.clone();
        stream::iter(self.below(prefix).map(move |at| Ok(meta(store.file(store.shown[at]))))).boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let depth = prefix.map_or(0, |p| p.parts().count());
        let mut found = ListResult { common_prefixes: Vec::new(), objects: Vec::new() };
        for at in self.below(prefix) {
            let meta = meta(self.file(self.shown[at]));
            if meta.location.parts().count() == depth + 1 {
                found.objects.push(meta);
                continue;
            }
            let folder = Path::from_iter(meta.location.parts().take(depth + 1));
            // The listing is sorted, so the files of one folder stand together.
            if found.common_prefixes.last() != Some(&folder) {
                found.common_prefixes.push(folder);
            }
        }
        Ok(found)
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(read_only())
    }
}

impl fmt::Display for ViewStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "section view of {} files", self.shown.len())
    }
}

impl fmt::Debug for ViewStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hands a [`ViewStore`] to Lance for every address with [`SCHEME`].
#[derive(Debug)]
pub struct LanceViews(pub ViewStore);

#[async_trait]
impl ObjectStoreProvider for LanceViews {
    async fn new_store(&self, base: Url, params: &ObjectStoreParams) -> lance_core::Result<LanceStore> {
        let store: Arc<dyn ObjectStore> = Arc::new(self.0.clone());
        let block = Some(params.block_size.unwrap_or(LANCE_BLOCK_BYTES));
        Ok(LanceStore::new(store, base, block, None, false, true, LANCE_READS, 0, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::TryStreamExt;
    use object_store::ObjectStoreExt;

    struct Names(Vec<ViewFile>);

    impl SectionView for Names {
        fn files(&self) -> &[ViewFile] {
            &self.0
        }
        fn read(&self, path: &LakePath, range: Range<u64>) -> std::io::Result<Bytes> {
            let text = path.as_str().as_bytes();
            text.get(range.start as usize..range.end as usize)
                .map(Bytes::copy_from_slice)
                .ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
        }
    }

    fn store(names: &[&str]) -> ViewStore {
        let mut files: Vec<ViewFile> = names
            .iter()
            .map(|n| ViewFile {
                path: LakePath::parse(n).expect("a path"),
                size: n.len() as u64,
                mtime_ns: 1_700_000_000_123_456_789,
            })
            .collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        ViewStore::new(Arc::new(Names(files)), |p| p == "a/hidden")
    }

    async fn listed(store: &ViewStore, prefix: &str) -> Vec<String> {
        let metas: Vec<ObjectMeta> = store.list(Some(&Path::from(prefix))).try_collect().await.expect("a listing");
        metas.into_iter().map(|m| m.location.to_string()).collect()
    }

    #[tokio::test]
    async fn lists_by_folder_and_not_by_string_prefix() {
        let store = store(&["a/b", "a/b/c", "a/bb", "a.x", "a/hidden", "ab/c", "a/d=x%20y/p"]);
        assert_eq!(listed(&store, "table/a").await, ["table/a/b", "table/a/b/c", "table/a/bb", "table/a/d=x%20y/p"]);
        assert_eq!(listed(&store, "table").await.len(), 6);
        assert_eq!(listed(&store, "tab").await.len(), 0);
        let top = store.list_with_delimiter(Some(&Path::from("table"))).await.expect("a listing");
        let folders: Vec<String> = top.common_prefixes.iter().map(Path::to_string).collect();
        assert_eq!(folders, ["table/a", "table/ab"]);
        assert_eq!(top.objects.len(), 1);
    }

    #[tokio::test]
    async fn reads_ranges_and_times_and_refuses_writes() {
        let store = store(&["a/0123456789", "a/hidden"]);
        let path = Path::from("table/a/0123456789");
        assert_eq!(&store.get_range(&path, 2..5).await.expect("a range")[..], b"012");
        let head = store.head(&path).await.expect("a head");
        assert_eq!((head.size, head.last_modified.timestamp_millis()), (12, 1_700_000_000_123));
        let hidden = store.head(&Path::from("table/a/hidden")).await;
        assert!(matches!(hidden, Err(Error::NotFound { .. })));
        let put = store.put(&path, PutPayload::from_static(b"x")).await;
        assert!(matches!(put, Err(Error::NotSupported { .. })));
        assert!(store.delete(&path).await.is_err());
        assert!(store.copy(&path, &Path::from("table/b")).await.is_err());
    }
}
