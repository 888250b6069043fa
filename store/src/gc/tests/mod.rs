//! An owner, a copy, and a clock: random interleavings of everything that makes and removes.
//!
//! Invariant under test: whatever a root or a lease reaches can be read and hashes right, nothing
//! arrives twice, and once grace has passed nothing else is left.

mod beside;
mod model;
mod world;

use world::Dice;

/// Interleavings of the test that always runs, and of the one in `make soak`.
const ALWAYS: u64 = 1000;
/// Interleavings that share one world: setting one up costs more than many steps.
const PER_WORLD: u64 = 50;
/// Steps of one interleaving.
const STEPS: u64 = 12;

#[test]
fn a_thousand_interleavings_remove_nothing_reachable_and_leave_nothing_else() {
    std::thread::scope(|scope| {
        for half in 0..2 {
            scope.spawn(move || (half..ALWAYS / PER_WORLD).step_by(2).for_each(interleave));
        }
    });
}

#[test]
#[ignore = "soak: thousands of interleavings"]
fn many_more_interleavings() {
    (1_000..1_400).for_each(interleave);
}

fn interleave(seed: u64) {
    let mut dice = Dice::new(seed);
    let mut model = model::Model::new(seed);
    for round in 0..PER_WORLD {
        for _ in 0..STEPS {
            model.step(&mut dice);
        }
        model.settle(&format!("seed {seed}, round {round}"));
    }
}
