//! The one door to the disk: whatever changes a file, a name or a catalog page passes here.
//!
//! Every change has a stable name, its point: the room that it is made for and what it is, such as
//! `staging.write` or `live.replace`. In builds with debug assertions a fault can be put at any point ([`faults`]) and the changes below a folder can be
//! recorded ([`trace`]); `docs/reliability.md` lists the points. In other builds both are compiled
//! to nothing and a call here is the system call.
//!
//! Invariant: nothing else in this crate writes, names, links, resizes, syncs or removes (a test reads
//! the sources for it), so what the fault tests show holds for every change there is. A call does what
//! its name says or returns the error; it neither retries nor tidies up.

#[cfg(debug_assertions)]
pub mod faults;
#[cfg(debug_assertions)]
pub mod trace;
mod whole;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

pub use whole::{Partial, WholeFiles};

/// What a change is made for: the first half of its point's name.
pub type Room = &'static str;

/// A name in an open folder.
pub type Name<'a> = (BorrowedFd<'a>, &'a str);

/// A change that is about to be made.
#[derive(Debug, Clone, Copy)]
pub enum Effect<'a> {
    /// An empty file on a free name.
    Create(Name<'a>),
    /// A folder on a free name.
    Folder(Name<'a>),
    /// A symbolic link with this text.
    Symlink(&'a str, Name<'a>),
    /// A second name for a file.
    Link(Name<'a>, Name<'a>),
    /// Another name.
    Rename(Name<'a>, Name<'a>, Taken),
    /// A file or link loses its name.
    Remove(Name<'a>),
    /// An empty folder goes.
    RemoveFolder(Name<'a>),
    /// Bytes at an offset.
    Write(BorrowedFd<'a>, u64, &'a [u8]),
    /// A length in bytes; what is new reads as zero.
    Length(BorrowedFd<'a>, u64),
    /// Permission bits.
    Mode(BorrowedFd<'a>, u32),
    /// The modification time, in nanoseconds since the Unix epoch.
    Time(BorrowedFd<'a>, i64),
    /// All blocks of the second file become the first one's.
    Clone(BorrowedFd<'a>, BorrowedFd<'a>),
    /// A file's bytes and length become durable.
    SyncData(BorrowedFd<'a>),
    /// A file with everything about it, or the names in a folder, become durable.
    SyncAll(BorrowedFd<'a>),
    /// Everything on the file system becomes durable.
    SyncSystem(BorrowedFd<'a>),
    /// A catalog transaction is about to be committed; by itself it changes nothing.
    Commit(&'a Path),
}

impl Effect<'_> {
    /// The second half of the point's name.
    pub fn what(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Folder(_) => "folder",
            Self::Symlink(..) => "symlink",
            Self::Link(..) => "link",
            Self::Rename(_, _, Taken::Refuse) => "rename",
            Self::Rename(_, _, Taken::Replace) => "replace",
            Self::Remove(_) => "remove",
            Self::RemoveFolder(_) => "remove-folder",
            Self::Write(..) => "write",
            Self::Length(..) => "length",
            Self::Mode(..) => "mode",
            Self::Time(..) => "time",
            Self::Clone(..) => "clone",
            Self::SyncData(_) => "sync-data",
            Self::SyncAll(_) => "sync",
            Self::SyncSystem(_) => "sync-system",
            Self::Commit(_) => "commit",
        }
    }
}

/// How a rename treats a name that is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It fails.
    Refuse,
    /// What was there is replaced, in one step.
    Replace,
}

#[cfg(debug_assertions)]
fn perform<T: trace::Amount>(room: Room, effect: Effect<'_>, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    faults::before(room, &effect)?;
    trace::around(&effect, act)
}

#[cfg(not(debug_assertions))]
#[inline(always)]
fn perform<T>(_: Room, _: Effect<'_>, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    act()
}

/// Refuses settings for faults that cannot be understood, or that this build has no use for.
///
/// The error is one sentence.
pub fn check_settings() -> Result<(), String> {
    #[cfg(debug_assertions)]
    return faults::check_settings();
    #[cfg(not(debug_assertions))]
    match std::env::var_os("SLUICE_FAULTS") {
        Some(_) => Err("SLUICE_FAULTS is set, and this build has no fault points: it was built for use".into()),
        None => Ok(()),
    }
}

/// Writes all of `bytes` at `offset` (bytes), in as many calls as the system takes.
pub fn write_all_at(room: Room, file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let most = allowed(room, file, offset, bytes)?;
        let part = &bytes[..most];
        let write = || match rustix::io::pwrite(file, part, offset) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => Ok(n),
            Err(Errno::INTR) => Ok(0),
            Err(e) => Err(e.into()),
        };
        let n = traced(Effect::Write(file.as_fd(), offset, part), write)?;
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}

/// How many of the bytes one call may write.
#[cfg(debug_assertions)]
fn allowed(room: Room, file: &File, offset: u64, bytes: &[u8]) -> io::Result<usize> {
    faults::allowed(room, file, offset, bytes)
}

#[cfg(not(debug_assertions))]
#[inline(always)]
fn allowed(_: Room, _: &File, _: u64, bytes: &[u8]) -> io::Result<usize> {
    Ok(bytes.len())
}

#[cfg(debug_assertions)]
fn traced(effect: Effect<'_>, act: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
    trace::around(&effect, act)
}

#[cfg(not(debug_assertions))]
#[inline(always)]
fn traced(_: Effect<'_>, act: impl FnOnce() -> io::Result<usize>) -> io::Result<usize> {
    act()
}

/// Sets a file's length in bytes.
pub fn set_len(room: Room, file: &File, len: u64) -> io::Result<()> {
    perform(room, Effect::Length(file.as_fd(), len), || file.set_len(len))
}

/// Makes a file `len` bytes long with its blocks reserved, where the file system can reserve.
pub fn reserve(room: Room, file: &File, len: u64) -> io::Result<()> {
    perform(room, Effect::Length(file.as_fd(), len), || {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => file.set_len(len),
            Err(e) => Err(e.into()),
        }
    })
}

/// Makes a file's bytes and length durable.
///
/// After an error nothing written since the last success may be trusted, whatever a read returns:
/// the system may have dropped the pages and will not report it twice.
pub fn sync_data(room: Room, file: &File) -> io::Result<()> {
    perform(room, Effect::SyncData(file.as_fd()), || file.sync_data())
}

/// Makes a file with its mode and times, or the names in a folder, durable. Errors as [`sync_data`].
pub fn sync_all(room: Room, file: impl AsFd) -> io::Result<()> {
    let fd = file.as_fd();
    perform(room, Effect::SyncAll(fd), || Ok(rustix::fs::fsync(fd)?))
}

/// Makes everything on the file system of `file` durable. Errors as [`sync_data`].
pub fn sync_system(room: Room, file: impl AsFd) -> io::Result<()> {
    let fd = file.as_fd();
    perform(room, Effect::SyncSystem(fd), || Ok(rustix::fs::syncfs(fd)?))
}

/// Makes an empty file on a free name, for reading and writing; no link is followed.
///
/// `mode`: its permission bits, less the process's umask.
pub fn create(room: Room, folder: impl AsFd, name: &str, mode: u32) -> io::Result<File> {
    let fd = folder.as_fd();
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    perform(room, Effect::Create((fd, name)), || {
        Ok(File::from(rustix::fs::openat(fd, name, flags, Mode::from_raw_mode(mode))?))
    })
}

/// Makes a folder on a free name.
pub fn make_folder(room: Room, folder: impl AsFd, name: &str, mode: u32) -> io::Result<()> {
    let fd = folder.as_fd();
    perform(room, Effect::Folder((fd, name)), || Ok(rustix::fs::mkdirat(fd, name, Mode::from_raw_mode(mode))?))
}

/// Makes the folder at `path` with all that are missing above it, each durable before the next.
pub fn make_folders(room: Room, path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let whole = Path::new(".").join(path);
    let path = if path.is_absolute() { path } else { &whole };
    make_folders(room, path.parent().ok_or(io::ErrorKind::NotFound)?, mode)?;
    WholeFiles(room).folder(path, mode).map(drop)
}

/// Makes a symbolic link on a free name.
pub fn symlink(room: Room, text: &str, folder: impl AsFd, name: &str) -> io::Result<()> {
    let fd = folder.as_fd();
    perform(room, Effect::Symlink(text, (fd, name)), || Ok(rustix::fs::symlinkat(text, fd, name)?))
}

/// Gives a file a second name, which must be free.
pub fn link(room: Room, from: Name<'_>, to: Name<'_>) -> io::Result<()> {
    perform(room, Effect::Link(from, to), || Ok(rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty())?))
}

/// Renames.
pub fn rename(room: Room, from: Name<'_>, to: Name<'_>, taken: Taken) -> io::Result<()> {
    let act = || match taken {
        Taken::Replace => Ok(rustix::fs::renameat(from.0, from.1, to.0, to.1)?),
        Taken::Refuse => rename_free((from.0, OsStr::new(from.1)), (to.0, OsStr::new(to.1))),
    };
    perform(room, Effect::Rename(from, to, taken), act)
}

fn rename_free(from: (BorrowedFd<'_>, &OsStr), to: (BorrowedFd<'_>, &OsStr)) -> io::Result<()> {
    match rustix::fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(()),
        // Some file systems know no flags: a link never replaces either.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            rustix::fs::linkat(from.0, from.1, to.0, to.1, AtFlags::empty())?;
            Ok(rustix::fs::unlinkat(from.0, from.1, AtFlags::empty())?)
        }
        Err(e) => Err(e.into()),
    }
}

/// Renames what has a name that is not UTF-8, onto a free name.
pub fn rename_raw(room: Room, from: (BorrowedFd<'_>, &OsStr), to: (BorrowedFd<'_>, &OsStr)) -> io::Result<()> {
    let (old, new) = (from.1.to_string_lossy(), to.1.to_string_lossy());
    perform(room, Effect::Rename((from.0, &old), (to.0, &new), Taken::Refuse), || rename_free(from, to))
}

/// Removes a file or link; `NotFound` when there is none.
pub fn remove(room: Room, folder: impl AsFd, name: &str) -> io::Result<()> {
    let fd = folder.as_fd();
    perform(room, Effect::Remove((fd, name)), || Ok(rustix::fs::unlinkat(fd, name, AtFlags::empty())?))
}

/// Removes an empty folder; `NotFound` when there is none.
pub fn remove_folder(room: Room, folder: impl AsFd, name: &str) -> io::Result<()> {
    let fd = folder.as_fd();
    perform(room, Effect::RemoveFolder((fd, name)), || Ok(rustix::fs::unlinkat(fd, name, AtFlags::REMOVEDIR)?))
}

/// Sets the permission bits of an open file or folder.
pub fn set_mode(room: Room, file: impl AsFd, mode: u32) -> io::Result<()> {
    let fd = file.as_fd();
    perform(room, Effect::Mode(fd, mode), || Ok(rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?))
}

/// Sets the modification time of an open file.
///
/// `mtime_ns`: nanoseconds since the Unix epoch.
pub fn set_mtime(room: Room, file: &File, mtime_ns: i64) -> io::Result<()> {
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: rustix::fs::Timespec {
            tv_sec: mtime_ns.div_euclid(1_000_000_000),
            tv_nsec: mtime_ns.rem_euclid(1_000_000_000),
        },
    };
    perform(room, Effect::Time(file.as_fd(), mtime_ns), || Ok(rustix::fs::futimens(file, &times)?))
}

/// Makes `to` share all blocks of `from`, where the file system can.
pub fn clone_blocks(room: Room, to: &File, from: &File) -> io::Result<()> {
    perform(room, Effect::Clone(to.as_fd(), from.as_fd()), || Ok(rustix::fs::ioctl_ficlone(to, from)?))
}

/// Called right before a catalog transaction is committed.
pub(crate) fn before_commit(room: Room, home: &Path) -> io::Result<()> {
    perform(room, Effect::Commit(home), || Ok(()))
}
