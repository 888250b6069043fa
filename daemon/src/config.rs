//! The settings of a site: one TOML file, and the environment over it.
//!
//! Invariant: a setting is either understood or refused by name; none is ignored. A file of a version
//! that this program does not know is not guessed at. `config/default.toml` is what `init` writes and
//! names every key with its default; a test keeps it true.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::{Deserialize, Serialize};
use sluice_protocol::api::{ApiError, Failure};
use sluice_protocol::manifest::SectionKind;
use sluice_protocol::path::LakePath;

use crate::lanes::{Caps, Hours};

mod keys;

/// The version of the file that this program reads.
pub const CONFIG_VERSION: u64 = 1;
/// What `init` writes: every key with its default, commented out.
pub const COMMENTED: &str = include_str!("config/default.toml");
/// Variables of the environment that set a key begin with this.
pub const VARIABLE_PREFIX: &str = "SLUICE__";
/// Largest settings file, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Most connections to one peer that may be asked for.
const CONNECTIONS_MAX: usize = 64;
/// Most segments in flight that may be asked for; each costs up to 16 MiB of work.
const SEGMENTS_MAX: usize = 256;
/// Longest time that a version stays for its readers, in seconds: 30 days.
const READERS_GRACE_MAX_S: u64 = 30 * 24 * 3600;
/// Most generations that may be kept; each has its own folders.
const GENERATIONS_MAX: usize = 10_000;
/// Most versions of a space that may be kept.
const SNAPSHOTS_MAX: usize = 100_000;
/// Longest grace, in hours: ten years.
const GRACE_HOURS_MAX: usize = 87_600;
/// Longest time for which what lies aside stays, in days.
const ASIDE_DAYS_MAX: usize = 36_500;
/// Most threads that may read and hash.
const THREADS_MAX: usize = 1024;

/// Longest quiet time, in milliseconds.
const DEBOUNCE_MS_MAX: usize = 3_600_000;
/// Longest time between two looks, in seconds: a week.
const TIMER_S_MAX: usize = 7 * 24 * 3600;

/// All settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub config_version: u64,
    pub p2p: P2p,
    pub api: Api,
    pub limits: Limits,
    pub scan: Scan,
    pub publish: Publish,
    pub pins: Pins,
    pub follow: Follow,
    pub retention: Retention,
    pub log: Log,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            config_version: CONFIG_VERSION,
            p2p: P2p::default(),
            api: Api::default(),
            limits: Limits::default(),
            scan: Scan::default(),
            publish: Publish::default(),
            pins: Pins::default(),
            follow: Follow::default(),
            retention: Retention::default(),
            log: Log::default(),
        }
    }
}

/// Between sites.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct P2p {
    /// UDP port; 0 takes any free one.
    pub port: u16,
    /// More addresses that tickets and cards name.
    pub addresses: Vec<SocketAddr>,
    /// Whether loopback addresses are named too.
    pub loopback: bool,
    /// Whether bulk data may take TCP, on the port of the same number.
    pub tls: bool,
    /// Whether this site packs what it sends where it pays.
    pub compress: bool,
}

impl Default for P2p {
    fn default() -> Self {
        Self { port: 7711, addresses: Vec::new(), loopback: false, tls: true, compress: true }
    }
}

impl P2p {
    /// The addresses that are named besides this machine's own.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.clone()
    }
}

/// The API on loopback.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    pub enabled: bool,
    /// TCP port on 127.0.0.1; 0 takes any free one.
    pub port: u16,
}

impl Default for Api {
    fn default() -> Self {
        Self { enabled: true, port: 7712 }
    }
}

/// How much at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub max_connections_per_peer: u32,
    /// Segments that are fetched at once from one source.
    pub segments_in_flight: u32,
    /// Megabits a second of bulk data, each way; 0 is no limit.
    pub max_mbps: u64,
    /// The same for each peer.
    pub max_mbps_per_peer: u64,
    /// What holds instead of `max_mbps` at times of the day.
    pub hours: Vec<String>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections_per_peer: 4,
            segments_in_flight: 8,
            max_mbps: 0,
            max_mbps_per_peer: 0,
            hours: Vec::new(),
        }
    }
}

