//! What lies aside for people: it goes whole and by its age, and nothing else goes with it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::model::Model;
use crate::disk::faults::inject;
use crate::gc::{Collected, Retention, collect, lying_aside};

const DAY: u64 = 24 * 3_600_000;

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// Decisions for ninety days and damaged bytes for thirty, `days` after now.
fn after(days: u64) -> Retention {
    let now_ms = now_ms() + days * DAY;
    Retention { snapshots: 9, grace_ms: DAY, kept_ms: Some(90 * DAY), quarantine_ms: Some(30 * DAY), now_ms }
}

fn gc(model: &Model, retention: Retention, dry_run: bool) -> Collected {
    let owner = &model.owner;
    collect(&owner.lake, &owner.space, &owner.catalog, &retention, dry_run).unwrap()
}

/// The rule is known from the beginning of time on.
fn begin(model: &Model) {
    assert_eq!(gc(model, Retention { now_ms: 1, ..after(0) }, false).aside_files, 0);
}

fn changed_ms(path: &Path) -> u64 {
    let about = fs::symlink_metadata(path).unwrap();
    about.ctime() as u64 * 1000 + about.ctime_nsec() as u64 / 1_000_000
}

/// A decision with a folder that may not be written and links that lead away, and a damaged file.
fn lay_aside(own: &Path, away: &Path) {
    let below = own.join("kept/20260101T000000Z/raw/deep");
    fs::create_dir_all(&below).unwrap();
    fs::write(below.join("edited"), [1; 500]).unwrap();
    fs::write(away.join("precious"), "the only copy").unwrap();
    symlink(away, below.join("folder")).unwrap();
    symlink(away.join("precious"), below.join("file")).unwrap();
    symlink(away, own.join("kept/20260101T000000Z.top")).unwrap();
    fs::set_permissions(&below, fs::Permissions::from_mode(0o555)).unwrap();
    fs::create_dir_all(own.join("quarantine")).unwrap();
    fs::write(own.join("quarantine/ab"), [2; 70]).unwrap();
}

#[test]
fn it_goes_by_its_age_and_no_link_leads_out_of_it() {
    let mut model = Model::new(6);
    model.snapshot(None);
    let (own, away) = (model.owner.at(".sluice"), model.owner.at("../away"));
    fs::create_dir(&away).unwrap();
    lay_aside(&own, &away);
    begin(&model);

    let lying = lying_aside(&model.owner.lake, 100);
    assert_eq!((lying.kept.files, lying.kept.bytes, lying.kept.more), (4, 500, false));
    assert_eq!((lying.quarantine.files, lying.quarantine.bytes), (1, 70));
    assert!(lying.kept.oldest_ms.is_some_and(|at| at <= now_ms() && at + DAY > now_ms()), "{lying:?}");
    assert!(lying_aside(&model.owner.lake, 3).kept.more);

    assert_eq!(gc(&model, after(29), false).aside_files, 0);
    let would = gc(&model, after(31), true);
    assert_eq!((would.aside_files, would.aside), (1, lying), "damaged bytes are old by now");
    assert_eq!(gc(&model, after(31), false), would);
    assert!(!own.join("quarantine/ab").exists() && own.join("kept/20260101T000000Z/raw/deep/edited").exists());

    let never = Retention { kept_ms: None, quarantine_ms: None, ..after(10_000) };
    assert_eq!(gc(&model, never, false).aside_files, 0);
    let went = gc(&model, after(91), false);
    assert_eq!((went.aside_files, went.aside.kept), (4, lying.kept));
    assert_eq!(fs::read_dir(own.join("kept")).unwrap().count(), 0);
    assert_eq!(fs::read(away.join("precious")).unwrap(), b"the only copy");
}

#[test]
fn a_folder_that_is_a_link_and_an_entry_with_something_new_stay() {
    let mut model = Model::new(7);
    model.snapshot(None);
    let (own, away) = (model.owner.at(".sluice"), model.owner.at("../away"));
    fs::create_dir_all(away.join("20260101T000000Z")).unwrap();
    fs::write(away.join("20260101T000000Z/mine"), "x").unwrap();
    symlink(&away, own.join("quarantine")).unwrap();
    fs::create_dir_all(own.join("kept/20250101T000000Z")).unwrap();
    fs::write(own.join("kept/20250101T000000Z/new"), "x").unwrap();
    begin(&model);
    // What the folder is called says nothing: a decision may be carried out long after it was made.
    assert_eq!(gc(&model, after(89), false).aside_files, 0);
    let later = gc(&model, after(1000), false);
    assert_eq!((later.aside_files, later.aside.quarantine.files), (1, 0));
    assert!(away.join("20260101T000000Z/mine").exists());
}

