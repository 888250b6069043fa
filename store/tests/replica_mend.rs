//! A replica that lost files, rotted or was edited: what is mended, what stays, who decides.

mod replica_world;

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use replica_world::*;
use sluice_protocol::manifest::SectionKind::{Delta, Faiss, Lance, Lora, Raw};
use sluice_store::blobs::quarantine;
use sluice_store::catalog::Lookup;
use sluice_store::disk::faults::{Injected, inject};
use sluice_store::lake::Lake;
use sluice_store::publish::{
    PublishError, PublishOptions, Published, Standing, keep_mine, keep_theirs, look_over, publish, recover,
};
use sluice_store::watch::Silent;

fn look(world: &World) -> Standing {
    look_over(&world.lake, &world.catalog, &world.space).unwrap()
}

/// What a sync does after its look: the version arrives as far as it is wanted, and is published.
fn sync(world: &World, parts: &[Part]) -> Published {
    try_sync(world, parts).unwrap()
}

fn try_sync(world: &World, parts: &[Part]) -> Result<Published, PublishError> {
    recover(&world.lake, &world.catalog, &world.space)?;
    look(world);
    publish(&world.lake, &world.catalog, &world.verified(parts), PublishOptions::default(), &Silent)
}

fn one() -> Vec<Part> {
    vec![
        loose(None, vec![file("README", "read").at(7)]),
        loose(Some("mixed"), vec![file("note.txt", "n").at(7)]),
        part("mixed/deep", Raw, vec![file("x", "x")]),
        part("orders", Delta, vec![file("part-0", "rows"), file("_delta_log/00000000000000000000.json", "c0").at(3)]),
        part(
            "raw",
            Raw,
            vec![
                file("a", "aaaa").at(5),
                file("d/b", "bb"),
                file("big", vec![3; 90_000]),
                folder("e"),
                link("l", "d/b"),
            ],
        ),
    ]
}

/// The same with a change in each section.
fn two() -> Vec<Part> {
    let mut parts = one();
    parts[0].items[0] = file("README", "read again").at(8);
    parts[1].items[0] = file("note.txt", "noted").at(8);
    parts[2].items[0] = file("x", "xx");
    parts[3].items.push(file("part-1", "more rows"));
    parts[3].items.push(file("_delta_log/00000000000000000001.json", "c1").at(4));
    parts[4].items[0] = file("a", "AAAAA").at(6);
    parts
}

#[test]
fn what_is_missing_comes_back_although_nothing_is_new() {
    let world = World::new();
    sync(&world, &one());
    for gone in ["raw/d/b", "raw/l", "orders/part-0", "mixed/note.txt"] {
        std::fs::remove_file(world.at(gone)).unwrap();
    }
    std::fs::remove_dir(world.at("raw/e")).unwrap();
    let standing = look(&world);
    assert_eq!(standing.to_mend, 5, "{standing:?}");
    let mended = sync(&world, &one());
    assert!(!mended.already);
    world.assert_shows(&one());
    assert_eq!(look(&world).to_mend, 0);
    assert!(sync(&world, &one()).already, "once is enough");
}

/// The paths that a check names, and what it says of them.
fn named(world: &World, deep: bool) -> Vec<(String, String)> {
    world.report(deep).problems.into_iter().map(|p| (p.path, p.what)).collect()
}

#[test]
fn a_name_that_was_removed_at_the_top_is_missed_and_comes_back() {
    let whole = Part { path: None, ..part("raw", Raw, vec![file("README", "r"), file("raw/a", "a")]) };
    for (parts, names) in [(one(), ["README", "mixed", "raw"].as_slice()), (vec![whole], &["README", "raw"])] {
        let world = World::new();
        sync(&world, &parts);
        names.iter().for_each(|name| std::fs::remove_file(world.at(name)).unwrap());
        for deep in [false, true] {
            let gone = |name: &&str| (name.to_string(), "the link into the live version is missing".to_string());
            assert_eq!(named(&world, deep), names.iter().map(gone).collect::<Vec<_>>());
        }
        let standing = look(&world);
        assert_eq!(
            (standing.to_mend as usize, &standing.removed_here),
            (names.len(), &names.iter().map(|n| n.to_string()).collect())
        );
        assert!(standing.live.unwrap().is_hurt(), "following knows that there is something to do");
        assert!(sync(&world, &parts).already, "no folder is made anew for a name");
        world.assert_shows(&parts);
        let standing = look(&world);
        assert!(standing.to_mend == 0 && !standing.live.unwrap().is_hurt());
    }
}

