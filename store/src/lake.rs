//! A lake on the local disk, reached only from an open folder downwards.
//!
//! Invariant: nothing here follows a symbolic link, neither at the last name of a path nor on the
//! way to it, so no link in a lake can make Sluice read or write outside it.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use cap_std::fs::Dir;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use sluice_protocol::codec::{CodecError, Dec, Enc, Wire};
use sluice_protocol::path::{LakePath, OWN_FOLDER};
use sluice_protocol::record;

use crate::disk;

/// Where bytes lie.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A file of the lake.
    Lake(LakePath),
    /// A file in Sluice's own folder of the lake: a pin, a staged blob, a published section.
    Own(LakePath),
}

impl Wire for Place {
    fn put(&self, e: &mut Enc) {
        let (tag, path) = match self {
            Place::Lake(p) => (0u8, p),
            Place::Own(p) => (1u8, p),
        };
        e.array(2).expect("memory").u8(tag).expect("memory");
        path.put(e);
    }
    fn get(d: &mut Dec<'_>) -> Result<Self, CodecError> {
        if d.array()? != Some(2) {
            return Err(CodecError::NotCanonical);
        }
        match d.u8()? {
            0 => Ok(Place::Lake(LakePath::get(d)?)),
            1 => Ok(Place::Own(LakePath::get(d)?)),
            other => Err(CodecError::Invalid(format!("place {other} is unknown"))),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Lake(p) => write!(f, "{p}"),
            Place::Own(p) => write!(f, "{OWN_FOLDER}/{p}"),
        }
    }
}

record! {
    /// What `stat` says of a file: while it is equal, the bytes are taken to be the same.
    pub struct Fingerprint {
        0 => dev: u64,
        1 => inode: u64,
        /// Length in bytes.
        2 => size: u64,
        /// Nanoseconds since the Unix epoch.
        3 => mtime_ns: i64,
        /// Changes with every write, link, unlink and chmod; cannot be set back by a program.
        4 => ctime_ns: i64,
    }
}

impl Fingerprint {
    /// From what `stat` said.
    pub fn of(meta: &std::fs::Metadata) -> Self {
        let ns = |s: i64, n: i64| s.saturating_mul(1_000_000_000).saturating_add(n);
        Self {
            dev: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            mtime_ns: ns(meta.mtime(), meta.mtime_nsec()),
            ctime_ns: ns(meta.ctime(), meta.ctime_nsec()),
            unknown: Default::default(),
        }
    }
}

/// Why a lake cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LakeError {
    #[error("there is no folder `{0}`")]
    Missing(PathBuf),
    #[error("`{0}` is not a folder")]
    NotAFolder(PathBuf),
    #[error("`{0}` may not be entered: permission denied")]
    Denied(PathBuf),
    #[error("nothing can be written in `{path}` ({source})")]
    ReadOnly { path: PathBuf, source: io::Error },
    #[error("`{path}` cannot be opened: {source}")]
    Io { path: PathBuf, source: io::Error },
}

struct Inner {
    root: PathBuf,
    dir: Dir,
    own: OnceLock<Dir>,
}

/// An open lake folder.
#[derive(Clone)]
pub struct Lake(Arc<Inner>);

impl Lake {
    /// Opens the folder `root`, which must exist. Links on the way to it are followed: the person who named it chose them.
    pub fn open(root: &Path) -> Result<Self, LakeError> {
        let path = || root.to_path_buf();
        let named = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => LakeError::Missing(path()),
            io::ErrorKind::PermissionDenied => LakeError::Denied(path()),
            io::ErrorKind::NotADirectory => LakeError::NotAFolder(path()),
            _ => LakeError::Io { path: path(), source: e },
        };
        let real = root.canonicalize().map_err(named)?;
        if !real.is_dir() {
            return Err(LakeError::NotAFolder(path()));
        }
        let dir = Dir::open_ambient_dir(&real, cap_std::ambient_authority()).map_err(named)?;
        Ok(Self(Arc::new(Inner { root: real, dir, own: OnceLock::new() })))
    }

    /// As [`Lake::open`], for whoever opens it for a single file: [`Lake::root`] is the path as it was given.
    pub fn open_as_named(root: &Path) -> Result<Self, LakeError> {
        let failed = |source| LakeError::Io { path: root.to_path_buf(), source };
        let dir = Dir::open_ambient_dir(root, cap_std::ambient_authority()).map_err(failed)?;
        Ok(Self(Arc::new(Inner { root: root.to_path_buf(), dir, own: OnceLock::new() })))
    }

    /// The folder's real path.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// The open folder.
    pub fn dir(&self) -> &Dir {
        &self.0.dir
    }

    /// Sluice's own folder in the lake, made on first use (mode 0700).
    pub fn own(&self) -> Result<&Dir, LakeError> {
        if let Some(dir) = self.0.own.get() {
            return Ok(dir);
        }
        let failed = |source: io::Error| LakeError::ReadOnly { path: self.0.root.clone(), source };
        match disk::make_folder("lake", &self.0.dir, OWN_FOLDER, 0o700) {
            // What is made durable below it later must be found again.
            Ok(()) => sync_folder(&self.0.dir).map_err(failed)?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed(e)),
        }
        let dir = open_folder(&self.0.dir, OWN_FOLDER).map_err(failed)?;
        Ok(self.0.own.get_or_init(|| dir))
    }

    /// Sluice's own folder if it is there, without making it.
    pub fn own_if_present(&self) -> Option<&Dir> {
        if self.0.own.get().is_none() && self.0.dir.symlink_metadata(OWN_FOLDER).is_ok() {
            return self.own().ok();
        }
        self.0.own.get()
    }

    /// Opens a regular file for reading.
    pub fn open_place(&self, place: &Place) -> io::Result<File> {
        match place {
            Place::Lake(path) => open_file(&self.0.dir, path.as_str()),
            Place::Own(path) => {
                let own = self.own_if_present().ok_or(io::ErrorKind::NotFound)?;
                open_file(own, path.as_str())
            }
        }
    }

    /// Opens the folder that a place lies in.
    pub(crate) fn open_folder_of(&self, place: &Place) -> io::Result<File> {
        let (dir, path) = match place {
            Place::Lake(path) => (&self.0.dir, path),
            Place::Own(path) => (self.own_if_present().ok_or(io::ErrorKind::NotFound)?, path),
        };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        open_beneath(dir, path.parent().as_ref().map_or(".", LakePath::as_str), flags)
    }

    /// The fingerprint of an open file.
    pub fn print_of(file: &File) -> io::Result<Fingerprint> {
        Ok(Fingerprint::of(&file.metadata()?))
    }

    /// The absolute path of a place, for people and for libraries that want paths.
    pub fn path_of(&self, place: &Place) -> PathBuf {
        match place {
            Place::Lake(path) => self.0.root.join(path.as_str()),
            Place::Own(path) => self.0.root.join(OWN_FOLDER).join(path.as_str()),
        }
    }
}

