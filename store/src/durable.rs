//! Open folders and what makes changes in them survive a power loss.
//!
//! Invariant: every call takes one name below an open folder and follows no link, so a link that
//! someone planted can neither be written through nor be read through. Nothing here replaces a file
//! unless the call says so in its name.
//!
//! Changes pass through [`crate::disk`], under the name of the room that a folder was opened for.
//!
//! What must be durable before the next step: the bytes (`fdatasync` or `syncfs`), then the names
//! (`fsync` of the folder that holds them). [`Unsynced`] collects both for one barrier.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use sluice_protocol::path::LakePath;

use crate::disk::{self, Room, Taken};
use crate::lake::Fingerprint;

/// Folders and files beyond this many are made durable by one `syncfs`.
const SYNC_ONE_BY_ONE_MAX: usize = 64;
/// Permission bits of folders that readers go through.
pub(crate) const FOLDER_MODE: u32 = 0o755;

/// What lies under a name, the name itself and not what a link points at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Folder,
    Link,
    Other,
}

/// Whether a folder could be locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    Ours,
    /// By another open handle.
    Taken,
}

/// What `stat` says of a name.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Names that the file has.
    pub links: u64,
    pub print: Fingerprint,
}

/// An open folder, and what changes in it are made for.
#[derive(Debug)]
pub(crate) struct Folder(File, Room);

