//! `sluice follow`: lets a site follow a space by itself, or no longer.

use clap::Args;
use sluice_protocol::api::{Done, Operation, SpaceDetail};

use super::context::Context;
use super::output::{clean, now_ms};
use super::{Ended, Result, status};

/// Show whether a space is followed by itself, or change it
///
/// An owner that follows takes a snapshot when its lake changes and tells the others; a replica that
/// follows brings new versions here. A paused space still answers `snapshot` and `sync`.
#[derive(Debug, Args)]
pub(super) struct Follow {
    /// The space
    space: String,
    /// Follow it
    #[arg(long, conflicts_with = "off")]
    on: bool,
    /// Do nothing about it without being told
    #[arg(long)]
    off: bool,
}

impl Follow {
    pub(super) async fn run(self, context: &Context) -> Result<Ended> {
        if self.on || self.off {
            let answer = context.ask::<Done>(Operation::Follow { space: self.space, on: self.on }).await?;
            context.print(&answer, |done| format!("{}\n", clean(&done.done)));
        } else {
            let answer = context.ask::<SpaceDetail>(Operation::SpaceShow { space: self.space }).await?;
            context.print(&answer, |d| format!("{}: {}\n", clean(&d.info.name), status::followed(&d.info, now_ms())));
        }
        Ok(Ended::Good)
    }
}
