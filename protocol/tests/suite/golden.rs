//! Golden fixtures of format version 1: what was once written must be read for ever, to the byte.
//!
//! `fixtures/v1/README.md` says how to add one. None is ever written again by a program: when this
//! test fails, the code is wrong, or the change is a new version of the format.

use std::fmt::{Debug, Write};
use std::path::PathBuf;

use sluice_protocol::annex::{Annex, ChunkListRef, Dimension, IndexFacts, TableAnnex, TableFacts};
use sluice_protocol::card::SiteCard;
use sluice_protocol::chunks::{Chunk, ChunkList, Cut};
use sluice_protocol::codec::{Bytes, Document, Enc, Wire};
use sluice_protocol::grants::{Genesis, Grant, GrantSet, Right};
use sluice_protocol::head::Head;
use sluice_protocol::ids::{BlobHash, ChunkHash, SpaceId};
use sluice_protocol::manifest::{Entry, EntryKind, History, Manifest, Section, SectionKind, SectionState};
use sluice_protocol::messages::{Announce, HeadsRequest, Message, PairRequest, REFUSED_EXPIRED, Refusal, SpaceNews};
use sluice_protocol::signed::{Signable, Signed};
use sluice_protocol::ticket::{Ticket, TicketBody};
use sluice_protocol::tree::{Child, Page, TreeRef};

use crate::samples::{build, file, key, path, site};

const TIME_MS: u64 = 1_800_000_000_000;

fn fixture_path(name: &str) -> PathBuf {
    // Asked when the test runs: checkouts may share a target folder, and only one of them was compiled.
    let here = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo names the folder of a test");
    PathBuf::from(here).join("fixtures/v1").join(name)
}

/// The bytes of a fixture: hexadecimal digits, blanks and `#` comments apart.
fn fixture(name: &str, made: &[u8]) -> Vec<u8> {
    let file = fixture_path(name);
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| {
        panic!("the fixture {name} cannot be read ({e}); if it is a new one, its bytes are\n{}", hex_lines(made))
    });
    let digits: String =
        text.lines().filter_map(|l| l.split('#').next()).flat_map(str::chars).filter(|c| !c.is_whitespace()).collect();
    data_encoding::HEXLOWER.decode(digits.as_bytes()).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn hex_lines(bytes: &[u8]) -> String {
    bytes.chunks(32).fold(String::new(), |mut text, row| {
        writeln!(text, "{}", data_encoding::HEXLOWER.encode(row)).unwrap();
        text
    })
}

fn check_bytes(name: &str, made: &[u8]) -> Vec<u8> {
    let kept = fixture(name, made);
    assert!(kept == made, "{name} is encoded differently now:\n{}", hex_lines(made));
    kept
}

fn check<D: Document + PartialEq + Debug>(name: &str, value: D) -> Vec<u8> {
    let kept = check_bytes(name, &value.to_bytes());
    let read = D::from_bytes(&kept).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(read, value, "{name}");
    assert_eq!(read.to_bytes(), kept, "{name}");
    kept
}

fn check_signed<T: Signable + Clone + PartialEq + Debug>(name: &str, value: T) -> Signed<T> {
    let signed = Signed::sign(&key(1), value.clone());
    let kept = check_bytes(name, signed.bytes());
    let read = Signed::<T>::from_bytes(&kept).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(*read, value, "{name}");
    assert_eq!(read.bytes(), kept);
    signed
}

fn entries() -> Vec<Entry> {
    let hash = |text: &str| Some(BlobHash::of(text.as_bytes()));
    let blank = Entry {
        path: path("a"),
        kind: EntryKind::File,
        size: 0,
        hash: None,
        mode: None,
        mtime_ns: None,
        target: None,
        unknown: Default::default(),
    };
    vec![
        Entry { path: path("empty"), kind: EntryKind::Folder, ..blank.clone() },
        Entry { path: path("latest"), kind: EntryKind::Link, target: Some("notes/hello.txt".into()), ..blank.clone() },
        Entry {
            path: path("notes/hello.txt"),
            size: 5,
            hash: hash("hello"),
            mode: Some(0o644),
            mtime_ns: Some(1_700_000_000_123_456_789),
            ..blank.clone()
        },
        Entry { path: path("run.sh"), size: 300, hash: hash("run"), mode: Some(0o755), mtime_ns: Some(-1), ..blank },
    ]
}