#[test]
fn a_name_at_the_top_that_a_person_took_is_named_and_stays() {
    let world = World::new();
    sync(&world, &one());
    let elsewhere = world.dir.path().join("outside");
    for name in ["README", "raw", "mixed", "orders"] {
        std::fs::remove_file(world.at(name)).unwrap();
    }
    std::fs::write(world.at("README"), b"mine").unwrap();
    std::fs::create_dir(world.at("raw")).unwrap();
    std::os::unix::fs::symlink(&elsewhere, world.at("orders")).unwrap();
    let taken = |name: &str| (name.to_string(), "has taken the place of the link into the live version".to_string());
    let gone = ("mixed".to_string(), "the link into the live version is missing".to_string());
    assert_eq!(named(&world, false), [taken("README"), gone, taken("orders"), taken("raw")]);
    assert_eq!(look(&world).removed_here, ["mixed"]);
    sync(&world, &two());
    assert_eq!(diverged(&world), [".", "orders", "raw"]);
    assert_eq!(std::fs::read(world.at("README")).unwrap(), b"mine");
    assert_eq!(std::fs::read_link(world.at("orders")).unwrap(), elsewhere);
    assert_eq!(std::fs::read_dir(world.at("raw")).unwrap().count(), 0);
    assert_eq!(std::fs::read(world.at("mixed/note.txt")).unwrap(), b"noted", "the others go on");
    assert_eq!(named(&world, true), [taken("README"), taken("orders"), taken("raw")]);
}

#[test]
fn a_check_names_links_below_the_top_that_are_gone_or_replaced() {
    let world = World::new();
    sync(&world, &one());
    std::fs::remove_file(world.at("mixed/deep")).unwrap();
    std::fs::remove_file(world.at("mixed/note.txt")).unwrap();
    std::fs::write(world.at("mixed/note.txt"), b"mine").unwrap();
    let said = |path: &str, what: &str| (path.to_string(), what.to_string());
    let wanted = [said("mixed/note.txt", "was replaced here"), said("mixed/deep", "the link is missing")];
    assert_eq!(named(&world, false), wanted);
    sync(&world, &one());
    assert_eq!(named(&world, false), wanted[..1], "the link came back, the edit stays");
}

#[test]
fn a_look_at_a_whole_replica_finds_nothing_and_writes_nothing() {
    let world = World::new();
    sync(&world, &one());
    let before = world.catalog.read().unwrap().live(&world.space).unwrap();
    let standing = look(&world);
    assert_eq!((standing.to_mend, &standing.live), (0, &before));
    assert!(standing.live.unwrap().sections.iter().all(|s| !s.stays() && !s.is_remade()));
}

