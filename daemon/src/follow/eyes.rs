//! Sees through inotify that something in a lake changed. Which files changed is for the scan to find.
//!
//! Invariant: between opening and being dropped every folder of the lake but `.sluice` is watched, or
//! [`Seen::lost`] is reported. A lake that cannot be watched whole is not watched at all: half a watch
//! would take the user's watches and still need the timer. Nothing is read and no link is followed.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use sluice_protocol::limits::FOLDERS_WATCHED_MAX;
use sluice_protocol::path::OWN_FOLDER;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::debounce::Seen;

/// Bytes for events that are read at once.
const EVENTS_BYTES: usize = 64 * 1024;

/// Why a lake is not watched.
#[derive(Debug, thiserror::Error)]
pub(super) enum Blind {
    #[error(
        "this user may watch no more folders (fs.inotify.max_user_watches): changes are found by the rescan timer only"
    )]
    Limit,
    #[error("it has more than {FOLDERS_WATCHED_MAX} folders: changes are found by the rescan timer only")]
    TooMany,
    #[error("its folders cannot be watched ({0}): changes are found by the rescan timer only")]
    Io(#[from] io::Error),
    #[error("it lies on a {0} file system: changes that other machines make are found by the rescan timer only")]
    Remote(&'static str),
}

impl From<Errno> for Blind {
    fn from(e: Errno) -> Self {
        match e {
            // EMFILE is the limit of instances, which is shared by the user's programs too.
            Errno::NOSPC | Errno::MFILE => Blind::Limit,
            e => Blind::Io(e.into()),
        }
    }
}

/// Device and inode of what lies at a path now.
fn place_of(root: &Path) -> io::Result<(u64, u64)> {
    let about = std::fs::metadata(root)?;
    Ok((about.dev(), about.ino()))
}

/// What a watched folder is to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Belongs {
    Nowhere,
    /// It is a table's folder or lies in one.
    Table,
    /// It holds the commits or manifests of a table.
    Log,
}

struct Folder {
    path: PathBuf,
    belongs: Belongs,
}

/// A watch on all folders of a lake.
pub(super) struct Eyes {
    fd: Arc<AsyncFd<OwnedFd>>,
    root: PathBuf,
    /// Device and inode of the root: another one may be mounted over it.
    at: (u64, u64),
    folders: HashMap<i32, Folder>,
}

