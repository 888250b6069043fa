//! What the settings take and what they refuse.

use super::*;

/// A file, variables over it, and what the refusal must name.
type Case<'a> = (String, &'a [(&'a str, &'a str)], &'a [&'a str]);

fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, ApiError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    let variables = variables.iter().map(|(k, v)| (k.to_string(), v.to_string()));
    Config::from_layers(&path, variables).map_err(ApiError::from)
}

#[test]
fn the_commented_file_shows_exactly_the_defaults() {
    assert_eq!(load(COMMENTED, &[]).unwrap(), Config::default());
    let told: String = COMMENTED
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(setting) if setting.contains(" = ") => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert_eq!(load(&told, &[]).unwrap(), Config::default());
    let told: toml::Table = toml::from_str(&told).unwrap();
    assert_eq!(told, toml::Table::try_from(Config::default()).unwrap(), "every key is told");
}

#[test]
fn a_missing_file_is_the_defaults() {
    let config = Config::from_layers(Path::new("/nonexistent/config.toml"), []).unwrap();
    assert_eq!(config, Config::default());
}

#[test]
fn the_environment_goes_over_the_file() {
    let text = "config_version = 1\n[p2p]\nport = 1\nloopback = true\n[scan]\nopaque = ['a/b']\nsections = { 'shared/Prompts' = 'knowledge' }\n";
    let variables = [
        ("SLUICE__P2P__PORT", "0"),
        ("SLUICE__API__ENABLED", "false"),
        ("SLUICE__P2P__ADDRESSES", r#"["192.0.2.1:7711", "[2001:db8::1]:7711"]"#),
        ("SLUICE__LOG__LEVEL", "warn,sluice_daemon=debug"),
        ("SLUICE_HOME", "/not/a/setting"),
        ("PATH", "/bin"),
    ];
    let config = load(text, &variables).unwrap();
    assert_eq!((config.p2p.port, config.p2p.loopback, config.api.enabled), (0, true, false));
    assert_eq!(config.p2p.addresses, ["192.0.2.1:7711".parse().unwrap(), "[2001:db8::1]:7711".parse().unwrap()]);
    assert_eq!(config.log.level, "warn,sluice_daemon=debug");
    assert_eq!(config.scan.sections[&LakePath::parse("shared/Prompts").unwrap()], SectionKind::Knowledge);
    assert_eq!(config.limits, Limits::default());
}

#[test]
fn what_is_wrong_is_named_with_a_hint() {
    let v1 = |rest: &str| format!("config_version = 1\n{rest}");
    let cases: [Case; 18] = [
        ("p2p = {".into(), &[], &["no TOML", "line 1"]),
        (v1("[p2p]\nport = 1\nport = 2"), &[], &["no TOML", "line 4"]),
        ("[p2p]\nport = 1".into(), &[], &["name no config_version", "config_version = 1"]),
        ("config_version = 2".into(), &[], &["config_version 2", "knows 1"]),
        ("config_version = '1'".into(), &[], &["config_version", "knows 1"]),
        (v1("[p2p]\nprot = 1"), &[], &["`p2p.prot`", "did you mean `p2p.port`?"]),
        (v1("[pp]\nport = 1"), &[], &["`pp`", "did you mean `p2p`?"]),
        (v1("keep_generations = 1"), &[], &["`keep_generations`"]),
        (v1("[p2p]\nport = 70000"), &[], &["`p2p.port`", "70000"]),
        (v1("[p2p]\nport = 'x'"), &[], &["`p2p.port`", "config.toml"]),
        (v1("[p2p]\naddresses = ['here']"), &[], &["p2p.addresses"]),
        (v1("[scan]\nopaque = ['../x']"), &[], &["scan.opaque"]),
        (v1("[scan]\nsections = { a = 'colour' }"), &[], &["scan.sections"]),
        (v1("[limits]\nsegments_in_flight = 0"), &[], &["limits.segments_in_flight", "between 1 and 256"]),
        (v1("[limits]\nhours = [\"8-18 50\"]"), &[], &["limits.hours", "8-18 50", "08:00-18:00 50"]),
        (v1("[log]\nlevel = 'loud=noise=x'"), &[], &["log.level"]),
        (v1(""), &[("SLUICE__P2P__PROT", "1")], &["SLUICE__P2P__PROT", "did you mean `SLUICE__P2P__PORT`?"]),
        (v1(""), &[("SLUICE__API__PORT", "many")], &["SLUICE__API__PORT", "many"]),
    ];
    for (text, variables, expected) in cases {
        let error = load(&text, variables).unwrap_err();
        let told = format!("{} / {}", error.error, error.hint.clone().unwrap_or_default());
        assert_eq!(error.failure, Failure::Usage, "{told}");
        assert!(!error.error.contains('\n'), "{told}");
        for part in expected {
            assert!(told.contains(part), "{text:?} {variables:?}: `{part}` is missing in: {told}");
        }
    }
}

#[test]
fn a_file_that_never_ends_is_not_read_to_its_end() {
    let text = format!("config_version = 1\n#{}", "x".repeat(FILE_BYTES_MAX as usize));
    assert!(load(&text, &[]).unwrap_err().error.contains("longer than"));
}
