//! Raw access to one mapped segment, and the trait behind which a model checker can stand instead.
//!
//! Owns: the mapping (shared), all raw loads, stores and copies of the crate.
//! Never: interprets a byte, forms a reference over memory that the other process can write
//! (except to an atomic), or trusts an offset: each access is checked against the mapping's size.
//!
//! Atomic loads from pages that are mapped read-only must be plain loads; 8-byte relaxed loads are,
//! on the processors this crate supports, and the fence behind them makes them an acquire.
#![allow(unsafe_code)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use zerocopy::IntoBytes;

use crate::base::sync;
use crate::os::futex::{self, Woke};
use crate::os::map::Mapping;

/// What rings and signals need from the memory that they live in.
///
/// Offsets are bytes from the start of the segment; words are 8-byte aligned, futex words 4-byte aligned.
pub trait Memory {
    /// Reads a word; what its writer stored before a paired [`Memory::store_release`] is visible after.
    fn load_acquire(&self, at: usize) -> u64;
    /// Reads a word without ordering anything.
    fn load(&self, at: usize) -> u64;
    /// Reads neighbouring words without ordering anything.
    fn load_words<const N: usize>(&self, at: usize) -> [u64; N];
    /// Writes words that are yet to be published, in as few stores as the processor has: a line that the peer
    /// looks at meanwhile is pulled away between two stores.
    fn store_words<const N: usize>(&self, at: usize, words: &[u64; N]);
    /// Writes a word; publishes everything written before it.
    fn store_release(&self, at: usize, value: u64);
    /// Writes a word without publishing anything else.
    fn store(&self, at: usize, value: u64);
    /// Raises a word to at least `value`; several threads of the writing process may do so at once.
    fn raise(&self, at: usize, value: u64);
    /// A fence between a store before it and a load after it, as seen by all.
    fn fence_full(&self);
    /// Reads a futex word (acquire).
    fn futex_load(&self, at: usize) -> u32;
    /// Adds one to a futex word (release) and wakes everybody who sleeps on it.
    fn futex_wake(&self, at: usize);
    /// Sleeps while the futex word is `expected`, at most until the monotonic clock reads `until_ns`.
    fn futex_wait(&self, at: usize, expected: u32, until_ns: u64) -> Woke;
}

/// A mapped segment.
#[derive(Clone)]
pub struct View {
    /// Start of the mapping. INVARIANT: `base..base + bytes` is mapped for as long as `mapping` lives.
    base: NonNull<u8>,
    bytes: usize,
    /// INVARIANT: true only if the mapping is writable.
    writable: bool,
    mapping: Arc<Mapping>,
}

// SAFETY: the mapping is valid from any thread for as long as the view holds it; all shared words are
// accessed through atomics, and byte ranges by the exclusivity rules of their users.
unsafe impl Send for View {}
// SAFETY: as above; no method needs `&mut self` to be sound.
unsafe impl Sync for View {}

impl View {
    /// A view of the whole mapping.
    pub fn new(mapping: Mapping) -> Self {
        let mapping = Arc::new(mapping);
        Self { base: mapping.base(), bytes: mapping.bytes(), writable: mapping.is_writable(), mapping }
    }

    /// Bytes of the segment.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives the segment's memory back, for all views of this mapping: from now on they see zeros, and what they
    /// store reaches nobody. Whether the kernel did it; if not, nothing has changed.
    pub fn let_go(&self) -> bool {
        self.mapping.let_go().is_ok()
    }

    /// Whether this process writes the segment.
    pub fn is_writable(&self) -> bool {
        self.writable && self.mapping.is_writable()
    }

    #[inline(always)]
    fn place(&self, at: usize, bytes: usize) -> *mut u8 {
        assert!(at <= self.bytes && bytes <= self.bytes - at, "offset outside the segment");
        // SAFETY: `at + bytes <= self.bytes`, so the result stays within the mapping (invariant of `base`).
        unsafe { self.base.as_ptr().add(at) }
    }

