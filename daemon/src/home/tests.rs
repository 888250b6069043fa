//! What a home is made of, and what it refuses.

use std::os::unix::fs::symlink;

use super::*;

fn made() -> (tempfile::TempDir, Home) {
    let folder = tempfile::tempdir().unwrap();
    let home = Home::init(&folder.path().join("home"), "playground", true).unwrap().home;
    (folder, home)
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn init_makes_a_private_home_once() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("a/b/home");
    let made = Home::init(&root, "playground", true).unwrap();
    assert_eq!(mode(&root), 0o700);
    for name in PRIVATE.into_iter().chain([LOCK]) {
        assert_eq!(mode(&root.join(name)), 0o600, "{name}");
    }
    let recovery = HEXLOWER.decode(made.recovery_key.as_bytes()).unwrap();
    let recovery = SigningKey::from_bytes(&recovery.try_into().unwrap());
    assert_eq!(SiteId(recovery.verifying_key().to_bytes()), made.home.recovery());
    for entry in fs::read_dir(&root).unwrap() {
        let bytes = fs::read(entry.unwrap().path()).unwrap();
        assert!(
            !String::from_utf8_lossy(&bytes).contains(made.recovery_key.as_str()),
            "the recovery key is stored nowhere"
        );
    }

    let key = fs::read(root.join(KEY)).unwrap();
    assert!(matches!(Home::init(&root, "other", true), Err(HomeError::Exists(_))));
    assert_eq!(fs::read(root.join(KEY)).unwrap(), key);
    let again = Home::open(&root, true).unwrap();
    assert_eq!((again.site(), again.name(), again.recovery()), (made.home.site(), "playground", made.home.recovery()));
    assert_eq!(again.token().unwrap().len(), 64);
}

#[test]
fn init_takes_an_empty_folder_and_half_a_home_but_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    fs::create_dir(&empty).unwrap();
    chmod(&empty, 0o755);
    Home::init(&empty, "a", true).unwrap();
    assert_eq!(mode(&empty), 0o700);

    // Killed before the key was written.
    let (_half_folder, half) = made();
    let root = half.root().to_path_buf();
    fs::rename(root.join(KEY), root.join("site.key.new")).unwrap();
    assert!(matches!(Home::open(&root, true), Err(HomeError::Missing(_))));
    let finished = Home::init(&root, "b", true).unwrap();
    assert_eq!(finished.home.name(), "b");
    assert_ne!(finished.home.site(), half.site());

    let full = folder.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("thesis.txt"), "x").unwrap();
    assert!(matches!(Home::init(&full, "c", true), Err(HomeError::Occupied(_))));
    assert!(matches!(Home::init(&full.join("thesis.txt"), "c", true), Err(HomeError::NotADirectory(_))));
    assert_eq!(fs::read_dir(&full).unwrap().count(), 1);
}

#[test]
fn anything_looser_than_private_is_refused_with_the_cure() {
    let cases = [("", 0o700), (KEY, 0o600), (TOKEN, 0o600), (CONFIG, 0o600), (NAME, 0o600), (RECOVERY, 0o600)];
    for (name, wanted) in cases {
        for extra in [0o040, 0o004, 0o020, 0o002, 0o010, 0o001] {
            let (_folder, home) = made();
            let path = if name.is_empty() { home.root().to_path_buf() } else { home.root().join(name) };
            chmod(&path, wanted | extra);
            let refused = Home::open(home.root(), true).unwrap_err();
            assert!(
                matches!(&refused, HomeError::TooOpen { path: p, .. } if *p == path),
                "{name} {extra:o}: {refused}"
            );
            let told = ApiError::from(refused);
            assert_eq!(told.hint.unwrap(), format!("run `chmod {wanted:o} '{}'`", path.display()));
            // The cure cures.
            chmod(&path, wanted);
            Home::open(home.root(), true).unwrap();
        }
    }
    // Tighter is as good.
    let (_folder, home) = made();
    chmod(&home.root().join(KEY), 0o400);
    Home::open(home.root(), true).unwrap();
}