impl Limits {
    /// Connections to one peer, 1 at least.
    pub fn connections_per_peer(&self) -> usize {
        self.max_connections_per_peer.max(1) as usize
    }

    /// How much of the line bulk data may take. Of checked settings; what cannot be read has no cap.
    pub fn caps(&self) -> Caps {
        let hours = self.hours.iter().filter_map(|h| h.parse().ok()).collect();
        Caps { mbps: self.max_mbps, mbps_per_peer: self.max_mbps_per_peer, hours }
    }

    /// Segments that are fetched at once from one source, 1 at least. A small cap is not spread over many: each would
    /// crawl, and pass for a line that stands still.
    pub fn streams(&self) -> usize {
        let caps = [self.max_mbps, self.max_mbps_per_peer].into_iter().filter(|cap| *cap > 0);
        let most = caps.min().map_or(u64::MAX, |mbps| (mbps / 2).max(1));
        u64::from(self.segments_in_flight).clamp(1, most.max(1)) as usize
    }
}

/// Reading lakes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scan {
    /// Threads; 0 is one for each core.
    pub threads: u32,
    /// Folders whose tables travel as plain files.
    pub opaque: Vec<LakePath>,
    /// Kinds by folder, over what the layout says.
    pub sections: BTreeMap<LakePath, SectionKind>,
}

impl Scan {
    /// The folders whose tables travel as plain files.
    pub fn opaque_folders(&self) -> BTreeSet<LakePath> {
        self.opaque.iter().cloned().collect()
    }

    /// The kinds that folders have whatever their layout says.
    pub fn section_kinds(&self) -> BTreeMap<LakePath, SectionKind> {
        self.sections.clone()
    }
}

/// Publishing at a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Publish {
    pub keep_generations: usize,
    /// Seconds that a version stays for its readers after the next one took its place.
    pub readers_grace_s: u64,
    /// Large files are written past the page cache.
    pub direct_io: bool,
}

impl Default for Publish {
    fn default() -> Self {
        Self { keep_generations: 3, readers_grace_s: 600, direct_io: true }
    }
}

/// Old versions at the owner.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pins {
    /// Whether files that change in place are kept by copying where blocks cannot be shared.
    pub copy: bool,
}

/// Following changes without being told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Follow {
    pub enabled: bool,
    /// Quiet time after which a change in a lake is taken, in milliseconds.
    pub debounce_ms: u64,
    /// How often a lake is looked through for what was not noticed, in seconds.
    pub rescan_s: u64,
    /// How often a replica asks for news, in seconds.
    pub poll_s: u64,
}

impl Default for Follow {
    fn default() -> Self {
        Self { enabled: true, debounce_ms: 1000, rescan_s: 300, poll_s: 60 }
    }
}

/// What is kept when newer versions come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retention {
    /// Newest versions of an owned space.
    pub snapshots: usize,
    /// Hours for which a version stays that a peer was fetching.
    pub grace_h: usize,
    /// Days for which the losing side of a decision stays; 0 is for ever.
    pub kept_days: usize,
    /// Days for which damaged bytes stay; 0 is for ever.
    pub quarantine_days: usize,
}

impl Default for Retention {
    fn default() -> Self {
        Self { snapshots: 10, grace_h: 24, kept_days: 90, quarantine_days: 30 }
    }
}

/// The daemon's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// A level or a filter of `tracing`.
    pub level: String,
    pub json: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), json: false }
    }
}

