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
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence, fence};

use crate::base::limits::{CACHE_LINE_BYTES, PAGE_BYTES};
use crate::base::sync;
use crate::os::futex::{self, Woke};
use crate::os::map::Mapping;
use crate::wire::envelope::{ENVELOPE_BYTES, ENVELOPE_WORDS};

/// Lines of a payload that are brought near ahead of its reader or writer.
const PREFETCHED_LINES: usize = 2;

/// What rings and signals need from the memory that they live in.
///
/// Offsets are bytes from the start of the segment; words are 8-byte aligned, futex words 4-byte aligned.
pub trait Memory {
    /// Reads a word; what its writer stored before a paired [`Memory::store_release`] is visible after.
    fn load_acquire(&self, at: usize) -> u64;
    /// Reads a word without ordering anything.
    fn load(&self, at: usize) -> u64;
    /// Writes a word; publishes everything written before it.
    fn store_release(&self, at: usize, value: u64);
    /// Writes a word without publishing anything else.
    fn store(&self, at: usize, value: u64);
    /// Raises a word to at least `value`; several threads of the writing process may do so at once.
    fn raise(&self, at: usize, value: u64);
    /// A fence between a store before it and a load after it, as seen by all.
    fn fence_full(&self);
    /// The same behind a commit ([`OwnSlot::publish`]), which may be one already.
    fn fence_behind_commit(&self);
    /// Reads a futex word (acquire).
    fn futex_load(&self, at: usize) -> u32;
    /// Adds one to a futex word (release) and wakes everybody who sleeps on it.
    fn futex_wake(&self, at: usize);
    /// Sleeps while the futex word is `expected`, at most until the monotonic clock reads `until_ns`.
    fn futex_wait(&self, at: usize, expected: u32, until_ns: u64) -> Woke;
}

/// One slot, as a ring needs it: the words of an envelope, of which the first commits it.
pub trait Slot: Copy {
    /// Reads the commit word; what its writer wrote before a paired [`OwnSlot::publish`] is visible after.
    fn commit_word(self) -> u64;
    /// Reads the envelope, word by word, without ordering anything.
    fn words(self) -> [u64; ENVELOPE_WORDS];
}

/// One slot of a segment that this process writes.
pub trait OwnSlot: Slot {
    /// Writes the envelope, its commit word last; that publishes everything written before it.
    fn publish(self, words: [u64; ENVELOPE_WORDS]);
}

/// Slots, found by number.
pub trait Slots {
    /// One of them.
    type Slot<'a>: Slot
    where
        Self: 'a;

    /// The slot of this number, modulo their count.
    fn slot(&self, number: u64) -> Self::Slot<'_>;
}

/// A mapped segment.
#[derive(Clone)]
pub struct View {
    /// Start of the mapping. INVARIANT: `base..base + bytes` is mapped for as long as `mapping` lives.
    base: NonNull<u8>,
    /// INVARIANT: at least a page.
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
        assert!(mapping.bytes() >= PAGE_BYTES, "a segment has at least its control words");
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
        // SAFETY: the invariant of `bytes`. It spares the check for all control words, whose offsets are constants.
        unsafe { std::hint::assert_unchecked(self.bytes >= PAGE_BYTES) };
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

    /// Begins to bring near the first lines of a range, for reading. A hint: nothing that can be observed changes,
    /// and a range outside the segment is none.
    #[inline(always)]
    pub fn prefetch_read(&self, at: usize, len: usize) {
        self.first_lines(at, len).for_each(prefetch);
    }

    /// The same, for writing.
    #[inline(always)]
    pub fn prefetch_write(&self, at: usize, len: usize) {
        self.first_lines(at, len).for_each(prefetch_write);
    }

    /// Where the first lines of a range lie, as many as are worth a prefetch: the processor sees a longer run itself.
    #[inline(always)]
    fn first_lines(&self, at: usize, len: usize) -> impl Iterator<Item = *const u8> {
        let lines = if at < self.bytes { len.min(self.bytes - at).div_ceil(CACHE_LINE_BYTES) } else { 0 };
        (0..lines.min(PREFETCHED_LINES))
            .map(move |line| self.place(at + line * CACHE_LINE_BYTES, 1).cast_const())
    }

    #[inline(always)]
    fn writable_word(&self, at: usize) -> &AtomicU64 {
        assert!(self.writable, "segment is mapped read-only");
        self.word(at)
    }

    /// The futex word at `at`, for sleeping on it beside another one.
    #[inline(always)]
    pub fn futex_word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(4), "futex word not aligned");
        let place = self.place(at, 4).cast::<u32>();
        // SAFETY: as in `word`, with 4 bytes.
        unsafe { AtomicU32::from_ptr(place) }
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

