//! An owner that speaks the real protocol over real QUIC and lies in it.
//!
//! It pairs, signs heads and serves blobs as a site does; what it signs and serves is up to the test:
//! any bytes as a manifest or a page, any answer to a request.
//!
//! Invariant: every lie is told only where a site would believe an honest answer, so what a test sees
//! refused is the lie and not a broken conversation.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bao_tree::BlockSize;
use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::io::sync::encode_ranges_validated;
use bytes::Bytes;
use ed25519_dalek::SigningKey;
use iroh::endpoint::{Connection, PortmapperConfig, RecvStream, SendStream, presets};
use iroh::{Endpoint, RelayMode, SecretKey};
use iroh_blobs::protocol::{ChunkRanges, Request};
use sluice_protocol::annex::Annex;
use sluice_protocol::card::SiteCard;
use sluice_protocol::codec::{Bytes as CborBytes, Document};
use sluice_protocol::grants::{Genesis, Grant, GrantSet, Right};
use sluice_protocol::head::Head;
use sluice_protocol::ids::{BlobHash, SiteId};
use sluice_protocol::manifest::{Entry, EntryKind, Manifest, Section, SectionKind, SectionState};
use sluice_protocol::messages::{ALPN_BLOBS, ALPN_CONTROL, ALPN_PAIR, Message, SpaceNews};
use sluice_protocol::path::LakePath;
use sluice_protocol::signed::Signed;
use sluice_protocol::ticket::{Ticket, TicketBody};
use sluice_protocol::tree::TreeBuilder;

/// The groups that travel: 16 KiB.
const GROUPS: BlockSize = BlockSize::from_chunk_log(4);
const SECRET: [u8; 16] = [9; 16];
/// Between two bytes of a slow answer.
const DRIP: Duration = Duration::from_millis(500);
/// How often a door that is held looks whether the lie has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How requests are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// As they should be.
    None,
    /// A byte of each file's bytes is another one.
    WrongLeaf,
    /// Every blob is said to have 2^60 bytes, and bytes come for ever.
    HugeBlob,
    /// Behind the right answer, bytes come for ever.
    EndlessBlob,
    /// The connection ends in the middle of a file.
    DiesMidStream,
    /// A message is said to have 4 GiB, and bytes come for ever.
    HugeMessage,
    /// A message of 1 MiB claims an array of 2^60 elements, and bytes come for ever.
    EndlessMessage,
    /// More heads in one message than there may be.
    ManyHeads,
    /// A message comes byte by byte.
    SlowMessage,
    /// Only heads from the place on that the asking site names, as a site answers.
    FromPlace,
    /// Who shows a ticket waits until the lie ends.
    DoorHeld,
}

struct State {
    peers: Vec<SiteId>,
    /// How often a ticket was shown.
    knocks: usize,
    heads: Vec<Signed<Head>>,
    /// Bytes, and whether they are a file's.
    blobs: HashMap<BlobHash, (Bytes, bool)>,
    lie: Lie,
    /// How far its clock is off, and how long its heads last, both in milliseconds.
    clock: (i64, u64),
}

/// The owner that lies.
pub struct Liar {
    key: SigningKey,
    genesis: Genesis,
    address: SocketAddr,
    state: Mutex<State>,
    /// Ends with the value.
    endpoint: Endpoint,
}

/// Pages and blobs of a version before it is signed.
#[derive(Default)]
pub struct Draft {
    pub sections: Vec<Section>,
    /// Pages, manifests and other metadata.
    pub metadata: Vec<Vec<u8>>,
    pub files: Vec<Vec<u8>>,
}

impl Draft {
    /// A version with these files in its section `raw`.
    pub fn of(files: &[(&str, &[u8])]) -> Self {
        let mut draft = Draft::default();
        let mut entries: Vec<Entry> = files.iter().map(|(path, bytes)| entry(path, bytes)).collect();
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        draft.files = files.iter().map(|(_, bytes)| bytes.to_vec()).collect();
        draft.list(&entries);
        draft
    }

