//! Everything publishing does to the disk and the catalog, one call for one effect.
//!
//! Invariant: publishing changes nothing except through [`Hands`], whose folders name their changes:
//! `live` for `.sluice` and the switch, `shown` for the lake's top, `sections`, `generations` and
//! `staging` for the folders of these names. So a test can stop before any single effect, as a kill
//! would, and see what a second run makes of it.

use std::fs::File;
use std::io;

use sluice_protocol::ids::SpaceId;
use sluice_protocol::path::LakePath;

use super::PublishError;
use crate::catalog::{Batch, Catalog, CatalogError, Lookup};
use crate::disk::{self, Room};
use crate::durable::{Folder, Lock, Unsynced};
use crate::lake::Lake;
use crate::staging::STAGING_FOLDER;

/// Folder of section folders below `.sluice`.
pub const SECTIONS_FOLDER: &str = "sections";
/// Folder of generations below `.sluice`.
pub const GENERATIONS_FOLDER: &str = "generations";
/// The room of what is moved aside: local changes that gave way, damaged files.
const ASIDE: Room = "aside";
/// The link below `.sluice` to the live generation.
pub const LIVE_LINK: &str = "live";
/// Readers pass through `.sluice` by name; they need not list it.
const PASS_THROUGH_MODE: u32 = 0o711;

/// The open folders of a replica.
pub(super) struct Hands<'a> {
    pub lake: &'a Lake,
    pub catalog: &'a Catalog,
    pub space: SpaceId,
    /// The lake's top.
    pub top: Folder,
    /// `.sluice`.
    pub own: Folder,
    pub staging: Folder,
    pub sections: Folder,
    pub generations: Folder,
}

type Done = Result<(), PublishError>;