    #[inline(always)]
    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(8), "word not aligned");
        let place = self.place(at, 8).cast::<u64>();
        // SAFETY: inside the mapping and 8-byte aligned (the base is page-aligned); shared words are only
        // ever accessed atomically, by this process and by the other; the mapping outlives `&self`.
        unsafe { AtomicU64::from_ptr(place) }
    }

    /// Neighbouring words, checked once.
    #[inline(always)]
    fn words(&self, at: usize, count: usize) -> &[AtomicU64] {
        assert!(at.is_multiple_of(8), "word not aligned");
        let place = self.place(at, 8 * count).cast::<AtomicU64>();
        // SAFETY: as in `word`, for each of `count` neighbours; a slice of atomics is no more than their sum.
        unsafe { std::slice::from_raw_parts(place, count) }
    }

    /// Copies `len` bytes into cells of this process, word by word; what is behind them in the last cell is zero.
    #[inline(always)]
    pub fn copy_to_cells(&self, at: usize, len: usize, cells: &[sync::AtomicU64]) {
        let count = len.div_ceil(8);
        assert!(count <= cells.len(), "payload longer than its cells");
        // Rounding up to a word stays inside the segment: its size is a multiple of a page.
        for (cell, word) in cells.iter().zip(self.words(at, count)) {
            cell.store(word.load(Ordering::Relaxed), sync::Ordering::Relaxed);
        }
        if !len.is_multiple_of(8) {
            let last = &cells[count - 1];
            let kept = u64::MAX >> (64 - 8 * (len % 8));
            last.store(last.load(sync::Ordering::Relaxed) & kept, sync::Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn writable_word(&self, at: usize) -> &AtomicU64 {
        assert!(self.writable, "segment is mapped read-only");
        self.word(at)
    }

    /// Begins to bring the line at `at` near for reading. A hint: nothing that can be observed changes.
    #[inline(always)]
    pub fn prefetch(&self, at: usize) {
        let _place = self.place(at, 1);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch changes no register and no memory, and faults on nothing.
        unsafe {
            std::arch::asm!("prefetcht0 [{}]", in(reg) _place, options(nostack, preserves_flags, readonly));
        }
    }

    /// Begins to take the line at `at` for writing. A hint, as above.
    #[inline(always)]
    pub fn prefetch_write(&self, at: usize) {
        let _place = self.place(at, 1);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above; `prefetchw` does nothing where the processor lacks it, and writes nothing.
        unsafe {
            std::arch::asm!("prefetchw [{}]", in(reg) _place, options(nostack, preserves_flags));
        }
    }

    /// The futex word at `at`, for sleeping on it beside another one.
    #[inline(always)]
    pub fn futex_word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4), "futex word not aligned");
        let place = self.place(at, 4).cast::<u32>();
        // SAFETY: as in `word`, with 4 bytes.
        unsafe { AtomicU32::from_ptr(place) }
    }

    /// Copies bytes that this process alone writes, or has yet to publish, into the segment.
    #[inline(always)]
    pub fn copy_in(&self, at: usize, bytes: &[u8]) {
        assert!(self.writable, "segment is mapped read-only");
        let place = self.place(at, bytes.len());
        // SAFETY: `place` has room for `bytes` inside a writable mapping. The range is not published yet, so
        // a well-behaved reader does not look; one that does reads bytes that it must not trust anyway.
        // `bytes` is ordinary memory of this process and cannot overlap a mapping that nobody borrows.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) }
    }

    /// Copies bytes out of the segment; the other process may be writing them, so check the copy, not the source.
    #[inline]
    pub fn copy_out(&self, at: usize, out: &mut [u8]) {
        // Small copies go word by word: relaxed atomic loads race with nothing in the language's model.
        // Larger ones use a raw copy: racing with a misbehaving writer is outside the model, and yields
        // unspecified bytes on every compiler and processor that this crate supports.
        if out.len() <= 256 && at.is_multiple_of(8) {
            self.place(at, out.len());
            let (words, tail) = out.as_chunks_mut::<8>();
            for (i, chunk) in words.iter_mut().enumerate() {
                *chunk = self.word(at + 8 * i).load(Ordering::Relaxed).to_ne_bytes();
            }
            if !tail.is_empty() {
                // Rounding up to a word stays inside the segment: its size is a multiple of a page.
                let last = self.word(at + 8 * words.len()).load(Ordering::Relaxed).to_ne_bytes();
                tail.copy_from_slice(&last[..tail.len()]);
            }
        } else {
            let place = self.place(at, out.len());
            // SAFETY: `place..+len` is inside the mapping and `out` is exclusive memory of this process.
            unsafe { std::ptr::copy_nonoverlapping(place, out.as_mut_ptr(), out.len()) }
        }
    }

    /// The bytes at `at` as a slice.
    ///
    /// # Safety
    ///
    /// Nobody, in this process or the other, writes to the range while the slice lives.
    pub unsafe fn slice(&self, at: usize, bytes: usize) -> &[u8] {
        let place = self.place(at, bytes);
        // SAFETY: inside the mapping, which lives as long as `&self`; unwritten by the caller's promise.
        unsafe { std::slice::from_raw_parts(place, bytes) }
    }

    /// The bytes at `at` as a mutable slice.
    ///
    /// # Safety
    ///
    /// The segment is written by this process only, and nobody else in it accesses the range while the slice lives.
    #[allow(clippy::mut_from_ref)] // exclusivity is the caller's promise, kept by the block that owns the range
    pub unsafe fn slice_mut(&self, at: usize, bytes: usize) -> &mut [u8] {
        assert!(self.writable, "segment is mapped read-only");
        let place = self.place(at, bytes);
        // SAFETY: inside a writable mapping that lives as long as `&self`; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(place, bytes) }
    }
}

