//! The command line: words in, one operation, words out.
//!
//! Invariant: a command knows nothing that the API does not tell, but for `init`, `up`, `service`,
//! `doctor`, `demo` and `repair`, which are there before a daemon runs. With `--json` standard output is one JSON
//! document and nothing else; a failure is one sentence, a hint and an exit code. Only this folder and
//! the loading of settings read the environment.

mod completions;
mod context;
mod demo;
mod doctor;
mod follow;
mod gc;
mod init;
mod invite;
mod join;
mod log;
mod notify;
mod output;
mod path;
mod peer;
mod progress;
mod repair;
mod resolve;
mod service;
mod snapshot;
mod space;
mod status;
mod sync;
mod up;
mod verify;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand};
use sluice_protocol::api::{ApiError, Failure};

use context::Context;

/// How a command ended that did not fail: usually `Good`.
enum Ended {
    Good,
    /// It did its work, and the answer itself is bad news.
    With(Failure),
}

type Result<T> = std::result::Result<T, ApiError>;

/// Moves lakehouses between sites and proves that the copy answers like the source.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, propagate_version = true, arg_required_else_help = true, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 done, 1 error, 2 wrong usage, 3 verification failed, 4 not finished (the same command goes on)."
)]
struct Sluice {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

/// What every command takes.
#[derive(Debug, Args)]
struct Global {
    /// The site's home [default: ~/.local/share/sluice]
    #[arg(long, global = true, value_name = "DIR", env = "SLUICE_HOME", hide_env_values = true)]
    home: Option<PathBuf>,
    /// Print one JSON document, and failures as JSON on standard error
    #[arg(long, global = true)]
    json: bool,
    /// Print no progress
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Permit a home in memory or in a folder that is emptied, for tests
    #[arg(long, global = true, env = "SLUICE_ALLOW_VOLATILE", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    allow_volatile: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Init(init::Init),
    Up(up::Up),
    Service(service::Service),
    Status(status::Status),
    Doctor(doctor::Doctor),
    #[command(subcommand)]
    Space(space::Space),
    Invite(invite::Invite),
    Join(join::Join),
    #[command(subcommand)]
    Peer(peer::Peer),
    Snapshot(snapshot::Snapshot),
    Sync(sync::Sync),
    Follow(follow::Follow),
    Resolve(resolve::Resolve),
    Path(path::PathOf),
    Verify(verify::Verify),
    Repair(repair::Repair),
    Gc(gc::Gc),
    Demo(demo::Demo),
    Completions(completions::Completions),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    run(std::env::args_os().collect())
}

fn run(words: Vec<OsString>) -> ExitCode {
    let json = words.iter().any(|w| w == "--json");
    let args = match Sluice::try_parse_from(words) {
        Ok(args) => args,
        Err(error) => return not_understood(&error, json),
    };
    if let Err(sentence) = sluice_store::disk::check_settings() {
        let hint = "unset SLUICE_FAULTS: it is for tests of Sluice itself (docs/reliability.md)";
        return output::failed(&ApiError::new(Failure::Usage, sentence, hint), json);
    }
    let context = match Context::new(&args.global) {
        Ok(context) => context,
        Err(error) => return output::failed(&error, json),
    };
    match act(args.verb, &context) {
        Ok(Ended::Good) => ExitCode::SUCCESS,
        Ok(Ended::With(failure)) => ExitCode::from(failure.exit_code()),
        Err(error) => output::failed(&error, json),
    }
}

fn act(verb: Verb, context: &Context) -> Result<Ended> {
    match verb {
        Verb::Init(init) => init.run(context),
        Verb::Up(up) => up.run(context),
        Verb::Service(service) => service.run(context),
        Verb::Completions(completions) => completions.run(),
        Verb::Demo(demo) => demo.run(context),
        Verb::Repair(repair) => repair.run(context),
        other => context::block_on(ask(other, context)),
    }
}

/// The commands that are one question to the daemon.
async fn ask(verb: Verb, context: &Context) -> Result<Ended> {
    match verb {
        Verb::Status(status) => status.run(context).await,
        Verb::Doctor(doctor) => doctor.run(context).await,
        Verb::Space(space) => space.run(context).await,
        Verb::Invite(invite) => invite.run(context).await,
        Verb::Join(join) => join.run(context).await,
        Verb::Peer(peer) => peer.run(context).await,
        Verb::Snapshot(snapshot) => snapshot.run(context).await,
        Verb::Sync(sync) => sync.run(context).await,
        Verb::Follow(follow) => follow.run(context).await,
        Verb::Resolve(resolve) => resolve.run(context).await,
        Verb::Path(path) => path.run(context).await,
        Verb::Verify(verify) => verify.run(context).await,
        Verb::Gc(gc) => gc.run(context).await,
        Verb::Init(_) | Verb::Up(_) | Verb::Service(_) | Verb::Completions(_) | Verb::Demo(_) | Verb::Repair(_) => {
            unreachable!("`act` runs these without a daemon")
        }
    }
}

/// Help and versions are answers; the rest is wrong usage.
fn not_understood(error: &clap::Error, json: bool) -> ExitCode {
    if error.use_stderr() && json {
        let text = error.render().to_string();
        let sentence = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_string();
        return output::failed(&ApiError::new(Failure::Usage, sentence, "see `sluice help`"), true);
    }
    // Nothing can be done when even this cannot be printed.
    let _ = error.print();
    ExitCode::from(if error.use_stderr() { Failure::Usage.exit_code() } else { 0 })
}

#[cfg(test)]
mod tests;
