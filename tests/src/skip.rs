//! Tests that a machine cannot run.
//!
//! Invariant: a test that is left out says so and is counted; where nothing may be left out it fails.

use std::io::Write;

/// Says that the running test is left out, and why. A line goes to the file that `SLUICE_SKIPPED` names, so
/// that `make test` can count them; with `SLUICE_SKIPS=none` the test fails instead.
#[track_caller]
pub fn skip(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    assert!(std::env::var_os("SLUICE_SKIPS").is_none_or(|v| v != "none"), "{test} cannot be run here: {why}");
    eprintln!("SKIPPED {test}: {why}");
    if let Some(file) = std::env::var_os("SLUICE_SKIPPED") {
        let file = std::fs::File::options().create(true).append(true).open(file);
        writeln!(file.expect("SLUICE_SKIPPED names a file"), "{test}: {why}").expect("it can be written");
    }
}
