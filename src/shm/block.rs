//! Reading a peer's payload in place.
//!
//! Two readers, two degrees of trust. A worker reads what its engine wrote: the engine leaves a request's
//! bytes alone until the request's LAST has been read, so the worker hands its node a slice. The engine
//! reads what a worker wrote, and trusts nothing: it copies, or reads through volatile-like copies that
//! tolerate a writer; a slice is the caller's `unsafe` decision.
#![allow(unsafe_code)]

use super::view::View;

/// The bytes of a request frame, for the worker that executes it.
///
/// Valid until the worker commits the request's LAST; the executor's borrow of the request ends before.
pub(crate) fn request_bytes(segment: &View, at: usize, len: usize) -> &[u8] {
    assert!(!segment.is_writable(), "only a reader of the request segment reads it in place");
    // SAFETY: the request segment is mapped read-only here, so no code of this process writes it. Its one
    // writer is the engine, which rewrites a slot or a block only after it has read the request's LAST, and
    // that is committed after the last use of this slice. A worker trusts its engine, which started it.
    unsafe { segment.slice(at, len) }
}

/// A large reply where it lies: a block of the worker's segment, held by this process until the reply is
/// dropped.
///
/// A well-behaved worker does not write to it any more; one that is not may. Copies tolerate that and yield
/// unspecified bytes.
pub struct InPlace<'a> {
    segment: &'a View,
    at: usize,
    len: usize,
}

impl<'a> InPlace<'a> {
    /// The range must have been checked against the arena.
    pub(crate) fn new(segment: &'a View, at: usize, len: usize) -> Self {
        assert!(at <= segment.bytes() && len <= segment.bytes() - at);
        Self { segment, at, len }
    }

    /// Payload bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the payload is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies `out.len()` bytes from `offset` on.
    ///
    /// # Panics
    ///
    /// If the range is not inside the payload.
    pub fn copy_to(&self, offset: usize, out: &mut [u8]) {
        assert!(offset <= self.len && out.len() <= self.len - offset, "read beyond the end of the payload");
        self.segment.copy_out(self.at + offset, out);
    }

    /// The bytes in place, without a copy.
    ///
    /// # Safety
    ///
    /// The worker must not write to the block while the slice lives. Nothing enforces that: the caller trusts
    /// the worker's code.
    pub unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: in range by `new`, and the mapping lives as long as `self`; unwritten by the caller's promise.
        unsafe { self.segment.slice(self.at, self.len) }
    }
}

impl std::fmt::Debug for InPlace<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InPlace").field("len", &self.len).finish_non_exhaustive()
    }
}
