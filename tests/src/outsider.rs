//! Somebody on the network who speaks the protocols with other people's code: the real iroh and
//! iroh-blobs, not ours.
//!
//! Invariant: an outsider knows only what a person could know (a ticket, a key file, hashes) and
//! every conversation ends after a stated time.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use iroh::endpoint::{Connection, presets};
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, SecretKey};
use iroh_blobs::Hash;
use iroh_blobs::protocol::{
    ChunkRanges, ChunkRangesExt, ChunkRangesSeq, GetManyRequest, GetRequest, ObserveRequest, Request,
};
use sluice_protocol::ticket::Ticket;

use crate::site::Site;

/// How long one dial or one answer may take.
const TALK_LIMIT: Duration = Duration::from_secs(15);
/// More than any answer in these tests.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Where a site keeps its key, in its home: 32 bytes, raw or as hexadecimal digits.
const KEY_FILE: &str = "site.key";

/// Where a site is found: its id and addresses.
#[derive(Clone)]
pub struct Door(EndpointAddr);

impl Door {
    /// The door that a ticket names, by its addresses and the loopback.
    pub fn of(site: &Site, ticket: &str) -> Self {
        let ticket = Ticket::parse(ticket).expect("a site prints tickets that parse");
        let id = EndpointId::from_bytes(&ticket.body().site.0).expect("a site's id is a key");
        let mut addr = EndpointAddr::new(id);
        for address in &ticket.body().addresses {
            addr = addr.with_ip_addr(address.parse().expect("checked by the ticket"));
        }
        Self(addr.with_ip_addr(SocketAddr::from(([127, 0, 0, 1], site.p2p_port()))))
    }
}

/// An endpoint that is no Sluice site.
pub struct Outsider {
    pub endpoint: Endpoint,
}

impl Outsider {
    /// One with a key that nobody has seen.
    pub async fn stranger() -> Self {
        Self::with_key(SecretKey::generate()).await
    }

    /// One with the key of a site, whose process must be down.
    pub async fn with_key_of(site: &Site) -> Self {
        Self::with_key(key_in(site.home())).await
    }

    async fn with_key(key: SecretKey) -> Self {
        let endpoint = Endpoint::builder(presets::Minimal).relay_mode(RelayMode::Disabled).secret_key(key);
        Self { endpoint: endpoint.bind().await.expect("an endpoint binds") }
    }

    /// A connection, if the other side lets one stand.
    pub async fn dial(&self, door: &Door, alpn: &[u8]) -> Option<Connection> {
        tokio::time::timeout(TALK_LIMIT, self.endpoint.connect(door.0.clone(), alpn)).await.ok()?.ok()
    }

    /// Everything that comes back on one stream when `request` is said on it; empty when nothing is.
    pub async fn ask(&self, door: &Door, alpn: &[u8], request: &[u8]) -> Vec<u8> {
        let Some(connection) = self.dial(door, alpn).await else {
            return Vec::new();
        };
        let mut heard = Vec::new();
        let talk = talk(&connection, request, &mut heard);
        let ended = tokio::time::timeout(TALK_LIMIT, talk).await;
        assert!(ended.is_ok(), "the other side neither answered nor closed within {TALK_LIMIT:?}");
        connection.close(0u32.into(), b"");
        heard
    }
}

async fn talk(connection: &Connection, request: &[u8], heard: &mut Vec<u8>) {
    let Ok((mut send, mut receive)) = connection.open_bi().await else {
        return;
    };
    if send.write_all(request).await.is_err() || send.finish().is_err() {
        return;
    }
    let mut piece = vec![0u8; 64 << 10];
    while let Ok(Some(n)) = receive.read(&mut piece).await {
        heard.extend_from_slice(&piece[..n]);
        assert!(heard.len() <= ANSWER_BYTES_MAX, "an answer without end");
    }
}

/// Every form in which the blob protocol can be asked about `hash`, with a name.
///
/// `list` is a blob that the asker may have and whose bytes are `hash`: a server that took it for
/// a list of hashes would hand over what it names.
pub fn every_request(hash: Hash, list: Hash) -> HashMap<&'static str, Vec<u8>> {
    let requests = [
        ("get", Request::Get(GetRequest::blob(hash))),
        ("get first bytes", Request::Get(GetRequest::blob_ranges(hash, ChunkRanges::chunks(..1)))),
        ("get as list", Request::Get(GetRequest::all(hash))),
        ("get children of a list", Request::Get(GetRequest::all(list))),
        ("get many", Request::GetMany(GetManyRequest::new(vec![hash], ChunkRangesSeq::all()))),
        (
            "get many with an allowed one",
            Request::GetMany(GetManyRequest::new(vec![list, hash], ChunkRangesSeq::all())),
        ),
        ("observe", Request::Observe(ObserveRequest::new(hash))),
    ];
    let encode = |request: &Request| postcard::to_stdvec(request).expect("requests encode");
    let mut found: HashMap<_, _> = requests.iter().map(|(name, r)| (*name, encode(r))).collect();
    found.insert("push", push(hash));
    found
}

/// A push of nothing under `hash`: type 8, then the length-prefixed request.
fn push(hash: Hash) -> Vec<u8> {
    let body = postcard::to_stdvec(&GetRequest::blob(hash)).expect("requests encode");
    let mut request = vec![8u8];
    request.extend(postcard::to_stdvec(&(body.len() as u64)).expect("a number encodes"));
    request.extend(body);
    request
}

pub(crate) fn key_in(home: &Path) -> SecretKey {
    let path = home.join(KEY_FILE);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let raw: [u8; 32] = match <[u8; 32]>::try_from(bytes.as_slice()) {
        Ok(raw) => raw,
        Err(_) => from_hex(String::from_utf8(bytes).expect("digits").trim()),
    };
    SecretKey::from_bytes(&raw)
}

fn from_hex(text: &str) -> [u8; 32] {
    assert_eq!(text.len(), 64, "a key has 64 hexadecimal digits");
    std::array::from_fn(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("a hexadecimal digit"))
}
