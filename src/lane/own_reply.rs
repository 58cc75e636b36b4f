//! The usual reply, read by the very one who waits for it: a success that ends the oldest request of the lane, in its
//! slot or in the arena. Whatever is not so is left as it stands, to [`EngineEnd::read`].

use super::engine_end::EngineEnd;
use super::held_blocks::BlockPlace;
use crate::base::sync::Ordering;
use crate::shm::ring::Look;
use crate::shm::view::{PeerSlot, Slot};
use crate::wire::envelope::{self, flags, kind, status};

/// A usual reply, checked as far as the lane can check it. Copied out, but for its payload.
pub struct OwnReply<'a> {
    /// As the worker carried it back.
    pub trace_id: [u64; 2],
    /// The word of route and tags, as the worker carried it back.
    pub tags: u64,
    /// Bytes of its payload.
    pub len: usize,
    slot: PeerSlot<'a>,
}

/// The upper half of the last word of a usual reply's envelope.
const USUAL: u64 = envelope::said_word(kind::TERMINAL, status::SUCCESS, flags::LAST);

/// What stands next in the lane, if it is the usual reply to one's own request, in a slot or in the arena.
struct Usual<'a> {
    /// Its position.
    at: u64,
    trace_id: [u64; 2],
    tags: u64,
    /// The word of length and place.
    payload: u64,
    slot: PeerSlot<'a>,
}