    /// Makes `raw` of these entries.
    pub fn list(&mut self, entries: &[Entry]) {
        let mut pages = Vec::new();
        let mut builder = TreeBuilder::new(|_, bytes| pages.push(bytes));
        entries.iter().for_each(|e| builder.push(e).expect("an entry of a test"));
        let tree = builder.finish();
        let state = SectionState {
            table_version: None,
            params: None,
            history: None,
            opaque: false,
            unknown: Default::default(),
        };
        let path = Some(LakePath::parse("raw").expect("a path"));
        let section =
            Section { kind: SectionKind::Raw, path, shallow: false, state, tree, unknown: Default::default() };
        self.sections = vec![section];
        self.metadata = pages;
    }

    /// Replaces bytes of the only page, which gets another hash by it.
    pub fn forge_page(&mut self, forge: impl FnOnce(Vec<u8>) -> Vec<u8>) {
        let page = forge(self.metadata.pop().expect("a page"));
        self.sections[0].tree.page = BlobHash::of(&page);
        self.metadata = vec![page];
    }
}

pub fn entry(path: &str, bytes: &[u8]) -> Entry {
    Entry {
        path: LakePath::parse(path).expect("a path"),
        kind: EntryKind::File,
        size: bytes.len() as u64,
        hash: Some(BlobHash::of(bytes)),
        mode: Some(0o644),
        mtime_ns: None,
        target: None,
        unknown: Default::default(),
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    u64::try_from(now.as_millis()).expect("a clock of this age")
}

impl Liar {
    /// An owner of a space of this name, with a key of its own.
    pub async fn new(name: &str) -> Arc<Self> {
        let key = SigningKey::from_bytes(blake3::hash(name.as_bytes()).as_bytes());
        let endpoint = Endpoint::builder(presets::Minimal)
            .secret_key(SecretKey::from_bytes(&key.to_bytes()))
            .relay_mode(RelayMode::Disabled)
            .portmapper_config(PortmapperConfig::Disabled)
            .alpns([ALPN_PAIR, ALPN_CONTROL, ALPN_BLOBS].map(<[u8]>::to_vec).to_vec())
            .clear_ip_transports()
            .bind_addr("127.0.0.1:0")
            .expect("an address");
        let endpoint = endpoint.bind().await.expect("an endpoint binds");
        let owner = SiteId(key.verifying_key().to_bytes());
        let genesis = Genesis {
            owner,
            name: name.to_string(),
            nonce: [3; 16],
            recovery: None,
            created_ms: 0,
            unknown: Default::default(),
        };
        let state = State {
            peers: vec![],
            knocks: 0,
            heads: vec![],
            blobs: HashMap::new(),
            lie: Lie::None,
            clock: (0, 1_000_000),
        };
        let address = endpoint.bound_sockets()[0];
        let liar = Arc::new(Self { key, genesis, address, state: Mutex::new(state), endpoint });
        tokio::spawn(accept(liar.clone()));
        liar
    }

    pub fn site(&self) -> SiteId {
        self.genesis.owner
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// From now on requests are answered like this.
    pub fn lies(&self, lie: Lie) {
        self.state().lie = lie;
    }

    /// From now on its clock is off by so many milliseconds, and its heads last so long.
    pub fn clock_is_off(&self, by_ms: i64, life_ms: u64) {
        self.state().clock = (by_ms, life_ms);
    }

    fn admits(&self, peer: SiteId) {
        let mut state = self.state();
        state.knocks += 1;
        if !state.peers.contains(&peer) {
            state.peers.push(peer);
        }
    }

    /// How often a ticket was shown.
    pub fn knocks(&self) -> usize {
        self.state().knocks
    }

    pub fn ticket(&self) -> String {
        self.ticket_calling_it(&self.genesis.name)
    }

    /// A ticket that calls the space something else.
    pub fn ticket_calling_it(&self, name: &str) -> String {
        let body = TicketBody {
            secret: SECRET,
            site: self.site(),
            addresses: vec![self.address.to_string()],
            space: self.genesis.space_id(),
            space_name: name.to_string(),
            expires_ms: now_ms() + 600_000,
            unknown: Default::default(),
        };
        Ticket::new(body).reveal()
    }

    /// Signs a version and serves what it consists of.
    pub fn publishes(&self, draft: &Draft) -> Signed<Head> {
        self.publishes_manifest(draft, Manifest::new(draft.sections.clone()).to_bytes())
    }

    /// The same with any bytes as its manifest.
    pub fn publishes_manifest(&self, draft: &Draft, manifest: Vec<u8>) -> Signed<Head> {
        let id = BlobHash::of(&manifest);
        let annex = Annex { manifest: id.into(), tables: vec![], chunk_lists: None, unknown: Default::default() };
        let annex = annex.to_bytes();
        let head = self.next_head(id, BlobHash::of(&annex));
        let mut state = self.state();
        let metadata = draft.metadata.iter().cloned().chain([manifest, annex]).map(|bytes| (bytes, false));
        for (bytes, file) in metadata.chain(draft.files.iter().cloned().map(|bytes| (bytes, true))) {
            state.blobs.insert(BlobHash::of(&bytes), (bytes.into(), file));
        }
        state.heads.push(head.clone());
        head
    }

    fn next_head(&self, manifest: BlobHash, annex: BlobHash) -> Signed<Head> {
        let before = self.state().heads.last().cloned();
        let (off, life) = self.state().clock;
        let time_ms = now_ms().saturating_add_signed(off);
        let head = Head {
            space: self.genesis.space_id(),
            writer: self.site(),
            epoch: 0,
            seq: before.as_ref().map_or(0, |h| h.seq + 1),
            manifest: manifest.into(),
            annex,
            grants: BlobHash::of(self.grants().bytes()),
            prev: before.as_ref().map(Signed::<Head>::id),
            time_ms,
            not_after_ms: time_ms + life,
            tag: None,
            untag: None,
            unknown: Default::default(),
        };
        Signed::sign(&self.key, head)
    }

    /// Tells of these heads and of no others.
    pub fn tells(&self, heads: &[Signed<Head>]) {
        self.state().heads = heads.to_vec();
    }

    fn grants(&self) -> Signed<GrantSet> {
        let peers = self.state().peers.clone();
        let grants = peers.iter().map(|site| Grant::new(*site, "peer", &[Right::Read], None));
        let set = GrantSet {
            genesis: self.genesis.clone(),
            seq: peers.len() as u64,
            grants: grants.collect(),
            time_ms: 1,
            unknown: Default::default(),
        };
        Signed::sign(&self.key, set)
    }

    /// What a site answers that has the heads from a place on, or only earlier ones.
    fn news_from(&self, place: Option<(u64, u64)>) -> Message {
        let mut heads = self.state().heads.clone();
        let newest = heads.last().cloned();
        heads.retain(|h| place.is_some_and(|place| h.place() >= place));
        self.news_of(if heads.is_empty() { newest.as_slice() } else { &heads })
    }

    /// What a site says of its space; with `copies` the first head is said so often.
    fn news(&self, copies: Option<usize>) -> Message {
        let heads = self.state().heads.clone();
        self.news_of(&copies.map_or(heads.clone(), |copies| vec![heads[0].clone(); copies]))
    }

    fn news_of(&self, heads: &[Signed<Head>]) -> Message {
        let card = SiteCard {
            site: self.site(),
            name: "liar".into(),
            quic: vec![self.address.to_string()],
            tls: vec![],
            time_ms: now_ms(),
            unknown: Default::default(),
        };
        Message::News(SpaceNews {
            grants: CborBytes(self.grants().bytes().to_vec()),
            heads: heads.iter().map(|h| CborBytes(h.bytes().to_vec())).collect(),
            cards: vec![CborBytes(Signed::sign(&self.key, card).bytes().to_vec())],
            more: false,
            unknown: Default::default(),
        })
    }

    /// Stops speaking.
    pub async fn close(&self) {
        self.endpoint.close().await;
    }
}

async fn accept(liar: Arc<Liar>) {
    while let Some(incoming) = liar.endpoint.accept().await {
        let liar = liar.clone();
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            while let Ok((send, recv)) = connection.accept_bi().await {
                let (liar, connection) = (liar.clone(), connection.clone());
                tokio::spawn(async move {
                    // A peer that goes away is no failure of the test: what it did is asserted there.
                    let _ = if connection.alpn() == ALPN_BLOBS {
                        blobs(&liar, &connection, send, recv).await
                    } else {
                        talk(&liar, &connection, send, recv).await
                    };
                });
            }
        });
    }
}

