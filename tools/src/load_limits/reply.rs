//! One reply line, and the bounded set of reasons that a decline can have.
//!
//! ```text
//!   {"id":"15887","customer_id":"528","accepted":true}
//!   {"id":"15887","customer_id":"528","accepted":false}
//!   {"id":"15887","customer_id":"528","accepted":false,"reason":"DAILY_ATTEMPT_LIMIT"}
//! ```
//!
//! Compact, with a newline. Ids of malformed lines may be any text, so they are escaped; a newline
//! in one does not end the reply early.

/// Why a line is declined. Earlier ones come first where several hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// Not a JSON object with the four strings.
    InputParseError,
    /// An id that is not 1 to 18 digits.
    InvalidIdFormat,
    /// Not an instant.
    InvalidTimestamp,
    /// Not an amount.
    InvalidAmountFormat,
    /// The id came before, with the same content.
    IdDuplicateReplay,
    /// The id came before, with another content.
    IdDuplicateConflict,
    /// The customer has no attempts left on this day.
    DailyAttemptLimit,
    /// Too much for a prime id.
    PrimeAmountCap,
    /// Another prime id was accepted on this day.
    PrimeDailyGlobalLimit,
    /// Too much for one day.
    DailyAmountLimit,
    /// Too much for one week.
    WeeklyAmountLimit,
}

impl Reason {
    /// All reasons; each stands at the place of its [`code`](Self::code).
    pub const ALL: [Self; 11] = [
        Self::InputParseError,
        Self::InvalidIdFormat,
        Self::InvalidTimestamp,
        Self::InvalidAmountFormat,
        Self::IdDuplicateReplay,
        Self::IdDuplicateConflict,
        Self::DailyAttemptLimit,
        Self::PrimeAmountCap,
        Self::PrimeDailyGlobalLimit,
        Self::DailyAmountLimit,
        Self::WeeklyAmountLimit,
    ];

    /// The reason's number between nodes.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The reason of this number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// As replies spell it.
    pub fn text(self) -> &'static str {
        match self {
            Self::InputParseError => "INPUT_PARSE_ERROR",
            Self::InvalidIdFormat => "INVALID_ID_FORMAT",
            Self::InvalidTimestamp => "INVALID_TIMESTAMP",
            Self::InvalidAmountFormat => "INVALID_AMOUNT_FORMAT",
            Self::IdDuplicateReplay => "ID_DUPLICATE_REPLAY",
            Self::IdDuplicateConflict => "ID_DUPLICATE_CONFLICT",
            Self::DailyAttemptLimit => "DAILY_ATTEMPT_LIMIT",
            Self::PrimeAmountCap => "PRIME_AMOUNT_CAP",
            Self::PrimeDailyGlobalLimit => "PRIME_DAILY_GLOBAL_LIMIT",
            Self::DailyAmountLimit => "DAILY_AMOUNT_LIMIT",
            Self::WeeklyAmountLimit => "WEEKLY_AMOUNT_LIMIT",
        }
    }
}

/// Appends the reply to a line with these ids, accepted if there is no reason against it. `reasons`
/// says whether a decline names its own.
pub fn write_reply(out: &mut Vec<u8>, id: &str, customer_id: &str, declined: Option<Reason>, reasons: bool) {
    out.extend_from_slice(br#"{"id":"#);
    write_json_string(out, id);
    out.extend_from_slice(br#","customer_id":"#);
    write_json_string(out, customer_id);
    match declined {
        None => out.extend_from_slice(br#","accepted":true"#),
        Some(_) => out.extend_from_slice(br#","accepted":false"#),
    }
    if let (Some(reason), true) = (declined, reasons) {
        out.extend_from_slice(br#","reason":""#);
        out.extend_from_slice(reason.text().as_bytes());
        out.push(b'"');
    }
    out.extend_from_slice(b"}\n");
}

fn write_json_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string always has a JSON form, and memory takes it");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(id: &str, customer_id: &str, declined: Option<Reason>, reasons: bool) -> String {
        let mut out = Vec::new();
        write_reply(&mut out, id, customer_id, declined, reasons);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_three_forms() {
        let declined = Some(Reason::DailyAttemptLimit);
        assert_eq!(reply("1", "2", None, true), "{\"id\":\"1\",\"customer_id\":\"2\",\"accepted\":true}\n");
        assert_eq!(
            reply("1", "2", declined, false),
            "{\"id\":\"1\",\"customer_id\":\"2\",\"accepted\":false}\n"
        );
        assert_eq!(
            reply("1", "2", declined, true),
            "{\"id\":\"1\",\"customer_id\":\"2\",\"accepted\":false,\"reason\":\"DAILY_ATTEMPT_LIMIT\"}\n"
        );
    }

    #[test]
    fn any_id_stays_one_line_and_reads_back() {
        let id = "a\"b\\c\nd\te\u{1f}f/é\u{2028}\u{10ffff}";
        let line = reply(id, "\r\n", Some(Reason::InputParseError), true);
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((value["id"].as_str(), value["customer_id"].as_str()), (Some(id), Some("\r\n")));
    }

    #[test]
    fn codes_lead_back() {
        for (code, reason) in (0..).zip(Reason::ALL) {
            assert_eq!(reason.code(), code);
            assert_eq!(Reason::from_code(code), Some(reason));
        }
        assert_eq!(Reason::from_code(Reason::ALL.len() as u8), None);
    }
}
