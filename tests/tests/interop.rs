//! The blob protocol is the one that iroh-blobs speaks: its client fetches from us, and our lane
//! fetches from its provider.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use ed25519_dalek::SigningKey;
use iroh::protocol::Router;
use iroh_blobs::BlobsProtocol;
use iroh_blobs::protocol::{ChunkRanges, ChunkRangesExt, GetRequest};
use iroh_blobs::store::mem::MemStore;
use iroh_blobs::{ALPN, Hash};
use sluice_daemon::lanes::{LeafSink, Peer, QuicConfig, QuicLane};
use sluice_protocol::ids::{BlobHash, SiteId};
use sluice_tests::outsider::{Door, Outsider};
use sluice_tests::{Site, World};

/// Bytes that do not repeat, over several groups and not a whole number of them.
fn bytes(length: u32) -> Vec<u8> {
    (0..length / 4).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// An owner of one file, the door to it, and a paired replica that is down.
fn shared(world: &World, files: &[(&str, &[u8])]) -> (Site, Site, Door) {
    let root = world.plain_lake("lake", files);
    let owner = world.site("playground");
    owner.json(["space", "add", "acme", root.to_str().expect("UTF-8")]);
    let mut replica = world.site("cradle");
    let ticket = owner.invite("acme");
    replica.json(["join", &ticket, "--into", world.path("copy").to_str().expect("UTF-8")]);
    replica.kill9();
    let door = Door::of(&owner, &ticket);
    (owner, replica, door)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_client_fetches_whole_blobs_from_us() {
    let world = World::new();
    let files = [bytes(0), bytes(4), bytes(16 << 10), bytes((16 << 10) + 4), bytes(3_000_004)];
    let names: Vec<String> = (0..files.len()).map(|i| format!("raw/{i}.bin")).collect();
    let lake: Vec<_> = names.iter().zip(&files).map(|(n, b)| (n.as_str(), b.as_slice())).collect();
    let (_owner, replica, door) = shared(&world, &lake);
    let client = Outsider::with_key_of(&replica).await;
    let connection = client.dial(&door, ALPN).await.expect("a peer may connect");
    for file in &files {
        let got = iroh_blobs::get::request::get_blob(connection.clone(), Hash::new(file)).bytes().await;
        assert_eq!(got.expect("the real client is content").as_ref(), file.as_slice(), "{} bytes", file.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_store_completes_a_blob_from_ranges_of_ours() {
    let world = World::new();
    let file = bytes(2_000_004);
    let (_owner, replica, door) = shared(&world, &[("raw/big.bin", &file)]);
    let client = Outsider::with_key_of(&replica).await;
    let connection = client.dial(&door, ALPN).await.expect("a peer may connect");
    let store = MemStore::new();
    let hash = Hash::new(&file);

    let tail = GetRequest::blob_ranges(hash, ChunkRanges::chunks(640..));
    store.remote().execute_get(connection.clone(), tail).complete().await.expect("the second part alone");
    assert!(!store.remote().local(hash).await.expect("a local look").is_complete());
    store.remote().fetch(connection, hash).complete().await.expect("the first part");
    assert_eq!(store.get_bytes(hash).await.expect("complete").as_ref(), file.as_slice());
}

/// The real provider over these files, and our lane's handle to it.
async fn provider(files: &[&[u8]]) -> (Router, QuicLane, Peer) {
    let store = MemStore::new();
    for file in files {
        store.add_slice(file).await.expect("a store in memory takes bytes");
    }
    let endpoint = Outsider::stranger().await.endpoint;
    let site = SiteId(*endpoint.id().as_bytes());
    let addresses: Vec<_> = endpoint
        .bound_sockets()
        .into_iter()
        .filter(|a| a.is_ipv4())
        .map(|a| ([127, 0, 0, 1], a.port()).into())
        .collect();
    let router = Router::builder(endpoint).accept(ALPN, BlobsProtocol::new(&store, None)).spawn();
    let lane = QuicLane::bind(QuicConfig::new(SigningKey::from_bytes(&[7; 32]))).await.expect("a free port");
    let peer = lane.peer(site, &addresses);
    (router, lane, peer)
}

/// Keeps the leaves that arrive.
struct Leaves(Mutex<Vec<u8>>);

impl LeafSink for Leaves {
    fn leaf(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let start = usize::try_from(offset).expect("a small file");
        self.0.lock().expect("no panic under the lock")[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn parents(&self, _: &[(u64, [u8; 64])]) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_lane_fetches_from_the_real_provider() {
    let file = bytes(1_000_004);
    let (router, lane, peer) = provider(&[&file, b"small"]).await;
    let hash = |b: &[u8]| BlobHash(*Hash::new(b).as_bytes());

    assert_eq!(peer.fetch_small(hash(b"small"), 1000).await.expect("a small blob").as_ref(), b"small");
    assert_eq!(peer.fetch_small(hash(&file), 2_000_000).await.expect("a whole blob").as_ref(), file.as_slice());
    assert!(peer.fetch_small(hash(&file), 1000).await.is_err(), "a blob above the limit was taken");
    assert!(peer.fetch_small(hash(b"nobody has this"), 1000).await.is_err());

    let sink = Arc::new(Leaves(Mutex::new(vec![0; file.len()])));
    let ranges: [Range<u64>; 2] = [0..16_384, 786_432..1_000_004];
    let stats = peer.fetch(hash(&file), file.len() as u64, &ranges, sink.clone()).await.expect("two ranges");
    assert_eq!(stats.payload, 16_384 + (1_000_004 - 786_432));
    let got = sink.0.lock().expect("no panic under the lock").clone();
    for range in &ranges {
        let range = range.start as usize..range.end as usize;
        assert_eq!(got[range.clone()], file[range]);
    }
    assert!(got[16_384..786_432].iter().all(|b| *b == 0), "bytes arrived that nobody asked for");
    lane.close().await;
    router.shutdown().await.expect("the provider ends");
}
