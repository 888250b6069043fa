//! A bad line between two network namespaces that exist, for a program that is not written in Rust.
//!
//!     line NAME SPACE ADDRESS SPACE ADDRESS [delay_ms=N] [jitter_ms=N] [loss_permille=N] [rate_mbit=N] [seed=N] [offload=1]
//!
//! Prints `ready` when packets go through. Stands until its standard input ends, then prints one JSON line: packets
//! that passed and that were lost, there and back. Invariant: it goes with the program that started it.

use std::io::{Read, Write};
use std::time::Duration;

use sluice_tests::line::{Conditions, Line};
use sluice_tests::net::Space;

const USAGE: &str = "usage: line NAME SPACE ADDRESS SPACE ADDRESS \
                     [delay_ms=N] [jitter_ms=N] [loss_permille=N] [rate_mbit=N] [seed=N] [offload=1]";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some(([name, one, one_at, other, other_at], options)) = words.split_first_chunk() else {
        return Err(USAGE.into());
    };
    let (mut conditions, mut offload, mut seed) = (Conditions::default(), false, 1);
    for option in options {
        let (key, value) = option.split_once('=').ok_or(USAGE)?;
        let value: u64 = value.parse().map_err(|_| USAGE)?;
        match key {
            "delay_ms" => conditions.delay = Duration::from_millis(value),
            "jitter_ms" => conditions.jitter = Duration::from_millis(value),
            "loss_permille" => conditions.loss_permille = value,
            "rate_mbit" => conditions.rate = Some(value.max(1) * 1_000_000),
            "seed" => seed = value,
            "offload" => offload = value != 0,
            _ => return Err(USAGE.into()),
        }
    }
    if offload && conditions.loss_permille > 0 {
        return Err("with offload many packets would be lost as one: leave one of the two off".into());
    }
    let (one, other) = (Space::named(one), Space::named(other));
    let line = Line::between(name, [(&one, one_at), (&other, other_at)], offload, seed)?;
    line.set(conditions);
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    let [there, back] = line.counts();
    let told = format!(r#"{{"passed":[{},{}],"lost":[{},{}]}}"#, there.0, back.0, there.1, back.1);
    // Whoever started it may have been killed.
    let _ = writeln!(std::io::stdout(), "{told}");
    Ok(())
}
