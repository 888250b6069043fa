//! The rival in `make bench`: iroh-blobs as it comes, from one `FsStore` into another.
//!
//!     rival-fsstore give STORE DIR             imports DIR (by reference, without a copy), serves until stdin ends
//!     rival-fsstore take STORE HASH ID ADDRESS fetches what was imported
//!     rival-fsstore unpack STORE HASH DIR      writes what was fetched under its names, to be compared
//!
//! The first two print one JSON line with what they did and their seconds. Invariant: only iroh's and iroh-blobs' own code moves and
//! stores bytes here; nothing is tuned against it.

use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use iroh::endpoint::presets;
use iroh::protocol::Router;
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode};
use iroh_blobs::api::TempTag;
use iroh_blobs::api::blobs::{AddPathOptions, ImportMode};
use iroh_blobs::format::collection::Collection;
use iroh_blobs::store::fs::FsStore;
use iroh_blobs::{ALPN, BlobFormat, BlobsProtocol, Hash, HashAndFormat};
use tokio::task::JoinSet;

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Files imported at the same time.
const IMPORTS: usize = 4;

#[tokio::main]
async fn main() -> Outcome<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["give", store, folder] => give(Path::new(store), Path::new(folder)).await,
        ["take", store, hash, id, address] => take(Path::new(store), hash, id, address).await,
        ["unpack", store, hash, folder] => unpack(Path::new(store), hash, Path::new(folder)).await,
        _ => Err("usage: rival-fsstore give STORE DIR | take STORE HASH ID ADDRESS | unpack STORE HASH DIR".into()),
    }
}

async fn endpoint() -> Outcome<Endpoint> {
    Ok(Endpoint::builder(presets::Minimal).relay_mode(RelayMode::Disabled).bind().await?)
}

async fn give(store: &Path, folder: &Path) -> Outcome<()> {
    let begun = Instant::now();
    let store = FsStore::load(store).await?;
    let mut waiting = files(folder)?;
    let (mut named, mut tags) = (Vec::new(), Vec::new());
    let mut importing = JoinSet::new();
    loop {
        while importing.len() < IMPORTS
            && let Some(path) = waiting.pop()
        {
            importing.spawn(import(store.clone(), path));
        }
        let Some(done) = importing.join_next().await else { break };
        let (path, tag) = done??;
        named.push((path.strip_prefix(folder)?.to_string_lossy().into_owned(), tag.hash()));
        tags.push(tag);
    }
    let collection = Collection::from_iter(named);
    let root = collection.store(&store).await?;
    let seconds = begun.elapsed().as_secs_f64();

    let endpoint = endpoint().await?;
    let port = endpoint.bound_sockets().iter().find(|a| a.is_ipv4()).map_or(0, SocketAddr::port);
    let router = Router::builder(endpoint).accept(ALPN, BlobsProtocol::new(&store, None)).spawn();
    let id = router.endpoint().id();
    println!(r#"{{"hash":"{}","id":"{id}","address":"127.0.0.1:{port}","seconds":{seconds}}}"#, root.hash());
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
    router.shutdown().await?;
    Ok(())
}

async fn import(store: FsStore, path: PathBuf) -> Outcome<(PathBuf, TempTag)> {
    let options = AddPathOptions { path: path.clone(), format: BlobFormat::Raw, mode: ImportMode::TryReference };
    let tag = store.blobs().add_path_with_opts(options).temp_tag().await?;
    Ok((path, tag))
}

/// All files below a folder.
fn files(folder: &Path) -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

async fn take(store: &Path, hash: &str, id: &str, address: &str) -> Outcome<()> {
    let store = FsStore::load(store).await?;
    let id: EndpointId = id.parse()?;
    let hash: Hash = hash.parse()?;
    let begun = Instant::now();
    let endpoint = endpoint().await?;
    let connection = endpoint.connect(EndpointAddr::new(id).with_ip_addr(address.parse()?), ALPN).await?;
    store.remote().fetch(connection, HashAndFormat::hash_seq(hash)).complete().await?;
    store.sync_db().await?;
    println!(r#"{{"seconds":{}}}"#, begun.elapsed().as_secs_f64());
    store.shutdown().await?;
    Ok(())
}

async fn unpack(store: &Path, hash: &str, folder: &Path) -> Outcome<()> {
    let store = FsStore::load(store).await?;
    let hash: Hash = hash.parse()?;
    for (name, hash) in Collection::load(hash, store.as_ref()).await? {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().ok_or("a name is a path below the folder")?)?;
        store.blobs().export(hash, path).await?;
    }
    store.shutdown().await?;
    Ok(())
}
