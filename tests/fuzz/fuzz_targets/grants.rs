//! Any bytes into `sluice_fuzz::grants`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sluice_fuzz::grants(data));
