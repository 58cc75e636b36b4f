//! Which processors there are, and keeping a thread to some of them.

use std::fs;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where the two sides of a measurement run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The calling side's processors.
    pub caller: Vec<usize>,
    /// The other side's processor; none: wherever the kernel puts it.
    pub partner: Option<usize>,
}

impl Place {
    /// Anywhere.
    pub fn anywhere() -> Self {
        Self { caller: allowed(), partner: None }
    }

    /// Both sides on one processor.
    pub fn together(processor: usize) -> Self {
        Self { caller: vec![processor], partner: Some(processor) }
    }

    /// Each side on a processor of its own.
    pub fn apart((caller, partner): (usize, usize)) -> Self {
        Self { caller: vec![caller], partner: Some(partner) }
    }
}

/// The processors that this process could use when it was asked first.
pub fn allowed() -> Vec<usize> {
    static FIRST: std::sync::OnceLock<Vec<usize>> = std::sync::OnceLock::new();
    FIRST.get_or_init(current).clone()
}

fn current() -> Vec<usize> {
    let Ok(set) = sched_getaffinity(None) else { return vec![0] };
    (0..CpuSet::MAX_CPU).filter(|processor| set.is_set(*processor)).collect()
}

/// Keeps this thread to `processors`; whether that was allowed.
pub fn pin(processors: &[usize]) -> bool {
    let mut set = CpuSet::new();
    processors.iter().for_each(|processor| set.set(*processor));
    sched_setaffinity(None, &set).is_ok()
}

/// Two processors that are not threads of one core, if there are such.
pub fn apart() -> Option<(usize, usize)> {
    let allowed = allowed();
    let first = *allowed.first()?;
    let siblings = siblings(first);
    let other = allowed.iter().find(|processor| **processor != first && !siblings.contains(processor));
    other.or(allowed.get(1)).map(|second| (first, *second))
}

/// The processors of the same core, itself included where the system tells.
pub fn siblings(processor: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list");
    fs::read_to_string(path).map_or(Vec::new(), |list| numbers(&list))
}

/// Reads a list such as `0,4-6`.
fn numbers(list: &str) -> Vec<usize> {
    let ranges = list.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse().ok()?..=last.parse::<usize>().ok()?)
    });
    ranges.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(numbers("0,4-6\n"), [0, 4, 5, 6]);
        assert_eq!(numbers(""), []);
    }

    #[test]
    fn a_pinned_thread_can_be_let_go() {
        let all = allowed();
        std::thread::spawn(move || {
            if pin(&all[..1]) {
                assert_eq!(current(), all[..1]);
                assert!(pin(&all));
                assert_eq!(current(), all);
            }
        })
        .join()
        .expect("it ends");
    }
}
