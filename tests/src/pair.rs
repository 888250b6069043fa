//! An owner and a replica of one lake that changes, and what must hold between them after every fault.
//!
//! Invariant: the pair knows which versions a reader may see, so a half one is told from an old one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::{Output, Site, World};

/// A tree as a reader sees it: path → bytes.
pub type Tree = BTreeMap<String, Vec<u8>>;

pub const MIB: usize = 1 << 20;

/// Bytes that repeat nothing and do not compress, the same for the same seed.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// What a reader finds below `root`, without what is Sluice's own.
pub fn tree(root: &Path) -> Tree {
    fn walk(folder: &Path, prefix: &str, found: &mut Tree) {
        for entry in std::fs::read_dir(folder).expect("a folder of the tree").map(|e| e.expect("an entry")) {
            let name = entry.file_name().into_string().expect("UTF-8");
            if prefix.is_empty() && name == ".sluice" {
                continue;
            }
            let path = entry.path();
            if path.is_dir() {
                walk(&path, &format!("{prefix}{name}/"), found);
            } else {
                found.insert(format!("{prefix}{name}"), std::fs::read(&path).expect("a file of the tree"));
            }
        }
    }
    let mut found = Tree::new();
    walk(root, "", &mut found);
    found
}

/// A path of a world, as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A site whose old versions go at once, so that their removal is seen too.
pub fn fresh(world: &World, name: &str) -> Site {
    let mut site = Site::init(world.dir(), name);
    site.set("SLUICE__PUBLISH__READERS_GRACE_S", "0");
    site.set("SLUICE__PUBLISH__KEEP_GENERATIONS", "1");
    site
}

/// Starts a site with faults; `false` when it was killed before it answered.
pub fn start_with(site: &mut Site, faults: &str) -> bool {
    site.set("SLUICE_FAULTS", faults);
    site.try_start()
}

/// An owner and a replica of one lake, and which versions a reader may see now.
pub struct Pair {
    pub world: World,
    pub owner: Site,
    pub replica: Site,
    pub lake: PathBuf,
    pub copy: PathBuf,
    pub ticket: String,
    version: u64,
    newcomers: u64,
    /// A version has arrived.
    arrived: bool,
    /// Versions since the last one that is known to have arrived; any of them may be live.
    before: Vec<Tree>,
    pub now: Tree,
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}

impl Pair {
    /// An owner that is up and a replica that is not and has joined nothing.
    pub fn new() -> Self {
        Self::with(&[], &[])
    }

    /// The same, with settings of the owner and more files of the lake.
    pub fn with(settings: &[(&str, &str)], files: &[(&str, &[u8])]) -> Self {
        let world = World::new();
        let lake = world.plain_lake("lake", &[("raw/a.txt", b"one"), ("raw/d/e/f", b"deep"), ("notes/n", b"n")]);
        std::fs::write(lake.join("raw/big"), bytes(0, 3 * MIB)).expect("a file of the lake");
        for (path, bytes) in files {
            std::fs::write(lake.join(path), bytes).expect("a file of the lake");
        }
        std::fs::create_dir(world.path("points")).expect("a folder of the world");
        let mut owner = Site::init(world.dir(), "playground");
        owner.set("SLUICE_FAULTS", "");
        settings.iter().for_each(|(key, value)| owner.set(key, value));
        owner.start();
        owner.json(["space", "add", "acme", text(&lake)]);
        let ticket = owner.invite("acme");
        let (replica, copy) = (fresh(&world, "cradle"), world.path("copy"));
        let now = tree(&lake);
        let (version, newcomers, arrived, before) = (0, 0, false, vec![]);
        Self { world, owner, replica, lake, copy, ticket, version, newcomers, arrived, before, now }
    }

    /// Another replica takes the place of the one that is here; it is not up. The owner is.
    pub fn newcomer(&mut self) {
        self.newcomers += 1;
        self.replica.kill9_if_up();
        self.replica = fresh(&self.world, &format!("cradle{}", self.newcomers));
        self.copy = self.world.path(&format!("copy{}", self.newcomers));
        self.ticket = self.owner.invite("acme");
        self.arrived = false;
        self.before.clear();
    }

