//! Following: what changes at the owner comes to the others by itself, whatever is down or lost meanwhile.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use sluice_tests::{Site, World, wait};

/// The promise is a minute on any network; on this machine it is seconds, but the machine may be busy.
const COMES_WITHIN: Duration = Duration::from_secs(60);
/// A timer that does not fire within a test.
const NEVER: &str = "86400";

/// How a site of these tests follows: debounce in milliseconds, rescan and poll in seconds.
fn following(world: &World, name: &str, debounce_ms: &str, rescan_s: &str, poll_s: &str) -> Site {
    let mut site = world.sleeping_site(name);
    site.set("SLUICE__FOLLOW__ENABLED", "true");
    site.set("SLUICE__FOLLOW__DEBOUNCE_MS", debounce_ms);
    site.set("SLUICE__FOLLOW__RESCAN_S", rescan_s);
    site.set("SLUICE__FOLLOW__POLL_S", poll_s);
    site
}

fn text(path: &Path) -> &str {
    path.to_str().expect("worlds have UTF-8 paths")
}

/// An owner that follows its lake by its eyes alone.
fn owner(world: &World, lake: &Path) -> Site {
    let mut owner = following(world, "playground", "100", NEVER, NEVER);
    owner.start();
    owner.json(["space", "add", "acme", text(lake)]);
    owner
}

fn join(world: &World, owner: &Site, replica: &Site) -> PathBuf {
    let into = world.path(&format!("copy of {}", replica.name()));
    replica.json(["join", &owner.invite("acme"), "--into", text(&into)]);
    into
}

/// The only space of a site, as `status` shows it.
fn space(site: &Site) -> Value {
    let status = site.json(["status"]);
    status["spaces"][0].clone()
}

/// Waits until the file has these bytes in the copy, and both sites say the same snapshot.
#[track_caller]
fn comes(owner: &Site, replica: &Site, file: &Path, bytes: &[u8]) -> Value {
    let what = format!("`{}` to come to {}", file.display(), replica.name());
    wait::until(&what, COMES_WITHIN, || {
        let here = std::fs::read(file).is_ok_and(|b| b == bytes);
        let (from, to) = (space(owner), space(replica));
        (here && from["snapshot"] == to["snapshot"] && to["state"] == "ready").then_some(to)
    })
}

#[test]
fn a_change_comes_by_itself_and_nothing_else_is_signed() {
    let world = World::new();
    let lake = world.plain_lake("lake", &[("raw/a.txt", b"one"), ("raw/sub/b.txt", b"two")]);
    let mut owner = owner(&world, &lake);
    // Nobody asks: only being told brings it.
    let mut replica = following(&world, "cradle", "100", NEVER, NEVER);
    replica.start();
    let copy = join(&world, &owner, &replica);

    std::fs::write(lake.join("raw/sub/b.txt"), "three").expect("the lake is ours");
    comes(&owner, &replica, &copy.join("raw/sub/b.txt"), b"three");
    // A folder that is new is watched as well.
    std::fs::create_dir_all(lake.join("new/er")).expect("the lake is ours");
    std::fs::write(lake.join("new/er/c"), "four").expect("the lake is ours");
    comes(&owner, &replica, &copy.join("new/er/c"), b"four");
    std::fs::remove_file(lake.join("raw/a.txt")).expect("the lake is ours");
    wait::until("the removal to come", COMES_WITHIN, || (!copy.join("raw/a.txt").exists()).then_some(()));

    let again = owner.json(["snapshot", "acme"]);
    assert_eq!(again["changed"], false, "all of it was taken: {again}");
    let shown = space(&owner);
    assert_eq!(shown["follow"]["following"], true, "{shown}");
    assert_eq!(shown["follow"]["watching"], true, "{shown}");
    assert!(shown["follow"]["in_step_ms"].is_u64() && shown["follow"]["next_ms"].is_u64(), "{shown}");
    let heads = owner.json(["snapshot", "list", "acme"]);
    let heads = heads.as_array().expect("a list");
    for pair in heads.windows(2) {
        assert_ne!(pair[0]["snapshot"], pair[1]["snapshot"], "what changes nothing signs nothing: {heads:?}");
    }
    assert_eq!((owner.stop(), replica.stop()), (Some(0), Some(0)), "sites that follow end in order");
}

