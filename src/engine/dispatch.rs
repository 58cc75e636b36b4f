//! The way of a request out: register → claim → note the position → write, commit, wake → look once more
//! whether it has been ended meanwhile.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use super::correlation::{Admission, Admitted, Phase, Refused, Source};
use super::forward::Wakes;
use super::link::{self, Link, Sleeper};
use super::shared::{Lane, Shared};
use crate::base::clock::has_passed;
use crate::base::failure::{Cause, Failure};
use crate::base::ids::{GroupId, Identity, WideNodeId};
use crate::lane::Outgoing;
use crate::os::clock;
use crate::os::futex::Word;
use crate::shm::arena::Block;
use crate::shm::spin::Next;
use crate::wire::envelope::{ENGINE, Envelope};

/// Without a worker's lane: how often one looks who waits for room while somebody else runs a request.
const LOCAL_LOOK: Duration = Duration::from_micros(50);

/// A request as it is handed in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outbound {
    pub target: WideNodeId,
    pub identity: Identity,
    /// Resolved: monotonic ns, 0 = none.
    pub deadline_ns: u64,
    /// Chooses among the processes of the group.
    pub key: Option<u64>,
    /// The lane, where it has been chosen already.
    pub lane: Option<u16>,
}

/// Its payload.
pub(super) enum Payload<'a> {
    Bytes(&'a [u8]),
    /// Written in place, in this worker's lane; the first so many bytes of it.
    Block(Source, Block, usize),
    /// Written in private memory, to be copied behind the envelope; the first so many bytes of it.
    Staged(Box<[u8]>, usize),
}

impl Payload<'_> {
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Block(_, _, len) | Self::Staged(_, len) => *len,
        }
    }

    /// The same payload, holding no room in a lane.
    fn without_block(self) -> Self {
        match self {
            Self::Block(_, block, len) => Self::Staged(block[..len].to_vec().into_boxed_slice(), len),
            payload => payload,
        }
    }

    /// A loan whose worker has died since is sent to the successor from private memory.
    #[inline(always)]
    fn without_block_of_another(self, source: Source) -> Self {
        match self {
            Self::Block(of, block, len) if of != source => {
                Self::Staged(block[..len].to_vec().into_boxed_slice(), len)
            }
            payload => payload,
        }
    }

    pub fn into_vec(self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.to_vec(),
            Self::Block(_, block, len) => block[..len].to_vec(),
            Self::Staged(bytes, len) => {
                let mut bytes = bytes.into_vec();
                bytes.truncate(len);
                bytes
            }
        }
    }
}

