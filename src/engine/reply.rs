//! A reply: the request's identity and the payload of its terminal.
//!
//! It is moved several times on its way to the caller, and what is moved right after it was written, in other pieces
//! than it was written in, waits for the stores to leave the processor. So what is moved is one pointer, to a *sheet*
//! that its thread uses again: a thread that drops a reply before it takes the next one needs no allocation.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::correlation::Source;
use super::shared::Shared;
use super::spare::Spare;
use crate::base::ids::{Identity, TraceId};
use crate::base::limits::INLINE_REPLY_BYTES;
use crate::base::sync::{AtomicU64, Ordering};
use crate::lane::BlockPlace;
use crate::shm::block::InPlace;

thread_local! {
    /// The sheet of the reply that was dropped last.
    static SPARE: Spare<Sheet> = const { Spare::none() };
}

/// A reply: the request's identity and the payload of its terminal.
///
/// A small payload has been copied out. A large one stays in shared memory until the reply is dropped, also
/// after the engine has been stopped; meanwhile its worker lacks that room. While more than half the reply
/// arena is held in that way, further large ones are copied out too.
pub struct Reply {
    /// There until the drop.
    sheet: Option<Box<Sheet>>,
}

#[repr(align(64))]
struct Sheet {
    identity: Identity,
    body: Body,
    /// The payload, if it is a small one.
    bytes: [u8; INLINE_REPLY_BYTES],
}

enum Body {
    /// So many of the sheet's bytes.
    Small(u16),
    Heap(Box<[u8]>),
    View(View),
}

/// A held block that goes back when dropped.
struct View {
    shared: Arc<Shared>,
    source: Source,
    block: BlockPlace,
}

impl View {
    fn len(&self) -> usize {
        self.block.len as usize
    }

    fn in_place(&self) -> InPlace<'_> {
        self.shared.link_of(self.source).end.in_place(self.block)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.shared.link_of(self.source).end.release(self.block);
    }
}

impl Reply {
    /// Of no bytes yet.
    #[inline(always)]
    fn on_sheet(identity: Identity) -> Box<Sheet> {
        let mut sheet = Spare::take(&SPARE).unwrap_or_else(Sheet::blank);
        sheet.identity = identity;
        sheet
    }

    #[inline(always)]
    fn of_body(identity: Identity, body: Body) -> Self {
        let mut sheet = Self::on_sheet(identity);
        sheet.body = body;
        Self { sheet: Some(sheet) }
    }

    fn sheet(&self) -> &Sheet {
        self.sheet.as_ref().expect("there until the drop")
    }

    /// Of at most [`INLINE_REPLY_BYTES`], so many, which `fill` writes.
    #[inline(always)]
    pub(super) fn small(identity: Identity, len: usize, fill: impl FnOnce(&mut [u8])) -> Self {
        let mut sheet = Self::on_sheet(identity);
        fill(&mut sheet.bytes[..len]);
        match &mut sheet.body {
            // A spare one always is: nothing has to be moved or dropped.
            Body::Small(of) => *of = len as u16,
            other => *other = Body::Small(len as u16),
        }
        Self { sheet: Some(sheet) }
    }

    /// Of so many bytes, which `fill` writes; what it leaves alone is nought.
    pub(super) fn filled(identity: Identity, len: usize, fill: impl FnOnce(&mut [u8])) -> Self {
        if len > INLINE_REPLY_BYTES {
            let mut bytes = vec![0; len].into_boxed_slice();
            fill(&mut bytes);
            return Self::in_memory(identity, bytes);
        }
        Self::small(identity, len, |room| {
            room.fill(0);
            fill(room);
        })
    }

    /// Of these bytes.
    #[inline]
    pub(super) fn copy_of(identity: Identity, bytes: &[u8]) -> Self {
        match bytes.len() {
            len if len > INLINE_REPLY_BYTES => Self::in_memory(identity, bytes.into()),
            len => Self::small(identity, len, |room| room.copy_from_slice(bytes)),
        }
    }

    /// Out of the cell of an ended root.
    #[inline]
    pub(super) fn of_cell(identity: Identity, cell: &[AtomicU64], len: u32) -> Self {
        match len as usize {
            len if len > INLINE_REPLY_BYTES => Self::filled(identity, len, |bytes| copy_words(cell, bytes)),
            len => Self::small(identity, len, |bytes| copy_words(cell, bytes)),
        }
    }

    /// A large one that has been copied out.
    pub(super) fn in_memory(identity: Identity, bytes: Box<[u8]>) -> Self {
        Self::of_body(identity, Body::Heap(bytes))
    }

    /// A large one, whose block is held.
    #[inline(always)]
    pub(super) fn in_arena(
        identity: Identity,
        shared: &Arc<Shared>,
        source: Source,
        block: BlockPlace,
    ) -> Self {
        Self::of_body(identity, Body::View(View { shared: Arc::clone(shared), source, block }))
    }

