//! What travels from node to node: a draft of the answer, which grows with each step.
//!
//! Owns the byte form, and trusts no byte of it: [`Draft::decode`] gives a draft that some line
//! could have led to, or an error, and never panics. Numbers are little-endian.
//!
//! ```text
//!   stage        u8   0 refused   1 parsed   2 measured   3 decided
//!   id           u32 length, text
//!   customer_id  u32 length, text
//!   reason       u8                                                   refused only
//!   record       id u64, customer u64, cents u64,                     from parsed on
//!                seconds i64, fraction u64, id is prime u8
//!   features     effective u64, attempts u32, day u64, week u64,      from measured on
//!                prime accepted u8
//!   decision     u8   255 accepted, else the reason                   decided only
//! ```

use std::fmt;

use super::decimal_id::DecimalId;
use super::instant::Instant;
use super::policy::{DAY_LIMIT_CENTS, Decision, Features, WEEK_LIMIT_CENTS};
use super::record::Record;
use super::reply::Reason;

const REFUSED: u8 = 0;
const PARSED: u8 = 1;
const MEASURED: u8 = 2;
const DECIDED: u8 = 3;
/// In the place of a decision's reason; never a reason's code.
const ACCEPTED: u8 = u8::MAX;

/// The answer to one line, as far as it has come. The texts are what the reply repeats; they are
/// not looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draft<'a> {
    /// The line's id, as far as it could be read.
    pub id: &'a str,
    /// The customer's id, as far as it could be read.
    pub customer_id: &'a str,
    /// How far the line has come.
    pub stage: Stage,
}

/// How far a line has come, and what is known by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Malformed or a duplicate: answered, and nothing may change because of it.
    Refused(Reason),
    /// Well-formed, and once past the gate, new.
    Parsed(Record),
    /// The windows were read.
    Measured(Record, Features),
    /// Decided; the windows take it in next, or have done so.
    Decided(Record, Features, Decision),
}

/// Why bytes are no draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// They end too early.
    Truncated,
    /// They go on too long.
    Trailing,
    /// A text is not UTF-8.
    Text,
    /// A number is out of its range.
    Value,
}

impl fmt::Display for WireError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Truncated => "the draft ends too early",
            Self::Trailing => "the draft goes on too long",
            Self::Text => "a text of the draft is not UTF-8",
            Self::Value => "a number of the draft is out of its range",
        })
    }
}

impl std::error::Error for WireError {}

impl<'a> Draft<'a> {
    /// Appends the byte form.
    ///
    /// # Panics
    ///
    /// If an id has 4 GiB or more; it was part of one frame, and those are smaller.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(match self.stage {
            Stage::Refused(_) => REFUSED,
            Stage::Parsed(_) => PARSED,
            Stage::Measured(..) => MEASURED,
            Stage::Decided(..) => DECIDED,
        });
        put_text(out, self.id);
        put_text(out, self.customer_id);
        match &self.stage {
            Stage::Refused(reason) => out.push(reason.code()),
            Stage::Parsed(record) => put_record(out, record),
            Stage::Measured(record, features) => {
                put_record(out, record);
                put_features(out, features);
            }
            Stage::Decided(record, features, decision) => {
                put_record(out, record);
                put_features(out, features);
                out.push(match decision {
                    Decision::Accepted => ACCEPTED,
                    Decision::Declined(reason) => reason.code(),
                });
            }
        }
    }

    /// Reads the byte form; the texts stay where they are.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, WireError> {
        let mut reader = Reader { rest: bytes };
        let stage = reader.byte()?;
        let id = reader.text()?;
        let customer_id = reader.text()?;
        let stage = match stage {
            REFUSED => Stage::Refused(reader.reason()?),
            PARSED => Stage::Parsed(reader.record()?),
            MEASURED => Stage::Measured(reader.record()?, reader.features()?),
            DECIDED => Stage::Decided(reader.record()?, reader.features()?, reader.decision()?),
            _ => return Err(WireError::Value),
        };
        if !reader.rest.is_empty() {
            return Err(WireError::Trailing);
        }
        Ok(Self { id, customer_id, stage })
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let length = u32::try_from(text.len()).expect("a text is shorter than the frame that brought it");
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn put_record(out: &mut Vec<u8>, record: &Record) {
    let instant = record.instant();
    out.extend_from_slice(&record.id().key().to_le_bytes());
    out.extend_from_slice(&record.customer().key().to_le_bytes());
    out.extend_from_slice(&record.cents().to_le_bytes());
    out.extend_from_slice(&instant.seconds().to_le_bytes());
    out.extend_from_slice(&instant.fraction().to_le_bytes());
    out.push(u8::from(record.id_is_prime()));
}