#[test]
fn who_was_not_told_asks_and_who_was_away_catches_up() {
    let world = World::new();
    let lake = world.plain_lake("lake", &[("raw/a.txt", b"0")]);
    // This owner tells nobody.
    let mut silent = world.site("playground");
    silent.json(["space", "add", "acme", text(&lake)]);
    let mut replica = following(&world, "cradle", "100", NEVER, "1");
    replica.start();
    let copy = join(&world, &silent, &replica);
    std::fs::write(lake.join("raw/a.txt"), "1").expect("the lake is ours");
    silent.json(["snapshot", "acme"]);
    comes(&silent, &replica, &copy.join("raw/a.txt"), b"1");

    replica.kill9();
    for i in 2..5 {
        std::fs::write(lake.join("raw/a.txt"), i.to_string()).expect("the lake is ours");
        silent.json(["snapshot", "acme"]);
    }
    replica.start();
    let to = comes(&silent, &replica, &copy.join("raw/a.txt"), b"4");
    assert_eq!(to["seq"], 4, "{to}");

    // An owner that is away is told once, and no longer once it is back.
    silent.kill9();
    let alerts = || replica.json(["status"])["alerts"].as_array().expect("alerts").clone();
    let told = wait::until("an alert", COMES_WITHIN, || Some(alerts()).filter(|a| !a.is_empty()));
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["space"], "acme");
    silent.start();
    wait::until("the alert to go", COMES_WITHIN, || alerts().is_empty().then_some(()));
}

#[test]
fn an_owner_finds_at_its_start_what_changed_while_it_was_down() {
    let world = World::new();
    let lake = world.plain_lake("lake", &[("raw/a.txt", b"one")]);
    let mut owner = owner(&world, &lake);
    let mut replica = following(&world, "cradle", "100", NEVER, "2");
    replica.start();
    let copy = join(&world, &owner, &replica);
    owner.kill9();
    std::fs::write(lake.join("raw/a.txt"), "two").expect("the lake is ours");
    owner.start();
    comes(&owner, &replica, &copy.join("raw/a.txt"), b"two");
}

#[test]
fn a_writer_without_end_is_followed_and_a_person_is_not_refused() {
    let world = World::new();
    let lake = world.plain_lake("lake", &[("raw/log", b""), ("raw/still", b"x")]);
    let owner = owner(&world, &lake);
    let mut replica = following(&world, "cradle", "100", NEVER, NEVER);
    replica.start();
    let copy = join(&world, &owner, &replica);
    let stop = AtomicBool::new(false);
    let length = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut length = 0;
            while !stop.load(Ordering::Relaxed) {
                length += 1;
                let name = lake.join(format!("raw/{}", length % 7));
                std::fs::write(name, length.to_string()).expect("the lake is ours");
                std::thread::sleep(Duration::from_millis(20));
            }
            length
        });
        let first = space(&replica)["seq"].as_u64().expect("joined");
        let followed = || space(&replica)["seq"].as_u64().filter(|seq| *seq >= first + 2);
        let mut persons = 0;
        wait::until("two versions to come while the writer writes", COMES_WITHIN, || {
            let taken = owner.run(["snapshot", "acme", "--json"]);
            assert!([0, 4].contains(&taken.code) && taken.stdout.contains("snapshot"), "{taken:#?}");
            persons += 1;
            followed()
        });
        assert!(persons > 0);
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("the writer writes")
    });
    let last = copy.join(format!("raw/{}", length % 7));
    comes(&owner, &replica, &last, length.to_string().as_bytes());
}

#[test]
fn without_enough_watches_the_timer_finds_it_and_status_says_so() {
    let script = "echo 3 > /proc/sys/user/max_inotify_watches && exec \"$0\" \"$@\"";
    let wrapper = ["unshare", "--user", "--map-root-user", "sh", "-c", script];
    let trial = Command::new(wrapper[0]).args(&wrapper[1..]).arg("true").output();
    if !trial.is_ok_and(|o| o.status.success()) {
        return sluice_tests::skip("this machine permits no user namespaces, so the limit cannot be lowered");
    }
    let world = World::new();
    let files: Vec<String> = (0..8).map(|i| format!("raw/{i}/a.txt")).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|f| (f.as_str(), b"one".as_slice())).collect();
    let lake = world.plain_lake("lake", &files);
    let mut owner = following(&world, "playground", "100", "1", NEVER);
    owner.wrap(&wrapper);
    owner.start();
    owner.json(["space", "add", "acme", text(&lake)]);
    let told = wait::until("status to tell of the limit", COMES_WITHIN, || {
        space(&owner)["follow"]["trouble"].as_str().map(str::to_owned)
    });
    assert!(told.contains("max_user_watches") && told.contains("timer"), "{told}");
    assert_eq!(space(&owner)["follow"]["watching"], false);
    let doctor = owner.json(["doctor"]);
    let check = |c: &&Value| c["check"] == "following of acme" && c["health"] == "warning";
    assert!(doctor["checks"].as_array().expect("checks").iter().find(check).is_some(), "{doctor}");

    let before = space(&owner)["snapshot"].clone();
    std::fs::write(lake.join("raw/5/a.txt"), "two").expect("the lake is ours");
    wait::until("the timer to find it", COMES_WITHIN, || (space(&owner)["snapshot"] != before).then_some(()));
}

