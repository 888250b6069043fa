//! The API over HTTP, against a node that remembers what it was asked.

mod api;
mod door;
mod double;