    /// Payload bytes.
    pub fn len(&self) -> usize {
        match &self.sheet().body {
            Body::Small(len) => usize::from(*len),
            Body::Heap(bytes) => bytes.len(),
            Body::View(view) => view.len(),
        }
    }

    /// Whether the payload is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The request's identity, unchanged.
    pub fn identity(&self) -> Identity {
        self.sheet().identity
    }

    /// The request's id.
    pub fn trace_id(&self) -> TraceId {
        self.sheet().identity.trace_id
    }

    /// The payload, if it lies in this process's own memory.
    #[inline]
    fn own_bytes(&self) -> Result<&[u8], &View> {
        let sheet = self.sheet();
        match &sheet.body {
            Body::Small(len) => Ok(&sheet.bytes[..usize::from(*len)]),
            Body::Heap(bytes) => Ok(bytes),
            Body::View(view) => Err(view),
        }
    }

    /// The payload; copied if it lies in shared memory.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        match self.own_bytes() {
            Ok(bytes) => Cow::Borrowed(bytes),
            Err(view) => {
                let mut bytes = vec![0; view.len()];
                view.in_place().copy_to(0, &mut bytes);
                Cow::Owned(bytes)
            }
        }
    }

    /// The payload as a vector.
    pub fn into_vec(mut self) -> Vec<u8> {
        let sheet = self.sheet.as_mut().expect("there until the drop");
        if let Body::Heap(bytes) = &mut sheet.body {
            return std::mem::take(bytes).into_vec();
        }
        self.bytes().into_owned()
    }

    /// Copies `out.len()` payload bytes from `offset` on, without an allocation.
    ///
    /// # Panics
    ///
    /// If the range is not inside the payload.
    pub fn copy_to(&self, offset: usize, out: &mut [u8]) {
        match self.own_bytes() {
            Ok(bytes) => out.copy_from_slice(&bytes[offset..][..out.len()]),
            Err(view) => view.in_place().copy_to(offset, out),
        }
    }

    /// The payload where it lies, if it is a large one in shared memory.
    pub fn in_place(&self) -> Option<InPlace<'_>> {
        self.own_bytes().err().map(View::in_place)
    }

    /// The byte at `offset`, read in place; `None` beyond the end.
    pub fn read_at(&self, offset: usize) -> Option<u8> {
        (offset < self.len()).then(|| {
            let mut byte = [0];
            self.copy_to(offset, &mut byte);
            byte[0]
        })
    }

    /// The payload as a value of `T`, copied; `None` if it is none.
    pub fn to_value<T: zerocopy::TryFromBytes>(&self) -> Option<T> {
        T::try_read_from_bytes(&self.bytes()).ok()
    }
}

impl Sheet {
    #[cold]
    fn blank() -> Box<Self> {
        Box::new(Self { identity: Identity::default(), body: Body::Small(0), bytes: [0; INLINE_REPLY_BYTES] })
    }
}

impl Drop for Reply {
    #[inline]
    fn drop(&mut self) {
        if let Some(mut sheet) = self.sheet.take() {
            // A block goes back, and memory.
            sheet.body = Body::Small(0);
            Spare::leave(&SPARE, sheet);
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("identity", &self.identity()).field("len", &self.len()).finish()
    }
}

/// Copies out of a root's cell. Relaxed: ordered by the Acquire that saw the root ended.
#[inline]
fn copy_words(cell: &[AtomicU64], out: &mut [u8]) {
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

    fn id() -> Identity {
        Identity { reply_to: 7, ..Identity::default() }
    }

    #[test]
    fn memory_01_a_sheet_that_is_used_again_shows_its_own_bytes_only() {
        let long = Reply::small(id(), INLINE_REPLY_BYTES, |bytes| bytes.fill(7));
        let at = long.bytes().as_ptr();
        drop(long);
        let cell: Vec<AtomicU64> = (1..=3).map(AtomicU64::new).collect();
        let short = Reply::of_cell(Identity::default(), &cell, 17);
        assert_eq!(short.bytes().as_ptr(), at, "the spare one");
        assert_eq!(*short.bytes(), [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3]);
        assert_eq!(short.identity(), Identity::default());
        let other = Reply::small(id(), 0, |_| ());
        assert!(other.is_empty() && other.bytes().as_ptr() != at);
    }

    #[test]
    fn memory_01_a_large_payload_leaves_nothing_on_its_sheet() {
        let large = Reply::in_memory(id(), vec![9; 1000].into());
        assert_eq!((large.len(), large.read_at(999), large.read_at(1000)), (1000, Some(9), None));
        assert_eq!(large.into_vec(), [9; 1000]);
        let small = Reply::small(id(), 3, |bytes| bytes.copy_from_slice(b"abc"));
        assert_eq!((small.identity(), small.into_vec()), (id(), b"abc".to_vec()));
    }

    #[test]
    fn a_reply_may_be_dropped_by_another_thread() {
        let reply = Reply::small(id(), 1, |bytes| bytes[0] = 9);
        let bytes = std::thread::spawn(move || reply.into_vec()).join();
        assert_eq!(bytes.expect("nothing panics"), [9]);
    }
}
