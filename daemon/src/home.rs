//! A site's home: its key, its name, its settings, its door, and the rules for the folder they lie in.
//!
//! Invariant: a home is never used while others than its owner could read its secrets, never shared by
//! two running daemons, and never made anew over an existing key. `site.key` is written last, so a home
//! either has everything or is no home yet.
//!
//! | name | what |
//! |---|---|
//! | `site.key` | the site's ed25519 secret: 64 hexadecimal digits |
//! | `name` | the site's name, one line |
//! | `recovery.pub` | the public half of the offline recovery key: 64 hexadecimal digits |
//! | `config.toml` | settings ([`crate::config`]) |
//! | `api.token` | the token of the API on loopback: 64 hexadecimal digits |
//! | `sluice.sock` | the door of the command line, while the daemon runs |
//! | `lock` | held (flock) by the daemon; an empty file |

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use ed25519_dalek::SigningKey;
use sluice_protocol::api::{ApiError, Failure};
use sluice_protocol::ids::SiteId;
use sluice_protocol::limits::NAME_BYTES_MAX;
use sluice_store::disk::{self, WholeFiles};
use zeroize::Zeroizing;

mod media;

pub use media::{check_media, is_volatile_path};

const KEY: &str = "site.key";
const NAME: &str = "name";
const RECOVERY: &str = "recovery.pub";
const CONFIG: &str = "config.toml";
const TOKEN: &str = "api.token";
const SOCKET: &str = "sluice.sock";
const LOCK: &str = "lock";
/// Keys, tokens and settings.
const HOME_FILES: WholeFiles = WholeFiles("home");

/// The files that must be a regular file of mode 0600 at most.
const PRIVATE: [&str; 5] = [KEY, NAME, RECOVERY, CONFIG, TOKEN];
/// Longest of these files that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Longest path of a Unix socket that the system takes, in bytes, without the closing NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why a home cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("there is no site in `{0}`")]
    Missing(PathBuf),
    #[error("there is a site in `{0}` already; its key was kept")]
    Exists(PathBuf),
    #[error("`{0}` is not empty and is not a site's home")]
    Occupied(PathBuf),
    #[error("`{0}` is not a directory")]
    NotADirectory(PathBuf),
    #[error("`{path}` can be reached by others (mode {mode:04o})")]
    TooOpen { path: PathBuf, mode: u32, wanted: u32 },
    #[error("`{path}` belongs to the user with id {owner}, not to you (id {you})")]
    NotYours { path: PathBuf, owner: u32, you: u32 },
    #[error("`{0}` is a link or a special file where a plain file is expected")]
    NotPlain(PathBuf),
    #[error("the home `{path}` would not outlive a restart: it lies on {medium}")]
    Volatile { path: PathBuf, medium: String },
    #[error("another daemon runs on the home `{0}`")]
    InUse(PathBuf),
    #[error("`{path}` does not hold {what}")]
    Damaged { path: PathBuf, what: &'static str },
    #[error("`{0}` cannot name a site: 1 to {NAME_BYTES_MAX} bytes without control characters are allowed")]
    BadName(String),
    #[error("the system gave no random numbers: {0}")]
    NoRandom(String),
    #[error("`{path}` cannot be {doing}: {cause}")]
    Io { path: PathBuf, doing: &'static str, cause: io::Error },
}

impl HomeError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Missing(_) => "make one with `sluice init`, or name another home with --home or SLUICE_HOME".into(),
            Self::Exists(_) => "use it as it is, or name another home with --home or SLUICE_HOME".into(),
            Self::Occupied(_) => "name an empty or a new folder with --home or SLUICE_HOME".into(),
            Self::TooOpen { path, wanted, .. } => format!("run `chmod {wanted:o} '{}'`", path.display()),
            Self::NotYours { .. } => "run as its owner, or give it to this user with chown".into(),
            Self::Volatile { .. } => {
                "choose a home on a disk; for a test, --allow-volatile or SLUICE_ALLOW_VOLATILE=1 permits it".into()
            }
            Self::InUse(_) => {
                "`sluice status` asks the running one; give a second site a home of its own with --home".into()
            }
            Self::Damaged { .. } => "restore the file from a backup; the site's key cannot be made again".into(),
            Self::Io { cause, .. } => return io_hint(cause).map(String::from),
            _ => return None,
        })
    }
}