#[test]
fn a_paused_space_waits_for_a_person() {
    let world = World::new();
    let lakes = [world.plain_lake("one", &[("a", b"1")]), world.plain_lake("two", &[("a", b"1")])];
    let mut owner = following(&world, "playground", "50", NEVER, NEVER);
    owner.start();
    owner.json(["space", "add", "acme", text(&lakes[0])]);
    owner.json(["space", "add", "beta", text(&lakes[1])]);
    let seq = |name: &str| owner.json(["space", "show", name])["seq"].as_u64().expect("a snapshot");
    owner.json(["follow", "acme", "--off"]);
    let shown = owner.json(["follow", "acme"]);
    assert_eq!(shown["follow"]["following"], false, "{shown}");

    // The other space is the clock: what comes later there has come, and here nothing has.
    for i in 1..4 {
        lakes.iter().for_each(|lake| std::fs::write(lake.join("a"), i.to_string()).expect("the lake is ours"));
        let expected = owner.json(["space", "show", "beta"])["seq"].as_u64().expect("a snapshot");
        if i > 1 {
            wait::until("the followed space", COMES_WITHIN, || (seq("beta") > expected).then_some(()));
        } else {
            wait::until("the followed space", COMES_WITHIN, || {
                owner.json(["space", "show", "beta"])["follow"]["in_step_ms"].is_u64().then_some(())
            });
        }
    }
    assert_eq!(seq("acme"), 0, "a paused space is left alone");
    owner.json(["follow", "acme", "--on"]);
    wait::until("the space to be followed again", COMES_WITHIN, || (seq("acme") == 1).then_some(()));
    let (error, hint) = owner.fails(1, ["follow", "gamma", "--on"]);
    assert!(error.contains("gamma") && hint.contains("acme"), "{error} / {hint}");
}

#[test]
fn a_site_comes_along_through_a_third_when_the_owner_is_away() {
    let world = World::new();
    let lake = world.plain_lake("lake", &[("raw/a.txt", b"one")]);
    let mut owner = owner(&world, &lake);
    let mut second = following(&world, "second", "100", NEVER, "1");
    let mut third = following(&world, "third", "100", NEVER, "1");
    second.start();
    third.start();
    let copies = [join(&world, &owner, &second), join(&world, &owner, &third)];
    // Both have heard of each other from the owner by now: its next news names both.
    std::fs::write(lake.join("raw/a.txt"), "two").expect("the lake is ours");
    comes(&owner, &second, &copies[0].join("raw/a.txt"), b"two");
    comes(&owner, &third, &copies[1].join("raw/a.txt"), b"two");

    third.kill9();
    std::fs::write(lake.join("raw/a.txt"), "three").expect("the lake is ours");
    let newest = comes(&owner, &second, &copies[0].join("raw/a.txt"), b"three");
    owner.kill9();
    third.start();
    wait::until("the third site to come along", COMES_WITHIN, || {
        let here = std::fs::read(copies[1].join("raw/a.txt")).is_ok_and(|b| b == b"three");
        (here && space(&third)["snapshot"] == newest["snapshot"]).then_some(())
    });
}

