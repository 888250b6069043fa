//! A reader with a grant that lies about bytes, or dawdles: a follower that believes its word and asks it
//! first comes to the owner's version all the same, soon, and says who it was.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_protocol::ids::SpaceId;
use sluice_tests::mole::{Mole, Trick};
use sluice_tests::pair::{bytes, text};
use sluice_tests::{Site, World, wait};

/// From the mole's word to the owner's version, on a busy machine.
const WITHIN: Duration = Duration::from_secs(40);
const FILE_BYTES: usize = 3_000_000;

/// An honest owner of two spaces, a follower of both, and a mole among the readers of the first.
struct Burrow {
    world: World,
    owner: Site,
    follower: Site,
    mole: Arc<Mole>,
    space: SpaceId,
    lakes: [PathBuf; 2],
    rounds: u64,
}

impl Burrow {
    async fn new(trick: Trick) -> Self {
        let world = World::new();
        let lakes = ["acme", "other"].map(|name| world.plain_lake(name, &[("raw/a", name.as_bytes())]));
        // It tells nobody: what the follower hears comes from the mole.
        let owner = world.site("playground");
        for lake in &lakes {
            owner.json(["space", "add", lake.file_name().unwrap().to_str().unwrap(), text(lake)]);
        }
        let mut reader = world.site("mole");
        reader.json(["join", &owner.invite("acme"), "--into", text(&world.path("at the mole"))]);
        let mut follower = world.sleeping_site("cradle");
        follower.set("SLUICE__FOLLOW__ENABLED", "true");
        follower.set("SLUICE__FOLLOW__POLL_S", "3600");
        follower.start();
        for space in ["acme", "other"] {
            let into = world.path(&format!("copy of {space}"));
            follower.json(["join", &owner.invite(space), "--into", text(&into)]);
        }
        reader.kill9();
        let mole = Mole::instead_of(&reader, &owner, trick).await;
        let space = owner.json(["space", "show", "acme"])["space"].as_str().expect("an id").parse().expect("an id");
        Self { world, owner, follower, mole, space, lakes, rounds: 0 }
    }

    /// The owner's next version of a space.
    fn changes(&mut self, space: usize) -> (PathBuf, Vec<u8>) {
        self.rounds += 1;
        let data = bytes(self.rounds, FILE_BYTES);
        std::fs::write(self.lakes[space].join("raw/new"), &data).expect("the lake is ours");
        let name = ["acme", "other"][space];
        self.owner.json(["snapshot", name]);
        (self.world.path(&format!("copy of {name}")).join("raw/new"), data)
    }

    /// The mole rings, is asked, and does its trick; the follower gets the version from the owner, and another
    /// space goes on meanwhile.
    fn is_overcome(&mut self, trick: Trick, says: &str) {
        self.mole.plays(trick);
        // What the follower remembers of the mole ends with its process.
        self.follower.restart();
        let (file, data) = self.changes(0);
        let (asked, since) = (self.mole.asked(), Instant::now());
        let ringing = self.mole.rings(&self.follower, self.space);
        wait::until("the mole to be asked", WITHIN, || (self.mole.asked() > asked).then_some(()));
        let (other, others) = self.changes(1);
        self.follower.json(["sync", "other"]);
        assert!(std::fs::read(other).expect("published") == others);
        wait::until(&format!("the version despite {trick:?}"), WITHIN, || {
            std::fs::read(&file).is_ok_and(|b| b == data).then_some(())
        });
        eprintln!(
            "{trick:?}: there after {:.1?}, the mole was asked {} times",
            since.elapsed(),
            self.mole.asked() - asked
        );
        let (log, mole) = (self.follower.log_tail(), self.mole.site().short());
        let named = |line: &&str| line.contains("a source failed") && line.contains(&mole) && line.contains(says);
        assert!(log.lines().any(|line| named(&line)), "no line of the log names the mole and `{says}`:\n{log}");

        // It goes on ringing, and is not asked for the next version.
        let asked = self.mole.asked();
        let (file, data) = self.changes(0);
        wait::until("the next version", WITHIN, || std::fs::read(&file).is_ok_and(|b| b == data).then_some(()));
        assert_eq!(self.mole.asked(), asked, "{trick:?}: a source that failed is asked again at once");
        ringing.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_sends_wrong_bytes_or_dies_holds_nobody_up() {
    let mut burrow = Burrow::new(Trick::WrongBytes).await;
    burrow.is_overcome(Trick::WrongBytes, "corrupt pieces");
    burrow.is_overcome(Trick::DiesMidStream, "closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_dawdles_holds_nobody_up() {
    let mut burrow = Burrow::new(Trick::SlowBytes).await;
    burrow.is_overcome(Trick::SlowBytes, "are the least that is borne");
    burrow.is_overcome(Trick::Silence, "sent nothing of the blob");
}
