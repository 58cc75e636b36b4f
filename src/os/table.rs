//! Large tables in this process's own memory: fewer page walks, and lines fetched before they are needed.
//!
//! Owns the advice to the kernel and to the processor. Neither changes what is computed; where there is no such
//! advice, nothing happens.
#![allow(unsafe_code)]

/// What the kernel puts on one large page.
const LARGE_PAGE: usize = 2 << 20;

/// `count` values made one after the other, on large pages if they fill some and the kernel gives them. A table of
/// many small entries, visited in any order, costs a page walk for each visit otherwise.
pub fn table<T>(count: usize, mut make: impl FnMut() -> T) -> Box<[T]> {
    let mut table = Vec::with_capacity(count);
    // Before the pages are touched: large ones are given out when they are.
    favour_large_pages(&mut table);
    table.extend((0..count).map(|_| make()));
    table.into()
}

/// Asks for large pages in the spare room of a vector, as far as it fills whole ones.
fn favour_large_pages<T>(table: &mut Vec<T>) {
    let room = table.spare_capacity_mut();
    let (begin, bytes) = (room.as_mut_ptr().cast::<u8>(), size_of_val(room));
    let before = begin.align_offset(LARGE_PAGE);
    let whole = bytes.saturating_sub(before) / LARGE_PAGE * LARGE_PAGE;
    if whole > 0 {
        // SAFETY: the range lies within the vector's allocation, which nobody else uses; the advice changes which pages
        // back it, not what they hold. That it is refused, or unknown, is all the same.
        unsafe { libc::madvise(begin.add(before).cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

/// Has the line of `at` fetched, to be written soon, while this thread goes on.
#[inline(always)]
pub fn prefetch<T>(at: &T) {
    #[cfg(all(target_arch = "x86_64", not(any(loom, miri))))]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch reads and writes nothing that a program can see, and `at` is an address of its own.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(any(loom, miri)))))]
    let _ = at;
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_any_size_holds_what_was_made() {
        for count in [0, 1, 1000, 5 * LARGE_PAGE / 8 + 3] {
            let mut made = 0u64;
            let numbers = table(count, || {
                made += 1;
                made
            });
            assert_eq!(numbers.len(), count);
            assert!(numbers.iter().copied().eq(1..=count as u64));
            numbers.iter().for_each(prefetch);
        }
    }
}
