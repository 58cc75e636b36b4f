//! Input for the demonstration: believable lines, with every rule, every corner and every kind of
//! malformed line among them.
//!
//! The same number of lines and the same seed give the same bytes, on every machine. Memory stays
//! small however many lines are asked for: a few recent lines to repeat, and the rest of the scene
//! under way.
//!
//! Lines end in a newline, some in a carriage return and a newline, and the last one in neither.
//! They need not be UTF-8.

use std::collections::VecDeque;
use std::io::{self, Write};

use super::corners;
use super::decimal_id::DecimalId;
use super::instant::Day;

/// How many lines are remembered for being repeated.
const RECENT: usize = 64;
/// Customers of believable lines; with `LINES_PER_DAY`, each comes a bit more than once a day.
const CUSTOMERS: u64 = 64;
const LINES_PER_DAY: u64 = 100;
/// Scenes play in weeks of their own before this Monday, 1999-11-01, each a week earlier than the
/// last.
const SCENE_MONDAY: Day = Day(10_896);
/// After so many weeks, scenes begin again at the top: dates keep to four-digit years.
const SCENE_WEEKS: u64 = 90_000;
/// 2000-01-01.
const FIRST_DAY: Day = Day(10_957);
/// After so many days, believable lines begin again at the first.
const LAST_DAYS: u64 = 2_000_000;

/// Writes `lines` lines; `seed` chooses which.
pub fn generate(lines: u64, seed: u64, out: &mut impl Write) -> io::Result<()> {
    let mut source = Source::new(seed);
    for line in 1..=lines {
        if line == lines {
            // Never an empty one: without a newline behind it, it would be no line.
            return out.write_all(&source.believable());
        }
        out.write_all(&source.next_line())?;
        out.write_all(if source.random.below(20) == 0 { b"\r\n" } else { b"\n" })?;
    }
    Ok(())
}