impl Eyes {
    /// Watches every folder below `root`. Blocks; must be called within a runtime.
    pub(super) fn open(root: &Path) -> Result<Self, Blind> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        // The other constructor asks for a promise that an `OwnedFd` keeps by itself.
        #[allow(deprecated)]
        let fd = AsyncFd::with_interest(fd, Interest::READABLE)?;
        let mut eyes =
            Self { fd: Arc::new(fd), root: root.to_path_buf(), at: place_of(root)?, folders: HashMap::new() };
        eyes.watch(root.to_path_buf(), Belongs::Nowhere)?;
        Ok(eyes)
    }

    /// How many folders are watched.
    pub(super) fn folders(&self) -> usize {
        self.folders.len()
    }

    /// Resolves when something was seen; may be dropped and called again.
    pub(super) fn ready(&self) -> impl Future<Output = ()> + use<> {
        let fd = self.fd.clone();
        async move {
            // An error of the reactor is found again, and told, by the reading that follows.
            if let Ok(mut guard) = fd.readable().await {
                guard.clear_ready();
            }
        }
    }

    /// Reads what was seen, and watches folders that are new. Blocks.
    pub(super) fn look(&mut self) -> Result<Seen, Blind> {
        if place_of(&self.root).ok() != Some(self.at) {
            return Ok(Seen { lost: true, ..Seen::default() });
        }
        let fd = self.fd.clone();
        let mut buffer = vec![MaybeUninit::uninit(); EVENTS_BYTES];
        let mut events = inotify::Reader::new(fd.get_ref().as_fd(), &mut buffer);
        let mut seen = Seen::default();
        loop {
            let event = match events.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(seen),
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            };
            let name = event.file_name().map(|n| OsStr::from_bytes(n.to_bytes()).to_os_string());
            seen = seen.and(self.judge(event.wd(), event.events(), name.as_deref().unwrap_or_default())?);
        }
    }

    fn judge(&mut self, wd: i32, what: ReadFlags, name: &OsStr) -> Result<Seen, Blind> {
        if what.contains(ReadFlags::QUEUE_OVERFLOW) {
            return Ok(Seen { lost: true, ..Seen::default() });
        }
        if what.contains(ReadFlags::IGNORED) {
            self.folders.remove(&wd);
            return Ok(Seen::default());
        }
        let Some(Folder { path, belongs }) = self.folders.get(&wd) else { return Ok(Seen::default()) };
        let (path, belongs) = (path.clone(), *belongs);
        if path == self.root && name == OWN_FOLDER {
            return Ok(Seen::default());
        }
        if path == self.root && what.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT) {
            return Ok(Seen { lost: true, ..Seen::default() });
        }
        let appeared = what.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO);
        if what.contains(ReadFlags::ISDIR) && appeared {
            // A log that appears makes a table of the folder that it is in, and of all below.
            let (from, belongs) = if is_log(name) { (path, Belongs::Table) } else { (path.join(name), belongs) };
            self.watch(from, belongs)?;
        }
        let written = ReadFlags::CREATE | ReadFlags::MOVED_TO | ReadFlags::CLOSE_WRITE;
        Ok(match belongs {
            Belongs::Log if is_version(name) && what.intersects(written) => Seen { commit: true, ..Seen::default() },
            Belongs::Log | Belongs::Table => Seen { inner: true, ..Seen::default() },
            Belongs::Nowhere if what.contains(ReadFlags::ATTRIB) => Seen { modes: true, ..Seen::default() },
            Belongs::Nowhere => Seen { data: true, ..Seen::default() },
        })
    }

    /// Watches `from` and all folders below. A folder that is watched already keeps its watch.
    fn watch(&mut self, from: PathBuf, belongs: Belongs) -> Result<(), Blind> {
        let mut todo = vec![(from, belongs)];
        while let Some((path, mut belongs)) = todo.pop() {
            let wd = match inotify::add_watch(self.fd.get_ref(), &path, flags()) {
                Ok(wd) => wd,
                // Gone again, or never a folder: its own events told of it. One that we may not enter
                // is not in the snapshot either.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) if path != self.root => continue,
                Err(e) => return Err(e.into()),
            };
            let below = folders_in(&path, path == self.root);
            if belongs == Belongs::Nowhere && below.iter().any(|b| b.file_name().is_some_and(is_log)) {
                belongs = Belongs::Table;
            }
            for folder in below {
                let log = belongs == Belongs::Table && folder.file_name().is_some_and(is_log);
                todo.push((folder, if log { Belongs::Log } else { belongs }));
            }
            self.folders.insert(wd, Folder { path, belongs });
            if self.folders.len() > FOLDERS_WATCHED_MAX {
                return Err(Blind::TooMany);
            }
        }
        Ok(())
    }
}

fn flags() -> WatchFlags {
    WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVE
        | WatchFlags::MODIFY
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::ATTRIB
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR
        | WatchFlags::DONT_FOLLOW
        | WatchFlags::EXCL_UNLINK
}

/// The folders directly in one; what cannot be listed has none that could be watched.
fn folders_in(path: &Path, top: bool) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let entries = entries.filter_map(Result::ok).filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
    entries.filter(|e| !(top && e.file_name() == OWN_FOLDER)).map(|e| e.path()).collect()
}

/// Whether a folder of this name holds what a table's versions are made of.
fn is_log(name: &OsStr) -> bool {
    name == "_delta_log" || name == "_versions"
}

/// Whether a file of this name in a log is a committed version: a Delta commit or a Lance manifest.
fn is_version(name: &OsStr) -> bool {
    let name = name.as_bytes();
    let number = name.first().is_some_and(u8::is_ascii_digit);
    number && (name.ends_with(b".json") || name.ends_with(b".manifest"))
}

