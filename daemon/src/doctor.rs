//! Looks at what a site stands on: its home, its ports, the system's buffers, disks, clock.
//!
//! Invariant: looking changes nothing. Ports are bound for a moment and let go; the two files made to
//! try a file system's features lie in the home and are removed. What cannot be found out is told as
//! a warning, never as good.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sluice_protocol::api::{Check, Doctor, Health};

use crate::config::Config;
use crate::home::{self, HomeError};

/// UDP buffers that a fast QUIC connection wants, in bytes.
const UDP_BUFFER_BYTES: u64 = 8 * 1024 * 1024;
/// Free space below which a disk is told as short, and as full, in bytes.
const DISK_SHORT_BYTES: u64 = 2 << 30;
/// See [`DISK_SHORT_BYTES`].
const DISK_FULL_BYTES: u64 = 128 << 20;
/// No clock is before this: the month before the first release, in seconds since the Unix epoch.
const CLOCK_EARLIEST_S: u64 = 1_760_000_000;
/// No clock is after this (the year 2100), in seconds since the Unix epoch.
const CLOCK_LATEST_S: u64 = 4_102_444_800;
/// How far ahead of now a file in the home may have been written.
const CLOCK_STEP: Duration = Duration::from_secs(600);

/// What a doctor looks at.
pub struct Patient<'a> {
    pub home: &'a Path,
    pub config: &'a Config,
    pub allow_volatile: bool,
    /// Each space's name and lake.
    pub lakes: &'a [(String, PathBuf)],
    pub daemon: Daemon,
}

/// Whether the site runs, and on which ports.
pub enum Daemon {
    Down,
    /// The addresses it holds, as it says them; the API's may be closed.
    Up {
        pid: u32,
        p2p: Vec<String>,
        api: Option<String>,
    },
}

/// What a catalog holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contents {
    pub spaces: u64,
    pub blobs: u64,
    pub bytes: u64,
}

/// All checks but the one of contents.
pub fn examine(patient: &Patient<'_>) -> Vec<Check> {
    let mut checks = vec![home_check(patient), media_check(patient)];
    checks.extend(port_checks(patient));
    checks.extend([buffer_check("rmem_max"), buffer_check("wmem_max")]);
    checks.push(disk_check("disk of the home", patient.home));
    checks.extend(patient.lakes.iter().map(|(name, lake)| lake_check(name, lake)));
    checks.push(clock_check(patient.home));
    checks.extend(feature_checks(patient.home));
    checks
}

/// The answer made of checks.
pub fn report(checks: Vec<Check>) -> Doctor {
    Doctor { ok: checks.iter().all(|c| c.health != Health::Bad), checks }
}

/// Counts what a site has: on a clean one, that there is nothing.
pub fn contents_check(contents: Contents) -> Check {
    let Contents { spaces, blobs, bytes } = contents;
    let clean = if contents == (Contents { spaces: 0, blobs: 0, bytes: 0 }) { ": the site is clean" } else { "" };
    let count = |n: u64, one: &str| if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") };
    good("contents", format!("{}, {}, {}{clean}", count(spaces, "space"), count(blobs, "blob"), count(bytes, "byte")))
}

/// A finding that needs nothing done.
pub fn good(check: &str, found: impl Into<String>) -> Check {
    Check { check: check.into(), health: Health::Good, found: found.into(), advice: None }
}

/// A finding with advice.
pub fn advise(check: &str, health: Health, found: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { check: check.into(), health, found: found.into(), advice: Some(advice.into()) }
}

fn of_home_error(check: &str, error: HomeError) -> Check {
    let error = sluice_protocol::api::ApiError::from(error);
    Check { check: check.into(), health: Health::Bad, found: error.error, advice: error.hint }
}

fn home_check(patient: &Patient<'_>) -> Check {
    match home::check_private(patient.home) {
        Ok(()) => good("home", format!("{} is private", patient.home.display())),
        Err(error) => of_home_error("home", error),
    }
}

fn media_check(patient: &Patient<'_>) -> Check {
    match home::check_media(patient.home) {
        Ok(()) => good("medium of the home", "it outlives a restart"),
        Err(error) if patient.allow_volatile => {
            let error = sluice_protocol::api::ApiError::from(error);
            advise("medium of the home", Health::Warning, error.error, "fine for a test; a real site needs a disk")
        }
        Err(error) => of_home_error("medium of the home", error),
    }
}

