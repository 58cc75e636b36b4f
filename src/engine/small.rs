//! The payload of a small reply: copied out, in a buffer that its thread uses again. A reply is moved several times on
//! its way to the caller, and moving what has just been written word by word costs more than writing it: so what is
//! moved is a pointer.

use std::cell::Cell;

use crate::base::limits::INLINE_REPLY_BYTES;
use crate::base::sync::{AtomicU64, Ordering};

#[repr(align(64))]
struct Buffer([u8; INLINE_REPLY_BYTES]);

thread_local! {
    /// The buffer of the reply that was dropped last.
    static SPARE: Cell<Option<Box<Buffer>>> = const { Cell::new(None) };
}

/// At most [`INLINE_REPLY_BYTES`].
pub(super) struct Small {
    /// There until the drop.
    buffer: Option<Box<Buffer>>,
    /// INVARIANT: not more than the buffer has.
    len: u16,
}

impl Small {
    /// Of so many bytes, which `fill` writes.
    #[inline(always)]
    pub fn new(len: usize, fill: impl FnOnce(&mut [u8])) -> Self {
        // A thread that is ending has no spare.
        let spare = SPARE.try_with(Cell::take).ok().flatten();
        let mut buffer = spare.unwrap_or_else(|| Box::new(Buffer([0; INLINE_REPLY_BYTES])));
        fill(&mut buffer.0[..len]);
        Self { buffer: Some(buffer), len: len as u16 }
    }

    /// Out of a root's cell.
    #[inline]
    pub fn of_cell(cell: &[AtomicU64], len: usize) -> Self {
        Self::new(len, |bytes| copy_words(cell, bytes))
    }

    #[inline(always)]
    pub fn bytes(&self) -> &[u8] {
        let buffer = self.buffer.as_ref().expect("there until the drop");
        &buffer.0[..usize::from(self.len)]
    }
}

impl Drop for Small {
    #[inline(always)]
    fn drop(&mut self) {
        let buffer = self.buffer.take();
        let _ = SPARE.try_with(|spare| spare.set(buffer));
    }
}

/// Copies out of a root's cell. Relaxed: ordered by the Acquire that saw the root ended.
#[inline]
pub(super) fn copy_words(cell: &[AtomicU64], out: &mut [u8]) {
    let (words, tail) = out.as_chunks_mut::<8>();
    for (bytes, word) in words.iter_mut().zip(cell) {
        *bytes = word.load(Ordering::Relaxed).to_le_bytes();
    }
    if !tail.is_empty() {
        let word = cell[words.len()].load(Ordering::Relaxed).to_le_bytes();
        tail.copy_from_slice(&word[..tail.len()]);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn memory_01_a_buffer_that_is_used_again_shows_its_own_bytes_only() {
        let long = Small::new(INLINE_REPLY_BYTES, |bytes| bytes.fill(7));
        let at = long.bytes().as_ptr();
        drop(long);
        let cell: Vec<AtomicU64> = (1..=3).map(AtomicU64::new).collect();
        let short = Small::of_cell(&cell, 17);
        assert_eq!(short.bytes().as_ptr(), at, "the spare one");
        assert_eq!(short.bytes(), [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3]);
        let other = Small::new(0, |_| ());
        assert!(other.bytes().is_empty() && other.bytes().as_ptr() != at);
    }

    #[test]
    fn a_buffer_may_be_dropped_by_another_thread() {
        let small = Small::new(1, |bytes| bytes[0] = 9);
        let bytes = std::thread::spawn(move || small.bytes().to_vec()).join();
        assert_eq!(bytes.expect("nothing panics"), [9]);
    }
}
