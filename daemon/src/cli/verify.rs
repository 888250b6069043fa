//! `sluice verify`: whether what is published is still what was signed.

use clap::Args;
use sluice_protocol::api::{Failure, Operation, VerifyReport};

use super::context::Context;
use super::output::{clean, count, mib, seconds};
use super::{Ended, Result};

/// Most problems that people are shown.
const PROBLEMS_MAX: usize = 200;

/// Check that a space's files are what its manifest says
#[derive(Debug, Args)]
pub(super) struct Verify {
    space: String,
    /// Read and hash every byte, and open every table
    #[arg(long)]
    deep: bool,
}

impl Verify {
    pub(super) async fn run(self, context: &Context) -> Result<Ended> {
        let answer = context.ask::<VerifyReport>(Operation::Verify { space: self.space, deep: self.deep }).await?;
        context.print(&answer, text);
        Ok(if answer.value.ok { Ended::Good } else { Ended::With(Failure::Verification) })
    }
}

fn text(r: &VerifyReport) -> String {
    let how = if r.deep { "every byte read" } else { "sizes, times and links looked at" };
    let mut out = format!(
        "{}: snapshot {}: {}\n{}, {}, {how}, in {}\n",
        clean(&r.space),
        r.snapshot.short(),
        if r.ok { "as signed" } else { "NOT as signed" },
        count(r.files, "file", "files"),
        mib(r.bytes),
        seconds(r.seconds),
    );
    for p in r.problems.iter().take(PROBLEMS_MAX) {
        out.push_str(&format!("! {}: {}\n", clean(&p.path), clean(&p.problem)));
    }
    if r.problems.len() > PROBLEMS_MAX {
        out.push_str(&format!("! and {} more; --json names all\n", r.problems.len() - PROBLEMS_MAX));
    }
    for section in &r.detached {
        out.push_str(&format!("section {} is this site's own and was not checked\n", clean(section)));
    }
    if let Some(hint) = &r.hint {
        out.push_str(&format!("hint: {}\n", clean(hint)));
    }
    out
}
