//! `sluice repair`: a lost catalog is made again, while the site is down.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::context::Context;
use super::output::{clean, count, mib};
use super::{Ended, Result};
use crate::config::Config;
use crate::home::Home;
use crate::repair::{Repaired, RepairedSpace, repair};

/// Make a lost or damaged catalog again from the site's lakes; the site must be down
///
/// Spaces keep their ids, their history and their grants. Nothing in a lake is moved or changed.
#[derive(Debug, Args)]
pub(super) struct Repair {
    /// A lake that this site shared or received; repeat it for each
    #[arg(long = "lake", required = true, value_name = "DIR")]
    lakes: Vec<PathBuf>,
}

impl Repair {
    pub(super) fn run(self, context: &Context) -> Result<Ended> {
        let home = Home::open(&context.home, context.allow_volatile)?;
        let config = Config::load(&home.config_path())?;
        let home = home.locked()?;
        let repaired = repair(&home, &config, &self.lakes)?;
        context.print_value(&json!(repaired), || text(&repaired));
        Ok(Ended::Good)
    }
}

fn text(r: &Repaired) -> String {
    let moved = r.moved_aside.iter().map(|p| format!("moved aside: {}\n", clean(&p.display().to_string())));
    let mut out: String = moved.collect();
    for s in &r.spaces {
        out.push_str(&one(s));
    }
    out.push_str("Next: sluice up\n");
    out
}

fn one(s: &RepairedSpace) -> String {
    let name = clean(&s.name);
    if s.known {
        return format!("{name}: the catalog knows it; nothing was done\n");
    }
    let version = s.snapshot.map_or("no version".into(), |id| id.short());
    let files = format!("{}, {}", count(s.files, "file", "files"), mib(s.bytes));
    if s.proven {
        return format!("{name}: {version} is here, byte for byte: {files}\n");
    }
    let other = count(s.other, "file is", "files are");
    format!(
        "{name}: known again at {version}: {files}; the lake is not all of that version ({other} different or gone): `sluice sync` or `sluice snapshot` says more\n"
    )
}
