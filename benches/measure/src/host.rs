//! The host's facts, and what spoils figures on it.

use std::fs;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::figures::median;
use crate::processors::{allowed, apart, pin, siblings};

/// Of the machine, at the beginning of a run.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The date, UTC.
    pub date: String,
    /// The processor's name.
    pub cpu: String,
    /// Processors that this process may use.
    pub processors: Vec<usize>,
    /// The two that pinned threads use; none where there is one only, or pinning is forbidden.
    pub pair: Option<(usize, usize)>,
    /// Whether those two are threads of one core.
    pub pair_is_one_core: bool,
    /// The kernel.
    pub kernel: String,
    /// Whether this is a virtual machine.
    pub virtual_machine: bool,
    /// How the processor's speed is governed, if the system tells.
    pub governor: Option<String>,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Processes that wanted a processor in the last minute.
    pub load: f64,
    /// What reading the clock costs.
    pub clock_ns: f64,
    /// Whether this program was built without optimizations.
    pub debug_build: bool,
}

impl Facts {
    /// Of now.
    pub fn now() -> Self {
        let cpuinfo = read("/proc/cpuinfo");
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let uname = rustix::system::uname();
        let processors = allowed();
        let pair = apart().filter(|(one, other)| {
            let pinned = pin(&[*other]) && pin(&[*one]);
            pin(&processors);
            pinned
        });
        let cpu = field(&cpuinfo, "model name");
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let memory_kib: Option<u64> = memory.and_then(|text| text.split(' ').next()?.parse().ok());
        let governor = fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").ok();
        Self {
            date: date(),
            cpu: cpu.unwrap_or_else(|| uname.machine().to_string_lossy().into_owned()),
            pair,
            pair_is_one_core: pair.is_some_and(|(one, other)| siblings(one).contains(&other)),
            processors,
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            virtual_machine: field(&cpuinfo, "flags").is_some_and(|flags| flags.contains(" hypervisor")),
            governor: governor.map(|text| text.trim().to_owned()),
            memory_bytes: memory_kib.unwrap_or(0) * 1024,
            load: read("/proc/loadavg").split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            clock_ns: clock_ns(),
            debug_build: cfg!(debug_assertions),
        }
    }

    /// What spoils the figures, as far as it is known before a run.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.debug_build {
            warnings.push("built without optimizations: nothing here says anything about speed".to_owned());
        }
        if self.processors.len() == 1 {
            warnings.push("one processor: nothing can be measured from one to another".to_owned());
        } else if self.pair.is_none() {
            warnings.push("no pinning: threads move, and figures with them".to_owned());
        }
        if self.pair_is_one_core {
            warnings.push("the pinned processors are threads of one core: they share its caches".to_owned());
        }
        if self.virtual_machine {
            warnings
                .push("a virtual machine: the host moves processors; trust the ratios, not the times".into());
        }
        if self.load > 0.5 * self.processors.len() as f64 {
            warnings.push(format!("others are at work here: load {:.2}", self.load));
        }
        warnings
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn clock_ns() -> f64 {
    let times = (0..9).map(|_| {
        let begin = Instant::now();
        (0..1000).for_each(|_| {
            std::hint::black_box(Instant::now());
        });
        begin.elapsed().as_nanos() as f64 / 1000.0
    });
    median(times.collect())
}

/// The date as `2026-11-22 15:04 UTC`.
fn date() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Years that begin in March: the day that leap years add is their last.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (era * 400 + year, if month < 10 { month + 3 } else { month - 9 });
    let year = if month <= 2 { year + 1 } else { year };
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", second / 3600, second / 60 % 60)
}

/// What others take from the processors while it runs.
pub struct Meter {
    begin: Ticks,
}

#[derive(Clone, Copy, Default)]
struct Ticks {
    all: u64,
    stolen: u64,
}

impl Ticks {
    fn now() -> Self {
        let stat = read("/proc/stat");
        let line = stat.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|tick| tick.parse().ok()).collect();
        // User, nice, system, idle, waiting, two kinds of interrupts, stolen; guests are counted in user time.
        Self { all: ticks.iter().take(8).sum(), stolen: ticks.get(7).copied().unwrap_or(0) }
    }
}

impl Meter {
    /// From now on.
    pub fn start() -> Self {
        Self { begin: Ticks::now() }
    }

    /// The share of all processor time that the host gave to others.
    pub fn stolen(&self) -> f64 {
        let now = Ticks::now();
        let all = now.all.saturating_sub(self.begin.all).max(1);
        now.stolen.saturating_sub(self.begin.stolen) as f64 / all as f64
    }

    /// What is to be said of that.
    pub fn warning(&self) -> Option<String> {
        let stolen = self.stolen();
        let text = || format!("the host took {:.1} % of the processor time meanwhile", stolen * 100.0);
        (stolen >= 0.001).then(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_found_and_a_date_looks_like_one() {
        let facts = Facts::now();
        assert!(!facts.processors.is_empty() && facts.memory_bytes > 0 && facts.clock_ns > 0.0, "{facts:?}");
        assert!(facts.date.len() == 20 && facts.date.starts_with("20"), "{}", facts.date);
        assert!((0.0..=1.0).contains(&Meter::start().stolen()));
    }

    #[test]
    fn one_processor_is_warned_of() {
        let facts = Facts { processors: vec![0], pair: None, ..Facts::now() };
        assert!(facts.warnings().iter().any(|warning| warning.starts_with("one processor")));
    }
}
