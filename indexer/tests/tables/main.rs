//! Real tables, written by delta-rs and Lance: captured, copied file by file, opened again.
//!
//! One binary, because each one links the whole engine.

mod copy;
mod delta_cases;
mod delta_world;
mod lance_cases;
mod lance_world;
mod race_cases;
mod sample_cases;