/// What to do about the common failures of the system.
pub fn io_hint(cause: &io::Error) -> Option<&'static str> {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => Some("check the owner and the mode of the folders above it"),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Some("free some space on that disk, then do the same again")
        }
        io::ErrorKind::ReadOnlyFilesystem => Some("the file system is mounted read-only; name another place"),
        _ => None,
    }
}

impl From<HomeError> for ApiError {
    fn from(error: HomeError) -> Self {
        let failure = if matches!(error, HomeError::BadName(_)) { Failure::Usage } else { Failure::Error };
        ApiError { error: error.to_string(), hint: error.hint(), failure }
    }
}

fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> HomeError {
    move |cause| HomeError::Io { path: path.to_path_buf(), doing, cause }
}

/// A checked home. Clones share the lock.
#[derive(Clone)]
pub struct Home {
    root: PathBuf,
    name: String,
    key: SigningKey,
    recovery: SiteId,
    lock: Option<Arc<File>>,
}

impl std::fmt::Debug for Home {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Home").field("root", &self.root).field("site", &self.site().short()).finish_non_exhaustive()
    }
}

/// What `init` tells once.
pub struct Made {
    pub home: Home,
    /// The secret half of the recovery key, 64 hexadecimal digits; it is stored nowhere.
    pub recovery_key: Zeroizing<String>,
}

impl Home {
    /// Makes a new home in `root`, which must not exist or be empty.
    pub fn init(root: &Path, name: &str, allow_volatile: bool) -> Result<Made, HomeError> {
        check_site_name(name)?;
        if !allow_volatile {
            check_media(root)?;
        }
        make_folder(root)?;
        let root = root.canonicalize().map_err(io(root, "found"))?;
        let lock = take_lock(&root)?;
        if root.join(KEY).symlink_metadata().is_ok() {
            return Err(HomeError::Exists(root));
        }
        let key = random_key()?;
        let recovery = random_key()?;
        let recovery_public = SiteId(recovery.verifying_key().to_bytes());
        let token = Zeroizing::new(HEXLOWER.encode(&*random_bytes()?));
        write_private(&root, NAME, format!("{name}\n").as_bytes())?;
        if !root.join(CONFIG).exists() {
            write_private(&root, CONFIG, crate::config::COMMENTED.as_bytes())?;
        }
        write_private(&root, TOKEN, token.as_bytes())?;
        write_private(&root, RECOVERY, format!("{recovery_public}\n").as_bytes())?;
        let text = Zeroizing::new(HEXLOWER.encode(&key.to_bytes()));
        write_private(&root, KEY, text.as_bytes())?;
        drop(lock);
        let recovery_key = Zeroizing::new(HEXLOWER.encode(&recovery.to_bytes()));
        Ok(Made { home: Self::open(&root, allow_volatile)?, recovery_key })
    }

    /// Opens a home and checks everything in it that must be private.
    pub fn open(root: &Path, allow_volatile: bool) -> Result<Self, HomeError> {
        let found = fs::metadata(root).map_err(|cause| match cause.kind() {
            io::ErrorKind::NotFound => HomeError::Missing(root.to_path_buf()),
            _ => HomeError::Io { path: root.to_path_buf(), doing: "opened", cause },
        })?;
        if !found.is_dir() {
            return Err(HomeError::NotADirectory(root.to_path_buf()));
        }
        let root = root.canonicalize().map_err(io(root, "found"))?;
        if !root.join(KEY).try_exists().map_err(io(&root, "read"))? {
            return Err(HomeError::Missing(root));
        }
        if !allow_volatile {
            check_media(&root)?;
        }
        check_private(&root)?;
        let name = read_text(&root, NAME)?.trim_end_matches('\n').to_string();
        check_site_name(&name)?;
        let secret = read_secret(&root, KEY, "a site's key: 64 hexadecimal digits")?;
        let recovery = read_secret(&root, RECOVERY, "the public half of a recovery key: 64 hexadecimal digits")?;
        Ok(Self { name, key: SigningKey::from_bytes(&secret), recovery: SiteId(*recovery), root, lock: None })
    }