    /// Another version of the lake: files that change, come, go and move.
    pub fn change(&mut self) {
        self.before.push(self.now.clone());
        self.version += 1;
        let v = self.version;
        let at = |path: &str| self.lake.join(path);
        std::fs::write(at("raw/a.txt"), format!("version {v}")).expect("a file of the lake");
        let mut big = std::fs::read(at("raw/big")).expect("a file of the lake");
        let from = (v as usize * 300_000) % (2 * MIB);
        big[from..from + MIB / 2].copy_from_slice(&bytes(v, MIB / 2));
        std::fs::write(at("raw/big"), big).expect("a file of the lake");
        std::fs::write(at(&format!("notes/new-{v}")), bytes(v, 100_000)).expect("a file of the lake");
        // A whole file above the size of those that travel in batches.
        std::fs::write(at(&format!("raw/large-{v}")), bytes(!v, 400_000)).expect("a file of the lake");
        let _ = std::fs::remove_file(at(&format!("raw/large-{}", v - 1)));
        let _ = std::fs::rename(at(&format!("notes/new-{}", v - 1)), at(&format!("notes/moved-{v}")));
        let _ = std::fs::remove_file(at(&format!("notes/moved-{}", v - 1)));
        // Where there is one: a file whose hash tree lies beside the catalog.
        if let Ok(mut huge) = std::fs::read(at("raw/huge")) {
            huge[..8].copy_from_slice(&v.to_le_bytes());
            std::fs::write(at("raw/huge"), huge).expect("a file of the lake");
        }
        self.now = tree(&self.lake);
    }

    pub fn snapshot(&self) -> Output {
        self.owner.run(["snapshot", "acme", "--json"])
    }

    pub fn join(&mut self) -> Output {
        let done = self.replica.run(["join", &self.ticket, "--into", text(&self.copy), "--json"]);
        self.told(done)
    }

    pub fn sync(&mut self) -> Output {
        let done = self.replica.run(["sync", "acme", "--json"]);
        self.told(done)
    }

    /// What a person does after a join broke off: the same again, and `sync` once the space is here.
    pub fn join_or_sync(&mut self) -> Output {
        let joined = self.join();
        if joined.code == 0 { joined } else { self.sync() }
    }

    /// After a success the present version is the only one that may be live.
    pub fn told(&mut self, done: Output) -> Output {
        if done.code == 0 {
            self.arrived = true;
            self.before.clear();
        }
        done
    }

    /// What a reader finds through the live link is one whole version (I1).
    #[track_caller]
    pub fn assert_whole(&self, what: &str) {
        let live = self.copy.join(".sluice/live");
        if std::fs::symlink_metadata(&live).is_err() {
            assert!(!self.arrived, "after {what} nothing is live");
            return;
        }
        let seen = tree(&live);
        let whole = seen == self.now || self.before.contains(&seen);
        assert!(whole, "after {what} a reader sees {:?}", seen.keys());
    }

    /// The copy is the source, by bytes, by id and by hash, and nothing else was written (I1–I3).
    #[track_caller]
    pub fn assert_same(&self, what: &str) {
        assert!(tree(&self.copy) == self.now, "after {what} the copy differs");
        let verified = self.replica.json(["verify", "acme", "--deep"]);
        assert_eq!(verified["ok"], true, "after {what}: {verified}");
        let id = |site: &Site| site.json(["space", "show", "acme"])["snapshot"].clone();
        assert_eq!(id(&self.owner), id(&self.replica), "after {what}");
        let mut known: Vec<String> = ["lake", "points", "playground", "playground.log"].map(str::to_owned).into();
        for number in 0..=self.newcomers {
            let tail = if number == 0 { String::new() } else { number.to_string() };
            known.extend([format!("copy{tail}"), format!("cradle{tail}"), format!("cradle{tail}.log")]);
        }
        let outside = std::fs::read_dir(self.world.dir()).expect("the world").map(|e| e.expect("an entry").file_name());
        let strange: Vec<_> = outside.filter(|n| !known.iter().any(|k| n == k.as_str())).collect();
        assert!(strange.is_empty(), "after {what}: {strange:?}");
    }
}
