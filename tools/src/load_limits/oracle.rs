//! The rules a second time, plainly and slowly, and the comparison of the two.
//!
//! Shares no code with the nodes, and as few ways as possible: it keeps the list of all earlier
//! lines and counts it through for each answer, tells days by adding up years and months, and finds
//! primes by dividing. Never used outside of tests.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;
use serde_json::value::RawValue;

use super::generator::{Random, generate};
use super::policy::{Decision, Policy, Rules};
use super::record::parse_line;
use super::reply::{Reason, write_reply};
use super::wire::{Draft, Stage};
use super::{Options, Step};

const MONDAY_2000_01_03: i64 = 730_487;

struct Entry {
    id: String,
    customer: String,
    cents: u128,
    day: i64,
    second: i64,
    fraction: String,
    /// What it added to the sums, if it was accepted.
    counted: Option<u128>,
}

impl Entry {
    fn week(&self) -> i64 {
        (self.day - MONDAY_2000_01_03).div_euclid(7)
    }
}

struct Oracle {
    options: Options,
    entries: Vec<Entry>,
    primes: HashMap<u64, bool>,
}

impl Oracle {
    fn new(options: Options) -> Self {
        Self { options, entries: Vec::new(), primes: HashMap::new() }
    }

    fn answer(&mut self, line: &[u8]) -> String {
        let text = std::str::from_utf8(line).unwrap_or_default();
        let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text).unwrap_or_default();
        let text = |name: &str| match serde_json::from_str(fields.get(name)?.get()) {
            Ok(Value::String(text)) => Some(text),
            _ => None,
        };
        let trimmed = |name: &str| text(name).map(|text| text.trim_matches(char::is_whitespace).to_string());
        let (id, customer) = (trimmed("id"), trimmed("customer_id"));
        let verdict = match (&id, &customer, text("time"), text("load_amount")) {
            (Some(id), Some(customer), Some(time), Some(amount)) => self.judge(id, customer, &time, &amount),
            _ => Err("INPUT_PARSE_ERROR"),
        };
        let quoted = |text: Option<String>| Value::String(text.unwrap_or_default()).to_string();
        let (accepted, reason) = match verdict {
            Ok(()) => (true, String::new()),
            Err(reason) if self.options.reasons => (false, format!(r#","reason":"{reason}""#)),
            Err(_) => (false, String::new()),
        };
        format!(
            "{{\"id\":{},\"customer_id\":{},\"accepted\":{accepted}{reason}}}\n",
            quoted(id),
            quoted(customer)
        )
    }

    fn judge(&mut self, id: &str, customer: &str, time: &str, amount: &str) -> Result<(), &'static str> {
        for text in [id, customer] {
            if text.is_empty() || text.chars().count() > 18 || text.chars().any(|c| !"0123456789".contains(c))
            {
                return Err("INVALID_ID_FORMAT");
            }
        }
        let (day, second, fraction) = read_time(time).ok_or("INVALID_TIMESTAMP")?;
        let cents = read_amount(amount).ok_or("INVALID_AMOUNT_FORMAT")?;
        let mut entry =
            Entry { id: id.into(), customer: customer.into(), cents, day, second, fraction, counted: None };
        if let Some(first) = self.entries.iter().find(|first| first.id == entry.id) {
            let same = first.customer == entry.customer
                && first.cents == entry.cents
                && (first.day, first.second) == (entry.day, entry.second)
                && first.fraction == entry.fraction;
            return Err(if same { "ID_DUPLICATE_REPLAY" } else { "ID_DUPLICATE_CONFLICT" });
        }
        let verdict = self.limits(&entry);
        entry.counted = verdict.ok();
        self.entries.push(entry);
        verdict.map(|_| ())
    }

    fn limits(&mut self, entry: &Entry) -> Result<u128, &'static str> {
        let experiment = self.options.rules == Rules::Experiment;
        let monday = (entry.day - MONDAY_2000_01_03) % 7 == 0;
        let counts = if experiment && monday { entry.cents + entry.cents } else { entry.cents };

        let same_day = |earlier: &&Entry| earlier.customer == entry.customer && earlier.day == entry.day;
        let same_week =
            |earlier: &&Entry| earlier.customer == entry.customer && earlier.week() == entry.week();
        if self.entries.iter().filter(same_day).count() + 1 > 3 {
            return Err("DAILY_ATTEMPT_LIMIT");
        }
        let day_sum: u128 = self.entries.iter().filter(same_day).filter_map(|earlier| earlier.counted).sum();
        let week_sum: u128 =
            self.entries.iter().filter(same_week).filter_map(|earlier| earlier.counted).sum();
        if experiment && prime(&mut self.primes, &entry.id) {
            if counts > 999_900 {
                return Err("PRIME_AMOUNT_CAP");
            }
            let primes = &mut self.primes;
            let mut accepted =
                self.entries.iter().filter(|old| old.counted.is_some() && old.day == entry.day);
            if accepted.any(|old| prime(primes, &old.id)) {
                return Err("PRIME_DAILY_GLOBAL_LIMIT");
            }
        }
        if day_sum + counts > 500_000 {
            return Err("DAILY_AMOUNT_LIMIT");
        }
        if week_sum + counts > 2_000_000 {
            return Err("WEEKLY_AMOUNT_LIMIT");
        }
        Ok(counts)
    }
}

