//! Walks a lake and takes down names and `stat` results.
//!
//! Folders are opened one by one from the lake's top without following links, level by level, so no
//! descriptor is held while others are read, and a folder that someone replaces by a link while we
//! walk leads nowhere.
//!
//! Invariant: each name in the lake is a file, folder or link of the tree, or reported as skipped;
//! only Sluice's own folder is passed over in silence.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use sluice_protocol::limits::{ENTRIES_MAX, FILE_BYTES_MAX};
use sluice_protocol::manifest::SectionKind;
use sluice_protocol::path::{LakePath, OWN_FOLDER};

use super::{Report, ScanError, Skip, layout, links};
use crate::lake::{Fingerprint, Lake, open_folder};
use crate::watch::Watch;

/// Names of one folder that one task looks at.
const NAMES_PER_TASK: usize = 1024;

/// A file below a folder.
#[derive(Debug, Clone)]
pub(crate) struct FileSeen {
    pub name: Box<str>,
    pub print: Fingerprint,
    /// Permission bits.
    pub mode: u32,
}

/// A folder of the lake and what lies directly in it, sorted by name.
#[derive(Debug, Default)]
pub(crate) struct Folder {
    /// None for the lake's top.
    pub path: Option<LakePath>,
    /// Permission bits.
    pub mode: u32,
    /// The device that it lies on.
    pub dev: u64,
    pub files: Vec<FileSeen>,
    /// Names and targets.
    pub links: Vec<(Box<str>, String)>,
    /// Indices into the tree.
    pub folders: Vec<usize>,
}

impl Folder {
    /// Its own name; empty for the lake's top.
    pub fn name(&self) -> &str {
        self.path.as_ref().map_or("", LakePath::file_name)
    }
}

/// All folders; the first is the lake's top. A folder comes before those in it.
#[derive(Debug)]
pub(crate) struct Tree(pub Vec<Folder>);

impl Tree {
    /// The kind of table that the lake's top is, if it is one.
    pub fn top_is_table(&self) -> Option<SectionKind> {
        layout::proven_kind(self, 0).filter(|k| k.is_table())
    }
}

/// What one look at a name found.
enum Seen {
    File(FileSeen),
    /// With its permission bits and its device.
    Folder(LakePath, u32, u64),
    Link(Box<str>, String),
    Skipped(Skip),
    Nothing,
}

struct Walker<'a> {
    lake: &'a Lake,
    watch: &'a dyn Watch,
    names: AtomicU64,
    bytes: AtomicU64,
}

/// Walks the whole lake.
pub(crate) fn walk(lake: &Lake, report: &mut Report, watch: &dyn Watch) -> Result<Tree, ScanError> {
    let walker = Walker { lake, watch, names: AtomicU64::new(0), bytes: AtomicU64::new(0) };
    let top = rustix::fs::fstat(lake.dir().as_fd()).map_err(|e| ScanError::Lake(e.into()))?;
    let mut tree = vec![Folder { dev: dev_of(top.st_dev), ..Folder::default() }];
    report.devices.top = tree[0].dev;
    let mut level = 0..1;
    while !level.is_empty() {
        let here = &tree[level.clone()];
        let seen: Vec<Vec<Seen>> = here.par_iter().map(|f| walker.folder(f)).collect::<Result<_, _>>()?;
        let from = level.end;
        for (index, found) in level.zip(seen) {
            place(&mut tree, index, found, report);
        }
        level = from..tree.len();
    }
    Ok(Tree(tree))
}

fn place(tree: &mut Vec<Folder>, index: usize, found: Vec<Seen>, report: &mut Report) {
    for seen in found {
        match seen {
            Seen::File(file) => tree[index].files.push(file),
            Seen::Link(name, target) => tree[index].links.push((name, target)),
            Seen::Skipped(skip) => report.skipped.push(skip),
            Seen::Nothing => {}
            Seen::Folder(path, mode, dev) => {
                let child = tree.len();
                if dev != tree[index].dev {
                    report.devices.mounts.insert(path.clone(), dev);
                }
                tree[index].folders.push(child);
                tree.push(Folder { path: Some(path), mode, dev, ..Folder::default() });
            }
        }
    }
}