#[test]
fn lost_modes_and_times_are_put_back_and_a_touch_is_learnt() {
    let world = World::new();
    sync(&world, &one());
    std::fs::set_permissions(world.at("raw/d/b"), std::fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(look(&world).to_mend, 1);
    sync(&world, &one());
    world.assert_shows(&one());
    // A second name moves only the change time: hashed once, then known.
    std::fs::hard_link(world.at("raw/big"), world.dir.path().join("second")).unwrap();
    assert_eq!(look(&world).to_mend, 0);
    let record = world.catalog.read().unwrap().file(&world.space, &path("raw/big")).unwrap().unwrap();
    let print = Lake::print_of(&std::fs::File::open(world.at("raw/big")).unwrap()).unwrap();
    assert_eq!(record.print, print);
}

#[test]
fn rot_is_found_set_aside_and_fetched_again() {
    let world = World::new();
    sync(&world, &one());
    // An older generation shares the file.
    let mut next = one();
    next[4].items[1] = file("d/b", "b2");
    sync(&world, &next);
    rot(&world, "raw/big");
    assert_eq!(look(&world).to_mend, 0, "nothing but reading finds it");
    let report = world.report(true);
    assert_eq!((report.problem_count, report.rotten.len()), (1, 1), "{report:?}");
    let rotten = report.rotten[0].clone();
    quarantine(&world.lake, &world.catalog, &world.space, &rotten.hash, &rotten.place).unwrap();
    assert!(!world.catalog.read().unwrap().has_blob(&world.space, &rotten.hash).unwrap(), "under no name");
    assert_eq!(world.report(false).problem_count, 1, "it is remembered");
    assert_eq!(look(&world).to_mend, 1);
    sync(&world, &next);
    world.assert_shows(&next);
    let aside: Vec<_> = std::fs::read_dir(world.at(".sluice/quarantine")).unwrap().collect();
    assert_eq!(aside.len(), 1);
    // The old folders, which held the same file under other names, still go in their time.
    for i in 0..4 {
        next[4].items[1] = file("d/b", format!("b{i}"));
        let kept = sync(&world, &next).cleaned.kept;
        assert_eq!(kept, Vec::<String>::new());
    }
}

/// Flips `count` random bits in one file of each class; a full check finds each of them, alone and where it is.
fn every_flip_is_found(count: u64) {
    let world = World::new();
    let parts = vec![
        loose(None, vec![file("README", "read").at(7)]),
        part(
            "orders",
            Delta,
            vec![file("part-0", vec![5; 20_000]), file("_delta_log/00000000000000000000.json", "c0").at(3)],
        ),
        part("vectors", Lance, vec![file("data/x.lance", vec![1; 3000]), file("_versions/1.manifest", vec![2; 300])]),
        part("index", Faiss, vec![file("index.faiss", vec![4; 70_000])]),
        part("adapter", Lora, vec![file("adapter_config.json", "{}"), file("adapter.safetensors", vec![6; 17_000])]),
        part("raw", Raw, vec![file("one", "1"), file("big", vec![3; 200_000])]),
    ];
    sync(&world, &parts);
    let classes: Vec<String> = parts
        .iter()
        .flat_map(|p| p.items.iter().map(|i| p.path.iter().map(|p| format!("{p}/")).collect::<String>() + &i.path))
        .collect();
    let mut dice = blake3::Hasher::new().update(b"flips").finalize_xof();
    let mut roll = |below: u64| {
        let mut raw = [0; 8];
        dice.fill(&mut raw);
        u64::from_le_bytes(raw) % below
    };
    for class in &classes {
        let bits = std::fs::metadata(world.at(class)).unwrap().len() * 8;
        for _ in 0..count {
            let bit = roll(bits);
            flip(&world, class, bit);
            let report = world.report(true);
            assert_eq!((report.problem_count, report.rotten.len()), (1, 1), "bit {bit} of {class}: {report:?}");
            // Back again, so that the next one is alone.
            flip(&world, class, bit);
        }
        assert_eq!(world.report(true).problem_count, 0);
        // The last one stays, is taken out of use and comes again.
        flip(&world, class, roll(bits));
        let rotten = world.report(true).rotten[0].clone();
        quarantine(&world.lake, &world.catalog, &world.space, &rotten.hash, &rotten.place).unwrap();
        sync(&world, &parts);
        world.assert_shows(&parts);
    }
}

#[test]
fn a_few_flips_in_each_class_of_files_are_found() {
    every_flip_is_found(10);
}

#[test]
#[ignore = "soak: a thousand flips in each class of files"]
fn a_thousand_flips_in_each_class_of_files_are_found() {
    every_flip_is_found(1000);
}

/// Every way to change a published file, and the section that diverges by it.
/// What is done, in which section, and how.
type Edit = (&'static str, &'static str, fn(&World));

fn edits() -> Vec<Edit> {
    vec![
        ("edited in place", "raw", |w| write(&w.at("raw/a"), b"mine")),
        ("renamed over", "raw", |w| {
            std::fs::write(w.dir.path().join("new"), b"mine").unwrap();
            std::fs::rename(w.dir.path().join("new"), w.at("raw/a")).unwrap();
        }),
        ("added", "raw", |w| std::fs::write(w.at("raw/d/mine"), b"mine").unwrap()),
        ("added to a table", "orders", |w| {
            std::fs::write(w.at("orders/_delta_log/00000000000000000001.json"), b"mine").unwrap();
        }),
        ("renamed over in a shallow section", "mixed", |w| {
            std::fs::write(w.dir.path().join("new"), b"mine").unwrap();
            std::fs::rename(w.dir.path().join("new"), w.at("mixed/note.txt")).unwrap();
        }),
        ("added to a shallow section", "mixed", |w| std::fs::write(w.at("mixed/mine"), b"mine").unwrap()),
        ("a name that is not UTF-8 in a section", "raw", |w| std::fs::write(odd(&w.at("raw/d")), b"mine").unwrap()),
        ("a name that is not UTF-8 in a shallow section", "mixed", |w| {
            std::fs::write(odd(&w.at("mixed")), b"mine").unwrap();
        }),
        ("top link replaced by a file", ".", |w| {
            std::fs::remove_file(w.at("README")).unwrap();
            std::fs::write(w.at("README"), b"mine").unwrap();
        }),
        ("top link replaced by a folder", "raw", |w| {
            std::fs::remove_file(w.at("raw")).unwrap();
            std::fs::create_dir(w.at("raw")).unwrap();
            std::fs::write(w.at("raw/a"), b"mine").unwrap();
        }),
    ]
}

/// Every file that holds what the person wrote.
fn mine(world: &World) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![world.at("")];
    while let Some(folder) = todo.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                todo.push(entry.path());
            } else if kind.is_file() && std::fs::read(entry.path()).unwrap() == b"mine" {
                let below = entry.path().strip_prefix(world.at("")).unwrap().to_owned();
                found.push(below.to_string_lossy().into_owned());
            }
        }
    }
    found.sort();
    found
}

