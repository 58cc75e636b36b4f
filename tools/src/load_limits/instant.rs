//! A point in time, read from text and taken to UTC, and the calendar day it falls on.
//!
//! The form is that of RFC 3339, `YYYY-MM-DDTHH:MM:SS[.fraction]` and a zone, where `T` and `Z` may
//! be small letters. Beyond it, a numeric zone may also be written `+HHMM` or `+HH`, as ISO 8601
//! does. Refused are white space anywhere, a space for the `T`, a comma for the point, missing
//! seconds, second 60, hour 24, offsets from 24 hours up, and years that do not have four digits.
//! Year 0000 exists, `-00:00` is UTC, and an offset may lead out of the four-digit years: the
//! instant is then before or after them.

/// What comes before fraction and zone; letters other than `T` stand for digits.
const HEAD: &[u8] = b"YYYY-MM-DDThh:mm:ss";
/// Seconds in a day; UTC days here all have as many.
const DAY_SECONDS: i64 = 86_400;
/// How many digits of a fraction tell instants apart; further ones are read and dropped.
const FRACTION_DIGITS: usize = 18;
/// One second in units of the last fraction digit kept.
const FRACTION_END: u64 = 10_u64.pow(FRACTION_DIGITS as u32);
/// The greatest offset, 23:59.
const OFFSET_MAX_SECONDS: i64 = DAY_SECONDS - 60;
/// 0000-01-01 and the day after 9999-12-31, in days since 1970-01-01.
const FIRST_DAY: i64 = -719_528;
const END_DAY: i64 = 2_932_897;

/// A point in time in UTC; equal to another if they are the same point, however they were written,
/// as far as the fraction's digits are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instant {
    seconds: i64,
    fraction: u64,
}

impl Instant {
    /// Reads an instant in the form described above.
    pub fn parse(text: &str) -> Option<Self> {
        let (head, rest) = text.as_bytes().split_at_checked(HEAD.len())?;
        let well_formed = HEAD.iter().zip(head).all(|(&form, byte)| match form {
            b'T' => byte.eq_ignore_ascii_case(&form),
            b'-' | b':' => *byte == form,
            _ => byte.is_ascii_digit(),
        });
        if !well_formed {
            return None;
        }
        let day = Day::from_civil(number(&head[..4])?, number(&head[5..7])?, number(&head[8..10])?)?;
        let clock = clock_seconds(&head[11..13], &head[14..16], &head[17..])?;
        let (fraction, zone) = split_fraction(rest)?;
        let seconds = day.0 * DAY_SECONDS + clock - offset_seconds(zone)?;
        Some(Self { seconds, fraction })
    }

    /// Takes back [`seconds`](Self::seconds) and [`fraction`](Self::fraction), and refuses what no
    /// text can mean.
    pub fn from_parts(seconds: i64, fraction: u64) -> Option<Self> {
        let first = FIRST_DAY * DAY_SECONDS - OFFSET_MAX_SECONDS;
        let end = END_DAY * DAY_SECONDS + OFFSET_MAX_SECONDS;
        ((first..end).contains(&seconds) && fraction < FRACTION_END).then_some(Self { seconds, fraction })
    }

    /// Whole seconds since 1970-01-01T00:00:00Z, rounded down.
    pub fn seconds(self) -> i64 {
        self.seconds
    }

    /// What is beyond the whole second, in units of 10^-18 seconds.
    pub fn fraction(self) -> u64 {
        self.fraction
    }

    /// The UTC day.
    pub fn day(self) -> Day {
        Day(self.seconds.div_euclid(DAY_SECONDS))
    }
}

/// A calendar day, as the number of days since 1970-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Day(pub i64);

