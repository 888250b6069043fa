//! Two sites in one process, over real sockets: pair, copy, change, sync, without tables.
//!
//! The same journey with real daemons, real tables and other people's readers is in `tests/`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use sluice_daemon::config::Config;
use sluice_daemon::home::Home;
use sluice_daemon::node::SiteNode;
use sluice_protocol::api::{ApiError, Failure, Node, Operation, Unwatched};

struct World {
    dir: tempfile::TempDir,
    owner: Arc<SiteNode>,
    replica: Arc<SiteNode>,
}

fn home(root: &Path, name: &str) -> Home {
    drop(Home::init(root, name, true).unwrap());
    Home::open(root, true).unwrap().locked().unwrap()
}

fn config() -> Config {
    let mut config = Config::default();
    config.p2p.port = 0;
    config.p2p.loopback = true;
    config
}

async fn call(node: &SiteNode, op: Operation) -> Result<Value, ApiError> {
    let outcome = node.call(op, Arc::new(Unwatched)).await?;
    Ok(serde_json::to_value(outcome).unwrap())
}

/// Bytes that no chunk repeats, the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new_keyed(&[7; 32]).update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

impl World {
    async fn new() -> Self {
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

    fn lake(&self) -> PathBuf {
        self.dir.path().join("lake")
    }

    fn copy(&self) -> PathBuf {
        self.dir.path().join("copy")
    }

    async fn pair(&self) -> Value {
        let path = self.lake().display().to_string();
        let add = Operation::SpaceAdd { name: "acme".into(), path, history: None, opaque: false };
        call(&self.owner, add).await.unwrap();
        let invite = call(&self.owner, self.invite()).await.unwrap();
        let join = self.join(invite["ticket"].as_str().unwrap());
        let joined = call(&self.replica, join).await.unwrap();
        assert_eq!(joined["phrase"], invite["phrase"]);
        joined
    }

    fn invite(&self) -> Operation {
        Operation::Invite { space: "acme".into(), sections: vec![], expires_s: None }
    }

    fn join(&self, ticket: &str) -> Operation {
        Operation::Join { ticket: ticket.into(), into: Some(self.copy().display().to_string()), sections: vec![] }
    }

    async fn sync(&self) -> Value {
        let snapshot = Operation::SnapshotCreate { space: "acme".into(), tag: None };
        let taken = call(&self.owner, snapshot).await.unwrap();
        let sync = call(&self.replica, Operation::Sync { space: None, dry_run: false }).await.unwrap();
        assert_eq!(sync["spaces"][0]["snapshot"], taken["snapshot"]);
        sync["spaces"][0].clone()
    }

    fn assert_same(&self) {
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
fn tree(root: &Path) -> BTreeMap<String, String> {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_lake_arrives_and_only_what_changed_moves() {
    let world = World::new().await;
    let joined = world.pair().await;
    assert_eq!(joined["published"], true);
    world.assert_same();

    let again = world.sync().await;
    assert_eq!(again["changed"], false);
    assert!(again["bytes_moved"].as_u64().unwrap() < 1000, "{again}");

    // A small edit in the middle of the large file.
    let mut big = std::fs::read(world.lake().join("raw/big.bin")).unwrap();
    big.splice(20_000_000..20_000_000, *b"inserted");
    std::fs::write(world.lake().join("raw/big.bin"), big).unwrap();
    let edited = world.sync().await;
    assert!(edited["bytes_moved"].as_u64().unwrap() < 2_000_000, "{edited}");
    assert!(edited["bytes_reused"].as_u64().unwrap() > 38_000_000, "{edited}");
    world.assert_same();

    // A rename moves nothing but names; a removed folder goes.
    std::fs::rename(world.lake().join("raw/big.bin"), world.lake().join("raw/renamed.bin")).unwrap();
    std::fs::remove_dir_all(world.lake().join("metadata")).unwrap();
    std::fs::create_dir(world.lake().join("new")).unwrap();
    std::fs::write(world.lake().join("new/file"), "x").unwrap();
    let renamed = world.sync().await;
    assert!(renamed["bytes_moved"].as_u64().unwrap() < 100_000, "{renamed}");
    world.assert_same();

    let verified = call(&world.replica, Operation::Verify { space: "acme".into(), deep: true }).await.unwrap();
    assert_eq!(verified["ok"], true, "{verified}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_admits_one_site() {
    let world = World::new().await;
    let path = world.lake().display().to_string();
    let add = Operation::SpaceAdd { name: "acme".into(), path, history: None, opaque: false };
    call(&world.owner, add).await.unwrap();
    let ticket = call(&world.owner, world.invite()).await.unwrap()["ticket"].as_str().unwrap().to_string();
    call(&world.replica, world.join(&ticket)).await.unwrap();

    let third = SiteNode::start(home(&world.dir.path().join("third"), "third"), config()).await.unwrap();
    let into = Some(world.dir.path().join("stolen").display().to_string());
    let stolen = call(&third, Operation::Join { ticket, into, sections: vec![] }).await.unwrap_err();
    assert_eq!(stolen.failure, Failure::Error);
    assert!(stolen.error.contains("used"), "{stolen}");
    assert!(!world.dir.path().join("stolen").exists(), "a refused join leaves nothing behind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_site_gets_nothing_more() {
    let world = World::new().await;
    world.pair().await;
    std::fs::write(world.lake().join("raw/more"), "secret").unwrap();
    call(&world.owner, Operation::SnapshotCreate { space: "acme".into(), tag: None }).await.unwrap();
    call(&world.owner, Operation::PeerRevoke { peer: "cradle".into(), space: None }).await.unwrap();
    let refused = call(&world.replica, Operation::Sync { space: None, dry_run: false }).await;
    assert!(refused.is_err(), "{refused:?}");
    assert!(!world.copy().join("raw/more").exists() && world.copy().join("raw/zero").exists());
}
