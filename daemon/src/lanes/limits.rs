//! Named limits of the lanes.
//!
//! Invariant: what a stranger can make us hold is a small constant; what a paired peer can make us
//! hold is bounded per site and in all.

use std::time::Duration;

/// Connections whose handshake is in progress; more are refused.
pub const HANDSHAKES_MAX: usize = 256;
/// Above this many handshakes a dialler must first prove that it owns its address.
pub const HANDSHAKES_CALM: usize = 64;
/// How long a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections at the pairing door at once, from all addresses.
pub const DOOR_CONNECTIONS_MAX: usize = 32;
/// Connections at the pairing door at once from one address (one /64 network in IPv6).
pub const DOOR_CONNECTIONS_PER_ADDRESS_MAX: usize = 8;
/// Messages answered on one connection at the pairing door.
pub const DOOR_MESSAGES_MAX: usize = 4;
/// How long a connection may stand at the pairing door.
pub const DOOR_LIFE: Duration = Duration::from_secs(60);

/// Incoming connections of one paired site, of all lanes.
pub const CONNECTIONS_PER_SITE_MAX: usize = 64;
/// Streams that a peer may have open on one connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 64;
/// Bytes that a peer may send us on one incoming connection before we read them: requests and
/// messages come in here, never bulk data.
pub const INCOMING_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Control messages handled at once for one connection.
pub const MESSAGES_AT_ONCE_MAX: usize = 4;
/// How long reading or writing one message may take.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long we wait for the answer to a message.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Blobs that are sent at once, to all peers.
pub const SERVES_MAX: usize = 128;
/// Blobs that are sent at once to one site; its further requests wait.
pub const SERVES_PER_SITE_MAX: usize = 64;
/// How long a request may take to arrive.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest encoding of the ranges of a request, in bytes. Decoding them is quadratic in their
/// number, so this is far below what the wire protocol would allow.
pub const REQUEST_RANGES_BYTES_MAX: usize = 8 * 1024;
/// Most blobs in one request.
pub const REQUEST_BLOBS_MAX: usize = 1024;
/// Verified bytes that are handed to a stream at once; twice this is held per stream.
pub const PIECE_BYTES: usize = 256 * 1024;
/// Most bytes read ahead from a served file.
pub const READ_AHEAD_BYTES_MAX: usize = 256 * 1024;
/// A peer that takes nothing for this long loses its stream.
pub const SERVE_STALL: Duration = Duration::from_secs(60);

/// How long dialling a peer may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections for blobs to one peer unless told otherwise.
pub const CONNECTIONS_PER_PEER: usize = 4;
/// A peer that sends nothing for this long is given up for this request.
pub const FETCH_STALL: Duration = Duration::from_secs(30);
/// The least that a peer must send for one request, in bytes a second over a window, where others have
/// the same. Only waiting for the peer counts.
pub const HURRIED_BYTES_PER_S: u64 = 4096;
/// See [`HURRIED_BYTES_PER_S`].
pub const HURRIED_WINDOW: Duration = Duration::from_secs(10);
/// The same where nobody else has it, and for the owner.
pub const PATIENT_BYTES_PER_S: u64 = 1024;
/// See [`PATIENT_BYTES_PER_S`].
pub const PATIENT_WINDOW: Duration = Duration::from_secs(60);
/// Fewest and most verified bytes that are collected before they are written.
pub const WRITE_BYTES_MIN: usize = 32 * 1024;
/// See [`WRITE_BYTES_MIN`].
pub const WRITE_BYTES_MAX: usize = 256 * 1024;
/// Fewest and most bytes that a peer may send ahead of our reading, over all its connections.
pub const FLIGHT_WINDOW_BYTES_MIN: u64 = 1_500_000;
/// See [`FLIGHT_WINDOW_BYTES_MIN`].
pub const FLIGHT_WINDOW_BYTES_MAX: u64 = 10_000_000;
/// The same before it is known what there is to move.
pub const FLIGHT_WINDOW_BYTES_FIRST: u64 = 4_000_000;
/// Fewest and most bytes that one request on the tls lane asks for.
const TLS_PORTION_BYTES: std::ops::RangeInclusive<u64> = 64 * 1024..=4 * 1024 * 1024;
/// Bytes of one request where this many may be on their way: two requests fill the window.
pub fn portion_of(window: u64) -> u64 {
    const GROUP: u64 = sluice_protocol::limits::GROUP_BYTES;
    (window / 2).clamp(*TLS_PORTION_BYTES.start(), *TLS_PORTION_BYTES.end()) / GROUP * GROUP
}
/// What a connection for blobs begins with, in bytes.
pub const FIRST_WINDOW_BYTES: u32 = 256 * 1024;
/// A line of this many bytes a second is to be kept full, however long its way (1 Gbit/s).
pub const LINE_BYTES_PER_S: u64 = 125_000_000;
/// Most hash pairs collected before they are written.
pub const FETCH_PAIRS_MAX: usize = 4096;
/// Most ranges in one request; longer lists take several.
pub const FETCH_RANGES_MAX: usize = 512;
/// Most blobs asked for in one request.
pub const FETCH_BLOBS_MAX: usize = 512;
/// Largest blob that is fetched together with others into memory, in bytes.
pub const FETCH_TOGETHER_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Pause after a TCP connection could not be accepted.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes that are encrypted ahead of what the network takes.
pub const TLS_BUFFER_BYTES: usize = 512 * 1024;
/// How long a TLS connection of a peer may rest before it is closed.
pub const TLS_IDLE_SERVED: Duration = Duration::from_secs(90);
/// How long one that we dialled is kept for the next request: less, so that it is not closed under us.
pub const TLS_IDLE_KEPT: Duration = Duration::from_secs(45);
/// How long the first request to a peer waits for its tls lane before it takes quic.
pub const TLS_HEAD_START: Duration = Duration::from_secs(1);
/// How long the tls lane of a peer is left alone after it failed.
pub const TLS_DOWN: Duration = Duration::from_secs(60);
/// Less than this goes over the connection of quic that is there already, in bytes.
pub const TLS_WORTH_BYTES: u64 = 1024 * 1024;
/// How long an address has to answer before the next one is tried, too.
pub const TLS_STAGGER: Duration = Duration::from_millis(250);

/// How long binding waits for the first interface address.
pub const ADDRESSES_TIMEOUT: Duration = Duration::from_secs(2);
/// How long closing waits for streams to end.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long closing waits for the port to be free again.
pub const PORT_TIMEOUT: Duration = Duration::from_secs(1);
/// How often it looks.
pub const PORT_POLL: Duration = Duration::from_millis(5);