/// Numbers that look random and are the same for the same seed: SplitMix64 (Steele, Lea and Flood
/// 2014).
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`. Slightly uneven, which matters to nobody here.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// What a well-formed line says.
#[derive(Clone, Debug)]
struct Load {
    id: String,
    customer: u64,
    cents: u64,
    day: Day,
    second: u64,
}

impl Load {
    fn amount(&self) -> String {
        format!("{}.{:02}", self.cents / 100, self.cents % 100)
    }

    fn clock(&self) -> String {
        format!("{:02}:{:02}:{:02}", self.second / 3600, self.second / 60 % 60, self.second % 60)
    }

    fn line(&self) -> Vec<u8> {
        self.line_with(&format!("${}", self.amount()), &format!("{}T{}Z", date(self.day), self.clock()))
    }

    /// The same content in other words.
    fn disguised_line(&self) -> Vec<u8> {
        self.line_with(
            &format!("USD$ {}", self.amount()),
            &format!("{}t{}.000-00:00", date(self.day), self.clock()),
        )
    }

    fn line_with(&self, amount: &str, time: &str) -> Vec<u8> {
        let Self { id, customer, .. } = self;
        format!(r#"{{"id":"{id}","customer_id":"{customer}","load_amount":"{amount}","time":"{time}"}}"#)
            .into_bytes()
    }
}

fn date(day: Day) -> String {
    let (year, month, day) = day.civil();
    format!("{year:04}-{month:02}-{day:02}")
}

struct Source {
    random: Random,
    next_id: u64,
    believable_lines: u64,
    corners: u64,
    scenes: u64,
    recent: VecDeque<Load>,
    /// The rest of the scene under way.
    script: VecDeque<Vec<u8>>,
}

impl Source {
    fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            next_id: 10_000,
            believable_lines: 0,
            corners: 0,
            scenes: 0,
            recent: VecDeque::with_capacity(RECENT),
            script: VecDeque::new(),
        }
    }

    fn next_line(&mut self) -> Vec<u8> {
        if let Some(line) = self.script.pop_front() {
            return line;
        }
        match self.random.below(100) {
            0..16 => self.corner(),
            16..26 => self.repeat(),
            26..33 => {
                self.write_scene();
                self.script.pop_front().unwrap_or_default()
            }
            _ => self.believable(),
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1 + self.random.below(7);
        self.next_id
    }

    fn id_that_is(&mut self, prime: bool) -> String {
        loop {
            let id = self.id().to_string();
            if DecimalId::parse(&id).is_some_and(|id| id.is_prime() == prime) {
                return id;
            }
        }
    }

    fn believable(&mut self) -> Vec<u8> {
        let customer = 1 + self.random.below(CUSTOMERS);
        // Every eighth customer loads enough to meet the week's limit.
        let cents = if customer.is_multiple_of(8) {
            350_000 + self.random.below(160_000)
        } else {
            self.random.below(400_000)
        };
        let day = (self.believable_lines / LINES_PER_DAY) % LAST_DAYS;
        // Some lines come late, and fall into windows that are already there.
        let late = if self.random.below(20) == 0 { self.random.below(9).min(day) } else { 0 };
        let second =
            (self.believable_lines % LINES_PER_DAY) * (86_400 / LINES_PER_DAY) + self.random.below(800);
        self.believable_lines += 1;
        let load = Load {
            id: self.id().to_string(),
            customer,
            cents,
            day: Day(FIRST_DAY.0 + (day - late) as i64),
            second,
        };
        let line = load.line();
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(load);
        line
    }

    /// A recent id again: the same line, the same content in other words, or another content.
    fn repeat(&mut self) -> Vec<u8> {
        if self.recent.is_empty() {
            return self.believable();
        }
        let mut load = self.recent[self.random.below(self.recent.len() as u64) as usize].clone();
        match self.random.below(6) {
            0 | 1 => return load.line(),
            2 => return load.disguised_line(),
            3 => load.customer += 1,
            4 => load.cents += 1,
            _ => load.day.0 += 1,
        }
        load.line()
    }

    fn corner(&mut self) -> Vec<u8> {
        let template = corners::template(self.corners);
        self.corners += 1;
        let id = self.id().to_string();
        let customer = (1 + self.random.below(CUSTOMERS)).to_string();
        let day = (self.believable_lines / LINES_PER_DAY) % LAST_DAYS;
        let time = format!("{}T12:00:00Z", date(Day(FIRST_DAY.0 + day as i64)));
        let amount = format!("${}.{:02}", self.random.below(100), self.random.below(100));
        let mut line = Vec::with_capacity(template.len() + 64);
        let mut rest = template.into_iter();
        while let Some(byte) = rest.next() {
            if byte != b'@' {
                line.push(byte);
                continue;
            }
            line.extend_from_slice(match rest.next() {
                Some(b'i') => id.as_bytes(),
                Some(b'c') => customer.as_bytes(),
                Some(b't') => time.as_bytes(),
                _ => amount.as_bytes(),
            });
        }
        line
    }

    /// Puts the lines of the next scene into the script: a customer and a week of its own, and one
    /// rule shown at its very edge.
    fn write_scene(&mut self) {
        let monday = Day(SCENE_MONDAY.0 - 7 * (self.scenes % SCENE_WEEKS) as i64);
        let mut scene = Scene { customer: 1_000_000 + self.scenes, monday, source: self };
        match scene.source.scenes % 7 {
            0 => {
                // A day filled to its limit, and a cent.
                scene.composite(1, 500_001);
                scene.composite(1, 500_000);
                scene.composite(1, 1);
            }
            1 => {
                // A week filled to its limit from Tuesday to Friday, a cent, and the Sunday before.
                for weekday in [4, 1, 3, 2] {
                    scene.composite(weekday, 500_000);
                }
                scene.composite(6, 1);
                scene.composite(-1, 1);
            }
            2 => {
                // Declined lines are attempts, and the fourth is one too many.
                for _ in 0..3 {
                    scene.composite(2, 600_000);
                }
                scene.composite(2, 100);
            }
            3 => {
                // The amount that a prime may have, one more, and one prime a day.
                scene.prime(3, 999_901);
                scene.prime(3, 999_900);
                scene.prime(3, 100);
                scene.customer += 1_000_000_000;
                scene.prime(3, 100);
                scene.composite(3, 100);
            }
            4 => {
                // A Monday, where half is as much.
                scene.composite(0, 250_001);
                scene.composite(0, 250_000);
                scene.composite(0, 1);
                scene.prime(0, 499_951);
            }
            5 => {
                // Offsets that move the day across midnight, in both directions.
                for (weekday, clock) in [(0, "23:30:00-01:00"), (1, "00:10:00Z"), (2, "00:30:00+01:00")] {
                    let time = format!("{}T{clock}", date(Day(monday.0 + weekday)));
                    let line = scene.load(false, weekday, 200_000).line_with("$2000.00", &time);
                    scene.source.script.push_back(line);
                }
                scene.composite(1, 1);
            }
            _ => {
                // One value, three ids; the third line repeats the second's instant by another
                // clock.
                let mut load = scene.load(false, 4, 4200);
                for zeros in ["", "0", "00"] {
                    load.id.insert_str(0, zeros);
                    scene.source.script.push_back(load.line());
                }
                let time = format!("{}T02:00:00+14:00", date(load.day));
                scene.source.script.push_back(load.line_with("42.00", &time));
            }
        }
        self.scenes += 1;
    }
}

struct Scene<'a> {
    customer: u64,
    monday: Day,
    source: &'a mut Source,
}

impl Scene<'_> {
    fn composite(&mut self, weekday: i64, cents: u64) {
        let line = self.load(false, weekday, cents).line();
        self.source.script.push_back(line);
    }

    fn prime(&mut self, weekday: i64, cents: u64) {
        let line = self.load(true, weekday, cents).line();
        self.source.script.push_back(line);
    }

    fn load(&mut self, prime: bool, weekday: i64, cents: u64) -> Load {
        let id = self.source.id_that_is(prime);
        Load { id, customer: self.customer, cents, day: Day(self.monday.0 + weekday), second: 43_200 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the command bundles.
    const SAMPLE: &[u8] = include_bytes!("../../samples/load_limits.ndjson");

    fn generated(lines: u64, seed: u64) -> Vec<u8> {
        let mut out = Vec::new();
        generate(lines, seed, &mut out).unwrap();
        out
    }

    #[test]
    fn the_sample_is_what_the_generator_makes() {
        assert!(generated(1200, 1) == SAMPLE, "generate 1200 lines with seed 1 anew");
    }

    #[test]
    fn as_many_lines_as_asked_for() {
        for lines in [0, 1, 2, 500] {
            for seed in 0..20 {
                let bytes = generated(lines, seed);
                let newlines = bytes.iter().filter(|&&byte| byte == b'\n').count() as u64;
                assert_eq!(newlines, lines.saturating_sub(1));
                assert_eq!(bytes.is_empty(), lines == 0);
                assert_ne!(bytes.last(), Some(&b'\n'));
            }
        }
    }

    #[test]
    fn seeds_differ() {
        assert_ne!(generated(100, 1), generated(100, 2));
    }

    #[test]
    fn the_sample_has_every_corner_and_scene() {
        let mut source = Source::new(1);
        for _ in 1..1200 {
            source.next_line();
            source.random.below(20);
        }
        assert!(source.corners >= corners::COUNT, "{} of {} corners", source.corners, corners::COUNT);
        assert!(source.scenes >= 7);
    }
}
