//! The stock iroh-blobs client fetches from us; we fetch from the stock iroh-blobs provider.

use bao_tree::{ChunkNum, ChunkRanges};
use bytes::Bytes;
use iroh::protocol::Router;
use iroh_blobs::BlobsProtocol;
use iroh_blobs::get::fsm::{self, ConnectedNext};
use iroh_blobs::get::request;
use iroh_blobs::protocol::GetRequest;
use iroh_blobs::store::mem::MemStore;
use sluice_daemon::lanes::FetchError;
use sluice_protocol::ids::BlobHash;
use sluice_protocol::messages::ALPN_BLOBS;

use crate::double::{Collected, Double, GROUP, bytes, lane, outboard, serving, site};
use crate::hostile::{connect, endpoint};

#[tokio::test(flavor = "multi_thread")]
async fn the_stock_client_fetches_from_us() {
    let host = Double::knowing(&[site(7)]);
    let a = serving(1, host.clone()).await;
    let stock = endpoint(7).await;
    let connection = connect(&stock, &a, ALPN_BLOBS).await;
    for (i, size) in [0, 1, 1024, 16_384, 16_385, 1 << 20, (9 << 20) + 3].into_iter().enumerate() {
        let data = bytes(size, i as u64);
        let hash = host.holds(&data);
        let got = request::get_blob(connection.clone(), hash.0.into()).bytes().await.unwrap();
        assert!(got == data, "{size} bytes");
        let (verified, _) = request::get_verified_size(&connection, &hash.0.into()).await.unwrap();
        assert_eq!(verified, size as u64);
        let (claimed, _) = request::get_unverified_size(&connection, &hash.0.into()).await.unwrap();
        assert_eq!(claimed, size as u64);
    }
    let absent = BlobHash::of(b"nobody has this");
    assert!(request::get_blob(connection.clone(), absent.0.into()).bytes().await.is_err());
}

/// The wire knows ranges of single KiB, which cut through the groups that we store hashes for.
#[tokio::test(flavor = "multi_thread")]
async fn the_stock_client_fetches_ranges_inside_groups() {
    let host = Double::knowing(&[site(7)]);
    let data = bytes(1_000_003, 1);
    let hash = host.holds(&data);
    let a = serving(1, host.clone()).await;
    let stock = endpoint(7).await;
    let connection = connect(&stock, &a, ALPN_BLOBS).await;
    for (start, end) in [(0, 1), (5, 6), (15, 17), (3, 500), (970, 977), (976, 977), (16, 32), (1, 976)] {
        let ranges = ChunkRanges::from(ChunkNum(start)..ChunkNum(end));
        let get = fsm::start(connection.clone(), GetRequest::blob_ranges(hash.0.into(), ranges), Default::default());
        let ConnectedNext::StartRoot(root) = get.next().await.unwrap().next().await.unwrap() else {
            panic!("one blob was asked for");
        };
        let (_, got) = root.next().concatenate_into_vec().await.unwrap();
        let end = (end as usize * 1024).min(data.len());
        assert!(got == data[start as usize * 1024..end], "{start}..{end}");
    }
    let several = ChunkRanges::from(ChunkNum(1)..ChunkNum(2))
        | ChunkRanges::from(ChunkNum(40)..ChunkNum(41))
        | ChunkRanges::from(ChunkNum(976)..);
    let get = fsm::start(connection, GetRequest::blob_ranges(hash.0.into(), several), Default::default());
    let ConnectedNext::StartRoot(root) = get.next().await.unwrap().next().await.unwrap() else {
        panic!("one blob was asked for");
    };
    let (_, got) = root.next().concatenate_into_vec().await.unwrap();
    assert_eq!(got, [&data[1024..2048], &data[40_960..41_984], &data[999_424..]].concat());
    assert!(host.damaged().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn we_fetch_from_the_stock_provider() {
    let store = MemStore::new();
    let router = Router::builder(endpoint(9).await).accept(iroh_blobs::ALPN, BlobsProtocol::new(&store, None)).spawn();
    let address = router.endpoint().bound_sockets();
    let b = lane(2).await;
    let peer = b.peer(site(9), &address);

    let mut wanted = Vec::new();
    for (i, size) in [1, 1024, 16_384, 16_385, 1 << 20, (9 << 20) + 3].into_iter().enumerate() {
        let data = bytes(size, i as u64);
        let hash = BlobHash::of(&data);
        store.add_bytes(data.clone()).await.unwrap();
        let sink = Collected::of(size as u64);
        let whole = 0..size as u64;
        let stats = peer.fetch(hash, size as u64, std::slice::from_ref(&whole), sink.clone()).await.unwrap();
        assert!(sink.data() == data, "{size} bytes");
        assert!(sink.pairs() == outboard(&data), "the tree of {size} bytes");
        assert_eq!(stats.payload, size as u64);
        if size <= 1 << 20 {
            assert_eq!(peer.fetch_small(hash, 1 << 20).await.unwrap(), data);
            wanted.push((hash, size as u64));
        }
    }
    let mut got: Vec<(BlobHash, Option<Bytes>)> = Vec::new();
    peer.fetch_many(&wanted, &mut |hash, bytes| got.push((hash, bytes))).await.unwrap();
    assert_eq!(got.len(), wanted.len());
    assert!(got.iter().all(|(hash, bytes)| BlobHash::of(bytes.as_ref().unwrap()) == *hash));

    let data = bytes(1 << 20, 4);
    let hash = BlobHash::of(&data);
    let sink = Collected::of(1 << 20);
    let ranges = [GROUP..3 * GROUP, 60 * GROUP..64 * GROUP];
    peer.fetch(hash, 1 << 20, &ranges, sink.clone()).await.unwrap();
    assert!(sink.data()[60 * GROUP as usize..] == data[60 * GROUP as usize..]);

    let e = peer.fetch_small(BlobHash::of(b"nobody has this"), 100).await.unwrap_err();
    assert!(matches!(e, FetchError::NotThere { .. } | FetchError::Broken { .. }), "{e}");
    router.shutdown().await.unwrap();
}
