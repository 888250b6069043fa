//! `sluice service`: the systemd unit for this site.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use sluice_protocol::api::{ApiError, Failure};

use super::context::Context;
use super::{Ended, Result};
use crate::home::Home;
use crate::service::{Unit, text};

/// Print a systemd unit that runs this site, hardened
#[derive(Debug, Args)]
#[command(
    after_help = "As root:   sluice service > /etc/systemd/system/sluice.service && systemctl enable --now sluice\n\
                        As a user: sluice service --user > ~/.config/systemd/user/sluice.service && systemctl --user enable --now sluice"
)]
pub(super) struct Service {
    /// For the user's own service manager
    #[arg(long)]
    user: bool,
    /// Let the site write only its home and these lakes (repeat it)
    #[arg(long = "lake", value_name = "DIR")]
    lakes: Vec<PathBuf>,
}

impl Service {
    pub(super) fn run(self, context: &Context) -> Result<Ended> {
        let home = Home::open(&context.home, context.allow_volatile)?;
        let program = std::env::current_exe()
            .map_err(|e| ApiError::plain(Failure::Error, format!("the path of this program cannot be found: {e}")))?;
        let lakes = self.lakes.iter().map(|lake| {
            lake.canonicalize().map_err(|e| {
                ApiError::plain(Failure::Usage, format!("the lake `{}` cannot be found: {e}", lake.display()))
            })
        });
        let unit = text(&Unit {
            program: &program,
            home: home.root(),
            user_id: (!self.user).then(|| rustix::process::geteuid().as_raw()),
            lakes: &lakes.collect::<Result<Vec<_>>>()?,
            allow_volatile: context.allow_volatile,
        });
        context.print_value(&json!({ "unit": unit }), || unit.clone());
        Ok(Ended::Good)
    }
}