fn diverged(world: &World) -> Vec<String> {
    let live = look(world).live.unwrap();
    live.sections.iter().filter(|s| s.stays()).map(|s| s.name().to_string()).collect()
}

/// A path in a folder whose last name is not UTF-8.
fn odd(folder: &Path) -> PathBuf {
    folder.join(std::ffi::OsStr::from_bytes(b"m\xffine"))
}

/// The visible files that hold what the person wrote.
fn mine_visible(world: &World) -> usize {
    let mut found = 0;
    let mut todo: Vec<PathBuf> = std::fs::read_dir(world.at("")).unwrap().map(|e| e.unwrap().path()).collect();
    todo.retain(|p| !p.ends_with(".sluice"));
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
        } else if std::fs::read(&path).is_ok_and(|b| b == b"mine") {
            found += 1;
        }
    }
    found
}

#[test]
fn a_changed_section_stays_and_the_others_go_on() {
    for (what, section, edit) in edits() {
        let world = World::new();
        sync(&world, &one());
        edit(&world);
        assert_eq!(diverged(&world), [section], "{what}");
        let before = mine(&world).len();
        sync(&world, &two());
        assert_eq!(diverged(&world), [section], "{what}: after a sync");
        assert_eq!((mine(&world).len(), mine_visible(&world)), (before, 1), "{what}");
        let others = two().into_iter().filter(|p| p.path.as_deref().unwrap_or(".") != section);
        for p in others {
            let below = p.path.as_ref().map_or(world.at(""), |p| world.at(p));
            for item in p.items.iter().filter(|i| i.target.is_none() && !i.path.ends_with('e')) {
                assert_eq!(std::fs::read(below.join(&item.path)).unwrap(), item.bytes, "{what}: {:?}", p.path);
            }
        }
        assert!(sync(&world, &two()).already, "{what}: nothing is left to do");
    }
}

fn theirs(world: &World, section: &str) {
    let at = (section != ".").then(|| path(section));
    assert!(world.catalog.write(|b| keep_theirs(b, &world.space, at.as_ref(), "kept/now")).unwrap());
}

