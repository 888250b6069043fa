//! The command line as scripts depend on it: names, exit codes, JSON, and that nothing asks.

use serde_json::Value;
use sluice_tests::site::{finish, sluice};
use sluice_tests::{Output, World};

fn run(args: &[&str]) -> Output {
    finish(sluice().args(args))
}

const COMMANDS: [&str; 14] = [
    "init",
    "up",
    "service",
    "status",
    "doctor",
    "space",
    "invite",
    "join",
    "peer",
    "snapshot",
    "sync",
    "path",
    "verify",
    "completions",
];

#[test]
fn every_command_has_help_and_completions() {
    let help = run(&["--help"]).ok().stdout;
    for command in COMMANDS {
        assert!(help.contains(command), "`{command}` is not in --help:\n{help}");
        run(&[command, "--help"]).ok();
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]).ok().stdout;
        assert!(script.contains("sluice") && script.contains("invite"), "{shell}");
    }
    assert!(run(&["--version"]).ok().stdout.starts_with("sluice "));
}

#[test]
fn wrong_usage_is_2() {
    for args in [
        &["frobnicate"][..],
        &["join"],
        &["invite"],
        &["space", "add", "acme"],
        &["sync", "--no-such-flag"],
        &["completions", "csh-from-1980"],
    ] {
        let output = run(args).expect_code(2);
        assert!(output.stderr.contains("--help") && output.stdout.is_empty(), "{output:#?}");
    }
}

