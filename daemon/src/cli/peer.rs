//! `sluice peer`: the sites that this one knows.

use clap::Subcommand;
use sluice_protocol::api::{BulkLane, Done, LeaseInfo, Operation, PeerInfo};

use super::context::Context;
use super::output::{clean, count, mib, now_ms, since};
use super::{Ended, Result, status};

/// List, show and revoke peers
#[derive(Debug, Subcommand)]
pub(super) enum Peer {
    /// List all peers
    List,
    /// Show one peer
    Show {
        /// Name or id, or the beginning of the id
        peer: String,
    },
    /// Take a peer's rights away, at once
    Revoke {
        /// Name or id, or the beginning of the id
        peer: String,
        /// In this space only
        #[arg(long, value_name = "SPACE")]
        space: Option<String>,
    },
}

impl Peer {
    pub(super) async fn run(self, context: &Context) -> Result<Ended> {
        match self {
            Peer::List => {
                let answer = context.ask::<Vec<PeerInfo>>(Operation::PeerList).await?;
                context.print(&answer, |peers| match peers.as_slice() {
                    [] => "no peers yet: `sluice invite SPACE --read` or `sluice join TICKET`\n".into(),
                    peers => status::peers(peers, now_ms()),
                });
            }
            Peer::Show { peer } => {
                let answer = context.ask::<PeerInfo>(Operation::PeerShow { peer }).await?;
                context.print(&answer, |peer| text(peer, now_ms()));
            }
            Peer::Revoke { peer, space } => {
                let answer = context.ask::<Done>(Operation::PeerRevoke { peer, space }).await?;
                context.print(&answer, |done| format!("{}\n", clean(&done.done)));
            }
        }
        Ok(Ended::Good)
    }
}

/// Which lane carries bulk data, how fast it was, and why it is this one.
fn bulk(lane: &BulkLane) -> String {
    let rate = lane.bytes_per_s.map(|rate| format!(", {}/s last", mib(rate))).unwrap_or_default();
    let saved = match lane.saved_bytes {
        0 => String::new(),
        bytes => format!(", {} spared by compression", mib(bytes)),
    };
    format!("{}{rate}{saved}: {}", clean(&lane.lane), clean(&lane.why))
}

fn text(peer: &PeerInfo, now_ms: u64) -> String {
    let list = |texts: &[String]| if texts.is_empty() { "-".into() } else { clean(&texts.join(", ")) };
    let lease = |l: &LeaseInfo| {
        let hours = l.until_ms.saturating_sub(now_ms) / 3_600_000;
        format!(
            "leases     {} of {}, for {} more\n",
            l.snapshot.short(),
            clean(&l.space),
            count(hours, "hour", "hours")
        )
    };
    let leases: String = peer.leases.iter().map(lease).collect();
    format!(
        "{}\nsite       {}\naddresses  {}\nlanes      {}\nbulk       {}\nnow        {}\nspaces     {}\nmoved      {}\n{leases}",
        clean(&peer.name),
        peer.site,
        list(&peer.addresses),
        list(&peer.lanes),
        peer.bulk.as_ref().map_or_else(|| "nothing came from there yet".into(), bulk),
        match (peer.connected, peer.last_seen_ms) {
            (true, _) => "connected".into(),
            (false, Some(time)) => format!("away, seen {}", since(time, now_ms)),
            (false, None) => "never seen".into(),
        },
        list(&peer.spaces),
        mib(peer.moved_bytes),
    )
}
