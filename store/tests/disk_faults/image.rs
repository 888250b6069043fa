//! What a disk may hold after the power went: built from a record of every change.
//!
//! Invariant: what was synced before the cut is there. Of the rest every change is kept or lost by
//! itself, writes are torn at sectors, and names may be lost whose files are there, or the reverse.
//! Only a rename is one step. This is less than common file systems promise, on purpose.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use sluice_store::disk::trace::{Done, Inode};

const SECTOR: usize = 512;

/// A generator of small numbers: xorshift, so that a seed tells all.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// A file, folder or link; unlike an inode's number, never used twice.
type Node = usize;

#[derive(Clone)]
enum Kind {
    File(Vec<u8>),
    Folder(BTreeMap<String, Node>),
    Link(String),
}

#[derive(Clone)]
struct Thing {
    kind: Kind,
    mode: u32,
    mtime_ns: Option<i64>,
}

/// A disk in memory.
#[derive(Clone)]
pub struct Disk {
    things: Vec<Thing>,
    by_inode: HashMap<Inode, Node>,
}

/// A change with its files resolved, so that it means the same whatever was lost before it.
#[derive(Clone)]
enum Change {
    Name { folder: Node, name: String, node: Node },
    Rename { from: (Node, String), to: (Node, String), node: Node },
    Remove { folder: Node, name: String },
    Write { file: Node, offset: usize, bytes: Vec<u8> },
    Length { file: Node, len: usize },
    Whole { file: Node, bytes: Vec<u8> },
    Mode { node: Node, mode: u32 },
    Time { node: Node, mtime_ns: i64 },
    Sync { node: Node, all: bool },
    SyncSystem,
    Note(String),
}

/// A disk as it was, and what was done to it since.
pub struct Tape {
    start: Disk,
    /// The things that were made since, in their first state.
    made: Vec<Thing>,
    changes: Vec<Change>,
}

impl Disk {
    /// Everything below a folder, as it is.
    pub fn read(root: &Path) -> Self {
        let mut disk = Self { things: vec![], by_inode: HashMap::new() };
        disk.add(root);
        disk
    }

    fn add(&mut self, path: &Path) -> Node {
        let meta = std::fs::symlink_metadata(path).unwrap();
        if let Some(node) = self.by_inode.get(&meta.ino()) {
            return *node;
        }
        let node = self.things.len();
        self.by_inode.insert(meta.ino(), node);
        let mode = meta.permissions().mode() & 0o7777;
        let mtime_ns = Some(meta.mtime() * 1_000_000_000 + meta.mtime_nsec());
        self.things.push(Thing { kind: Kind::Link(String::new()), mode, mtime_ns });
        self.things[node].kind = if meta.is_dir() {
            let entries = std::fs::read_dir(path).unwrap().map(Result::unwrap);
            Kind::Folder(entries.map(|e| (e.file_name().into_string().unwrap(), self.add(&e.path()))).collect())
        } else if meta.is_symlink() {
            Kind::Link(std::fs::read_link(path).unwrap().into_os_string().into_string().unwrap())
        } else {
            Kind::File(std::fs::read(path).unwrap())
        };
        node
    }

    fn names(&mut self, folder: Node) -> &mut BTreeMap<String, Node> {
        match &mut self.things[folder].kind {
            Kind::Folder(names) => names,
            _ => panic!("not a folder"),
        }
    }

