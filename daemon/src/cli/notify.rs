//! Tells the service manager how we are: systemd's notification datagrams.
//!
//! Invariant: without `NOTIFY_SOCKET` nothing is sent, and a message that is lost fails nothing.

use std::ffi::OsStr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Says that the site is ready.
pub(super) fn ready(status: &str) {
    send(&format!("READY=1\nSTATUS={status}"));
}

/// Says that the site ends.
pub(super) fn stopping() {
    send("STOPPING=1");
}

fn send(text: &str) {
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send_to(&socket, text)
    {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

fn send_to(socket: &OsStr, text: &str) -> std::io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_address_are_reached() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let abstract_name = format!("sluice-test-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).unwrap();
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&abstract_name).unwrap()).unwrap();
        let mut got = [0; 64];
        send_to(path.as_os_str(), "READY=1").unwrap();
        let n = by_path.recv(&mut got).unwrap();
        assert_eq!(&got[..n], b"READY=1");
        send_to(OsStr::new(&format!("@{abstract_name}")), "STOPPING=1").unwrap();
        let n = by_name.recv(&mut got).unwrap();
        assert_eq!(&got[..n], b"STOPPING=1");
    }
}
