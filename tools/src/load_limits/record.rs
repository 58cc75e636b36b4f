//! One input line, read and checked: what the `parse` node does.
//!
//! Owns the form of a line and the order of its checks: JSON with four strings, then id, customer,
//! time, amount; the first that fails names the reason. Never looks at any other line.
//!
//! Decisions where a line could be read in more than one way:
//!
//! - A line is one JSON object in UTF-8, without a byte order mark. Of repeated keys the last counts, also
//!   when its value is not a string. Unknown keys are ignored: their values need only be JSON, however deep
//!   they nest and however large their numbers are.
//! - A string with a lone surrogate escape stands for no text, so such a field is not a readable string.
//! - White space is what Unicode calls so. It is trimmed from the ends of ids, removed from amounts
//!   wherever it is, and refused in times.
//! - Digits are ASCII, the currency's letters are capitals, and there is at most one of each sign.

use std::collections::HashMap;

use serde_json::value::RawValue;

use super::decimal_id::DecimalId;
use super::instant::{Day, Instant};
use super::reply::Reason;
use super::wire::{Draft, Stage};

/// The most digits that an amount may have before the point; leading zeros count.
const WHOLE_DIGITS_MAX: usize = 15;
/// The first amount, in cents, that has too many digits.
const CENTS_END: u64 = 10_u64.pow(WHOLE_DIGITS_MAX as u32 + 2);

/// A line as it was read: what the reply repeats of it, and what is to be decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// The id as far as it could be read, trimmed, else empty.
    pub id: String,
    /// The customer's id as far as it could be read, trimmed, else empty.
    pub customer_id: String,
    /// The line's content, or why it is malformed.
    pub content: Result<Record, Reason>,
}

impl Parsed {
    /// What travels to the next node.
    pub fn draft(&self) -> Draft<'_> {
        let stage = match self.content {
            Ok(record) => Stage::Parsed(record),
            Err(reason) => Stage::Refused(reason),
        };
        Draft { id: &self.id, customer_id: &self.customer_id, stage }
    }
}

/// The content of a well-formed line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    id: DecimalId,
    customer: DecimalId,
    cents: u64,
    instant: Instant,
    id_is_prime: bool,
}

impl Record {
    /// A record of these parts; none if no line can state the amount.
    ///
    /// `id_is_prime` is taken as given: finding out is most of what a line costs, so it is done
    /// once, by the node that any number of processes may run.
    pub fn new(
        id: DecimalId,
        customer: DecimalId,
        cents: u64,
        instant: Instant,
        id_is_prime: bool,
    ) -> Option<Self> {
        (cents < CENTS_END).then_some(Self { id, customer, cents, instant, id_is_prime })
    }

    /// The line's id: one key for all customers.
    pub fn id(&self) -> DecimalId {
        self.id
    }

    /// Whose line it is.
    pub fn customer(&self) -> DecimalId {
        self.customer
    }

    /// The amount as stated, before any rule weighs it; at most 17 digits.
    pub fn cents(&self) -> u64 {
        self.cents
    }

    /// When the line says it happened.
    pub fn instant(&self) -> Instant {
        self.instant
    }

    /// The UTC day it counts for.
    pub fn day(&self) -> Day {
        self.instant.day()
    }

    /// Whether the id's value is a prime number.
    pub fn id_is_prime(&self) -> bool {
        self.id_is_prime
    }
}

/// The values as they stand in the line, unread.
type Fields<'a> = HashMap<String, &'a RawValue>;

