//! The tls lane between real endpoints on loopback: what it carries, whom it lets in, how quic takes over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sluice_daemon::lanes::{Caps, FetchError, LaneError, Peer, QuicConfig, QuicLane};
use sluice_protocol::ids::BlobHash;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::double::{Collected, Double, GROUP, bytes, config, lane, loopback, outboard, serving, site};

const MIB: u64 = 1 << 20;

fn tls_of(lane: &QuicLane) -> Vec<SocketAddr> {
    lane.tls_addresses().into_iter().filter(|a| a.ip().is_loopback()).collect()
}

/// Site 2's handle to a lane, tls included.
fn peer_of(from: &QuicLane, to: &QuicLane) -> Peer {
    from.peer_with_tls(to.site(), &loopback(to), &tls_of(to))
}

async fn fetch(peer: &Peer, hash: BlobHash, size: u64) -> (Arc<Collected>, Result<(u64, u64), FetchError>) {
    let sink = Collected::of(size);
    let whole: Vec<_> = std::iter::once(0..size).collect();
    let result = peer.fetch(hash, size, &whole, sink.clone()).await;
    (sink, result.map(|stats| (stats.payload, stats.over_tls)))
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_data_takes_tls_and_few_connections() {
    let host = Double::knowing(&[site(2)]);
    let a = serving(1, host.clone()).await;
    let b = lane(2).await;
    let peer = peer_of(&b, &a);
    for (i, size) in [1, GROUP - 1, GROUP, 3 * GROUP + 7, MIB, 20 * MIB].into_iter().enumerate() {
        let data = bytes(size as usize, i as u64);
        let hash = host.holds(&data);
        let (sink, moved) = fetch(&peer, hash, size).await;
        assert_eq!(moved.unwrap(), (size, size), "{size} bytes");
        assert!(sink.data() == data && sink.pairs() == outboard(&data), "{size} bytes");
    }
    assert_eq!(a.connections(site(2)), 1, "one exchange after another shares one connection");
    let many: Vec<_> = (0..24)
        .map(|i| {
            let data = bytes(2 << 20, 100 + i);
            let (hash, peer) = (host.holds(&data), peer.clone());
            tokio::spawn(async move {
                let (sink, moved) = fetch(&peer, hash, 2 * MIB).await;
                assert_eq!(moved.unwrap(), (2 * MIB, 2 * MIB));
                assert!(sink.data() == data);
            })
        })
        .collect();
    for one in many {
        one.await.unwrap();
    }
    let connections = a.connections(site(2));
    assert!(connections <= 4, "{connections} connections for 24 requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_setting_closes_the_lane_at_either_end() {
    let host = Double::knowing(&[site(2)]);
    let data = bytes(1 << 20, 1);
    let hash = host.holds(&data);
    let closed = |n| async move { QuicLane::bind(QuicConfig { tls: false, ..config(n) }).await.unwrap() };
    let a = closed(1).await;
    a.serve(host.clone()).unwrap();
    assert!(a.tls_addresses().is_empty());
    let b = lane(2).await;
    assert_eq!(fetch(&peer_of(&b, &a), hash, MIB).await.1.unwrap(), (MIB, 0));

    let (a, b) = (serving(3, host.clone()).await, closed(2).await);
    assert_eq!(fetch(&peer_of(&b, &a), hash, MIB).await.1.unwrap(), (MIB, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_nothing_over_tls() {
    let host = Double::knowing(&[]);
    let hash = host.holds(&bytes(1 << 20, 1));
    let a = serving(1, host.clone()).await;
    let b = lane(2).await;
    let e = fetch(&peer_of(&b, &a), hash, MIB).await.1.unwrap_err();
    assert!(matches!(e, FetchError::Lane(LaneError::NotPaired { .. })), "{e}");
    assert!(host.opened.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_for_others_is_not_there_and_the_connection_goes_on() {
    let host = Double::knowing(&[site(2), site(3)]);
    let (theirs, ours) = (bytes(1 << 20, 1), bytes(1 << 20, 2));
    let (secret, hash) = (host.holds_for(&theirs, &[site(3)]), host.holds(&ours));
    let a = serving(1, host.clone()).await;
    let b = lane(2).await;
    let peer = peer_of(&b, &a);
    let e = fetch(&peer, secret, MIB).await.1.unwrap_err();
    assert!(matches!(e, FetchError::NotThere { lane: "tls", .. }), "{e}");
    assert_eq!(fetch(&peer, hash, MIB).await.1.unwrap(), (MIB, MIB));
}

#[tokio::test(flavor = "multi_thread")]
async fn access_taken_back_ends_a_transfer_at_once() {
    let host = Double::knowing(&[site(2)]);
    let data = bytes(64 << 20, 3);
    let hash = host.holds(&data);
    let a = serving(1, host.clone()).await;
    let b = lane(2).await;
    let peer = peer_of(&b, &a);
    let sink = Collected::of(64 * MIB);
    let running = {
        let (peer, sink) = (peer.clone(), sink.clone());
        let whole: Vec<_> = std::iter::once(0..64 * MIB).collect();
        tokio::spawn(async move { peer.fetch(hash, 64 * MIB, &whole, sink).await })
    };
    while sink.received() == 0 {
        tokio::task::yield_now().await;
    }
    host.forget(site(2));
    a.disconnect(site(2));
    // Quic is asked next, and refuses.
    let e = running.await.unwrap().unwrap_err();
    assert!(matches!(e, FetchError::Lane(LaneError::NotPaired { .. })), "{e}");
    assert!(sink.received() < 64 * MIB);
    assert_eq!(a.connections(site(2)), 0);
}

/// Passes TCP on to `to`, and cuts each connection after `bytes` towards the one who dialled.
async fn cutting(to: SocketAddr, bytes: u64) -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, cuts) = (listener.local_addr().unwrap(), Arc::new(AtomicU64::new(0)));
    let counted = cuts.clone();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let cuts = counted.clone();
            tokio::spawn(async move {
                let far = TcpStream::connect(to).await.unwrap();
                let ((mut near_read, mut near_write), (far_read, mut far_write)) =
                    (near.into_split(), far.into_split());
                let up = tokio::spawn(async move { tokio::io::copy(&mut near_read, &mut far_write).await });
                let _ = tokio::io::copy(&mut far_read.take(bytes), &mut near_write).await;
                cuts.fetch_add(1, Ordering::SeqCst);
                up.abort();
            });
        }
    });
    (address, cuts)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_is_cut_goes_on_over_quic_with_what_is_missing() {
    let host = Double::knowing(&[site(2)]);
    let data = bytes(16 << 20, 5);
    let hash = host.holds(&data);
    let a = serving(1, host.clone()).await;
    let b = lane(2).await;
    let (address, cuts) = cutting(tls_of(&a)[0], 5 << 20).await;
    let peer = b.peer_with_tls(a.site(), &loopback(&a), &[address]);
    let (sink, moved) = fetch(&peer, hash, 16 * MIB).await;
    let (payload, over_tls) = moved.unwrap();
    assert!(sink.data() == data && sink.pairs() == outboard(&data));
    assert_eq!(cuts.load(Ordering::SeqCst), 1);
    assert!(over_tls > 4 * MIB && over_tls < 5 * MIB, "{over_tls} bytes came over tls before the cut");
    assert!(payload <= 16 * MIB + GROUP, "{payload} bytes: what had come was asked for again");
    // The lane failed: it is left alone for a while.
    assert_eq!(fetch(&peer, hash, 16 * MIB).await.1.unwrap(), (16 * MIB, 0));
    assert_eq!(cuts.load(Ordering::SeqCst), 1);
}

/// Passes TCP on to `to`, but takes its time before it begins.
async fn late(to: SocketAddr, by: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                tokio::time::sleep(by).await;
                let mut far = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn what_quic_began_moves_over_when_tls_comes_up() {
    let host = Double::knowing(&[site(2)]);
    let data = bytes(8 << 20, 7);
    let hash = host.holds(&data);
    // Two megabytes a second, so that quic is far from done by then.
    let caps = Caps { mbps_per_peer: 16, ..Caps::default() };
    let a = QuicLane::bind(QuicConfig { caps, ..config(1) }).await.unwrap();
    a.serve(host.clone()).unwrap();
    let b = lane(2).await;
    let address = late(tls_of(&a)[0], Duration::from_secs(2)).await;
    let peer = b.peer_with_tls(a.site(), &loopback(&a), &[address]);
    let (sink, moved) = fetch(&peer, hash, 8 * MIB).await;
    let (payload, over_tls) = moved.unwrap();
    assert!(sink.data() == data && sink.pairs() == outboard(&data));
    assert!(over_tls > MIB && over_tls < 8 * MIB, "{over_tls} bytes came over tls");
    assert!(payload < 9 * MIB, "{payload} bytes: what had come was asked for again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_takes_nothing_or_says_nothing_costs_a_moment() {
    let host = Double::knowing(&[site(2)]);
    let data = bytes(1 << 20, 5);
    let hash = host.holds(&data);
    let a = serving(1, host.clone()).await;
    let b = lane(2).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for address in [free, silent.local_addr().unwrap()] {
        let peer = b.peer_with_tls(a.site(), &loopback(&a), &[address]);
        let within = tokio::time::timeout(Duration::from_secs(5), fetch(&peer, hash, MIB)).await;
        assert_eq!(within.expect("quic does not wait").1.unwrap(), (MIB, 0), "{address}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_site_at_the_port_is_not_taken_for_the_peer() {
    let (host, other) = (Double::knowing(&[site(2)]), Double::knowing(&[site(2)]));
    let data = bytes(1 << 20, 6);
    let hash = host.holds(&data);
    other.holds(&data);
    let (a, c) = (serving(1, host).await, serving(3, other.clone()).await);
    let b = lane(2).await;
    let peer = b.peer_with_tls(a.site(), &loopback(&a), &tls_of(&c));
    assert_eq!(fetch(&peer, hash, MIB).await.1.unwrap(), (MIB, 0));
    assert!(other.opened.lock().unwrap().is_empty(), "the wrong site was asked for nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_at_the_source_is_not_the_lanes_fault() {
    let host = Double::knowing(&[site(2)]);
    let data = bytes(2 << 20, 7);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blob");
    let hash = host.holds_file(&data, path.clone());
    let mut rotten = data.clone();
    rotten[1 << 20] ^= 1;
    std::fs::write(&path, &rotten).unwrap();
    let a = serving(1, host.clone()).await;
    let b = lane(2).await;
    let peer = peer_of(&b, &a);
    let (sink, moved) = fetch(&peer, hash, 2 * MIB).await;
    let e = moved.unwrap_err();
    assert!(matches!(e, FetchError::Broken { .. }), "{e}");
    let got = sink.data();
    assert!(got.iter().zip(&data).all(|(g, d)| g == d || *g == 0), "what came is right");
    assert!(host.damaged().iter().all(|d| *d == hash) && !host.damaged().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_at_the_port_is_borne() {
    let host = Double::knowing(&[site(2)]);
    let data = bytes(1 << 20, 8);
    let hash = host.holds(&data);
    let a = serving(1, host.clone()).await;
    let address = tls_of(&a)[0];
    let mut idle = Vec::new();
    for wire in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 255, 255], &[0; 4096], b""] {
        let mut noise = TcpStream::connect(address).await.unwrap();
        noise.write_all(wire).await.unwrap();
        idle.push(noise);
    }
    // More than one address may hold open at once.
    for _ in 0..40 {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    let b = lane(2).await;
    // By tls if there is room, by quic if not: it comes.
    let (sink, moved) = fetch(&peer_of(&b, &a), hash, MIB).await;
    moved.unwrap();
    assert!(sink.data() == data);
    drop(idle);
}