/// Why a request was not taken.
pub(super) enum NotTaken<'a> {
    /// No room now; the payload comes back.
    Busy(Payload<'a>),
    TraceInFlight,
    KeyMissing,
    Stopped,
    TooLarge {
        size: usize,
        limit: usize,
    },
    Failed(Failure),
}
impl Shared {
    /// Takes a request, or says why not. Never waits.
    pub fn submit<'a>(&self, outbound: &Outbound, payload: Payload<'a>) -> Result<Admitted, NotTaken<'a>> {
        let group = self.may_enter(outbound)?;
        let limit = self.max_payload();
        if payload.len() > limit {
            return Err(NotTaken::TooLarge { size: payload.len(), limit });
        }
        if self.holds_too_much() {
            return Err(NotTaken::Busy(payload));
        }
        let lane = self.lane_in(group, outbound);
        match &self.lanes[lane] {
            Lane::Worker(seat) => self.submit_to_lane(seat.link(), group, outbound, payload),
            Lane::Local(local) => local.submit(&self.correlation, outbound, payload),
        }
    }

    /// The group that a request enters first. `None`: it may not, and nobody has been told; see [`Shared::may_enter`].
    #[inline(always)]
    pub fn first_group(&self, outbound: &Outbound) -> Option<GroupId> {
        // Against the clock as it was read for this deadline.
        let is_over =
            self.stopping.load(Ordering::SeqCst) || has_passed(outbound.deadline_ns, self.noted_clock_ns());
        if is_over {
            return None;
        }
        let group = self.group_of(outbound.target.node());
        let lacks_key = outbound.key.is_none() && self.placement.groups[usize::from(group.0)].keyed;
        (!lacks_key).then_some(group)
    }

    /// The group that a request enters first, or why it may not, which whoever listens is told.
    #[inline(always)]
    pub fn may_enter(&self, outbound: &Outbound) -> Result<GroupId, NotTaken<'static>> {
        self.first_group(outbound).ok_or_else(|| self.refusal(outbound))
    }

    #[cold]
    fn refusal(&self, outbound: &Outbound) -> NotTaken<'static> {
        // Neither of the first two passes.
        if self.stopping.load(Ordering::SeqCst) {
            return NotTaken::Stopped;
        }
        match self.give_up_if_due(outbound, self.noted_clock_ns()) {
            Err(due) => due,
            Ok(()) => NotTaken::KeyMissing,
        }
    }

    #[inline(always)]
    fn submit_to_lane<'a>(
        &self,
        link: &Link,
        group: GroupId,
        outbound: &Outbound,
        payload: Payload<'a>,
    ) -> Result<Admitted, NotTaken<'a>> {
        let admitted = self.try_submit(link, group, outbound, payload);
        if let Err(NotTaken::Busy(_)) = admitted {
            // What is queued here may have found no room because of a block that has just been given back.
            self.flush_behind_fence(link);
        }
        admitted
    }

    fn try_submit<'a>(
        &self,
        link: &Link,
        group: GroupId,
        outbound: &Outbound,
        payload: Payload<'a>,
    ) -> Result<Admitted, NotTaken<'a>> {
        if !link.is_live() {
            // It waits for the successor, like what is there already.
            let refused = if link.is_lost() {
                NotTaken::Failed(self.dead(link, group))
            } else {
                NotTaken::Busy(payload)
            };
            return Err(refused);
        }
        let payload = payload.without_block_of_another(link.source);
        // What comes from other groups goes first; but a loan holds the very room that it may be waiting for.
        if link.forwards.waiting() != 0 && !matches!(payload, Payload::Block(..)) {
            return Err(NotTaken::Busy(payload));
        }
        let in_memory = match &payload {
            Payload::Bytes(bytes) => bytes,
            Payload::Staged(bytes, len) => &bytes[..*len],
            Payload::Block(..) => &[],
        };
        let outgoing = match in_memory {
            bytes if bytes.len() > link.end.inline_bytes() => {
                let Ok(mut block) = link.end.arena().take(bytes.len()) else {
                    return Err(NotTaken::Busy(payload));
                };
                block.copy_from_slice(bytes);
                Some((block, bytes.len()))
            }
            _ => None,
        };
        let (admitted, position) = match self.admit(link, group, outbound) {
            Ok(taken) => taken,
            Err(Refused::Full) => return Err(NotTaken::Busy(payload)),
            Err(Refused::TraceInFlight) => return Err(NotTaken::TraceInFlight),
        };
        let staged;
        let outgoing = match (outgoing, payload) {
            (Some((block, len)), _) | (None, Payload::Block(_, block, len)) => Outgoing::Block(block, len),
            (None, Payload::Bytes(bytes)) => Outgoing::Inline(bytes),
            (None, Payload::Staged(bytes, len)) => {
                staged = bytes;
                Outgoing::Inline(&staged[..len])
            }
        };
        self.launch(link, outbound, &admitted, position, outgoing);
        Ok(admitted)
    }

    /// Registers a request and claims its place in the ring. What follows until [`Shared::launch`] must not fail.
    #[inline(always)]
    pub(super) fn admit(
        &self,
        link: &Link,
        group: GroupId,
        outbound: &Outbound,
    ) -> Result<(Admitted, u64), Refused> {
        if !link.end.has_room() {
            return Err(Refused::Full);
        }
        let admission = Admission {
            identity: outbound.identity,
            deadline_ns: outbound.deadline_ns,
            home: link.source.lane,
            target: Some(link.source),
            group,
        };
        let admitted = self.correlation.register(&admission)?;
        let Ok(position) = link.end.claim() else {
            // Somebody else took the last slot after the look above, or the worker is dead.
            self.correlation.withdraw(admitted.root());
            return Err(Refused::Full);
        };
        self.correlation.placed(admitted.ticket, position);
        Ok((admitted, position))
    }

    /// Sends an admitted request.
    #[inline(always)]
    pub(super) fn launch(
        &self,
        link: &Link,
        outbound: &Outbound,
        admitted: &Admitted,
        position: u64,
        outgoing: Outgoing<'_>,
    ) {
        let identity = Identity { trace_id: admitted.trace_id, ..outbound.identity };
        let envelope = Envelope::execute(
            &identity,
            admitted.ticket,
            outbound.deadline_ns,
            ENGINE,
            outbound.target.node(),
        );
        link.end.send(position, envelope, outgoing);
        // The full fence inside `send` stands between what has been stored (root, position, frame) and the two
        // looks below. Against each of them somebody else stores, fences and looks the other way round: who
        // raises deadline bounds, who ends the root and cancels its position. A death of the worker needs no look:
        // who settles it finds whatever has been claimed before it ended the claims.
        self.correlation.published(admitted.root(), outbound.deadline_ns);
        if self.correlation.phase(admitted.root()) != Phase::Open {
            link.end.cancel(position);
        }
    }

    /// Takes a request; waits for room until the deadline, reading replies meanwhile.
    #[inline(never)]
    pub fn submit_or_wait<'a>(
        &self,
        outbound: &Outbound,
        payload: Payload<'a>,
    ) -> Result<Admitted, NotTaken<'a>> {
        match self.submit(outbound, payload) {
            Err(NotTaken::Busy(payload)) => self.submit_when_there_is_room(outbound, payload),
            settled => settled,
        }
    }

    #[cold]
    fn submit_when_there_is_room<'a>(
        &self,
        outbound: &Outbound,
        payload: Payload<'a>,
    ) -> Result<Admitted, NotTaken<'a>> {
        // Who waits holds nothing that others wait for: a loan's block goes back, its bytes wait in private memory.
        let mut payload = Some(payload.without_block());
        self.loan_ended(outbound.lane);
        let mut settled = None;
        let try_again = || match self.submit(outbound, payload.take().expect("given back when busy")) {
            Err(NotTaken::Busy(back)) => {
                payload = Some(back);
                false
            }
            other => {
                settled = Some(other);
                true
            }
        };
        self.wait_for_room(outbound, try_again)?;
        settled.expect("there is room")
    }

    /// Waits until `try_again` says that it found room. Each gain of room is a frame among the replies, or a
    /// request run in this process; so who waits reads and runs meanwhile, and not only in the lane that it
    /// wants to enter: that one may be waiting for another.
    pub fn wait_for_room(
        &self,
        outbound: &Outbound,
        mut try_again: impl FnMut() -> bool,
    ) -> Result<(), NotTaken<'static>> {
        let group = self.group_of(outbound.target.node());
        let lane = self.lane_of(outbound);
        let latest = || self.lanes[lane].link().or_else(|| self.links().next());
        let Some(mut link) = latest() else {
            return self.wait_for_local_room(outbound, try_again);
        };
        let mut spinner = link.end.spinner(self.waiting);
        link.begin_looking();
        let result = loop {
            if try_again() {
                break Ok(());
            }
            // While another process of the group lives, the next try finds its way there.
            if self.lanes[lane].is_lost() && self.lanes[self.lane_of(outbound)].is_lost() {
                break Err(NotTaken::Failed(self.dead(link, group)));
            }
            if self.stopping.load(Ordering::SeqCst) {
                break Err(NotTaken::Stopped);
            }
            if self.read(link) || self.look_everywhere() {
                continue;
            }
            let next = spinner.step(link.end.processors());
            if next == Next::Look {
                continue;
            }
            let now_ns = clock::monotonic_ns();
            if let Err(due) = self.give_up_if_due(outbound, now_ns) {
                break Err(due);
            }
            if next == Next::Sleep {
                let until_ns = if outbound.deadline_ns == 0 { u64::MAX } else { outbound.deadline_ns };
                if self.sleep_for_room(link, outbound, until_ns, &mut try_again) {
                    break Ok(());
                }
                spinner.renew();
                // Its worker may have a successor by now.
                link = latest().unwrap_or(link);
                link.begin_looking();
            }
        };
        link.stop_looking(&self.correlation);
        self.arm_for_awaited(link);
        result
    }

    /// Sleeps until room may have come free; true if there was some after all.
    fn sleep_for_room(
        &self,
        link: &Link,
        outbound: &Outbound,
        until_ns: u64,
        try_again: &mut impl FnMut() -> bool,
    ) -> bool {
        let seen = self.room_made.load(Ordering::SeqCst);
        self.begin_waiting_for_room();
        let found = try_again();
        if !found {
            let mut links: Vec<&Link> = self.links().filter(|other| other.load() > 0).collect();
            if !links.iter().any(|other| std::ptr::eq(*other, link)) {
                links.push(link);
            }
            let me = Sleeper::Room(Arc::new(Word::new(0)));
            link::sleep(&links, &self.correlation, &me, until_ns, || {
                !self.lanes[self.lane_of(outbound)].is_lost()
                    && !self.stopping.load(Ordering::SeqCst)
                    && self.room_made.load(Ordering::SeqCst) == seen
            });
        }
        self.end_waiting_for_room();
        found
    }

    fn wait_for_local_room(
        &self,
        outbound: &Outbound,
        mut try_again: impl FnMut() -> bool,
    ) -> Result<(), NotTaken<'static>> {
        while !try_again() {
            if self.stopping.load(Ordering::SeqCst) {
                return Err(NotTaken::Stopped);
            }
            self.give_up_if_due(outbound, clock::monotonic_ns())?;
            if !self.look_everywhere() {
                // Somebody else runs a request; its end makes room.
                std::thread::sleep(LOCAL_LOOK);
            }
        }
        Ok(())
    }

    /// Reads what is there in any lane, or runs what may be run; whether there was anything.
    pub fn look_everywhere(&self) -> bool {
        self.lanes.iter().fold(false, |found, lane| self.look_at(lane) | found)
    }

    /// Reads what is there in a lane, or runs what may be run, and leaves it to others again.
    #[inline(always)]
    pub fn look_at(&self, lane: &Lane) -> bool {
        match lane {
            Lane::Worker(seat) => {
                let link = seat.link();
                let read = self.read(link);
                if read {
                    link.stop_looking_after_read(&self.correlation);
                    self.arm_for_awaited(link);
                }
                read
            }
            Lane::Local(local) => local.help(self),
        }
    }

    /// The lane that a request is to take, as things are now.
    fn lane_of(&self, outbound: &Outbound) -> usize {
        self.lane_in(self.group_of(outbound.target.node()), outbound)
    }

    /// The same for a request whose group is known.
    #[inline(always)]
    pub(super) fn lane_in(&self, group: GroupId, outbound: &Outbound) -> usize {
        match outbound.lane {
            Some(lane) => usize::from(lane),
            None => self.lane_for(group, outbound.key),
        }
    }

    pub fn dead(&self, link: &Link, group: GroupId) -> Failure {
        self.told(Failure::new(self.group_name(group), self.cause_of(link), false, None))
    }

    #[inline(always)]
    pub fn give_up_if_due(&self, outbound: &Outbound, now_ns: u64) -> Result<(), NotTaken<'static>> {
        if has_passed(outbound.deadline_ns, now_ns) { Err(self.too_late(outbound)) } else { Ok(()) }
    }

    #[cold]
    fn too_late(&self, outbound: &Outbound) -> NotTaken<'static> {
        let group = self.group_name(self.group_of(outbound.target.node()));
        NotTaken::Failed(self.told(Failure::new(group, Cause::Deadline, false, None)))
    }

    /// Room in a worker's lane for a payload to be written in place; waits for it until the deadline. The lane is chosen
    /// with it. `None`: it is to be written in private memory.
    #[inline(always)]
    pub fn loan(
        &self,
        outbound: &mut Outbound,
        len: usize,
    ) -> Result<Option<(Source, Block)>, NotTaken<'static>> {
        let limit = self.max_payload();
        if len > limit {
            return Err(NotTaken::TooLarge { size: len, limit });
        }
        let group = self.may_enter(outbound)?;
        let lane = self.lane_for(group, outbound.key);
        outbound.lane = Some(self.lanes[lane].source().lane);
        let Some(link) = self.lanes[lane].link().filter(|link| len > link.end.inline_bytes()) else {
            return Ok(None);
        };
        let take = || {
            // In the worker's latest life: while one waits, it may get a successor.
            let latest = self.lanes[lane].link().unwrap_or(link);
            // What comes from other groups goes first.
            let is_free = latest.forwards.waiting() == 0;
            let block = if is_free { latest.end.arena().take(len).ok() } else { None };
            block.map(|block| (latest.source, block))
        };
        if let Some(taken) = take() {
            return Ok(Some(taken));
        }
        let mut taken = None;
        self.wait_for_room(outbound, || {
            taken = take();
            taken.is_some()
        })?;
        Ok(Some(taken.expect("there is room")))
    }

    /// A loan from this lane is over: sent, or given back.
    pub fn loan_ended(&self, lane: Option<u16>) {
        if let Some(link) = lane.and_then(|lane| self.lanes[usize::from(lane)].link()) {
            self.flush_behind_fence(link);
        }
        fence(Ordering::SeqCst);
        self.room_came_free();
    }

    /// Room was made in a lane other than by reading there.
    pub(super) fn flush_behind_fence(&self, link: &Link) {
        fence(Ordering::SeqCst);
        let mut wakes = Wakes::new();
        self.flush(link, &mut wakes);
        self.wake(wakes);
    }

    /// Reads the request's lane once, so that what its replies free can be used.
    pub fn look_for_room(&self, outbound: &Outbound) {
        let lane = &self.lanes[self.lane_of(outbound)];
        if lane.link().is_some() {
            self.look_at(lane);
        }
    }
}