impl Folder {
    /// The same folder as `dir`. `room` names its changes, and those of folders opened through it.
    pub fn of(dir: impl AsFd, room: Room) -> io::Result<Self> {
        // Opened anew: a handle that only names the folder (O_PATH) can be neither listed nor synced.
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self(File::from(rustix::fs::openat(dir.as_fd(), ".", flags, Mode::empty())?), room))
    }

    /// A folder that was opened to be read.
    pub fn from_file(folder: File, room: Room) -> Self {
        Self(folder, room)
    }

    /// The same handle, for another room.
    pub fn for_room(self, room: Room) -> Self {
        Self(self.0, room)
    }

    /// What changes in it are made for.
    pub fn room(&self) -> Room {
        self.1
    }

    fn at<'a>(&'a self, name: &'a str) -> disk::Name<'a> {
        (self.0.as_fd(), name)
    }

    /// Opens the folder `name`, which must be a real one.
    pub fn open(&self, name: &str) -> io::Result<Self> {
        check_single(name)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self(File::from(rustix::fs::openat(&self.0, name, flags, Mode::empty())?), self.1))
    }

    /// Opens the folder at `path`, name by name; `None` is this folder.
    pub fn descend(&self, path: Option<&LakePath>) -> io::Result<Self> {
        let mut here = Self::of(&self.0, self.1)?;
        for name in path.iter().flat_map(|p| p.names()) {
            here = here.open(name)?;
        }
        Ok(here)
    }

    /// Makes the folder `name` unless it is there, and opens it. Says whether it was made.
    pub fn make(&self, name: &str) -> io::Result<(Self, bool)> {
        check_single(name)?;
        let made = match disk::make_folder(self.1, &self.0, name, FOLDER_MODE) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
            Err(e) => return Err(e),
        };
        let folder = self.open(name)?;
        if made {
            // The process's umask must not hide published data from its readers.
            folder.set_mode(FOLDER_MODE)?;
        }
        Ok((folder, made))
    }

    /// Opens the regular file `name` for reading.
    pub fn file(&self, name: &str) -> io::Result<File> {
        self.open_file(name, OFlags::RDONLY)
    }

    /// As [`Folder::file`], with what `stat` says of it.
    pub fn file_seen(&self, name: &str) -> io::Result<(File, Fingerprint)> {
        self.open_seen(name, OFlags::RDONLY)
    }

    /// Opens the regular file `name` for reading and writing, made with mode 0600 when `create`.
    pub fn file_rw(&self, name: &str, create: bool) -> io::Result<File> {
        match self.open_file(name, OFlags::RDWR) {
            Err(e) if create && e.kind() == io::ErrorKind::NotFound => disk::create(self.1, &self.0, name, 0o600),
            other => other,
        }
    }

    fn open_file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        self.open_seen(name, flags).map(|(file, _)| file)
    }

    fn open_seen(&self, name: &str, flags: OFlags) -> io::Result<(File, Fingerprint)> {
        check_single(name)?;
        // NONBLOCK: a fifo that took the file's place must not hang us.
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.0, name, flags, Mode::empty())?);
        let seen = seen(&rustix::fs::fstat(&file)?);
        if seen.kind == Kind::File {
            Ok((file, seen.print))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
        }
    }

    /// What lies under `name`; `None` when nothing does.
    pub fn look(&self, name: &str) -> io::Result<Option<Seen>> {
        self.look_raw(OsStr::new(name))
    }

    /// The names in the folder, sorted; names that are not UTF-8 are left out and counted.
    pub fn names(&self) -> io::Result<(Vec<String>, usize)> {
        let mut names = Vec::new();
        let mut strange = 0;
        for entry in rustix::fs::Dir::read_from(&self.0)? {
            let entry = entry?;
            match entry.file_name().to_str() {
                Ok("." | "..") => {}
                Ok(name) => names.push(name.to_string()),
                Err(_) => strange += 1,
            }
        }
        names.sort();
        Ok((names, strange))
    }

    /// Every name in the folder that is UTF-8, in no order, until `each` says `false`.
    pub fn each_name(&self, each: &mut dyn FnMut(&str) -> bool) -> io::Result<()> {
        for entry in rustix::fs::Dir::read_from(&self.0)? {
            match entry?.file_name().to_str() {
                Ok("." | "..") | Err(_) => {}
                Ok(name) if each(name) => {}
                Ok(_) => break,
            }
        }
        Ok(())
    }

    /// The names in the folder that are not UTF-8.
    pub fn strange_names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.0)? {
            let entry = entry?;
            if entry.file_name().to_str().is_err() {
                names.push(OsStr::from_bytes(entry.file_name().to_bytes()).to_os_string());
            }
        }
        names.sort();
        Ok(names)
    }

    /// As [`Folder::look`], for any name.
    pub fn look_raw(&self, name: &OsStr) -> io::Result<Option<Seen>> {
        check_single_bytes(name.as_bytes())?;
        match rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(seen(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// As [`Folder::move_to`], for any names.
    pub fn move_raw(&self, name: &OsStr, to: &Folder, new: &OsStr) -> io::Result<()> {
        check_single_bytes(name.as_bytes())?;
        check_single_bytes(new.as_bytes())?;
        disk::rename_raw(to.1, (self.0.as_fd(), name), (to.0.as_fd(), new))
    }

    /// The text of the link `name`.
    pub fn read_link(&self, name: &str) -> io::Result<String> {
        check_single(name)?;
        let raw = rustix::fs::readlinkat(&self.0, name, Vec::new())?;
        raw.into_string().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
    }

    /// Makes a link; fails when the name is taken.
    pub fn symlink(&self, target: &str, name: &str) -> io::Result<()> {
        check_single(name)?;
        disk::symlink(self.1, target, &self.0, name)
    }

    /// Gives the file `name` a second name; fails when that is taken.
    pub fn hard_link(&self, name: &str, to: &Folder, new: &str) -> io::Result<()> {
        check_single(name)?;
        check_single(new)?;
        disk::link(to.1, self.at(name), to.at(new))
    }

    /// Renames; fails when the new name is taken.
    pub fn move_to(&self, name: &str, to: &Folder, new: &str) -> io::Result<()> {
        check_single(name)?;
        check_single(new)?;
        disk::rename(to.1, self.at(name), to.at(new), Taken::Refuse)
    }

    /// Renames, replacing what is there, in one step.
    pub fn replace(&self, name: &str, to: &Folder, new: &str) -> io::Result<()> {
        check_single(name)?;
        check_single(new)?;
        disk::rename(to.1, self.at(name), to.at(new), Taken::Replace)
    }

    /// Removes a file or link; that it is gone already is no error.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        check_single(name)?;
        gone(disk::remove(self.1, &self.0, name))
    }

    /// Removes an empty folder; that it is gone already is no error.
    pub fn remove_folder(&self, name: &str) -> io::Result<()> {
        check_single(name)?;
        gone(disk::remove_folder(self.1, &self.0, name))
    }

    /// Makes the names in the folder durable.
    pub fn sync(&self) -> io::Result<()> {
        disk::sync_all(self.1, &self.0)
    }

    /// Makes everything on the folder's file system durable.
    pub fn sync_system(&self) -> io::Result<()> {
        disk::sync_system(self.1, &self.0)
    }

    /// Keeps other processes from locking the folder while this handle is open.
    pub fn lock(&self) -> io::Result<Lock> {
        match rustix::fs::flock(&self.0, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock::Ours),
            Err(Errno::WOULDBLOCK) => Ok(Lock::Taken),
            // Some network file systems have no locks; the daemon's own lock still stands.
            Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOLCK) => Ok(Lock::Ours),
            Err(e) => Err(e.into()),
        }
    }

    /// Sets the folder's permission bits.
    pub fn set_mode(&self, mode: u32) -> io::Result<()> {
        disk::set_mode(self.1, &self.0, mode)
    }

    /// The folder's own permission bits.
    pub fn mode(&self) -> io::Result<u32> {
        Ok(rustix::fs::fstat(&self.0)?.st_mode & 0o7777)
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The last line of defence: callers hand in names from a `LakePath`, which has been checked.
fn check_single(name: &str) -> io::Result<()> {
    check_single_bytes(name.as_bytes())
}

fn check_single_bytes(name: &[u8]) -> io::Result<()> {
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') || name.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(())
}

// The width of the count differs between machines.
#[allow(clippy::useless_conversion)]
fn seen(stat: &rustix::fs::Stat) -> Seen {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Folder,
        FileType::Symlink => Kind::Link,
        _ => Kind::Other,
    };
    let ns = |s: i64, n: i64| s.saturating_mul(1_000_000_000).saturating_add(n);
    let print = Fingerprint {
        dev: stat.st_dev,
        inode: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_ns: ns(stat.st_mtime, i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        ctime_ns: ns(stat.st_ctime, i64::try_from(stat.st_ctime_nsec).unwrap_or(0)),
        unknown: Default::default(),
    };
    Seen { kind, mode: stat.st_mode & 0o7777, links: u64::from(stat.st_nlink), print }
}

/// Whether the error says that the disk (or a quota) is full.
pub(crate) fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Names changed and files touched below one folder since the last barrier.
#[derive(Debug, Default)]
pub(crate) struct Unsynced {
    folders: BTreeSet<Option<LakePath>>,
    files: BTreeSet<LakePath>,
}

impl Unsynced {
    /// A name in `folder` (below the top) was made, replaced or removed.
    pub fn name_in(&mut self, folder: Option<LakePath>) {
        if self.folders.len() <= SYNC_ONE_BY_ONE_MAX {
            self.folders.insert(folder);
        }
    }

    /// A file was made or its mode or time was set.
    pub fn file(&mut self, path: &LakePath) {
        if self.files.len() <= SYNC_ONE_BY_ONE_MAX {
            self.files.insert(path.clone());
        }
        self.name_in(path.parent());
    }

    pub fn is_empty(&self) -> bool {
        self.folders.is_empty() && self.files.is_empty()
    }

    /// Makes all of it durable: one by one when it is little, else by one `syncfs`.
    pub fn flush(&mut self, top: &Folder) -> io::Result<()> {
        if self.folders.len() + self.files.len() > SYNC_ONE_BY_ONE_MAX {
            top.sync_system()?;
        } else {
            for path in &self.files {
                let folder = top.descend(path.parent().as_ref())?;
                disk::sync_all(top.1, folder.file(path.file_name())?)?;
            }
            for path in self.folders.iter().rev() {
                top.descend(path.as_ref())?.sync()?;
            }
        }
        self.folders.clear();
        self.files.clear();
        Ok(())
    }
}

/// The folders above a path, the top last.
pub(crate) fn ancestors(path: &LakePath) -> Vec<Option<LakePath>> {
    let mut all = Vec::new();
    let mut at = path.parent();
    while let Some(folder) = at {
        at = folder.parent();
        all.push(Some(folder));
    }
    all.push(None);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::of(File::open(dir.path()).unwrap(), "test").unwrap();
        (dir, folder)
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let (dir, folder) = folder();
        std::fs::create_dir(dir.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", dir.path().join("alias")).unwrap();
        for name in ["", ".", "..", "a/b", "real/..", "a\0b"] {
            assert!(folder.make(name).is_err(), "{name:?}");
            assert!(folder.file_rw(name, true).is_err(), "{name:?}");
            assert!(folder.remove(name).is_err(), "{name:?}");
        }
        assert!(folder.open("real").is_ok());
        assert!(folder.open("alias").is_err());
        assert!(folder.make("alias").is_err(), "a link is no folder");
        assert!(folder.file_rw("alias", true).is_err());
    }

    #[test]
    fn moving_and_linking_never_replace() {
        let (dir, folder) = folder();
        std::fs::write(dir.path().join("new"), b"new").unwrap();
        std::fs::write(dir.path().join("old"), b"old").unwrap();
        assert!(folder.move_to("new", &folder, "old").is_err());
        assert!(folder.hard_link("new", &folder, "old").is_err());
        assert_eq!(std::fs::read(dir.path().join("old")).unwrap(), b"old");
        folder.replace("new", &folder, "old").unwrap();
        assert_eq!(std::fs::read(dir.path().join("old")).unwrap(), b"new");
        folder.remove("gone").unwrap();
    }

    #[test]
    fn times_before_the_epoch_are_kept() {
        let (dir, folder) = folder();
        std::fs::write(dir.path().join("f"), b"x").unwrap();
        for ns in [-1, 0, 1_500_000_000_123_456_789, -1_000_000_001] {
            disk::set_mtime("test", &folder.file("f").unwrap(), ns).unwrap();
            assert_eq!(folder.look("f").unwrap().unwrap().print.mtime_ns, ns);
        }
    }

    #[test]
    fn much_is_synced_at_once() {
        let (dir, top) = folder();
        let mut unsynced = Unsynced::default();
        for i in 0..200 {
            std::fs::write(dir.path().join(i.to_string()), b"x").unwrap();
            unsynced.file(&LakePath::parse(&i.to_string()).unwrap());
        }
        unsynced.flush(&top).unwrap();
        assert!(unsynced.is_empty());
    }
}
