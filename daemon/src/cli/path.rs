//! `sluice path`: where a reader finds one consistent version.

use clap::Args;
use sluice_protocol::api::{Operation, PathAnswer};

use super::context::Context;
use super::{Ended, Result};

/// Print the real folder of a space's live version
///
/// The folder stays while later versions are published, as long as it is among those kept. A table
/// that only grows gets its new versions in the same folder; --json names the version to open.
#[derive(Debug, Args)]
pub(super) struct PathOf {
    space: String,
    /// The folder of this section
    #[arg(long, value_name = "SECTION")]
    section: Option<String>,
}

impl PathOf {
    pub(super) async fn run(self, context: &Context) -> Result<Ended> {
        let answer = context.ask::<PathAnswer>(Operation::Path { space: self.space, section: self.section }).await?;
        // As it is: it is meant for `$(…)`.
        context.print(&answer, |answer| format!("{}\n", answer.path));
        Ok(Ended::Good)
    }
}