fn put_features(out: &mut Vec<u8>, features: &Features) {
    out.extend_from_slice(&features.effective_cents.to_le_bytes());
    out.extend_from_slice(&features.attempts.to_le_bytes());
    out.extend_from_slice(&features.day_cents.to_le_bytes());
    out.extend_from_slice(&features.week_cents.to_le_bytes());
    out.push(u8::from(features.prime_accepted));
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (array, rest) = self.rest.split_first_chunk().ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(*array)
    }

    fn byte(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn u64_up_to(&mut self, limit: u64) -> Result<u64, WireError> {
        self.u64().and_then(|value| if value <= limit { Ok(value) } else { Err(WireError::Value) })
    }

    fn flag(&mut self) -> Result<bool, WireError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Value),
        }
    }

    fn text(&mut self) -> Result<&'a str, WireError> {
        let length = usize::try_from(self.u32()?).map_err(|_| WireError::Truncated)?;
        let (text, rest) = self.rest.split_at_checked(length).ok_or(WireError::Truncated)?;
        self.rest = rest;
        std::str::from_utf8(text).map_err(|_| WireError::Text)
    }

    fn decimal_id(&mut self) -> Result<DecimalId, WireError> {
        DecimalId::from_key(self.u64()?).ok_or(WireError::Value)
    }

    fn record(&mut self) -> Result<Record, WireError> {
        let id = self.decimal_id()?;
        let customer = self.decimal_id()?;
        let cents = self.u64()?;
        let seconds = i64::from_le_bytes(self.array()?);
        let instant = Instant::from_parts(seconds, self.u64()?).ok_or(WireError::Value)?;
        Record::new(id, customer, cents, instant, self.flag()?).ok_or(WireError::Value)
    }

    fn features(&mut self) -> Result<Features, WireError> {
        Ok(Features {
            effective_cents: self.u64()?,
            attempts: self.u32()?,
            day_cents: self.u64_up_to(DAY_LIMIT_CENTS)?,
            week_cents: self.u64_up_to(WEEK_LIMIT_CENTS)?,
            prime_accepted: self.flag()?,
        })
    }

    fn reason(&mut self) -> Result<Reason, WireError> {
        Reason::from_code(self.byte()?).ok_or(WireError::Value)
    }

    fn decision(&mut self) -> Result<Decision, WireError> {
        match self.byte()? {
            ACCEPTED => Ok(Decision::Accepted),
            code => Reason::from_code(code).map(Decision::Declined).ok_or(WireError::Value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::generator::Random;
    use super::*;

    fn drafts() -> Vec<Draft<'static>> {
        let id = DecimalId::parse("007").unwrap();
        let customer = DecimalId::parse("999999999999999999").unwrap();
        let instant = Instant::parse("0000-01-01T00:00:00.123456789012345678+23:59").unwrap();
        let record = Record::new(id, customer, 99_999_999_999_999_999, instant, true).unwrap();
        let features = Features {
            effective_cents: 199_999_999_999_999_998,
            attempts: u32::MAX,
            day_cents: DAY_LIMIT_CENTS,
            week_cents: WEEK_LIMIT_CENTS,
            prime_accepted: true,
        };
        let mut stages = vec![
            Stage::Parsed(record),
            Stage::Measured(record, features),
            Stage::Decided(record, features, Decision::Accepted),
        ];
        for reason in Reason::ALL {
            stages.push(Stage::Refused(reason));
            stages.push(Stage::Decided(record, features, Decision::Declined(reason)));
        }
        stages.into_iter().map(|stage| Draft { id: "a\0é\n", customer_id: "", stage }).collect()
    }

    fn encoded(draft: &Draft<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        draft.encode(&mut bytes);
        bytes
    }

    #[test]
    fn drafts_survive_the_way() {
        for draft in drafts() {
            assert_eq!(Draft::decode(&encoded(&draft)), Ok(draft));
        }
        let long = "x".repeat(100_000);
        let draft = Draft { id: &long, customer_id: &long, stage: Stage::Refused(Reason::InputParseError) };
        assert_eq!(Draft::decode(&encoded(&draft)), Ok(draft));
    }

    #[test]
    fn every_length_but_the_right_one_is_refused() {
        for draft in drafts() {
            let mut bytes = encoded(&draft);
            for length in 0..bytes.len() {
                assert_eq!(Draft::decode(&bytes[..length]), Err(WireError::Truncated));
            }
            bytes.push(0);
            assert_eq!(Draft::decode(&bytes), Err(WireError::Trailing));
        }
    }

    #[test]
    fn garbage_never_panics_and_what_passes_is_well_formed() {
        let mut random = Random::new(1);
        for draft in drafts() {
            let bytes = encoded(&draft);
            for _ in 0..2_000 {
                let mut bytes = bytes.clone();
                for _ in 0..=random.below(3) {
                    let at = random.below(bytes.len() as u64) as usize;
                    bytes[at] = random.below(256) as u8;
                }
                if let Ok(draft) = Draft::decode(&bytes) {
                    assert_eq!(encoded(&draft), bytes);
                }
            }
        }
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..random.below(120)).map(|_| random.below(256) as u8).collect();
            let _ = Draft::decode(&bytes);
        }
    }
}
