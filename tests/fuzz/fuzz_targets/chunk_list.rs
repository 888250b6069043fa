//! Any bytes into `sluice_fuzz::chunk_list`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sluice_fuzz::chunk_list(data));