    fn bytes(&mut self, file: Node) -> &mut Vec<u8> {
        match &mut self.things[file].kind {
            Kind::File(bytes) => bytes,
            _ => panic!("not a file"),
        }
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Name { folder, name, node } => self.names(*folder).extend([(name.clone(), *node)]),
            Change::Rename { from, to, node } => {
                if self.names(from.0).get(&from.1) == Some(node) {
                    self.names(from.0).remove(&from.1);
                }
                self.names(to.0).insert(to.1.clone(), *node);
            }
            Change::Remove { folder, name } => drop(self.names(*folder).remove(name)),
            Change::Write { file, offset, bytes } => self.write(*file, *offset, bytes),
            Change::Length { file, len } => self.bytes(*file).resize(*len, 0),
            Change::Whole { file, bytes } => *self.bytes(*file) = bytes.clone(),
            Change::Mode { node, mode } => self.things[*node].mode = *mode,
            Change::Time { node, mtime_ns } => self.things[*node].mtime_ns = Some(*mtime_ns),
            Change::Sync { .. } | Change::SyncSystem | Change::Note(_) => {}
        }
    }

    fn write(&mut self, file: Node, offset: usize, bytes: &[u8]) {
        let all = self.bytes(file);
        if all.len() < offset + bytes.len() {
            all.resize(offset + bytes.len(), 0);
        }
        all[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Only some sectors of a write.
    fn write_torn(&mut self, file: Node, offset: usize, bytes: &[u8], dice: &mut Dice) {
        let mut at = 0;
        while at < bytes.len() {
            let end = (((offset + at) / SECTOR + 1) * SECTOR - offset).min(bytes.len());
            if dice.roll(2) == 0 {
                self.write(file, offset + at, &bytes[at..end]);
            }
            at = end;
        }
    }

    /// Makes real files of it below `root`, which is empty.
    pub fn write_out(&self, root: &Path) {
        let mut made = HashMap::new();
        self.put(0, root, &mut made);
    }

    fn put(&self, node: Node, path: &Path, made: &mut HashMap<Node, std::path::PathBuf>) {
        let thing = &self.things[node];
        if let Some(first) = made.get(&node) {
            std::fs::hard_link(first, path).unwrap();
            return;
        }
        match &thing.kind {
            Kind::Link(text) => std::os::unix::fs::symlink(text, path).unwrap(),
            Kind::File(bytes) => {
                std::fs::write(path, bytes).unwrap();
                let file = std::fs::File::open(path).unwrap();
                if let Some(ns) = thing.mtime_ns {
                    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(ns as u64)).unwrap();
                }
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(thing.mode)).unwrap();
                made.insert(node, path.to_path_buf());
            }
            Kind::Folder(names) => {
                if !path.exists() {
                    std::fs::create_dir(path).unwrap();
                }
                names.iter().for_each(|(name, node)| self.put(*node, &path.join(name), made));
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(thing.mode)).unwrap();
            }
        }
    }
}

impl Tape {
    pub fn new(start: Disk, done: &[Done]) -> Self {
        let mut now = start.clone();
        let mut tape = Self { start, made: vec![], changes: vec![] };
        for d in done {
            let change = tape.resolve(&mut now, d);
            now.apply(&change);
            tape.changes.push(change);
        }
        tape
    }

    fn make(&mut self, now: &mut Disk, inode: Option<Inode>, kind: Kind) -> Node {
        let mode = if matches!(kind, Kind::Folder(_)) { 0o755 } else { 0o600 };
        let thing = Thing { kind, mode, mtime_ns: None };
        self.made.push(thing.clone());
        now.things.push(thing);
        let node = now.things.len() - 1;
        now.by_inode.extend(inode.map(|i| (i, node)));
        node
    }