impl Memory for View {
    #[inline(always)]
    fn load_acquire(&self, at: usize) -> u64 {
        let value = self.word(at).load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        value
    }

    #[inline(always)]
    fn load(&self, at: usize) -> u64 {
        self.word(at).load(Ordering::Relaxed)
    }

    #[inline(always)]
    fn store_release(&self, at: usize, value: u64) {
        self.writable_word(at).store(value, Ordering::Release);
    }

    #[inline(always)]
    fn store(&self, at: usize, value: u64) {
        self.writable_word(at).store(value, Ordering::Relaxed);
    }

    #[inline(always)]
    fn load_words<const N: usize>(&self, at: usize) -> [u64; N] {
        let words = self.words(at, N);
        std::array::from_fn(|i| words[i].load(Ordering::Relaxed))
    }

    #[inline(always)]
    fn store_words<const N: usize>(&self, at: usize, words: &[u64; N]) {
        self.copy_in(at, words.as_bytes());
    }

    fn raise(&self, at: usize, value: u64) {
        self.writable_word(at).fetch_max(value, Ordering::Release);
    }

    #[inline(always)]
    fn fence_full(&self) {
        fence(Ordering::SeqCst);
    }

    fn futex_load(&self, at: usize) -> u32 {
        let value = self.futex_word(at).load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        value
    }

    fn futex_wake(&self, at: usize) {
        assert!(self.writable, "segment is mapped read-only");
        let word = self.futex_word(at);
        word.fetch_add(1, Ordering::Release);
        futex::wake_shared(word);
    }

    fn futex_wait(&self, at: usize, expected: u32, until_ns: u64) -> Woke {
        futex::wait_shared(self.futex_word(at), expected, Some(until_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::memfd;
    use std::os::fd::AsFd;

    fn pair() -> (View, View) {
        let fd = memfd::create("view-test", 8192).unwrap();
        let writer = Mapping::writable(fd.as_fd(), 8192).unwrap();
        let reader = Mapping::read_only(fd.as_fd(), 8192).unwrap();
        (View::new(writer), View::new(reader))
    }

    #[test]
    fn what_one_side_stores_the_other_loads() {
        let (writer, reader) = pair();
        writer.store_release(64, 7);
        assert_eq!(reader.load_acquire(64), 7);
        writer.raise(64, 3);
        assert_eq!(reader.load(64), 7);
        let bytes: Vec<u8> = (0..=255).collect();
        writer.copy_in(4096, &bytes);
        for len in [0, 1, 7, 8, 9, 63, 64, 200, 256] {
            let mut out = vec![0; len];
            reader.copy_out(4096, &mut out);
            assert_eq!(out, bytes[..len]);
            reader.copy_out(4096 + 3, &mut out[..len.min(200)]);
            assert_eq!(out[..len.min(200)], bytes[3..3 + len.min(200)]);
        }
    }

    #[test]
    #[should_panic(expected = "outside the segment")]
    fn an_offset_beyond_the_end_is_refused() {
        pair().1.load(8192);
    }

    #[test]
    #[should_panic(expected = "read-only")]
    fn a_read_only_view_does_not_store() {
        pair().1.store(0, 1);
    }
}
