//! Who is connected, and how many may be.
//!
//! Invariant: an incoming connection is entered here before the host is asked whether its site is
//! paired. So when access is taken back first and [`Registry::disconnect`] is called then, no
//! connection slips through between the two.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iroh::endpoint::{Connection, VarInt};
use sluice_protocol::ids::SiteId;
use tokio::sync::Semaphore;

use super::limits::{
    CONNECTIONS_PER_SITE_MAX, DOOR_CONNECTIONS_MAX, DOOR_CONNECTIONS_PER_ADDRESS_MAX, SERVES_PER_SITE_MAX,
};

/// Codes with which a connection is closed.
pub(super) const CLOSE_DONE: u32 = 0;
/// The site is not paired, or no longer.
pub(super) const CLOSE_NOT_PAIRED: u32 = 1;
/// There are too many connections.
pub(super) const CLOSE_BUSY: u32 = 2;
/// The daemon stops.
pub(super) const CLOSE_STOPPING: u32 = 3;

/// A connection of any lane, as far as it can be taken away.
pub(super) trait Closable: Send + Sync {
    /// Closes it with one of the codes above.
    fn close(&self, code: u32, reason: &str);
    fn is_open(&self) -> bool;
}

impl Closable for Connection {
    fn close(&self, code: u32, reason: &str) {
        Connection::close(self, VarInt::from_u32(code), reason.as_bytes());
    }

    fn is_open(&self) -> bool {
        self.close_reason().is_none()
    }
}

/// Finds a connection as long as somebody uses it.
type Found = Box<dyn Fn() -> Option<Arc<dyn Closable>> + Send + Sync>;

/// The live connections of each site.
#[derive(Default)]
pub(super) struct Registry {
    sites: Mutex<Sites>,
}

#[derive(Default)]
struct Sites {
    next: u64,
    by_site: HashMap<SiteId, Site>,
}

struct Site {
    /// One permit for each blob being sent to the site.
    serves: Arc<Semaphore>,
    incoming: HashMap<u64, Arc<dyn Closable>>,
    /// Connections that we dialled; they live as long as their users.
    outgoing: Vec<Found>,
}

impl Default for Site {
    fn default() -> Self {
        Self { serves: Arc::new(Semaphore::new(SERVES_PER_SITE_MAX)), incoming: HashMap::new(), outgoing: Vec::new() }
    }
}

/// An incoming connection's place; dropping it takes the connection off the list.
pub(super) struct Place {
    registry: Arc<Registry>,
    site: SiteId,
    number: u64,
    pub serves: Arc<Semaphore>,
}

impl Registry {
    /// Enters an incoming connection. When its site has too many, the oldest of them is closed: a site
    /// that was killed leaves connections behind that nobody closes, and must not wait for their end.
    pub fn enter(self: &Arc<Self>, site: SiteId, connection: Arc<dyn Closable>) -> Place {
        let mut sites = lock(&self.sites);
        let number = sites.next;
        sites.next += 1;
        let entry = sites.by_site.entry(site).or_default();
        if entry.incoming.len() >= CONNECTIONS_PER_SITE_MAX
            && let Some(oldest) = entry.incoming.keys().min().copied()
            && let Some(old) = entry.incoming.remove(&oldest)
        {
            old.close(CLOSE_BUSY, "too many connections");
        }
        entry.incoming.insert(number, connection);
        Place { registry: self.clone(), site, number, serves: entry.serves.clone() }
    }

    /// Remembers a connection that we dialled.
    pub fn dialled(&self, site: SiteId, connection: Found) {
        let mut sites = lock(&self.sites);
        let outgoing = &mut sites.by_site.entry(site).or_default().outgoing;
        outgoing.retain(is_open);
        outgoing.push(connection);
    }

    /// Closes all connections of a site, in both directions.
    pub fn disconnect(&self, site: SiteId) {
        let Some(entry) = lock(&self.sites).by_site.remove(&site) else {
            return;
        };
        let outgoing = entry.outgoing.iter().filter_map(|find| find());
        for connection in entry.incoming.into_values().chain(outgoing) {
            connection.close(CLOSE_NOT_PAIRED, "access was taken back");
        }
    }

    /// How many connections, in both directions, a site has.
    pub fn connections(&self, site: SiteId) -> usize {
        lock(&self.sites)
            .by_site
            .get(&site)
            .map_or(0, |entry| entry.incoming.len() + entry.outgoing.iter().filter(|find| is_open(find)).count())
    }

    fn leave(&self, site: SiteId, number: u64) {
        let mut sites = lock(&self.sites);
        if let Some(entry) = sites.by_site.get_mut(&site) {
            entry.incoming.remove(&number);
            if entry.incoming.is_empty() && entry.outgoing.iter().all(|find| find().is_none()) {
                sites.by_site.remove(&site);
            }
        }
    }
}

fn is_open(find: &Found) -> bool {
    find().is_some_and(|connection| connection.is_open())
}

impl Drop for Place {
    fn drop(&mut self) {
        self.registry.leave(self.site, self.number);
    }
}

/// The pairing door: the only thing a stranger reaches.
#[derive(Default)]
pub(super) struct Door {
    standing: Mutex<HashMap<IpAddr, usize>>,
}

/// A stranger's place at the door; dropping it frees the place.
pub(super) struct DoorPlace {
    door: Arc<Door>,
    network: IpAddr,
}

impl Door {
    /// Lets one more stand at the door; none when it is full, or full of their like.
    pub fn enter(self: &Arc<Self>, from: IpAddr) -> Option<DoorPlace> {
        let network = network_of(from);
        let mut standing = lock(&self.standing);
        if standing.values().sum::<usize>() >= DOOR_CONNECTIONS_MAX {
            return None;
        }
        let here = standing.entry(network).or_default();
        if *here >= DOOR_CONNECTIONS_PER_ADDRESS_MAX {
            return None;
        }
        *here += 1;
        Some(DoorPlace { door: self.clone(), network })
    }
}

impl Drop for DoorPlace {
    fn drop(&mut self) {
        let mut standing = lock(&self.door.standing);
        if let Some(here) = standing.get_mut(&self.network) {
            *here -= 1;
            if *here == 0 {
                standing.remove(&self.network);
            }
        }
    }
}

/// One host owns a whole /64 in IPv6, so that is what is counted.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these hold is consistent after each statement, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_door_is_shared_fairly() {
        let door = Arc::new(Door::default());
        let v6 = |last: u16| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, last));
        let mut places: Vec<_> = (0..8).map(|i| door.enter(v6(i)).unwrap()).collect();
        assert!(door.enter(v6(99)).is_none(), "one /64 is one stranger");
        assert!(door.enter("192.0.2.1".parse().unwrap()).is_some());
        places.pop();
        assert!(door.enter(v6(99)).is_some(), "a place that was left is free again");
    }

    #[test]
    fn the_door_has_an_end() {
        let door = Arc::new(Door::default());
        let address = |i: usize| IpAddr::from([192, 0, 2, i as u8]);
        let places: Vec<_> = (0..DOOR_CONNECTIONS_MAX).map(|i| door.enter(address(i)).unwrap()).collect();
        assert!(door.enter(address(200)).is_none());
        drop(places);
        assert!(lock(&door.standing).is_empty());
    }
}
