//! Disks that are full or read-only. Mounting takes root; without that right a lake is made
//! read-only by its modes, and the tests that need a mount are left out and counted.

use std::path::{Path, PathBuf};
use std::process::Command;

use sluice_tests::{Site, World};

/// A file system in memory at a folder of the world, gone with the value.
struct Mount(PathBuf);

impl Mount {
    fn tmpfs(path: PathBuf, options: &str) -> Option<Self> {
        std::fs::create_dir(&path).expect("a folder of the world");
        run("mount", &["-t", "tmpfs", "-o", options, "tmpfs", text(&path)]).then_some(Self(path))
    }

    /// The folder `path` itself, from now on only to be read.
    fn read_only(path: PathBuf) -> Option<Self> {
        let bound = run("mount", &["--bind", text(&path), text(&path)]);
        let mount = bound.then_some(Self(path))?;
        run("mount", &["-o", "remount,bind,ro", text(&mount.0)]).then_some(mount)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        run("umount", &["-l", text(&self.0)]);
    }
}

fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|o| o.status.success())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length.div_ceil(4) as u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).take(length).collect()
}

fn owner(world: &World, root: &Path) -> Site {
    let owner = world.site("playground");
    owner.json(["space", "add", "acme", text(root)]);
    owner
}

#[test]
fn a_full_disk_is_named_and_the_join_goes_on_when_there_is_room() {
    let world = World::new();
    let data = bytes(24 << 20);
    let root = world.plain_lake("lake", &[("raw/big.bin", &data)]);
    let owner = owner(&world, &root);
    let site = world.site("cradle");
    let Some(disk) = Mount::tmpfs(world.path("disk"), "size=8m") else {
        return sluice_tests::skip("mounting is not permitted: a full disk is not tested");
    };
    let into = disk.0.join("copy");
    let ticket = owner.invite("acme");
    let failed = site.run(["join", &ticket, "--into", text(&into), "--json"]);
    assert!([1, 4].contains(&failed.code), "{failed:#?}");
    let (error, hint) = failed.failure();
    assert!(error.contains("full") && hint.contains("room"), "{error} / {hint}");
    assert!(!into.join("raw").exists(), "half a version is visible");

    assert!(run("mount", &["-o", "remount,size=128m", text(&disk.0)]), "the disk grows");
    site.run(["join", &ticket, "--into", text(&into), "--json"]).ok();
    assert_eq!(std::fs::read(into.join("raw/big.bin")).expect("published"), data);
}

#[test]
fn a_read_only_lake_is_shared_without_pins() {
    let world = World::new();
    let root = world.plain_lake("lake", &[("raw/a.txt", b"one")]);
    let _mount = Mount::read_only(root.clone());
    if _mount.is_none() {
        if rustix::process::geteuid().is_root() {
            return sluice_tests::skip("mounting is not permitted: a read-only lake is not tested");
        }
        // The next best thing for somebody who is not root: folders that take no new names.
        assert!(run("chmod", &["-R", "a-w", text(&root)]), "our own lake");
    }
    let owner = owner(&world, &root);
    let shown = owner.json(["space", "show", "acme"]);
    let retention = shown["retention"].as_str().expect("retention is described");
    assert!(retention.contains("unavailable"), "{retention}");
    let site = world.site("cradle");
    let into = world.path("copy");
    site.json(["join", &owner.invite("acme"), "--into", text(&into)]);
    assert_eq!(std::fs::read(into.join("raw/a.txt")).expect("published"), b"one");
    assert_eq!(owner.json(["snapshot", "acme"])["changed"], false);
    run("chmod", &["-R", "u+w", text(&root)]);
}

#[test]
fn a_target_that_turns_read_only_is_said_and_goes_on_when_it_is_writable() {
    let world = World::new();
    let root = world.plain_lake("lake", &[("raw/a.txt", b"one"), ("raw/big", &bytes(1 << 20))]);
    let owner = owner(&world, &root);
    let site = world.site("cradle");
    let Some(disk) = Mount::tmpfs(world.path("disk"), "size=64m") else {
        return sluice_tests::skip("mounting is not permitted: a read-only remount is not tested");
    };
    let into = disk.0.join("copy");
    site.json(["join", &owner.invite("acme"), "--into", text(&into)]);
    std::fs::write(root.join("raw/a.txt"), b"two").expect("our own lake");
    owner.json(["snapshot", "acme"]);

    assert!(run("mount", &["-o", "remount,ro", text(&disk.0)]), "the disk turns read-only");
    let failed = site.run(["sync", "acme", "--json"]);
    assert!([1, 4].contains(&failed.code), "{failed:#?}");
    let (error, _) = failed.failure();
    assert!(error.contains("ead-only"), "{error}");
    site.json(["status"]);
    assert_eq!(std::fs::read(into.join("raw/a.txt")).expect("still published"), b"one");

    assert!(run("mount", &["-o", "remount,rw", text(&disk.0)]), "the disk can be written again");
    site.run(["sync", "acme", "--json"]).ok();
    assert_eq!(std::fs::read(into.join("raw/a.txt")).expect("published"), b"two");
}
