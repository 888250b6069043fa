//! Any bytes into `sluice_fuzz::annex`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sluice_fuzz::annex(data));
