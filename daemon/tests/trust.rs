//! What a site may not get, however it asks.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{World, call, config, home, noise};
use ed25519_dalek::SigningKey;
use sluice_daemon::lanes::{Peer, QuicConfig, QuicLane};
use sluice_daemon::node::SiteNode;
use sluice_daemon::pairing::{self, Invite};
use sluice_protocol::annex::Annex;
use sluice_protocol::api::{Operation, SpaceState};
use sluice_protocol::card::SiteCard;
use sluice_protocol::codec::{Bytes, Document};
use sluice_protocol::grants::{Genesis, GrantSet};
use sluice_protocol::head::Head;
use sluice_protocol::ids::{BlobHash, SiteId, SnapshotId, SpaceId};
use sluice_protocol::manifest::{Entry, Manifest};
use sluice_protocol::messages::{
    Announce, HeadsRequest, Message, PairRequest, REFUSED_GRANT, REFUSED_MESSAGE, REFUSED_USED,
};
use sluice_protocol::signed::Signed;
use sluice_protocol::ticket::Ticket;
use sluice_protocol::tree::{TreeBuilder, read_tree};
use sluice_store::catalog::{Catalog, CatalogError, Lookup, SiteLookup};

/// The newest head of the only space in a stopped site's catalog.
fn newest(catalog: &Catalog) -> (SpaceId, Signed<Head>) {
    let reader = catalog.read().unwrap();
    let (space, record) = reader.spaces().unwrap().remove(0);
    (space, reader.newest_head(&space, &record.owner).unwrap().unwrap())
}

