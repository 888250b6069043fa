//! The owner's side of the store on real folders: scan, read, snapshot, pin.

mod keep;
mod layout;
mod links;
mod pins;
mod reading;
mod tables;
mod world;
