//! What workers do in a history: they answer, lie, die and come again.

use std::collections::VecDeque;

use handbell::testing::{Envelope, Judged, LastMark, Passed, Peer, flags, kind, status, ticket};
use handbell::{Cause, KilledFor, Rule};

use crate::history::{History, Step, same};

impl History {
    fn envelope(&self, hop: usize) -> Envelope {
        let honest = self.waiters[self.model.hops[hop].root].terminal();
        Envelope { ticket: self.model.ticket(hop), ..honest }
    }

    /// A worker goes on with something that it was asked.
    pub fn answer(&mut self) -> Step {
        match self.some_lane(|lane| lane.is_live && !lane.ring.is_empty()) {
            Some(lane) => self.answer_of(lane),
            None => Ok(()),
        }
    }

    pub fn answer_of(&mut self, lane: usize) -> Step {
        // Seldom not the oldest: a worker that has begun it, or lies.
        let at = if self.one_in(8) { self.below(self.lanes[lane].ring.len()) } else { 0 };
        let hop = (self.lanes[lane].ring[at] >> 24) as usize - 1;
        let position = self.lanes[lane].freed + at as u64;
        self.lanes[lane].begun = self.lanes[lane].begun.max(position + 1);
        let is_last = self.one_in(3) && (at == 0 || self.one_in(4));
        let mut frame = self.envelope(hop);
        frame.kind = [kind::TERMINAL, kind::OUTPUT, kind::OUTPUT, kind::DONE][self.below(4)];
        if self.model.is_rerun(hop) && !self.one_in(4) {
            // It begins as it did the first time.
            frame.kind = kind::OUTPUT;
        }
        frame.status = if self.one_in(5) { status::ERROR } else { status::SUCCESS };
        let is_last = is_last || frame.kind != kind::OUTPUT && at == 0 && self.one_in(2);
        frame.flags = if is_last || frame.kind == kind::DONE && at == 0 { flags::LAST } else { 0 };
        self.judge(lane, self.lanes[lane].peer, frame)
    }

    /// A frame that nobody should have sent.
    pub fn lie(&mut self) -> Step {
        let lane = self.below(self.lanes.len());
        let hops = self.model.hops.len();
        if hops == 0 || !self.lanes[lane].is_live {
            return Ok(());
        }
        let hop = hops - 1 - self.below(hops.min(20));
        let mut frame = self.envelope(hop);
        frame.kind = [kind::TERMINAL, kind::TERMINAL, kind::OUTPUT, kind::DONE][self.below(4)];
        frame.flags = if self.one_in(4) { flags::LAST } else { 0 };
        match self.below(16) {
            0 => frame.reply_to ^= 1,
            1 => frame.run ^= 1,
            2 => frame.scenario ^= 1,
            3 => frame.trace_id[self.below(2)] ^= 1,
            // Another generation of the slot: of an earlier user, or never issued.
            4 => frame.ticket = ticket(self.model.hops[hop].slot, self.below(hops + 2) as u64),
            5 => {
                let slots = self.tables.roots * self.tables.max_branches;
                frame.ticket = ticket(self.below(slots + 1) as u32, self.below(hops + 2) as u64);
            }
            _ => {}
        }
        let mut peer = self.lanes[lane].peer;
        if let Some(asked) = self.model.hops[hop].peer.filter(|_| self.one_in(2)) {
            // Mostly of the one who was asked, once more or too late; at times of its former life.
            peer = asked;
        }
        let is_present = self.lanes[usize::from(peer.lane)].peer == peer;
        if is_present && !self.lanes[usize::from(peer.lane)].is_live {
            return Ok(());
        }
        self.judge(usize::from(peer.lane), peer, frame)
    }