fn leaf() -> Page {
    let raw = |e: Entry| {
        let mut enc = Enc::new(Vec::new());
        e.put(&mut enc);
        Bytes(enc.into_writer())
    };
    Page { height: 0, items: entries().into_iter().map(raw).collect(), children: vec![], unknown: Default::default() }
}

fn tree_ref(page: &Page, items: u64, weight: u64) -> TreeRef {
    TreeRef { page: BlobHash::of(&page.to_bytes()), height: page.height, items, weight, unknown: Default::default() }
}

fn inner() -> Page {
    let child = |last: &str, tree| Child { last: Bytes(last.into()), tree, unknown: Default::default() };
    let later =
        TreeRef { page: BlobHash([0xbb; 32]), height: 0, items: 256, weight: 1 << 33, unknown: Default::default() };
    Page {
        height: 1,
        items: vec![],
        children: vec![child("run.sh", tree_ref(&leaf(), 4, 305)), child("z/last.bin", later)],
        unknown: Default::default(),
    }
}

fn manifest() -> Manifest {
    let state =
        SectionState { table_version: None, params: None, history: None, opaque: false, unknown: Default::default() };
    let table = SectionState {
        table_version: Some(7),
        params: Some([0x50; 32]),
        history: Some(History::Tagged),
        opaque: true,
        unknown: Default::default(),
    };
    let section = |kind, folder: Option<&str>, shallow, state, tree| Section {
        kind,
        path: folder.map(path),
        shallow,
        state,
        tree,
        unknown: Default::default(),
    };
    Manifest::new(vec![
        section(SectionKind::Files, None, true, state, tree_ref(&leaf(), 4, 305)),
        section(SectionKind::Delta, Some("delta/orders"), false, table, tree_ref(&inner(), 260, (1 << 33) + 305)),
    ])
}

fn annex() -> Annex {
    let facts = TableFacts {
        version: 7,
        versions: vec![5, 6, 7],
        rows: 100_000,
        schema_fingerprint: [0x5c; 32],
        dimensions: vec![Dimension { column: "embedding".into(), dim: 384, unknown: Default::default() }],
        indices: vec![IndexFacts {
            name: "embedding_idx".into(),
            column: "embedding".into(),
            kind: "IVF_PQ".into(),
            rows: 99_000,
            unknown: Default::default(),
        }],
        features: vec!["deletionVectors".into(), "timestampNtz".into()],
        tags: vec!["gold=6".into()],
        unknown: Default::default(),
    };
    let table = TableAnnex {
        section: Some(path("delta/orders")),
        kind: SectionKind::Delta,
        facts,
        unknown: Default::default(),
    };
    let lists = TreeRef { page: BlobHash([0xc1; 32]), height: 0, items: 2, weight: 208, unknown: Default::default() };
    Annex { manifest: manifest().id(), tables: vec![table], chunk_lists: Some(lists), unknown: Default::default() }
}

fn chunk_list_ref() -> ChunkListRef {
    ChunkListRef {
        blob: BlobHash([0xb1; 32]),
        list: BlobHash([0x11; 32]),
        list_bytes: 104,
        unknown: Default::default(),
    }
}

fn chunk_list() -> ChunkList {
    let chunk = |len, n| Chunk { len, hash: ChunkHash([n; 32]) };
    ChunkList { cut: Cut::FastCdc, size: 70_000, chunks: vec![chunk(65_536, 0xaa), chunk(4_464, 0xab)] }
}

fn genesis() -> Genesis {
    Genesis {
        owner: site(1),
        name: "acme".into(),
        nonce: [0x4e; 16],
        recovery: Some(site(9)),
        created_ms: TIME_MS,
        unknown: Default::default(),
    }
}

fn grants() -> GrantSet {
    let limited = Grant {
        sections: vec!["delta".into(), "vectors/docs.lance".into()],
        ..Grant::new(site(3), "edge", &[Right::Read, Right::Write], Some(TIME_MS + 1))
    };
    let grants = vec![Grant::new(site(2), "cradle", &[Right::Read], None), limited];
    GrantSet { genesis: genesis(), seq: 2, grants, time_ms: TIME_MS, unknown: Default::default() }
}