#[test]
fn theirs_puts_the_owners_version_back_and_keeps_the_other_aside() {
    for (what, section, edit) in edits() {
        for (before_decision, after) in [(one(), one()), (two(), two()), (one(), two())] {
            let world = World::new();
            sync(&world, &one());
            edit(&world);
            sync(&world, &before_decision);
            theirs(&world, section);
            sync(&world, &after);
            world.assert_shows(&after);
            let kept = mine(&world);
            assert!(kept.len() == 1 && kept[0].starts_with(".sluice/kept/now"), "{what}: {kept:?}");
            assert!(diverged(&world).is_empty(), "{what}");
        }
    }
}

#[test]
fn mine_detaches_the_section_and_keeps_what_is_here_of_theirs() {
    for (what, section, edit) in edits() {
        let world = World::new();
        sync(&world, &one());
        // The bytes of the edited file lie elsewhere, too.
        let mut parts = one();
        parts[4].items.push(file("twin", "aaaa").at(9));
        sync(&world, &parts);
        edit(&world);
        look(&world);
        let at = (section != ".").then(|| path(section));
        let aside = keep_mine(&world.lake, &world.catalog, &world.space, at.as_ref(), "kept/now").unwrap();
        if what == "edited in place" {
            assert_eq!(aside.kept, ["raw/a"], "{aside:?}");
            assert_eq!(std::fs::read(world.at(".sluice/kept/now/raw/a")).unwrap(), b"aaaa");
        }
        let live = look(&world).live.unwrap();
        assert!(live.sections.iter().any(|s| s.detached && s.name() == section), "{what}");
        sync(&world, &two());
        sync(&world, &one());
        assert_eq!(mine_visible(&world), 1, "{what}");
        let report = world.report(true);
        assert_eq!((report.detached, report.problems), (vec![section.to_string()], vec![]), "{what}");
        theirs(&world, section);
        sync(&world, &two());
        world.assert_shows(&two());
        let kept: Vec<String> = mine(&world);
        assert!(kept.len() == 1 && kept[0].starts_with(".sluice/kept/now"), "{what}: {kept:?}");
    }
}

#[test]
fn an_undone_change_lets_the_section_follow_again() {
    let world = World::new();
    sync(&world, &one());
    std::fs::write(world.at("raw/mine"), b"mine").unwrap();
    sync(&world, &two());
    std::fs::remove_file(world.at("raw/mine")).unwrap();
    sync(&world, &two());
    world.assert_shows(&two());
}

/// Ends everything before change number `at` (from 0), as a kill would.
fn stop(world: &World, at: usize) -> Injected {
    inject(world.dir.path(), &format!("*@{}=halt", at + 1)).unwrap()
}

#[test]
fn a_decision_is_finished_wherever_it_was_stopped() {
    // Each way is stopped before every third effect, each at others.
    for (first, (what, section, edit)) in edits().into_iter().step_by(3).enumerate() {
        for at in (first..).step_by(3) {
            let world = World::new();
            sync(&world, &one());
            edit(&world);
            look(&world);
            theirs(&world, section);
            let verified = world.verified(&two());
            let stop = stop(&world, at);
            let halted = publish(&world.lake, &world.catalog, &verified, PublishOptions::default(), &Silent).is_err();
            assert_eq!(mine(&world).len(), 1, "{what}, stop {at}");
            let world = world.stopped(stop);
            recover(&world.lake, &world.catalog, &world.space).unwrap();
            sync(&world, &two());
            world.assert_shows(&two());
            let kept = mine(&world);
            assert!(kept.len() == 1 && kept[0].starts_with(".sluice/kept/now"), "{what}, stop {at}: {kept:?}");
            if !halted {
                assert!(at > 20);
                break;
            }
        }
    }
}

#[test]
fn detaching_is_whole_or_did_not_happen() {
    for at in 0.. {
        let world = World::new();
        sync(&world, &one());
        write(&world.at("raw/a"), b"mine");
        look(&world);
        let stop = stop(&world, at);
        let done = keep_mine(&world.lake, &world.catalog, &world.space, Some(&path("raw")), "kept/now");
        let world = world.stopped(stop);
        let live = look(&world).live.unwrap();
        let raw = live.sections.iter().find(|s| s.name() == "raw").unwrap();
        // A stop within the commit may leave it done: what was answered is then only too modest.
        assert!(raw.detached || done.is_err(), "stop {at}");
        assert!(raw.stays() && mine_visible(&world) == 1);
        if done.is_ok() {
            break;
        }
    }
}