    /// Makes the home this process's own, until the last clone of the result is gone.
    pub fn locked(self) -> Result<Self, HomeError> {
        let lock = take_lock(&self.root)?;
        Ok(Self { lock: Some(Arc::new(lock)), ..self })
    }

    /// Whether this process holds the home.
    pub fn is_locked(&self) -> bool {
        self.lock.is_some()
    }

    /// The folder, absolute and without links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The site's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The site's identity.
    pub fn site(&self) -> SiteId {
        SiteId(self.key.verifying_key().to_bytes())
    }

    /// The site's secret; it is wiped when dropped.
    pub fn key(&self) -> SigningKey {
        self.key.clone()
    }

    /// The public half of the recovery key.
    pub fn recovery(&self) -> SiteId {
        self.recovery
    }

    /// The token of the API on loopback. The holder of the lock makes a new one where the file was
    /// removed: that is how a token is taken back.
    pub fn token(&self) -> Result<Zeroizing<String>, HomeError> {
        if self.is_locked() && !self.root.join(TOKEN).try_exists().map_err(io(&self.root, "read"))? {
            let token = Zeroizing::new(HEXLOWER.encode(&*random_bytes()?));
            write_private(&self.root, TOKEN, token.as_bytes())?;
        }
        let token = read_secret(&self.root, TOKEN, "an API token: 64 hexadecimal digits")?;
        Ok(Zeroizing::new(HEXLOWER.encode(&*token)))
    }

    /// The settings file.
    pub fn config_path(&self) -> PathBuf {
        self.root.join(CONFIG)
    }

    /// Opens the door for the command line, mode 0600. Only for the holder of the lock: a socket that
    /// is there already is then a dead one, and is replaced.
    pub fn bind_socket(&self) -> Result<std::os::unix::net::UnixListener, HomeError> {
        let path = self.root.join(SOCKET);
        if self.lock.is_none() {
            return Err(HomeError::InUse(self.root.clone()));
        }
        match fs::symlink_metadata(&path) {
            Ok(found) if found.file_type().is_socket() => fs::remove_file(&path).map_err(io(&path, "replaced"))?,
            Ok(_) => return Err(HomeError::NotPlain(path)),
            Err(_) => {}
        }
        let door = SocketPath::of(&self.root).map_err(io(&self.root, "opened"))?;
        let listener = std::os::unix::net::UnixListener::bind(door.as_path()).map_err(io(&path, "made"))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(io(&path, "made private"))?;
        listener.set_nonblocking(true).map_err(io(&path, "made"))?;
        Ok(listener)
    }

    /// Closes the door: the name goes, so that a client is told at once that nothing runs here.
    pub fn remove_socket(&self) {
        // The next start replaces it anyway.
        let _ = fs::remove_file(self.root.join(SOCKET));
    }
}

/// The socket's path in a form that the system takes however deep the home lies: a longer path is
/// reached through the home's open folder, `/proc/self/fd/N/sluice.sock`.
pub struct SocketPath {
    path: PathBuf,
    _folder: Option<File>,
}

impl SocketPath {
    /// The path of the socket in the home `root`; valid while the value lives.
    pub fn of(root: &Path) -> io::Result<Self> {
        let path = root.join(SOCKET);
        if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
            return Ok(Self { path, _folder: None });
        }
        use std::os::fd::AsRawFd;
        let folder = File::open(root)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()));
        Ok(Self { path, _folder: Some(folder) })
    }

    /// The path to bind or to connect to.
    pub fn as_path(&self) -> &Path {
        &self.path
    }
}

/// A site's name is a word or two for people.
pub fn check_site_name(name: &str) -> Result<(), HomeError> {
    let ok = name.trim() == name && sluice_protocol::codec::check_name("a site's name", name).is_ok();
    if ok { Ok(()) } else { Err(HomeError::BadName(name.chars().take(80).collect())) }
}