/// Signs a head of a stopped site whose manifest says what `change` makes of its entries.
fn forge(root: &std::path::Path, change: &dyn Fn(&mut Entry)) {
    let site = home(root, "ignored");
    let catalog = Catalog::open(root).unwrap();
    let (space, head) = newest(&catalog);
    let reader = catalog.read().unwrap();
    let raw = reader.meta(&space, &head.manifest.into()).unwrap().unwrap();
    let mut manifest = Manifest::from_bytes(&raw).unwrap();
    let mut pages = Vec::new();
    for section in &mut manifest.sections {
        let mut fetch = |hash: &BlobHash| reader.meta(&space, hash).map(Option::unwrap);
        let mut entries: Vec<Entry> = Vec::new();
        let mut each = |e: Entry| {
            entries.push(e);
            Ok(())
        };
        read_tree::<Entry, CatalogError>(&section.tree, &mut fetch, &mut each).unwrap();
        entries.iter_mut().for_each(change);
        let mut builder = TreeBuilder::new(|_, bytes| pages.push(bytes));
        entries.iter().for_each(|e| builder.push(e).unwrap());
        section.tree = builder.finish();
    }
    let annex = Annex { manifest: manifest.id(), tables: vec![], chunk_lists: None, unknown: Default::default() };
    let forged = Signed::sign(
        &site.key(),
        Head {
            manifest: manifest.id(),
            annex: BlobHash::of(&annex.to_bytes()),
            seq: head.seq + 1,
            prev: Some(head.id()),
            ..(*head).clone()
        },
    );
    catalog
        .write(|b| {
            for bytes in pages.iter().chain([&manifest.to_bytes(), &annex.to_bytes()]) {
                b.put_meta(&space, bytes)?;
            }
            b.put_head(&forged)
        })
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_names_a_foreign_blob_gets_nothing() {
    let world = World::new().await;
    world.pair().await;
    let secret = noise(2, 700_001);
    let hash = BlobHash::of(&secret);

    // A second owner shares a lake of its own with the same replica …
    let root = world.dir.path().join("hostile");
    let hostile = SiteNode::start(home(&root, "hostile"), config()).await.unwrap();
    let lake = world.dir.path().join("bait");
    std::fs::create_dir_all(lake.join("raw")).unwrap();
    std::fs::write(lake.join("raw/bait.bin"), noise(99, 700_001)).unwrap();
    let path = lake.display().to_string();
    let add = Operation::SpaceAdd { name: "bait".into(), path, history: None, opaque: false };
    call(&hostile, add).await.unwrap();
    let invite = Operation::Invite { space: "bait".into(), sections: vec![], expires_s: None };
    let ticket = call(&hostile, invite).await.unwrap()["ticket"].as_str().unwrap().to_string();
    let into = Some(world.dir.path().join("bait-copy").display().to_string());
    call(&world.replica, Operation::Join { ticket, into, sections: vec![] }).await.unwrap();
    let port = call(&hostile, Operation::Status).await.unwrap()["listening"][0].as_str().unwrap().to_string();
    let port: u16 = port.rsplit(':').next().unwrap().parse().unwrap();
    hostile.stop().await;
    // The stopped site still has its catalog open in this process: go on with a copy of its home.
    let copied = std::process::Command::new("cp").arg("-a").arg(&root).arg(root.with_extension("2")).status();
    assert!(copied.unwrap().success());
    let root = root.with_extension("2");

    // … and then signs a manifest that names a blob of the other space.
    forge(&root, &|e| {
        if e.path.as_str() == "bait.bin" {
            e.hash = Some(hash);
        }
    });
    let mut same_port = config();
    same_port.p2p.port = port;
    let _hostile = SiteNode::start(home(&root, "hostile"), same_port).await.unwrap();
    let sync = Operation::Sync { space: Some("bait".into()), dry_run: false, at: None };
    let refused = call(&world.replica, sync).await.unwrap_err();
    assert!(refused.error.contains(&hash.to_string()), "the blob had to be asked for: {refused}");

    let copy = world.dir.path().join("bait-copy/raw/bait.bin");
    assert_eq!(std::fs::read(copy).unwrap(), noise(99, 700_001), "what was live stays live");
    let status = call(&world.replica, Operation::Status).await.unwrap();
    let bait = status["spaces"].as_array().unwrap().iter().find(|s| s["name"] == "bait").unwrap();
    assert_eq!(bait["state"], serde_json::to_value(SpaceState::Behind).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_for_one_section_reaches_no_other() {
    let world = World::new().await;
    let path = world.lake().display().to_string();
    call(&world.owner, Operation::SpaceAdd { name: "acme".into(), path, history: None, opaque: false }).await.unwrap();
    let invite = Operation::Invite { space: "acme".into(), sections: vec!["metadata".into()], expires_s: None };
    let ticket = call(&world.owner, invite).await.unwrap()["ticket"].as_str().unwrap().to_string();
    // Asking for everything brings what was granted.
    call(&world.replica, world.join(&ticket)).await.unwrap();
    assert!(world.copy().join("metadata/doc 5.json").exists());
    assert!(!world.copy().join("raw").exists() && !world.copy().join("README.md").exists());

    // Asking for another section brings nothing, and says so.
    let third = SiteNode::start(home(&world.dir.path().join("third"), "third"), config()).await.unwrap();
    let invite = Operation::Invite { space: "acme".into(), sections: vec!["metadata".into()], expires_s: None };
    let ticket = call(&world.owner, invite).await.unwrap()["ticket"].as_str().unwrap().to_string();
    let into = Some(world.dir.path().join("part").display().to_string());
    let other = Operation::Join { ticket: ticket.clone(), into: into.clone(), sections: vec!["raw".into()] };
    let refused = call(&third, other).await.unwrap_err();
    assert!(refused.error.contains("no grant"), "{refused}");

    // The same ticket again, with a section that it is for.
    let again = Operation::Join { ticket, into, sections: vec!["metadata".into()] };
    call(&third, again).await.unwrap();
    assert!(world.dir.path().join("part/metadata/doc 5.json").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_was_set_back_does_not_rewrite_history() {
    let world = World::new().await;
    world.pair().await;
    let root = world.dir.path().join("owner");
    let backup = world.dir.path().join("backup");
    let copied = std::process::Command::new("cp").arg("-a").arg(&root).arg(&backup).status();
    assert!(copied.unwrap().success());
    std::fs::write(world.lake().join("raw/later"), "later").unwrap();
    world.sync().await;
    world.owner.stop().await;

    // The backup does not know the newest head; its peer does.
    let restored = SiteNode::start(home(&backup, "playground"), config()).await.unwrap();
    std::fs::write(world.lake().join("raw/other"), "other").unwrap();
    let snapshot = Operation::SnapshotCreate { space: "acme".into(), tag: None };
    let refused = call(&restored, snapshot).await.unwrap_err();
    assert!(refused.error.contains("set back"), "{refused}");
    assert!(refused.hint.as_deref().is_some_and(|h| h.contains("space recover")), "{refused:?}");

    // It goes on from what the peer has seen, and the peer goes along.
    let recover = Operation::SpaceRecover { space: "acme".into() };
    let done = call(&restored, recover.clone()).await.unwrap();
    assert!(done["done"].as_str().unwrap().contains("number 2 in epoch 1"), "{done}");
    let port = call(&restored, Operation::Status).await.unwrap()["listening"].clone();
    let invite = Operation::Invite { space: "acme".into(), sections: vec![], expires_s: None };
    let ticket = call(&restored, invite).await.unwrap()["ticket"].as_str().unwrap().to_string();
    call(&world.replica, world.join(&ticket)).await.unwrap_or_else(|e| panic!("{port}: {e}"));
    assert!(world.copy().join("raw/other").exists() && world.copy().join("raw/later").exists());
    let again = call(&restored, recover).await.unwrap();
    assert!(again["done"].as_str().unwrap().contains("nothing was done"), "{again}");
    std::fs::write(world.lake().join("raw/after"), "after").unwrap();
    call(&restored, Operation::SnapshotCreate { space: "acme".into(), tag: None }).await.unwrap();
    let sync = Operation::Sync { space: Some("acme".into()), dry_run: false, at: None };
    call(&world.replica, sync).await.unwrap();
    assert!(world.copy().join("raw/after").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deed_in_the_lake_tells_a_set_back_owner_when_no_peer_is_there() {
    let world = World::new().await;
    world.pair().await;
    let root = world.dir.path().join("owner");
    let backup = world.dir.path().join("backup");
    assert!(std::process::Command::new("cp").arg("-a").arg(&root).arg(&backup).status().unwrap().success());
    std::fs::write(world.lake().join("raw/later"), "later").unwrap();
    world.sync().await;
    world.owner.stop().await;
    world.replica.stop().await;

    let restored = SiteNode::start(home(&backup, "playground"), config()).await.unwrap();
    let snapshot = Operation::SnapshotCreate { space: "acme".into(), tag: None };
    let refused = call(&restored, snapshot.clone()).await.unwrap_err();
    assert!(refused.error.contains("the deed in its lake") && refused.error.contains("set back"), "{refused}");
    let done = call(&restored, Operation::SpaceRecover { space: "acme".into() }).await.unwrap();
    assert!(done["done"].as_str().unwrap().contains("from the deed in its lake"), "{done}");
    assert!(done["done"].as_str().unwrap().contains("number 2 in epoch 1"), "{done}");
    std::fs::write(world.lake().join("raw/after"), "after").unwrap();
    assert_eq!(call(&restored, snapshot).await.unwrap()["seq"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_ticket_finds_an_owner_that_moved() {
    let world = World::new().await;
    world.pair().await;
    let root = world.dir.path().join("owner");
    let moved = world.dir.path().join("moved");
    let away = world.dir.path().join("away");
    for (node, from, to) in [(&world.owner, &root, &moved), (&world.replica, &world.dir.path().join("replica"), &away)]
    {
        node.stop().await;
        assert!(std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
    }
    // While the replica is away the owner gets another port.
    let owner = SiteNode::start(home(&moved, "playground"), config()).await.unwrap();
    std::fs::write(world.lake().join("raw/later"), "later").unwrap();
    call(&owner, Operation::SnapshotCreate { space: "acme".into(), tag: None }).await.unwrap();

    let replica = SiteNode::start(home(&away, "cradle"), config()).await.unwrap();
    let sync = Operation::Sync { space: Some("acme".into()), dry_run: false, at: None };
    let lost = call(&replica, sync.clone()).await.unwrap_err();
    assert!(lost.error.contains("reached"), "{lost}");
    let invite = call(&owner, world.invite()).await.unwrap();
    call(&replica, world.join(invite["ticket"].as_str().unwrap())).await.unwrap();
    assert!(world.copy().join("raw/later").exists());
    assert_eq!(call(&replica, sync).await.unwrap()["spaces"][0]["changed"], false);
}

/// A site that is nothing but a key and a lane, admitted to `acme` by the owner.
async fn guest(world: &World, key: &SigningKey) -> (QuicLane, SpaceId) {
    guest_for(world, key, &[]).await
}

/// The same, for these sections.
async fn guest_for(world: &World, key: &SigningKey, sections: &[&str]) -> (QuicLane, SpaceId) {
    let lane = QuicLane::bind(QuicConfig::new(key.clone())).await.unwrap();
    let sections = sections.iter().map(ToString::to_string).collect();
    let invite = Operation::Invite { space: "acme".into(), sections, expires_s: None };
    let invite = call(&world.owner, invite).await.unwrap();
    let ticket = Ticket::parse(invite["ticket"].as_str().unwrap()).unwrap();
    let body = ticket.body();
    let card = card_of(key, "guest", 1);
    let request = PairRequest {
        secret: body.secret,
        space: body.space,
        card: Bytes(card.bytes().to_vec()),
        unknown: Default::default(),
    };
    let addresses: Vec<_> = body.addresses.iter().map(|a| a.parse().unwrap()).collect();
    let answer = lane.peer(body.site, &addresses).pair(request).await.unwrap();
    assert!(matches!(answer, Message::News(_)), "{answer:?}");
    (lane, body.space)
}

async fn peer_of(lane: &QuicLane, node: &SiteNode) -> Peer {
    let status = call(node, Operation::Status).await.unwrap();
    let addresses: Vec<_> =
        status["listening"].as_array().unwrap().iter().map(|a| a.as_str().unwrap().parse().unwrap()).collect();
    lane.peer(serde_json::from_value(status["site"].clone()).unwrap(), &addresses)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_announcement_is_a_hint_and_changes_nothing() {
    let world = World::new().await;
    world.pair().await;
    let key = SigningKey::from_bytes(&[42; 32]);
    let (lane, space) = guest(&world, &key).await;
    // The replica learns of the guest's grant with its next question.
    world.sync().await;
    std::fs::write(world.lake().join("raw/later"), "later").unwrap();
    call(&world.owner, Operation::SnapshotCreate { space: "acme".into(), tag: None }).await.unwrap();
    let owner = peer_of(&lane, &world.owner).await;
    let asked =
        HeadsRequest { space, have_epoch: None, have_seq: None, card: None, held: None, unknown: Default::default() };
    let Message::News(news) = owner.message(&Message::Heads(asked)).await.unwrap() else { panic!("the guest may ask") };
    let head = news.heads.last().unwrap().clone();

    let replica = peer_of(&lane, &world.replica).await;
    let say = |space, head: Bytes| {
        let card = Some(Bytes(card_of(&key, "guest", 2).bytes().to_vec()));
        let announce = Message::Announce(Announce { space, head, card, unknown: Default::default() });
        let replica = replica.clone();
        async move {
            match replica.message(&announce).await.unwrap() {
                Message::Done => 0,
                Message::Refused(r) => r.code,
                other => panic!("{other:?}"),
            }
        }
    };
    let heads = || async {
        let listed = call(&world.replica, Operation::SnapshotList { space: "acme".into() }).await.unwrap();
        listed.as_array().unwrap().len()
    };
    let before = heads().await;
    assert_eq!(say(space, head.clone()).await, 0);
    let true_head = Signed::<Head>::from_bytes(&head.0).unwrap();
    let own = Head { writer: SiteId(key.verifying_key().to_bytes()), seq: 99, ..(*true_head).clone() };
    assert_eq!(say(space, Bytes(Signed::sign(&key, own).bytes().to_vec())).await, REFUSED_MESSAGE);
    let mut bent = head.0.clone();
    *bent.last_mut().unwrap() ^= 1;
    assert_eq!(say(space, Bytes(bent)).await, REFUSED_MESSAGE);
    assert_eq!(say(SpaceId([9; 32]), head.clone()).await, REFUSED_GRANT);
    assert_eq!(heads().await, before, "no head is stored from an announcement");

    // Without its grant the guest is heard no more.
    let revoke = Operation::PeerRevoke { peer: "guest".into(), space: Some("acme".into()) };
    call(&world.owner, revoke).await.unwrap();
    world.sync().await;
    let announce = Announce { space, head, card: None, unknown: Default::default() };
    let answer = replica.message(&Message::Announce(announce)).await;
    assert!(!matches!(answer, Ok(Message::Done)), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_for_one_section_holds_no_version_that_it_does_not_reach() {
    let world = World::new().await;
    let path = world.lake().display().to_string();
    call(&world.owner, Operation::SpaceAdd { name: "acme".into(), path, history: None, opaque: false }).await.unwrap();
    let (whole, limited) = (numbered(1), numbered(2));
    let (whole_lane, space) = guest(&world, &whole).await;
    let (limited_lane, _) = guest_for(&world, &limited, &["metadata"]).await;
    let (whole_lane, limited_lane) =
        (peer_of(&whole_lane, &world.owner).await, peer_of(&limited_lane, &world.owner).await);
    let take = |n: u32| {
        std::fs::write(world.lake().join("metadata/changes.json"), format!("version {n}")).unwrap();
        call(&world.owner, Operation::SnapshotCreate { space: "acme".into(), tag: None })
    };
    let mut versions: Vec<SnapshotId> = Vec::new();
    for n in 0..5 {
        versions.push(serde_json::from_value(take(n).await.unwrap()["snapshot"].clone()).unwrap());
    }
    let hold = async |peer: &Peer, held: SnapshotId| {
        let asked = HeadsRequest {
            space,
            have_epoch: None,
            have_seq: None,
            card: None,
            held: Some(held),
            unknown: Default::default(),
        };
        let answer = peer.message(&Message::Heads(asked)).await.unwrap();
        assert!(matches!(answer, Message::News(_)), "{answer:?}");
    };
    let leased = async |key: &SigningKey| -> Vec<SnapshotId> {
        let peer = SiteId(key.verifying_key().to_bytes()).to_string();
        let shown = call(&world.owner, Operation::PeerShow { peer }).await.unwrap();
        let leases = shown["leases"].as_array().cloned().unwrap_or_default();
        leases.iter().map(|l| serde_json::from_value(l["snapshot"].clone()).unwrap()).collect()
    };
    let manifest = |n: usize| BlobHash::from(versions[n]);

    // To name an old version neither leases it nor lets it be read.
    hold(&limited_lane, versions[1]).await;
    assert_eq!(leased(&limited).await, []);
    assert!(limited_lane.fetch_small(manifest(1), 1 << 20).await.is_err());
    // Whoever may read everything may hold it.
    hold(&whole_lane, versions[1]).await;
    assert_eq!(leased(&whole).await, [versions[1]]);

    // One that is reached is held, and stays so once newer ones have come.
    hold(&limited_lane, versions[2]).await;
    assert_eq!(leased(&limited).await, [versions[2]]);
    take(5).await.unwrap();
    hold(&limited_lane, versions[2]).await;
    assert_eq!(leased(&limited).await, [versions[2]]);
    assert!(limited_lane.fetch_small(manifest(2), 1 << 20).await.is_ok());
}

/// Peers that are cut off while they fetch.
const RACES: u64 = 100;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_asks_for_after_it_was_cut_off_it_does_not_get() {
    let world = World::new().await;
    world.pair().await;
    let blob = BlobHash::of(&noise(2, 700_001));
    let mut cut_while_fetching = 0;
    for race in 0..RACES {
        let key = numbered(race);
        let (lane, _) = guest(&world, &key).await;
        let owner = peer_of(&lane, &world.owner).await;
        let (is_cut, came) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let fetching = tokio::spawn({
            let (is_cut, came) = (is_cut.clone(), came.clone());
            async move {
                for fetched in 0.. {
                    let late = is_cut.load(Ordering::SeqCst);
                    match owner.fetch_small(blob, 1 << 20).await {
                        Ok(_) => {
                            came.fetch_add(1, Ordering::SeqCst);
                            assert!(!late, "it was asked for after the peer was cut off");
                        }
                        Err(_) => return fetched,
                    }
                }
                unreachable!("it asks until it is refused")
            }
        });
        // Some are cut off before their first byte, some in the middle of one of many.
        while race % 2 == 0 && came.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_micros(race * 700)).await;
        let peer = SiteId(key.verifying_key().to_bytes()).to_string();
        call(&world.owner, Operation::PeerRevoke { peer, space: None }).await.unwrap();
        is_cut.store(true, Ordering::SeqCst);
        let fetched =
            tokio::time::timeout(Duration::from_secs(10), fetching).await.expect("a cut peer is told").unwrap();
        cut_while_fetching += u64::from(fetched > 0);
    }
    assert!(cut_while_fetching > RACES / 4, "the races were no races: {cut_while_fetching}");
}

fn card_of(key: &SigningKey, name: &str, time_ms: u64) -> Signed<SiteCard> {
    let site = SiteId(key.verifying_key().to_bytes());
    let card = SiteCard { site, name: name.into(), quic: vec![], tls: vec![], time_ms, unknown: Default::default() };
    Signed::sign(key, card)
}

/// A catalog that owns a space, and a ticket for it.
fn owner_with_ticket(dir: &std::path::Path, owner: &SigningKey) -> (Catalog, SpaceId, Ticket) {
    let catalog = Catalog::open(dir).unwrap();
    let id = SiteId(owner.verifying_key().to_bytes());
    let genesis = Genesis {
        owner: id,
        name: "acme".into(),
        nonce: [0; 16],
        recovery: None,
        created_ms: 0,
        unknown: Default::default(),
    };
    let space = genesis.space_id();
    let grants =
        Signed::sign(owner, GrantSet { genesis, seq: 0, grants: vec![], time_ms: 0, unknown: Default::default() });
    catalog.write(|b| b.put_grants(&space, &grants)).unwrap();
    let invite =
        Invite { space, space_name: "acme".into(), sections: vec![], life_ms: 60_000, site: id, addresses: vec![] };
    let ticket = pairing::invite(&catalog, invite).unwrap();
    (catalog, space, ticket)
}

/// Sites that redeem one ticket at once.
const REDEEMERS: u64 = 1000;

/// A key of its own for each number.
fn numbered(n: u64) -> SigningKey {
    SigningKey::from_bytes(blake3::hash(&n.to_le_bytes()).as_bytes())
}

#[test]
fn of_many_sites_that_redeem_one_ticket_at_once_one_gets_in() {
    let dir = tempfile::tempdir().unwrap();
    let owner = SigningKey::from_bytes(&[1; 32]);
    let (catalog, space, ticket) = owner_with_ticket(dir.path(), &owner);
    let id = |key: &SigningKey| SiteId(key.verifying_key().to_bytes());
    let redeem = |n: u64| {
        let key = numbered(n);
        let card = card_of(&key, &format!("site{n}"), 1);
        let request = PairRequest {
            secret: ticket.body().secret,
            space,
            card: Bytes(card.bytes().to_vec()),
            unknown: Default::default(),
        };
        pairing::admit(&catalog, &owner, id(&key), &request)
    };
    let answers: Vec<_> = std::thread::scope(|s| {
        let all: Vec<_> = (0..REDEEMERS)
            .map(|n| {
                s.spawn({
                    let redeem = &redeem;
                    move || redeem(n)
                })
            })
            .collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(answers.iter().filter(|a| a.is_ok()).count(), 1);
    assert!(answers.iter().filter_map(|a| a.as_ref().err()).all(|r| r.code == REFUSED_USED));
    let granted = catalog.read().unwrap().grants(&space).unwrap().unwrap();
    assert_eq!(granted.grants.len(), 1);
    // The site that got in may ask again, since the answer may have been lost.
    let winner = answers.iter().position(|a| a.is_ok()).unwrap() as u64;
    assert!(redeem(winner).is_ok());
}
