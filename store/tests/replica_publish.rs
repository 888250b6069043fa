//! Versions become visible whole, keep what readers hold, and never cost a local change.

mod replica_world;

use std::os::unix::fs::MetadataExt;

use replica_world::*;
use sluice_protocol::manifest::SectionKind::{Delta, Lance, Lora, Raw};
use sluice_store::disk::faults::inject;
use sluice_store::publish::{How, PublishError, PublishOptions, live_path, publish, recover};
use sluice_store::watch::{Silent, Watch};

const SECOND: i64 = 1_000_000_000;

fn lake_of_all_kinds() -> Vec<Part> {
    vec![
        loose(None, vec![file("README.md", "acme").at(5 * SECOND), file("empty", "")]),
        loose(Some("mixed"), vec![file("note.txt", "n").at(7)]),
        part("mixed/adapter", Lora, vec![file("adapter_config.json", "{}"), file("w.safetensors", [7; 40_000])]),
        part("orders", Delta, delta(2)),
        part(
            "raw",
            Raw,
            vec![
                file("2024/a.csv", "1,2").at(11 * SECOND + 5),
                file("2024/run.sh", "#!").mode(0o755),
                file("b.bin", [9; 70_000]).mode(0o600),
                folder("nothing/in/here"),
                link("latest", "2024"),
                link("2024/up", "../b.bin"),
                link("table", "../orders/part-0.parquet"),
                link("dangling", "not/there"),
            ],
        ),
    ]
}

/// A Delta table with this many commits.
fn delta(commits: usize) -> Vec<Item> {
    let mut items = Vec::new();
    for i in 0..commits {
        items.push(file(&format!("part-{i}.parquet"), format!("rows {i}")));
        items.push(file(&format!("_delta_log/{i:020}.json"), format!("commit {i}")).at(i as i64 * SECOND));
    }
    items.push(file("_delta_log/_last_checkpoint", format!("{}", commits / 2)));
    items
}

#[test]
fn a_first_version_shows_whole() {
    let world = World::new();
    let parts = lake_of_all_kinds();
    let published = world.sync(&parts);
    assert!(published.sections.iter().all(|s| s.how == How::Made));
    world.assert_shows(&parts);
    assert_eq!(std::fs::read(world.at("raw/table")).unwrap(), b"rows 0");
    assert_eq!(std::fs::read(world.at("raw/latest/a.csv")).unwrap(), b"1,2");
    assert_eq!(std::fs::read(world.at("raw/2024/up")).unwrap(), vec![9; 70_000]);
    assert!(world.at("raw/nothing/in/here").is_dir());
    let again = world.sync(&parts);
    assert!(again.already);
    assert_eq!(again.generation, published.generation);
    assert_eq!(std::fs::read_dir(world.at(".sluice/staging")).unwrap().count(), 0);
}

#[test]
fn the_real_path_of_a_section_is_told() {
    let world = World::new();
    let parts = lake_of_all_kinds();
    assert_eq!(live_path(&world.lake, &world.catalog, &world.space, None).unwrap(), None);
    world.sync(&parts);
    let told = |s: Option<&str>| live_path(&world.lake, &world.catalog, &world.space, s.map(path).as_ref()).unwrap();
    let whole = told(None).unwrap();
    assert!(whole.ends_with(".sluice/generations/1"));
    world.assert_root_shows(&whole, &parts);
    assert_eq!(std::fs::read(told(Some("orders")).unwrap().join("part-1.parquet")).unwrap(), b"rows 1");
    assert_eq!(told(Some("nothing")), None);
}

#[test]
fn one_changed_file_gives_the_section_a_new_folder_and_shares_the_rest() {
    let world = World::new();
    let mut parts = lake_of_all_kinds();
    world.sync(&parts);
    let before = std::fs::metadata(world.at("raw/b.bin")).unwrap().ino();
    let reader = std::fs::File::open(world.at("raw/2024/a.csv")).unwrap();
    let old = live_path(&world.lake, &world.catalog, &world.space, None).unwrap().unwrap();
    let old_parts = parts.clone();
    parts[4].items[0] = file("2024/a.csv", "1,2,3").at(12 * SECOND);
    parts[4].items.remove(3);
    let published = world.sync(&parts);
    let how: Vec<How> = published.sections.iter().map(|s| s.how).collect();
    assert_eq!(how, [How::Kept, How::Kept, How::Kept, How::Kept, How::Made]);
    world.assert_shows(&parts);
    assert_eq!(std::fs::metadata(world.at("raw/b.bin")).unwrap().ino(), before, "shared by a hard link");
    world.assert_root_shows(&old, &old_parts);
    assert_eq!(std::io::read_to_string(reader).unwrap(), "1,2");
}