/// Every file that must be private, and the folder itself, is.
pub fn check_private(root: &Path) -> Result<(), HomeError> {
    let you = rustix::process::geteuid().as_raw();
    let check = |path: PathBuf, found: fs::Metadata, wanted: u32| {
        if found.uid() != you {
            return Err(HomeError::NotYours { path, owner: found.uid(), you });
        }
        let mode = found.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(HomeError::TooOpen { path, mode, wanted });
        }
        Ok(())
    };
    check(root.to_path_buf(), fs::metadata(root).map_err(io(root, "read"))?, 0o700)?;
    for name in PRIVATE {
        let path = root.join(name);
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(io(&path, "read")(e)),
        };
        if !found.is_file() {
            return Err(HomeError::NotPlain(path));
        }
        check(path, found, 0o600)?;
    }
    Ok(())
}

/// The folder: new, or empty and then made private, or half of a home that `init` did not finish.
fn make_folder(root: &Path) -> Result<(), HomeError> {
    match fs::metadata(root) {
        Ok(found) if !found.is_dir() => return Err(HomeError::NotADirectory(root.to_path_buf())),
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            disk::make_folders("home", root, 0o700).map_err(io(root, "made"))?;
        }
        Err(e) => return Err(io(root, "opened")(e)),
    }
    let mut empty = true;
    for entry in fs::read_dir(root).map_err(io(root, "read"))? {
        let name = entry.map_err(io(root, "read"))?.file_name();
        let ours = name.to_str().is_some_and(|n| PRIVATE.contains(&n) || n == LOCK || n.ends_with(".new"));
        if !ours && !root.join(KEY).exists() {
            return Err(HomeError::Occupied(root.to_path_buf()));
        }
        empty = false;
    }
    if empty {
        fs::set_permissions(root, fs::Permissions::from_mode(0o700)).map_err(io(root, "made private"))?;
    }
    check_private(root)
}

/// Takes the lock file, or says that another has it. The kernel lets go of it when the holder dies.
fn take_lock(root: &Path) -> Result<File, HomeError> {
    let path = root.join(LOCK);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
        .open(&path)
        .map_err(io(&path, "opened"))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(HomeError::InUse(root.to_path_buf())),
        Err(e) => Err(io(&path, "locked")(e.into())),
    }
}

/// Whether a daemon holds the home now.
pub fn is_in_use(root: &Path) -> bool {
    root.join(LOCK).exists() && matches!(take_lock(root), Err(HomeError::InUse(_)))
}

fn random_bytes() -> Result<Zeroizing<[u8; 32]>, HomeError> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes).map_err(|e| HomeError::NoRandom(e.to_string()))?;
    Ok(bytes)
}

fn random_key() -> Result<SigningKey, HomeError> {
    Ok(SigningKey::from_bytes(&*random_bytes()?))
}

/// Writes a file of mode 0600 so that after a crash it is there whole or not at all.
fn write_private(root: &Path, name: &str, bytes: &[u8]) -> Result<(), HomeError> {
    let path = root.join(name);
    // A rest of an earlier try may be there, with whatever mode; it is replaced.
    HOME_FILES.put(&path, &format!("{name}.new"), 0o600, bytes).map_err(io(&path, "written"))
}

/// Reads a small private file.
fn read_text(root: &Path, name: &str) -> Result<Zeroizing<String>, HomeError> {
    use io::Read;
    let path = root.join(name);
    let mut text = Zeroizing::new(String::new());
    let file = File::open(&path).map_err(io(&path, "read"))?;
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(io(&path, "read"))?;
    Ok(text)
}

/// Reads 64 hexadecimal digits; blanks around them are forgiven.
fn read_secret(root: &Path, name: &str, what: &'static str) -> Result<Zeroizing<[u8; 32]>, HomeError> {
    let text = read_text(root, name)?;
    let damaged = || HomeError::Damaged { path: root.join(name), what };
    let digits = text.trim().as_bytes();
    let mut bytes = Zeroizing::new([0; 32]);
    if digits.len() != 64 {
        return Err(damaged());
    }
    HEXLOWER_PERMISSIVE.decode_mut(digits, &mut *bytes).map_err(|_| damaged())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
