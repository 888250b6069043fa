//! `sluice invite`: a ticket for another site.

use clap::Args;
use sluice_protocol::api::{Invitation, Operation};

use super::context::Context;
use super::output::clean;
use super::{Ended, Result};

/// Longest life of a ticket, in seconds (30 days).
const EXPIRES_S_MAX: u64 = 30 * 86_400;

/// Print a ticket with which one other site may receive a space
///
/// A ticket works once and expires. Hand it over on a way that you trust, and compare the phrase with
/// the one that the other site shows.
#[derive(Debug, Args)]
pub(super) struct Invite {
    /// The space
    space: String,
    /// Let the other site read
    #[arg(long, required = true)]
    read: bool,
    /// How long the ticket works: 90s, 10m, 2h, 1d
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = seconds)]
    expires: u64,
    /// Only these sections (repeat it)
    #[arg(long = "section", value_name = "SECTION")]
    sections: Vec<String>,
}

impl Invite {
    pub(super) async fn run(self, context: &Context) -> Result<Ended> {
        // clap demands it: rights are always named, so that later ones change no old command.
        debug_assert!(self.read);
        let op = Operation::Invite { space: self.space, sections: self.sections, expires_s: Some(self.expires) };
        let answer = context.ask::<Invitation>(op).await?;
        context.print(&answer, |i| {
            format!(
                "ticket   {}\nphrase   {}\nexpires  {}\n\nOn the other site: sluice join {} --into DIR\n",
                clean(&i.ticket),
                clean(&i.phrase),
                clean(&i.expires),
                clean(&i.ticket),
            )
        });
        Ok(Ended::Good)
    }
}

/// A length of time: a number and its unit.
fn seconds(text: &str) -> std::result::Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("a number with its unit is expected: 90s, 10m, 2h, 1d".into()),
    };
    let number: u64 = digits.parse().map_err(|_| format!("`{digits}` is no whole number"))?;
    match number.checked_mul(unit) {
        Some(s @ 1..=EXPIRES_S_MAX) => Ok(s),
        _ => Err("between 1s and 30d are allowed".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn lengths_of_time() {
        assert_eq!(
            [seconds("90s"), seconds("10m"), seconds("2h"), seconds("30d")],
            [Ok(90), Ok(600), Ok(7200), Ok(2_592_000)]
        );
        for wrong in [
            "",
            "m",
            "10",
            "0s",
            "-1m",
            "1.5h",
            "31d",
            "10 m",
            "10ms",
            "99999999999999999999s",
            "9999999999999999999d",
            "1ü",
        ] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