#[test]
fn a_table_that_only_grows_grows_in_its_folder() {
    let world = World::new();
    let first = vec![part("orders", Delta, delta(2))];
    world.sync(&first);
    let real = std::fs::canonicalize(world.at("orders")).unwrap();
    let old = live_path(&world.lake, &world.catalog, &world.space, None).unwrap().unwrap();
    let second = vec![part("orders", Delta, delta(6))];
    let published = world.sync(&second);
    assert_eq!(published.sections[0].how, How::Grown);
    assert_eq!(published.sections[0].files, 9, "four commits, four parts, the pointer");
    world.assert_shows(&second);
    assert_eq!(std::fs::canonicalize(world.at("orders")).unwrap(), real);
    assert_eq!(std::fs::read(old.join("orders/part-1.parquet")).unwrap(), b"rows 1");
    assert_eq!(published.generation, 2);
}

#[test]
fn stages_come_in_order_and_each_is_durable_before_the_next() {
    let world = World::new();
    world.sync(&[part("orders", Delta, delta(1))]);
    let next = world.verified(&[part("orders", Delta, delta(3))]);
    let log = logged(&world, || drop(world.publish(&next).unwrap()));
    let at = |what: &str| log.iter().position(|l| l.contains(what)).unwrap_or_else(|| panic!("{what}: {log:#?}"));
    let data = at("part-2.parquet").max(at("part-1.parquet"));
    let one = at("sections.rename lake/.sluice/sections/00000001/_delta_log/00000000000000000001.json");
    let two = at("sections.rename lake/.sluice/sections/00000001/_delta_log/00000000000000000002.json");
    let pointer = at("sections.replace lake/.sluice/sections/00000001/_delta_log/_last_checkpoint");
    assert!(data < one && one < two && two < pointer, "{log:#?}");
    let sync_between = |a: usize, b: usize| log[a..b].iter().any(|l| l.starts_with("sections.sync"));
    assert!(sync_between(data, one) && sync_between(one, two) && sync_between(two, pointer));
    assert!(pointer < at("live.commit") && at("live.commit") < at("live.replace"));
}

/// Every change that `act` makes in the world, as lines of the point and the path.
fn logged(world: &World, act: impl FnOnce()) -> Vec<String> {
    let log = inject(world.dir.path(), "").unwrap();
    act();
    log.passed().iter().map(|p| format!("{} {}", p.point, p.path.display())).collect()
}

#[test]
fn a_rollback_gets_a_new_folder_and_the_old_one_stays_for_its_readers() {
    let world = World::new();
    let first = vec![part("vectors", Lance, lance(3))];
    world.sync(&first);
    let old = live_path(&world.lake, &world.catalog, &world.space, None).unwrap().unwrap();
    let second = vec![part("vectors", Lance, lance(1))];
    let published = world.sync(&second);
    assert_eq!(published.sections[0].how, How::Made);
    world.assert_shows(&second);
    world.assert_root_shows(&old, &first);
}

fn lance(versions: usize) -> Vec<Item> {
    let mut items = Vec::new();
    for i in 1..=versions {
        items.push(file(&format!("data/{i}.lance"), format!("vectors {i}")));
        items.push(file(&format!("_versions/{:020}.manifest", u64::MAX - i as u64), format!("manifest {i}")));
    }
    items
}

#[test]
fn old_generations_go_after_three_and_take_their_folders_along() {
    let world = World::new();
    let version = |i: usize| vec![part("raw", Raw, vec![file("a", format!("{i}")), file("same", [3; 50_000])])];
    for i in 0..6 {
        world.sync(&version(i));
        world.assert_shows(&version(i));
    }
    let count = |at: &str| std::fs::read_dir(world.at(at)).unwrap().count();
    assert_eq!(count(".sluice/generations"), 3);
    assert_eq!(count(".sluice/sections"), 3);
    assert_eq!(std::fs::metadata(world.at("raw/same")).unwrap().nlink(), 3);
    let next = world.verified(&version(6));
    let log = logged(&world, || drop(world.publish(&next).unwrap()));
    let switch = log.iter().position(|l| l == "live.replace lake/.sluice/live").unwrap();
    let removed = log.iter().position(|l| l.starts_with("sections.remove ")).unwrap();
    assert!(switch < removed, "deletions last");
}

