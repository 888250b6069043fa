//! The instrument that judges everything else is tested first: `lake.py inspect` calls two copies
//! of a lake equal, and sees every step that changes one.

use sluice_tests::{Lake, World, differences};

#[test]
fn equal_copies_are_equal_and_every_step_is_seen() {
    let world = World::new();
    let lake = world.small_lake("lake");
    let mut before = lake.inspect();
    let twin = lake.copy_to(world.path("twin"));
    assert_eq!(differences(&before, &twin.inspect()), Vec::<String>::new());

    for step in Lake::steps() {
        lake.change(&step);
        let after = lake.inspect();
        assert!(!differences(&before, &after).is_empty(), "{step} changed nothing that is seen");
        before = after;
    }
    assert_eq!(differences(&before, &lake.inspect()), Vec::<String>::new());
}

#[test]
fn a_damaged_twin_is_told_apart() {
    let world = World::new();
    let lake = world.small_lake("lake");
    let before = lake.inspect();
    for (path, kind) in [("raw/measurements.csv", "byte"), ("raw/empty.dat", "time"), ("raw/inbox", "folder")] {
        let twin = lake.copy_to(world.path(&format!("twin {kind}")));
        let path = twin.root().join(path);
        match kind {
            "byte" => {
                let mut bytes = std::fs::read(&path).expect("the file is there");
                bytes[1000] ^= 1;
                let time = std::fs::metadata(&path).and_then(|m| m.modified()).expect("the file has a time");
                std::fs::write(&path, bytes).expect("the twin is ours");
                std::fs::File::options().write(true).open(&path).and_then(|f| f.set_modified(time)).expect("its time");
            }
            "time" => std::fs::write(&path, b"").expect("the twin is ours"),
            _ => std::fs::remove_dir(&path).expect("it is empty"),
        }
        assert_eq!(differences(&before, &twin.inspect()).len(), 1, "{kind}");
    }
}
