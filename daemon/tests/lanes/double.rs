//! A site in memory, and the fixtures of these tests.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::{BlockSize, ChunkRanges};
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use sluice_daemon::lanes::{Host, LeafSink, QuicConfig, QuicLane, ServedBlob, ServedData};
use sluice_protocol::ids::{BlobHash, SiteId};
use sluice_protocol::messages::Message;
use sluice_store::staging::Pair;

pub const GROUPS: BlockSize = BlockSize::from_chunk_log(4);
pub const GROUP: u64 = 16 * 1024;

/// The key of test site `n`.
pub fn key(n: u8) -> SigningKey {
    SigningKey::from_bytes(&[n; 32])
}

pub fn site(n: u8) -> SiteId {
    SiteId(key(n).verifying_key().to_bytes())
}

/// Bytes that differ everywhere.
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

pub fn outboard(data: &[u8]) -> Vec<u8> {
    PreOrderMemOutboard::create(data, GROUPS).data
}

/// The answer that the protocol wants for these chunks of `data`, the size in front.
pub fn encoded(data: &[u8], chunks: &ChunkRanges) -> Vec<u8> {
    let outboard = PreOrderMemOutboard::create(data, GROUPS);
    let mut out = (data.len() as u64).to_le_bytes().to_vec();
    bao_tree::io::sync::encode_ranges_validated(data, &outboard, chunks, &mut out).unwrap();
    out
}

enum Held {
    Memory(Bytes),
    File(PathBuf),
}

struct Entry {
    size: u64,
    held: Held,
    outboard: Vec<u8>,
    readers: Option<HashSet<SiteId>>,
}

/// The double.
#[derive(Default)]
pub struct Double {
    pub paired: Mutex<HashSet<SiteId>>,
    blobs: Mutex<HashMap<BlobHash, Entry>>,
    pub heard: Mutex<Vec<(SiteId, bool, Message)>>,
    pub opened: Mutex<Vec<BlobHash>>,
    pub damaged: Mutex<Vec<BlobHash>>,
    pub served: AtomicU64,
}

impl Double {
    /// Knows these sites.
    pub fn knowing(sites: &[SiteId]) -> Arc<Self> {
        let double = Self::default();
        double.paired.lock().unwrap().extend(sites);
        Arc::new(double)
    }

    /// Holds `data` for every paired site.
    pub fn holds(&self, data: &[u8]) -> BlobHash {
        self.put(BlobHash::of(data), data, Held::Memory(Bytes::copy_from_slice(data)), None)
    }

    /// Holds `data` for these sites only.
    pub fn holds_for(&self, data: &[u8], readers: &[SiteId]) -> BlobHash {
        let readers = Some(readers.iter().copied().collect());
        self.put(BlobHash::of(data), data, Held::Memory(Bytes::copy_from_slice(data)), readers)
    }

    /// Holds `data` in the file at `path`, which may say something else by now.
    pub fn holds_file(&self, data: &[u8], path: PathBuf) -> BlobHash {
        self.put(BlobHash::of(data), data, Held::File(path), None)
    }

    /// Holds `data` with another outboard than the right one.
    pub fn holds_badly(&self, data: &[u8], outboard: Vec<u8>) -> BlobHash {
        let hash = self.holds(data);
        self.blobs.lock().unwrap().get_mut(&hash).unwrap().outboard = outboard;
        hash
    }

    fn put(&self, hash: BlobHash, data: &[u8], held: Held, readers: Option<HashSet<SiteId>>) -> BlobHash {
        let entry = Entry { size: data.len() as u64, held, outboard: outboard(data), readers };
        self.blobs.lock().unwrap().insert(hash, entry);
        hash
    }

    pub fn forget(&self, site: SiteId) {
        self.paired.lock().unwrap().remove(&site);
    }

    pub fn damaged(&self) -> Vec<BlobHash> {
        self.damaged.lock().unwrap().clone()
    }
}