#[test]
fn a_generation_stays_for_its_readers_until_the_grace_is_over() {
    let world = World::new();
    let version = |i: usize| vec![part("raw", Raw, vec![file("a", format!("{i}"))])];
    let go_live = |i: usize, seconds: u64| {
        let readers_grace = std::time::Duration::from_secs(seconds);
        let options = PublishOptions { readers_grace, ..Default::default() };
        let verified = world.verified(&version(i));
        publish(&world.lake, &world.catalog, &verified, options, &Silent).unwrap();
    };
    let count = || std::fs::read_dir(world.at(".sluice/generations")).unwrap().count();
    (0..6).for_each(|i| go_live(i, 3600));
    assert_eq!(count(), 6, "all six were live within the last hour");
    world.assert_root_shows(&world.at(".sluice/generations/1"), &version(0));
    go_live(6, 0);
    assert_eq!(count(), 3);
}

#[test]
fn a_local_edit_is_refused_and_kept() {
    let world = World::new();
    let parts = lake_of_all_kinds();
    world.sync(&parts);
    let mut next = parts.clone();
    next[4].items[0] = file("2024/a.csv", "new");
    let edit = world.at("raw/b.bin");
    make_writable(&edit);
    std::fs::write(&edit, b"edited here").unwrap();
    let verified = world.verified(&next);
    match world.publish(&verified) {
        Err(PublishError::Diverged { section, path, .. }) => {
            assert_eq!((section.as_str(), path.as_str()), ("raw", "b.bin"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(std::fs::read(&edit).unwrap(), b"edited here");
    assert_eq!(std::fs::read(world.at("raw/2024/a.csv")).unwrap(), b"1,2", "the section is untouched");
    let problems = world.report(false).problems;
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].path, "raw/b.bin");
}

fn make_writable(at: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o644)).unwrap();
}

#[test]
fn an_edit_that_keeps_size_and_time_is_still_seen() {
    let world = World::new();
    let parts = vec![part("raw", Raw, vec![file("a", "aaaa").at(SECOND), file("b", "b")])];
    world.sync(&parts);
    let at = world.at("raw/a");
    make_writable(&at);
    std::fs::write(&at, b"AAAA").unwrap();
    let edited = std::fs::File::options().write(true).open(&at).unwrap();
    edited.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1)).unwrap();
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o444)).unwrap();
    assert_eq!(world.report(false).problems.len(), 1);
    let next = world.verified(&[part("raw", Raw, vec![file("a", "aaaa").at(SECOND), file("b", "c")])]);
    assert!(matches!(world.publish(&next), Err(PublishError::Diverged { .. })));
    assert_eq!(std::fs::read(&at).unwrap(), b"AAAA");
}

#[test]
fn files_added_and_links_changed_here_are_divergence_too() {
    for change in ["add", "link"] {
        let world = World::new();
        let parts = vec![part("raw", Raw, vec![file("a", "1"), link("l", "a")])];
        world.sync(&parts);
        if change == "add" {
            std::fs::write(world.at("raw/mine"), b"mine").unwrap();
        } else {
            std::fs::remove_file(world.at("raw/l")).unwrap();
            std::os::unix::fs::symlink("elsewhere", world.at("raw/l")).unwrap();
        }
        let next = world.verified(&[part("raw", Raw, vec![file("a", "2"), link("l", "a")])]);
        assert!(matches!(world.publish(&next), Err(PublishError::Diverged { .. })), "{change}");
        assert_eq!(world.report(false).problem_count, 1, "{change}");
    }
}

#[test]
fn what_was_removed_here_comes_back_and_is_named() {
    let world = World::new();
    let items = vec![file("a", "1"), file("b/c", "2"), file("d", "3"), link("l", "a")];
    world.sync(&[part("raw", Raw, items.clone())]);
    for gone in ["raw/b/c", "raw/l", "raw/d"] {
        std::fs::remove_file(world.at(gone)).unwrap();
    }
    assert_eq!(world.report(false).problem_count, 3);
    let next = vec![part("raw", Raw, vec![file("a", "new"), items[1].clone(), items[3].clone()])];
    let received = world.announce(&next);
    world.deliver(&next);
    assert!(world.check(received).is_err(), "the bytes are missing, and the catalog learns it");
    let published = world.sync(&next);
    assert_eq!(published.removed_here, ["raw/b/c", "raw/d", "raw/l"]);
    world.assert_shows(&next);
}