/// The slots of a ring in a mapped segment: checked once, so that finding one takes no check.
pub struct ViewSlots<const OWN: bool> {
    /// The first slot. INVARIANT: from here on `mask + 1` slots of `1 << shift` bytes lie inside the mapping for as
    /// long as the mapping lives; it is 8-byte aligned, and so is each slot; a slot has room for an envelope.
    first: NonNull<u8>,
    /// Count - 1, the count being a power of two.
    mask: u64,
    shift: u32,
    /// What `shift` says of a slot: looked at more often than it is computed.
    inline_bytes: usize,
    /// Offset of the first slot.
    at: usize,
    /// INVARIANT: writable if `OWN`.
    _mapping: Arc<Mapping>,
}

// SAFETY: as for `View`, whose mapping it holds.
unsafe impl<const OWN: bool> Send for ViewSlots<OWN> {}
// SAFETY: as for `View`.
unsafe impl<const OWN: bool> Sync for ViewSlots<OWN> {}

/// A slot that the peer writes.
pub type PeerSlot<'a> = ViewSlot<'a, false>;
/// Slots that the peer writes.
pub type PeerSlots = ViewSlots<false>;
/// Slots that this process writes.
pub type OwnSlots = ViewSlots<true>;

impl<const OWN: bool> ViewSlots<OWN> {
    /// `count` slots of `slot_bytes` bytes (both powers of two) from `at` on.
    pub fn new(view: View, at: usize, slot_bytes: usize, count: usize) -> Self {
        assert!(count.is_power_of_two() && slot_bytes.is_power_of_two() && at.is_multiple_of(8));
        assert!(slot_bytes >= ENVELOPE_BYTES);
        assert!(view.is_writable() || !OWN, "segment is mapped read-only");
        let bytes = count.checked_mul(slot_bytes).expect("a ring fits the address space");
        let first = NonNull::new(view.place(at, bytes)).expect("inside a mapping");
        let (mask, shift) = (count as u64 - 1, slot_bytes.trailing_zeros());
        Self { first, mask, shift, inline_bytes: slot_bytes - ENVELOPE_BYTES, at, _mapping: view.mapping }
    }

    /// Bytes behind an envelope.
    #[inline(always)]
    pub fn inline_bytes(&self) -> usize {
        self.inline_bytes
    }

    /// Offset in the segment of the bytes behind the envelope of slot `number`, modulo the count.
    #[inline(always)]
    pub fn inline_at(&self, number: u64) -> usize {
        self.at + self.offset(number) + ENVELOPE_BYTES
    }

    #[inline(always)]
    fn offset(&self, number: u64) -> usize {
        ((number & self.mask) as usize) << self.shift
    }
}

impl<const OWN: bool> Slots for ViewSlots<OWN> {
    type Slot<'a> = ViewSlot<'a, OWN>;

    #[inline(always)]
    fn slot(&self, number: u64) -> ViewSlot<'_, OWN> {
        // SAFETY: the number is cut to the count, so the slot lies inside the mapping (invariant of `first`).
        let place = unsafe { self.first.add(self.offset(number)) };
        ViewSlot { place, slots: self }
    }
}

/// One slot of a mapped segment.
#[derive(Clone, Copy)]
pub struct ViewSlot<'a, const OWN: bool> {
    /// INVARIANT: one of the slots of `slots`.
    place: NonNull<u8>,
    slots: &'a ViewSlots<OWN>,
}

impl<'a, const OWN: bool> ViewSlot<'a, OWN> {
    #[inline(always)]
    fn envelope(self) -> &'a [AtomicU64; ENVELOPE_WORDS] {
        // SAFETY: a slot has room for an envelope and is 8-byte aligned; shared words are only ever accessed
        // atomically, by this process and by the other; the mapping outlives the slots, and they `'a`.
        unsafe { self.place.cast::<[AtomicU64; ENVELOPE_WORDS]>().as_ref() }
    }

    #[inline(always)]
    fn inline(self) -> *mut u8 {
        // SAFETY: behind the envelope; at most one past the end of the slot.
        unsafe { self.place.as_ptr().add(ENVELOPE_BYTES) }
    }

    /// Begins to bring near what lies behind the envelope, for reading. A hint: nothing that can be
    /// observed changes.
    #[inline(always)]
    pub fn prefetch_inline(self) {
        prefetch(self.inline());
    }

    /// The same for the envelope as well.
    #[inline(always)]
    pub fn prefetch(self) {
        prefetch(self.place.as_ptr());
        prefetch(self.inline());
    }
}

impl ViewSlot<'_, false> {
    /// Copies bytes from behind the envelope.
    ///
    /// One raw copy: what is read word by word is not there in one piece when it is copied on.
    #[inline(always)]
    pub fn copy_out(self, out: &mut [u8]) {
        assert!(out.len() <= self.slots.inline_bytes(), "inline payload too long");
        // SAFETY: inside the slot, and `out` is exclusive memory of this process. A well-behaved writer leaves the slot
        // alone until it is told that it has been read; about another one see `View::copy_out`.
        unsafe { std::ptr::copy_nonoverlapping(self.inline(), out.as_mut_ptr(), out.len()) }
    }
}

