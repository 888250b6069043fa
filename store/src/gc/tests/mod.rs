//! An owner, a copy, and a clock: random interleavings of everything that makes and removes.
//!
//! Invariant under test: whatever a root or a lease reaches can be read and hashes right, nothing
//! arrives twice, and once grace has passed nothing else is left.

mod aside;
mod beside;
mod model;
mod world;

use world::Dice;

/// Interleavings of the test that always runs.
const ALWAYS: u64 = 1000;
/// Interleavings that share one world: setting one up costs more than many steps.
const PER_WORLD: u64 = 20;
/// Steps of one interleaving.
const STEPS: u64 = 8;

#[test]
fn a_thousand_interleavings_remove_nothing_reachable_and_leave_nothing_else() {
    let half = |half: u64| (half..ALWAYS / PER_WORLD).step_by(2).map(interleave).sum::<u64>();
    let only_leased = std::thread::scope(|scope| {
        let other = scope.spawn(|| half(1));
        half(0) + other.join().unwrap()
    });
    assert!(only_leased > 50, "the dice hardly ever let a lease matter: {only_leased}");
}

#[test]
#[ignore = "soak: thousands of interleavings"]
fn many_more_interleavings() {
    assert!((1_000..2_000).map(interleave).sum::<u64>() > 1_000);
}

/// Returns how often a collection met a version that nothing but a lease kept.
fn interleave(seed: u64) -> u64 {
    let mut dice = Dice::new(seed);
    let mut model = model::Model::new(seed);
    for round in 0..PER_WORLD {
        for _ in 0..STEPS {
            model.step(&mut dice);
        }
        model.settle(&format!("seed {seed}, round {round}"));
    }
    model.only_leased
}
