//! The windows: everything that an earlier line can change about the answer to a later one.
//!
//! Owns the ids seen, the attempts and sums per customer, and the days on which a prime id was
//! accepted. Four steps share it, and only the last one writes, so a line is either applied whole
//! or not at all:
//!
//! ```text
//!   gate      reads the ids        was this id there before?
//!   features  reads the windows    what does this line meet?
//!   evaluate  reads nothing        which limit does it pass first?
//!   update    writes all of it     id, attempt, and sums if accepted
//! ```
//!
//! Invariants: all four steps of one line come before the first of the next; a sum never exceeds
//! its limit, since only what stays within is added. Windows are kept per day and week for ever,
//! because a line may bear any date, in any order.

use std::collections::{HashMap, HashSet};

use super::decimal_id::DecimalId;
use super::instant::{Day, Instant};
use super::record::Record;
use super::reply::Reason;

/// Attempts that a customer has per day.
const ATTEMPTS_PER_DAY: u32 = 3;
/// What a customer may load per day, in cents.
pub const DAY_LIMIT_CENTS: u64 = 500_000;
/// What a customer may load per week, in cents.
pub const WEEK_LIMIT_CENTS: u64 = 2_000_000;
/// What a line with a prime id may count for under the experiment rules, in cents.
const PRIME_CAP_CENTS: u64 = 999_900;

/// By which rules lines are decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Attempts and sums alone.
    Baseline,
    /// Mondays count double, and prime ids have limits of their own.
    Experiment,
}

/// What became of a line that is no duplicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The amount is loaded.
    Accepted,
    /// A limit was passed.
    Declined(Reason),
}

/// What a line meets: the windows it falls into, as they are before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// What the line counts for in every sum and check.
    pub effective_cents: u64,
    /// The customer's earlier attempts on that day.
    pub attempts: u32,
    /// What the customer loaded on that day.
    pub day_cents: u64,
    /// What the customer loaded in that week.
    pub week_cents: u64,
    /// Whether a prime id was accepted on that day, from anyone.
    pub prime_accepted: bool,
}

impl Features {
    /// Decides: the first limit passed declines, and equal to a limit is allowed.
    pub fn evaluate(&self, record: &Record, rules: Rules) -> Decision {
        let primes_limited = rules == Rules::Experiment && record.id_is_prime();
        let exceeds = |sum: u64, limit: u64| sum.saturating_add(self.effective_cents) > limit;
        let reason = if self.attempts >= ATTEMPTS_PER_DAY {
            Reason::DailyAttemptLimit
        } else if primes_limited && self.effective_cents > PRIME_CAP_CENTS {
            Reason::PrimeAmountCap
        } else if primes_limited && self.prime_accepted {
            Reason::PrimeDailyGlobalLimit
        } else if exceeds(self.day_cents, DAY_LIMIT_CENTS) {
            Reason::DailyAmountLimit
        } else if exceeds(self.week_cents, WEEK_LIMIT_CENTS) {
            Reason::WeeklyAmountLimit
        } else {
            return Decision::Accepted;
        };
        Decision::Declined(reason)
    }
}

/// The state of one stream of lines.
#[derive(Debug, Default)]
pub struct Policy {
    seen: HashMap<DecimalId, Content>,
    days: HashMap<(DecimalId, Day), DayWindow>,
    /// Cents by customer and Monday.
    weeks: HashMap<(DecimalId, Day), u64>,
    prime_days: HashSet<Day>,
}

/// What a repeat must have in common with the first line of its id to be a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Content {
    customer: DecimalId,
    cents: u64,
    instant: Instant,
}

