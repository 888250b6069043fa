//! Numbers that look random and are the same every time.
//!
//! Invariant: the sequence depends on the seed and the label alone, on every machine and release.

const WORDS: [&str; 24] = [
    "pump", "valve", "order", "delay", "river", "coast", "index", "north", "crane", "metal", "offer", "paper", "audit",
    "grain", "field", "cable", "depot", "motor", "panel", "quota", "ridge", "sheet", "train", "yield",
];

/// SplitMix64: small, fast, and good enough for sample rows.
pub struct Dice(u64);

impl Dice {
    /// A sequence for one purpose.
    pub fn new(seed: u64, label: &str) -> Self {
        let hash = blake3::hash(label.as_bytes());
        let mut head = [0; 8];
        head.copy_from_slice(&hash.as_bytes()[..8]);
        Self(seed ^ u64::from_le_bytes(head))
    }

    /// The next 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A number in [-1, 1).
    pub fn signed(&mut self) -> f32 {
        let bits = (self.next() >> 40) as f32;
        bits / (1u32 << 23) as f32 - 1.0
    }

    /// One of `choices`.
    pub fn pick<'a>(&mut self, choices: &[&'a str]) -> &'a str {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// `count` words.
    pub fn words(&mut self, count: usize) -> String {
        let words: Vec<&str> = (0..count).map(|_| self.pick(&WORDS)).collect();
        words.join(" ")
    }

    /// `count` hexadecimal digits, which no codec shortens by more than half.
    pub fn hex(&mut self, count: usize) -> String {
        let mut text = String::with_capacity(count + 16);
        while text.len() < count {
            text.push_str(&format!("{:016x}", self.next()));
        }
        text.truncate(count);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Dice;

    #[test]
    fn same_seed_and_label_same_numbers() {
        let draw = |seed, label| Dice::new(seed, label).hex(40);
        assert_eq!(draw(7, "orders"), draw(7, "orders"));
        assert_ne!(draw(7, "orders"), draw(8, "orders"));
        assert_ne!(draw(7, "orders"), draw(7, "events"));
        let mut dice = Dice::new(1, "range");
        assert!((0..1000).all(|_| (-1.0..1.0).contains(&dice.signed())));
    }
}