#[async_trait::async_trait]
impl Host for Double {
    fn is_paired(&self, site: SiteId) -> bool {
        self.paired.lock().unwrap().contains(&site)
    }

    async fn on_message(&self, from: SiteId, paired: bool, message: Message) -> Message {
        if let Message::Pair(_) = &message {
            self.paired.lock().unwrap().insert(from);
        }
        self.heard.lock().unwrap().push((from, paired, message));
        Message::Done
    }

    fn open_blob(&self, peer: SiteId, hash: BlobHash) -> Option<ServedBlob> {
        let blobs = self.blobs.lock().unwrap();
        let entry = blobs.get(&hash)?;
        if entry.readers.as_ref().is_some_and(|readers| !readers.contains(&peer)) {
            return None;
        }
        self.opened.lock().unwrap().push(hash);
        let data = match &entry.held {
            Held::Memory(bytes) => ServedData::Bytes(bytes.clone()),
            Held::File(path) => ServedData::File(std::fs::File::open(path).ok()?),
        };
        Some(ServedBlob { size: entry.size, data, outboard: entry.outboard.clone().into() })
    }

    fn served(&self, _peer: SiteId, bytes: u64) {
        self.served.fetch_add(bytes, Ordering::Relaxed);
    }

    fn damaged(&self, hash: BlobHash) {
        self.damaged.lock().unwrap().push(hash);
    }
}

/// Settings for loopback, short enough for tests.
pub fn config(n: u8) -> QuicConfig {
    QuicConfig {
        loopback: true,
        connect_timeout: Duration::from_secs(5),
        answer_timeout: Duration::from_secs(5),
        fetch_stall: Duration::from_secs(10),
        ..QuicConfig::new(key(n))
    }
}

/// A bound lane of test site `n` that serves nobody.
pub async fn lane(n: u8) -> QuicLane {
    QuicLane::bind(config(n)).await.unwrap()
}

/// A lane of test site `n` that serves `host`.
pub async fn serving(n: u8, host: Arc<Double>) -> QuicLane {
    let lane = lane(n).await;
    lane.serve(host).unwrap();
    lane
}

/// Where a lane is dialled in these tests.
pub fn loopback(lane: &QuicLane) -> Vec<SocketAddr> {
    lane.local_addresses().into_iter().filter(|a| a.ip().is_loopback()).collect()
}

/// Collects what arrives, and checks the order that a sink may rely on.
pub struct Collected {
    pub state: Mutex<(Vec<u8>, Vec<u8>, u64)>,
    pub fail_after: u64,
}

impl Collected {
    pub fn of(size: u64) -> Arc<Self> {
        let tree = bao_tree::BaoTree::new(size, GROUPS);
        let state = (vec![0; size as usize], vec![0; tree.outboard_size() as usize], 0);
        Arc::new(Self { state: Mutex::new(state), fail_after: u64::MAX })
    }

    pub fn full(size: u64, fail_after: u64) -> Arc<Self> {
        let Ok(mut this) = Arc::try_unwrap(Self::of(size)) else { unreachable!("it is new") };
        this.fail_after = fail_after;
        Arc::new(this)
    }

    pub fn data(&self) -> Vec<u8> {
        self.state.lock().unwrap().0.clone()
    }

    pub fn pairs(&self) -> Vec<u8> {
        self.state.lock().unwrap().1.clone()
    }

    pub fn received(&self) -> u64 {
        self.state.lock().unwrap().2
    }
}

impl LeafSink for Collected {
    fn leaf(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        assert_eq!(offset % GROUP, 0);
        assert!(data.len() <= 256 * 1024);
        state.2 += data.len() as u64;
        if state.2 > self.fail_after {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        state.0[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }

    fn parents(&self, pairs: &[Pair]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        for (index, pair) in pairs {
            state.1[*index as usize * 64..][..64].copy_from_slice(pair);
        }
        Ok(())
    }
}
