//! The lanes between real endpoints on loopback: admission, messages, blobs, lies, interoperation.
//!
//! The host is a double in memory; the lane, the streams and the handshakes are the real ones.

mod admission;
mod blobs;
mod double;
mod hostile;
mod interop;
mod tls;