impl Walker<'_> {
    fn folder(&self, folder: &Folder) -> Result<Vec<Seen>, ScanError> {
        if self.watch.cancelled() {
            return Err(ScanError::Cancelled);
        }
        let (dir, mut names) = match self.open(folder) {
            Ok(open) => open,
            Err(e) if folder.path.is_none() => return Err(ScanError::Lake(e)),
            Err(e) => {
                let passing = !is_gone(&e);
                return Ok(vec![Seen::Skipped(Skip { passing, ..Skip::new(text(folder), folder_reason(&e)) })]);
            }
        };
        names.sort_unstable();
        let total = self.names.fetch_add(names.len() as u64, Ordering::Relaxed) + names.len() as u64;
        if total > ENTRIES_MAX {
            return Err(ScanError::TooMany { limit: ENTRIES_MAX });
        }
        let seen: Vec<Seen> =
            names.par_iter().with_min_len(NAMES_PER_TASK).map(|name| self.name(&dir, folder, name)).collect();
        let bytes = self.bytes.load(Ordering::Relaxed);
        self.watch.amount("scan", total, total, bytes, bytes);
        Ok(seen)
    }

    fn open(&self, folder: &Folder) -> std::io::Result<(cap_std::fs::Dir, Vec<Box<CStr>>)> {
        let dir = match &folder.path {
            None => open_top(self.lake)?,
            Some(path) => open_folder(self.lake.dir(), path.as_str())?,
        };
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&dir)? {
            let entry = entry?;
            if names.len() as u64 > ENTRIES_MAX {
                break;
            }
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(Box::from(entry.file_name()));
            }
        }
        Ok((dir, names))
    }

    fn name(&self, dir: &cap_std::fs::Dir, folder: &Folder, name: &CStr) -> Seen {
        if folder.path.is_none() && name.to_bytes() == OWN_FOLDER.as_bytes() {
            return Seen::Nothing;
        }
        let path = match lake_path(folder, name) {
            Ok(path) => path,
            Err(skip) => return Seen::Skipped(skip),
        };
        let stat = match rustix::fs::statat(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // It went away since the folder was read: it is not in the lake.
            Err(rustix::io::Errno::NOENT) => return Seen::Nothing,
            Err(e) => {
                return Seen::Skipped(Skip { passing: true, ..Skip::new(path, std::io::Error::from(e)) });
            }
        };
        let mode = stat.st_mode & 0o777;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(path, &stat),
            FileType::Directory => Seen::Folder(path, mode, dev_of(stat.st_dev)),
            FileType::Symlink => match links::check(self.lake, dir, &path) {
                Ok(target) => Seen::Link(path.file_name().into(), target),
                Err(reason) => Seen::Skipped(Skip::new(path, reason)),
            },
            other => Seen::Skipped(Skip::new(path, special(other))),
        }
    }

    fn file(&self, path: LakePath, stat: &Stat) -> Seen {
        let print = print_of(stat);
        if print.size > FILE_BYTES_MAX {
            let reason = format!("it is larger than {FILE_BYTES_MAX} bytes, the most that a file may have");
            return Seen::Skipped(Skip::new(path, reason));
        }
        self.bytes.fetch_add(print.size, Ordering::Relaxed);
        Seen::File(FileSeen { name: path.file_name().into(), print, mode: stat.st_mode & 0o777 })
    }
}

/// The fingerprint of a file from its `stat`: the same as [`Fingerprint::of`] gives.
pub(crate) fn print_of(stat: &Stat) -> Fingerprint {
    let ns = |s: i64, n: i64| s.saturating_mul(1_000_000_000).saturating_add(n);
    Fingerprint {
        dev: dev_of(stat.st_dev),
        inode: stat.st_ino,
        size: stat.st_size as u64,
        mtime_ns: ns(stat.st_mtime, stat.st_mtime_nsec as i64),
        ctime_ns: ns(stat.st_ctime, stat.st_ctime_nsec as i64),
        unknown: Default::default(),
    }
}

/// The standard library puts a device number together from major and minor in its own way.
fn dev_of(raw: u64) -> u64 {
    rustix::fs::makedev(rustix::fs::major(raw), rustix::fs::minor(raw))
}

/// The lake's top, for reading: the lake itself holds it by `O_PATH`, which may only be passed through.
fn open_top(lake: &Lake) -> std::io::Result<cap_std::fs::Dir> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(lake.dir().as_fd(), ".", flags, Mode::empty())?;
    Ok(cap_std::fs::Dir::from_std_file(fd.into()))
}

/// The `stat` of a file of the lake, without following links; none when it is not there or no regular file.
pub(crate) fn stat_file(lake: &Lake, path: &LakePath) -> Option<(Fingerprint, u32)> {
    let (dir, name) = match path.parent() {
        None => (lake.dir().try_clone().ok()?, path.as_str()),
        Some(parent) => (open_folder(lake.dir(), parent.as_str()).ok()?, path.file_name()),
    };
    let stat = rustix::fs::statat(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    regular.then(|| (print_of(&stat), stat.st_mode & 0o777))
}

fn lake_path(folder: &Folder, name: &CStr) -> Result<LakePath, Skip> {
    let shown = || {
        let name = name.to_bytes().escape_ascii().to_string();
        folder.path.as_ref().map_or(name.clone(), |p| format!("{p}/{name}"))
    };
    let Ok(name) = name.to_str() else {
        return Err(Skip::new(shown(), "its name is not UTF-8"));
    };
    let path = match &folder.path {
        None => LakePath::parse(name),
        Some(above) => above.child(name),
    };
    path.map_err(|e| Skip::new(shown(), format!("its name cannot travel: {e}")))
}

fn text(folder: &Folder) -> String {
    folder.path.as_ref().map_or(".".into(), ToString::to_string)
}

/// Whether the folder went away, or something else has its name now.
fn is_gone(e: &std::io::Error) -> bool {
    let link = e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    link || matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

fn folder_reason(e: &std::io::Error) -> String {
    match e.kind() {
        std::io::ErrorKind::PermissionDenied => "the folder may not be read: permission denied".into(),
        std::io::ErrorKind::NotFound => "the folder vanished during the scan".into(),
        _ => format!("the folder cannot be read: {e}"),
    }
}

fn special(kind: FileType) -> &'static str {
    match kind {
        FileType::Fifo => "it is a fifo",
        FileType::Socket => "it is a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "it is a device",
        _ => "it is neither file, folder nor link",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_a_fingerprint_agree() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/f"), b"1234").unwrap();
        let lake = Lake::open(dir.path()).unwrap();
        let path = LakePath::parse("a/f").unwrap();
        let (print, mode) = stat_file(&lake, &path).unwrap();
        let file = lake.open_place(&crate::lake::Place::Lake(path)).unwrap();
        assert_eq!(print, Lake::print_of(&file).unwrap());
        assert_eq!(print.size, 4);
        assert!(mode & 0o400 != 0);
        assert_eq!(stat_file(&lake, &LakePath::parse("a").unwrap()), None);
    }
}
