//! Who gets what: strangers nothing, peers only what was granted, and nobody's own bytes are
//! lent to another owner's space.
//!
//! Every denial here stands beside the same request that succeeds with the right, so a site that
//! answers nobody does not pass.

use iroh_blobs::{ALPN, Hash};
use serde_json::Value;
use sluice_protocol::messages::ALPN_CONTROL;
use sluice_tests::outsider::{Door, Outsider, every_request};
use sluice_tests::{Site, World};

const SHARED: &[u8] = b"what acme may read, and nothing else; long enough to be a file of its own";
const SECRET: &[u8] = b"what another tenant keeps here, which no word of the first may ever bring out";

fn hash(bytes: &[u8]) -> Hash {
    Hash::new(bytes)
}

/// Whether any run of the secret's bytes is in an answer.
fn leaks(answer: &[u8]) -> bool {
    SECRET.windows(16).any(|run| answer.windows(16).any(|heard| heard == run))
}

/// An owner with two spaces, and a replica that was granted the first and is down now.
struct TwoTenants {
    owner: Site,
    replica: Site,
    door: Door,
}

impl TwoTenants {
    fn new(world: &World) -> Self {
        // A file that consists of the other space's hash: bait for a server that reads blobs as lists.
        let list = hash(SECRET);
        let first = world.plain_lake("first", &[("raw/shared.txt", SHARED), ("raw/list.bin", list.as_bytes())]);
        let second = world.plain_lake("second", &[("raw/secret.txt", SECRET)]);
        let owner = world.site("playground");
        owner.json(["space", "add", "first", first.to_str().expect("UTF-8")]);
        owner.json(["space", "add", "second", second.to_str().expect("UTF-8")]);
        let mut replica = world.site("cradle");
        let ticket = owner.invite("first");
        replica.json(["join", &ticket, "--into", world.path("copy").to_str().expect("UTF-8")]);
        replica.kill9();
        Self { door: Door::of(&owner, &ticket), owner, replica }
    }
}

async fn ask_for_everything(who: &Outsider, door: &Door, wanted: Hash) -> Vec<(&'static str, Vec<u8>)> {
    let mut answers = Vec::new();
    for (name, request) in every_request(wanted, hash(hash(SECRET).as_bytes())) {
        answers.push((name, who.ask(door, ALPN, &request).await));
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_nothing_by_any_request() {
    let world = World::new();
    let two = TwoTenants::new(&world);
    let stranger = Outsider::stranger().await;
    for wanted in [hash(SHARED), hash(SECRET)] {
        for (name, answer) in ask_for_everything(&stranger, &two.door, wanted).await {
            assert_eq!(answer, b"", "a stranger was answered to `{name}`");
        }
    }
    let answer = stranger.ask(&two.door, ALPN_CONTROL, &[0xa0]).await;
    assert_eq!(answer, b"", "a stranger was answered on the control protocol");
    two.owner.run(["status"]).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_one_space_gets_no_byte_of_another() {
    let world = World::new();
    let two = TwoTenants::new(&world);
    let peer = Outsider::with_key_of(&two.replica).await;

    let connection = peer.dial(&two.door, ALPN).await.expect("a peer may connect");
    let granted = iroh_blobs::get::request::get_blob(connection, hash(SHARED)).bytes().await;
    assert_eq!(granted.expect("a peer gets what was granted"), SHARED);

    for (name, answer) in ask_for_everything(&peer, &two.door, hash(SECRET)).await {
        assert!(!leaks(&answer), "`{name}` brought out bytes of another space");
        if name == "get" || name == "get as list" || name == "get many" || name == "observe" {
            assert_eq!(answer, b"", "`{name}` shows whether a blob of another space exists");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn absence_and_refusal_look_the_same() {
    let world = World::new();
    let two = TwoTenants::new(&world);
    let peer = Outsider::with_key_of(&two.replica).await;
    let refused = every_request(hash(SECRET), hash(SECRET));
    let absent = every_request(hash(b"nobody has this"), hash(b"nobody has this"));
    for name in ["get", "get first bytes", "get as list", "get many", "observe"] {
        let a = peer.ask(&two.door, ALPN, &refused[name]).await;
        let b = peer.ask(&two.door, ALPN, &absent[name]).await;
        assert_eq!(a, b, "`{name}` tells a refused blob from an absent one");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_peer_gets_nothing_more() {
    let world = World::new();
    let two = TwoTenants::new(&world);
    let peer = Outsider::with_key_of(&two.replica).await;
    let connection = peer.dial(&two.door, ALPN).await.expect("a peer may connect");
    iroh_blobs::get::request::get_blob(connection.clone(), hash(SHARED)).bytes().await.expect("granted");

    two.owner.json(["peer", "revoke", "cradle"]);
    let still = iroh_blobs::get::request::get_blob(connection, hash(SHARED)).bytes().await;
    assert!(still.is_err(), "an open connection outlives the revocation");
    for (name, answer) in ask_for_everything(&peer, &two.door, hash(SHARED)).await {
        assert_eq!(answer, b"", "a revoked peer was answered to `{name}`");
    }
}

#[test]
fn a_ticket_admits_one_site_only() {
    let world = World::new();
    let root = world.plain_lake("lake", &[("raw/a.txt", SHARED)]);
    let owner = world.site("playground");
    owner.json(["space", "add", "acme", root.to_str().expect("UTF-8")]);
    let ticket = owner.invite("acme");
    let (first, second) = (world.site("first"), world.site("second"));
    let into = |name: &str| world.path(name).to_str().expect("UTF-8").to_owned();
    first.json(["join", &ticket, "--into", &into("copy one")]);

    let (error, hint) = second.fails(1, ["join", &ticket, "--into", &into("copy two")]);
    assert!(error.contains("used"), "{error}");
    assert!(!hint.is_empty(), "{error}");
    assert!(!world.path("copy two").join("raw").exists());
    assert_eq!(second.json(["status"])["spaces"], Value::Array(vec![]));
}

/// The replica has the same bytes in a lake of its own. They must come over the wire all the same:
/// otherwise an owner could find out by naming hashes what a replica holds for others.
#[test]
fn local_bytes_do_not_cross_to_another_owners_space() {
    let world = World::new();
    let bytes: Vec<u8> = (0..1_000_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let theirs = world.plain_lake("theirs", &[("raw/model.bin", &bytes)]);
    let mine = world.plain_lake("mine", &[("raw/model.bin", &bytes), ("raw/twin.bin", &bytes)]);
    let owner = world.site("playground");
    owner.json(["space", "add", "theirs", theirs.to_str().expect("UTF-8")]);
    let replica = world.site("cradle");
    replica.json(["space", "add", "mine", mine.to_str().expect("UTF-8")]);

    let into = world.path("copy");
    let joined = replica.json(["join", &owner.invite("theirs"), "--into", into.to_str().expect("UTF-8")]);
    assert_eq!(joined["bytes_reused"], 0, "{joined}");
    assert!(joined["bytes_moved"].as_u64().expect("a number") >= bytes.len() as u64, "{joined}");
    assert_eq!(std::fs::read(into.join("raw/model.bin")).expect("published"), bytes);
}