impl Day {
    /// The day of a date in the Gregorian calendar, which is taken to reach back to year 0; none if
    /// there is no such date.
    pub fn from_civil(year: u32, month: u32, day: u32) -> Option<Self> {
        if !(1..=12).contains(&month) || !(1..=month_days(year, month)).contains(&day) {
            return None;
        }
        // Howard Hinnant's `days_from_civil`, for years from 0: years begin in March, so that the
        // leap day is the last of its year, and one era before, so that nothing is negative.
        let march_year = i64::from(year) + 400 - i64::from(month <= 2);
        let march_month = i64::from((month + 9) % 12);
        let day_of_year = (153 * march_month + 2) / 5 + i64::from(day) - 1;
        let days = march_year * 365 + march_year / 4 - march_year / 100 + march_year / 400 + day_of_year;
        Some(Self(days - 719_468 - 146_097))
    }

    /// Year, month and day of the month.
    pub fn civil(self) -> (i64, i64, i64) {
        // Howard Hinnant's `civil_from_days`.
        let days = self.0 + 719_468;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * march_month + 2) / 5 + 1;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        (year_of_era + era * 400 + i64::from(month <= 2), month, day)
    }

    /// The Monday of this day's week, which may be the day itself.
    pub fn monday(self) -> Self {
        // 1970-01-01 was a Thursday, three days after its Monday.
        Self(self.0 - (self.0 + 3).rem_euclid(7))
    }

    /// Whether this is a Monday.
    pub fn is_monday(self) -> bool {
        self == self.monday()
    }
}

fn month_days(year: u32, month: u32) -> u32 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// The value of a few ASCII digits.
fn number(digits: &[u8]) -> Option<u32> {
    digits
        .iter()
        .try_fold(0, |value, byte| byte.is_ascii_digit().then(|| value * 10 + u32::from(byte - b'0')))
}

fn clock_seconds(hour: &[u8], minute: &[u8], second: &[u8]) -> Option<i64> {
    let (hour, minute, second) = (number(hour)?, number(minute)?, number(second)?);
    let exists = hour <= 23 && minute <= 59 && second <= 59;
    exists.then(|| i64::from(hour * 3600 + minute * 60 + second))
}

/// Splits what follows the seconds into the fraction's value and the zone.
fn split_fraction(rest: &[u8]) -> Option<(u64, &[u8])> {
    let Some(rest) = rest.strip_prefix(b".") else {
        return Some((0, rest));
    };
    let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if count == 0 {
        return None;
    }
    let (digits, zone) = rest.split_at(count);
    let padded = digits.iter().copied().chain(std::iter::repeat(b'0')).take(FRACTION_DIGITS);
    Some((padded.fold(0, |value, byte| value * 10 + u64::from(byte - b'0')), zone))
}

