//! How words are understood.

use clap::CommandFactory;
use clap_complete::Shell;

use super::*;

fn parse(line: &str) -> std::result::Result<Sluice, clap::Error> {
    Sluice::try_parse_from(std::iter::once("sluice").chain(line.split_whitespace()))
}

fn understood(line: &str) -> String {
    format!("{:?}", parse(line).unwrap_or_else(|e| panic!("{line}: {e}")).verb)
}

#[test]
fn the_grammar_is_sound() {
    Sluice::command().debug_assert();
}

#[test]
fn every_verb_of_the_manual_is_understood() {
    for line in [
        "init --name playground",
        "--home /x init",
        "up",
        "service",
        "service --user --lake /srv/a --lake /srv/b",
        "status",
        "status --watch",
        "status --json",
        "doctor",
        "space add acme /srv/staging-acme",
        "space add acme /srv/x --history tagged --opaque",
        "space list",
        "space show acme",
        "space remove acme",
        "space recover acme",
        "invite acme --read",
        "invite acme --read --expires 2h --section delta --section raw",
        "join TICKET",
        "join - --into /srv/lake/acme --section delta",
        "peer list",
        "peer show ab12",
        "peer revoke ab12 --space acme",
        "snapshot acme",
        "snapshot acme --tag v1 --json",
        "snapshot list acme",
        "snapshot show acme",
        "snapshot show acme ab12",
        "snapshot diff acme v1",
        "snapshot diff acme v1 v2",
        "sync",
        "sync acme --dry-run",
        "sync acme --at v1",
        "resolve acme --keep theirs",
        "resolve acme --section raw --keep mine --dry-run",
        "repair --lake /srv/a --lake /srv/b",
        "path acme",
        "path acme --section delta/orders",
        "verify acme --deep",
        "gc",
        "gc acme --dry-run",
        "demo --dir /x --mib 8 --keep",
        "completions zsh",
    ] {
        understood(line);
    }
}

#[test]
fn what_is_wrong_is_refused_as_usage() {
    for line in [
        "",
        "fly",
        "space",
        "space add acme",
        "space add acme /x --history most",
        "invite acme",
        "invite acme --read --expires 10",
        "join",
        "snapshot",
        "snapshot list",
        "snapshot acme other",
        "snapshot --tag v1 list acme",
        "snapshot diff acme",
        "status --watch --json",
        "demo --mib 0",
        "completions tcl",
        "sync acme more",
        "sync --at v1",
        "resolve acme --section raw",
        "resolve acme --dry-run",
        "resolve acme --fork abcd --keep mine",
        "resolve acme --keep both",
        "repair",
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}: {error}");
    }
}

#[test]
fn verbs_win_over_spaces_and_two_dashes_undo_it() {
    assert!(understood("snapshot list acme").contains("look: Some(List"));
    assert!(understood("snapshot acme").contains("space: Some(\"acme\")"));
    let named_list = understood("snapshot -- list");
    assert!(named_list.contains("space: Some(\"list\")") && named_list.contains("look: None"), "{named_list}");
}

#[test]
fn global_options_stand_before_or_behind_the_verb() {
    for line in ["--home /x --json status", "status --home /x --json", "--json status --home /x"] {
        let args = parse(line).unwrap();
        assert!(args.global.json && args.global.home.as_deref() == Some(std::path::Path::new("/x")), "{line}");
    }
    assert!(parse("space list --quiet --allow-volatile").unwrap().global.quiet);
}

#[test]
fn completions_know_the_verbs_in_three_shells() {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let script = completions::script(shell);
        for word in ["init", "snapshot", "revoke", "dry-run"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

/// The manuals, which these tests keep true.
const CLI_PAGE: &str = include_str!("../../../docs/cli.md");
const OPERATIONS_PAGE: &str = include_str!("../../../docs/operations.md");

fn lines_of(command: &clap::Command, above: &str, found: &mut Vec<(String, Vec<String>)>) {
    for verb in command.get_subcommands().filter(|c| c.get_name() != "help") {
        let line = format!("{above} {}", verb.get_name());
        let shown = verb.get_arguments().filter(|a| !a.is_hide_set() && !a.is_global_set());
        let long = shown.filter_map(|a| a.get_long()).filter(|l| !["help", "version"].contains(l));
        found.push((line.clone(), long.map(|l| format!("--{l}")).collect()));
        lines_of(verb, &line, found);
    }
}

#[test]
fn the_manual_names_every_command_and_option() {
    let mut commands = Vec::new();
    lines_of(&Sluice::command(), "sluice", &mut commands);
    assert!(commands.len() > 20);
    for (line, options) in commands {
        let rows: Vec<&str> = CLI_PAGE.lines().filter(|l| l.contains(&format!("| `{line}"))).collect();
        assert!(!rows.is_empty(), "docs/cli.md has no row for `{line}`");
        for option in options {
            assert!(rows.iter().any(|r| r.contains(&option)), "docs/cli.md does not tell `{option}` of `{line}`");
        }
    }
    for option in Sluice::command().get_arguments().filter_map(|a| a.get_long()) {
        assert!(CLI_PAGE.contains(&format!("--{option}")) || ["help", "version"].contains(&option), "{option}");
    }
}

#[test]
fn the_manual_names_every_setting_with_its_default() {
    let defaults = toml::Table::try_from(crate::config::Config::default()).unwrap();
    for (table, keys) in defaults {
        let Some(keys) = keys.as_table() else { continue };
        for (key, value) in keys {
            let shown = value.to_string().replace('"', "");
            let row = OPERATIONS_PAGE.lines().find(|l| l.starts_with(&format!("| `{table}.{key}` |")));
            let row = row.unwrap_or_else(|| panic!("docs/operations.md has no row for `{table}.{key}`"));
            let default = row.split('|').nth(2).unwrap().replace(['`', ' '], "");
            assert_eq!(default, shown.replace(' ', ""), "{table}.{key}");
        }
    }
}