#[test]
fn a_removed_section_folder_is_made_again() {
    let world = World::new();
    let parts = vec![part("raw", Raw, vec![file("a", "1")]), part("t", Delta, delta(2))];
    world.sync(&parts);
    std::fs::remove_dir_all(world.at(".sluice/sections")).unwrap();
    // Nothing changed at the source, so only publishing can find out.
    let mut failed = 0;
    while world.publish(&world.verified(&parts)).is_err() {
        failed += 1;
        world.deliver(&parts);
    }
    assert_eq!(failed, 2, "once for each section");
    world.assert_shows(&parts);
}

#[test]
fn two_do_not_publish_into_one_lake_at_once() {
    let world = World::new();
    let verified = world.verified(&[part("raw", Raw, vec![file("a", "1")])]);
    struct Second<'a>(&'a World, &'a sluice_store::verify::Verified, std::sync::Mutex<Vec<bool>>);
    impl Watch for Second<'_> {
        fn amount(&self, _: &str, _: u64, _: u64, _: u64, _: u64) {}
        fn note(&self, _: String) {}
        fn cancelled(&self) -> bool {
            let busy = matches!(self.0.publish(self.1), Err(PublishError::Busy { .. }));
            self.2.lock().unwrap().push(busy);
            false
        }
    }
    let second = Second(&world, &verified, Default::default());
    world.publish_with(&verified, &second).unwrap();
    let seen = second.2.into_inner().unwrap();
    assert!(!seen.is_empty() && seen.iter().all(|busy| *busy));
}

#[test]
fn a_table_never_grows_over_a_local_file() {
    let world = World::new();
    world.sync(&[part("orders", Delta, delta(2))]);
    let mine = world.at("orders/_delta_log/00000000000000000002.json");
    std::fs::write(&mine, b"a commit made here").unwrap();
    let next = world.verified(&[part("orders", Delta, delta(4))]);
    let before = listing(&world.at(""));
    assert!(matches!(world.publish(&next), Err(PublishError::Diverged { .. })));
    assert_eq!(std::fs::read(&mine).unwrap(), b"a commit made here");
    assert_eq!(listing(&world.at("")), before);
}

#[test]
fn a_changed_pointer_is_not_replaced() {
    let world = World::new();
    world.sync(&[part("orders", Delta, delta(2))]);
    let pointer = world.at("orders/_delta_log/_last_checkpoint");
    make_writable(&pointer);
    std::fs::write(&pointer, b"checkpointed here").unwrap();
    let next = world.verified(&[part("orders", Delta, delta(4))]);
    assert!(matches!(world.publish(&next), Err(PublishError::Diverged { .. })));
    assert_eq!(std::fs::read(&pointer).unwrap(), b"checkpointed here");
}

#[test]
fn the_same_bytes_are_shared_or_copied_as_mode_and_time_allow() {
    let world = World::new();
    let parts = vec![part(
        "raw",
        Raw,
        vec![
            file("a", [1; 30_000]).at(SECOND),
            file("b", [1; 30_000]).at(SECOND),
            file("c", [1; 30_000]).at(2 * SECOND),
            file("d", [1; 30_000]).at(SECOND).mode(0o755),
            file("empty1", "").at(SECOND),
            file("empty2", "").at(2 * SECOND),
        ],
    )];
    world.sync(&parts);
    world.assert_shows(&parts);
    let inode = |name: &str| std::fs::metadata(world.at(&format!("raw/{name}"))).unwrap().ino();
    assert_eq!(inode("a"), inode("b"));
    assert_ne!(inode("a"), inode("c"));
    assert_ne!(inode("a"), inode("d"));
}

#[test]
fn names_at_the_top_come_and_go() {
    let world = World::new();
    let first = vec![
        loose(None, vec![file("a.txt", "a"), file("b.txt", "b"), link("l", "one/x")]),
        part("one", Raw, vec![file("x", "x")]),
    ];
    world.sync(&first);
    world.assert_shows(&first);
    assert_eq!(std::fs::read(world.at("l")).unwrap(), b"x");
    let second =
        vec![loose(None, vec![file("b.txt", "b2"), folder("hollow")]), part("two/deep", Raw, vec![file("y", "y")])];
    world.sync(&second);
    world.assert_shows(&second);
    assert!(std::fs::symlink_metadata(world.at("a.txt")).is_err());
    assert!(std::fs::symlink_metadata(world.at("one")).is_err());
    assert!(world.at("hollow").is_dir());
}

