//! Every way in which it goes wrong for a user: one clear sentence, a hint, the right exit code,
//! and nothing lost.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use sluice_tests::site::{finish, sluice};
use sluice_tests::{Lake, Output, Site, World, wait};

/// A sentence a person can use: one line, not a chain of causes, naming the thing, with advice.
#[track_caller]
fn assert_helpful((error, hint): &(String, String), names: &[&str]) {
    assert!(!error.is_empty() && !error.contains('\n'), "one sentence: {error:?}");
    assert!(!hint.is_empty(), "no hint with: {error}");
    for name in names {
        assert!(format!("{error} {hint}").contains(name), "`{name}` is not named: {error} / {hint}");
    }
    for leak in ["panicked", "Os {", "Error(", "RUST_BACKTRACE"] {
        assert!(!error.contains(leak) && !hint.contains(leak), "not for people: {error} / {hint}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// An owner that shares a small plain lake as `acme`.
fn owner(world: &World) -> Site {
    let root = world.plain_lake("lake", &[("raw/a.txt", b"one"), ("raw/b.txt", b"two")]);
    let owner = world.site("playground");
    owner.json(["space", "add", "acme", text(&root)]);
    owner
}

/// A ticket with one character exchanged.
fn damaged(ticket: &str) -> String {
    let middle = ticket.len() / 2;
    let other = if ticket.as_bytes()[middle] == b'A' { "B" } else { "A" };
    format!("{}{other}{}", &ticket[..middle], &ticket[middle + 1..])
}

#[test]
fn not_a_directory() {
    let world = World::new();
    let site = world.site("playground");
    let file = world.path("a file");
    std::fs::write(&file, b"").expect("a file");
    assert_helpful(&site.fails(1, ["space", "add", "acme", text(&file)]), &["a file", "folder"]);
    let nothing = world.path("nothing");
    assert_helpful(&site.fails(1, ["space", "add", "acme", text(&nothing)]), &["nothing"]);
    assert_eq!(site.json(["space", "list"]).as_array().map(Vec::len), Some(0));
}

#[test]
fn no_such_space_or_peer() {
    let world = World::new();
    let site = world.site("playground");
    for args in [
        vec!["snapshot", "acme"],
        vec!["sync", "acme"],
        vec!["verify", "acme"],
        vec!["path", "acme"],
        vec!["space", "show", "acme"],
        vec!["space", "remove", "acme"],
        vec!["invite", "acme", "--read"],
    ] {
        assert_helpful(&site.fails(1, args), &["acme"]);
    }
    assert_helpful(&site.fails(1, ["peer", "show", "cradle"]), &["cradle"]);
    assert_helpful(&site.fails(1, ["peer", "revoke", "cradle"]), &["cradle"]);
}

#[test]
fn tickets_damaged_expired_and_used() {
    let world = World::new();
    let owner = owner(&world);
    let site = world.site("cradle");
    let into = world.path("copy");
    let join = |code: i32, ticket: &str| site.fails(code, ["join", ticket, "--into", text(&into)]);

    // What is no ticket was mistyped: usage. What was refused is an error.
    assert_helpful(&join(2, "hello"), &["ticket"]);
    let ticket = owner.invite("acme");
    assert_helpful(&join(2, &damaged(&ticket)), &["damaged"]);
    let short = owner.json(["invite", "acme", "--read", "--expires", "1s"]);
    let made = Instant::now();
    wait::until("the ticket to expire", Duration::from_secs(5), || (made.elapsed().as_millis() > 1100).then_some(()));
    assert_helpful(&join(1, short["ticket"].as_str().expect("ticket")), &["expired"]);
    assert!(!into.exists(), "a refused join leaves nothing behind");

    // The good one still works after all that, for the same site even twice.
    site.json(["join", &ticket, "--into", text(&into)]);
    let other = world.site("other");
    let elsewhere = world.path("elsewhere");
    assert_helpful(&other.fails(1, ["join", &ticket, "--into", text(&elsewhere)]), &["used"]);
}

#[test]
fn an_unreachable_peer_is_named_with_the_addresses_tried() {
    let world = World::new();
    let mut owner = owner(&world);
    let site = world.site("cradle");
    let into = world.path("copy");
    let ticket = owner.invite("acme");
    site.json(["join", &ticket, "--into", text(&into)]);
    let late = owner.invite("acme");
    let port = owner.p2p_port().to_string();
    owner.kill9();

    let failed = site.run(["sync", "acme", "--json"]);
    assert!([1, 4].contains(&failed.code), "{failed:#?}");
    assert_helpful(&failed.failure(), &[&port]);
    let other = world.site("other");
    assert_helpful(&other.fails(1, ["join", &late, "--into", text(&world.path("never"))]), &[&port]);
    assert_eq!(std::fs::read(into.join("raw/a.txt")).expect("what was here stays"), b"one");
}

#[test]
fn a_target_that_cannot_take_the_lake() {
    let world = World::new();
    let owner = owner(&world);
    let site = world.site("cradle");
    let ticket = owner.invite("acme");
    let file = world.path("a file");
    std::fs::write(&file, b"mine").expect("a file");
    assert_helpful(&site.fails(1, ["join", &ticket, "--into", text(&file)]), &["a file"]);
    let full = world.plain_lake("not empty", &[("mine.txt", b"mine")]);
    assert_helpful(&site.fails(1, ["join", &ticket, "--into", text(&full)]), &["not empty"]);
    assert_eq!(std::fs::read(full.join("mine.txt")).expect("untouched"), b"mine");
    site.json(["join", &ticket, "--into", text(&world.path("copy"))]);
}

#[test]
fn two_daemons_on_one_home() {
    let world = World::new();
    let site = world.site("playground");
    let second = site.run(["up"]).expect_code(1);
    assert!(second.stderr.contains("daemon"), "{}", second.stderr);
    assert!(!second.stderr.contains("panicked"), "{}", second.stderr);
    site.json(["status"]);
}

#[test]
fn no_daemon_and_no_home() {
    let world = World::new();
    let site = world.sleeping_site("playground");
    assert_helpful(&site.fails(1, ["status"]), &["sluice up"]);
    let mut bare = sluice();
    bare.arg("--home").arg(world.path("nowhere")).args(["status", "--json"]);
    assert_helpful(&finish(&mut bare).expect_code(1).failure(), &["sluice init"]);
    let again = site.run(["init", "--name", "other", "--json"]).expect_code(1);
    assert_helpful(&again.failure(), &["playground"]);
}

#[test]
fn a_home_that_others_can_read_is_refused() {
    let world = World::new();
    let site = world.sleeping_site("playground");
    std::fs::set_permissions(site.home(), PermissionsExt::from_mode(0o755)).expect("our home");
    let refused = site.run(["up"]).expect_code(1);
    assert!(refused.stderr.contains("chmod"), "{}", refused.stderr);
    std::fs::set_permissions(site.home(), PermissionsExt::from_mode(0o700)).expect("our home");
}

#[test]
fn a_volatile_home_needs_a_word() {
    let shm = Path::new("/dev/shm");
    let home = tempfile::tempdir_in(if shm.is_dir() { shm } else { Path::new("/tmp") }).expect("a folder in memory");
    let init = |allow: bool| -> Output {
        let mut command = sluice();
        command.env_remove("SLUICE_ALLOW_VOLATILE");
        command.arg("--home").arg(home.path().join("home")).args(["init", "--name", "x", "--json"]);
        if allow {
            command.arg("--allow-volatile");
        }
        finish(&mut command)
    };
    assert_helpful(&init(false).expect_code(1).failure(), &["--allow-volatile"]);
    assert!(!home.path().join("home").exists(), "a refused home is not half made");
    init(true).ok();
}

#[test]
fn a_corrupt_catalog_is_named_and_kept() {
    let world = World::new();
    let mut site = owner(&world);
    site.stop();
    let catalog = largest_file(site.home());
    let mut bytes = std::fs::read(&catalog).expect("a catalog");
    let length = bytes.len().min(64 << 10);
    bytes[..length].fill(0xa5);
    std::fs::write(&catalog, &bytes).expect("our home");

    let refused = site.run(["up"]).expect_code(1);
    let name = catalog.file_name().and_then(|n| n.to_str()).expect("a name");
    assert!(refused.stderr.contains(name), "{}", refused.stderr);
    assert!(!refused.stderr.contains("panicked"), "{}", refused.stderr);
    assert_eq!(std::fs::read(&catalog).expect("still there"), bytes, "a corrupt catalog is left for a person");
}

fn largest_file(dir: &Path) -> std::path::PathBuf {
    let files = std::fs::read_dir(dir).expect("a home").filter_map(|e| e.ok());
    let sized = files.filter_map(|e| e.metadata().ok().filter(|m| m.is_file()).map(|m| (m.len(), e.path())));
    sized.max().expect("a home holds files").1
}

#[test]
fn an_unknown_config_version_is_refused_by_name() {
    let world = World::new();
    let site = world.sleeping_site("playground");
    let config = site.home().join("config.toml");
    let written = std::fs::read_to_string(&config).expect("init writes a config");
    assert!(written.contains("config_version = 1"), "{written}");
    std::fs::write(&config, written.replace("config_version = 1", "config_version = 99")).expect("our home");
    let refused = site.run(["up"]);
    assert!([1, 2].contains(&refused.code), "{refused:#?}");
    assert!(refused.stderr.contains("config_version") && refused.stderr.contains("99"), "{}", refused.stderr);
}

#[test]
fn files_that_cannot_be_taken_are_counted_and_shown() {
    let world = World::new();
    let root = world.plain_lake("lake", &[("raw/good.txt", b"good")]);
    std::os::unix::fs::symlink("/etc/hostname", root.join("raw/out")).expect("a link");
    std::os::unix::fs::symlink("good.txt", root.join("raw/in")).expect("a link");
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("raw/pipe"), rustix::fs::Mode::RUSR).expect("a pipe");
    let site = world.site("playground");
    let added = site.run(["space", "add", "acme", text(&root), "--json"]);
    let taken = site.run(["snapshot", "acme", "--json"]);
    for output in [added, taken] {
        // What was left out must not look like success.
        let report = output.expect_code(4).json();
        let skipped = report["skipped"].as_array().expect("skipped");
        let paths: Vec<_> = skipped.iter().filter_map(|s| s["path"].as_str()).collect();
        assert!(paths.contains(&"raw/out") && paths.contains(&"raw/pipe"), "{report}");
        assert!(!paths.contains(&"raw/in"), "{report}");
    }
}

#[cfg(feature = "engine")]
#[test]
fn a_table_that_cannot_be_read_is_refused_by_name_or_carried_opaque() {
    let world = World::new();
    let lake: Lake = world.small_lake("lake");
    let site = world.site("playground");
    let log = lake.root().join("delta/events/_delta_log");
    std::fs::write(log.join("00000000000000000002.json"), b"{ this is no commit").expect("our lake");
    let damaged = site.run(["space", "add", "acme", text(lake.root()), "--json"]);
    assert_eq!(
        damaged.code, 4,
        "everything else is shared, and the exit code says that something is not: {damaged:#?}"
    );
    let skipped = &damaged.json()["skipped"][0];
    assert_eq!(skipped["path"], "delta/events");
    let reason = skipped["reason"].as_str().expect("a reason");
    assert!(reason.contains("cannot be read") && reason.contains("--opaque") && !reason.contains('\n'), "{reason}");
    site.json(["space", "remove", "acme"]);
    site.json(["space", "add", "acme", text(lake.root()), "--opaque"]);
}

#[cfg(not(feature = "engine"))]
#[test]
fn without_the_engine_tables_are_refused_by_name_or_carried_opaque() {
    let world = World::new();
    let lake: Lake = world.small_lake("lake");
    let site = world.site("playground");
    assert_helpful(&site.fails(1, ["space", "add", "acme", text(lake.root())]), &["--opaque"]);
    site.json(["space", "add", "acme", text(lake.root()), "--opaque"]);
}
