//! How values become bytes: deterministic CBOR maps with integer keys.
//!
//! Invariant: one value has one encoding. Decoding a document re-encodes it and compares, so a
//! document that two readers could hash differently does not get in. Fields that this version
//! does not know are kept byte for byte and written back in their place.

use std::collections::BTreeMap;

use crate::limits;

/// Writes into memory, where writing cannot fail.
pub type Enc = minicbor::Encoder<Vec<u8>>;
/// Reads from a slice whose length was bounded before.
pub type Dec<'b> = minicbor::Decoder<'b>;

/// Why bytes are not the document they were taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("the bytes end too early or are damaged ({0})")]
    Malformed(String),
    #[error("this is not a {expected}")]
    WrongKind { expected: &'static str },
    #[error("this {kind} has format version {found}; this build knows versions up to {known}")]
    UnknownVersion { kind: &'static str, found: u64, known: u64 },
    #[error("{what} is {found}, more than the limit of {limit}")]
    TooLarge { what: &'static str, found: u64, limit: u64 },
    #[error("the field {key} of `{record}` is missing")]
    Missing { record: &'static str, key: u32 },
    #[error("{0}")]
    Invalid(String),
    #[error("the encoding is not the canonical one")]
    NotCanonical,
}

impl From<minicbor::decode::Error> for CodecError {
    fn from(e: minicbor::decode::Error) -> Self {
        CodecError::Malformed(e.to_string())
    }
}

/// A value inside a document.
pub trait Wire: Sized {
    /// Appends the value.
    fn put(&self, e: &mut Enc);
    /// Reads the value; never allocates more than the input could fill.
    fn get(d: &mut Dec<'_>) -> Result<Self, CodecError>;
    /// Whether the field is left out of its record.
    fn is_absent(&self) -> bool {
        false
    }
    /// The value of a field that was left out, if it may be.
    fn when_absent() -> Option<Self> {
        None
    }
}

/// A record that stands alone: it begins with its kind and version.
pub trait Document: Wire {
    /// Names the kind in the first bytes.
    const KIND: &'static str;
    /// The newest version this build writes and reads.
    const VERSION: u64;
    /// Longest encoding that is read, in bytes.
    const BYTES_MAX: usize;

    /// Checks what the types alone cannot say.
    fn check(&self) -> Result<(), CodecError> {
        Ok(())
    }

    /// The canonical bytes: `[kind, version, record]`.
    fn to_bytes(&self) -> Vec<u8> {
        let mut e = Enc::new(Vec::new());
        infallible(e.array(3));
        infallible(e.str(Self::KIND));
        infallible(e.u64(Self::VERSION));
        self.put(&mut e);
        e.into_writer()
    }

    /// Reads canonical bytes and checks them.
    fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        if bytes.len() > Self::BYTES_MAX {
            return Err(CodecError::TooLarge {
                what: Self::KIND,
                found: bytes.len() as u64,
                limit: Self::BYTES_MAX as u64,
            });
        }
        let wrong = CodecError::WrongKind { expected: Self::KIND };
        let mut d = Dec::new(bytes);
        if d.array().map_err(|_| wrong.clone())? != Some(3) || d.str().map_err(|_| wrong.clone())? != Self::KIND {
            return Err(wrong);
        }
        let found = d.u64()?;
        if found != Self::VERSION {
            return Err(CodecError::UnknownVersion { kind: Self::KIND, found, known: Self::VERSION });
        }
        let value = Self::get(&mut d)?;
        if d.position() != bytes.len() || value.to_bytes() != bytes {
            return Err(CodecError::NotCanonical);
        }
        value.check()?;
        Ok(value)
    }
}

/// Fields of a record that this version does not know, kept as they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unknown(#[doc(hidden)] pub BTreeMap<u32, Vec<u8>>);

impl Unknown {
    /// How many fields are unknown.
    pub fn len(&self) -> usize {
        self.0.len()
    }
    /// Whether every field was known.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps one field.
    #[doc(hidden)]
    pub fn keep(&mut self, key: u32, raw: Vec<u8>) -> Result<(), CodecError> {
        self.0.insert(key, raw);
        at_most("the number of unknown fields", self.0.len() as u64, limits::UNKNOWN_FIELDS_MAX as u64)
    }
}

/// Unwraps the result of writing to memory.
#[doc(hidden)]
pub fn infallible<T, E: std::fmt::Debug>(r: Result<T, E>) -> T {
    r.expect("writing CBOR to a Vec cannot fail")
}

/// Writes the unknown fields with keys in `from..to`, in order.
#[doc(hidden)]
pub fn put_unknown(e: &mut Enc, unknown: &Unknown, from: u32, to: u64) {
    for (key, raw) in unknown.0.range(from..) {
        if u64::from(*key) >= to {
            break;
        }
        infallible(e.u32(*key));
        e.writer_mut().extend_from_slice(raw);
    }
}

/// Reads the head of a record: how many fields follow.
#[doc(hidden)]
pub fn record_len(d: &mut Dec<'_>) -> Result<u64, CodecError> {
    let left = (d.input().len() - d.position()) as u64;
    match d.map()? {
        Some(n) if n <= left => Ok(n),
        _ => Err(CodecError::NotCanonical),
    }
}

/// Reads the next key and insists on ascending order.
#[doc(hidden)]
pub fn next_key(d: &mut Dec<'_>, last: &mut Option<u32>) -> Result<u32, CodecError> {
    let key = d.u32()?;
    if last.is_some_and(|l| key <= l) {
        return Err(CodecError::NotCanonical);
    }
    *last = Some(key);
    Ok(key)
}

/// Passes over one value of any allowed type and returns its bytes.
///
/// It insists on the canonical form inside too: what this version keeps unread, a newer one will
/// read and re-encode, and both must find the same bytes.
#[doc(hidden)]
pub fn raw_value(d: &mut Dec<'_>) -> Result<Vec<u8>, CodecError> {
    let (input, start) = (d.input(), d.position());
    let end = item_end(input, start, 0)?;
    d.set_position(end);
    Ok(input[start..end].to_vec())
}

fn ended() -> CodecError {
    CodecError::Malformed("end of input".into())
}

/// Where the canonical value that begins at `at` ends.
fn item_end(input: &[u8], at: usize, depth: usize) -> Result<usize, CodecError> {
    if depth > limits::CBOR_DEPTH_MAX {
        return Err(CodecError::TooLarge {
            what: "nesting",
            found: depth as u64,
            limit: limits::CBOR_DEPTH_MAX as u64,
        });
    }
    let first = *input.get(at).ok_or_else(ended)?;
    // A double is the one value whose argument is not a number that could be written shorter.
    if first == 0xfb {
        return content(input, at + 1, 8).map(|_| at + 9);
    }
    let (argument, at) = argument(input, at)?;
    match first >> 5 {
        0 | 1 => Ok(at),
        2 => content(input, at, argument).map(|c| at + c.len()),
        3 => {
            let text = content(input, at, argument)?;
            let valid = std::str::from_utf8(text).map_err(|e| CodecError::Malformed(e.to_string()));
            valid.map(|_| at + text.len())
        }
        4 => (0..argument).try_fold(at, |at, _| item_end(input, at, depth + 1)),
        5 => map_end(input, at, argument, depth),
        7 if matches!(first, 0xf4..=0xf6) => Ok(at),
        _ => Err(CodecError::NotCanonical),
    }
}

/// The argument of the head at `at`, in its shortest form, and where the head ends.
fn argument(input: &[u8], at: usize) -> Result<(u64, usize), CodecError> {
    let info = input[at] & 0x1f;
    if info < 24 {
        return Ok((u64::from(info), at + 1));
    }
    let (len, least) = match info {
        24 => (1, 24),
        25 => (2, 1 << 8),
        26 => (4, 1 << 16),
        27 => (8, 1 << 32),
        _ => return Err(CodecError::NotCanonical),
    };
    let digits = content(input, at + 1, len)?;
    let value = digits.iter().fold(0u64, |v, d| v << 8 | u64::from(*d));
    if value < least {
        return Err(CodecError::NotCanonical);
    }
    Ok((value, at + 1 + digits.len()))
}

fn content(input: &[u8], at: usize, len: u64) -> Result<&[u8], CodecError> {
    let rest = input.get(at..).ok_or_else(ended)?;
    let len = usize::try_from(len).map_err(|_| ended())?;
    rest.get(..len).ok_or_else(ended)
}

/// Keys of a map ascend by their encoded bytes.
fn map_end(input: &[u8], mut at: usize, pairs: u64, depth: usize) -> Result<usize, CodecError> {
    let mut last: Option<&[u8]> = None;
    for _ in 0..pairs {
        let value = item_end(input, at, depth + 1)?;
        let key = &input[at..value];
        if last.is_some_and(|l| key <= l) {
            return Err(CodecError::NotCanonical);
        }
        last = Some(key);
        at = item_end(input, value, depth + 1)?;
    }
    Ok(at)
}

/// Defines a record: a struct, its CBOR map with the given ascending keys, and a place for unknown fields.
///
/// `record! { secret ... }` leaves `Debug` to be written by hand, because a field must not be shown.
#[macro_export]
macro_rules! record {
    ($(#[$doc:meta])* pub struct $($rest:tt)*) => {
        $crate::record! { secret #[derive(Debug)] $(#[$doc])* pub struct $($rest)* }
    };
    (secret $(#[$doc:meta])* pub struct $name:ident { $($(#[$fdoc:meta])* $key:literal => $field:ident : $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq)]
        pub struct $name {
            $($(#[$fdoc])* pub $field: $ty,)*
            /// Fields of a newer version, kept as they came.
            pub unknown: $crate::codec::Unknown,
        }
        impl $crate::codec::Wire for $name {
            fn put(&self, e: &mut $crate::codec::Enc) {
                use $crate::codec as c;
                let known = [$(!c::Wire::is_absent(&self.$field)),*].iter().filter(|p| **p).count();
                c::infallible(e.map((known + self.unknown.len()) as u64));
                let mut from = 0u32;
                $(
                    c::put_unknown(e, &self.unknown, from, $key);
                    from = $key + 1;
                    if !c::Wire::is_absent(&self.$field) {
                        c::infallible(e.u32($key));
                        c::Wire::put(&self.$field, e);
                    }
                )*
                c::put_unknown(e, &self.unknown, from, u64::MAX);
            }
            fn get(d: &mut $crate::codec::Dec<'_>) -> Result<Self, $crate::codec::CodecError> {
                use $crate::codec as c;
                let n = c::record_len(d)?;
                let mut last = None;
                let mut unknown = c::Unknown::default();
                $(let mut $field: Option<$ty> = None;)*
                for _ in 0..n {
                    match c::next_key(d, &mut last)? {
                        $($key => $field = Some(c::Wire::get(d)?),)*
                        other => unknown.keep(other, c::raw_value(d)?)?,
                    }
                }
                Ok(Self {
                    $($field: match $field {
                        Some(v) => v,
                        None => <$ty as c::Wire>::when_absent()
                            .ok_or(c::CodecError::Missing { record: stringify!($name), key: $key })?,
                    },)*
                    unknown,
                })
            }
        }
    };
}

impl Wire for u64 {
    fn put(&self, e: &mut Enc) {
        infallible(e.u64(*self));
    }
    fn get(d: &mut Dec<'_>) -> Result<Self, CodecError> {
        Ok(d.u64()?)
    }
}

impl Wire for u32 {
    fn put(&self, e: &mut Enc) {
        infallible(e.u32(*self));
    }
    fn get(d: &mut Dec<'_>) -> Result<Self, CodecError> {
        Ok(d.u32()?)
    }
}

impl Wire for u8 {
    fn put(&self, e: &mut Enc) {
        infallible(e.u8(*self));
    }
    fn get(d: &mut Dec<'_>) -> Result<Self, CodecError> {
        Ok(d.u8()?)
    }
}

impl Wire for i64 {
    fn put(&self, e: &mut Enc) {
        infallible(e.i64(*self));
    }
    fn get(d: &mut Dec<'_>) -> Result<Self, CodecError> {
        Ok(d.i64()?)
    }
}

/// A flag: left out when false.
impl Wire for bool {
    fn put(&self, e: &mut Enc) {
        infallible(e.bool(*self));
    }
    fn get(d: &mut Dec<'_>) -> Result<Self, CodecError> {
        Ok(d.bool()?)
    }
    fn is_absent(&self) -> bool {
        !*self
    }
    fn when_absent() -> Option<Self> {
        Some(false)
    }
}

/// Text: the input bounds it, [`Document::check`] bounds it closer.
impl Wire for String {
    fn put(&self, e: &mut Enc) {
        infallible(e.str(self));
    }
    fn get(d: &mut Dec<'_>) -> Result<Self, CodecError> {
        Ok(d.str()?.to_string())
    }
}

impl<const N: usize> Wire for [u8; N] {
    fn put(&self, e: &mut Enc) {
        infallible(e.bytes(self));
    }
    fn get(d: &mut Dec<'_>) -> Result<Self, CodecError> {
        let bytes = d.bytes()?;
        bytes.try_into().map_err(|_| CodecError::Invalid(format!("{} bytes where {N} belong", bytes.len())))
    }
}

/// Bytes of any length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bytes(pub Vec<u8>);

impl Wire for Bytes {
    fn put(&self, e: &mut Enc) {
        infallible(e.bytes(&self.0));
    }
    fn get(d: &mut Dec<'_>) -> Result<Self, CodecError> {
        Ok(Bytes(d.bytes()?.to_vec()))
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, e: &mut Enc) {
        if let Some(v) = self {
            v.put(e)
        }
    }
    fn get(d: &mut Dec<'_>) -> Result<Self, CodecError> {
        Ok(Some(T::get(d)?))
    }
    fn is_absent(&self) -> bool {
        self.is_none()
    }
    fn when_absent() -> Option<Self> {
        Some(None)
    }
}

/// A list: left out when empty. Every item takes at least a byte, which bounds the claimed count.
impl<T: Wire> Wire for Vec<T> {
    fn put(&self, e: &mut Enc) {
        infallible(e.array(self.len() as u64));
        for item in self {
            item.put(e);
        }
    }
    fn get(d: &mut Dec<'_>) -> Result<Self, CodecError> {
        let n = d.array()?.ok_or(CodecError::NotCanonical)?;
        let left = (d.input().len() - d.position()) as u64;
        at_most("the length of a list", n, left.min(limits::LIST_ITEMS_MAX))?;
        // The claim may still be far more than the items that are there: grow as they come.
        let mut items = Vec::with_capacity(n.min(1024) as usize);
        for _ in 0..n {
            items.push(T::get(d)?);
        }
        Ok(items)
    }
    fn is_absent(&self) -> bool {
        self.is_empty()
    }
    fn when_absent() -> Option<Self> {
        Some(Vec::new())
    }
}

/// Fails when `found` is more than `limit`.
pub fn at_most(what: &'static str, found: u64, limit: u64) -> Result<(), CodecError> {
    if found > limit {
        return Err(CodecError::TooLarge { what, found, limit });
    }
    Ok(())
}

/// Whether a character could change how a terminal shows the text around it.
pub(crate) fn disturbs(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Fails when a text is empty or too long or holds characters that disturb a terminal (control
/// characters, line and paragraph separators, overrides of the writing direction).
pub fn check_name(what: &'static str, name: &str) -> Result<(), CodecError> {
    if name.is_empty() || name.len() > limits::NAME_BYTES_MAX || name.chars().any(disturbs) {
        return Err(CodecError::Invalid(format!(
            "{what} must have 1 to {} bytes and no control characters",
            limits::NAME_BYTES_MAX
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    record! {
        /// A record of today.
        pub struct Old { 0 => a: u64, 2 => b: Option<String>, 5 => c: Vec<u8> }
    }
    record! {
        /// The same record some versions later.
        pub struct New { 0 => a: u64, 1 => x: String, 2 => b: Option<String>, 3 => y: Vec<u64>, 9 => z: bool }
    }
    impl Document for Old {
        const KIND: &'static str = "t";
        const VERSION: u64 = 1;
        const BYTES_MAX: usize = 1000;
    }
    impl Document for New {
        const KIND: &'static str = "t";
        const VERSION: u64 = 1;
        const BYTES_MAX: usize = 1000;
    }

    fn newer() -> New {
        New { a: 7, x: "x".into(), b: None, y: vec![1, 300], z: true, unknown: Unknown::default() }
    }

    #[test]
    fn unknown_fields_come_back_byte_for_byte() {
        let bytes = newer().to_bytes();
        let old = Old::from_bytes(&bytes).unwrap();
        assert_eq!((old.a, old.b.as_deref(), old.unknown.len()), (7, None, 3));
        assert_eq!(old.to_bytes(), bytes);
        assert_eq!(New::from_bytes(&old.to_bytes()).unwrap(), newer());
    }

    #[test]
    fn another_encoding_of_the_same_value_is_refused() {
        let good = Old { a: 1, b: None, c: vec![], unknown: Unknown::default() }.to_bytes();
        assert!(Old::from_bytes(&good).is_ok());
        // the number 1 written in two bytes
        let mut long = good[..good.len() - 1].to_vec();
        long.extend([0x18, 0x01]);
        assert_eq!(Old::from_bytes(&long), Err(CodecError::NotCanonical));
        let mut trailing = good.clone();
        trailing.push(0);
        assert_eq!(Old::from_bytes(&trailing), Err(CodecError::NotCanonical));
        for cut in 0..good.len() {
            assert!(Old::from_bytes(&good[..cut]).is_err());
        }
    }

    #[test]
    fn a_huge_claim_is_refused_before_allocation() {
        // [ "t", 1, { 5: array of 2^40 } ]
        let mut e = Enc::new(Vec::new());
        e.array(3).unwrap().str("t").unwrap().u64(1).unwrap().map(1).unwrap();
        e.u32(5).unwrap().array(1 << 40).unwrap();
        assert!(matches!(Old::from_bytes(&e.into_writer()), Err(CodecError::TooLarge { .. })));
    }

    #[test]
    fn deep_nesting_in_an_unknown_field_is_refused() {
        let mut e = Enc::new(Vec::new());
        e.array(3).unwrap().str("t").unwrap().u64(1).unwrap().map(2).unwrap();
        e.u32(0).unwrap().u32(1).unwrap().u32(77).unwrap();
        for _ in 0..100 {
            e.array(1).unwrap();
        }
        e.u8(1).unwrap();
        assert!(matches!(Old::from_bytes(&e.into_writer()), Err(CodecError::TooLarge { .. })));
    }

    #[test]
    fn versions_and_kinds_are_named() {
        let mut e = Enc::new(Vec::new());
        e.array(3).unwrap().str("t").unwrap().u64(9).unwrap().map(0).unwrap();
        let text = Old::from_bytes(&e.into_writer()).unwrap_err().to_string();
        assert!(text.contains("version 9") && text.contains("up to 1"), "{text}");
        assert!(matches!(Old::from_bytes(b"\x80"), Err(CodecError::WrongKind { .. })));
    }
}
