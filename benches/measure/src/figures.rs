//! Times as percentiles, and ratios of rounds.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Times are told apart to three digits.
const DIGITS: u8 = 3;

/// Samples of which the middle one means something.
const ENOUGH: u64 = 100;

/// Times in nanoseconds.
pub type Latency = Histogram<u64>;

/// Adds one time.
pub fn record(latency: &mut Latency, took: Duration) {
    // A histogram that grows by itself takes every number; without memory for it, a figure is lost.
    let _ = latency.record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
}

/// What one subject did in one turn.
pub struct Slice {
    /// The times, if single ones were taken.
    pub latency: Latency,
    /// How often it was done.
    pub count: u64,
    /// How long all of it took.
    pub took: Duration,
    /// The rate of a stream while nobody interrupts it, where it was looked at.
    pub steady_per_s: Option<f64>,
    /// Of several threads side by side, what the slowest did for each one that the fastest did.
    pub evenness: Option<f64>,
}

impl Slice {
    /// Of nothing yet.
    pub fn empty() -> Self {
        let latency = Latency::new(DIGITS).expect("three digits are allowed");
        Self { latency, count: 0, took: Duration::ZERO, steady_per_s: None, evenness: None }
    }

    /// Repeats `once`, which gives the time that counts, for so long; the first eighth warms up and does not count. Up
    /// to twice as long if there are only few samples then: of one sample, an interruption makes the middle one.
    pub fn of<E>(time: Duration, mut once: impl FnMut() -> Result<Duration, E>) -> Result<Self, E> {
        let mut slice = Self::empty();
        let begin = Instant::now();
        let (warm, end) = (begin + time / 8, begin + time);
        loop {
            let took = once()?;
            let now = Instant::now();
            if now >= warm {
                record(&mut slice.latency, took);
                slice.took += took;
                slice.count += 1;
            }
            if now >= end && slice.count > 0 && (slice.count >= ENOUGH || now >= end + time) {
                return Ok(slice);
            }
        }
    }

    /// How often in a second.
    pub fn per_s(&self) -> f64 {
        self.steady_per_s.unwrap_or(self.count as f64 / self.took.as_secs_f64().max(f64::MIN_POSITIVE))
    }
}

/// The pace of a stream: how long each stretch of it took. The middle one leaves out what else ran here.
pub struct Pace {
    stretch: u64,
    begin: Instant,
    from: u64,
    stretches: Vec<f64>,
}

impl Pace {
    /// From now on, in stretches of so many: far more than may be on their way, so that each is as fast as both sides
    /// are, and still short beside the time between two interruptions.
    pub fn start(stretch: u64) -> Self {
        Self { stretch, begin: Instant::now(), from: 0, stretches: Vec::new() }
    }

    /// By now so many have been done.
    pub fn note(&mut self, done: u64, now: Instant) {
        if done - self.from >= self.stretch {
            self.stretches.push((now - self.begin).as_secs_f64() / (done - self.from) as f64);
            (self.begin, self.from) = (now, done);
        }
    }

    /// How many in a second.
    pub fn per_s(self) -> Option<f64> {
        let middle = median(self.stretches);
        (middle > 0.0).then(|| 1.0 / middle)
    }
}

/// Percentiles of times in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Figures {
    /// Times.
    pub samples: u64,
    /// The middle one.
    pub p50_ns: u64,
    /// 9 of 10 are at most this.
    pub p90_ns: u64,
    /// 99 of 100.
    pub p99_ns: u64,
    /// 999 of 1,000.
    pub p999_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

impl Figures {
    /// Of these times.
    pub fn of(latency: &Latency) -> Self {
        let at = |quantile| latency.value_at_quantile(quantile);
        Self {
            samples: latency.len(),
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            max_ns: latency.max(),
        }
    }
}

/// What the rounds' ratios came to.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Ratios {
    /// The middle one.
    pub median: f64,
    /// The least.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

impl Ratios {
    /// `None` of none.
    pub fn of(mut ratios: Vec<f64>) -> Option<Self> {
        ratios.retain(|ratio| ratio.is_finite());
        ratios.sort_by(f64::total_cmp);
        let (&least, &most) = (ratios.first()?, ratios.last()?);
        Some(Self { median: median(ratios), least, most })
    }
}

/// The middle one of some, or the mean of the two in the middle; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let upper = values.len() / 2;
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[upper],
        _ => f64::midpoint(values[upper - 1], values[upper]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_have_a_middle_and_a_spread() {
        let ratios = Ratios::of(vec![3.0, 1.0, f64::NAN, 2.0]);
        assert_eq!(ratios, Some(Ratios { median: 2.0, least: 1.0, most: 3.0 }));
        assert_eq!(Ratios::of(vec![1.0, 2.0]).map(|ratios| ratios.median), Some(1.5));
        assert_eq!(Ratios::of(vec![f64::INFINITY]), None);
    }

    #[test]
    fn a_slice_has_a_sample_however_short_it_is() {
        let once = || Ok::<_, ()>(Duration::from_nanos(7));
        let slice = Slice::of(Duration::ZERO, once).expect("it cannot fail");
        assert_eq!(slice.count, 1);
        let figures = Figures::of(&slice.latency);
        assert_eq!((figures.samples, figures.p50_ns, figures.max_ns), (1, 7, 7));
    }
}