/// The kind of a file system on which other machines write too; none for a local one.
pub(super) fn remote(root: &Path) -> Option<Blind> {
    let magic = rustix::fs::statfs(root).ok()?.f_type as u32;
    let name = match magic {
        0x6969 => "NFS",
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => "SMB",
        0x6573_5546 => "FUSE",
        0x0102_1997 => "9P",
        0x00c3_6400 => "Ceph",
        0x0bd0_0bd0 => "Lustre",
        0x4750_4653 => "GPFS",
        _ => return None,
    };
    Some(Blind::Remote(name))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn tells_commits_from_files_and_sees_new_folders() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        fs::create_dir_all(at("raw/deep")).unwrap();
        fs::create_dir_all(at("tables/t/_delta_log")).unwrap();
        fs::create_dir_all(at(".sluice/objects")).unwrap();
        let mut eyes = Eyes::open(dir.path()).unwrap();
        assert_eq!(eyes.folders(), 6);
        assert_eq!(eyes.look().unwrap(), Seen::default());

        let mut seen_after = |change: &dyn Fn()| {
            change();
            eyes.look().unwrap()
        };
        let data = Seen { data: true, ..Seen::default() };
        let inner = Seen { inner: true, ..Seen::default() };
        let commit = Seen { commit: true, ..Seen::default() };
        assert_eq!(seen_after(&|| fs::write(at("raw/deep/a"), "x").unwrap()), data);
        assert_eq!(seen_after(&|| fs::write(at(".sluice/objects/a"), "x").unwrap()), Seen::default());
        assert_eq!(seen_after(&|| fs::write(at("tables/t/part.parquet"), "x").unwrap()), inner);
        assert_eq!(seen_after(&|| fs::write(at("tables/t/_delta_log/_last_checkpoint"), "x").unwrap()), inner);
        let temp = || fs::write(at("tables/t/_delta_log/_commit_7.json.tmp"), "x").unwrap();
        assert_eq!(seen_after(&temp), inner);
        let log = || {
            let to = at("tables/t/_delta_log/00000000000000000001.json");
            fs::rename(at("tables/t/_delta_log/_commit_7.json.tmp"), to).unwrap()
        };
        assert_eq!(seen_after(&log), commit.and(inner));
        fs::set_permissions(at("raw/deep/a"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let modes = seen_after(&|| ());
        // What pinning does to the lake's files: their change time moves, and nobody is told.
        let pin = || {
            fs::hard_link(at("raw/deep/a"), at(".sluice/objects/pin")).unwrap();
            fs::remove_file(at(".sluice/objects/pin")).unwrap();
        };
        assert_eq!(seen_after(&pin), Seen::default());
        assert_eq!(modes, Seen { modes: true, ..Seen::default() });

        assert_eq!(seen_after(&|| fs::create_dir_all(at("new/er")).unwrap()), data);
        assert_eq!(seen_after(&|| fs::write(at("new/er/b"), "x").unwrap()), data);
        // A table that appears: its log is known as one.
        let vectors = || fs::create_dir_all(at("vectors.lance/_versions")).unwrap();
        assert!(seen_after(&vectors).data);
        assert_eq!(
            seen_after(&|| fs::write(at("vectors.lance/_versions/1.manifest"), "x").unwrap()),
            commit.and(inner)
        );
        assert_eq!(seen_after(&|| fs::create_dir(at("new/_delta_log")).unwrap()), data);
        assert_eq!(seen_after(&|| fs::write(at("new/er/c"), "x").unwrap()), inner);
    }

    #[tokio::test]
    async fn what_was_lost_and_what_is_gone_is_told() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        let mut eyes = Eyes::open(dir.path()).unwrap();
        let lost = Seen { lost: true, ..Seen::default() };
        // The kernel's queue ran over: that event belongs to no folder.
        assert_eq!(eyes.judge(-1, ReadFlags::QUEUE_OVERFLOW, OsStr::new("")).unwrap(), lost);
        fs::remove_dir(dir.path().join("a")).unwrap();
        assert!(eyes.look().unwrap().data);
        assert_eq!(eyes.folders(), 1, "the watch of a folder that is gone is forgotten");
        fs::remove_dir(dir.path()).unwrap();
        assert!(eyes.look().unwrap().lost, "the lake itself is gone");
        assert!(matches!(Eyes::open(dir.path()), Err(Blind::Io(_))));
    }

    #[test]
    fn limits_are_told_as_what_they_are() {
        assert!(matches!(Blind::from(Errno::NOSPC), Blind::Limit));
        assert!(matches!(Blind::from(Errno::MFILE), Blind::Limit));
        assert!(matches!(Blind::from(Errno::IO), Blind::Io(_)));
    }
}