#[test]
fn what_was_moved_there_is_as_old_as_the_move() {
    let mut model = Model::new(8);
    model.snapshot(None);
    begin(&model);
    let (own, stray, hollow) = (model.owner.at(".sluice"), model.owner.at("../stray"), model.owner.at("../hollow"));
    fs::create_dir_all(own.join("kept")).unwrap();
    fs::create_dir_all(stray.join("deep")).unwrap();
    fs::create_dir_all(hollow.join("deep")).unwrap();
    fs::write(stray.join("deep/precious"), "the only copy").unwrap();
    let written_ms = changed_ms(&stray.join("deep/precious"));
    while now_ms() < written_ms + 50 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // A rename touches the folder that is moved, and nothing in it.
    let (kept, empty) = (own.join("kept/20260101T000000Z.top"), own.join("kept/20260101T000000Z"));
    fs::rename(&stray, &kept).unwrap();
    fs::rename(&hollow, &empty).unwrap();
    assert_eq!(changed_ms(&kept.join("deep/precious")), written_ms);
    assert!(changed_ms(&kept) >= written_ms + 40);

    let young = Retention { now_ms: written_ms + 20 + 90 * DAY, ..after(0) };
    assert_eq!(gc(&model, young, false).aside_files, 0, "only its files are old");
    assert!(kept.join("deep/precious").exists() && empty.join("deep").exists());
    assert_eq!(gc(&model, after(91), false).aside_files, 1);
    assert!(!kept.exists() && !empty.exists());
}

/// Runs `work` as somebody whom permission bits bind, which they do not bind root.
fn bound<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let bound = || {
        // Of this thread only, and it ends.
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
        set_capabilities(None, sets).unwrap();
        work()
    };
    std::thread::scope(|scope| scope.spawn(bound).join().unwrap())
}

#[test]
fn what_cannot_be_read_stays_and_the_rest_goes() {
    let mut model = Model::new(9);
    model.snapshot(None);
    begin(&model);
    let own = model.owner.at(".sluice");
    for name in ["a", "b", "c"] {
        fs::create_dir_all(own.join("kept").join(name)).unwrap();
        fs::write(own.join("kept").join(name).join("mine"), "mine").unwrap();
    }
    fs::create_dir_all(own.join("quarantine")).unwrap();
    // Its names can be read, and what they are can not.
    fs::set_permissions(own.join("kept/b"), fs::Permissions::from_mode(0o400)).unwrap();
    fs::set_permissions(own.join("quarantine"), fs::Permissions::from_mode(0o000)).unwrap();
    let went = bound(|| gc(&model, after(91), false));
    assert_eq!(went.aside_files, 2);
    assert!(went.aside.kept.more && went.aside.quarantine.more, "{went:?}");
    fs::set_permissions(own.join("kept/b"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(own.join("quarantine"), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(own.join("kept/b/mine").exists() && !own.join("kept/a").exists() && !own.join("kept/c").exists());
}

#[test]
fn what_cannot_be_removed_stays_and_the_rest_goes() {
    let mut model = Model::new(10);
    model.snapshot(None);
    begin(&model);
    let own = model.owner.at(".sluice");
    for name in ["a", "b"] {
        fs::create_dir_all(own.join("kept").join(name)).unwrap();
        fs::write(own.join("kept").join(name).join("mine"), "mine").unwrap();
    }
    let fault = inject(&own.join("kept/a"), "gc.remove=EIO").unwrap();
    let went = gc(&model, after(91), false);
    assert_eq!((went.aside_files, went.aside_stuck, fault.fired()), (1, 1, 1));
    assert!(own.join("kept/a/mine").exists() && !own.join("kept/b").exists());
    drop(fault);
    assert_eq!(gc(&model, after(92), false).aside_files, 1);
    assert!(!own.join("kept/a").exists());
}

#[test]
fn what_lay_there_before_the_rule_was_known_counts_from_then() {
    let mut model = Model::new(11);
    model.snapshot(None);
    let own = model.owner.at(".sluice");
    fs::create_dir_all(own.join("kept/a")).unwrap();
    fs::write(own.join("kept/a/mine"), "mine").unwrap();
    assert_eq!(gc(&model, after(300), true).aside_files, 0, "a dry run begins nothing");
    assert_eq!(gc(&model, after(400), false).aside_files, 0);
    assert_eq!(gc(&model, after(489), false).aside_files, 0);
    assert_eq!(gc(&model, after(491), true).aside_files, 1);

    // A clock that was wrong when it began does not keep it for ever.
    let other = Model::new(12);
    let own = other.owner.at(".sluice");
    fs::create_dir_all(own.join("kept/a")).unwrap();
    fs::write(own.join("kept/a/mine"), "mine").unwrap();
    for (days, goes) in [(100_000, 0), (0, 0), (89, 0), (91, 1)] {
        assert_eq!(gc(&other, after(days), false).aside_files, goes, "{days}");
    }
}