/// Makes the names in a folder durable; a handle that only names it (O_PATH) is opened anew.
fn sync_folder(dir: &Dir) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    disk::sync_all("lake", rustix::fs::openat(dir.as_fd(), ".", flags, Mode::empty())?)
}

/// Opens a folder below `dir` without following any link.
pub fn open_folder(dir: &Dir, path: &str) -> io::Result<Dir> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(Dir::from_std_file(open_beneath(dir, path, flags)?))
}

/// Opens a regular file below `dir` for reading without following any link.
pub fn open_file(dir: &Dir, path: &str) -> io::Result<File> {
    // NONBLOCK: a fifo that took the file's place must not hang us.
    let file = open_beneath(dir, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

fn open_beneath(dir: &Dir, path: &str, flags: OFlags) -> io::Result<File> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(dir.as_fd(), path, flags, Mode::empty(), resolve) {
        Ok(fd) => Ok(File::from(fd)),
        // Kernels before 5.6, and some sandboxes, have no openat2.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => step_by_step(dir, path, flags),
        Err(e) => Err(e.into()),
    }
}

fn step_by_step(dir: &Dir, path: &str, flags: OFlags) -> io::Result<File> {
    let step = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let mut here = rustix::io::dup(dir.as_fd())?;
    let mut names = path.split('/').peekable();
    while let Some(name) = names.next() {
        if name.is_empty() || name == "." || name == ".." {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let last = names.peek().is_none();
        let how = if last { flags | OFlags::NOFOLLOW } else { step };
        here = rustix::fs::openat(&here, name, how, Mode::empty())?;
    }
    Ok(File::from(here))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lake() -> (tempfile::TempDir, Lake) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("lake/a")).unwrap();
        std::fs::write(dir.path().join("lake/a/b.txt"), b"inside").unwrap();
        std::fs::write(dir.path().join("secret"), b"outside").unwrap();
        let lake = Lake::open(&dir.path().join("lake")).unwrap();
        (dir, lake)
    }

    #[test]
    fn no_link_is_followed_at_the_end_or_on_the_way() {
        let (dir, lake) = lake();
        let link = |to: &str, at: &str| std::os::unix::fs::symlink(to, dir.path().join(at)).unwrap();
        link("../secret", "lake/out");
        link("..", "lake/up");
        link("a", "lake/alias");
        let place = |p: &str| Place::Lake(LakePath::parse(p).unwrap());
        assert!(lake.open_place(&place("a/b.txt")).is_ok());
        for hostile in ["out", "up/secret", "alias/b.txt"] {
            assert!(lake.open_place(&place(hostile)).is_err(), "{hostile}");
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            assert!(step_by_step(lake.dir(), hostile, flags).is_err(), "{hostile}");
        }
        assert!(step_by_step(lake.dir(), "a/b.txt", OFlags::RDONLY).is_ok());
    }

    #[test]
    fn a_planted_own_folder_is_not_followed() {
        let (dir, lake) = lake();
        std::os::unix::fs::symlink("..", dir.path().join("lake/.sluice")).unwrap();
        assert!(lake.own().is_err());
    }

    #[test]
    fn what_is_no_lake_is_named() {
        let (dir, _) = lake();
        assert!(matches!(Lake::open(&dir.path().join("none")), Err(LakeError::Missing(_))));
        assert!(matches!(Lake::open(&dir.path().join("secret")), Err(LakeError::NotAFolder(_))));
    }
}