#[test]
fn an_empty_mount_point_is_no_empty_lake() {
    let world = World::new();
    let lake = world.plain_lake("lake", &[("raw/a.txt", b"one"), ("b", b"two")]);
    let owner = owner(&world, &lake);
    let before = space(&owner);
    let aside = world.path("aside");
    std::fs::create_dir(&aside).expect("a folder");
    for name in ["raw", "b"] {
        std::fs::rename(lake.join(name), aside.join(name)).expect("the lake is ours");
    }
    let alert = wait::until("an alert", COMES_WITHIN, || {
        owner.json(["status"])["alerts"].as_array().and_then(|a| a.first().cloned())
    });
    assert!(alert["text"].as_str().is_some_and(|t| t.contains("empty all at once")), "{alert}");
    assert_eq!(space(&owner)["snapshot"], before["snapshot"], "nothing was signed");
    // What a person says counts.
    let taken = owner.json(["snapshot", "acme"]);
    assert_eq!((&taken["changed"], &taken["files"]), (&Value::Bool(true), &Value::from(0)), "{taken}");
}

/// Appends to a file while `act` runs, as fast as a busy log grows.
fn with_a_growing(file: &Path, act: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ends = Ends(&stop);
        scope.spawn(|| {
            let mut log = std::fs::File::options().append(true).open(file).expect("the lake is ours");
            while !stop.load(Ordering::Relaxed) {
                log.write_all(b"one more line\n").expect("the lake is ours");
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        act();
        drop(ends);
    });
}

/// Ends a thread when a test ends, however it ends.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_log_that_grows_without_end_is_not_taken_from_the_copies() {
    for pins_copy in ["true", "false"] {
        let world = World::new();
        let log = vec![b'x'; 8 << 20];
        let lake = world.plain_lake("lake", &[("raw/log", log.as_slice()), ("raw/still", b"x")]);
        let mut owner = following(&world, "playground", "100", "1", NEVER);
        owner.set("SLUICE__PINS__COPY", pins_copy);
        owner.start();
        owner.json(["space", "add", "acme", text(&lake)]);
        let mut replica = following(&world, "cradle", "100", NEVER, "1");
        replica.start();
        let copy = join(&world, &owner, &replica);
        with_a_growing(&lake.join("raw/log"), || {
            std::fs::write(lake.join("raw/new"), "new").expect("the lake is ours");
            wait::until("the log to be kept, or an alert", COMES_WITHIN, || {
                let here = std::fs::metadata(copy.join("raw/log"));
                assert!(here.is_ok_and(|m| m.len() >= log.len() as u64), "the copy keeps what it has");
                let status = owner.json(["status"]);
                let kept = status["spaces"][0]["skipped"].to_string().contains("kept as it was in the last snapshot");
                let told = status["alerts"].to_string().contains("bytes of the last snapshot are gone");
                assert!(!(told && pins_copy == "true"), "{status}");
                (told || kept && copy.join("raw/new").exists()).then_some(())
            });
        });
        let last = std::fs::read(lake.join("raw/log")).expect("the lake is ours");
        comes(&owner, &replica, &copy.join("raw/log"), &last);
        assert!(copy.join("raw/new").exists());
    }
}

/// Tables that Python's own libraries write while the owner watches.
#[cfg(feature = "engine")]
mod tables {
    use sluice_tests::{Lake, differences, inspect};

    use super::*;

    /// An owner that watches the lake, and a replica at the folder given last that keeps up with it.
    fn followed(world: &World, lake: &Lake) -> (Site, Site, PathBuf) {
        let owner = owner(world, lake.root());
        let mut replica = following(world, "cradle", "100", NEVER, NEVER);
        replica.start();
        let copy = join(world, &owner, &replica);
        (owner, replica, copy)
    }

    #[test]
    fn tables_are_followed_through_every_kind_of_change() {
        let world = World::new();
        let lake = world.small_lake("source");
        let (owner, replica, copy) = followed(&world, &lake);
        for step in Lake::steps() {
            lake.change(&step);
            let wanted = lake.inspect();
            wait::until(&format!("`{step}` to come"), COMES_WITHIN, || {
                let same = space(&owner)["snapshot"] == space(&replica)["snapshot"];
                (same && differences(&wanted, &inspect(&copy)).is_empty()).then_some(())
            });
        }
        let again = owner.json(["snapshot", "acme"]);
        assert_eq!(again["changed"], false, "{again}");
    }

