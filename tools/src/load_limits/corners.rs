//! The corners of the input form, one line each, for the generator.
//!
//! Owns the lists of unusual values and of unusual lines. Malformed ones and right ones stand side
//! by side: a reader of lines errs by taking the first as well as by refusing the second.
//!
//! In a template `@i` stands for a fresh id, `@c` for a customer, `@t` for an instant, `@a` for an
//! amount.

/// How many different templates there are.
pub(super) const COUNT: u64 = (LINES.len() + IDS.len() + TIMES.len() + AMOUNTS.len()) as u64;

/// The template of this number; beyond [`COUNT`] they begin again.
pub(super) fn template(number: u64) -> Vec<u8> {
    let mut index = (number % COUNT) as usize;
    if let Some(line) = LINES.get(index) {
        return line.to_vec();
    }
    index -= LINES.len();
    let (mut id, mut time, mut amount) = ("@i", "@t", "@a");
    for (field, values) in [(&mut id, IDS), (&mut time, TIMES), (&mut amount, AMOUNTS)] {
        if let Some(value) = values.get(index) {
            *field = value;
            break;
        }
        index -= values.len();
    }
    format!(r#"{{"id":"{id}","customer_id":"@c","load_amount":"{amount}","time":"{time}"}}"#).into_bytes()
}

/// Whole lines.
const LINES: &[&[u8]] = &[
    b"", b"   ", b"\t", b"null", b"true", b"42", b"\"text\"", b"[]", b"not json", b"{", b"{}",
    br#"[{"id":"@i","customer_id":"@c","load_amount":"@a","time":"@t"}]"#,
    br#"{"id":"@i","customer_id":"@c","load_amount":"@a","time":"@t""#,
    br#"{"id":"@i","customer_id":"@c","load_amount":"@a","time":"@t",}"#,
    br#"{"id":"@i","customer_id":"@c","load_amount":"@a","time":"@t"} {}"#,
    br#"{'id':'@i','customer_id':'@c','load_amount':'@a','time':'@t'}"#,
    b"{\"id\":\"@i\",\"customer_id\":\"@c\",\"load_amount\":\"@a\",\"time\":\"@t\",\"note\":\"\xff\xfe\"}",
    b"\xef\xbb\xbf{\"id\":\"@i\",\"customer_id\":\"@c\",\"load_amount\":\"@a\",\"time\":\"@t\"}",
    b"{\"id\":\"@i\",\"customer_id\":\"@c\",\"load_amount\":\"@a\",\"time\":\"@t\",\"note\":\"\x01\"}",
    // A field that is missing or no string.
    br#"{"customer_id":"@c","load_amount":"@a","time":"@t"}"#,
    br#"{"id":"@i","load_amount":"@a","time":"@t"}"#,
    br#"{"id":"@i","customer_id":"@c","time":"@t"}"#,
    br#"{"id":"@i","customer_id":"@c","load_amount":"@a"}"#,
    br#"{"id":@i,"customer_id":"@c","load_amount":"@a","time":"@t"}"#,
    br#"{"id":"@i","customer_id":null,"load_amount":"@a","time":"@t"}"#,
    br#"{"id":"@i","customer_id":"@c","load_amount":12.34,"time":"@t"}"#,
    br#"{"id":"@i","customer_id":"@c","load_amount":"@a","time":["@t"]}"#,
    br#"{"id":"@i","customer_id":"@c","load_amount":"@a","time":"@t","time":0}"#,
    br#"{"Id":"@i","customer_id":"@c","load_amount":"@a","time":"@t"}"#,
    br#"{"id":" x ","customer_id":{},"load_amount":"","time":""}"#,
    // Unusual in more than one field.
    br#"{"id":"@i","customer_id":"@c x","load_amount":"@a","time":"@t"}"#,
    br#"{"id":"@i","customer_id":"","load_amount":"","time":""}"#,
    br#"{"id":" @i\t","customer_id":"\n@c\u00a0","load_amount":"@a","time":"@t"}"#,
    br#"{"id":"999999999999999999","customer_id":"999999999999999999","load_amount":"@a","time":"@t"}"#,
    br#"{"id":"@i","customer_id":"@c","load_amount":"?","time":"yesterday"}"#,
    // JSON that is unusual and right.
    br#"  { "time" : "@t" , "load_amount" : "@a" , "customer_id" : "@c" , "id" : "@i" }  "#,
    br#"{"id":"0","id":"@i","customer_id":"@c","load_amount":"$1","load_amount":"@a","time":0,"time":"@t"}"#,
    br#"{"\u0069d":"@i","customer_id":"@c","load_amount":"@a","time":"@t"}"#,
    br#"{"id":"@i","customer_id":"@c","load_amount":"@a","time":"@t","note":{"id":"0","deep":[[[[[[1e3,null]]]]]]}}"#,
    b"{\"id\":\"@i\",\"customer_id\":\"@c\",\"load_amount\":\"@a\",\"time\":\"@t\"}\r",
];

/// Ids, as they stand between the quotes.
const IDS: &[&str] = &[
    r"@i\ud800",
    "",
    "   ",
    "-@i",
    "@i.0",
    "1234567890123456789",
    r#"a\"b\\c\n\u0001/\u00e9"#,
    r"\u0661\u0662\u0663",
    "00@i",
    r"\u0030@i",
    "999999999999999989",
];

/// Times, likewise.
const TIMES: &[&str] = &[
    "",
    "2000-01-05",
    "2000-01-05T10:00:00",
    "2000-01-05T10:00Z",
    "2000-01-05 10:00:00Z",
    " 2000-01-05T10:00:00Z",
    "2000-02-30T10:00:00Z",
    "2001-02-29T10:00:00Z",
    "1900-02-29T10:00:00Z",
    "2000-13-01T10:00:00Z",
    "2000-01-00T10:00:00Z",
    "2000-01-05T24:00:00Z",
    "2000-01-05T10:60:00Z",
    "2000-12-31T23:59:60Z",
    "2000-01-05T10:00:00.Z",
    "2000-01-05T10:00:00,5Z",
    "2000-01-05T10:00:00+24:00",
    "10000-01-05T10:00:00Z",
    "2000-02-29t10:00:00z",
    "2000-01-05T10:00:00.5Z",
    "2000-01-05T10:00:00.123456789012Z",
    "2000-01-05T10:00:00-00:00",
    "2000-01-05T10:00:00+0530",
    "2000-01-05T10:00:00-08",
    "0000-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59-23:59",
];

/// Amounts, likewise.
const AMOUNTS: &[&str] = &[
    "",
    "$",
    "$12",
    "$12.3",
    "$12.345",
    "$.50",
    "-12.34",
    "$-12.34",
    "+12.34",
    "$1,234.00",
    "$$12.34",
    "USDUSD12.34",
    "usd12.34",
    "EUR 12.34",
    "12.34 USD",
    r"\uff11\uff12.34",
    "1000000000000000.00",
    "999999999999999.99",
    "000000000000012.34",
    "0.00",
    "12.34",
    "USD12.34",
    "USD$12.34",
    "$USD12.34",
    r" U S D\t$ 1 2 . 3 4\u3000",
];