fn first_head() -> Head {
    Head {
        space: genesis().space_id(),
        writer: site(1),
        epoch: 0,
        seq: 0,
        manifest: manifest().id(),
        annex: BlobHash::of(&annex().to_bytes()),
        grants: Signed::sign(&key(1), grants()).blob(),
        prev: None,
        time_ms: TIME_MS,
        not_after_ms: TIME_MS + 30 * 24 * 3600 * 1000,
        tag: None,
        untag: None,
        unknown: Default::default(),
    }
}

fn next_head() -> Head {
    let first = Signed::sign(&key(1), first_head());
    Head { epoch: 1, seq: 1, prev: Some(first.id()), tag: Some("gold".into()), ..first_head() }
}

fn card() -> SiteCard {
    SiteCard {
        site: site(1),
        name: "playground".into(),
        quic: vec!["192.0.2.1:7711".into(), "[2001:db8::1]:7711".into()],
        tls: vec!["192.0.2.1:7711".into()],
        time_ms: TIME_MS,
        unknown: Default::default(),
    }
}

fn ticket_body() -> TicketBody {
    TicketBody {
        secret: *b"0123456789abcdef",
        site: site(1),
        addresses: vec!["192.0.2.1:7711".into(), "[2001:db8::1]:7711".into()],
        space: genesis().space_id(),
        space_name: "acme".into(),
        expires_ms: TIME_MS,
        unknown: Default::default(),
    }
}

fn messages() -> Vec<(&'static str, Message)> {
    let space = genesis().space_id();
    let signed_card = Bytes(Signed::sign(&key(1), card()).bytes().to_vec());
    let signed_head = Bytes(Signed::sign(&key(1), first_head()).bytes().to_vec());
    let signed_grants = Bytes(Signed::sign(&key(1), grants()).bytes().to_vec());
    let heads = |have_epoch, have_seq, card| {
        Message::Heads(HeadsRequest { space, have_epoch, have_seq, card, held: None, unknown: Default::default() })
    };
    vec![
        (
            "message_pair.hex",
            Message::Pair(PairRequest {
                secret: ticket_body().secret,
                space,
                card: signed_card.clone(),
                unknown: Default::default(),
            }),
        ),
        ("message_heads_first.hex", heads(None, None, None)),
        ("message_heads.hex", heads(Some(1), Some(17), Some(signed_card.clone()))),
        (
            "message_announce.hex",
            Message::Announce(Announce { space, head: signed_head.clone(), card: None, unknown: Default::default() }),
        ),
        (
            "message_news.hex",
            Message::News(SpaceNews {
                grants: signed_grants,
                heads: vec![signed_head],
                cards: vec![signed_card],
                more: true,
                unknown: Default::default(),
            }),
        ),
        ("message_refused.hex", Message::Refused(Refusal::new(REFUSED_EXPIRED, "the ticket has expired"))),
        ("message_done.hex", Message::Done),
    ]
}

/// One encoding of every kind, for tests that damage them.
pub fn encodings() -> Vec<Vec<u8>> {
    let signed = [
        Signed::sign(&key(1), grants()).bytes().to_vec(),
        Signed::sign(&key(1), next_head()).bytes().to_vec(),
        Signed::sign(&key(1), card()).bytes().to_vec(),
    ];
    let plain = [
        manifest().to_bytes(),
        leaf().to_bytes(),
        inner().to_bytes(),
        annex().to_bytes(),
        chunk_list().to_bytes(),
        genesis().to_bytes(),
        grants().to_bytes(),
        next_head().to_bytes(),
        card().to_bytes(),
        ticket_body().to_bytes(),
    ];
    let said = messages().into_iter().map(|(_, m)| m.to_bytes());
    signed.into_iter().chain(plain).chain(said).collect()
}

#[test]
fn manifest_and_pages() {
    check("manifest.hex", manifest());
    check("page_inner.hex", inner());
    let kept = check("page_leaf.hex", leaf());
    assert_eq!(Page::from_bytes(&kept).unwrap().decode_items::<Entry>().unwrap(), entries());
    let empty = Page { height: 0, items: vec![], children: vec![], unknown: Default::default() };
    check("page_empty.hex", empty);
    assert_eq!(build(&entries()).unwrap().root, tree_ref(&leaf(), 4, 305));
}