#[test]
fn a_name_in_the_way_is_refused_before_anything_happens() {
    let world = World::new();
    let first = vec![part("one", Raw, vec![file("x", "x")])];
    world.sync(&first);
    std::fs::write(world.at("two"), b"mine").unwrap();
    let next = world.verified(&[part("one", Raw, vec![file("x", "y")]), part("two", Raw, vec![])]);
    assert!(matches!(world.publish(&next), Err(PublishError::Occupied { path }) if path.ends_with("two")));
    assert_eq!(std::fs::read(world.at("two")).unwrap(), b"mine");
    assert_eq!(std::fs::read(world.at("one/x")).unwrap(), b"x");
}

#[test]
fn a_section_that_is_the_whole_lake() {
    let world = World::new();
    let whole = |items| vec![Part { path: None, shallow: false, ..part("x", Raw, items) }];
    let first = whole(vec![file("a/b", "1"), file("c", "2"), link("l", "a/b")]);
    world.sync(&first);
    world.assert_shows(&first);
    let second = whole(vec![file("c", "3")]);
    world.sync(&second);
    world.assert_shows(&second);
}

#[test]
fn a_section_may_be_cut_anew() {
    let world = World::new();
    let first = vec![part("a", Raw, vec![file("b/x", "x"), file("c", "c")])];
    world.sync(&first);
    let second = vec![loose(Some("a"), vec![file("c", "c")]), part("a/b", Raw, vec![file("x", "x")])];
    world.sync(&second);
    world.assert_shows(&second);
}

#[test]
fn a_planted_link_leads_nothing_out() {
    let world = World::new();
    world.sync(&[part("raw", Raw, vec![file("sub/a", "1")])]);
    let outside = world.dir.path().join("elsewhere");
    std::fs::create_dir(&outside).unwrap();
    let next = world.verified(&[part("raw", Raw, vec![file("sub/a", "2")])]);
    // A number that has a name already is not given out.
    std::os::unix::fs::symlink(&outside, world.at(".sluice/sections/00000002")).unwrap();
    let stop = inject(world.dir.path(), "sections.folder@1=halt").unwrap();
    assert!(world.publish(&next).is_err());
    let world = world.stopped(stop);
    // An unfinished version goes on in the folder that it has chosen, which is taken from it meanwhile.
    let chosen = world.at(".sluice/sections/00000003");
    std::os::unix::fs::symlink(&outside, &chosen).unwrap();
    assert!(world.publish(&next).is_err());
    std::fs::remove_file(&chosen).unwrap();
    std::fs::create_dir(&chosen).unwrap();
    std::os::unix::fs::symlink(&outside, chosen.join("sub")).unwrap();
    assert!(world.publish(&next).is_err());
    assert_eq!(std::fs::read(world.at("raw/sub/a")).unwrap(), b"1");
    std::fs::remove_file(chosen.join("sub")).unwrap();
    world.publish(&next).unwrap();
    assert_eq!(std::fs::read(world.at("raw/sub/a")).unwrap(), b"2");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn recovery_points_the_link_at_what_the_catalog_says() {
    let world = World::new();
    let first = vec![part("raw", Raw, vec![file("a", "1")])];
    world.sync(&first);
    let second = vec![part("raw", Raw, vec![file("a", "2")]), part("new", Raw, vec![file("n", "n")])];
    world.sync(&second);
    std::fs::remove_file(world.at(".sluice/live")).unwrap();
    std::os::unix::fs::symlink("generations/1", world.at(".sluice/live")).unwrap();
    std::fs::remove_file(world.at("new")).unwrap();
    assert_eq!(world.report(false).problem_count, 2);
    let done = recover(&world.lake, &world.catalog, &world.space).unwrap();
    assert_eq!(done.switched, Some(2));
    world.assert_shows(&second);
    assert_eq!(recover(&world.lake, &world.catalog, &world.space).unwrap().switched, None);
}

#[test]
fn a_folder_with_something_foreign_is_kept_and_named() {
    let world = World::new();
    let version = |i: usize| vec![part("raw", Raw, vec![file("a", format!("{i}"))])];
    world.sync(&version(0));
    std::fs::write(world.at(".sluice/sections/00000009"), b"stray").unwrap();
    world.sync(&version(1));
    // Written through the old generation, after it was replaced.
    std::fs::write(world.at(".sluice/sections/00000001/late"), b"late").unwrap();
    let mut kept = Vec::new();
    for i in 2..6 {
        kept = world.sync(&version(i)).cleaned.kept;
    }
    assert_eq!(kept, [".sluice/sections/00000001", ".sluice/sections/00000009"]);
    assert_eq!(std::fs::read(world.at(".sluice/sections/00000001/late")).unwrap(), b"late");
}
