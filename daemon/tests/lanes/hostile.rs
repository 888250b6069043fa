//! Peers that lie, stall, flood or ask for what they must not have, written by hand on the stream.

use std::future::Future;
use std::time::Duration;

use bao_tree::{ChunkNum, ChunkRanges};
use iroh::endpoint::{Connection, PortmapperConfig, SendStream, presets};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, SecretKey, TransportAddr};
use sluice_daemon::lanes::{FetchError, LaneError, Peer, QuicConfig, QuicLane};
use sluice_protocol::ids::BlobHash;
use sluice_protocol::messages::ALPN_BLOBS;

use crate::double::{Collected, Double, GROUP, bytes, config, encoded, loopback, serving, site};

/// An iroh endpoint that is not ours.
pub async fn endpoint(n: u8) -> Endpoint {
    Endpoint::builder(presets::Minimal)
        .secret_key(SecretKey::from_bytes(&[n; 32]))
        .relay_mode(RelayMode::Disabled)
        .portmapper_config(PortmapperConfig::Disabled)
        .alpns(vec![ALPN_BLOBS.to_vec()])
        .clear_ip_transports()
        .bind_addr("127.0.0.1:0")
        .unwrap()
        .bind()
        .await
        .unwrap()
}

/// A connection from it to one of our lanes.
pub async fn connect(from: &Endpoint, to: &QuicLane, alpn: &[u8]) -> Connection {
    let id = EndpointId::from_bytes(&to.site().0).unwrap();
    let address = EndpointAddr::from_parts(id, loopback(to).into_iter().map(TransportAddr::Ip));
    from.connect(address, alpn).await.unwrap()
}

/// A server that answers each request for a blob with `script`, and a lane that fetches from it.
async fn liar<F, T>(stall: Duration, script: F) -> (Endpoint, QuicLane, Peer)
where
    F: Fn(SendStream) -> T + Send + Sync + Clone + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let server = endpoint(9).await;
    let address = server.bound_sockets();
    let accepting = server.clone();
    tokio::spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            let script = script.clone();
            tokio::spawn(async move {
                let Ok(connection) = incoming.await else { return };
                while let Ok((send, mut recv)) = connection.accept_bi().await {
                    let script = script.clone();
                    tokio::spawn(async move {
                        let _ = recv.read_to_end(1 << 20).await;
                        script(send).await;
                    });
                }
            });
        }
    });
    let lane = QuicLane::bind(QuicConfig { fetch_stall: stall, ..config(2) }).await.unwrap();
    let peer = lane.peer(site(9), &address);
    (server, lane, peer)
}

const PATIENT: Duration = Duration::from_secs(10);

/// A server that always sends these bytes.
async fn sends(wire: Vec<u8>) -> (Endpoint, QuicLane, Peer) {
    let wire = bytes::Bytes::from(wire);
    liar(PATIENT, move |mut send: SendStream| {
        let wire = wire.clone();
        async move {
            let _ = send.write_all(&wire).await;
            let _ = send.finish();
        }
    })
    .await
}

