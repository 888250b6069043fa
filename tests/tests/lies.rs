//! A hostile owner against a real site: each lie is refused, named in the log, and costs little
//! memory, while an honest space goes on arriving.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use sluice_protocol::codec::Document;
use sluice_protocol::head::Head;
use sluice_protocol::ids::BlobHash;
use sluice_protocol::manifest::Manifest;
use sluice_protocol::signed::Signed;
use sluice_protocol::tree::Page;
use sluice_tests::liar::{Draft, Liar, Lie, entry};
use sluice_tests::wait::until;
use sluice_tests::{Output, Site, World, site};

/// What a lie may cost in memory, over what the site needed before.
const PEAK_BYTES_MAX: u64 = 256 << 20;

/// A site that believes whom it should, the honest owner of another space, and where both lie.
struct Victim {
    world: World,
    site: Site,
    honest: Site,
    lake: PathBuf,
    rounds: u32,
}

impl Victim {
    fn new() -> Self {
        let world = World::new();
        let lake = world.plain_lake("source", &[("raw/a.txt", b"an honest file")]);
        let quiet = |name: &str| {
            let mut site = world.sleeping_site(name);
            site.set("SLUICE__FOLLOW__ENABLED", "false");
            site.start();
            site
        };
        let (honest, site) = (quiet("playground"), quiet("cradle"));
        honest.json(["space", "add", "honest", lake.to_str().unwrap()]);
        site.json(["join", &honest.invite("honest"), "--into", world.path("honest").to_str().unwrap()]);
        Self { world, site, honest, lake, rounds: 0 }
    }

    /// Joins the liar's space; meanwhile the honest space gets its next version.
    fn join(&mut self, liar: &Liar, space: &str) -> Output {
        let (ticket, into) = (liar.ticket(), self.world.path(space));
        self.during(&["join", &ticket, "--into", into.to_str().unwrap(), "--json"])
    }

    fn sync(&mut self, space: &str) -> Output {
        self.during(&["sync", space, "--json"])
    }

    fn during(&mut self, words: &[&str]) -> Output {
        let before = self.site.peak_bytes();
        let child = self.site.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        self.rounds += 1;
        let text = format!("round {}", self.rounds);
        fs::write(self.lake.join("raw/a.txt"), &text).unwrap();
        self.honest.json(["snapshot", "honest"]);
        let synced = self.site.json(["sync", "honest"]);
        assert_eq!(synced["spaces"][0]["published"], true, "{synced}");
        assert_eq!(fs::read_to_string(self.world.path("honest").join("raw/a.txt")).unwrap(), text);
        let done = site::output(words.join(" "), child.wait_with_output().unwrap());
        let grown = self.site.peak_bytes() - before;
        assert!(grown <= PEAK_BYTES_MAX, "{words:?} cost {grown} bytes");
        done
    }

    /// The lie is refused with this exit code and sentence, and the log names it and its teller.
    #[track_caller]
    fn refuses(&mut self, liar: &Liar, space: &str, code: i32, says: &str) {
        let (sentence, _) = self.join(liar, space).expect_code(code).failure();
        assert!(sentence.contains(says), "{space}: `{sentence}` says nothing of `{says}`");
        self.names(liar, says);
        let seen = fs::read_dir(self.world.path(space)).map(|files| {
            let names = files.map(|f| f.unwrap().file_name().into_string().unwrap());
            names.filter(|n| n != ".sluice").collect::<Vec<_>>()
        });
        assert_eq!(seen.unwrap_or_default(), Vec::<String>::new(), "{space}: something was published");
    }

    #[track_caller]
    fn names(&self, liar: &Liar, says: &str) {
        let log = self.site.log_tail();
        let named = |line: &&str| line.contains(&liar.site().short()) && line.contains(says);
        assert!(log.lines().any(|line| named(&line)), "no line of the log names `{says}`:\n{log}");
    }
}

fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

