//! Two sites in one process, over real sockets: pair, copy, change, sync, without tables.
//!
//! The same journey with real daemons, real tables and other people's readers is in `tests/`.

mod common;

use common::{World, call, config, home};
use sluice_daemon::node::SiteNode;
use sluice_protocol::api::{Failure, Operation};

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
    let refused = call(&world.replica, Operation::Sync { space: None, dry_run: false, at: None }).await;
    assert!(refused.is_err(), "{refused:?}");
    assert!(!world.copy().join("raw/more").exists() && world.copy().join("raw/zero").exists());
}
