//! Any bytes into `sluice_fuzz::pairing_message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sluice_fuzz::pairing_message(data));