/// A document of a kind whose record claims a list of 2^60 elements in its field `key`.
fn huge_list(kind: &str, key: u8) -> Vec<u8> {
    let mut bytes = vec![0x83, 0x60 + kind.len() as u8];
    bytes.extend(kind.as_bytes());
    bytes.extend([1, 0xa1, key, 0x9b, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    bytes
}

/// The same length, other bytes.
fn replaced(mut bytes: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|w| w == from).expect("the bytes to forge");
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

async fn liar(name: &str, lie: Lie) -> Arc<Liar> {
    let liar = Liar::new(name).await;
    liar.lies(lie);
    liar
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_lie_are_refused() {
    let mut victim = Victim::new();
    let (small, large) = (noise(1, 100_000), noise(2, 3 << 20));
    let files: [(&str, &[u8]); 2] = [("small", &small), ("large", &large)];

    let l = liar("wrong-leaf", Lie::WrongLeaf).await;
    l.publishes(&Draft::of(&files));
    victim.refuses(&l, "wrong-leaf", 3, "sent 3 corrupt pieces");
    victim.names(&l, "sent wrong bytes for the blob");

    let l = liar("wrong-size", Lie::None).await;
    let mut draft = Draft::of(&[("large", &large)]);
    draft.list(&[sluice_protocol::manifest::Entry { size: 2 << 20, ..entry("large", &large) }]);
    l.publishes(&draft);
    victim.refuses(&l, "wrong-size", 3, "says over quic that the blob");

    let l = liar("huge-blob", Lie::HugeBlob).await;
    l.publishes(&Draft::of(&files));
    victim.refuses(&l, "huge-blob", 3, "at most");

    // What comes behind an answer is not read: the version arrives.
    let l = liar("endless-blob", Lie::EndlessBlob).await;
    l.publishes(&Draft::of(&[("large", &large)]));
    victim.join(&l, "endless-blob").ok();
    assert_eq!(fs::read(victim.world.path("endless-blob").join("raw/large")).unwrap(), large);

    // It goes on where it was as soon as its owner lives.
    let l = liar("dies", Lie::DiesMidStream).await;
    l.publishes(&Draft::of(&[("large", &large)]));
    let failed = victim.join(&l, "dies");
    assert!(matches!(failed.code, 1 | 4), "{failed:?}");
    victim.names(&l, "closed");
    l.lies(Lie::None);
    victim.sync("dies").ok();
    assert_eq!(fs::read(victim.world.path("dies").join("raw/large")).unwrap(), large);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_lie_are_refused() {
    let mut victim = Victim::new();
    let files: [(&str, &[u8]); 1] = [("a", b"a file")];
    for (name, lie, says) in [
        ("huge-message", Lie::HugeMessage, "longer than the limit"),
        ("endless-message", Lie::EndlessMessage, "the conversation with site"),
        ("many-heads", Lie::ManyHeads, "more than"),
    ] {
        let l = liar(name, lie).await;
        l.publishes(&Draft::of(&files));
        let failed = victim.join(&l, name);
        assert_ne!(failed.code, 0, "{failed:?}");
        let (sentence, _) = failed.failure();
        assert!(sentence.contains(says), "{name}: {sentence}");
        victim.names(&l, says);
    }

    let l = liar("history", Lie::None).await;
    let first = l.publishes(&Draft::of(&files));
    let second = l.publishes(&Draft::of(&[("a", b"a second version")]));
    victim.join(&l, "history").ok();
    l.tells(std::slice::from_ref(&first));
    let (sentence, _) = victim.sync("history").expect_code(3).failure();
    assert!(sentence.contains("older than the one already seen"), "{sentence}");
    let forked = l.publishes(&Draft::of(&[("a", b"another second version")]));
    assert_eq!(forked.place(), second.place());
    let (sentence, _) = victim.sync("history").expect_code(3).failure();
    assert!(sentence.contains("two heads claim the same place"), "{sentence}");
    let (sentence, _) = victim.sync("history").expect_code(3).failure();
    assert!(sentence.contains("frozen"), "a fork is not forgotten: {sentence}");
    let published = victim.world.path("history").join("raw/a");
    assert_eq!(fs::read(published).unwrap(), b"a second version", "what was published stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_picks_a_branch_and_a_third_one_freezes_the_space_again() {
    let mut victim = Victim::new();
    let l = liar("branches", Lie::None).await;
    let version = |text: &'static str| Draft::of(&[("a", text.as_bytes())]);
    let first = l.publishes(&version("one"));
    let second = l.publishes(&version("two"));
    victim.join(&l, "branches").ok();
    l.tells(std::slice::from_ref(&first));
    let other = l.publishes(&version("another two"));
    victim.sync("branches").expect_code(3);
    let space = |victim: &Victim| {
        let status = victim.site.json(["status"]);
        let spaces = status["spaces"].as_array().unwrap();
        spaces.iter().find(|s| s["name"] == "branches").unwrap().clone()
    };
    let shown = |victim: &Victim| {
        let space = space(victim);
        let all = space["branches"].as_array().unwrap().iter();
        let all: Vec<_> =
            all.map(|b| (b["head"].as_str().unwrap().to_owned(), b["standing"].as_str().unwrap().to_owned())).collect();
        (space["state"].as_str().unwrap().to_owned(), all)
    };
    let branch = |head: &Signed<Head>, standing: &str| (head.id().to_string(), standing.to_owned());
    assert_eq!(shown(&victim), ("frozen".into(), vec![branch(&second, "followed"), branch(&other, "open")]));
    let listed = victim.site.run(["resolve", "branches"]).ok().stdout;
    assert!(listed.contains(&second.id().to_string()) && listed.contains(&other.id().to_string()), "{listed}");
    let (error, hint) = victim.site.fails(1, ["resolve", "branches", "--fork", "0000"]);
    assert!(error.contains("`0000`") && hint.contains(&other.id().to_string()), "{error} / {hint}");

    let file = victim.world.path("branches").join("raw/a");
    victim.site.json(["resolve", "branches", "--fork", &other.id().to_string()[..12]]);
    assert_eq!(fs::read(&file).unwrap(), b"two", "a decision moves no file");
    victim.sync("branches").ok();
    assert_eq!(fs::read(&file).unwrap(), b"another two");
    assert_eq!(shown(&victim), ("ready".into(), vec![branch(&other, "followed"), branch(&second, "set_aside")]));
    assert!(!victim.site.json(["status"])["alerts"].to_string().contains("two heads"));

    // The branch that was decided against is known again, however it is told, and freezes nothing.
    l.tells(&[first.clone(), second.clone()]);
    let mut refused = vec![victim.sync("branches").expect_code(3).failure().0];
    for text in ["three", "four"] {
        let head = l.publishes(&version(text));
        refused.push(victim.sync("branches").expect_code(3).failure().0);
        l.tells(&[head]);
        refused.push(victim.sync("branches").expect_code(3).failure().0);
    }
    assert!(refused.iter().take(4).all(|e| e.contains("decided against")), "{refused:?}");
    assert_eq!(shown(&victim).0, "ready");

    // A third branch is a fork as the first one was; the person may choose any of them.
    l.tells(std::slice::from_ref(&first));
    let third = l.publishes(&version("a third two"));
    victim.sync("branches").expect_code(3);
    let all = vec![branch(&other, "followed"), branch(&second, "set_aside"), branch(&third, "open")];
    assert_eq!(shown(&victim), ("frozen".into(), all));
    victim.site.restart();
    victim.site.json(["resolve", "branches", "--fork", &second.id().to_string()]);
    l.tells(&[first, second]);
    victim.sync("branches").ok();
    assert_eq!(fs::read(&file).unwrap(), b"two");
    let (error, _) = victim.site.fails(2, ["resolve", "honest", "--fork", "0000"]);
    assert!(error.contains("one history"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_branch_that_was_decided_against_is_known_however_far_it_went() {
    let mut victim = Victim::new();
    let l = liar("moves-on", Lie::FromPlace).await;
    let publishes = |text: String| l.publishes(&Draft::of(&[("a", text.as_bytes())]));
    let first = publishes("0".into());
    let mut old = vec![first.clone(), publishes("old 1".into())];
    victim.join(&l, "moves-on").ok();
    l.tells(std::slice::from_ref(&first));
    let mut new = vec![first, publishes("new 1".into())];
    victim.sync("moves-on").expect_code(3);
    victim.site.json(["resolve", "moves-on", "--fork", &new[1].id().to_string()]);
    victim.sync("moves-on").ok();
    // Both branches go on, and an answer begins at this site's place, far behind the parting.
    for round in 0..3 {
        l.tells(&new);
        (0..3).for_each(|i| new.push(publishes(format!("new {round}.{i}"))));
        victim.sync("moves-on").ok();
        l.tells(&old);
        (0..4).for_each(|i| old.push(publishes(format!("old {round}.{i}"))));
        let (error, _) = victim.sync("moves-on").expect_code(3).failure();
        assert!(error.contains("decided against"), "{round}: {error}");
        // What was seen of it does not get less by being told less of it.
        l.tells(&old[..new.len()]);
        let (error, _) = victim.sync("moves-on").expect_code(3).failure();
        assert!(error.contains("decided against"), "{round}: {error}");
    }
    l.tells(&new);
    publishes("the last".into());
    victim.sync("moves-on").ok();
    assert_eq!(fs::read(victim.world.path("moves-on").join("raw/a")).unwrap(), b"the last");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_was_chosen_is_of_one_branch() {
    let mut victim = Victim::new();
    let heads = |victim: &Victim, space: &str| -> Vec<String> {
        let list = victim.site.json(["snapshot", "list", space]);
        list.as_array().unwrap().iter().map(|s| s["head"].as_str().unwrap().to_owned()).collect()
    };
    // The owner is set back by several versions: what is seen of its new history begins at the place of this
    // site's newest head, or right after it.
    for (space, after) in [("set-back", 0), ("set-back-one-more", 1)] {
        let l = liar(space, Lie::FromPlace).await;
        let publishes = |text: String| l.publishes(&Draft::of(&[("a", text.as_bytes())]));
        let mut old: Vec<_> = (0..5).map(|i| publishes(format!("old {i}"))).collect();
        let newest = if after == 0 { old.len() - 1 } else { old.len() - 2 };
        l.tells(&old[..=newest]);
        victim.join(&l, space).ok();
        l.tells(&old[..1]);
        let mut new = vec![old[0].clone()];
        (1..5).for_each(|i| new.push(publishes(format!("new {i}"))));
        let told = new[newest + after..].to_vec();
        l.tells(&told);
        victim.sync(space).expect_code(3);
        assert_eq!(heads(&victim, space).len(), newest + 1);
        victim.site.json(["resolve", space, "--fork", &told[0].id().to_string()]);
        assert_eq!(heads(&victim, space), [told[0].id().to_string()], "{space}: two branches are one history");
        victim.sync(space).ok();
        assert_eq!(fs::read(victim.world.path(space).join("raw/a")).unwrap(), b"new 4");
        victim.site.json(["gc", space]);
        assert_eq!(victim.site.json(["verify", space, "--deep"])["ok"], true);

        // The branch that was left is evidence, and is chosen again as any other.
        old.truncate(newest + 1);
        l.tells(&old);
        (0..2).for_each(|i| old.push(publishes(format!("old again {i}"))));
        let (error, _) = victim.sync(space).expect_code(3).failure();
        assert!(error.contains("decided against"), "{space}: {error}");
        victim.site.json(["resolve", space, "--fork", &old[newest].id().to_string()]);
        victim.sync(space).ok();
        let mut followed: Vec<_> = old[newest..].iter().map(|h| h.id().to_string()).collect();
        followed.reverse();
        assert_eq!(heads(&victim, space), followed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_shown_again_thaws_nothing() {
    let mut victim = Victim::new();
    let l = liar("thaw", Lie::None).await;
    let first = l.publishes(&Draft::of(&[("a", b"one")]));
    l.publishes(&Draft::of(&[("a", b"two")]));
    victim.join(&l, "thaw").ok();
    // The inviting site keeps the door waiting, and meanwhile shows another history.
    l.lies(Lie::DoorHeld);
    let knocks = l.knocks();
    let (ticket, into) = (l.ticket_calling_it("thaw-again"), victim.world.path("thaw"));
    let mut join = victim.site.command(["join", &ticket, "--into", into.to_str().unwrap(), "--json"]);
    let join = join.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the ticket", Duration::from_secs(20), || (l.knocks() > knocks).then_some(()));
    l.tells(std::slice::from_ref(&first));
    l.publishes(&Draft::of(&[("a", b"another two")]));
    victim.sync("thaw").expect_code(3);
    l.tells(&[]);
    l.lies(Lie::None);
    site::output("join".into(), join.wait_with_output().unwrap());
    let status = victim.site.json(["status"]);
    let space = status["spaces"].as_array().unwrap().iter().find(|s| s["name"] == "thaw").unwrap();
    assert_eq!(space["state"], "frozen", "{status}");
    assert_eq!(space["branches"].as_array().unwrap().len(), 2, "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_head_is_shown_as_stale_and_clocks_may_differ_by_a_day() {
    const MINUTE: i64 = 60_000;
    const DAY: i64 = 24 * 60 * MINUTE;
    let mut victim = Victim::new();
    let l = liar("clocks", Lie::None).await;
    let state = |victim: &Victim| {
        let status = victim.site.json(["status"]);
        let spaces = status["spaces"].as_array().unwrap();
        spaces.iter().find(|s| s["name"] == "clocks").unwrap()["state"].as_str().unwrap().to_owned()
    };
    let file = victim.world.path("clocks").join("raw/a");
    // As a site sees it whose own clock is a day behind, or ahead.
    l.clock_is_off(DAY - MINUTE, DAY as u64);
    l.publishes(&Draft::of(&[("a", b"one")]));
    victim.join(&l, "clocks").ok();
    assert_eq!(state(&victim), "ready");
    l.clock_is_off(-DAY, (DAY - MINUTE) as u64);
    let stale = l.publishes(&Draft::of(&[("a", b"two")]));
    victim.sync("clocks").ok();
    assert_eq!(state(&victim), "stale");
    victim.site.json(["gc", "clocks"]);
    victim.site.restart();
    assert_eq!((state(&victim).as_str(), fs::read(&file).unwrap()), ("stale", b"two".to_vec()), "nothing is deleted");
    assert_eq!(victim.site.json(["verify", "clocks", "--deep"])["ok"], true);
    // Beyond a day it is no matter of clocks.
    l.clock_is_off(DAY + MINUTE, DAY as u64);
    l.publishes(&Draft::of(&[("a", b"three")]));
    let (sentence, _) = victim.sync("clocks").expect_code(3).failure();
    assert!(sentence.contains("in the future"), "{sentence}");
    l.tells(&[stale]);
    l.clock_is_off(0, DAY as u64);
    l.publishes(&Draft::of(&[("a", b"four")]));
    victim.sync("clocks").ok();
    assert_eq!((state(&victim).as_str(), fs::read(&file).unwrap()), ("ready", b"four".to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_that_lie_are_refused() {
    let mut victim = Victim::new();
    let files: [(&str, &[u8]); 1] = [("placeholder", b"a file")];
    let refused = "the manifest is refused";

    let l = liar("huge-manifest", Lie::None).await;
    l.publishes_manifest(&Draft::of(&files), huge_list(Manifest::KIND, 0));
    victim.refuses(&l, "huge-manifest", 3, refused);

    let l = liar("huge-page", Lie::None).await;
    let mut draft = Draft::of(&files);
    draft.forge_page(|_| huge_list(Page::KIND, 1));
    l.publishes(&draft);
    victim.refuses(&l, "huge-page", 3, refused);

    for (name, height, items) in [("deep", 255, 1), ("deep-enough", 8, 1), ("many", 0, 1 << 60)] {
        let l = liar(name, Lie::None).await;
        let mut draft = Draft::of(&files);
        draft.sections[0].tree.height = height;
        draft.sections[0].tree.items = items;
        l.publishes(&draft);
        victim.refuses(&l, name, 3, refused);
    }

    for (name, path) in [("up", &b"../../above"[..]), ("absolute", b"/etc/shadow"), ("own", b".sluice/sec")] {
        let l = liar(name, Lie::None).await;
        let mut draft = Draft::of(&files);
        draft.forge_page(|page| replaced(page, b"placeholder", path));
        l.publishes(&draft);
        victim.refuses(&l, name, 3, refused);
    }

    // The bytes lie on the victim's own disk, in another owner's space: naming their hash brings nothing.
    let l = liar("foreign", Lie::None).await;
    let honest = fs::read(victim.world.path("honest").join("raw/a.txt")).unwrap();
    let mut draft = Draft::of(&[("stolen", &honest)]);
    draft.files.clear();
    l.publishes(&draft);
    victim.refuses(&l, "foreign", 4, &BlobHash::of(&honest).to_string());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "soak: waits for the time that an answer may take"]
async fn a_message_that_comes_byte_by_byte_is_given_up() {
    let mut victim = Victim::new();
    let l = liar("slow", Lie::SlowMessage).await;
    l.publishes(&Draft::of(&[("a", b"a file")]));
    let failed = victim.join(&l, "slow");
    assert_ne!(failed.code, 0);
    victim.names(&l, "did not answer within");
}
