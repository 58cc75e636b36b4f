//! Interleaved rounds: every subject has a short turn in each, so that what the host does to one it does to all.

use std::time::{Duration, Instant};

use crate::figures::{Figures, Latency, Ratios, Slice, median};
use crate::processors::{Place, allowed, pin};

/// Something that is measured.
pub trait Subject<E> {
    /// Gets ready, on any processor; not measured.
    fn wake(&mut self) -> Result<(), E> {
        Ok(())
    }

    /// Measures for about so long.
    fn slice(&mut self, time: Duration) -> Result<Slice, E>;

    /// Leaves the processors to the others.
    fn rest(&mut self) {}
}

/// Which figure of a subject is compared with which other subject's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beside {
    /// The median time.
    Time,
    /// How often in a second.
    Rate,
}

struct Entry<'a, E> {
    subject: Box<dyn Subject<E> + 'a>,
    caller: Vec<usize>,
    latency: Latency,
    rounds: Vec<Round>,
}

struct Round {
    figures: Figures,
    per_s: f64,
    evenness: Option<f64>,
}

/// Subjects that take turns.
pub struct Contest<'a, E> {
    entries: Vec<Entry<'a, E>>,
}

impl<E> Default for Contest<'_, E> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<'a, E> Contest<'a, E> {
    /// Adds a subject, whose calling side runs at this place; gives its number.
    pub fn add(&mut self, place: &Place, subject: impl Subject<E> + 'a) -> usize {
        let (latency, rounds) = (Slice::empty().latency, Vec::new());
        self.entries.push(Entry {
            subject: Box::new(subject),
            caller: place.caller.clone(),
            latency,
            rounds,
        });
        self.entries.len() - 1
    }

    /// Has all of them take turns of `slice` each, until `time` has passed, `least` rounds at the least. The order
    /// changes from round to round.
    pub fn run(&mut self, time: Duration, slice: Duration, least: usize) -> Result<(), E> {
        let begin = Instant::now();
        for round in 0.. {
            if round >= least && begin.elapsed() >= time {
                break;
            }
            let count = self.entries.len();
            for turn in 0..count {
                let index = if round % 2 == 0 { turn } else { count - 1 - turn };
                self.entries[index].turn(slice)?;
            }
        }
        Ok(())
    }

    /// What subject `index` came to, beside `reference`.
    pub fn measured(&self, index: usize, reference: Option<usize>, beside: Beside) -> Measured {
        let entry = &self.entries[index];
        let of = |entry: &Entry<'a, E>| -> Vec<f64> {
            let figure = |round: &Round| match beside {
                Beside::Time => round.figures.p50_ns as f64,
                Beside::Rate => round.per_s,
            };
            entry.rounds.iter().map(figure).collect()
        };
        let ratios = |own: Vec<f64>, other: Vec<f64>| {
            Ratios::of(own.into_iter().zip(other).map(|(own, other)| own / other).collect())
        };
        let p99 = |entry: &Entry<'a, E>| -> Vec<f64> {
            entry.rounds.iter().map(|round| round.figures.p99_ns as f64).collect()
        };
        let reference = reference.map(|index| &self.entries[index]);
        let evenness = entry.rounds.iter().filter_map(|round| round.evenness).collect::<Vec<_>>();
        Measured {
            latency: entry.latency.clone(),
            figures: of(entry),
            per_s: median(entry.rounds.iter().map(|round| round.per_s).collect()),
            evenness: (!evenness.is_empty()).then(|| median(evenness)),
            limit: reference.map(|reference| reference.latency.clone()),
            limit_per_s: reference
                .map(|reference| median(reference.rounds.iter().map(|round| round.per_s).collect())),
            ratio: reference.and_then(|reference| ratios(of(entry), of(reference))),
            ratio_p99: reference.and_then(|reference| ratios(p99(entry), p99(reference))),
            rounds: entry.rounds.len(),
        }
    }
}

impl<E> Entry<'_, E> {
    fn turn(&mut self, time: Duration) -> Result<(), E> {
        self.subject.wake()?;
        pin(&self.caller);
        let measured = self.subject.slice(time);
        pin(&allowed());
        self.subject.rest();
        let slice = measured?;
        // Histograms that grow by themselves can always be added.
        let _ = self.latency.add(&slice.latency);
        self.rounds.push(Round {
            figures: Figures::of(&slice.latency),
            per_s: slice.per_s(),
            evenness: slice.evenness,
        });
        Ok(())
    }
}

/// What a subject came to, beside another.
pub struct Measured {
    /// All its times.
    pub latency: Latency,
    /// The figure that is compared, of each round.
    pub figures: Vec<f64>,
    /// How often in a second, the median of the rounds.
    pub per_s: f64,
    /// Of threads side by side, the slowest's share of the fastest's; the median of the rounds.
    pub evenness: Option<f64>,
    /// The other's times.
    pub limit: Option<Latency>,
    /// The other's rate.
    pub limit_per_s: Option<f64>,
    /// Of the rounds' median times, or of their rates.
    pub ratio: Option<Ratios>,
    /// Of the rounds' 99th percentiles.
    pub ratio_p99: Option<Ratios>,
    /// How many there were.
    pub rounds: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Takes(u64);

    impl Subject<()> for Takes {
        fn slice(&mut self, _time: Duration) -> Result<Slice, ()> {
            Slice::of(Duration::ZERO, || Ok(Duration::from_nanos(self.0)))
        }
    }

    #[test]
    fn one_is_measured_beside_the_other() {
        let mut contest = Contest::default();
        let slow = contest.add(&Place::anywhere(), Takes(30));
        let fast = contest.add(&Place::anywhere(), Takes(10));
        contest.run(Duration::ZERO, Duration::ZERO, 5).expect("nothing can fail");
        let measured = contest.measured(slow, Some(fast), Beside::Time);
        assert_eq!((measured.rounds, measured.latency.len()), (5, 5));
        assert_eq!(measured.ratio.map(|ratio| ratio.median), Some(3.0));
        let rate = contest.measured(slow, Some(fast), Beside::Rate).ratio.expect("both have one");
        assert!((rate.median - 1.0 / 3.0).abs() < 0.001, "{rate:?}");
    }
}