/// Why the settings are refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the settings `{path}` cannot be read: {cause}")]
    Unreadable { path: PathBuf, cause: std::io::Error },
    #[error("the settings `{path}` are longer than {FILE_BYTES_MAX} bytes")]
    TooLong { path: PathBuf },
    #[error("the settings `{path}` are no TOML: {problem}")]
    Syntax { path: PathBuf, problem: String },
    #[error("the settings `{path}` name no config_version")]
    NoVersion { path: PathBuf },
    #[error("the settings `{path}` have config_version {found}; this program knows {CONFIG_VERSION}")]
    Version { path: PathBuf, found: String },
    #[error("{origin} sets `{key}`, which is no setting")]
    UnknownKey { origin: String, key: String, nearest: Option<String> },
    #[error("{origin} sets `{key}` wrongly: {problem}")]
    Invalid { origin: String, key: String, problem: String },
}

impl From<ConfigError> for ApiError {
    fn from(error: ConfigError) -> Self {
        let hint = match &error {
            ConfigError::NoVersion { .. } => format!("add the line `config_version = {CONFIG_VERSION}` at its top"),
            ConfigError::Version { .. } => {
                "use the program that wrote it, or write the settings anew from docs/operations.md".into()
            }
            ConfigError::UnknownKey { nearest: Some(near), .. } => format!("did you mean `{near}`?"),
            ConfigError::UnknownKey { .. } | ConfigError::Invalid { .. } => {
                "docs/operations.md lists the settings".into()
            }
            ConfigError::Unreadable { .. } => "restore it, or delete it to take the defaults".into(),
            _ => "correct it, or delete it to take the defaults".into(),
        };
        ApiError::new(Failure::Usage, error.to_string(), hint)
    }
}

/// One layer of settings, and what messages call it.
struct Layer {
    name: &'static str,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

const FROM_FILE: &str = "the file";
const FROM_ENVIRONMENT: &str = "the environment";

impl Config {
    /// Reads `path`, and over it the variables of this process's environment. A missing file is an empty one.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = |part: std::ffi::OsString| part.to_string_lossy().into_owned();
        Self::from_layers(path, std::env::vars_os().map(|(name, value)| (text(name), text(value))))
    }

    /// Reads `path`, and over it those of `variables` that begin with [`VARIABLE_PREFIX`].
    pub fn from_layers(
        path: &Path,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let file = read_file(path)?;
        let environment = read_variables(variables)?;
        let config: Config = Figment::from(figment::providers::Serialized::defaults(Config::default()))
            .merge(Layer { name: FROM_FILE, values: file })
            .merge(Layer { name: FROM_ENVIRONMENT, values: environment })
            .extract()
            .map_err(|e| invalid(path, &e))?;
        config.check(path)?;
        Ok(config)
    }

    /// What types cannot say.
    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let within = |key: &str, value: usize, max: usize| {
            if (1..=max).contains(&value) {
                return Ok(());
            }
            let problem = format!("{value} is not between 1 and {max}");
            Err(ConfigError::Invalid { origin: origin(path, key), key: key.into(), problem })
        };
        within("limits.max_connections_per_peer", self.limits.max_connections_per_peer as usize, CONNECTIONS_MAX)?;
        within("limits.segments_in_flight", self.limits.segments_in_flight as usize, SEGMENTS_MAX)?;
        within("publish.keep_generations", self.publish.keep_generations, GENERATIONS_MAX)?;
        if self.publish.readers_grace_s > READERS_GRACE_MAX_S {
            let (key, problem) = ("publish.readers_grace_s", format!("more than {READERS_GRACE_MAX_S} seconds"));
            return Err(ConfigError::Invalid { origin: origin(path, key), key: key.into(), problem });
        }
        within("follow.debounce_ms", self.follow.debounce_ms as usize, DEBOUNCE_MS_MAX)?;
        within("follow.rescan_s", self.follow.rescan_s as usize, TIMER_S_MAX)?;
        within("follow.poll_s", self.follow.poll_s as usize, TIMER_S_MAX)?;
        within("retention.snapshots", self.retention.snapshots, SNAPSHOTS_MAX)?;
        within("retention.grace_h", self.retention.grace_h, GRACE_HOURS_MAX)?;
        within("retention.kept_days", self.retention.kept_days.max(1), ASIDE_DAYS_MAX)?;
        within("retention.quarantine_days", self.retention.quarantine_days.max(1), ASIDE_DAYS_MAX)?;
        within("scan.threads", (self.scan.threads as usize).max(1), THREADS_MAX)?;
        for hours in &self.limits.hours {
            if let Err(problem) = hours.parse::<Hours>() {
                return Err(ConfigError::Invalid {
                    origin: origin(path, "limits.hours"),
                    key: "limits.hours".into(),
                    problem,
                });
            }
        }
        if let Err(e) = self.log.level.parse::<tracing_subscriber::filter::Targets>() {
            let key = "log.level";
            return Err(ConfigError::Invalid { origin: origin(path, key), key: key.into(), problem: e.to_string() });
        }
        Ok(())
    }
}

