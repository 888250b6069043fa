//! Files that appear under their name only when they are whole and durable.
//!
//! Invariant: bytes first, then the name, then the folder, each durable before the next; whoever
//! reads the name finds all of the file or, after a stop, none of it.

use std::fs::File;
use std::io;
use std::path::Path;

use super::{Room, Taken};
use rustix::fs::{Mode, OFlags};
use std::os::fd::AsFd;

/// Whole files of one room.
#[derive(Debug, Clone, Copy)]
pub struct WholeFiles(pub Room);

/// A file in the making.
pub struct Partial {
    room: Room,
    folder: File,
    name: String,
    file: File,
    /// Bytes appended so far.
    len: u64,
}

impl WholeFiles {
    /// Makes `folder` unless it is there, durably, and opens it. The folder above must be there.
    ///
    /// `mode`: permission bits of a new folder, less the umask.
    pub fn folder(self, folder: &Path, mode: u32) -> io::Result<File> {
        let above = open(folder.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
        let name = folder.file_name().and_then(|n| n.to_str()).ok_or(io::ErrorKind::InvalidInput)?;
        match super::make_folder(self.0, &above, name, mode) {
            Ok(()) => super::sync_all(self.0, &above)?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        open(folder)
    }

    /// Begins a file under the name `partial` in the folder at `folder`; what a stop left there goes.
    ///
    /// `mode`: its permission bits, less the umask.
    pub fn begin(self, folder: &Path, partial: &str, mode: u32) -> io::Result<Partial> {
        let folder = open(folder)?;
        let file = match super::create(self.0, &folder, partial, mode) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                super::remove(self.0, &folder, partial)?;
                super::create(self.0, &folder, partial, mode)?
            }
            other => other?,
        };
        Ok(Partial { room: self.0, folder, name: partial.to_string(), file, len: 0 })
    }

    /// Writes `bytes` to `path`, replacing what is there in one step, and makes it durable.
    ///
    /// The folder of `path` must be there; `partial` is a name in it for the time until it is whole.
    pub fn put(self, path: &Path, partial: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let mut file = self.begin(folder, partial, mode)?;
        file.append(bytes)?;
        file.finish(folder, name_of(path)?)
    }

    /// Removes a file that was begun and never finished; that it is gone already is no error.
    pub fn remove(self, path: &Path) -> io::Result<()> {
        let folder = open(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
        match super::remove(self.0, &folder, name_of(path)?) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

impl Partial {
    /// Writes at the end of what was appended before.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_at(bytes, self.len)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Writes at `offset` (bytes).
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        super::write_all_at(self.room, &self.file, bytes, offset)
    }

    /// Makes the file durable and gives it the name `name` in the folder at `folder`.
    pub fn finish(self, folder: &Path, name: &str) -> io::Result<()> {
        super::sync_all(self.room, &self.file)?;
        let to = open(folder)?;
        let from = (self.folder.as_fd(), self.name.as_str());
        super::rename(self.room, from, (to.as_fd(), name), Taken::Replace)?;
        super::sync_all(self.room, &to)
    }

    /// Gives up: the file goes.
    pub fn abandon(self) -> io::Result<()> {
        super::remove(self.room, &self.folder, &self.name)
    }
}

fn open(folder: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(folder, flags, Mode::empty())?))
}

fn name_of(path: &Path) -> io::Result<&str> {
    path.file_name().and_then(|n| n.to_str()).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
