//! Processor affinity and yielding.
//!
//! Owns the calls about the calling thread's processors. Never touches another
//! thread's affinity and never chooses a processor.
#![allow(unsafe_code)]

use std::io;

/// Bits per word of the kernel's processor mask.
const BITS: usize = u64::BITS as usize;
/// 65536 processors: far above what the kernel can be built for.
const LARGEST_MASK: usize = 1024;

/// The processor this thread runs on, at this moment.
pub fn current() -> u32 {
    rustix::thread::sched_getcpu() as u32
}

/// Restricts the calling thread to processor `cpu`. Threads it spawns later
/// inherit the restriction.
///
/// # Errors
/// `InvalidInput` if there is no such processor or this process may not use
/// it.
pub fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= LARGEST_MASK * BITS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut mask = vec![0u64; cpu / BITS + 1];
    mask[cpu / BITS] |= 1 << (cpu % BITS);
    // SAFETY: the kernel reads as many bytes as the mask has; 0 names the
    // calling thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&mask[..]), mask.as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The processors the calling thread may run on, ascending; never empty.
pub fn allowed() -> Vec<usize> {
    let mut words = 16;
    while words <= LARGEST_MASK {
        let mut mask = vec![0u64; words];
        // SAFETY: the kernel writes at most as many bytes as the mask has; 0
        // names the calling thread.
        let result = unsafe { libc::sched_getaffinity(0, size_of_val(&mask[..]), mask.as_mut_ptr().cast()) };
        if result == 0 {
            return set_bits(&mask);
        }
        // The kernel refuses a mask shorter than its own.
        words *= 2;
    }
    vec![current() as usize]
}

/// Lets another runnable thread have the processor.
pub fn yield_now() {
    rustix::thread::sched_yield();
}

fn set_bits(mask: &[u64]) -> Vec<usize> {
    (0..mask.len() * BITS).filter(|cpu| mask[cpu / BITS] >> (cpu % BITS) & 1 == 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_processor_is_an_allowed_one() {
        let allowed = allowed();
        assert!(!allowed.is_empty());
        assert!(allowed.contains(&(current() as usize)));
    }

    #[test]
    fn a_pinned_thread_stays() {
        for cpu in allowed() {
            std::thread::spawn(move || {
                pin(cpu).unwrap();
                assert_eq!(allowed(), [cpu]);
                yield_now();
                assert_eq!(current() as usize, cpu);
            })
            .join()
            .unwrap();
        }
    }

    #[test]
    fn an_absent_processor_is_refused() {
        for cpu in [60_000, usize::MAX] {
            assert_eq!(pin(cpu).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn bits_are_numbered_across_words() {
        assert_eq!(set_bits(&[0b101, 1 << 63, 0]), [0, 2, 127]);
        assert!(set_bits(&[]).is_empty());
    }
}