fn port_checks(patient: &Patient<'_>) -> Vec<Check> {
    match &patient.daemon {
        Daemon::Up { pid, p2p, api } => {
            let api = api.as_deref().unwrap_or("closed by the settings");
            vec![
                good("daemon", format!("runs as process {pid}")),
                good("port for peers", format!("ours: {}", p2p.join(", "))),
                good("port of the API", format!("ours: {api}")),
            ]
        }
        Daemon::Down => {
            let mut checks = vec![advise("daemon", Health::Warning, "it does not run", "start it with `sluice up`")];
            checks.push(udp_check(patient.config.p2p.port));
            if patient.config.p2p.tls {
                checks.push(tls_check(patient.config.p2p.port));
            }
            if patient.config.api.enabled {
                checks.push(tcp_check(patient.config.api.port));
            }
            checks
        }
    }
}

fn udp_check(port: u16) -> Check {
    let name = "port for peers";
    let setting = "p2p.port";
    bindable(name, "UDP", port, setting, UdpSocket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).map(drop))
}

fn tls_check(port: u16) -> Check {
    let bound = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).map(drop);
    bindable("port for bulk data", "TCP", port, "p2p.port", bound)
}

fn tcp_check(port: u16) -> Check {
    let bound = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).map(drop);
    bindable("port of the API", "TCP", port, "api.port", bound)
}

fn bindable(check: &str, kind: &str, port: u16, setting: &str, bound: std::io::Result<()>) -> Check {
    match bound {
        Ok(()) if port == 0 => good(check, format!("any free {kind} port")),
        Ok(()) => good(check, format!("{kind} {port} is free")),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => advise(
            check,
            Health::Bad,
            format!("{kind} {port} is taken by another program"),
            format!("stop that program (`ss -lpn`), or set `{setting}` in config.toml"),
        ),
        Err(e) => advise(
            check,
            Health::Bad,
            format!("{kind} {port} cannot be opened: {e}"),
            format!("set `{setting}` in config.toml"),
        ),
    }
}

fn buffer_check(name: &str) -> Check {
    let check = format!("net.core.{name}");
    let read = fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok().and_then(|t| t.trim().parse::<u64>().ok());
    match read {
        Some(bytes) if bytes >= UDP_BUFFER_BYTES => good(&check, format!("{bytes} bytes")),
        Some(bytes) => advise(
            &check,
            Health::Warning,
            format!("{bytes} bytes: fast links will lose packets"),
            format!("run `sysctl -w net.core.{name}={UDP_BUFFER_BYTES}` as root, and put it into /etc/sysctl.d"),
        ),
        None => advise(
            &check,
            Health::Warning,
            "this system does not tell",
            "see that UDP sockets may have buffers of 8 MiB",
        ),
    }
}

