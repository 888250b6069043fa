//! A granted reader that lies: it has the key and the grant of a real site, asks the owner like one, and
//! hands on what the owner says. Only the bytes of files are what the test wants them to be.
//!
//! Invariant: all that describes a version comes from the owner unchanged, so a follower has every reason to
//! take the mole for a good source until the bytes come.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iroh::endpoint::{Connection, PortmapperConfig, RecvStream, SendStream, presets};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, SecretKey};
use sluice_protocol::card::SiteCard;
use sluice_protocol::codec::{Bytes, Document};
use sluice_protocol::ids::{SiteId, SpaceId};
use sluice_protocol::messages::{ALPN_BLOBS, ALPN_CONTROL, Announce, HeadsRequest, Message};
use sluice_protocol::signed::Signed;

use crate::outsider::key_in;
use crate::site::Site;

/// Longer answers than this carry the bytes of files: in these tests nothing that describes a version does.
const DESCRIPTION_BYTES_MAX: usize = 64 << 10;
/// Longest answer of an owner here.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// A slow answer: so many bytes, so often. No silence is long, and 3 MB take twenty minutes.
const DRIP_BYTES: usize = 1700;
/// See [`DRIP_BYTES`].
const DRIP: Duration = Duration::from_millis(650);
/// What a slow answer begins with.
const FIRST_BYTES: usize = 50_000;

/// What it does with the bytes of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trick {
    WrongBytes,
    SlowBytes,
    Silence,
    DiesMidStream,
}

/// The reader that lies.
pub struct Mole {
    key: SecretKey,
    owner: EndpointAddr,
    endpoint: Endpoint,
    trick: Mutex<Trick>,
    asked: AtomicU64,
}

impl Mole {
    /// Takes the place of `reader`, whose process must be down, with the owner that it reads from.
    pub async fn instead_of(reader: &Site, owner: &Site, trick: Trick) -> Arc<Self> {
        let key = key_in(reader.home());
        let endpoint = Endpoint::builder(presets::Minimal)
            .secret_key(key.clone())
            .relay_mode(RelayMode::Disabled)
            .portmapper_config(PortmapperConfig::Disabled)
            .alpns([ALPN_CONTROL, ALPN_BLOBS].map(<[u8]>::to_vec).to_vec())
            .clear_ip_transports()
            .bind_addr(("127.0.0.1", reader.p2p_port()))
            .expect("an address");
        let endpoint = endpoint.bind().await.expect("an endpoint binds");
        let id = EndpointId::from_bytes(key_in(owner.home()).public().as_bytes()).expect("a key");
        let owner = EndpointAddr::new(id).with_ip_addr(SocketAddr::from(([127, 0, 0, 1], owner.p2p_port())));
        let mole = Arc::new(Self { key, owner, endpoint, trick: Mutex::new(trick), asked: AtomicU64::new(0) });
        tokio::spawn(accept(mole.clone()));
        mole
    }

    /// From now on it does this.
    pub fn plays(&self, trick: Trick) {
        *self.trick.lock().expect("no panic while held") = trick;
    }

    pub fn site(&self) -> SiteId {
        SiteId(*self.key.public().as_bytes())
    }

    /// How often it was asked for the bytes of files.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Tells `follower` of the owner's newest head again and again, as if it were news.
    pub fn rings(self: &Arc<Self>, follower: &Site, space: SpaceId) -> tokio::task::JoinHandle<()> {
        let id = EndpointId::from_bytes(key_in(follower.home()).public().as_bytes()).expect("a key");
        let to = EndpointAddr::new(id).with_ip_addr(SocketAddr::from(([127, 0, 0, 1], follower.p2p_port())));
        let mole = self.clone();
        tokio::spawn(async move {
            loop {
                // A follower that is starting, or has had enough, is told again.
                let _ = mole.ring(&to, space).await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
    }

    async fn ring(&self, to: &EndpointAddr, space: SpaceId) -> Option<()> {
        let said = HeadsRequest {
            space,
            have_epoch: None,
            have_seq: None,
            card: None,
            held: None,
            unknown: Default::default(),
        };
        let asked = self.endpoint.connect(self.owner.clone(), ALPN_CONTROL).await.ok()?;
        let answer = exchange(&asked, &framed(&Message::Heads(said).to_bytes())).await?;
        let Message::News(news) = Message::from_bytes(answer.get(4..)?).ok()? else { return None };
        let announce = Announce {
            space,
            head: Bytes(news.heads.last()?.0.clone()),
            card: Some(Bytes(self.card().bytes().to_vec())),
            unknown: Default::default(),
        };
        let told = self.endpoint.connect(to.clone(), ALPN_CONTROL).await.ok()?;
        exchange(&told, &framed(&Message::Announce(announce).to_bytes())).await.map(drop)
    }

    fn card(&self) -> Signed<SiteCard> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock after 1970");
        let card = SiteCard {
            site: self.site(),
            name: "mole".into(),
            quic: self.endpoint.bound_sockets().iter().map(ToString::to_string).collect(),
            tls: vec![],
            time_ms: u64::try_from(now.as_millis()).expect("a clock of this age"),
            unknown: Default::default(),
        };
        Signed::sign(&ed25519_dalek::SigningKey::from_bytes(&self.key.to_bytes()), card)
    }
}

/// A message with its length in front.
fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u32).to_le_bytes()[..], message].concat()
}

/// Says something on a stream of its own and reads all that comes back.
async fn exchange(connection: &Connection, said: &[u8]) -> Option<Vec<u8>> {
    let (mut send, mut recv) = connection.open_bi().await.ok()?;
    send.write_all(said).await.ok()?;
    send.finish().ok()?;
    recv.read_to_end(ANSWER_BYTES_MAX).await.ok()
}

async fn accept(mole: Arc<Mole>) {
    while let Some(incoming) = mole.endpoint.accept().await {
        let mole = mole.clone();
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else { return };
            // What is asked of it is asked of the owner.
            let Ok(owner) = mole.endpoint.connect(mole.owner.clone(), connection.alpn()).await else { return };
            while let Ok((send, recv)) = connection.accept_bi().await {
                let (mole, connection, owner) = (mole.clone(), connection.clone(), owner.clone());
                tokio::spawn(async move { hand_on(&mole, &connection, &owner, send, recv).await });
            }
        });
    }
}

async fn hand_on(
    mole: &Mole,
    connection: &Connection,
    owner: &Connection,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Option<()> {
    let said = recv.read_to_end(ANSWER_BYTES_MAX).await.ok()?;
    let mut answer = exchange(owner, &said).await?;
    if answer.len() > DESCRIPTION_BYTES_MAX {
        mole.asked.fetch_add(1, Ordering::Relaxed);
        let trick = *mole.trick.lock().expect("no panic while held");
        match trick {
            // Far enough from the end that what is asked for again is long, too.
            Trick::WrongBytes => {
                let at = answer.len() / 4;
                answer[at] ^= 1;
            }
            Trick::SlowBytes => {
                send.write_all(&answer[..FIRST_BYTES]).await.ok()?;
                for drop in answer[FIRST_BYTES..].chunks(DRIP_BYTES) {
                    tokio::time::sleep(DRIP).await;
                    send.write_all(drop).await.ok()?;
                }
                return send.finish().ok();
            }
            Trick::Silence => std::future::pending().await,
            Trick::DiesMidStream => {
                send.write_all(&answer[..answer.len() / 2]).await.ok()?;
                connection.close(0u32.into(), b"");
                return None;
            }
        }
    }
    send.write_all(&answer).await.ok()?;
    send.finish().ok()
}
