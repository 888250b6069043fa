//! Links: which travel, and why the others do not.

use crate::world::{World, path, skipped};

#[test]
fn links_inside_travel_and_links_out_are_reported() {
    let world = World::with(&[("raw/a/file", b"x"), ("files/other", b"y")]);
    std::fs::write(world.dir.path().join("secret"), b"outside").unwrap();
    std::fs::create_dir(world.dir.path().join("outside")).unwrap();
    let inside = world.at("raw/a/file").canonicalize().unwrap();
    world.link("raw/good", "a/file");
    world.link("raw/a/up", "../../files/other");
    world.link("raw/folder", "a");
    world.link("raw/dangling", "a/none");
    world.link("alias", "raw");
    world.link("raw/out", "../../secret");
    world.link("raw/absolute", "/etc/passwd");
    world.link("raw/absolute_inside", inside.to_str().unwrap());
    world.link("raw/dangling_out", "../../none");
    world.link("raw/top", "..");
    world.link("raw/own", "../.sluice/objects");
    world.link("raw/hop", "../../outside");
    world.link("raw/through", "hop/none");
    let snapshot = world.snap();
    assert_eq!(
        world.shown(&snapshot),
        [
            ". files shallow: alias->raw",
            "files files: other",
            "raw raw: a/file a/up->../../files/other dangling->a/none folder->a good->a/file",
        ]
    );
    let paths: Vec<&str> = skipped(&snapshot).iter().map(|s| s.0).collect();
    let expected = [
        "raw/absolute",
        "raw/absolute_inside",
        "raw/dangling_out",
        "raw/hop",
        "raw/out",
        "raw/own",
        "raw/through",
        "raw/top",
    ];
    assert_eq!(paths, expected);
}

#[test]
fn no_link_is_followed_by_the_walk() {
    let world = World::with(&[("raw/a", b"a")]);
    std::fs::create_dir(world.dir.path().join("outside")).unwrap();
    std::fs::write(world.dir.path().join("outside/secret"), b"secret").unwrap();
    world.link("raw/loop", "../raw");
    world.link("raw/out", "../../outside");
    let snapshot = world.snap();
    assert_eq!(snapshot.stats.files, 1);
    assert_eq!(world.places(b"secret"), []);
}

#[test]
fn a_link_that_becomes_another_changes_the_id() {
    let world = World::with(&[("raw/a", b"a"), ("raw/b", b"b")]);
    world.link("raw/l", "a");
    let first = world.snap();
    std::fs::remove_file(world.at("raw/l")).unwrap();
    world.link("raw/l", "b");
    let second = world.snap();
    assert_ne!(first.id, second.id);
    assert_eq!(second.stats.read_files, 0);
    let entries = world.entries(&second.manifest.sections[0]);
    assert_eq!(entries.iter().find(|e| e.path == path("l")).unwrap().target.as_deref(), Some("b"));
}