    fn resolve(&mut self, now: &mut Disk, done: &Done) -> Change {
        let find =
            |now: &mut Disk, folder: Node, name: &str| *now.names(folder).get(name).expect("a name that is there");
        let node = |now: &Disk, inode: &Inode| *now.by_inode.get(inode).expect("a file that was made before");
        match done {
            Done::Create { folder, name, file } => {
                let made = self.make(now, Some(*file), Kind::File(vec![]));
                Change::Name { folder: node(now, folder), name: name.clone(), node: made }
            }
            Done::Folder { folder, name, made } => {
                let made = self.make(now, Some(*made), Kind::Folder(BTreeMap::new()));
                Change::Name { folder: node(now, folder), name: name.clone(), node: made }
            }
            Done::Symlink { folder, name, text } => {
                let made = self.make(now, None, Kind::Link(text.clone()));
                Change::Name { folder: node(now, folder), name: name.clone(), node: made }
            }
            Done::Link { from, to } => {
                let at = node(now, &from.0);
                let linked = find(now, at, &from.1);
                Change::Name { folder: node(now, &to.0), name: to.1.clone(), node: linked }
            }
            Done::Rename { from, to } => {
                let (at, into) = (node(now, &from.0), node(now, &to.0));
                let moved = find(now, at, &from.1);
                Change::Rename { from: (at, from.1.clone()), to: (into, to.1.clone()), node: moved }
            }
            Done::Remove { folder, name } => Change::Remove { folder: node(now, folder), name: name.clone() },
            Done::Write { file, offset, bytes } => {
                Change::Write { file: node(now, file), offset: *offset as usize, bytes: bytes.clone() }
            }
            Done::Length { file, len } => Change::Length { file: node(now, file), len: *len as usize },
            Done::Clone { file, bytes } => Change::Whole { file: node(now, file), bytes: bytes.clone() },
            Done::Mode { file, mode } => Change::Mode { node: node(now, file), mode: *mode },
            Done::Time { file, mtime_ns } => Change::Time { node: node(now, file), mtime_ns: *mtime_ns },
            Done::SyncData { file } => Change::Sync { node: node(now, file), all: false },
            Done::SyncAll { file } => Change::Sync { node: node(now, file), all: true },
            Done::SyncSystem => Change::SyncSystem,
            Done::Note(text) => Change::Note(text.clone()),
        }
    }

    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Where a sync stands: the moments right before and right after decide most.
    pub fn syncs(&self) -> Vec<usize> {
        let is_sync = |c: &Change| matches!(c, Change::Sync { .. } | Change::SyncSystem);
        (0..self.changes.len()).filter(|i| is_sync(&self.changes[*i])).collect()
    }

    /// The notes before a cut.
    pub fn notes(&self, cut: usize) -> Vec<String> {
        let note = |c: &Change| if let Change::Note(text) = c { Some(text.clone()) } else { None };
        self.changes[..cut].iter().filter_map(note).collect()
    }

    /// Whether the change at `i` was synced before the cut.
    fn is_durable(&self, i: usize, cut: usize) -> bool {
        let change = &self.changes[i];
        self.changes[i + 1..cut].iter().any(|later| match (change, later) {
            (_, Change::SyncSystem) => true,
            (Change::Name { folder, .. } | Change::Remove { folder, .. }, Change::Sync { node, all: true }) => {
                node == folder
            }
            (Change::Rename { from, to, .. }, Change::Sync { node, all: true }) => *node == from.0 || *node == to.0,
            (Change::Mode { node, .. } | Change::Time { node, .. }, Change::Sync { node: synced, all: true }) => {
                node == synced
            }
            (
                Change::Write { file, .. } | Change::Length { file, .. } | Change::Whole { file, .. },
                Change::Sync { node, .. },
            ) => node == file,
            _ => false,
        })
    }

    /// What may be left when the power goes before the change at `cut`.
    ///
    /// `keep`: of ten changes that were not synced, so many are kept.
    pub fn cut(&self, cut: usize, keep: u64, dice: &mut Dice) -> Disk {
        let mut disk = self.start.clone();
        disk.things.extend(self.made.iter().cloned());
        for i in 0..cut {
            let change = &self.changes[i];
            if self.is_durable(i, cut) {
                disk.apply(change);
            } else if let (Change::Write { file, offset, bytes }, true) = (change, dice.roll(3) == 0) {
                disk.write_torn(*file, *offset, bytes, dice);
            } else if dice.roll(10) < keep {
                disk.apply(change);
            }
        }
        disk
    }
}
