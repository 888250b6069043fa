//! `sluice doctor`: what the site stands on, with the daemon or without it.

use clap::Args;
use serde_json::json;
use sluice_protocol::api::{self, ApiError, Check, Failure, Health, Operation};
use sluice_store::catalog::{Catalog, Lookup, SiteLookup};

use super::context::Context;
use super::output::clean;
use super::{Ended, Result};
use crate::config::Config;
use crate::doctor::{Contents, Daemon, Patient, advise, contents_check, examine, report};
use crate::errors::OrExplain;
use crate::home::HomeError;

/// Check the home, ports, buffers, disks and clock, and say what to do
///
/// On a clean site it proves that there is nothing: no spaces, no blobs, no bytes.
#[derive(Debug, Args)]
pub(super) struct Doctor {}

impl Doctor {
    pub(super) async fn run(self, context: &Context) -> Result<Ended> {
        if !context.home.join("site.key").exists() {
            return Err(HomeError::Missing(context.home.clone()).into());
        }
        let doctor = if context.client().is_up().await {
            let answer = context.ask::<api::Doctor>(Operation::Doctor).await?;
            context.print(&answer, text);
            answer.value
        } else {
            let doctor = without_daemon(context);
            context.print_value(&json!(doctor), || text(&doctor));
            doctor
        };
        Ok(if doctor.ok { Ended::Good } else { Ended::With(Failure::Error) })
    }
}

fn without_daemon(context: &Context) -> api::Doctor {
    let mut checks = Vec::new();
    let config = Config::load(&context.home.join("config.toml")).unwrap_or_else(|error| {
        checks.push(of_error("settings", ApiError::from(error)));
        Config::default()
    });
    let (lakes, contents) = match look_inside(context) {
        Ok((lakes, contents)) => (lakes, contents_check(contents)),
        Err(error) => (Vec::new(), of_error("contents", error)),
    };
    checks.extend(examine(&Patient {
        home: &context.home,
        config: &config,
        allow_volatile: context.allow_volatile,
        lakes: &lakes,
        daemon: Daemon::Down,
    }));
    checks.push(contents);
    report(checks)
}

fn of_error(check: &str, error: ApiError) -> Check {
    advise(check, Health::Bad, error.error, error.hint.unwrap_or_default())
}

type Lakes = Vec<(String, std::path::PathBuf)>;

/// Reads the catalog that no daemon holds. A site that never ran has none, and nothing in it.
fn look_inside(context: &Context) -> Result<(Lakes, Contents)> {
    let mut contents = Contents { spaces: 0, blobs: 0, bytes: 0 };
    if !context.home.join("catalog.redb").exists() {
        return Ok((Vec::new(), contents));
    }
    let reader = Catalog::open(&context.home).or_explain()?.read().or_explain()?;
    let mut lakes = Vec::new();
    for (space, record) in reader.spaces().or_explain()? {
        contents.spaces += 1;
        lakes.push((record.name.clone(), record.lake.into()));
        let mut add = |_, blob: sluice_store::catalog::BlobRecord| {
            contents.blobs += 1;
            contents.bytes += blob.size;
        };
        reader.blobs(&space, &mut add).or_explain()?;
    }
    Ok((lakes, contents))
}

fn text(doctor: &api::Doctor) -> String {
    let mut out = String::new();
    for c in &doctor.checks {
        let mark = match c.health {
            Health::Good => "ok  ",
            Health::Warning => "warn",
            Health::Bad => "BAD ",
        };
        out.push_str(&format!("{mark}  {}: {}\n", clean(&c.check), clean(&c.found)));
        if let Some(advice) = c.advice.as_ref().filter(|a| !a.is_empty()) {
            out.push_str(&format!("      {}\n", clean(advice)));
        }
    }
    out.push_str(if doctor.ok { "all is well enough to run\n" } else { "something must be put right first\n" });
    out
}
