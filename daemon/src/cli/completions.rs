//! `sluice completions`: what a shell needs to complete our words.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Ended, Result, Sluice, output};

/// Print the completion script for a shell
#[derive(Debug, Args)]
pub(super) struct Completions {
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<Ended> {
        output::print(&script(self.shell));
        Ok(Ended::Good)
    }
}

pub(super) fn script(shell: Shell) -> String {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut Sluice::command(), "sluice", &mut out);
    String::from_utf8_lossy(&out).into_owned()
}
