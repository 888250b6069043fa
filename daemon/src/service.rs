//! The systemd unit that runs a site.
//!
//! Invariant: the unit gives the daemon no more than it needs: no capabilities, no new privileges, a
//! read-only system. With lakes named, nothing else can be written at all.

use std::path::{Path, PathBuf};

/// What the unit is for.
pub struct Unit<'a> {
    /// The program, absolute.
    pub program: &'a Path,
    pub home: &'a Path,
    /// The numeric id of the user that it runs as; none for a unit of the user's own manager.
    pub user_id: Option<u32>,
    /// The lakes that it may write; empty: all that the user may.
    pub lakes: &'a [PathBuf],
    pub allow_volatile: bool,
}

/// The text of the unit.
pub fn text(unit: &Unit<'_>) -> String {
    let mut out = String::from(
        "[Unit]\nDescription=Sluice, moves lakehouses between sites\nWants=network-online.target\nAfter=network-online.target\n\n[Service]\nType=notify\n",
    );
    let mut line = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    line(format!("ExecStart={} --home {} up", argument(unit.program), argument(unit.home)));
    if unit.allow_volatile {
        line("Environment=SLUICE_ALLOW_VOLATILE=1".into());
    }
    if let Some(id) = unit.user_id {
        line(format!("User={id}"));
    }
    for text in ["Restart=on-failure", "RestartSec=5", "TimeoutStopSec=60", "LimitNOFILE=65536", "UMask=0022"] {
        line(text.into());
    }
    for text in hardening(unit.user_id.is_some()) {
        line((*text).into());
    }
    match unit.user_id {
        // Root reads and links files of other users by these alone.
        Some(0) => line("CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_FOWNER".into()),
        Some(_) => line("CapabilityBoundingSet=".into()),
        None => {}
    }
    if unit.lakes.is_empty() {
        line("ProtectSystem=full".into());
    } else {
        line("ProtectSystem=strict".into());
        for path in std::iter::once(unit.home).chain(unit.lakes.iter().map(PathBuf::as_path)) {
            line(format!("ReadWritePaths={}", quoted(path)));
        }
    }
    let target = if unit.user_id.is_some() { "multi-user.target" } else { "default.target" };
    out.push_str(&format!("\n[Install]\nWantedBy={target}\n"));
    out
}

/// What is taken away from the daemon. A user's own manager cannot take away as much.
fn hardening(system: bool) -> &'static [&'static str] {
    const BOTH: &[&str] = &[
        "NoNewPrivileges=yes",
        "LockPersonality=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "SystemCallArchitectures=native",
    ];
    const SYSTEM: &[&str] = &[
        "NoNewPrivileges=yes",
        "LockPersonality=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "SystemCallArchitectures=native",
        "AmbientCapabilities=",
        "PrivateDevices=yes",
        "PrivateTmp=yes",
        "ProtectClock=yes",
        "ProtectControlGroups=yes",
        "ProtectHostname=yes",
        "ProtectKernelLogs=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelTunables=yes",
        "MemoryDenyWriteExecute=yes",
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
        "RestrictNamespaces=yes",
        "SystemCallFilter=@system-service",
        "SystemCallErrorNumber=EPERM",
    ];
    if system { SYSTEM } else { BOTH }
}

/// A path as systemd reads it: quoted, with its own specifiers and escapes doubled.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%"))
}

/// The same on a command line, where variables are put in.
fn argument(path: &Path) -> String {
    quoted(path).replace('$', "$$")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(user_id: Option<u32>, lakes: &[PathBuf]) -> String {
        text(&Unit {
            program: Path::new("/usr/local/bin/sluice"),
            home: Path::new("/var/lib/my \"sluice\" 100%"),
            user_id,
            lakes,
            allow_volatile: false,
        })
    }

    #[test]
    fn a_system_unit_is_hard_and_ready_when_it_says_so() {
        let text = unit(Some(1000), &[]);
        for line in [
            "Type=notify",
            "User=1000",
            "NoNewPrivileges=yes",
            "CapabilityBoundingSet=",
            "ProtectSystem=full",
            "WantedBy=multi-user.target",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        assert!(
            text.contains(r#"ExecStart="/usr/local/bin/sluice" --home "/var/lib/my \"sluice\" 100%%" up"#),
            "{text}"
        );
    }

    #[test]
    fn named_lakes_are_all_that_can_be_written() {
        let text = unit(None, &["/srv/acme".into()]);
        assert!(text.contains("ProtectSystem=strict") && text.contains("ReadWritePaths=\"/srv/acme\""));
        assert!(text.contains("ReadWritePaths=\"/var/lib/my"));
        assert!(!text.contains("User=") && text.contains("WantedBy=default.target"));
    }
}
