//! `sluice join`: takes part in a space.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use sluice_protocol::api::{ApiError, Failure, Joined, Operation};
use sluice_protocol::limits::TICKET_BYTES_MAX;

use super::context::{Context, absolute};
use super::output::clean;
use super::{Ended, Result, sync};

/// Pair with the site that made the ticket, and receive its space
///
/// Shows the same phrase as the inviting site, and ends when the lake is here, verified and published.
#[derive(Debug, Args)]
pub(super) struct Join {
    /// The ticket; `-` reads it from standard input, so that it is not seen in the list of processes
    ticket: String,
    /// The folder that becomes the lake; it must be new or empty [default: in the site's home]
    #[arg(long, value_name = "PATH")]
    into: Option<PathBuf>,
    /// Only these sections (repeat it)
    #[arg(long = "section", value_name = "SECTION")]
    sections: Vec<String>,
}

impl Join {
    pub(super) async fn run(self, context: &Context) -> Result<Ended> {
        let ticket = if self.ticket == "-" { from_stdin()? } else { self.ticket };
        let into = self.into.as_deref().map(absolute).transpose()?;
        let answer = context.ask::<Joined>(Operation::Join { ticket, into, sections: self.sections }).await?;
        context.print(&answer, |joined| {
            format!(
                "phrase   {}\n{}ready: {}\n",
                clean(&joined.phrase),
                sync::text(std::slice::from_ref(&joined.sync)),
                clean(&joined.path)
            )
        });
        Ok(Ended::Good)
    }
}

fn from_stdin() -> Result<String> {
    let mut text = String::new();
    let read = std::io::stdin().lock().take(2 * TICKET_BYTES_MAX as u64).read_to_string(&mut text);
    read.map_err(|e| ApiError::plain(Failure::Usage, format!("standard input cannot be read: {e}")))?;
    Ok(text.trim().to_string())
}
