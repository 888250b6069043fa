//! A record of every change below a folder, for tests of power loss. Only with debug assertions.
//!
//! Files and folders are named by their inode, since a name may come and go while a file is open; a
//! number that is made anew is a new file from then on.
//!
//! Invariant: the records come in one order, the one in which the changes were made: while a folder
//! is recorded, changes below it are made one at a time.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, MutexGuard, PoisonError};

use rustix::fs::AtFlags;

use super::Effect;
use super::faults::{self, Scope};

/// The number of a file or folder.
pub type Inode = u64;

/// A change that was made. Folders and files by inode; offsets and lengths in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    Create {
        folder: Inode,
        name: String,
        file: Inode,
    },
    Folder {
        folder: Inode,
        name: String,
        made: Inode,
    },
    Symlink {
        folder: Inode,
        name: String,
        text: String,
    },
    Link {
        from: (Inode, String),
        to: (Inode, String),
    },
    Rename {
        from: (Inode, String),
        to: (Inode, String),
    },
    Remove {
        folder: Inode,
        name: String,
    },
    Write {
        file: Inode,
        offset: u64,
        bytes: Vec<u8>,
    },
    Length {
        file: Inode,
        len: u64,
    },
    Mode {
        file: Inode,
        mode: u32,
    },
    Time {
        file: Inode,
        mtime_ns: i64,
    },
    /// The file holds these bytes now.
    Clone {
        file: Inode,
        bytes: Vec<u8>,
    },
    /// Bytes and length of a file.
    SyncData {
        file: Inode,
    },
    /// All of a file, or the names in a folder.
    SyncAll {
        file: Inode,
    },
    SyncSystem,
    /// What the program itself says, by [`Recording::note`].
    Note(String),
}

/// A record in the making; it ends with this value.
#[derive(Debug)]
pub struct Recording(Arc<Scope>);

/// Records what is changed below `root` from now on.
pub fn record(root: &Path) -> Recording {
    Recording(faults::enter_traced(root))
}

impl Recording {
    /// Puts a word of the test's own between the records.
    pub fn note(&self, text: &str) {
        if let Some(mut all) = records(&self.0) {
            all.push(Done::Note(text.to_string()));
        }
    }

    /// What was recorded so far.
    pub fn done(&self) -> Vec<Done> {
        records(&self.0).map_or(vec![], |all| all.clone())
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        faults::leave(&self.0);
    }
}

fn records(scope: &Scope) -> Option<MutexGuard<'_, Vec<Done>>> {
    Some(scope.trace.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Makes a change and records it where someone listens.
pub(super) fn around<T>(effect: &Effect<'_>, act: impl FnOnce() -> io::Result<T>) -> io::Result<T>
where
    T: Amount,
{
    let scopes = faults::scopes_of(effect);
    let mut open: Vec<_> = scopes.iter().filter_map(|(s, _)| records(s)).collect();
    if open.is_empty() {
        return act();
    }
    let value = act()?;
    if let Some(done) = seen(effect, value.amount())? {
        open.iter_mut().for_each(|all| all.push(done.clone()));
    }
    Ok(value)
}

/// How many bytes a call wrote.
pub(super) trait Amount {
    fn amount(&self) -> Option<usize> {
        None
    }
}

impl Amount for () {}
impl Amount for std::fs::File {}
impl Amount for usize {
    fn amount(&self) -> Option<usize> {
        Some(*self)
    }
}

fn seen(effect: &Effect<'_>, amount: Option<usize>) -> io::Result<Option<Done>> {
    let named =
        |(fd, name): (BorrowedFd<'_>, &str)| -> io::Result<(Inode, String)> { Ok((inode(fd)?, name.to_string())) };
    let below = |(fd, name): (BorrowedFd<'_>, &str)| -> io::Result<Inode> {
        Ok(rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW)?.st_ino)
    };
    let done = match *effect {
        Effect::Create(at) => Done::Create { folder: inode(at.0)?, name: at.1.to_string(), file: below(at)? },
        Effect::Folder(at) => Done::Folder { folder: inode(at.0)?, name: at.1.to_string(), made: below(at)? },
        Effect::Symlink(text, at) => {
            Done::Symlink { folder: inode(at.0)?, name: at.1.to_string(), text: text.to_string() }
        }
        Effect::Link(from, to) => Done::Link { from: named(from)?, to: named(to)? },
        Effect::Rename(from, to, _) => Done::Rename { from: named(from)?, to: named(to)? },
        Effect::Remove(at) | Effect::RemoveFolder(at) => Done::Remove { folder: inode(at.0)?, name: at.1.to_string() },
        Effect::Write(fd, offset, bytes) => {
            let n = amount.unwrap_or(bytes.len());
            Done::Write { file: inode(fd)?, offset, bytes: bytes[..n].to_vec() }
        }
        Effect::Length(fd, len) => Done::Length { file: inode(fd)?, len },
        Effect::Mode(fd, mode) => Done::Mode { file: inode(fd)?, mode },
        Effect::Time(fd, mtime_ns) => Done::Time { file: inode(fd)?, mtime_ns },
        Effect::Clone(to, from) => {
            let mut bytes = vec![0; rustix::fs::fstat(from)?.st_size as usize];
            let n = rustix::io::pread(from, &mut bytes, 0)?;
            bytes.truncate(n);
            Done::Clone { file: inode(to)?, bytes }
        }
        Effect::SyncData(fd) => Done::SyncData { file: inode(fd)? },
        Effect::SyncAll(fd) => Done::SyncAll { file: inode(fd)? },
        Effect::SyncSystem(_) => Done::SyncSystem,
        Effect::Commit(_) => return Ok(None),
    };
    Ok(Some(done))
}

fn inode(fd: BorrowedFd<'_>) -> io::Result<Inode> {
    Ok(rustix::fs::fstat(fd)?.st_ino)
}