/// How far the zone's clock is ahead of UTC.
fn offset_seconds(zone: &[u8]) -> Option<i64> {
    let (sign, hour, minute) = match zone {
        b"Z" | b"z" => return Some(0),
        &[sign, h0, h1] => (sign, [h0, h1], *b"00"),
        &[sign, h0, h1, m0, m1] | &[sign, h0, h1, b':', m0, m1] => (sign, [h0, h1], [m0, m1]),
        _ => return None,
    };
    let seconds = clock_seconds(&hour, &minute, b"00")?;
    match sign {
        b'+' => Some(seconds),
        b'-' => Some(-seconds),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> i64 {
        Instant::parse(text).unwrap_or_else(|| panic!("{text:?} was refused")).seconds()
    }

    #[test]
    fn known_instants() {
        assert_eq!(seconds("1970-01-01T00:00:00Z"), 0);
        assert_eq!(seconds("2000-01-01T00:00:00Z"), 946_684_800);
        assert_eq!(seconds("2000-02-29T23:59:59z"), 951_868_799);
        assert_eq!(seconds("0000-01-01t00:00:00Z"), FIRST_DAY * DAY_SECONDS);
        assert_eq!(seconds("9999-12-31T23:59:59Z"), END_DAY * DAY_SECONDS - 1);
    }

    #[test]
    fn offsets_move_the_instant_and_the_day() {
        assert_eq!(seconds("2000-01-01T00:30:00+01:00"), seconds("1999-12-31T23:30:00Z"));
        let late = Instant::parse("1999-12-31T23:30:00-01:00").unwrap();
        assert_eq!(late.day(), Day::from_civil(2000, 1, 1).unwrap());
        for same in ["+05:30", "+0530"] {
            assert_eq!(seconds(&format!("2000-01-01T05:30:00{same}")), 946_684_800);
        }
        for utc in ["+00:00", "-00:00", "+00", "-0000"] {
            assert_eq!(seconds(&format!("2000-01-01T00:00:00{utc}")), 946_684_800);
        }
        for edge in ["0000-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"] {
            let instant = Instant::parse(edge).unwrap();
            assert_eq!(Instant::from_parts(instant.seconds(), instant.fraction()), Some(instant));
        }
    }

    #[test]
    fn fractions_are_compared_by_value() {
        let parse = |fraction: &str| Instant::parse(&format!("2000-01-01T00:00:00{fraction}Z")).unwrap();
        assert_eq!(parse(""), parse(".0"));
        assert_eq!(parse(".5"), parse(".5000000000000000000000000000"));
        assert_ne!(parse(".1"), parse(".01"));
        assert_ne!(parse(".000000001"), parse(".000000001000000001"));
    }

    #[test]
    fn refused_forms() {
        for text in [
            "",
            "2000-01-01",
            "2000-01-01T00:00:00",
            "2000-01-01T00:00:00.5",
            "2000-01-01T00:00Z",
            "2000-01-01 00:00:00Z",
            " 2000-01-01T00:00:00Z",
            "2000-01-01T00:00:00Z ",
            "2000-01-01T00:00:00 Z",
            "2000-01-01T00:00:60Z",
            "2000-01-01T24:00:00Z",
            "2000-01-01T00:60:00Z",
            "2000-02-30T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2001-02-29T00:00:00Z",
            "2000-00-01T00:00:00Z",
            "2000-13-01T00:00:00Z",
            "2000-01-00T00:00:00Z",
            "2000-04-31T00:00:00Z",
            "2000-01-01T00:00:00.Z",
            "2000-01-01T00:00:00,5Z",
            "2000-01-01T00:00:00+24:00",
            "2000-01-01T00:00:00+00:60",
            "2000-01-01T00:00:00+1:00",
            "2000-01-01T00:00:00+010",
            "2000-01-01T00:00:00+01:0",
            "2000-01-01T00:00:00+01:",
            "2000-01-01T00:00:00+",
            "2000-01-01T00:00:00+01:00:00",
            "2000-01-01T00:00:00ZZ",
            "2000-01-01T00:00:00UTC",
            "2000-01-01T00:00:00\u{2212}01:00",
            "20000101T000000Z",
            "2000-W01-1T00:00:00Z",
            "+2000-01-01T00:00:00Z",
            "10000-01-01T00:00:00Z",
            "200-01-01T00:00:00Z",
            "2000-1-01T00:00:00Z",
            "2000/01/01T00:00:00Z",
            "２000-01-01T00:00:00Z",
            "2000-01-01T00:00:0٣Z",
            "2000-01-01T-1:00:00Z",
            "2000-01-01T00:00:00 01",
        ] {
            assert_eq!(Instant::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn every_day_of_four_digit_years_goes_there_and_back() {
        let mut expected = FIRST_DAY;
        for year in 0..=9999 {
            for month in 1..=12 {
                for day in 1..=month_days(year, month) {
                    let found = Day::from_civil(year, month, day).unwrap();
                    assert_eq!(found, Day(expected));
                    assert_eq!(found.civil(), (i64::from(year), i64::from(month), i64::from(day)));
                    expected += 1;
                }
            }
        }
        assert_eq!(expected, END_DAY);
    }

    #[test]
    fn weeks_begin_on_monday() {
        let monday = Day::from_civil(2000, 1, 3).unwrap();
        for later in 0..7 {
            assert_eq!(Day(monday.0 + later).monday(), monday);
        }
        assert_eq!(Day(monday.0 - 1).monday(), Day(monday.0 - 7));
        assert!(monday.is_monday() && !Day(monday.0 + 1).is_monday());
        assert!(Day::from_civil(1899, 1, 2).unwrap().is_monday());
    }
}
