//! A world: one directory that holds the homes, lakes and logs of one test.
//!
//! Invariant: worlds lie below the target folder, on a real disk, because a site refuses a home
//! that a restart would empty; a world is deleted with its test, except when the test failed.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::lake::Lake;
use crate::site::Site;

/// Everything that one test makes.
pub struct World {
    dir: Option<TempDir>,
}

impl World {
    /// An empty world.
    pub fn new() -> Self {
        let base = target_dir().join("worlds");
        std::fs::create_dir_all(&base).expect("the target folder takes new folders");
        // Short names: a Unix socket's path may have 108 bytes.
        let dir = tempfile::Builder::new().prefix("w").rand_bytes(5).tempdir_in(base);
        Self { dir: Some(dir.expect("the target folder takes new folders")) }
    }

    /// Where it lies.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().expect("kept until the world is dropped").path()
    }

    /// A path in this world that nothing is at yet.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// A site that was made with `sluice init` and is up.
    pub fn site(&self, name: &str) -> Site {
        let mut site = Site::init(self.dir(), name);
        site.start();
        site
    }

    /// A site that was made with `sluice init` and does not run.
    pub fn sleeping_site(&self, name: &str) -> Site {
        Site::init(self.dir(), name)
    }

    /// A lake with tables, tensors, large files and oddities (`lake.py make`).
    pub fn lake(&self, name: &str) -> Lake {
        Lake::make(self.path(name), &[])
    }

    /// The same with small plain files, for tests in which size says nothing.
    pub fn small_lake(&self, name: &str) -> Lake {
        Lake::make(self.path(name), &["--csv-mib", "1", "--binary-mib", "2"])
    }

    /// A directory with these files, and no tables.
    pub fn plain_lake(&self, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let root = self.path(name);
        std::fs::create_dir(&root).expect("a new lake");
        for (path, bytes) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().expect("below the root")).expect("a folder of the lake");
            std::fs::write(path, bytes).expect("a file of the lake");
        }
        root
    }
}

impl World {
    /// A space `acme` of these files at `playground`, and the copy that `cradle` has joined.
    #[track_caller]
    pub fn joined(&self, files: &[(&str, &[u8])]) -> Joined {
        let source = self.plain_lake("source", files);
        let owner = self.site("playground");
        owner.json(["space", "add", "acme", source.to_str().expect("UTF-8")]);
        let replica = self.site("cradle");
        let copy = self.path("copy");
        replica.json(["join", &owner.invite("acme"), "--into", copy.to_str().expect("UTF-8")]);
        Joined { source, copy, owner, replica }
    }
}

/// Two sites that have one space.
pub struct Joined {
    pub source: PathBuf,
    pub copy: PathBuf,
    pub owner: Site,
    pub replica: Site,
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let dir = self.dir.take().expect("dropped once").keep();
            eprintln!("the world of this test is kept in {}", dir.display());
        }
    }
}

/// The folder of the running profile (`target/debug`), found from the test's own executable.
pub(crate) fn target_dir() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    test.ancestors().nth(2).expect("target/debug/deps/test").to_owned()
}