#[test]
fn annex_and_chunk_lists() {
    check("annex.hex", annex());
    let tree = build(&[chunk_list_ref()]).unwrap();
    check_bytes("page_chunk_lists.hex", &tree.pages[&tree.root.page]);
    let kept = check_bytes("chunk_list.hex", &chunk_list().to_bytes());
    assert_eq!(ChunkList::from_bytes(&kept), Ok(chunk_list()));
}

#[test]
fn what_is_signed() {
    check("genesis.hex", genesis());
    let grants = check_signed("grants.hex", grants());
    let first = check_signed("head_first.hex", first_head());
    let next = check_signed("head.hex", next_head());
    assert_eq!(grants.blob(), next.grants);
    assert_eq!(next.prev, Some(first.id()));
    check_signed("card.hex", card());
}

#[test]
fn every_message() {
    for (name, message) in messages() {
        check(name, message);
    }
}

#[test]
fn ticket_as_it_is_carried() {
    check("ticket.hex", ticket_body());
    let text = std::fs::read_to_string(fixture_path("ticket.txt"))
        .unwrap_or_else(|e| panic!("ticket.txt: {e}; its text is {}", Ticket::new(ticket_body()).reveal()));
    let ticket = Ticket::parse(&text).unwrap();
    assert_eq!(ticket.body(), &ticket_body());
    assert_eq!(ticket.reveal(), text.trim());
}

/// Everything that is derived by hashing, as `name value` lines.
#[test]
fn derived_values() {
    let numbered: Vec<Entry> = (0..5000u64).map(|i| file(&format!("{i:04}"), i)).collect();
    let tree = build(&numbered).unwrap();
    let ticket = Ticket::new(ticket_body());
    let lines = [
        format!("space_id {}", genesis().space_id()),
        format!("snapshot_id {}", manifest().id()),
        format!("head_id {}", Signed::sign(&key(1), next_head()).id()),
        format!("grants_blob {}", Signed::sign(&key(1), grants()).blob()),
        format!("ticket_id {}", ticket.id()),
        format!("phrase {}", ticket.phrase()),
        format!("empty_tree {}", build::<Entry>(&[]).unwrap().root.page),
        format!("tree_5000 {} height {} pages {}", tree.root.page, tree.root.height, tree.pages.len()),
        format!("phrase_of_zeros {}", sluice_protocol::ticket::phrase([0; 32].into(), SpaceId([0; 32]), &[0; 16])),
    ];
    let made = lines.join("\n");
    let kept = std::fs::read_to_string(fixture_path("derived.txt"))
        .unwrap_or_else(|e| panic!("derived.txt: {e}; it would be\n{made}"));
    let kept: Vec<&str> = kept.lines().filter(|l| !l.starts_with('#') && !l.is_empty()).collect();
    assert_eq!(kept, made.lines().collect::<Vec<_>>());
}

/// A fence that begins with "hex NAME" holds the bytes of that fixture; a `;` begins a remark.
#[test]
fn the_examples_in_the_format_page_are_the_fixtures() {
    let page = include_str!("../../../docs/format.md");
    let mut examples = 0;
    for fence in page.split("```hex ").skip(1) {
        let (name, rest) = fence.split_once('\n').unwrap();
        let (body, _) = rest.split_once("```").unwrap();
        let digits = body.lines().filter_map(|l| l.split(';').next()).flat_map(str::chars);
        let digits: String = digits.filter(|c| !c.is_whitespace()).collect();
        let shown = data_encoding::HEXLOWER.decode(digits.as_bytes()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(shown == fixture(name, &[]), "docs/format.md shows another {name}");
        examples += 1;
    }
    assert!(examples >= 9);
}

#[test]
fn no_fixture_lies_unread() {
    let source = include_str!("golden.rs");
    for file in std::fs::read_dir(fixture_path("")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        assert!(name == "README.md" || source.contains(&format!("\"{name}\"")), "nothing reads {name}");
    }
}