/// Sends something without end.
async fn flood(send: &mut SendStream) -> Option<()> {
    loop {
        send.write_all(&[7; 65_536]).await.ok()?;
    }
}

async fn talk(liar: &Liar, connection: &Connection, mut send: SendStream, mut recv: RecvStream) -> Option<()> {
    let mut length = [0; 4];
    recv.read_exact(&mut length).await.ok()?;
    let mut bytes = vec![0; u32::from_le_bytes(length) as usize];
    recv.read_exact(&mut bytes).await.ok()?;
    let answer = match Message::from_bytes(&bytes).ok()? {
        Message::Pair(_) => {
            liar.admits(SiteId(*connection.remote_id().as_bytes()));
            while liar.state().lie == Lie::DoorHeld {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            liar.news(None)
        }
        Message::Heads(asked) => {
            let lie = liar.state().lie;
            match lie {
                Lie::HugeMessage => {
                    send.write_all(&u32::MAX.to_le_bytes()).await.ok()?;
                    return flood(&mut send).await;
                }
                Lie::EndlessMessage => {
                    send.write_all(&(1u32 << 20).to_le_bytes()).await.ok()?;
                    // [kind, version, [news, {heads: 2^60 elements
                    send.write_all(b"\x83\x6esluice/message\x01\x82\x04\xa1\x01\x9b\x10\0\0\0\0\0\0\0").await.ok()?;
                    return flood(&mut send).await;
                }
                Lie::SlowMessage => {
                    // A length that is allowed, then its bytes, one by one.
                    send.write_all(&1000u32.to_le_bytes()).await.ok()?;
                    loop {
                        send.write_all(&[0]).await.ok()?;
                        tokio::time::sleep(DRIP).await;
                    }
                }
                Lie::ManyHeads => liar.news(Some(2000)),
                Lie::FromPlace => liar.news_from(asked.have_epoch.zip(asked.have_seq)),
                _ => liar.news(None),
            }
        }
        _ => Message::Done,
    };
    let answer = answer.to_bytes();
    send.write_all(&(answer.len() as u32).to_le_bytes()).await.ok()?;
    send.write_all(&answer).await.ok()?;
    send.finish().ok()
}

async fn blobs(liar: &Liar, connection: &Connection, mut send: SendStream, mut recv: RecvStream) -> Option<()> {
    let request = recv.read_to_end(1 << 20).await.ok()?;
    let wanted: Vec<(BlobHash, ChunkRanges)> = match postcard::from_bytes::<Request>(&request).ok()? {
        Request::Get(get) => vec![(BlobHash(get.hash.into()), get.ranges[0].clone())],
        Request::GetMany(many) => {
            let ranges = many.ranges.iter_infinite();
            many.hashes.iter().zip(ranges).map(|(hash, r)| (BlobHash((*hash).into()), r.clone())).collect()
        }
        _ => return None,
    };
    for (hash, ranges) in wanted {
        let (found, lie) = {
            let state = liar.state();
            (state.blobs.get(&hash).cloned(), state.lie)
        };
        let Some((bytes, is_file)) = found else { break };
        let mut wire = (bytes.len() as u64).to_le_bytes().to_vec();
        let outboard = PreOrderMemOutboard::create(&bytes, GROUPS);
        encode_ranges_validated(&bytes[..], &outboard, &ranges, &mut wire).ok()?;
        match lie {
            Lie::WrongLeaf if is_file => *wire.last_mut()? ^= 1,
            Lie::HugeBlob => {
                send.write_all(&(1u64 << 60).to_le_bytes()).await.ok()?;
                return flood(&mut send).await;
            }
            Lie::DiesMidStream if is_file => {
                send.write_all(&wire[..wire.len() / 2]).await.ok()?;
                connection.close(0u32.into(), b"");
                return None;
            }
            _ => {}
        }
        send.write_all(&wire).await.ok()?;
        if lie == Lie::EndlessBlob {
            return flood(&mut send).await;
        }
    }
    send.finish().ok()
}