#[test]
fn invitations_are_one_word_with_phrase_and_expiry() {
    let world = World::new();
    let lake = world.plain_lake("lake", &[("raw/a.txt", b"one")]);
    let site = world.site("playground");
    site.json(["space", "add", "acme", lake.to_str().expect("UTF-8")]);
    let invitation = site.json(["invite", "acme", "--read"]);
    let of = |key: &str| invitation[key].as_str().unwrap_or_else(|| panic!("no `{key}` in {invitation}")).to_owned();
    let ticket = of("ticket");
    assert!(!ticket.is_empty());
    assert!(ticket.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'), "{ticket}");
    assert!(of("phrase").len() >= 8);
    assert!(of("expires").ends_with('Z') && of("expires").starts_with("20"), "RFC 3339 in UTC: {}", of("expires"));

    // For a person: the same, on lines, with the ticket where it can be copied.
    let printed = site.run(["invite", "acme", "--read"]).ok().stdout;
    assert!(printed.contains("sluice1-"), "{printed}");
}

#[test]
fn the_phrase_is_the_same_on_both_sides() {
    let world = World::new();
    let lake = world.plain_lake("lake", &[("raw/a.txt", b"one")]);
    let owner = world.site("playground");
    owner.json(["space", "add", "acme", lake.to_str().expect("UTF-8")]);
    let invitation = owner.json(["invite", "acme", "--read"]);
    let site = world.site("cradle");
    let ticket = invitation["ticket"].as_str().expect("ticket");
    let joined = site.json(["join", ticket, "--into", world.path("copy").to_str().expect("UTF-8")]);
    assert_eq!(joined["phrase"], invitation["phrase"]);
    for key in ["space", "snapshot", "published", "bytes_moved", "bytes_reused", "seconds"] {
        assert!(!joined[key].is_null(), "no `{key}` in {joined}");
    }
}

#[test]
fn status_names_the_api_and_everything_prints_json() {
    let world = World::new();
    let lake = world.plain_lake("lake", &[("raw/a.txt", b"one")]);
    let site = world.site("playground");
    site.json(["space", "add", "acme", lake.to_str().expect("UTF-8")]);
    let status = site.json(["status"]);
    assert!(status["api"].as_str().is_some_and(|url| url.starts_with("http://127.0.0.1:")), "{status}");
    for key in
        ["site", "name", "version", "spaces", "peers", "moved_bytes_total", "reused_bytes_total", "served_bytes_total"]
    {
        assert!(!status[key].is_null(), "no `{key}` in {status}");
    }
    for args in [
        &["doctor"][..],
        &["space", "list"],
        &["space", "show", "acme"],
        &["peer", "list"],
        &["snapshot", "acme"],
        &["snapshot", "list", "acme"],
        &["snapshot", "show", "acme"],
        &["path", "acme"],
        &["verify", "acme"],
    ] {
        let value = site.json(args);
        assert!(value.is_object() || value.is_array(), "{args:?}: {value}");
    }
}

#[test]
fn output_into_a_pipe_has_no_control_characters() {
    let world = World::new();
    let lake = world.plain_lake("lake", &[("raw/a.txt", b"one")]);
    let site = world.site("playground");
    for args in [
        &["space", "add", "acme", lake.to_str().expect("UTF-8")][..],
        &["status"],
        &["doctor"],
        &["snapshot", "acme"],
        &["verify", "acme", "--deep"],
        &["service"],
    ] {
        let output = site.run(args).ok();
        let shown = format!("{}{}", output.stdout, output.stderr);
        assert!(!shown.contains('\u{1b}') && !shown.contains('\r'), "{args:?}: {shown:?}");
    }
}

#[test]
fn path_is_one_absolute_line_and_snapshot_diff_names_paths() {
    let world = World::new();
    let lake = world.plain_lake("lake", &[("raw/a.txt", b"one"), ("raw/b.txt", b"two")]);
    let site = world.site("playground");
    let first = site.json(["space", "add", "acme", lake.to_str().expect("UTF-8")]);
    let path = site.run(["path", "acme"]).ok().stdout;
    assert_eq!(path.lines().count(), 1, "{path:?}");
    assert!(path.starts_with('/'), "{path:?}");

    std::fs::write(lake.join("raw/b.txt"), b"two and a half").expect("our lake");
    std::fs::write(lake.join("raw/c.txt"), b"three").expect("our lake");
    std::fs::remove_file(lake.join("raw/a.txt")).expect("our lake");
    let second = site.json(["snapshot", "acme"]);
    let id = |report: &Value| report["snapshot"].as_str().expect("an id").to_owned();
    let diff = site.json(["snapshot", "diff", "acme", &id(&first), &id(&second)]);
    assert_eq!(diff["added"], serde_json::json!(["raw/c.txt"]), "{diff}");
    assert_eq!(diff["removed"], serde_json::json!(["raw/a.txt"]), "{diff}");
    assert_eq!(diff["changed"], serde_json::json!(["raw/b.txt"]), "{diff}");
}

#[test]
fn a_clean_site_proves_its_emptiness() {
    let world = World::new();
    let site = world.site("playground");
    let doctor = site.json(["doctor"]);
    let checks = doctor["checks"].as_array().expect("checks");
    let named = |word: &str| checks.iter().any(|c| c["check"].as_str().is_some_and(|n| n.contains(word)));
    for word in ["home", "port", "rmem", "disk", "clock"] {
        assert!(named(word), "no check of `{word}`: {doctor}");
    }
    let contents = |doctor: &Value| {
        let all = doctor["checks"].as_array().expect("checks").iter();
        let found = all.filter(|c| c["check"] == "contents").map(|c| c["found"].to_string());
        found.collect::<String>()
    };
    assert!(contents(&doctor).contains("0 spaces, 0 blobs, 0 bytes"), "{doctor}");

    let lake = world.plain_lake("lake", &[("raw/a.txt", b"one")]);
    site.json(["space", "add", "acme", lake.to_str().expect("UTF-8")]);
    let doctor = site.json(["doctor"]);
    assert!(!contents(&doctor).contains("0 spaces") && !contents(&doctor).contains("clean"), "{doctor}");
}

#[test]
fn the_service_unit_is_one() {
    let world = World::new();
    let unit = world.site("playground").run(["service"]).ok().stdout;
    for word in ["[Unit]", "[Service]", "ExecStart=", "[Install]"] {
        assert!(unit.contains(word), "no {word} in:\n{unit}");
    }
}