impl EngineEnd {
    /// Reads the next reply if it is the usual one to `ticket`, which stands at `position` among the requests, and fits
    /// its slot. `take` decides whether it ends the request, and what is taken of it. `None`: nothing has happened.
    ///
    /// A full fence stands between the publication of the new position and this function's return.
    #[inline(always)]
    pub fn read_own<T>(
        &self,
        position: u64,
        ticket: u64,
        take: impl FnOnce(OwnReply<'_>) -> Option<T>,
    ) -> Option<T> {
        self.read_usual(position, ticket, |usual| {
            let Usual { trace_id, tags, payload, slot, .. } = usual;
            // Inline: the upper half, its place in the arena, is 0.
            let is_inline = payload <= self.inline_bytes() as u64;
            is_inline.then_some(OwnReply { trace_id, tags, len: payload as usize, slot }).and_then(take)
        })
    }

    /// The same for a reply that lies in the arena: its block is held. `ends` decides by trace id and tags, as the worker
    /// carried them back, whether it ends the request.
    #[inline(never)]
    pub fn read_own_block(
        &self,
        position: u64,
        ticket: u64,
        ends: impl FnOnce([u64; 2], u64) -> bool,
    ) -> Option<BlockPlace> {
        self.read_usual(position, ticket, |usual| {
            let block = BlockPlace { payload_at: (usual.payload >> 32) as u32, len: usual.payload as u32 };
            if block.payload_at == 0 {
                return None;
            }
            // A broken rule is found once more by who reads it next, and told.
            let block = self.hold(block).ok()?;
            if self.holds_in_both_halves() || !ends(usual.trace_id, usual.tags) {
                self.hold_not(block);
                return None;
            }
            Some(block)
        })
    }

    /// As reader, and for one frame.
    #[inline(always)]
    fn read_usual<T>(
        &self,
        position: u64,
        ticket: u64,
        take: impl FnOnce(Usual<'_>) -> Option<T>,
    ) -> Option<T> {
        if !self.take_role() {
            return None;
        }
        let taken = self.usual(position, ticket).and_then(|usual| {
            let at = usual.at;
            let taken = take(usual)?;
            self.free_oldest(position);
            self.consumed(at + 1);
            Some(taken)
        });
        self.give_role_back();
        taken
    }

    #[inline(always)]
    fn usual(&self, position: u64, ticket: u64) -> Option<Usual<'_>> {
        // Relaxed: only holders of the role write these, and the role orders them.
        let at = self.next.load(Ordering::Relaxed);
        let is_oldest = self.freed.0.load(Ordering::Relaxed) == position;
        let place = self.reply_ring.place(at);
        if !is_oldest || place.look() != Look::Ready {
            return None;
        }
        let [_, first, second, of, _, tags, payload, head] = place.slot.words();
        let is_usual = of == ticket && head >> envelope::SAID_SHIFT == USUAL;
        is_usual.then_some(Usual { at, trace_id: [first, second], tags, payload, slot: place.slot })
    }
}

impl OwnReply<'_> {
    /// Copies the payload out; `out` is as long as it.
    #[inline(always)]
    pub fn copy_to(&self, out: &mut [u8]) {
        self.slot.copy_out(out);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Arc;

    use super::*;
    use crate::base::ids::{Identity, NodeId, Ticket};
    use crate::base::waiting::Waiting;
    use crate::lane::{Outgoing, Read, Said, WorkerEnd};
    use crate::os::futex::Word;
    use crate::os::map::Mapping;
    use crate::os::memfd;
    use crate::os::poll::EventFd;
    use crate::shm::view::View;
    use crate::wire::envelope::{ENGINE, Envelope};
    use crate::wire::geometry::Geometry;

    const ARENA: usize = 4096;
    const GEOMETRY: Geometry =
        Geometry { slots: 4, slot_bytes: 256, request_arena_bytes: ARENA, reply_arena_bytes: ARENA };

    fn segment(bytes: usize) -> (View, View) {
        let fd = memfd::create("own-test", bytes as u64).unwrap();
        let writer = Mapping::writable(fd.as_fd(), bytes).unwrap();
        (View::new(writer), View::new(Mapping::read_only(fd.as_fd(), bytes).unwrap()))
    }

    fn lane() -> (EngineEnd, WorkerEnd) {
        lane_of(GEOMETRY)
    }

    fn lane_of(geometry: Geometry) -> (EngineEnd, WorkerEnd) {
        let (request, request_seen) = segment(geometry.request().total);
        let (reply, reply_seen) = segment(geometry.reply().total);
        let (bell, stop) = (EventFd::new().unwrap(), Arc::new(Word::new(0)));
        let worker = WorkerEnd::new(request_seen, reply, geometry, Waiting::Spin, bell, stop);
        (EngineEnd::new(request, reply_seen, geometry), worker)
    }

    /// Reads the one reply that stands there, and lets its block go.
    fn read_and_release(engine: &EngineEnd) {
        let read = engine.read(None, |frame| {
            if let crate::lane::FramePayload::Block(place) = frame.payload {
                engine.release(place);
            }
            Ok(())
        });
        assert_eq!(read, Read::Frames(1));
    }

    /// Sends a request that takes the whole arena, and has it answered in a block of `len` bytes.
    fn answered(engine: &EngineEnd, worker: &mut WorkerEnd, ticket: u64, len: usize) -> u64 {
        let envelope = Envelope::execute(&Identity::default(), Ticket(ticket), 0, ENGINE, NodeId(0));
        let position = engine.claim().unwrap();
        let whole = engine.arena().take(ARENA).unwrap();
        engine.send(position, envelope, Outgoing::Block(whole, ARENA));
        worker.receive().unwrap();
        let mut block = worker.block(len, 1).unwrap();
        block.fill(ticket as u8);
        worker.put_block(Said::new(kind::TERMINAL, status::SUCCESS, 0, 0), block, len, 1).unwrap();
        worker.finish();
        position
    }

    #[test]
    fn memory_01_a_large_reply_that_is_left_alone_can_still_be_read() {
        let (engine, mut worker) = lane();
        for ticket in 1..50 {
            let position = answered(&engine, &mut worker, ticket, 1000);
            assert_eq!(engine.read_own_block(position, ticket + 1, |_, _| true), None, "another's");
            assert_eq!(engine.read_own_block(position, ticket, |_, _| false), None, "ends nothing");
            assert!(engine.arena().take(1).is_err(), "nothing has happened");
            let mut block = None;
            if ticket % 2 == 0 {
                block = engine.read_own_block(position, ticket, |_, _| true);
            } else {
                let read = engine.read(None, |frame| {
                    if let crate::lane::FramePayload::Block(place) = frame.payload {
                        block = Some(place);
                    }
                    Ok(())
                });
                assert_eq!(read, Read::Frames(1));
            }
            let block = block.expect("it is there");
            let mut bytes = [0; 1000];
            engine.copy_block(block, &mut bytes);
            assert_eq!(bytes, [ticket as u8; 1000]);
            engine.release(block);
        }
    }

    #[test]
    fn memory_01_beside_one_in_the_other_half_a_large_reply_is_left_to_be_copied_out() {
        let (engine, mut worker) = lane();
        let position = answered(&engine, &mut worker, 1, ARENA / 2);
        let held = engine.read_own_block(position, 1, |_, _| true).expect("one half");
        let position = answered(&engine, &mut worker, 2, 64);
        assert_eq!(engine.read_own_block(position, 2, |_, _| true), None);
        engine.release(held);
        assert!(engine.read_own_block(position, 2, |_, _| true).is_some());
        let (engine, mut worker) = lane();
        let position = answered(&engine, &mut worker, 1, ARENA / 2 + 1);
        assert_eq!(engine.read_own_block(position, 1, |_, _| true), None, "in both halves by itself");
    }

    #[test]
    fn memory_01_half_the_arena_finds_room_however_replies_are_kept() {
        let mut seed = 7u64;
        let mut below = move |limit: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % limit
        };
        for arena in [4096, 8192, 1 << 18] {
            let (engine, mut worker) = lane_of(Geometry { reply_arena_bytes: arena, ..GEOMETRY });
            let mut kept: Vec<BlockPlace> = Vec::new();
            let mut left_in_place = 0;
            for ticket in 1..3000 {
                // What is copied out goes back at once; what is kept stays for a random time.
                let most = [arena / 64, arena / 8, arena / 2][below(3) as usize];
                let len = 1 + below(most as u64) as usize;
                let position = answered(&engine, &mut worker, ticket, len);
                match engine.read_own_block(position, ticket, |_, _| true) {
                    Some(block) => {
                        left_in_place += 1;
                        kept.push(block);
                    }
                    None => read_and_release(&engine),
                }
                while kept.len() > below(12) as usize {
                    engine.release(kept.swap_remove(below(kept.len() as u64) as usize));
                }
                assert!(worker.block(arena / 2, 1).is_ok(), "{arena}: {kept:?}");
            }
            assert!(left_in_place > 1000, "{left_in_place}");
        }
    }
}