impl Content {
    fn of(record: &Record) -> Self {
        Self { customer: record.customer(), cents: record.cents(), instant: record.instant() }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct DayWindow {
    attempts: u32,
    cents: u64,
}

impl Policy {
    /// Why the line is declined as a duplicate; none if its id is new.
    pub fn gate(&self, record: &Record) -> Option<Reason> {
        let first = self.seen.get(&record.id())?;
        Some(if *first == Content::of(record) {
            Reason::IdDuplicateReplay
        } else {
            Reason::IdDuplicateConflict
        })
    }

    /// Whether the line's id can be kept where so many are at most.
    pub fn has_room_for(&self, record: &Record, max_ids: u64) -> bool {
        (self.seen.len() as u64) < max_ids || self.seen.contains_key(&record.id())
    }

    /// Reads the windows that the line falls into.
    pub fn features(&self, record: &Record, rules: Rules) -> Features {
        let day = record.day();
        let weight = if rules == Rules::Experiment && day.is_monday() { 2 } else { 1 };
        let window = self.days.get(&(record.customer(), day)).copied().unwrap_or_default();
        let week_cents = self.weeks.get(&(record.customer(), day.monday())).copied().unwrap_or_default();
        Features {
            // A record's amount has at most 17 digits, so its double fits.
            effective_cents: record.cents() * weight,
            attempts: window.attempts,
            day_cents: window.cents,
            week_cents,
            prime_accepted: self.prime_days.contains(&day),
        }
    }

    /// Claims the id, counts the attempt, and adds what was accepted. For lines that are no
    /// duplicates.
    pub fn update(&mut self, record: &Record, features: &Features, decision: Decision) {
        let day = record.day();
        self.seen.insert(record.id(), Content::of(record));
        let window = self.days.entry((record.customer(), day)).or_default();
        window.attempts = window.attempts.saturating_add(1);
        if decision == Decision::Accepted {
            window.cents = window.cents.saturating_add(features.effective_cents);
            let week_cents = self.weeks.entry((record.customer(), day.monday())).or_default();
            *week_cents = week_cents.saturating_add(features.effective_cents);
            if record.id_is_prime() {
                self.prime_days.insert(day);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Decision::{Accepted, Declined};

    const SATURDAY: &str = "2000-01-01";
    const MONDAY: &str = "2000-01-03";

    struct Stream {
        policy: Policy,
        rules: Rules,
    }

    impl Stream {
        fn new(rules: Rules) -> Self {
            Self { policy: Policy::default(), rules }
        }

        fn at(&mut self, id: &str, customer: &str, cents: u64, time: &str) -> Decision {
            let id = DecimalId::parse(id).unwrap();
            let customer = DecimalId::parse(customer).unwrap();
            let instant = Instant::parse(time).unwrap();
            let record = Record::new(id, customer, cents, instant, id.is_prime()).unwrap();
            if let Some(repeat) = self.policy.gate(&record) {
                return Declined(repeat);
            }
            let features = self.policy.features(&record, self.rules);
            let decision = features.evaluate(&record, self.rules);
            self.policy.update(&record, &features, decision);
            decision
        }

        fn on(&mut self, id: &str, customer: &str, cents: u64, day: &str) -> Decision {
            self.at(id, customer, cents, &format!("{day}T12:00:00Z"))
        }
    }

    #[test]
    fn equal_to_a_limit_is_allowed() {
        let mut stream = Stream::new(Rules::Baseline);
        // A week's limit in four days, the last of them first: sums do not depend on the order of
        // dates.
        for (id, day) in [("14", "2000-01-09"), ("10", MONDAY), ("12", "2000-01-05"), ("15", "2000-01-06")] {
            assert_eq!(stream.on(id, "1", 500_000, day), Accepted);
        }
        assert_eq!(stream.on("16", "1", 1, MONDAY), Declined(Reason::DailyAmountLimit));
        assert_eq!(stream.on("18", "1", 1, "2000-01-04"), Declined(Reason::WeeklyAmountLimit));
        assert_eq!(stream.on("20", "1", 0, "2000-01-04"), Accepted);
        assert_eq!(stream.on("21", "1", 1, "2000-01-10"), Accepted);
        assert_eq!(stream.on("22", "1", 1, "2000-01-02"), Accepted);
        assert_eq!(stream.on("24", "2", 1, "2000-01-04"), Accepted);
    }

    #[test]
    fn declined_lines_are_attempts_and_claim_their_id() {
        let mut stream = Stream::new(Rules::Baseline);
        for id in ["10", "12", "14"] {
            assert_eq!(stream.on(id, "1", 500_001, SATURDAY), Declined(Reason::DailyAmountLimit));
        }
        assert_eq!(stream.on("15", "1", 1, SATURDAY), Declined(Reason::DailyAttemptLimit));
        assert_eq!(stream.on("15", "1", 1, SATURDAY), Declined(Reason::IdDuplicateReplay));
        assert_eq!(stream.on("15", "1", 1, MONDAY), Declined(Reason::IdDuplicateConflict));
        assert_eq!(stream.on("15", "2", 1, SATURDAY), Declined(Reason::IdDuplicateConflict));
        assert_eq!(stream.on("15", "1", 2, SATURDAY), Declined(Reason::IdDuplicateConflict));
        assert_eq!(stream.on("015", "1", 1, MONDAY), Accepted);
    }

    #[test]
    fn duplicates_are_no_attempts() {
        let mut stream = Stream::new(Rules::Baseline);
        for _ in 0..5 {
            stream.on("10", "1", 1, SATURDAY);
            stream.on("10", "2", 1, SATURDAY);
        }
        assert_eq!(stream.on("12", "1", 1, SATURDAY), Accepted);
        assert_eq!(stream.on("14", "1", 1, SATURDAY), Accepted);
        assert_eq!(stream.on("15", "1", 1, SATURDAY), Declined(Reason::DailyAttemptLimit));
        assert_eq!(stream.on("16", "2", 500_000, SATURDAY), Accepted);
    }

    #[test]
    fn a_replay_is_the_same_instant_however_written() {
        let mut stream = Stream::new(Rules::Baseline);
        stream.at("10", "1", 1, "2000-01-01T00:30:00+01:00");
        assert_eq!(stream.at("10", "1", 1, "1999-12-31t23:30:00.000z"), Declined(Reason::IdDuplicateReplay));
        assert_eq!(
            stream.at("10", "1", 1, "1999-12-31T23:30:00.001Z"),
            Declined(Reason::IdDuplicateConflict)
        );
        assert_eq!(stream.at("10", "01", 1, "1999-12-31T23:30:00Z"), Declined(Reason::IdDuplicateConflict));
    }

    #[test]
    fn mondays_count_double_in_the_experiment() {
        let mut stream = Stream::new(Rules::Experiment);
        assert_eq!(stream.on("10", "1", 250_001, MONDAY), Declined(Reason::DailyAmountLimit));
        assert_eq!(stream.on("12", "1", 250_000, MONDAY), Accepted);
        assert_eq!(stream.on("14", "1", 1, MONDAY), Declined(Reason::DailyAmountLimit));
        // The week took the Monday at its double, too.
        for (id, day) in [("15", "2000-01-04"), ("16", "2000-01-05"), ("18", "2000-01-06")] {
            assert_eq!(stream.on(id, "1", 500_000, day), Accepted);
        }
        assert_eq!(stream.on("20", "1", 1, "2000-01-07"), Declined(Reason::WeeklyAmountLimit));
        // Monday is asked in UTC.
        assert_eq!(stream.at("21", "2", 500_000, "2000-01-03T00:30:00+01:00"), Accepted);
        let monday = stream.at("22", "3", 500_000, "2000-01-02T23:30:00-01:00");
        assert_eq!(monday, Declined(Reason::DailyAmountLimit));
    }

    #[test]
    fn primes_are_limited_in_the_experiment() {
        let mut stream = Stream::new(Rules::Experiment);
        assert_eq!(stream.on("2", "1", 999_901, SATURDAY), Declined(Reason::PrimeAmountCap));
        assert_eq!(stream.on("3", "1", 999_900, SATURDAY), Declined(Reason::DailyAmountLimit));
        // Only an accepted prime closes the day, and then to everyone; the cap still comes first.
        assert_eq!(stream.on("5", "2", 1, SATURDAY), Accepted);
        assert_eq!(stream.on("007", "3", 1, SATURDAY), Declined(Reason::PrimeDailyGlobalLimit));
        assert_eq!(stream.on("11", "3", 1_000_000, SATURDAY), Declined(Reason::PrimeAmountCap));
        assert_eq!(stream.on("4", "3", 1, SATURDAY), Accepted);
        assert_eq!(stream.on("13", "3", 1_000_000, SATURDAY), Declined(Reason::DailyAttemptLimit));
        assert_eq!(stream.on("17", "4", 500_000, MONDAY), Declined(Reason::PrimeAmountCap));
        assert_eq!(stream.on("19", "4", 499_950, MONDAY), Declined(Reason::DailyAmountLimit));
        assert_eq!(stream.on("6", "4", 1, MONDAY), Accepted);
        assert_eq!(stream.on("23", "5", 1, MONDAY), Accepted);
    }

    #[test]
    fn the_greatest_amount_does_not_overflow() {
        let mut stream = Stream::new(Rules::Experiment);
        let decision = stream.on("4", "1", 99_999_999_999_999_999, MONDAY);
        assert_eq!(decision, Declined(Reason::DailyAmountLimit));
    }
}