fn prime(known: &mut HashMap<u64, bool>, id: &str) -> bool {
    let value: u64 = id.parse().expect("an id was checked to be digits");
    *known.entry(value).or_insert_with(|| {
        if value < 2 {
            return false;
        }
        for divisor in 2..1_000_000 {
            if divisor * divisor > value {
                return true;
            }
            if value.is_multiple_of(divisor) {
                return false;
            }
        }
        // Below 10^18 and without a small divisor: a prime, or the product of two. Fermat's test is
        // fooled by such a product only for few bases, and never by chance for all of these.
        let fermat = |base: u128| {
            let modulus = u128::from(value);
            let bits = (0..64).rev().map(|bit| ((value - 1) >> bit) & 1 == 1);
            bits.fold(1, |power, bit| power * power % modulus * if bit { base } else { 1 } % modulus) == 1
        };
        [2, 3, 5, 7, 11, 13, 17, 19, 23, 29].into_iter().all(fermat)
    })
}

fn digits(text: &str, count: usize) -> Option<i64> {
    let right = text.len() == count && text.chars().all(|c| c.is_ascii_digit());
    if right { text.parse().ok() } else { None }
}

/// Day since 0000-01-01, second of the day, and the fraction's digits without zeros at the end.
fn read_time(text: &str) -> Option<(i64, i64, String)> {
    let (date, clock) = text.split_once(['T', 't'])?;
    let [year, month, day] = date.split('-').collect::<Vec<_>>().try_into().ok()?;
    let (year, month, day) = (digits(year, 4)?, digits(month, 2)?, digits(day, 2)?);
    let leap = |year: i64| (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let february = if leap(year) { 29 } else { 28 };
    let months = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let month_length = *months.get(usize::try_from(month - 1).ok()?)?;
    if day < 1 || day > month_length {
        return None;
    }
    let days = (0..year).map(|year| if leap(year) { 366 } else { 365 }).sum::<i64>()
        + months[..month as usize - 1].iter().sum::<i64>()
        + day
        - 1;

    let zone_at = clock.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = clock.split_at(zone_at);
    let offset_minutes = if zone.eq_ignore_ascii_case("z") {
        0
    } else {
        let (sign, offset) = (zone.starts_with('-'), zone.get(1..)?);
        let (hours, minutes) = match offset.split_once(':') {
            Some((hours, minutes)) => (digits(hours, 2)?, digits(minutes, 2)?),
            None if offset.len() == 2 => (digits(offset, 2)?, 0),
            None => (digits(offset, 4)? / 100, digits(offset, 4)? % 100),
        };
        if hours > 23 || minutes > 59 {
            return None;
        }
        (hours * 60 + minutes) * if sign { -1 } else { 1 }
    };

    let (whole, fraction) = match clock.split_once('.') {
        Some((_, "")) => return None,
        Some((whole, fraction)) => (whole, fraction),
        None => (clock, ""),
    };
    if fraction.chars().any(|c| !c.is_ascii_digit()) {
        return None;
    }
    let fraction: String = fraction.chars().take(18).collect();
    let [hour, minute, second] = whole.split(':').collect::<Vec<_>>().try_into().ok()?;
    let (hour, minute, second) = (digits(hour, 2)?, digits(minute, 2)?, digits(second, 2)?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut second = hour * 3600 + minute * 60 + second - offset_minutes * 60;
    let mut day = days;
    while second < 0 {
        second += 86_400;
        day -= 1;
    }
    while second >= 86_400 {
        second -= 86_400;
        day += 1;
    }
    Some((day, second, fraction.trim_end_matches('0').to_string()))
}

fn read_amount(text: &str) -> Option<u128> {
    let text = text.split(char::is_whitespace).collect::<String>();
    let sign = text.find(|c: char| c.is_ascii_digit())?;
    let (sign, number) = text.split_at(sign);
    if !["", "$", "USD", "USD$", "$USD"].contains(&sign) {
        return None;
    }
    let point = number.len().checked_sub(3)?;
    let (whole, rest) = (number.get(..point)?, number.get(point..)?);
    let hundredths = digits(rest.strip_prefix('.')?, 2)?;
    let whole = if whole.len() > 15 { None } else { digits(whole, whole.len()) }?;
    Some(whole as u128 * 100 + hundredths as u128)
}

/// The nodes as the engine runs them, one line at a time and through the byte form between any two.
struct Pipeline {
    options: Options,
    policy: Policy,
}

impl Pipeline {
    fn new(options: Options) -> Self {
        Self { options, policy: Policy::default() }
    }

    fn answer(&mut self, line: &[u8]) -> (String, Option<Reason>) {
        let mut bytes = Vec::new();
        parse_line(line).draft().encode(&mut bytes);
        for step in Step::ALL {
            let draft = Draft::decode(&bytes).expect("a draft arrives as it was sent");
            let next =
                step.advance(draft, &mut self.policy, self.options.rules).expect("steps come in order");
            let mut next_bytes = Vec::new();
            next.encode(&mut next_bytes);
            bytes = next_bytes;
        }
        let draft = Draft::decode(&bytes).expect("a draft arrives as it was sent");
        let declined = match draft.stage {
            Stage::Refused(reason) | Stage::Decided(_, _, Decision::Declined(reason)) => Some(reason),
            Stage::Decided(_, _, Decision::Accepted) => None,
            other => panic!("not decided: {other:?}"),
        };
        let mut reply = Vec::new();
        write_reply(&mut reply, draft.id, draft.customer_id, declined, self.options.reasons);
        (String::from_utf8(reply).expect("replies are UTF-8"), declined)
    }
}

fn generated_lines(count: u64, seed: u64) -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    generate(count, seed, &mut bytes).expect("memory takes it");
    bytes.split(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect()
}

/// Compares both on the same lines, and says which reasons occurred.
fn compare(lines: &[Vec<u8>], options: Options) -> BTreeSet<&'static str> {
    let mut oracle = Oracle::new(options);
    let mut pipeline = Pipeline::new(options);
    let mut reasons = BTreeSet::new();
    for (number, line) in lines.iter().enumerate() {
        let expected = oracle.answer(line);
        let (found, reason) = pipeline.answer(line);
        assert_eq!(found, expected, "line {number} under {options:?}: {}", String::from_utf8_lossy(line));
        assert!(found.ends_with('\n') && found.matches('\n').count() == 1);
        reasons.extend(reason.map(Reason::text));
    }
    reasons
}

fn all_options() -> impl Iterator<Item = Options> {
    [Rules::Baseline, Rules::Experiment].into_iter().flat_map(|rules| {
        [false, true].map(|reasons| Options { rules, reasons, max_ids: None, split_ms: None })
    })
}

#[test]
fn both_agree_on_generated_lines() {
    for seed in 1..=6 {
        let lines = generated_lines(1200, seed);
        let reasons: BTreeSet<_> = all_options().flat_map(|options| compare(&lines, options)).collect();
        for reason in Reason::ALL {
            assert!(reasons.contains(reason.text()), "{} does not occur with seed {seed}", reason.text());
        }
    }
}

#[test]
fn both_agree_on_mutated_lines() {
    const NOTABLE: &[u8] = b"\"\\{}:,.$+-TZtz 0123456789\r\n\0\xff";
    for seed in 1..=8 {
        let mut random = Random::new(1000 + seed);
        let mut lines = generated_lines(600, seed);
        for line in &mut lines {
            for _ in 0..random.below(4) {
                if line.is_empty() {
                    break;
                }
                let at = random.below(line.len() as u64) as usize;
                let notable = NOTABLE[random.below(NOTABLE.len() as u64) as usize];
                match random.below(4) {
                    0 => line[at] ^= 1 << random.below(8),
                    1 => line[at] = notable,
                    2 => line.insert(at, notable),
                    _ => drop(line.remove(at)),
                }
            }
        }
        for options in all_options() {
            compare(&lines, options);
        }
    }
}

#[test]
fn both_agree_where_ids_and_times_are_dense() {
    // Few ids, customers, days and amounts, so that nearly every line meets an earlier one.
    let mut random = Random::new(7);
    let amounts = ["$0.00", "$0.01", "2500.00", "USD 2500.01", "5000.00", "$4999.50", "$9999.00", "9999.01"];
    let zones =
        ["Z", "z", "+00:00", "-01:00", "+0100", "-08", ".50Z", ".5+00", "+14:00", ".499999999999999999Z"];
    for _ in 0..40 {
        let lines: Vec<Vec<u8>> = (0..400)
            .map(|_| {
                let id = format!("{:0width$}", random.below(500), width = random.below(4) as usize);
                let customer = random.below(4);
                let day = 1 + random.below(20);
                let hour = [0, 12, 23][random.below(3) as usize];
                let amount = amounts[random.below(amounts.len() as u64) as usize];
                let zone = zones[random.below(zones.len() as u64) as usize];
                let time = format!("2000-01-{day:02}T{hour:02}:30:00{zone}");
                format!(
                    r#"{{"id":"{id}","customer_id":"{customer}","load_amount":"{amount}","time":"{time}"}}"#
                )
                .into_bytes()
            })
            .collect();
        for options in all_options() {
            compare(&lines, options);
        }
    }
}