impl<'a> Hands<'a> {
    /// Opens Sluice's folders in the lake, made on first use.
    pub fn open(lake: &'a Lake, catalog: &'a Catalog, space: SpaceId) -> Result<Self, PublishError> {
        let failed = |path: &str| {
            let path = lake.root().join(path);
            move |source| PublishError::Io { path, source }
        };
        if lake.own_if_present().is_none() && catalog.read()?.live(&space)?.is_some() {
            return Err(PublishError::NotThere { folder: lake.root().to_path_buf() });
        }
        let top = Folder::of(lake.dir(), "shown").map_err(failed(""))?;
        let own = Folder::of(lake.own()?, LIVE_LINK).map_err(failed(".sluice"))?;
        // Held as long as the folder is open: two homes on one lake do not publish at once.
        if own.lock().map_err(failed(".sluice"))? == Lock::Taken {
            return Err(PublishError::Busy { folder: lake.root().to_path_buf() });
        }
        let mode = own.mode().map_err(failed(".sluice"))?;
        if mode | PASS_THROUGH_MODE != mode {
            own.set_mode(mode | PASS_THROUGH_MODE).map_err(failed(".sluice"))?;
        }
        let make = |name: &'static str, private: bool| -> io::Result<Folder> {
            let (folder, made) = own.make(name)?;
            if made && private {
                folder.set_mode(0o700)?;
            }
            if made {
                own.sync()?;
            }
            Ok(folder.for_room(name))
        };
        let staging = make(STAGING_FOLDER, true).map_err(failed(".sluice/staging"))?;
        let sections = make(SECTIONS_FOLDER, false).map_err(failed(".sluice/sections"))?;
        let generations = make(GENERATIONS_FOLDER, false).map_err(failed(".sluice/generations"))?;
        Ok(Self { lake, catalog, space, top, own, staging, sections, generations })
    }

    /// Names a failed effect.
    pub fn failed(&self, path: &str, source: io::Error) -> PublishError {
        if crate::durable::is_full(&source) {
            return PublishError::DiskFull { folder: self.lake.root().to_path_buf() };
        }
        PublishError::Io { path: self.lake.root().join(path), source }
    }

    /// Makes a folder unless it is there.
    pub fn folder(&self, parent: &Folder, name: &str, path: &str) -> Result<Folder, PublishError> {
        match parent.open(name) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other.map_err(|e| self.failed(path, e)),
        }
        parent.make(name).map(|(folder, _)| folder).map_err(|e| self.failed(path, e))
    }

    /// Sets mode and modification time of a file that no reader sees yet.
    pub fn dress(&self, file: &File, mode: u32, mtime_ns: Option<i64>, path: &str) -> Done {
        let dress = || {
            disk::set_mode(SECTIONS_FOLDER, file, mode)?;
            mtime_ns.map_or(Ok(()), |ns| disk::set_mtime(SECTIONS_FOLDER, file, ns))
        };
        dress().map_err(|e| self.failed(path, e))
    }

    /// Renames onto a free name.
    pub fn rename(&self, from: (&Folder, &str), to: (&Folder, &str), path: &str) -> Done {
        from.0.move_to(from.1, to.0, to.1).map_err(|e| self.failed(path, e))
    }

    /// Renames over what is there.
    pub fn replace(&self, from: (&Folder, &str), to: (&Folder, &str), path: &str) -> Done {
        from.0.replace(from.1, to.0, to.1).map_err(|e| self.failed(path, e))
    }

    /// Gives a file a second name. The error is the system's, since some have an answer.
    pub fn hard_link(&self, from: (&Folder, &str), to: (&Folder, &str)) -> io::Result<()> {
        from.0.hard_link(from.1, to.0, to.1)
    }

    /// Makes a symbolic link on a free name.
    pub fn symlink(&self, target: &str, at: (&Folder, &str), path: &str) -> Done {
        at.0.symlink(target, at.1).map_err(|e| self.failed(path, e))
    }

    /// Begins a copy: an empty file in staging.
    pub fn copy_target(&self, name: &str) -> Result<File, PublishError> {
        let make = || {
            self.staging.remove(name)?;
            self.staging.file_rw(name, true)
        };
        make().map_err(|e| self.failed(name, e))
    }

    /// Removes a file or link.
    pub fn remove(&self, folder: &Folder, name: &str, path: &str) -> Done {
        folder.remove(name).map_err(|e| self.failed(path, e))
    }

    /// Removes an empty folder.
    pub fn remove_folder(&self, folder: &Folder, name: &str, path: &str) -> Done {
        folder.remove_folder(name).map_err(|e| self.failed(path, e))
    }

    /// Makes what was collected below `top` durable.
    pub fn flush(&self, unsynced: &mut Unsynced, top: &Folder, what: &str) -> Done {
        if unsynced.is_empty() {
            return Ok(());
        }
        unsynced.flush(top).map_err(|e| self.failed(what, e))
    }

    /// Makes a folder's names durable.
    pub fn sync(&self, folder: &Folder, path: &str) -> Done {
        folder.sync().map_err(|e| self.failed(path, e))
    }

    /// Makes everything on the lake's file system durable.
    pub fn sync_all(&self, what: &str) -> Done {
        self.own.sync_system().map_err(|e| self.failed(what, e))
    }

    /// One change of the catalog; `what` names its point, as in `intent.commit`.
    pub fn commit<T, E: From<CatalogError>>(
        &self,
        what: Room,
        change: impl FnOnce(&mut Batch) -> Result<T, E>,
    ) -> Result<T, PublishError>
    where
        PublishError: From<E>,
    {
        disk::before_commit(what, self.catalog.home()).map_err(|e| self.failed(what, e))?;
        Ok(self.catalog.write(change)?)
    }

    /// Opens the folder at `path` below `top`, made as far as it is missing.
    ///
    /// `shown` is how errors call `top`.
    pub fn folder_path(&self, top: &Folder, path: Option<&LakePath>, shown: &str) -> Result<Folder, PublishError> {
        let mut here = Folder::of(top, top.room()).map_err(|e| self.failed(shown, e))?;
        let mut at = shown.to_string();
        for name in path.iter().flat_map(|p| p.names()) {
            at = format!("{at}/{name}");
            here = self.folder(&here, name, &at)?;
        }
        Ok(here)
    }

    /// Opens the folder at `path` below the lake's root, made as far as it is missing.
    pub fn make_path(&self, path: &str) -> Result<Folder, PublishError> {
        let mut here = Folder::of(&self.top, ASIDE).map_err(|e| self.failed(path, e))?;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            here = self.folder(&here, name, path)?;
        }
        Ok(here)
    }

    /// Opens the folder at `path` below `.sluice/sections`, made as far as it is missing.
    pub fn section_folder(&self, path: &LakePath) -> Result<Folder, PublishError> {
        self.folder_path(&self.sections, Some(path), ".sluice/sections")
    }
}
