//! Sites in one process, over real sockets, and a small lake without tables.

#![allow(dead_code)] // each test program uses a part

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use sluice_daemon::config::Config;
use sluice_daemon::home::Home;
use sluice_daemon::node::SiteNode;
use sluice_protocol::api::{ApiError, Node, Operation, Unwatched};

pub struct World {
    pub dir: tempfile::TempDir,
    pub owner: Arc<SiteNode>,
    pub replica: Arc<SiteNode>,
}

pub fn home(root: &Path, name: &str) -> Home {
    if !root.join("site.key").exists() {
        drop(Home::init(root, name, true).unwrap());
    }
    Home::open(root, true).unwrap().locked().unwrap()
}

pub fn config() -> Config {
    let mut config = Config::default();
    config.p2p.port = 0;
    config.p2p.loopback = true;
    config.follow.enabled = false;
    config
}

pub async fn call(node: &SiteNode, op: Operation) -> Result<Value, ApiError> {
    let outcome = node.call(op, Arc::new(Unwatched)).await?;
    Ok(serde_json::to_value(outcome).unwrap())
}

/// Bytes that no chunk repeats, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new_keyed(&[7; 32]).update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

impl World {
    pub async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let owner = SiteNode::start(home(&dir.path().join("owner"), "playground"), config()).await.unwrap();
        let replica = SiteNode::start(home(&dir.path().join("replica"), "cradle"), config()).await.unwrap();
        let lake = dir.path().join("lake");
        std::fs::create_dir_all(lake.join("raw/deep/er")).unwrap();
        std::fs::create_dir_all(lake.join("metadata")).unwrap();
        std::fs::create_dir_all(lake.join("raw/empty")).unwrap();
        std::fs::write(lake.join("README.md"), "a lake").unwrap();
        std::fs::write(lake.join("raw/zero"), "").unwrap();
        std::fs::write(lake.join("raw/big.bin"), noise(1, 40 << 20)).unwrap();
        std::fs::write(lake.join("raw/deep/er/mid.bin"), noise(2, 700_001)).unwrap();
        for i in 0..300u64 {
            std::fs::write(lake.join(format!("metadata/doc {i}.json")), noise(i + 10, (i * 97) as usize)).unwrap();
        }
        std::os::unix::fs::symlink("deep/er/mid.bin", lake.join("raw/link")).unwrap();
        Self { dir, owner, replica }
    }

    pub fn lake(&self) -> PathBuf {
        self.dir.path().join("lake")
    }

    pub fn copy(&self) -> PathBuf {
        self.dir.path().join("copy")
    }

    pub async fn pair(&self) -> Value {
        let path = self.lake().display().to_string();
        let add = Operation::SpaceAdd { name: "acme".into(), path, history: None, opaque: false };
        call(&self.owner, add).await.unwrap();
        let invite = call(&self.owner, self.invite()).await.unwrap();
        let join = self.join(invite["ticket"].as_str().unwrap());
        let joined = call(&self.replica, join).await.unwrap();
        assert_eq!(joined["phrase"], invite["phrase"]);
        joined
    }

    pub fn invite(&self) -> Operation {
        Operation::Invite { space: "acme".into(), sections: vec![], expires_s: None }
    }

    pub fn join(&self, ticket: &str) -> Operation {
        Operation::Join { ticket: ticket.into(), into: Some(self.copy().display().to_string()), sections: vec![] }
    }

    pub async fn sync(&self) -> Value {
        let snapshot = Operation::SnapshotCreate { space: "acme".into(), tag: None };
        let taken = call(&self.owner, snapshot).await.unwrap();
        let sync = call(&self.replica, Operation::Sync { space: None, dry_run: false, at: None }).await.unwrap();
        assert_eq!(sync["spaces"][0]["snapshot"], taken["snapshot"]);
        sync["spaces"][0].clone()
    }

    pub fn assert_same(&self) {
        let (source, copy) = (tree(&self.lake()), tree(&self.copy()));
        let paths = |t: &BTreeMap<String, String>| t.keys().cloned().collect::<Vec<_>>();
        assert_eq!(paths(&source), paths(&copy));
        for (path, what) in &source {
            assert_eq!(what, &copy[path], "{path}");
        }
    }
}

/// Every path below `root` but `.sluice`, with what it is. Links at the top are followed: a replica's
/// visible names are links.
pub fn tree(root: &Path) -> BTreeMap<String, String> {
    fn walk(dir: &Path, prefix: &str, top: bool, out: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if top && name == ".sluice" {
                continue;
            }
            let path = entry.path();
            let at = format!("{prefix}{name}");
            let link = path.symlink_metadata().unwrap().is_symlink();
            let into = std::fs::metadata(&path).unwrap();
            let ours = link && std::fs::read_link(&path).unwrap().to_string_lossy().contains("sluice");
            let ours = ours || link && std::fs::read_link(&path).unwrap().to_string_lossy().contains("sections/");
            if link && !ours {
                out.insert(at, format!("link {}", std::fs::read_link(&path).unwrap().display()));
            } else if into.is_dir() {
                out.insert(at.clone(), "folder".into());
                walk(&path, &format!("{at}/"), false, out);
            } else {
                let mtime = into.modified().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
                out.insert(at, format!("{} {mtime}", blake3::hash(&std::fs::read(&path).unwrap())));
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(root, "", true, &mut out);
    out
}
