//! Named limits for everything that a peer, a file or a user can make long.
//!
//! Invariant: no decoder allocates before it has compared a length with a limit from this page or
//! with the bytes that are really there.

/// Longest path of an entry below its lake, in bytes.
pub const PATH_BYTES_MAX: usize = 4096;
/// Longest single name in a path, in bytes (what ext4, xfs and btrfs allow).
pub const PATH_NAME_BYTES_MAX: usize = 255;
/// Most names in a path.
pub const PATH_DEPTH_MAX: usize = 128;
/// Deepest nesting of folders that are removed from what lies aside.
pub const ASIDE_DEPTH_MAX: usize = 256;
/// Names in each folder of what lies aside that `status` counts.
pub const ASIDE_NAMES_SHOWN_MAX: u64 = 10_000;
/// Longest target of a symbolic link, in bytes.
pub const LINK_TARGET_BYTES_MAX: usize = 4096;

/// Deepest nesting of arrays and maps inside a field this version does not know.
pub const CBOR_DEPTH_MAX: usize = 16;
/// Most fields that a record may have which this version does not know.
pub const UNKNOWN_FIELDS_MAX: usize = 64;
/// Most items in any list of a document; many lists have a closer limit.
pub const LIST_ITEMS_MAX: u64 = 1_000_000;
/// Largest head or site card, in bytes.
pub const SIGNED_BYTES_MAX: usize = 64 * 1024;
/// Largest grant set, in bytes: some five thousand grants. It fits a message with heads and cards.
pub const GRANTS_BYTES_MAX: usize = 512 * 1024;
/// Largest manifest or annex root, in bytes.
pub const MANIFEST_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Largest deed of a space that is read from a lake, in bytes: some manifests, an annex, grants, cards.
pub const DEED_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Largest page of a manifest tree, in bytes.
pub const PAGE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Most items in one page; a page that would grow longer is cut.
pub const PAGE_ITEMS_MAX: usize = 2048;
/// Most levels of a page tree.
pub const TREE_HEIGHT_MAX: u8 = 8;
/// Pages that a tree may have beside one for every [`TREE_ITEMS_PER_PAGE_MIN`] items.
pub const TREE_PAGES_SPARE: u64 = 64;
/// Fewest items a page holds on average in a tree that is read (a tree that is built has some 256).
pub const TREE_ITEMS_PER_PAGE_MIN: u64 = 8;
/// Most sections in one manifest.
pub const SECTIONS_MAX: usize = 65_536;
/// Most entries in one manifest.
pub const ENTRIES_MAX: u64 = 4_000_000;
/// Largest file, in bytes (16 TiB).
pub const FILE_BYTES_MAX: u64 = 1 << 44;
/// Most bytes in all files of one version (1 EiB), so that no sum of sizes can overflow.
pub const LAKE_BYTES_MAX: u64 = 1 << 60;

/// Files up to this length have no chunk list, in bytes.
pub const CHUNKED_ABOVE_BYTES: u64 = 64 * 1024;
/// Smallest, average and largest content-defined chunk, in bytes.
pub const CHUNK_BYTES_MIN: u32 = 16 * 1024;
/// See [`CHUNK_BYTES_MIN`].
pub const CHUNK_BYTES_AVG: u32 = 64 * 1024;
/// See [`CHUNK_BYTES_MIN`].
pub const CHUNK_BYTES_MAX: u32 = 256 * 1024;
/// Largest chunk list that is decoded, in bytes: that of a file of some 1 TiB.
pub const CHUNK_LIST_BYTES_MAX: u64 = 1 << 30;

/// Unit of verified transfer and of the staging bitmap, in bytes.
pub const GROUP_BYTES: u64 = 16 * 1024;
/// Wanted ranges closer than this are fetched as one, in bytes.
pub const FETCH_GAP_BYTES: u64 = 256 * 1024;
/// Length of one unit of work for the range scheduler, in bytes.
pub const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;

/// Largest message on the control and pairing streams, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Largest message at the pairing door, in bytes: whoever knocks there is not known yet.
pub const PAIR_MESSAGE_BYTES_MAX: usize = 128 * 1024;
/// Most heads in one reply; a longer chain takes several.
pub const HEADS_PER_REPLY_MAX: usize = 512;
/// Most heads that are followed from the stored head to a new one before we give up.
pub const HEAD_CHAIN_MAX: usize = 1_000_000;
/// Most addresses in a ticket or a site card.
pub const ADDRESSES_MAX: usize = 32;
/// Most site cards carried with one reply.
pub const CARDS_MAX: usize = 64;
/// Longest name of a site, a space or a peer, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest human text in a message, in bytes.
pub const TEXT_BYTES_MAX: usize = 4096;
/// Largest ticket, in bytes after decoding.
pub const TICKET_BYTES_MAX: usize = 4096;
/// How long a ticket lives unless told otherwise, in milliseconds (10 minutes).
pub const TICKET_LIFE_MS: u64 = 10 * 60 * 1000;
/// How long a head may be served on after it was signed, in milliseconds (30 days).
pub const HEAD_LIFE_MS: u64 = 30 * 24 * 3600 * 1000;
/// How far a peer's clock may run ahead before its head is refused, in milliseconds (24 hours).
pub const CLOCK_SKEW_MS_MAX: u64 = 24 * 3600 * 1000;
/// A peer that sent this many corrupt pieces is dropped.
pub const CORRUPT_PIECES_MAX: u32 = 3;
/// Most versions of one table that an annex lists.
pub const TABLE_VERSIONS_MAX: usize = 1_000_000;
/// Most dimensions, indices, features or tags of one table that an annex lists.
pub const TABLE_FACTS_MAX: usize = 65_536;
/// Most sections that one grant names.
pub const GRANT_SECTIONS_MAX: usize = 256;
/// Most heads that are kept as evidence of a fork.
pub const RIVALS_MAX: usize = 8;
/// Most versions of one space that one peer keeps from being collected.
pub const LEASES_PER_PEER_MAX: usize = 4;
/// A lease is written again at most this often, in milliseconds (5 minutes).
pub const LEASE_RENEW_MS: u64 = 5 * 60 * 1000;
/// Most folders of one lake that are watched for changes; a lake with more is looked through by a timer.
pub const FOLDERS_WATCHED_MAX: usize = 500_000;
/// Most sites that are told of one new head.
pub const SITES_TOLD_MAX: usize = 256;
/// Most sites beside the owner and the inviting one that are asked for news of a space at once.
pub const SITES_ASKED_MAX: usize = 16;
