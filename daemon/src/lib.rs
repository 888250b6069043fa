//! The Sluice daemon: the flow, the lanes, pairing, policy, jobs, journal, and the command line.
//!
//! Read `flow` first: it names the whole journey of the data in order.

pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod doctor;
pub mod errors;
pub mod flow;
pub mod follow;
pub mod fork;
pub mod heads;
pub mod holdings;
pub mod home;
pub mod jobs;
pub mod journal;
pub mod lanes;
pub mod memory;
pub mod news;
pub mod node;
pub mod pairing;
pub mod policy;
mod rate;
pub mod repair;
pub mod retention;
pub mod service;
pub mod setback;
pub mod site;
pub mod sync;