    /// A frame is read.
    fn judge(&mut self, lane: usize, peer: Peer, frame: Envelope) -> Step {
        let way = self.way_on(peer, &frame);
        if frame.kind == kind::OUTPUT && way.is_none() {
            return Ok(());
        }
        let is_present = self.lanes[lane].peer == peer;
        let last = if frame.flags & flags::LAST == 0 {
            LastMark::No
        } else if is_present && self.lanes[lane].ring.front() == Some(&frame.ticket) {
            let lane = &mut self.lanes[lane];
            lane.ring.pop_front();
            lane.freed += 1;
            lane.begun = lane.begun.max(lane.freed);
            LastMark::Ended
        } else {
            LastMark::Stray
        };
        let broke = if let Some(way) = way {
            self.judge_output(peer, &frame, last, way)?
        } else if self.one_in(2) && self.read_own(peer, &frame, last)? {
            None
        } else {
            let payload: Vec<u8> = (0..self.below(12)).map(|i| (i as u64 + self.steps) as u8).collect();
            let judged = self.machine.frame(peer, &frame, last, &payload, self.now_ns);
            self.note(format_args!("{peer:?} {last:?} {}: {judged:?}", shown(&frame)));
            same("verdict", judged, self.model.frame(peer, &frame, last, &payload, self.now_ns))?;
            if let Judged::Broke(rule) = judged { Some(rule) } else { None }
        };
        if let Some(rule) = broke {
            return if is_present { self.break_rule(lane, rule) } else { Ok(()) };
        }
        if last == LastMark::Ended {
            self.machine.branch_ended(frame.ticket);
            self.model.run_end((frame.ticket >> 24) as usize - 1);
            self.enter_all()?;
            self.flush(lane)?;
        }
        Ok(())
    }

    /// The owner of a request, who waits for it, reads the frame himself. Whether that has ended it.
    fn read_own(&mut self, peer: Peer, frame: &Envelope, last: LastMark) -> Result<bool, String> {
        let is_usual =
            frame.kind == kind::TERMINAL && frame.status == status::SUCCESS && last == LastMark::Ended;
        let hop = ((frame.ticket >> 24) as usize).checked_sub(1).filter(|hop| *hop < self.model.hops.len());
        let Some(root) = hop.map(|hop| self.model.hops[hop].root).filter(|_| is_usual) else {
            return Ok(false);
        };
        if self.model.roots[root].input.is_some() || self.model.is_detached(root) {
            return Ok(false);
        }
        let has_ended = self.machine.end_own(&self.waiters[root], peer, frame, self.now_ns);
        self.note(format_args!("{peer:?} {}: read by request {root}: {has_ended}", shown(frame)));
        let is_first = frame.ticket == self.waiters[root].terminal().ticket;
        same("own reply", has_ended, is_first && self.model.ends(peer, frame, last))?;
        if has_ended {
            same("verdict", Judged::Ended, self.model.frame(peer, frame, last, &[], self.now_ns))?;
            same("outcome", true, self.model.take(root).is_some())?;
        }
        Ok(has_ended)
    }

    /// Where an output goes, from where; nowhere in an honest plan of one group, or in a run from the last one.
    fn way_on(&mut self, peer: Peer, frame: &Envelope) -> Option<(u16, u16)> {
        if frame.kind != kind::OUTPUT {
            return None;
        }
        let from = self.lanes[usize::from(peer.lane)].group;
        let parent =
            ((frame.ticket >> 24) as usize).checked_sub(1).filter(|hop| *hop < self.model.hops.len());
        let in_run = parent.is_some_and(|hop| self.model.roots[self.model.hops[hop].root].input.is_some());
        let groups = self.groups.len() as u16;
        let to = match groups - from {
            _ if groups == 1 => return None,
            1 if in_run => return None,
            behind if in_run => from + 1 + self.below(usize::from(behind) - 1) as u16,
            _ => (from + 1 + self.below(usize::from(groups) - 1) as u16) % groups,
        };
        Some((from, to))
    }

    fn judge_output(
        &mut self,
        peer: Peer,
        frame: &Envelope,
        last: LastMark,
        way: (u16, u16),
    ) -> Result<Option<Rule>, String> {
        let passed = self.machine.output(peer, frame, last, way, self.max_hops, self.now_ns);
        self.note(format_args!("{peer:?} {last:?} {} to {}: {passed:?}", shown(frame), way.1));
        let slot = if let Passed::On(ticket) = passed { Some((ticket & 0xFF_FFFF) as u32) } else { None };
        let expected = self.model.output(peer, frame, last, way, self.now_ns, slot)?;
        same("passage", passed, expected)?;
        match passed {
            Passed::On(ticket) => {
                let (parent, hop) = ((frame.ticket >> 24) as usize - 1, self.model.hops.len() - 1);
                let root = self.model.hops[hop].root;
                if self.model.roots[root].input.is_none() {
                    self.hand_on(hop)?;
                } else {
                    let executes = self.machine.hold(frame.ticket, ticket, way.1);
                    same("an output's parent executes", executes, self.model.run_output(parent, hop))?;
                    self.enter_all()?;
                }
                Ok(None)
            }
            Passed::Broke(rule) => Ok(Some(rule)),
            Passed::Ended | Passed::Dropped => Ok(None),
        }
    }