/// Reads one line, given without its newline; a carriage return at its end is dropped.
pub fn parse_line(line: &[u8]) -> Parsed {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    // Checked as a whole: bytes that are not UTF-8 must not pass because they stand where nobody
    // looks.
    let object =
        std::str::from_utf8(line).ok().and_then(|text| serde_json::from_str::<Fields<'_>>(text).ok());
    let Some(object) = object else {
        return Parsed {
            id: String::new(),
            customer_id: String::new(),
            content: Err(Reason::InputParseError),
        };
    };
    let field = |name| object.get(name).and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
    let (id, customer_id, time, amount) =
        (field("id"), field("customer_id"), field("time"), field("load_amount"));
    let id = id.as_deref().map(str::trim);
    let customer_id = customer_id.as_deref().map(str::trim);
    let content = match (id, customer_id, time.as_deref(), amount.as_deref()) {
        (Some(id), Some(customer_id), Some(time), Some(amount)) => read_fields(id, customer_id, time, amount),
        _ => Err(Reason::InputParseError),
    };
    Parsed {
        id: id.unwrap_or_default().to_owned(),
        customer_id: customer_id.unwrap_or_default().to_owned(),
        content,
    }
}

fn read_fields(id: &str, customer_id: &str, time: &str, amount: &str) -> Result<Record, Reason> {
    let id = DecimalId::parse(id).ok_or(Reason::InvalidIdFormat)?;
    let customer = DecimalId::parse(customer_id).ok_or(Reason::InvalidIdFormat)?;
    let instant = Instant::parse(time).ok_or(Reason::InvalidTimestamp)?;
    let cents = parse_cents(amount).ok_or(Reason::InvalidAmountFormat)?;
    Record::new(id, customer, cents, instant, id.is_prime()).ok_or(Reason::InvalidAmountFormat)
}

fn parse_cents(amount: &str) -> Option<u64> {
    let compact: String = amount.chars().filter(|letter| !letter.is_whitespace()).collect();
    // Longer ones first: `USD` alone would leave the sign of `USD$` behind.
    let prefixes = ["USD$", "$USD", "USD", "$"];
    let digits = prefixes.iter().find_map(|prefix| compact.strip_prefix(prefix)).unwrap_or(&compact);
    let (whole, hundredths) = digits.split_once('.')?;
    if !(1..=WHOLE_DIGITS_MAX).contains(&whole.len()) || hundredths.len() != 2 {
        return None;
    }
    whole
        .bytes()
        .chain(hundredths.bytes())
        .try_fold(0, |cents, byte| byte.is_ascii_digit().then(|| cents * 10 + u64::from(byte - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2000-01-01T00:00:00Z";

    fn with_fields(id: &str, customer_id: &str, amount: &str, time: &str) -> Parsed {
        let object =
            serde_json::json!({"id": id, "customer_id": customer_id, "load_amount": amount, "time": time});
        parse_line(object.to_string().as_bytes())
    }

    fn refused(line: &[u8]) -> (String, String, Reason) {
        let parsed = parse_line(line);
        (parsed.id, parsed.customer_id, parsed.content.expect_err("the line was taken"))
    }

    fn parse_error(id: &str, customer_id: &str) -> (String, String, Reason) {
        (id.to_owned(), customer_id.to_owned(), Reason::InputParseError)
    }

    #[test]
    fn a_plain_line() {
        let parsed = with_fields("15887", "528", "$3318.47", TIME);
        let record = parsed.content.unwrap();
        assert_eq!((parsed.id.as_str(), parsed.customer_id.as_str()), ("15887", "528"));
        assert_eq!((record.id().value(), record.customer().value()), (15887, 528));
        assert_eq!(record.cents(), 331_847);
        assert_eq!(record.day(), Day::from_civil(2000, 1, 1).unwrap());
        assert!(record.id_is_prime());
    }

    #[test]
    fn what_stands_under_unknown_keys_need_only_be_json() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for unknown in ["1e999", "-0.1E-5", r#""\ud800""#, "{\"id\":\"7\"}", "null", &deep] {
            let line = format!(
                r#"{{"x":{unknown},"id":"1","customer_id":"2","load_amount":"$1.00","time":"2000-01-01T00:00:00Z"}}"#
            );
            let parsed = parse_line(line.as_bytes());
            assert!(parsed.content.is_ok(), "{unknown:.20}");
        }
        let line =
            br#"{"id":"1\ud800","customer_id":"2","load_amount":"$1.00","time":"2000-01-01T00:00:00Z"}"#;
        assert_eq!(refused(line), parse_error("", "2"));
    }

    #[test]
    fn what_is_no_object_has_no_ids() {
        let deep = "[".repeat(100_000);
        let deep_inside = format!(r#"{{"id":"1","customer_id":"2","x":{deep}"#);
        for line in [
            &b""[..],
            b"\r",
            b"   ",
            b"\t",
            b"null",
            b"7",
            b"\"id\"",
            b"[]",
            b"[{\"id\":\"1\"}]",
            b"{",
            b"{\"id\":\"1\"",
            b"{\"id\":\"1\",}",
            b"{\"id\":\"1\"}}",
            b"{\"id\":\"1\"} x",
            b"{'id':'1'}",
            b"{\"id\":\"1\"\xff}",
            b"{\"id\":\"1\",\"x\":\"\xff\"}",
            b"\xef\xbb\xbf{\"id\":\"1\"}",
            b"{\"id\":\"1\",\"x\":\"\t\"}",
            b"{\"id\":\"1\",\"x\":NaN}",
            b"{\"id\":\"1\",\"x\":01}",
            b"\xc0\xaf",
            deep.as_bytes(),
            deep_inside.as_bytes(),
        ] {
            assert_eq!(
                refused(line),
                parse_error("", ""),
                "{:?}",
                String::from_utf8_lossy(&line[..line.len().min(80)])
            );
        }
    }

    #[test]
    fn ids_are_given_as_far_as_they_can_be_read() {
        assert_eq!(refused(b"{}"), parse_error("", ""));
        assert_eq!(refused(br#"{"id":" 1 "}"#), parse_error("1", ""));
        assert_eq!(refused(br#"{"id":1,"customer_id":"\t2\n"}"#), parse_error("", "2"));
        assert_eq!(
            refused(br#"{"id":"x","customer_id":null,"load_amount":"?","time":"?"}"#),
            parse_error("x", "")
        );
        // A field that is no string comes before the form of any other.
        assert_eq!(
            refused(br#"{"id":"x","customer_id":"y","load_amount":1.00,"time":"?"}"#),
            parse_error("x", "y")
        );
        assert_eq!(
            refused(br#"{"id":"x","customer_id":"y","load_amount":"?","time":0}"#),
            parse_error("x", "y")
        );
        // Names are exact.
        assert_eq!(
            refused(br#"{"ID":"1","customer_id":"2","load_amount":"1.00","time":"?"}"#),
            parse_error("", "2")
        );
    }

    #[test]
    fn of_repeated_keys_the_last_counts() {
        let line = br#"{"id":1,"id":"2","x":{"id":"3"},"customer_id":"4","load_amount":"$1.00","load_amount":"$2.00",
            "time":"2000-01-01T00:00:00Z"}"#;
        let parsed = parse_line(line);
        assert_eq!(parsed.id, "2");
        assert_eq!(parsed.content.unwrap().cents(), 200);
        assert_eq!(refused(br#"{"id":"2","id":1,"customer_id":"4"}"#), parse_error("", "4"));
    }

    #[test]
    fn checks_come_in_order() {
        let reason =
            |id, customer, amount, time| with_fields(id, customer, amount, time).content.unwrap_err();
        assert_eq!(reason("x", "1", "?", "?"), Reason::InvalidIdFormat);
        assert_eq!(reason("1", "x", "?", "?"), Reason::InvalidIdFormat);
        assert_eq!(reason("1", "1", "?", "?"), Reason::InvalidTimestamp);
        assert_eq!(reason("1", "1", "?", TIME), Reason::InvalidAmountFormat);
        assert_eq!(reason("", "1", "1.00", TIME), Reason::InvalidIdFormat);
        assert_eq!(reason("1", "1234567890123456789", "1.00", TIME), Reason::InvalidIdFormat);
    }

    #[test]
    fn ids_are_trimmed_and_times_are_not() {
        let parsed = with_fields("\u{3000} 007\n", "\u{a0}5\t", "1.00", TIME);
        assert_eq!((parsed.id.as_str(), parsed.customer_id.as_str()), ("007", "5"));
        assert!(parsed.content.is_ok());
        let inner = with_fields(" 1 2 ", "5", "1.00", TIME);
        assert_eq!((inner.id.as_str(), inner.content), ("1 2", Err(Reason::InvalidIdFormat)));
        assert_eq!(
            with_fields("1", "5", "1.00", " 2000-01-01T00:00:00Z").content,
            Err(Reason::InvalidTimestamp)
        );
        // A zero-width space is not white space.
        assert_eq!(with_fields("1\u{200b}", "5", "1.00", TIME).content, Err(Reason::InvalidIdFormat));
    }

    #[test]
    fn amounts() {
        for (text, cents) in [
            ("0.00", 0),
            ("3318.47", 331_847),
            ("$1.00", 100),
            ("USD1.00", 100),
            ("USD$1.00", 100),
            ("$USD1.00", 100),
            (" USD $ 1 000.0 5 ", 100_005),
            ("U S D 1.00", 100),
            ("\u{a0}$\u{2003}7.07\n", 707),
            ("0000012.34", 1234),
            ("999999999999999.99", CENTS_END - 1),
            ("000000000000001.00", 100),
        ] {
            assert_eq!(parse_cents(text), Some(cents), "{text:?}");
        }
        for text in [
            "",
            "$",
            "USD",
            "1",
            "1.",
            "1.0",
            "1.000",
            ".50",
            "$.50",
            "-1.00",
            "$-1.00",
            "-$1.00",
            "+1.00",
            "1,000.00",
            "1000000000000000.00",
            "0000000000000001.00",
            "$$1.00",
            "USDUSD1.00",
            "$USD$1.00",
            "USD$USD1.00",
            "usd1.00",
            "Usd1.00",
            "US$1.00",
            "EUR1.00",
            "€1.00",
            "1.00USD",
            "1.00$",
            "1.0.0",
            "1.00.",
            "1e3.00",
            "0x1.00",
            "(1.00)",
            "1_000.00",
            "１.00",
            "1.٣0",
            "1.é",
            "NaN",
            "inf",
            "1\u{200b}.00",
        ] {
            assert_eq!(parse_cents(text), None, "{text:?}");
        }
    }

    #[test]
    fn one_carriage_return_belongs_to_the_line_end() {
        let line = br#"{"id":"1","customer_id":"2","load_amount":"$3.00","time":"2000-01-01T00:00:00Z"}"#;
        let mut with_return = line.to_vec();
        with_return.push(b'\r');
        assert_eq!(parse_line(line), parse_line(&with_return));
        assert!(parse_line(line).content.is_ok());
    }
}