/// Where a checked value may have come from: both places, since the layers are merged by then.
fn origin(path: &Path, key: &str) -> String {
    format!("`{}` or {}", path.display(), variable(key))
}

fn variable(key: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", key.to_ascii_uppercase().replace('.', "__"))
}

fn invalid(path: &Path, error: &figment::Error) -> ConfigError {
    let key = error.path.join(".");
    let from_environment = error.metadata.as_ref().is_some_and(|m| m.name == FROM_ENVIRONMENT);
    let origin = if from_environment { variable(&key) } else { format!("`{}`", path.display()) };
    ConfigError::Invalid { origin, key, problem: error.kind.to_string() }
}

fn read_file(path: &Path) -> Result<Dict, ConfigError> {
    use std::io::Read;
    let unreadable = |cause| ConfigError::Unreadable { path: path.into(), cause };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Dict::new()),
        Err(e) => return Err(unreadable(e)),
    };
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::TooLong { path: path.into() });
    }
    let table: toml::Table =
        toml::from_str(&text).map_err(|e| ConfigError::Syntax { path: path.into(), problem: one_line(&e, &text) })?;
    match table.get("config_version") {
        None => return Err(ConfigError::NoVersion { path: path.into() }),
        Some(toml::Value::Integer(v)) if u64::try_from(*v) == Ok(CONFIG_VERSION) => {}
        Some(other) => return Err(ConfigError::Version { path: path.into(), found: other.to_string() }),
    }
    keys::check(&table).map_err(|(key, nearest)| ConfigError::UnknownKey {
        origin: format!("`{}`", path.display()),
        key,
        nearest,
    })?;
    let wrong = |problem: String| ConfigError::Syntax { path: path.into(), problem };
    let value = Value::serialize(&table).map_err(|e| wrong(e.to_string()))?;
    value.into_dict().ok_or_else(|| wrong("a table is expected".into()))
}

/// The parser's first sentence and the line it means, without the drawing.
fn one_line(error: &toml::de::Error, text: &str) -> String {
    let before = error.span().and_then(|s| text.get(..s.start)).unwrap_or_default();
    let line = before.matches('\n').count() + 1;
    format!("line {line}: {}", error.message().replace('\n', ", "))
}

fn read_variables(variables: impl IntoIterator<Item = (String, String)>) -> Result<Dict, ConfigError> {
    let mut all = Dict::new();
    for (name, text) in variables {
        let Some(key) = name.strip_prefix(VARIABLE_PREFIX) else { continue };
        let key = key.to_ascii_lowercase().replace("__", ".");
        if !keys::is_known(&key) {
            let nearest = keys::nearest(&key).map(|k| variable(&k));
            return Err(ConfigError::UnknownKey { origin: format!("the environment variable {name}"), key, nearest });
        }
        // Never fails: what is no number, boolean, list or table is a text.
        let value: Value = text.parse().unwrap_or_else(|e| match e {});
        keys::put(&mut all, &key, value);
    }
    Ok(all)
}

#[cfg(test)]
mod tests;
