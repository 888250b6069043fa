//! Who gets in, and how far.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use sluice_daemon::lanes::{FetchError, LaneError, QuicConfig, QuicLane, limits};
use sluice_protocol::codec::Bytes as Field;
use sluice_protocol::ids::SpaceId;
use sluice_protocol::messages::{HeadsRequest, Message, PairRequest, REFUSED_MESSAGE};

use crate::double::{Collected, Double, bytes, config, key, lane, loopback, serving, site};

fn heads() -> Message {
    let space = SpaceId([5; 32]);
    Message::Heads(HeadsRequest {
        space,
        have_epoch: None,
        have_seq: None,
        card: None,
        held: None,
        unknown: Default::default(),
    })
}

fn pair_request() -> PairRequest {
    PairRequest { secret: [9; 16], space: SpaceId([5; 32]), card: Field(vec![1, 2]), unknown: Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_pairs_and_then_speaks() {
    let host = Double::knowing(&[]);
    let a = serving(1, host.clone()).await;
    let b = lane(2).await;
    let peer = b.peer(a.site(), &loopback(&a));

    let refused = peer.message(&heads()).await.unwrap_err();
    assert!(matches!(refused, LaneError::NotPaired { .. }) && !refused.is_retryable(), "{refused}");
    assert!(host.heard.lock().unwrap().is_empty(), "no message of a stranger is heard");

    assert_eq!(peer.pair(pair_request()).await.unwrap(), Message::Done);
    assert_eq!(peer.message(&heads()).await.unwrap(), Message::Done);
    let heard = host.heard.lock().unwrap().clone();
    assert_eq!(heard, vec![(site(2), false, Message::Pair(pair_request())), (site(2), true, heads())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_no_blob() {
    let host = Double::knowing(&[]);
    let hash = host.holds(&bytes(100, 1));
    let a = serving(1, host.clone()).await;
    let b = lane(2).await;
    let peer = b.peer(a.site(), &loopback(&a));
    let e = peer.fetch_small(hash, 1000).await.unwrap_err();
    assert!(matches!(e, FetchError::Lane(LaneError::NotPaired { .. })), "{e}");
    assert!(host.opened.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_hears_nothing_but_pairing() {
    let host = Double::knowing(&[]);
    let a = serving(1, host.clone()).await;
    let stranger = crate::hostile::endpoint(7).await;
    let connection = crate::hostile::connect(&stranger, &a, sluice_protocol::messages::ALPN_PAIR).await;
    let ask = |wire: Vec<u8>, patience: u64| {
        let connection = connection.clone();
        async move {
            let (mut send, mut recv) = connection.open_bi().await.unwrap();
            send.write_all(&wire).await.unwrap();
            send.finish().unwrap();
            sluice_daemon::lanes::message::read(&mut recv, Duration::from_millis(patience)).await
        }
    };
    let mut wire = Vec::new();
    sluice_daemon::lanes::message::write(&mut wire, &heads(), Duration::from_secs(1)).await.unwrap();
    let refused = |m: Message| matches!(m, Message::Refused(r) if r.code == REFUSED_MESSAGE);
    assert!(refused(ask(wire.clone(), 5000).await.unwrap()), "another message");
    assert!(refused(ask(vec![255; 4], 5000).await.unwrap()), "a length beyond the limit");
    assert!(refused(ask(vec![2, 0, 0, 0, 1, 1], 5000).await.unwrap()), "garbage");
    assert!(ask(vec![200, 0, 0, 0, 1], 5000).await.is_err(), "a message that is cut off");
    assert!(ask(wire, 200).await.is_err(), "four messages are enough");
    assert!(host.heard.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_takes_few_at_once() {
    let a = serving(1, Double::knowing(&[])).await;
    let stranger = crate::hostile::endpoint(7).await;
    let mut standing = Vec::new();
    for _ in 0..limits::DOOR_CONNECTIONS_PER_ADDRESS_MAX {
        standing.push(crate::hostile::connect(&stranger, &a, sluice_protocol::messages::ALPN_PAIR).await);
    }
    let b = lane(2).await;
    // By the same family as the stranger: places are counted by address.
    let addresses: Vec<_> = loopback(&a).into_iter().filter(SocketAddr::is_ipv4).collect();
    let peer = b.peer(a.site(), &addresses);
    // Places are taken when the other side has seen the handshake, so the last may still be on its way.
    let until = Instant::now() + Duration::from_secs(5);
    let e = loop {
        match peer.pair(pair_request()).await {
            Err(e) => break e,
            Ok(_) => assert!(Instant::now() < until, "the door never filled"),
        }
    };
    assert!(matches!(e, LaneError::Busy { .. }) && e.is_retryable(), "{e}");
    drop(standing);
}

#[tokio::test(flavor = "multi_thread")]
async fn access_taken_back_ends_at_once() {
    let host = Double::knowing(&[site(2)]);
    let data = bytes(64 * 1024 * 1024, 3);
    let hash = host.holds(&data);
    let a = serving(1, host.clone()).await;
    let b = lane(2).await;
    let peer = b.connect(a.site(), &loopback(&a)).await.unwrap();
    assert_eq!(peer.message(&heads()).await.unwrap(), Message::Done);

    let sink = Collected::of(data.len() as u64);
    let running = {
        let (peer, sink) = (peer.clone(), sink.clone());
        let whole = std::iter::once(0..data.len() as u64).collect::<Vec<_>>();
        tokio::spawn(async move { peer.fetch(hash, whole[0].end, &whole, sink).await })
    };
    while sink.received() == 0 {
        tokio::task::yield_now().await;
    }
    host.forget(site(2));
    a.disconnect(site(2));
    let e = running.await.unwrap().unwrap_err();
    assert!(matches!(e, FetchError::Lane(LaneError::NotPaired { .. })), "{e}");
    assert_eq!(a.connections(site(2)), 0);
    let e = peer.message(&heads()).await.unwrap_err();
    assert!(matches!(e, LaneError::NotPaired { .. }), "{e}");
    assert!(peer.fetch_small(hash, u64::MAX).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_connection_is_asked_again_for_each_stream() {
    let host = Double::knowing(&[site(2)]);
    let hash = host.holds(b"acme");
    let a = serving(1, host.clone()).await;
    let b = lane(2).await;
    let peer = b.peer(a.site(), &loopback(&a));
    assert_eq!(&peer.fetch_small(hash, 10).await.unwrap()[..], b"acme");
    host.forget(site(2));
    let e = peer.fetch_small(hash, 10).await.unwrap_err();
    assert!(matches!(e, FetchError::Lane(LaneError::NotPaired { .. })), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_site_has_few_connections() {
    let host = Double::knowing(&[site(7)]);
    let a = serving(1, host).await;
    let greedy = crate::hostile::endpoint(7).await;
    let mut open = Vec::new();
    for _ in 0..=limits::CONNECTIONS_PER_SITE_MAX {
        open.push(crate::hostile::connect(&greedy, &a, sluice_protocol::messages::ALPN_BLOBS).await);
    }
    let mut ends: Vec<_> = open.iter().map(|c| Box::pin(c.closed())).collect();
    let (reason, which, _) =
        tokio::time::timeout(Duration::from_secs(5), futures_util::future::select_all(ends.iter_mut())).await.unwrap();
    assert!(reason.to_string().contains("too many"), "{reason}");
    // Handshakes that run side by side may end in another order than they began.
    assert!(which < 8, "the newest is the one that a site that began again talks on; number {which} went");
    assert_eq!(a.connections(site(7)), limits::CONNECTIONS_PER_SITE_MAX);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_names_the_addresses() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let b = QuicLane::bind(QuicConfig { connect_timeout: Duration::from_millis(300), ..config(2) }).await.unwrap();
    let e = b.connect(site(1), &[address]).await.unwrap_err();
    assert!(matches!(e, LaneError::Unreachable { .. }) && e.is_retryable(), "{e}");
    assert!(e.to_string().contains(&address.to_string()), "{e}");
    let e = b.connect(site(1), &[]).await.unwrap_err();
    assert!(matches!(e, LaneError::NoAddress { .. }), "{e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_site_at_the_address_is_not_taken_for_the_peer() {
    let host = Double::knowing(&[site(2)]);
    let other = serving(3, host.clone()).await;
    let b = lane(2).await;
    let e = b.connect(site(1), &loopback(&other)).await.unwrap_err();
    assert!(matches!(e, LaneError::Unreachable { .. }), "{e}");
    assert!(host.heard.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named() {
    let first = lane(1).await;
    let second = QuicLane::bind(QuicConfig { port: first.port(), ..config(2) }).await;
    let e = second.err().expect("the port is taken");
    assert!(matches!(e, LaneError::PortInUse { port } if port == first.port()), "{e}");
    assert!(e.to_string().contains(&first.port().to_string()));
    let port = first.port();
    first.close().await;
    let again = QuicLane::bind(QuicConfig { port, ..config(2) }).await.expect("closing frees the port");
    assert_eq!(again.port(), port);
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_what_a_ticket_needs() {
    let given = "192.0.2.9:7711".parse().unwrap();
    let a = QuicLane::bind(QuicConfig { addresses: vec![given], ..config(1) }).await.unwrap();
    let found = a.local_addresses();
    assert_eq!(found[0], given, "what was configured comes first: {found:?}");
    assert!(found.iter().all(|x| x.port() != 0 && !x.ip().is_unspecified()), "{found:?}");
    assert!(found.last().unwrap().ip().is_loopback(), "{found:?}");
    let quiet = QuicLane::bind(QuicConfig { loopback: false, ..QuicConfig::new(key(2)) }).await.unwrap();
    let found = quiet.local_addresses();
    assert!(!found.is_empty());
    let plain = found.iter().filter(|x| !x.ip().is_loopback()).count();
    assert!(plain == 0 || plain == found.len(), "loopback only when there is nothing else: {found:?}");
}

/// What a ticket holds without loopback must do for another process of the same machine.
#[tokio::test(flavor = "multi_thread")]
async fn neighbours_on_one_machine_meet_without_loopback() {
    let host = Double::knowing(&[site(2)]);
    let a = QuicLane::bind(QuicConfig { loopback: false, ..config(1) }).await.unwrap();
    a.serve(host).unwrap();
    let b = lane(2).await;
    let peer = b.connect(a.site(), &a.local_addresses()).await.unwrap();
    assert_eq!(peer.message(&heads()).await.unwrap(), Message::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_restarts_is_found_again() {
    let host = Double::knowing(&[site(2)]);
    let hash = host.holds(b"acme");
    let a = serving(1, host.clone()).await;
    let b = lane(2).await;
    let peer = b.connect(a.site(), &loopback(&a)).await.unwrap();
    assert_eq!(peer.message(&heads()).await.unwrap(), Message::Done);
    assert_eq!(&peer.fetch_small(hash, 10).await.unwrap()[..], b"acme");
    let port = a.port();
    a.close().await;
    let again = QuicLane::bind(QuicConfig { port, ..config(1) }).await.unwrap();
    again.serve(host).unwrap();
    assert_eq!(peer.message(&heads()).await.unwrap(), Message::Done);
    assert_eq!(&peer.fetch_small(hash, 10).await.unwrap()[..], b"acme");
    assert!(matches!(again.serve(Double::knowing(&[])), Err(LaneError::AlreadyServing)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_lane_is_gone_and_a_closed_one_says_so() {
    let host = Double::knowing(&[site(2)]);
    let a = serving(1, host.clone()).await;
    let short = Duration::from_millis(500);
    let b = QuicLane::bind(QuicConfig { connect_timeout: short, answer_timeout: short, ..config(2) }).await.unwrap();
    let peer = b.connect(a.site(), &loopback(&a)).await.unwrap();
    assert_eq!(peer.message(&heads()).await.unwrap(), Message::Done);
    drop(a);
    let e = peer.message(&heads()).await.unwrap_err();
    assert!(e.is_retryable(), "{e}");
    b.close().await;
    b.close().await;
    let e = peer.message(&heads()).await.unwrap_err();
    assert!(matches!(e, LaneError::Closed | LaneError::Lost { .. }), "{e}");
    assert!(b.local_addresses().is_empty());
    assert!(matches!(b.serve(host), Err(LaneError::Closed)));
}