    #[test]
    fn a_table_that_is_being_written_is_taken_at_its_last_complete_version() {
        let world = World::new();
        let lake = world.small_lake("source");
        let (owner, replica, copy) = followed(&world, &lake);
        let table = |at: &Path| inspect(at)["delta"]["delta/events"].clone();
        let before = table(&copy);

        // A writer that commits before its data is there, and stops.
        let log = lake.root().join("delta/events/_delta_log");
        let commits = std::fs::read_dir(&log).expect("a Delta table").filter_map(|e| {
            let name = e.expect("readable").file_name().into_string().expect("UTF-8");
            name.strip_suffix(".json")?.parse::<u64>().ok()
        });
        let next = log.join(format!("{:020}.json", commits.max().expect("a commit") + 1));
        let add = r#"{"add":{"path":"missing.parquet","partitionValues":{},"size":9,"modificationTime":0,"dataChange":true}}"#;
        std::fs::write(&next, add).expect("the lake is ours");
        std::fs::write(lake.root().join("raw/besides.txt"), "new").expect("the lake is ours");
        comes(&owner, &replica, &copy.join("raw/besides.txt"), b"new");
        let skipped = space(&owner)["skipped"].to_string();
        assert!(skipped.contains("delta/events") && skipped.contains("is kept"), "{skipped}");
        assert_eq!(table(&copy), before, "the copy has the last complete version");

        // It comes to its senses.
        std::fs::remove_file(&next).expect("the lake is ours");
        std::fs::write(lake.root().join("raw/besides.txt"), "newer").expect("the lake is ours");
        comes(&owner, &replica, &copy.join("raw/besides.txt"), b"newer");
        wait::until("nothing to be left out", COMES_WITHIN, || {
            (space(&owner)["skipped"] == Value::Array(vec![])).then_some(())
        });
    }

    #[test]
    fn a_table_that_lost_its_files_is_not_taken_from_the_copies() {
        let world = World::new();
        let lake = world.small_lake("source");
        let owner = owner(&world, lake.root());
        let replica = world.site("cradle");
        let copy = join(&world, &owner, &replica);
        let before = (inspect(&copy), space(&owner)["snapshot"].clone());

        let (table, aside) = (lake.root().join("delta/events"), world.path("aside"));
        std::fs::create_dir(&aside).expect("a folder");
        let data: Vec<_> = std::fs::read_dir(&table)
            .expect("a Delta table")
            .map(|e| e.expect("readable").file_name())
            .filter(|name| name != "_delta_log")
            .collect();
        data.iter().for_each(|name| std::fs::rename(table.join(name), aside.join(name)).expect("the lake is ours"));
        std::fs::write(lake.root().join("raw/besides.txt"), "new").expect("the lake is ours");
        let alert = wait::until("an alert", COMES_WITHIN, || {
            owner.json(["status"])["alerts"].as_array().and_then(|a| a.first().cloned())
        });
        assert!(alert["text"].as_str().is_some_and(|t| t.contains("delta/events")), "{alert}");
        assert_eq!(space(&owner)["snapshot"], before.1, "nothing was signed");
        replica.json(["sync", "acme"]);
        assert_eq!(inspect(&copy), before.0, "the copy has what it had");

        data.iter().for_each(|name| std::fs::rename(aside.join(name), table.join(name)).expect("the lake is ours"));
        wait::until("the alert to go", COMES_WITHIN, || {
            (owner.json(["status"])["alerts"] == Value::Array(vec![])).then_some(())
        });
        replica.json(["sync", "acme"]);
        assert!(copy.join("raw/besides.txt").exists());
    }
}

#[test]
fn what_is_touched_while_a_snapshot_is_taken_is_in_the_next() {
    let world = World::new();
    let lake = world.plain_lake("lake", &[("raw/a.txt", b"one")]);
    let owner = owner(&world, &lake);
    let heads = || owner.json(["snapshot", "list", "acme"]).as_array().expect("a list").len();
    let comes = |n: usize| wait::until(&format!("head {n}"), COMES_WITHIN, || (heads() >= n).then_some(()));
    comes(1);
    let large = std::fs::File::create(lake.join("raw/large")).expect("the lake is ours");
    large.set_len(3 << 30).expect("a file of holes");
    drop(large);
    // The scan has seen the small file as it was, and the large one is being read.
    let reading = || owner.json(["status"])["jobs"].to_string().contains("\"chunk\"").then_some(());
    wait::until("the large file to be read", COMES_WITHIN, reading);
    // As `touch` and `chmod` do: nothing is written.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(lake.join("raw/a.txt"), mode).expect("the lake is ours");
    assert!(heads() < 3, "the touch came in the middle");
    comes(3);
    assert_eq!(owner.json(["snapshot", "acme"])["changed"], false);
}