fn disk_check(check: &str, path: &Path) -> Check {
    let stat = match rustix::fs::statvfs(path) {
        Ok(stat) => stat,
        Err(e) => {
            return advise(
                check,
                Health::Bad,
                format!("{} cannot be looked at: {e}", path.display()),
                "check that it is there",
            );
        }
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let found = format!("{} MiB free at {}", free >> 20, path.display());
    if free < DISK_FULL_BYTES {
        advise(check, Health::Bad, found, "make room on that disk")
    } else if free < DISK_SHORT_BYTES {
        advise(check, Health::Warning, found, "make room before a large version arrives")
    } else if stat.f_files > 0 && stat.f_favail < 10_000 {
        advise(
            check,
            Health::Warning,
            format!("{} files can still be made at {}", stat.f_favail, path.display()),
            "make room for more files",
        )
    } else {
        good(check, found)
    }
}

fn lake_check(name: &str, lake: &Path) -> Check {
    let check = format!("lake of {name}");
    let read_only = rustix::fs::statvfs(lake).is_ok_and(|s| s.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    if read_only {
        return good(
            &check,
            format!("{} is mounted read-only: it is shared without keeping old versions", lake.display()),
        );
    }
    disk_check(&check, lake)
}

fn clock_check(home: &Path) -> Check {
    let now = SystemTime::now();
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let fix = "set the clock and keep it with NTP: heads and tickets expire by it";
    if !(CLOCK_EARLIEST_S..CLOCK_LATEST_S).contains(&seconds) {
        return advise("clock", Health::Bad, format!("it says {seconds} seconds after 1970, which cannot be"), fix);
    }
    let ahead = fs::read_dir(home).into_iter().flatten().flatten().find(|entry| {
        let written = entry.metadata().and_then(|m| m.modified());
        written.is_ok_and(|w| w > now + CLOCK_STEP)
    });
    match ahead {
        Some(entry) => {
            let found = format!("`{}` was written in the future: the clock went back", entry.path().display());
            advise("clock", Health::Warning, found, fix)
        }
        None => good("clock", "it agrees with the files in the home"),
    }
}

/// Whether the home's file system shares blocks and links files; lakes beside it mostly lie on the same.
fn feature_checks(home: &Path) -> Vec<Check> {
    let folder = match tempfile_in(home) {
        Ok(folder) => folder,
        Err(e) => {
            return vec![advise(
                "file system",
                Health::Bad,
                format!("nothing can be written into {}: {e}", home.display()),
                "check its mode and its disk",
            )];
        }
    };
    let from = folder.0.join("from");
    let tried = fs::write(&from, [7; 4096]).and_then(|()| fs::File::open(&from));
    let checks = match tried {
        Err(e) => vec![advise("file system", Health::Bad, format!("a file cannot be written: {e}"), "check the disk")],
        Ok(file) => {
            let linked = fs::hard_link(&from, folder.0.join("link")).map(|()| "hard links work".to_string());
            let shared = fs::File::create_new(folder.0.join("clone"))
                .and_then(|clone| rustix::fs::ioctl_ficlone(&clone, &file).map_err(Into::into))
                .map(|()| "blocks can be shared (reflink)".to_string());
            vec![
                linked.map_or_else(
                    |e| {
                        advise(
                            "hard links",
                            Health::Warning,
                            format!("not here ({e})"),
                            "old versions will not be kept on such a file system",
                        )
                    },
                    |found| good("hard links", found),
                ),
                // Most file systems have none; nothing is wrong with that.
                good(
                    "reflinks",
                    shared.unwrap_or_else(|_| "not here: changing files are kept only with `pins.copy = true`".into()),
                ),
            ]
        }
    };
    drop(folder);
    checks
}

/// A folder that goes when the value goes.
struct Trial(PathBuf);

impl Drop for Trial {
    fn drop(&mut self) {
        // It lies in our own home and is named as what it is, if it stays.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tempfile_in(home: &Path) -> std::io::Result<Trial> {
    let path = home.join(format!("doctor-trial-{}", std::process::id()));
    fs::create_dir(&path)?;
    Ok(Trial(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::Home;

    fn examined(setup: impl FnOnce(&Path), config: &Config) -> Vec<Check> {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::init(&folder.path().join("h"), "acme", true).unwrap().home;
        setup(home.root());
        let before = names(home.root());
        let checks = examine(&Patient {
            home: home.root(),
            config,
            allow_volatile: true,
            lakes: &[("acme".into(), folder.path().into())],
            daemon: Daemon::Down,
        });
        assert_eq!(names(home.root()), before, "looking changed something");
        checks
    }

    fn names(folder: &Path) -> Vec<std::ffi::OsString> {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    }

    fn found<'a>(checks: &'a [Check], name: &str) -> &'a Check {
        checks.iter().find(|c| c.check == name).unwrap_or_else(|| panic!("no check `{name}` in {checks:?}"))
    }

    fn free_ports() -> Config {
        let mut config = Config::default();
        (config.p2p.port, config.api.port) = (0, 0);
        config
    }

    #[test]
    fn a_sound_home_is_good() {
        let checks = examined(|_| {}, &free_ports());
        assert!(report(checks.clone()).ok, "{checks:?}");
        for name in [
            "home",
            "port for peers",
            "port for bulk data",
            "port of the API",
            "clock",
            "hard links",
            "disk of the home",
            "lake of acme",
        ] {
            assert_eq!(found(&checks, name).health, Health::Good, "{name}");
        }
        assert_eq!(found(&checks, "daemon").health, Health::Warning);
    }

    #[test]
    fn what_is_wrong_is_bad_and_says_what_to_do() {
        use std::os::unix::fs::PermissionsExt;
        let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut config = free_ports();
        config.p2p.port = udp.local_addr().unwrap().port();
        let loosen =
            |home: &Path| fs::set_permissions(home.join("site.key"), fs::Permissions::from_mode(0o644)).unwrap();
        let checks = examined(loosen, &config);
        assert!(!report(checks.clone()).ok);
        let home = found(&checks, "home");
        assert!(home.health == Health::Bad && home.advice.as_ref().unwrap().contains("chmod 600"), "{home:?}");
        let port = found(&checks, "port for peers");
        assert!(port.health == Health::Bad && port.advice.as_ref().unwrap().contains("p2p.port"), "{port:?}");
    }

    #[test]
    fn a_clock_that_went_back_is_seen() {
        let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
        let checks =
            examined(|home| fs::File::open(home.join("name")).unwrap().set_modified(tomorrow).unwrap(), &free_ports());
        assert_eq!(found(&checks, "clock").health, Health::Warning);
    }

    #[test]
    fn emptiness_is_told_only_when_it_is_so() {
        let none = Contents { spaces: 0, blobs: 0, bytes: 0 };
        assert!(contents_check(none).found.contains("0 spaces, 0 blobs, 0 bytes: the site is clean"));
        assert!(!contents_check(Contents { blobs: 1, ..none }).found.contains("clean"));
    }
}
