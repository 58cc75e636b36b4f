//! An id of 1 to 18 decimal digits: its key in maps and on the wire, its value, and whether that is
//! prime.
//!
//! Ids are compared as text, so `007` and `7` are two ids of one value. Writing a 1 before the
//! digits and reading the result as a number keeps both in one word: every text has its own key,
//! and no map needs to hold strings.
//!
//! ```text
//!   text   "7"    key  17      value 7
//!   text   "007"  key  1007    value 7
//! ```

/// The most digits that an id may have; with the leading 1 they still fit a `u64`.
pub const MAX_DIGITS: usize = 18;

/// An id of 1 to [`MAX_DIGITS`] ASCII digits, leading zeros kept.
// Invariant of the field: 10^n <= key < 2 * 10^n for an n of 1 to MAX_DIGITS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DecimalId(u64);

impl DecimalId {
    /// Reads `text`, which must consist of ASCII digits alone.
    pub fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || text.len() > MAX_DIGITS {
            return None;
        }
        let key = text
            .bytes()
            .try_fold(1_u64, |key, byte| byte.is_ascii_digit().then(|| key * 10 + u64::from(byte - b'0')))?;
        Some(Self(key))
    }

    /// Takes back what [`key`](Self::key) gave, and refuses any other number.
    pub fn from_key(key: u64) -> Option<Self> {
        let digits = key.checked_ilog10()?;
        let in_range = (1..=MAX_DIGITS as u32).contains(&digits) && key < 2 * 10_u64.pow(digits);
        in_range.then_some(Self(key))
    }

    /// A number that no other id has.
    pub fn key(self) -> u64 {
        self.0
    }

    /// The id as a number; ids that differ in leading zeros share it.
    pub fn value(self) -> u64 {
        self.0 - 10_u64.pow(self.0.ilog10())
    }

    /// Whether the value is a prime number.
    pub fn is_prime(self) -> bool {
        is_prime(self.value())
    }
}

/// The first primes. As Miller-Rabin bases, the first four decide every number below 3,215,031,751
/// (Jaeschke 1993) and all twelve every number below 3.18 * 10^23 (Sorenson and Webster 2015), so
/// nothing here is left to chance.
const BASES: [u64; 12] = [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37];
const FOUR_BASES_BELOW: u64 = 3_215_031_751;

fn is_prime(n: u64) -> bool {
    if n < 2 {
        return false;
    }
    // Settles most composites cheaply, and keeps every base below coprime to n.
    for prime in BASES {
        if n.is_multiple_of(prime) {
            return n == prime;
        }
    }
    let needed = if n < FOUR_BASES_BELOW { 4 } else { BASES.len() };
    BASES[..needed].iter().all(|&base| passes(n, base))
}

/// One round of Miller-Rabin: whether the odd `n` looks prime to `base`.
fn passes(n: u64, base: u64) -> bool {
    let twos = (n - 1).trailing_zeros();
    let mut power = modular_power(base, (n - 1) >> twos, n);
    if power == 1 || power == n - 1 {
        return true;
    }
    for _ in 1..twos {
        power = modular_product(power, power, n);
        if power == n - 1 {
            return true;
        }
    }
    false
}

fn modular_power(mut base: u64, mut exponent: u64, modulus: u64) -> u64 {
    let mut power = 1;
    while exponent > 0 {
        if exponent & 1 == 1 {
            power = modular_product(power, base, modulus);
        }
        base = modular_product(base, base, modulus);
        exponent >>= 1;
    }
    power
}

fn modular_product(a: u64, b: u64, modulus: u64) -> u64 {
    if (a | b) >> 32 == 0 {
        // Fits a word, and a 64-bit remainder costs a fraction of a 128-bit one.
        return a * b % modulus;
    }
    (u128::from(a) * u128::from(b) % u128::from(modulus)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_make_another_id_of_the_same_value() {
        let plain = DecimalId::parse("7").unwrap();
        let padded = DecimalId::parse("007").unwrap();
        assert_ne!(plain, padded);
        assert_eq!(plain.value(), padded.value());
        assert!(plain.is_prime() && padded.is_prime());
        assert_ne!(DecimalId::parse("0"), DecimalId::parse("00"));
    }

    #[test]
    fn only_one_to_eighteen_ascii_digits() {
        let eighteen = DecimalId::parse("999999999999999999").unwrap();
        assert_eq!(eighteen.value(), 999_999_999_999_999_999);
        assert_eq!(DecimalId::parse("000000000000000000").unwrap().value(), 0);
        for text in
            ["", "1234567890123456789", "0000000000000000000", "-1", "+1", "1.0", "1e3", " 1", "٣", "１", "a"]
        {
            assert_eq!(DecimalId::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn only_keys_of_ids_come_back() {
        for text in ["0", "9", "00", "42", "007", "999999999999999999", "000000000000000000"] {
            let id = DecimalId::parse(text).unwrap();
            assert_eq!(DecimalId::from_key(id.key()), Some(id));
        }
        for key in [0, 1, 9, 20, 99, 200, 2_000_000_000_000_000_000, 10_000_000_000_000_000_000, u64::MAX] {
            assert_eq!(DecimalId::from_key(key), None, "{key}");
        }
    }

    #[test]
    fn small_primes_are_those_of_the_sieve() {
        const END: usize = 200_000;
        let mut composite = vec![false; END];
        composite[..2].fill(true);
        for n in 2..END {
            if !composite[n] {
                (n * n..END).step_by(n).for_each(|multiple| composite[multiple] = true);
            }
        }
        for (n, &composite) in composite.iter().enumerate() {
            assert_eq!(is_prime(n as u64), !composite, "{n}");
        }
    }

    #[test]
    fn large_numbers_are_decided_exactly() {
        for prime in [4_294_967_291, 999_999_999_989, 99_999_999_999_999_997, 999_999_999_999_999_989] {
            assert!(is_prime(prime), "{prime}");
        }
        for composite in [
            3_215_031_751,               // passes the first four bases
            341_550_071_728_321,         // passes the first seven
            3_825_123_056_546_413_051,   // passes the first nine
            999_999_999_999_999_999,     // 3 * 3 * ...
            999_999_937 * 999_999_937,   // the square of a prime
            999_999_937 * 1_000_000_007, // two primes of a size
        ] {
            assert!(!is_prime(composite), "{composite}");
        }
    }
}