async fn fetch(peer: &Peer, hash: BlobHash, size: u64) -> (Vec<u8>, FetchError) {
    let sink = Collected::of(size);
    let e = peer.fetch(hash, size, std::slice::from_ref(&(0..size)), sink.clone()).await.unwrap_err();
    (sink.data(), e)
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_anywhere_are_corrupt_and_stay_out() {
    let data = bytes(100_000, 1);
    let right = encoded(&data, &ChunkRanges::all());
    let hash = BlobHash::of(&data);
    for at in [8, 8 + 63, 8 + 64 * 3, 20_000, right.len() - 1] {
        let mut wire = right.clone();
        wire[at] ^= 1;
        let (_server, _lane, peer) = sends(wire).await;
        let (got, e) = fetch(&peer, hash, data.len() as u64).await;
        assert!(matches!(e, FetchError::Corrupt { .. }) && e.is_corrupt(), "byte {at}: {e}");
        assert!(e.to_string().contains(&hash.to_string()) && e.to_string().contains(&site(9).short()), "{e}");
        assert!(got.iter().zip(&data).all(|(g, d)| g == d || *g == 0), "byte {at}");
        let e = peer.fetch_small(hash, 1 << 20).await.unwrap_err();
        assert!(e.is_corrupt(), "byte {at}: {e}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_blob_is_corrupt() {
    let data = bytes(100_000, 1);
    let (_server, _lane, peer) = sends(encoded(&data, &ChunkRanges::all())).await;
    let (got, e) = fetch(&peer, BlobHash::of(b"acme"), 100_000).await;
    assert!(e.is_corrupt(), "{e}");
    assert!(got.iter().all(|b| *b == 0));
    let mut seen = 0;
    let wanted = [(BlobHash::of(&bytes(100_000, 2)), 100_000)];
    let e = peer.fetch_many(&wanted, &mut |_, _| seen += 1).await.unwrap_err();
    assert!(e.is_corrupt() && seen == 0, "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_size_is_not_believed() {
    let data = bytes(100_000, 1);
    let hash = BlobHash::of(&data);
    for claim in [0, 1, 99_999, 100_001, 1 << 40, u64::MAX - 1, u64::MAX] {
        let mut wire = encoded(&data, &ChunkRanges::all());
        wire[..8].copy_from_slice(&u64::to_le_bytes(claim));
        let (_server, _lane, peer) = sends(wire).await;
        let (got, e) = fetch(&peer, hash, 100_000).await;
        assert!(matches!(e, FetchError::WrongSize { claimed, expected: 100_000, .. } if claimed == claim), "{e}");
        assert!(e.is_corrupt() && got.iter().all(|b| *b == 0));
        let e = peer.fetch_small(hash, 1 << 20).await.unwrap_err();
        if claim > 1 << 20 {
            assert!(matches!(e, FetchError::TooLarge { .. }), "{claim}: {e}");
        } else {
            assert!(e.is_corrupt() || matches!(e, FetchError::Broken { .. }), "{claim}: {e}");
        }
    }
}

/// Every end of a range is proved by the tree, so a size that only the last group would disprove
/// is found by comparing it with the expected one.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_size_far_from_the_range_is_found() {
    let data = bytes(64 * GROUP as usize, 1);
    let first = ChunkRanges::from(ChunkNum(0)..ChunkNum(16));
    let mut wire = encoded(&data, &first);
    wire[..8].copy_from_slice(&(64 * GROUP - 5).to_le_bytes());
    let (_server, _lane, peer) = sends(wire).await;
    let sink = Collected::of(64 * GROUP);
    let e = peer.fetch(BlobHash::of(&data), 64 * GROUP, std::slice::from_ref(&(0..GROUP)), sink).await.unwrap_err();
    assert!(matches!(e, FetchError::WrongSize { .. }), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_ends_early_is_broken_off() {
    let data = bytes(100_000, 1);
    let right = encoded(&data, &ChunkRanges::all());
    for end in [8, 8 + 30, 8 + 64, 50_000, right.len() - 1] {
        let (_server, _lane, peer) = sends(right[..end].to_vec()).await;
        let (got, e) = fetch(&peer, BlobHash::of(&data), 100_000).await;
        assert!(matches!(e, FetchError::Broken { .. }) && e.is_retryable(), "cut at {end}: {e}");
        assert!(got.iter().zip(&data).all(|(g, d)| g == d || *g == 0));
    }
    for end in [0, 5] {
        let (_server, _lane, peer) = sends(right[..end].to_vec()).await;
        let (_, e) = fetch(&peer, BlobHash::of(&data), 100_000).await;
        assert!(matches!(e, FetchError::NotThere { .. } | FetchError::Broken { .. }), "cut at {end}: {e}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_data_is_not_read() {
    let data = bytes(100_000, 1);
    let right = bytes::Bytes::from(encoded(&data, &ChunkRanges::all()));
    let (stopped, mut was_stopped) = tokio::sync::mpsc::unbounded_channel();
    let (_server, _lane, peer) = liar(PATIENT, move |mut send: SendStream| {
        let (right, stopped) = (right.clone(), stopped.clone());
        async move {
            let _ = send.write_all(&right).await;
            while send.write_all(&[7; 4096]).await.is_ok() {}
            let _ = stopped.send(());
        }
    })
    .await;
    let sink = Collected::of(100_000);
    peer.fetch(BlobHash::of(&data), 100_000, std::slice::from_ref(&(0..100_000)), sink.clone()).await.unwrap();
    assert!(sink.data() == data);
    assert_eq!(peer.fetch_small(BlobHash::of(&data), 100_000).await.unwrap(), data);
    for _ in 0..2 {
        tokio::time::timeout(PATIENT, was_stopped.recv()).await.expect("the flood is stopped").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_is_stalled_wherever_it_falls_silent() {
    let data = bytes(100_000, 1);
    let right = encoded(&data, &ChunkRanges::all());
    for end in [0, 8, 40, 60_000] {
        let start = bytes::Bytes::from(right[..end].to_vec());
        let (_server, _lane, peer) = liar(Duration::from_millis(200), move |mut send: SendStream| {
            let start = start.clone();
            async move {
                let _ = send.write_all(&start).await;
                std::future::pending::<()>().await;
            }
        })
        .await;
        let (_, e) = fetch(&peer, BlobHash::of(&data), 100_000).await;
        assert!(matches!(e, FetchError::Stalled { .. }) && e.is_retryable(), "after {end}: {e}");
        let e = peer.fetch_small(BlobHash::of(&data), 100_000).await.unwrap_err();
        assert!(matches!(e, FetchError::Stalled { .. }), "after {end}: {e}");
    }
}

/// A peer must bring a group of 16 KiB in the time in which it may be silent: a drip of bytes is no life.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_drips_is_stalled() {
    let data = bytes(100_000, 1);
    let right = bytes::Bytes::from(encoded(&data, &ChunkRanges::all()));
    let (_server, _lane, peer) = liar(Duration::from_millis(300), move |mut send: SendStream| {
        let right = right.clone();
        async move {
            for byte in right.chunks(1) {
                let _ = send.write_all(byte).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    })
    .await;
    let (_, e) = fetch(&peer, BlobHash::of(&data), 100_000).await;
    assert!(matches!(e, FetchError::Stalled { .. }) && e.is_retryable(), "{e}");
    let e = peer.fetch_small(BlobHash::of(&data), 100_000).await.unwrap_err();
    assert!(matches!(e, FetchError::Stalled { .. }), "{e}");
}

/// One request as it travels, and how our lane answered it: the bytes, or why there were none.
async fn ask(connection: &Connection, wire: &[u8]) -> Result<Vec<u8>, String> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| e.to_string())?;
    // A refusal may come before all is sent.
    let _ = send.write_all(wire).await;
    let _ = send.finish();
    let answer = tokio::time::timeout(PATIENT, recv.read_to_end(8 << 20)).await.expect("it answers in time");
    answer.map_err(|e| e.to_string())
}

fn get(hash: BlobHash, ranges: &[u8]) -> Vec<u8> {
    [&[0][..], &hash.0, ranges].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_is_never_read_as_a_list_of_hashes() {
    let host = Double::knowing(&[site(7)]);
    let secret = host.holds_for(b"the other tenant's row", &[site(3)]);
    let list = host.holds_for(&secret.0, &[site(7)]);
    let a = serving(1, host.clone()).await;
    let evil = endpoint(7).await;
    let connection = connect(&evil, &a, ALPN_BLOBS).await;
    // One entry of ranges that goes on for ever: the blob and all its children.
    let e = ask(&connection, &get(list, &[1, 0, 1, 0])).await.unwrap_err();
    assert!(e.contains("error 1"), "refused for want of permission: {e}");
    // Nothing of the root, all of the first child.
    let e = ask(&connection, &get(list, &[2, 1, 1, 0, 1, 0])).await.unwrap_err();
    assert!(e.contains("error 1"), "{e}");
    // The root and the first child.
    let e = ask(&connection, &get(list, &[2, 0, 1, 0, 2, 0])).await.unwrap_err();
    assert!(e.contains("error 1"), "{e}");
    assert!(host.opened.lock().unwrap().is_empty());
    // The blob itself is served.
    let bytes = ask(&connection, &get(list, &[2, 0, 1, 0, 1, 0])).await.unwrap();
    assert_eq!(bytes[8..], secret.0);
    // The secret, asked for by its own hash, is an answer that ends before it.
    assert_eq!(ask(&connection, &get(secret, &[2, 0, 1, 0, 1, 0])).await.unwrap(), b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_requests_are_refused() {
    let host = Double::knowing(&[site(7)]);
    let hash = host.holds(b"acme");
    let a = serving(1, host.clone()).await;
    let evil = endpoint(7).await;
    let connection = connect(&evil, &a, ALPN_BLOBS).await;
    let observe = [&[1][..], &hash.0, &[1, 0]].concat();
    let push = [&[8, 37][..], &hash.0, &[2, 0, 1, 0, 1, 0]].concat();
    for (what, wire) in [("observe", observe), ("push", push), ("a spare one", vec![4]), ("unknown", vec![77, 1])] {
        let e = ask(&connection, &wire).await.unwrap_err();
        assert!(e.contains("error 1"), "{what}: {e}");
    }
    for (what, wire) in [("nothing", vec![]), ("half a hash", vec![0, 1, 2]), ("no ranges", get(hash, &[0]))] {
        assert!(ask(&connection, &wire).await.is_err(), "{what}");
    }
    assert!(host.opened.lock().unwrap().is_empty());
    let peer = a.connections(site(7));
    assert_eq!(peer, 1, "the connection itself goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_bounded_before_they_are_decoded() {
    let host = Double::knowing(&[site(7)]);
    let hash = host.holds(b"acme");
    let a = serving(1, host.clone()).await;
    let evil = endpoint(7).await;
    let connection = connect(&evil, &a, ALPN_BLOBS).await;
    // Very many tiny ranges of one blob: a varint count, then that many widths of one.
    let flood = |n: u32| {
        let mut ranges = vec![2, 0];
        ranges.extend([(n & 0x7f | 0x80) as u8, (n >> 7 & 0x7f | 0x80) as u8, (n >> 14) as u8]);
        ranges.extend(vec![1; n as usize]);
        ranges.extend([1, 0]);
        ranges
    };
    let e = ask(&connection, &get(hash, &flood(900_000))).await.unwrap_err();
    assert!(e.contains("error 2"), "too long: {e}");
    let many = |n: usize, ranges: &[u8]| {
        let mut wire = vec![9, (n & 0x7f | 0x80) as u8, (n >> 7) as u8];
        wire.extend(hash.0.repeat(n));
        wire.extend_from_slice(ranges);
        wire
    };
    let all_of = |n: usize| vec![2, 0, 1, 0, (n & 0x7f | 0x80) as u8, (n >> 7) as u8, 0];
    let e = ask(&connection, &many(1025, &all_of(1025))).await.unwrap_err();
    assert!(e.contains("error 2"), "too many blobs: {e}");
    let e = ask(&connection, &many(1, &flood(20_000))).await.unwrap_err();
    assert!(e.contains("error 2"), "too many ranges: {e}");
    let mut lying = many(2, &all_of(2));
    lying[1] = 0xff;
    lying[2] = 7;
    let e = ask(&connection, &lying).await.unwrap_err();
    assert!(e.contains("error 2"), "more hashes are claimed than came: {e}");
    assert!(host.opened.lock().unwrap().is_empty());
    let answer = ask(&connection, &many(1024, &all_of(1024))).await.unwrap();
    assert_eq!(answer.len(), 1024 * 12, "as many as are allowed are served");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_takes_nothing_loses_its_stream() {
    let host = Double::knowing(&[site(7), site(2)]);
    let data = bytes(64 << 20, 5);
    let hash = host.holds(&data);
    let short = Duration::from_millis(300);
    let a = QuicLane::bind(QuicConfig { serve_stall: short, ..config(1) }).await.unwrap();
    a.serve(host.clone()).unwrap();
    let evil = endpoint(7).await;
    let connection = connect(&evil, &a, ALPN_BLOBS).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(&get(hash, &[2, 0, 1, 0, 1, 0])).await.unwrap();
    send.finish().unwrap();
    let reset = tokio::time::timeout(PATIENT, recv.received_reset()).await.expect("it is given up").unwrap();
    assert!(reset.is_some());
    assert!(host.served.load(std::sync::atomic::Ordering::Relaxed) < 32 << 20, "little was held for it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_refuses_everything_is_named() {
    let (_server, _lane, peer) = liar(PATIENT, |mut send: SendStream| async move {
        let _ = send.reset(1u32.into());
    })
    .await;
    let (_, e) = fetch(&peer, BlobHash::of(b"acme"), 4).await;
    assert!(matches!(e, FetchError::Refused { .. }) && !e.is_retryable(), "{e}");
    let (_server, _lane, peer) = liar(PATIENT, |mut send: SendStream| async move {
        let _ = send.reset(2u32.into());
    })
    .await;
    let (_, e) = fetch(&peer, BlobHash::of(b"acme"), 4).await;
    assert!(matches!(e, FetchError::Lane(LaneError::Busy { .. })) && e.is_retryable(), "{e}");
}