#[test]
fn a_home_of_links_or_rubbish_is_refused() {
    for name in PRIVATE {
        let (folder, home) = made();
        let path = home.root().join(name);
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert!(matches!(Home::open(home.root(), true), Err(HomeError::NotPlain(p)) if p == path), "{name}");
    }
    for text in ["", "zz", &"g".repeat(64), &"ab".repeat(31), &"ab".repeat(33), "\u{0}"] {
        let (_folder, home) = made();
        fs::write(home.root().join(KEY), text).unwrap();
        assert!(matches!(Home::open(home.root(), true), Err(HomeError::Damaged { .. })), "{text:?}");
    }
    let (_folder, home) = made();
    fs::write(home.root().join(TOKEN), "short").unwrap();
    assert!(matches!(home.token(), Err(HomeError::Damaged { .. })));
}

#[test]
fn a_removed_token_is_made_anew_by_the_daemon_alone() {
    let (_folder, home) = made();
    let old = home.token().unwrap();
    fs::remove_file(home.root().join(TOKEN)).unwrap();
    assert!(matches!(home.token(), Err(HomeError::Io { .. })));
    let held = home.locked().unwrap();
    let new = held.token().unwrap();
    assert_ne!(*old, *new);
    assert_eq!((held.token().unwrap(), mode(&held.root().join(TOKEN))), (new, 0o600));
}

#[test]
fn names_of_sites() {
    for good in ["a", "playground", "the cradle", "東京", &"x".repeat(NAME_BYTES_MAX)] {
        assert!(check_site_name(good).is_ok(), "{good}");
    }
    for bad in ["", " ", "a\nb", "a\u{1b}[2J", " a", "a ", &"x".repeat(NAME_BYTES_MAX + 1)] {
        assert!(matches!(check_site_name(bad), Err(HomeError::BadName(_))), "{bad:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    assert!(Home::init(&folder.path().join("h"), "a\nb", true).is_err());
    assert!(!folder.path().join("h").exists());
}

#[test]
fn volatile_places_are_refused_after_links() {
    for (path, folder) in [
        ("/tmp", Some("/tmp")),
        ("/tmp/a/b", Some("/tmp")),
        ("/var/tmp/x", Some("/var/tmp")),
        ("/dev/shm/x", Some("/dev/shm")),
        ("/run/user/0", Some("/run")),
        ("/tmpfoo", None),
        ("/home/acme/tmp", None),
    ] {
        assert_eq!(is_volatile_path(Path::new(path)), folder, "{path}");
    }
    // A link from a lasting place into one that is emptied. /tmp is there on every system that tests run on.
    let lasting = tempfile::tempdir_in(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).unwrap();
    let link = lasting.path().join("link");
    symlink("/tmp", &link).unwrap();
    let refused = check_media(&link.join("new/home")).unwrap_err();
    assert!(matches!(refused, HomeError::Volatile { .. }), "{refused}");
    assert!(ApiError::from(refused).hint.unwrap().contains("--allow-volatile"));
    assert!(matches!(Home::init(&link.join("new/home"), "a", false), Err(HomeError::Volatile { .. })));
    assert!(!Path::new("/tmp/new/home").exists());
}

#[test]
fn one_home_has_one_daemon() {
    let (_folder, home) = made();
    let root = home.root().to_path_buf();
    assert!(matches!(home.bind_socket(), Err(HomeError::InUse(_))), "only the holder opens the door");
    assert!(!is_in_use(&root));
    let held = home.clone().locked().unwrap();
    assert!(is_in_use(&root) && held.is_locked());
    let refused = Home::open(&root, true).unwrap().locked().unwrap_err();
    assert!(matches!(refused, HomeError::InUse(_)));
    assert!(refused.to_string().contains("another daemon runs on the home"));
    assert!(matches!(Home::init(&root, "x", true), Err(HomeError::InUse(_))));

    // The socket of a daemon that was killed is replaced.
    let first = held.bind_socket().unwrap();
    drop(first);
    let _second = held.bind_socket().unwrap();
    assert_eq!(mode(&root.join(SOCKET)), 0o600);
    held.remove_socket();
    fs::write(root.join(SOCKET), "").unwrap();
    assert!(matches!(held.bind_socket(), Err(HomeError::NotPlain(_))));

    let twin = held.clone();
    drop(held);
    assert!(is_in_use(&root), "a clone holds it too");
    drop(twin);
    assert!(!is_in_use(&root));
}
