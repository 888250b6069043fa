//! Blobs and parts of blobs, from one lane to the other.

use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use sluice_daemon::lanes::{FetchError, FetchStats, LaneError, Peer, QuicLane};
use sluice_protocol::ids::BlobHash;

use crate::double::{Collected, Double, GROUP, bytes, lane, loopback, outboard, serving, site};

/// A serving site, and a paired peer that reaches it.
async fn pair() -> (Arc<Double>, QuicLane, QuicLane, Peer) {
    let host = Double::knowing(&[site(2)]);
    let a = serving(1, host.clone()).await;
    let b = lane(2).await;
    let peer = b.peer(a.site(), &loopback(&a));
    (host, a, b, peer)
}

fn whole(size: u64) -> Vec<Range<u64>> {
    if size == 0 { vec![] } else { std::iter::once(0..size).collect() }
}

async fn fetch_whole(peer: &Peer, hash: BlobHash, size: u64) -> (Arc<Collected>, Result<FetchStats, FetchError>) {
    let sink = Collected::of(size);
    let result = peer.fetch(hash, size, &whole(size), sink.clone()).await;
    (sink, result)
}

#[tokio::test(flavor = "multi_thread")]
async fn whole_blobs_of_all_sizes_with_their_trees() {
    let (host, _a, _b, peer) = pair().await;
    let g = GROUP as usize;
    let sizes = [1, 1023, 1024, 1025, g - 1, g, g + 1, 2 * g, 3 * g - 7, 1 << 20, (1 << 20) + 1, 20 << 20];
    for (i, size) in sizes.into_iter().enumerate() {
        let data = bytes(size, i as u64);
        let hash = host.holds(&data);
        let (sink, result) = fetch_whole(&peer, hash, size as u64).await;
        let stats = result.unwrap();
        assert!(sink.data() == data, "{size} bytes");
        assert!(sink.pairs() == outboard(&data), "the tree of {size} bytes");
        let pairs = outboard(&data).len() as u64;
        assert_eq!(stats, FetchStats { payload: size as u64, overhead: 8 + pairs, over_tls: 0 });
        if size <= 1 << 20 {
            assert_eq!(peer.fetch_small(hash, size as u64).await.unwrap(), Bytes::from(data));
        }
    }
    assert!(host.served.load(Ordering::Relaxed) > 20 << 20);
    assert!(host.damaged().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_empty_blob() {
    let (host, _a, _b, peer) = pair().await;
    let hash = host.holds(b"");
    assert_eq!(peer.fetch_small(hash, 0).await.unwrap().len(), 0);
    let (_, result) = fetch_whole(&peer, hash, 0).await;
    assert_eq!(result.unwrap(), FetchStats::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_carry_their_part_of_the_tree() {
    let (host, _a, _b, peer) = pair().await;
    let size = 40 * GROUP + 777;
    let data = bytes(size as usize, 4);
    let hash = host.holds(&data);
    let cases: Vec<Vec<Range<u64>>> = vec![
        vec![0..GROUP, 39 * GROUP..size],
        vec![40 * GROUP..size, 40 * GROUP..size][..1].to_vec(),
        vec![3 * GROUP..7 * GROUP, 9 * GROUP..10 * GROUP, 20 * GROUP..33 * GROUP],
        (0..20).map(|i| 2 * i * GROUP..(2 * i + 1) * GROUP).collect(),
    ];
    for ranges in cases {
        let sink = Collected::of(size);
        let stats = peer.fetch(hash, size, &ranges, sink.clone()).await.unwrap();
        let wanted: u64 = ranges.iter().map(|r| r.end - r.start).sum();
        assert_eq!(stats.payload, wanted, "{ranges:?}");
        let (got, right, tree) = (sink.data(), outboard(&data), sink.pairs());
        for r in &ranges {
            let r = r.start as usize..r.end as usize;
            assert!(got[r.clone()] == data[r], "{ranges:?}");
        }
        for (i, pair) in tree.chunks(64).enumerate() {
            assert!(pair == [0; 64] || pair == &right[i * 64..][..64], "pair {i} of {ranges:?}");
        }
        assert!(tree[..64] == right[..64], "the root is always there");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_ranges_than_one_request_takes() {
    let (host, _a, _b, peer) = pair().await;
    let size = 2 * 600 * GROUP;
    let data = bytes(size as usize, 5);
    let hash = host.holds(&data);
    let ranges: Vec<_> = (0..600).map(|i| 2 * i * GROUP..(2 * i + 1) * GROUP).collect();
    let sink = Collected::of(size);
    let stats = peer.fetch(hash, size, &ranges, sink.clone()).await.unwrap();
    assert_eq!(stats.payload, 600 * GROUP);
    let got = sink.data();
    for r in ranges {
        let r = r.start as usize..r.end as usize;
        assert!(got[r.clone()] == data[r]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_requests_at_once_share_few_connections() {
    let (host, a, _b, peer) = pair().await;
    let size = 8u64 << 20;
    let data = bytes(size as usize, 6);
    let hash = host.holds(&data);
    let sink = Collected::of(size);
    let parts: Vec<_> = (0..16).map(|i| i * size / 16..(i + 1) * size / 16).collect();
    let running = parts.iter().map(|r| {
        let (peer, sink) = (peer.clone(), sink.clone());
        async move { peer.fetch(hash, size, std::slice::from_ref(r), sink).await }
    });
    let results = futures_util::future::join_all(running).await;
    assert!(results.into_iter().all(|r| r.is_ok()));
    assert!(sink.data() == data);
    let connections = a.connections(site(2));
    assert!((2..=4).contains(&connections), "{connections} connections");
}

#[tokio::test(flavor = "multi_thread")]
async fn small_blobs_come_together() {
    let (host, _a, _b, peer) = pair().await;
    let datas: Vec<Vec<u8>> = (0..700).map(|i| bytes(i * 37 % 40_000, i as u64)).collect();
    let mut wanted: Vec<(BlobHash, u64)> = datas.iter().map(|d| (BlobHash::of(d), d.len() as u64)).collect();
    for (i, data) in datas.iter().enumerate() {
        if i % 100 != 3 {
            host.holds(data);
        }
    }
    // The same blob twice is answered twice.
    wanted.push(wanted[1]);
    let mut got = Vec::new();
    let mut each = |hash: BlobHash, bytes: Option<Bytes>| got.push((hash, bytes));
    let stats = peer.fetch_many(&wanted, &mut each).await.unwrap();
    assert_eq!(got.len(), wanted.len());
    let mut payload = 0;
    // In no order that is promised: what lies behind a missing one is asked for again.
    let place = |hash: &BlobHash| wanted.iter().position(|w| w.0 == *hash).unwrap();
    got.sort_by_key(|(hash, _)| place(hash));
    got[1..].sort_by_key(|(hash, _)| if *hash == wanted[1].0 { 0 } else { place(hash) });
    let again = got.remove(2);
    got.push(again);
    for (i, (hash, bytes)) in got.into_iter().enumerate() {
        assert_eq!(hash, wanted[i].0);
        let missing = i < 700 && i % 100 == 3;
        assert_eq!(bytes.is_none(), missing, "blob {i}");
        if let Some(bytes) = bytes {
            payload += bytes.len() as u64;
            assert_eq!(bytes, datas[i % 700 + i / 700]);
        }
    }
    assert_eq!(stats.payload, payload);
    let opened = host.opened.lock().unwrap().len();
    assert!(opened < 710, "blobs are not asked for twice: {opened}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_space_that_was_not_granted_gives_nothing_by_any_request() {
    let (host, _a, _b, peer) = pair().await;
    let (open, secret) = (bytes(50_000, 7), bytes(50_000, 8));
    let open_hash = host.holds_for(&open, &[site(2)]);
    let secret_hash = host.holds_for(&secret, &[site(3)]);
    let absent = BlobHash::of(b"nobody has this");

    for hash in [secret_hash, absent] {
        let e = peer.fetch_small(hash, 1 << 20).await.unwrap_err();
        assert!(matches!(e, FetchError::NotThere { .. }), "refused looks like absent: {e}");
        let (sink, result) = fetch_whole(&peer, hash, 50_000).await;
        assert!(matches!(result, Err(FetchError::NotThere { .. })));
        assert_eq!(sink.received(), 0);
    }
    let mut got = Vec::new();
    let wanted = [(open_hash, 50_000), (secret_hash, 50_000), (absent, 50_000), (open_hash, 50_000)];
    peer.fetch_many(&wanted, &mut |_, bytes| got.push(bytes.is_some())).await.unwrap();
    assert_eq!(got, [true, false, false, true]);
    assert!(!host.opened.lock().unwrap().contains(&secret_hash));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_on_the_disk_never_arrives() {
    let (host, _a, _b, peer) = pair().await;
    let size = 3 << 20;
    let data = bytes(size, 9);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    std::fs::write(&path, &data).unwrap();
    let hash = host.holds_file(&data, path.clone());
    let (sink, result) = fetch_whole(&peer, hash, size as u64).await;
    result.unwrap();
    assert!(sink.data() == data);

    let at = (2 << 20) + 12_345;
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(&[data[at] ^ 0x10]).unwrap();
    let (sink, result) = fetch_whole(&peer, hash, size as u64).await;
    let e = result.unwrap_err();
    assert!(matches!(e, FetchError::Broken { .. }) && e.is_retryable() && !e.is_corrupt(), "{e}");
    let got = sink.data();
    let group = at / GROUP as usize * GROUP as usize;
    assert!(got[group..group + GROUP as usize].iter().all(|b| *b == 0), "the damaged group stays away");
    assert!(got.iter().zip(&data).all(|(g, d)| g == d || *g == 0), "what came is right");
    assert_eq!(host.damaged(), [hash]);

    // Groups that are whole are still served.
    let sink = Collected::of(size as u64);
    peer.fetch(hash, size as u64, std::slice::from_ref(&(0..1 << 20)), sink.clone()).await.unwrap();
    assert!(sink.data()[..1 << 20] == data[..1 << 20]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_cut_short_and_a_wrong_tree_are_damage() {
    let (host, _a, _b, peer) = pair().await;
    let data = bytes(100_000, 10);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    std::fs::write(&path, &data[..60_000]).unwrap();
    let cut = host.holds_file(&data, path);
    let (_, result) = fetch_whole(&peer, cut, 100_000).await;
    assert!(matches!(result, Err(FetchError::Broken { .. })));

    let other = bytes(100_000, 11);
    let mut tree = outboard(&other);
    tree[64 * 3] ^= 1;
    let wrong = host.holds_badly(&other, tree);
    let (_, result) = fetch_whole(&peer, wrong, 100_000).await;
    assert!(matches!(result, Err(FetchError::Broken { .. })));

    // Up to one block no tree is stored, and an empty one is right.
    let third = bytes(140_000, 12);
    let none = host.holds_badly(&third, vec![]);
    let (_, result) = fetch_whole(&peer, none, 140_000).await;
    assert!(matches!(result, Err(FetchError::Broken { .. })));
    assert_eq!(host.damaged(), [cut, wrong, none]);
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_that_make_no_sense_are_not_asked_for() {
    let (host, _a, _b, peer) = pair().await;
    let data = bytes(100_000, 13);
    let hash = host.holds(&data);
    for bad in [1..GROUP, 0..100, 0..200_000, GROUP..GROUP] {
        let sink = Collected::of(100_000);
        let e = peer.fetch(hash, 100_000, std::slice::from_ref(&bad), sink).await.unwrap_err();
        assert!(matches!(e, FetchError::BadRange { .. }), "{bad:?}: {e}");
    }
    assert!(host.opened.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_our_fault_and_named() {
    let (host, _a, _b, peer) = pair().await;
    let data = bytes(5 << 20, 14);
    let hash = host.holds(&data);
    let sink = Collected::full(5 << 20, 1 << 20);
    let e = peer.fetch(hash, 5 << 20, &whole(5 << 20), sink).await.unwrap_err();
    assert!(matches!(&e, FetchError::Sink { source, .. } if source.kind() == std::io::ErrorKind::StorageFull), "{e}");
    assert!(!e.is_fault_of_peer() && !e.is_retryable());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_stops_ends_its_transfers() {
    let (host, a, _b, peer) = pair().await;
    let data = bytes(64 << 20, 15);
    let hash = host.holds(&data);
    let sink = Collected::of(64 << 20);
    let running = {
        let (peer, sink) = (peer.clone(), sink.clone());
        tokio::spawn(async move { peer.fetch(hash, 64 << 20, &whole(64 << 20), sink).await })
    };
    while sink.received() == 0 {
        tokio::task::yield_now().await;
    }
    a.close().await;
    let e = running.await.unwrap().unwrap_err();
    assert!(matches!(&e, FetchError::Lane(LaneError::Lost { .. })) && e.is_retryable(), "{e}");
    assert!(sink.received() > 0);
}
