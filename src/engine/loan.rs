//! A request whose payload is written in place.
//!
//! All of it stands on a *sheet* that its thread uses again, as that of a reply does and for the same reason: what is
//! moved right after it was written, in other pieces than it was written in, waits for the stores to leave the processor.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::correlation::Source;
use super::dispatch::{NotTaken, Outbound, Payload};
use super::handle::Engine;
use super::pending::{CallError, Pending};
use super::reply::Reply;
use super::request::{DispatchError, TryDispatchError, settled};
use super::shared::Shared;
use super::spare::Spare;
use crate::base::limits::INLINE_REPLY_BYTES;
use crate::shm::arena::Block;

thread_local! {
    /// The sheet of the loan that ended last.
    static SPARE: Spare<Sheet> = const { Spare::none() };
}

/// A request whose payload is written in place, without a copy on the way. Owns room in the arena, but no
/// slot in the ring; dropping it gives the room back. Its deadline runs from the loan on.
#[must_use = "a loan does nothing until it is dispatched or called"]
pub struct Loan {
    /// There until the drop.
    sheet: Option<Box<Sheet>>,
}

#[repr(align(64))]
struct Sheet {
    outbound: Outbound,
    /// There while the sheet is in use.
    engine: Option<Engine>,
    room: Room,
    len: usize,
    /// Whether those who wait for room are told when it ends. Not of what has been answered: whoever read the answer
    /// has told them.
    is_owed: bool,
    staged: [u8; STAGED_BYTES],
}

/// The largest payload that stands on the sheet until it is sent.
const STAGED_BYTES: usize = INLINE_REPLY_BYTES;

/// Where the payload is being written.
enum Room {
    /// On the sheet; or nowhere, when it has been sent.
    Staged,
    /// In this worker's lane.
    Block(Source, Block),
    Heap(Box<[u8]>),
}

impl Loan {
    #[inline(always)]
    pub(super) fn new(engine: &Engine, outbound: Outbound, len: usize) -> Result<Self, DispatchError> {
        let mut sheet = Spare::take(&SPARE).unwrap_or_else(|| Sheet::blank(outbound));
        sheet.outbound = outbound;
        match engine.shared().loan(&mut sheet.outbound, len) {
            Ok(Some((source, block))) => sheet.room = Room::Block(source, block),
            Ok(None) if len <= STAGED_BYTES => sheet.staged[..len].fill(0),
            Ok(None) => sheet.room = Room::Heap(vec![0; len].into()),
            Err(refused) => {
                Spare::leave(&SPARE, sheet);
                return Err(settled(refused));
            }
        }
        sheet.len = len;
        sheet.is_owed = true;
        sheet.engine = Some(engine.clone());
        Ok(Self { sheet: Some(sheet) })
    }

    fn sheet(&self) -> &Sheet {
        self.sheet.as_ref().expect("there until the drop")
    }

    fn sheet_mut(&mut self) -> &mut Sheet {
        self.sheet.as_mut().expect("there until the drop")
    }

    /// Shortens the payload to `len` bytes; longer than the loan it cannot be.
    pub fn truncate(&mut self, len: usize) {
        let sheet = self.sheet_mut();
        sheet.len = sheet.len.min(len);
    }

    /// Sends the request; waits for a slot until the deadline.
    pub fn dispatch(mut self) -> Result<Pending, DispatchError> {
        let (shared, outbound, payload, _) = self.sheet_mut().parts();
        let payload = match shared.send_in_place(outbound, payload) {
            Ok((_, sent)) => return Ok(Pending::of_sent(shared, sent)),
            Err(payload) => payload,
        };
        let admitted = shared.submit_or_wait(outbound, payload).map_err(settled)?;
        Ok(Pending::new(shared, admitted))
    }

    /// Sends the request if there is a slot now; else gives it back.
    pub fn try_dispatch(mut self) -> Result<Pending, TryDispatchError<Self>> {
        let (shared, outbound, payload, room) = self.sheet_mut().parts();
        shared.look_for_room(outbound);
        match shared.submit(outbound, payload) {
            Ok(admitted) => return Ok(Pending::new(shared, admitted)),
            Err(NotTaken::Busy(Payload::Block(source, block, _))) => *room = Room::Block(source, block),
            Err(NotTaken::Busy(Payload::Staged(bytes, _))) => *room = Room::Heap(bytes),
            Err(NotTaken::Busy(Payload::Bytes(_))) => {}
            Err(refused) => return Err(TryDispatchError::Refused(settled(refused))),
        }
        Err(TryDispatchError::Busy(self))
    }

    /// Sends the request and waits for its reply.
    pub fn call(mut self) -> Result<Reply, CallError> {
        let (shared, outbound, payload, _) = self.sheet_mut().parts();
        let reply = shared.call_in_place(outbound, payload)?;
        self.sheet_mut().is_owed = false;
        Ok(reply)
    }
}

#[cfg(feature = "testing")]
impl Loan {
    /// As [`Loan::call`] by the short way, with `between` after the sending and before the waiting. Panics where the
    /// short way is not open.
    pub(crate) fn call_in_two(mut self, between: impl FnOnce()) -> Result<Reply, CallError> {
        let (shared, outbound, payload, _) = self.sheet_mut().parts();
        let Ok((link, sent)) = shared.send_in_place(outbound, payload) else {
            panic!("it cannot be sent at once")
        };
        between();
        let reply = shared.answer_to(link, outbound, &sent)?;
        self.sheet_mut().is_owed = false;
        Ok(reply)
    }
}

impl Sheet {
    #[cold]
    fn blank(outbound: Outbound) -> Box<Self> {
        let (engine, room, len, is_owed) = (None, Room::Staged, 0, false);
        Box::new(Self { outbound, engine, room, len, is_owed, staged: [0; STAGED_BYTES] })
    }

    /// What it takes to send it. The payload is taken out; where it was, for putting it back.
    #[inline(always)]
    fn parts(&mut self) -> (&Arc<Shared>, &Outbound, Payload<'_>, &mut Room) {
        let Self { outbound, engine, room, len, staged, .. } = self;
        let payload = match std::mem::replace(room, Room::Staged) {
            Room::Staged => Payload::Bytes(&staged[..*len]),
            Room::Block(source, block) => Payload::Block(source, block, *len),
            Room::Heap(bytes) => Payload::Staged(bytes, *len),
        };
        (engine.as_ref().expect("in use").shared(), outbound, payload, room)
    }
}

impl Drop for Loan {
    #[inline]
    fn drop(&mut self) {
        let Some(mut sheet) = self.sheet.take() else { return };
        // Room that has not been sent goes back first.
        sheet.room = Room::Staged;
        if let Some(engine) = sheet.engine.take()
            && sheet.is_owed
        {
            engine.shared().loan_ended(sheet.outbound.lane);
        }
        Spare::leave(&SPARE, sheet);
    }
}

impl Deref for Loan {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let sheet = self.sheet();
        match &sheet.room {
            Room::Staged => &sheet.staged[..sheet.len],
            Room::Block(_, block) => &block[..sheet.len],
            Room::Heap(bytes) => &bytes[..sheet.len],
        }
    }
}

impl DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut [u8] {
        let Sheet { room, len, staged, .. } = self.sheet_mut();
        match room {
            Room::Staged => &mut staged[..*len],
            Room::Block(_, block) => &mut block[..*len],
            Room::Heap(bytes) => &mut bytes[..*len],
        }
    }
}