impl ViewSlot<'_, true> {
    /// Begins to take the envelope, and the line behind it, for writing. A hint, as above.
    #[inline(always)]
    pub fn prefetch_write(self) {
        prefetch_write(self.place.as_ptr());
        prefetch_write(self.inline());
    }

    /// Copies bytes behind the envelope of a slot that is yet to be published.
    #[inline(always)]
    pub fn copy_in(self, bytes: &[u8]) {
        assert!(bytes.len() <= self.slots.inline_bytes(), "inline payload too long");
        // SAFETY: it fits the slot behind its envelope, in a writable mapping. The slot is not published yet, so a
        // well-behaved reader does not look; one that does reads bytes that it must not trust anyway. `bytes` is
        // ordinary memory of this process and cannot overlap a mapping that nobody borrows.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.inline(), bytes.len()) }
    }
}

impl<const OWN: bool> Slot for ViewSlot<'_, OWN> {
    #[inline(always)]
    fn commit_word(self) -> u64 {
        let value = self.envelope()[0].load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        value
    }

    #[inline(always)]
    fn words(self) -> [u64; ENVELOPE_WORDS] {
        let envelope = self.envelope();
        std::array::from_fn(|i| envelope[i].load(Ordering::Relaxed))
    }
}

impl OwnSlot for ViewSlot<'_, true> {
    #[inline(always)]
    fn publish(self, words: [u64; ENVELOPE_WORDS]) {
        let envelope = self.envelope();
        for i in 1..ENVELOPE_WORDS {
            envelope[i].store(words[i], Ordering::Relaxed);
        }
        // Both Release: pair with the Acquire of `Slot::commit_word`.
        if COMMITS_BY_EXCHANGE {
            envelope[0].swap(words[0], Ordering::SeqCst);
        } else {
            envelope[0].store(words[0], Ordering::Release);
        }
    }
}

/// A commit is followed by a full fence. On x86 an exchange is both, and the line that it needs is asked for at once, not
/// when all stores before it have left the processor.
const COMMITS_BY_EXCHANGE: bool = cfg!(target_arch = "x86_64");

#[inline(always)]
fn prefetch(_place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch changes no register and no memory, and faults on nothing.
    unsafe {
        std::arch::asm!("prefetcht0 [{}]", in(reg) _place, options(nostack, preserves_flags, readonly));
    }
}

#[inline(always)]
fn prefetch_write(_place: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above; `prefetchw` does nothing where the processor lacks it, and writes nothing.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) _place, options(nostack, preserves_flags));
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

    fn raise(&self, at: usize, value: u64) {
        self.writable_word(at).fetch_max(value, Ordering::Release);
    }

    #[inline(always)]
    fn fence_full(&self) {
        fence(Ordering::SeqCst);
    }

    #[inline(always)]
    fn fence_behind_commit(&self) {
        // On x86 a locked instruction orders all that stands around it; the compiler must not undo that.
        if COMMITS_BY_EXCHANGE { compiler_fence(Ordering::SeqCst) } else { fence(Ordering::SeqCst) }
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
        OwnSlots::new(writer, 4096 - 64, 512, 2).slot(4).copy_in(&bytes);
        for len in [0, 1, 7, 8, 9, 63, 64, 200, 256] {
            let mut out = vec![0; len];
            reader.copy_out(4096, &mut out);
            assert_eq!(out, bytes[..len]);
            reader.copy_out(4096 + 3, &mut out[..len.min(200)]);
            assert_eq!(out[..len.min(200)], bytes[3..3 + len.min(200)]);
        }
    }

    #[test]
    fn a_slot_is_found_by_its_number_modulo_their_count() {
        let (writer, reader) = pair();
        let (own, peer) =
            (OwnSlots::new(writer, 4096, 1024, 4), PeerSlots::new(reader.clone(), 4096, 1024, 4));
        own.slot(6).copy_in(b"payload");
        own.slot(u64::MAX - 1).publish([7, 1, 2, 3, 4, 5, 6, 8]);
        assert_eq!((peer.slot(2).commit_word(), peer.slot(2).words()), (7, [7, 1, 2, 3, 4, 5, 6, 8]));
        let mut payload = [0; 7];
        reader.copy_out(peer.inline_at(2), &mut payload);
        assert_eq!(&payload, b"payload");
        assert_eq!([0, 1, 3].map(|number| peer.slot(number).commit_word()), [0; 3]);
    }

    #[test]
    #[should_panic(expected = "outside the segment")]
    fn slots_beyond_the_end_are_refused() {
        PeerSlots::new(pair().1, 4096, 1024, 8);
    }

    #[test]
    #[should_panic(expected = "read-only")]
    fn own_slots_need_a_writable_segment() {
        OwnSlots::new(pair().1, 0, 1024, 4);
    }

    #[test]
    #[should_panic(expected = "too long")]
    fn no_slot_takes_more_than_it_has_room_for() {
        OwnSlots::new(pair().0, 0, 1024, 4).slot(0).copy_in(&[0; 961]);
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