#[test]
fn mending_is_finished_wherever_it_was_stopped() {
    for at in 0.. {
        let world = World::new();
        sync(&world, &one());
        std::fs::remove_file(world.at("raw/d/b")).unwrap();
        std::fs::remove_file(world.at("orders/part-0")).unwrap();
        look(&world);
        let verified = world.verified(&one());
        let stop = stop(&world, at);
        let halted = publish(&world.lake, &world.catalog, &verified, PublishOptions::default(), &Silent).is_err();
        let world = world.stopped(stop);
        sync(&world, &one());
        world.assert_shows(&one());
        if !halted {
            break;
        }
    }
}

/// Loses the pages of a section, or the manifest, as a bad disk would.
fn lose(world: &World, section: Option<&str>) {
    let reader = world.catalog.read().unwrap();
    let live = reader.live(&world.space).unwrap().unwrap();
    let lost = match section {
        None => live.snapshot.into(),
        Some(name) => live.sections.iter().find(|s| s.name() == name).unwrap().tree,
    };
    drop(reader);
    world.catalog.write(|b| b.remove_meta(&world.space, &lost)).unwrap();
}

#[test]
fn pages_that_cannot_be_read_are_no_edit() {
    let all = [Some("."), Some("mixed"), Some("mixed/deep"), Some("orders"), Some("raw"), None];
    for (lost, next) in all.iter().flat_map(|lost| [(lost, one()), (lost, two())]) {
        let world = World::new();
        sync(&world, &one());
        lose(&world, *lost);
        let standing = look(&world);
        let unread: Vec<&str> = standing.unread.iter().map(|u| u.section.as_str()).collect();
        assert_eq!((unread.len(), standing.to_mend), (if lost.is_some() { 1 } else { 5 }, 0), "{lost:?}: {standing:?}");
        assert!(lost.is_none_or(|lost| unread == [lost]));
        assert_eq!(diverged(&world), [""; 0], "{lost:?}");
        assert!(sync(&world, &next).cleaned.kept.is_empty());
        world.assert_shows(&next);
        assert!(!world.at(".sluice/kept").exists(), "{lost:?}");
        // Nothing of what was is in the way of what comes.
        sync(&world, &two());
        sync(&world, &one());
        world.assert_shows(&one());
    }
}

#[test]
fn what_a_person_did_is_found_without_the_pages_too() {
    // Whether a link is ours cannot be known then, nor that one is gone.
    for (what, section, edit) in edits().into_iter().filter(|(what, ..)| !what.contains("link")) {
        let world = World::new();
        sync(&world, &one());
        edit(&world);
        lose(&world, Some(section));
        assert_eq!(diverged(&world), [section], "{what}");
        theirs(&world, section);
        lose(&world, Some(section));
        sync(&world, &two());
        world.assert_shows(&two());
        let kept = mine(&world);
        assert!(kept.len() == 1 && kept[0].starts_with(".sluice/kept/now"), "{what}: {kept:?}");
        assert_eq!(listing(&world.at(".sluice/kept")).len(), 1, "{what}: only the edit is kept aside");
    }
}

#[test]
fn a_name_that_is_not_utf8_between_sections_stays_in_view() {
    let between = |n: usize| vec![part("area/one", Raw, vec![file("n", n.to_string())]), part("area/two", Raw, vec![])];
    let world = World::new();
    sync(&world, &between(1));
    std::fs::write(odd(&world.at("area")), b"mine").unwrap();
    std::fs::create_dir(odd(&world.at("area")).with_extension("d")).unwrap();
    std::fs::write(odd(&odd(&world.at("area")).with_extension("d")), b"mine").unwrap();
    for n in 2..6 {
        assert!(sync(&world, &between(n)).cleaned.kept.is_empty());
        assert_eq!(diverged(&world), [""; 0]);
        assert_eq!((mine(&world).len(), mine_visible(&world)), (2, 2), "version {n}");
    }
}
