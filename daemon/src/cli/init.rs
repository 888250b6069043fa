//! `sluice init`: a new site.

use clap::Args;
use serde_json::json;

use super::context::Context;
use super::{Ended, Result};
use crate::home::Home;

/// Make a new site: its home, its key, its settings
///
/// Prints the site's id and, this one time, its offline recovery key.
#[derive(Debug, Args)]
pub(super) struct Init {
    /// What people call this site [default: the host's name]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

impl Init {
    pub(super) fn run(self, context: &Context) -> Result<Ended> {
        let name = self.name.unwrap_or_else(host_name);
        let made = Home::init(&context.home, &name, context.allow_volatile)?;
        let home = &made.home;
        let value = json!({
            "site": home.site(),
            "name": home.name(),
            "home": home.root(),
            "recovery_key": made.recovery_key.as_str(),
            "recovery_public": home.recovery(),
        });
        context.print_value(&value, || {
            format!(
                "site          {}\nname          {}\nhome          {}\nrecovery key  {}\n\n\
                 Write the recovery key down and keep it away from this machine: it is shown only now and stored\n\
                 nowhere. Should this site be lost, it is what names the new owner of its spaces.\n\
                 Next: sluice up\n",
                home.site(),
                super::output::clean(home.name()),
                home.root().display(),
                made.recovery_key.as_str(),
            )
        });
        Ok(Ended::Good)
    }
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "site".into() } else { name.chars().take(32).collect() }
}