    fn break_rule(&mut self, lane: usize, rule: Rule) -> Step {
        self.settle(lane, Cause::Killed(KilledFor::Corruption(rule)), true)
    }

    pub fn die(&mut self, lane: usize, cause: Cause) -> Step {
        // What it published before its end is read first.
        for _ in 0..self.below(4) {
            if self.lanes[lane].is_live && !self.lanes[lane].ring.is_empty() {
                self.answer_of(lane)?;
            }
        }
        if self.lanes[lane].is_live { self.settle(lane, cause, false) } else { Ok(()) }
    }

    fn settle(&mut self, lane: usize, cause: Cause, is_corrupt: bool) -> Step {
        let has_successor = !self.one_in(8);
        self.note(format_args!("lane {lane} dies, {cause:?}, a successor: {has_successor}"));
        self.lanes[lane].is_live = false;
        self.lanes[lane].is_lost = !has_successor;
        let group = &self.groups[usize::from(self.lanes[lane].group)];
        if has_successor && group.redispatch_unstarted && !is_corrupt {
            let (peer, idempotent) = (self.lanes[lane].peer, group.idempotent);
            let mut back = VecDeque::new();
            let (freed, begun) = (self.lanes[lane].freed, self.lanes[lane].begun);
            for (at, ticket) in self.lanes[lane].ring.clone().into_iter().enumerate() {
                if freed + at as u64 >= begun || idempotent {
                    let hop = (ticket >> 24) as usize - 1;
                    let taken = self.machine.take_back(peer, &self.envelope(hop));
                    self.note(format_args!("hop {} taken back: {taken}", hop + 1));
                    same("taken back", taken, self.model.take_back(peer, hop))?;
                    back.extend(taken.then_some(hop));
                }
            }
            back.append(&mut self.lanes[lane].queue);
            self.lanes[lane].queue = back;
        }
        self.end_lane(lane, has_successor, cause)
    }

    pub fn end_lane(&mut self, lane: usize, has_successor: bool, cause: Cause) -> Step {
        let (peer, begun) = (self.lanes[lane].peer, self.begun());
        let ended = self.machine.end_all_of(peer, has_successor, cause, self.now_ns, &begun);
        let owed = self.model.owed_by(peer, has_successor);
        self.note(format_args!("{peer:?} owes {owed:?}: {ended:?}"));
        self.end_in_model(ended, owed, Some(peer), cause, &begun)?;
        for hop in std::mem::take(&mut self.lanes[lane].queue) {
            if has_successor && self.is_open(hop) {
                self.lanes[lane].queue.push_back(hop);
            } else {
                self.put_down(hop);
            }
        }
        Ok(())
    }

    /// There is to be no successor after all.
    pub fn give_up_on(&mut self, lane: usize) -> Step {
        self.note(format_args!("lane {lane} stays dead"));
        self.lanes[lane].is_lost = true;
        self.end_lane(lane, false, Cause::Exit(3))
    }

    pub fn revive(&mut self, lane: usize) -> Step {
        let seat = &mut self.lanes[lane];
        seat.peer.incarnation += 1;
        (seat.is_live, seat.freed, seat.begun) = (true, 0, 0);
        seat.ring.clear();
        self.note(format_args!("lane {lane} lives again"));
        self.flush(lane)
    }
}

fn shown(frame: &Envelope) -> String {
    format!(
        "kind {} status {} ticket {}.{} of {:x} {}/{}/{}",
        frame.kind,
        frame.status,
        frame.ticket & 0xFF_FFFF,
        frame.ticket >> 24,
        frame.trace_id[0],
        frame.reply_to,
        frame.run,
        frame.scenario
    )
}
