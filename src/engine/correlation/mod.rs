//! The correlation table: every request ends exactly once.
//!
//! Owns: the roots (waiters), their hop entries, the callers' ids in flight, deadlines, the memory of what
//! completed, counters, events. Fixed tables, allocated once.
//! Never: touches a ring, reads a clock, starts or stops anything. Frames, calls and clock readings are its
//! input; the same sequence of them gives the same outcomes, counters and events.
//!
//! Invariants: a root's state changes by one compare-and-swap, so the first end wins; a frame counts only
//! for the open hop, lane and incarnation that it was asked of; identity is always taken from the root.
//!
//! Hop entries: root `r` owns the entries `r * max_branches ..`, so admission of a root reserves them all, and
//! a branch that goes on needs none but its root's. Every hop takes the next number of one count, which is its
//! ticket's generation; a root is known by the number of its first hop.

mod counters;
mod deadlines;
mod ends;
mod events;
mod freelist;
mod history;
mod hop;
mod index;
mod kept;
mod outcome;
mod own;
mod root;

pub use counters::Counters;
pub use events::{Event, EventKind};

pub(crate) use counters::LaneCounters;
pub(crate) use ends::Way;
pub(crate) use hop::Source;
pub(crate) use kept::{Tally, Winner};
pub(crate) use outcome::{Outcome, cause_from_word, cause_to_word};
pub(crate) use root::{Aftermath, Phase, RootKey};

use deadlines::Deadlines;
use events::Events;
use freelist::FreeList;
use history::History;
use hop::Hop;
use index::{Bucket, Index};
use root::Root;

use crate::base::ids::{GroupId, Identity, Ticket, TraceId};
use crate::base::sync::{AtomicU64, Ordering, pause};
use crate::os::futex::Word;
use crate::os::table::{prefetch, table};

/// Sizes of the tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub roots: usize,
    pub max_branches: usize,
    pub completed_history: usize,
    pub lanes: usize,
    /// Payload bytes that a root's cell holds.
    pub inline_bytes: usize,
}

/// A request on its way in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admission {
    /// Without a trace id the engine makes one.
    pub identity: Identity,
    pub deadline_ns: u64,
    /// The lane that counts the request.
    pub home: u16,
    /// Where its first hop is asked; none if it must wait before it gets its lane.
    pub target: Option<Source>,
    /// The group that it enters first.
    pub group: GroupId,
}

/// What an admitted request is known by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admitted {
    /// Of its root.
    pub index: u32,
    /// If the trace id is the caller's: its bucket of the index.
    pub bucket: Option<Bucket>,
    pub ticket: Ticket,
    pub trace_id: TraceId,
    /// The request's own, from 1.
    pub number: u64,
}

impl Admitted {
    pub fn root(&self) -> RootKey {
        RootKey { index: self.index, generation: self.number % Ticket::GENERATIONS }
    }
}

/// Why a request is not admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    /// The table is full.
    Full,
    /// The caller's id is in flight.
    TraceInFlight,
}

/// What became of a terminal, or of the end of a branch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// It ended this root; its payload is taken over.
    Ended(u32, Aftermath),
    /// It answers a request of a run that has other branches: what it is depends on them. Only of a terminal. The
    /// run is to keep its payload; [`Correlation::candidate`] follows.
    Candidate(RootKey),
    /// The last branch has ended, and answers of this request are kept: [`Correlation::end_with_answer`] follows.
    Due(RootKey),
    /// Its payload is not wanted.
    Dropped,
}

/// What became of an output.
pub(crate) enum Passage<'c> {
    /// It goes on.
    On(Branch<'c>),
    /// It was one too many: its root has ended.
    Ended(u32, Aftermath),
    /// As [`Verdict::Due`].
    Due(RootKey),
    /// It is not wanted.
    Dropped,
}

/// A hop of an open root that is being sent, or put aside: meanwhile the root is not freed.
pub(crate) struct Branch<'c> {
    correlation: &'c Correlation,
    pub root: RootKey,
    pub ticket: Ticket,
}

/// A root that something other than a frame has ended.
#[derive(Clone, Debug)]
pub(crate) struct EndedRoot {
    pub index: u32,
    pub aftermath: Aftermath,
    /// Where each frame of it stands that has been sent and not ended, to be cancelled there.
    pub frames: Vec<(Source, u64)>,
    /// One of its hops that had not ended, for the run that it belongs to.
    pub hop: Option<Ticket>,
}

/// A look at the tables themselves, beside the counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Audit {
    /// Requests that have not ended, counted in the table.
    pub in_flight: u64,
    /// Requests that have ended and whose result nobody has taken yet.
    pub not_taken: u64,
    /// Free places for requests.
    pub free: u64,
    /// Callers' ids in flight.
    pub ids_in_flight: u64,
    /// Hops of requests in flight that the worker has not ended.
    pub open_hops: u64,
}

/// The table.
pub(crate) struct Correlation {
    sizes: Sizes,
    /// High half of ids made here: what makes them differ from those of another engine.
    id_seed: u64,
    roots: Box<[Root]>,
    hops: Box<[Hop]>,
    /// Inline payloads of terminals, `words_per_cell` for each root.
    cells: Box<[AtomicU64]>,
    words_per_cell: usize,
    /// The tables do not fit a processor's own caches.
    is_large: bool,
    free: FreeList,
    index: Index,
    deadlines: Deadlines,
    history: History,
    events: Events,
    counters: Box<[LaneCounters]>,
    /// The same for what is counted without a lane's reader role.
    beside: Box<[LaneCounters]>,
    /// Requests admitted so far; the next number is one more.
    numbers: AtomicU64,
}

/// Tables of so many roots, with the usual branches, take about two MiB.
const CACHED_ROOTS: usize = 4096;

const CALLERS_ID: u64 = 1 << 32;
/// The request is one of a run: it ends with its last branch.
const IN_RUN: u64 = 1 << 33;

impl Correlation {
    pub fn new(sizes: Sizes, id_seed: u64) -> Self {
        let words_per_cell = sizes.inline_bytes.div_ceil(8);
        Self {
            id_seed,
            roots: table(sizes.roots, Root::default),
            hops: table(sizes.roots * sizes.max_branches, Hop::default),
            cells: table(sizes.roots * words_per_cell, || AtomicU64::new(0)),
            words_per_cell,
            is_large: sizes.roots > CACHED_ROOTS,
            free: FreeList::new(sizes.roots as u32),
            index: Index::new(sizes.roots),
            deadlines: Deadlines::new(sizes.roots),
            history: History::new(sizes.completed_history),
            events: Events::new(),
            counters: (0..sizes.lanes).map(|_| LaneCounters::default()).collect(),
            beside: Self::beside(sizes.lanes),
            numbers: AtomicU64::new(0),
            sizes,
        }
    }

    // ---- births ----

    /// Registers a request and opens its first hop.
    #[inline(always)]
    pub fn register(&self, admission: &Admission) -> Result<Admitted, Refused> {
        let mut identity = admission.identity;
        let has_callers_id = !identity.trace_id.is_none();
        if has_callers_id && self.is_large {
            self.index.prefetch_with_next(identity.trace_id.to_words());
        }
        let index = self.free.pop().ok_or(Refused::Full)?;
        let root = &self.roots[index as usize];
        let mut bucket = None;
        if has_callers_id {
            let words = identity.trace_id.to_words();
            root.trace_id[0].store(words[0], Ordering::Relaxed);
            root.trace_id[1].store(words[1], Ordering::Relaxed);
            bucket = self.index.insert(words, index, |other| self.trace_words(other));
            if bucket.is_none() {
                self.free.push(index);
                return Err(Refused::TraceInFlight);
            }
        }
        let number = self.numbers.fetch_add(1, Ordering::Relaxed) + 1;
        let generation = number % Ticket::GENERATIONS;
        if !has_callers_id {
            identity.trace_id = TraceId::from_words([number, self.id_seed]);
            root.trace_id[0].store(number, Ordering::Relaxed);
            root.trace_id[1].store(self.id_seed, Ordering::Relaxed);
        }
        root.number.store(number, Ordering::Relaxed);
        root.deadline_ns.store(admission.deadline_ns, Ordering::Relaxed);
        root.tags.store(tags(&identity), Ordering::Relaxed);
        let callers_id = if has_callers_id { CALLERS_ID } else { 0 };
        root.place.store(u64::from(admission.home) | callers_id, Ordering::Relaxed);
        let hop = index * self.sizes.max_branches as u32;
        self.hops[hop as usize].open(generation, admission.target, admission.group, 1);
        self.counters[usize::from(admission.home)].registered.add();
        root.open(generation);
        Ok(Admitted {
            index,
            bucket,
            ticket: Ticket::new(hop, generation),
            trace_id: identity.trace_id,
            number,
        })
    }

    /// Takes a registration back, as if it had never been: the request could not be sent after all. Its number
    /// is not used again.
    pub fn withdraw(&self, key: RootKey) {
        let root = &self.roots[key.index as usize];
        if !root.try_end(key.generation) {
            // Somebody ended it meanwhile; then it counts as that. It is freed once that has been written.
            while root.phase() != Phase::Ended {
                pause();
            }
            self.free(key.index);
            return;
        }
        let place = root.place.load(Ordering::Relaxed);
        self.counters[usize::from(place as u16)].registered.take_back();
        if place & CALLERS_ID != 0 {
            self.index.remove(self.index.bucket_of(self.trace_words(key.index)), key.index);
        }
        root.finish();
        self.free(key.index);
    }

    /// What remains to be done once the request is on its way. A full fence stands between [`Self::register`]
    /// and this.
    #[inline]
    pub fn published(&self, key: RootKey, deadline_ns: u64) {
        self.deadlines.set(key.index, deadline_ns);
    }

    /// Notes where the frame of a hop stands in its lane.
    #[inline]
    pub fn placed(&self, ticket: Ticket, position: u64) {
        self.hops[ticket.slot() as usize].place(position);
    }

    // ---- the owner ----

    /// Where the request stands.
    #[inline(always)]
    pub fn phase(&self, key: RootKey) -> Phase {
        self.roots[key.index as usize].phase()
    }

    /// Whether this very request has not ended; unlike [`Correlation::phase`] also asked by others than its owner,
    /// after whom the place may be somebody else's.
    pub fn is_open(&self, key: RootKey) -> bool {
        self.roots[key.index as usize].open_generation() == Some(key.generation)
    }

    /// The owner leaves before it has taken the outcome; true if it has to take and free it itself.
    pub fn detach(&self, key: RootKey) -> bool {
        self.roots[key.index as usize].detach()
    }

    /// The outcome of an ended root, the group that it speaks of, and whether the worker had started.
    pub fn outcome(&self, index: u32) -> (Outcome, GroupId, bool) {
        self.roots[index as usize].outcome.get()
    }

    pub fn identity(&self, index: u32) -> Identity {
        let tags = self.roots[index as usize].tags.load(Ordering::Relaxed);
        Identity {
            trace_id: TraceId::from_words(self.trace_words(index)),
            reply_to: tags as u32,
            run: (tags >> 32) as u16,
            scenario: (tags >> 48) as u16,
        }
    }

    pub fn deadline_ns(&self, index: u32) -> u64 {
        self.roots[index as usize].deadline_ns.load(Ordering::Relaxed)
    }

    /// The inline payload of an ended root.
    pub fn cell(&self, index: u32) -> &[AtomicU64] {
        let first = index as usize * self.words_per_cell;
        &self.cells[first..first + self.words_per_cell]
    }

    /// Frees an ended root; its outcome has been taken.
    pub fn free(&self, index: u32) {
        self.roots[index as usize].free();
        self.free.push(index);
    }

    /// The word that the owner sleeps on.
    pub fn wake_word(&self, index: u32) -> &Word {
        &self.roots[index as usize].wake
    }

    /// Says that the owner is about to sleep on its wake word; false if the root has ended.
    pub fn fall_asleep(&self, index: u32) -> bool {
        self.roots[index as usize].fall_asleep()
    }

    pub fn wake_up(&self, index: u32) {
        self.roots[index as usize].wake_up();
    }

    /// Says that the owner has left a waker; false if the root has ended.
    pub fn await_end(&self, index: u32) -> bool {
        self.roots[index as usize].await_end()
    }

    /// Grows whenever a hop of the root gets its lane.
    #[inline(always)]
    pub fn moves(&self, index: u32) -> u64 {
        self.roots[index as usize].moves()
    }

    /// The lanes that open hops of the root are asked of.
    pub fn lanes_of(&self, key: RootKey) -> impl Iterator<Item = u16> {
        self.open_hops(key).filter_map(Hop::lane)
    }

    // ---- branches ----

    /// Takes up a hop that was put aside; none if its root has ended.
    pub fn take_up(&self, root: RootKey, ticket: Ticket) -> Option<Branch<'_>> {
        // Not `then_some`: a branch that is made unpins when it is dropped.
        let pinned = self.roots[root.index as usize].pin(root.generation);
        pinned.then(|| Branch { correlation: self, root, ticket })
    }

    /// Forgets a hop that was put aside, and whose root has ended.
    pub fn put_down(&self, root: RootKey, ticket: Ticket) {
        if self.hops[ticket.slot() as usize].close(ticket.generation()) {
            let entry = ticket.slot() % self.sizes.max_branches as u32;
            self.roots[root.index as usize].end_branch(root.generation, entry);
        }
    }

    // ---- looks ----

    /// Whether what is worked on has to be fetched, so that [`Correlation::expect`] helps.
    #[inline(always)]
    pub fn is_large(&self) -> bool {
        self.is_large
    }

    /// Has the line of this id fetched, which may be anywhere; ids that are made here have none. A hint: of any words.
    pub fn expect(&self, id: [u64; 2]) {
        if self.is_large && id[1] != self.id_seed {
            self.index.prefetch(id);
        }
    }

    /// The earliest deadline that may still be open.
    pub fn earliest_deadline(&self) -> Option<u64> {
        self.deadlines.earliest()
    }

    /// The counters of each lane.
    pub fn lane_counters(&self) -> impl Iterator<Item = Counters> {
        self.counters.iter().zip(&self.beside).map(|(counters, beside)| counters.read() + beside.read())
    }

    /// The sums over all lanes.
    pub fn all_counters(&self) -> Counters {
        self.lane_counters().fold(Counters::default(), |sum, lane| sum + lane)
    }

    pub fn events(&self) -> Vec<Event> {
        self.events.list()
    }

    pub fn audit(&self) -> Audit {
        let mut audit = Audit {
            free: self.free.count() as u64,
            ids_in_flight: self.index.count() as u64,
            ..Audit::default()
        };
        for (index, root) in self.roots.iter().enumerate() {
            match root.phase() {
                Phase::Open | Phase::Ending => {
                    audit.in_flight += 1;
                    let key = RootKey { index: index as u32, generation: root.generation() };
                    audit.open_hops += self.open_hops(key).count() as u64;
                }
                Phase::Ended => audit.not_taken += 1,
                Phase::Free => {}
            }
        }
        audit
    }

    /// Has all that a terminal of this ticket and id works on fetched at once; else one would be waited for after the
    /// other. A call of its own: small tables only ask whether they are large.
    #[cold]
    #[inline(never)]
    fn prefetch(&self, ticket: Ticket, id: [u64; 2]) {
        let hop = ticket.slot() as usize;
        let index = hop / self.sizes.max_branches;
        if let Some(root) = self.roots.get(index) {
            prefetch(&self.hops[hop]);
            prefetch(&root.number);
            prefetch(&root.outcome);
            self.cell(index as u32).first().into_iter().for_each(prefetch);
            self.expect(id);
        }
    }

    fn trace_words(&self, index: u32) -> [u64; 2] {
        let id = &self.roots[index as usize].trace_id;
        [id[0].load(Ordering::Relaxed), id[1].load(Ordering::Relaxed)]
    }

    /// The latest hops in the root's entries, ended or not.
    fn hops_since(&self, key: RootKey) -> impl Iterator<Item = &Hop> {
        let first = key.index as usize * self.sizes.max_branches;
        let entries = &self.hops[first..first + self.sizes.max_branches];
        entries.iter().filter(move |hop| hop.is_since(key.generation))
    }

    /// One of the root's hops that have not ended.
    fn open_hop(&self, key: RootKey) -> Option<Ticket> {
        let entry = self.roots[key.index as usize].open_branches(key.generation).trailing_zeros();
        let slot = key.index * self.sizes.max_branches as u32 + entry;
        let hop = self.hops.get(slot as usize).filter(|_| entry < u64::BITS)?;
        hop.is_open_since(key.generation).then(|| Ticket::new(slot, hop.generation()))
    }

    /// The root's hops that have not ended.
    fn open_hops(&self, key: RootKey) -> impl Iterator<Item = &Hop> {
        let mut branches = self.roots[key.index as usize].open_branches(key.generation);
        let first = key.index as usize * self.sizes.max_branches;
        let entries = std::iter::from_fn(move || {
            let entry = branches.trailing_zeros();
            branches &= branches.wrapping_sub(1);
            (entry < u64::BITS).then(|| &self.hops[first + entry as usize])
        });
        // An entry that is being opened may still hold what an earlier user left there.
        entries.filter(move |hop| hop.is_open_since(key.generation))
    }
}

impl Branch<'_> {
    fn hop(&self) -> &Hop {
        &self.correlation.hops[self.ticket.slot() as usize]
    }

    /// Gives the hop its lane.
    pub fn assign(&self, target: Source) {
        self.hop().assign(target);
    }

    /// The hop's frame is being sent at this position of its lane.
    pub fn place(&self, position: u64) {
        self.hop().place(position);
    }

    /// The hop's group.
    pub fn group(&self) -> GroupId {
        self.hop().group()
    }

    /// Takes the hop back from a worker that has died, to run once more; false if it has already, or if it is not
    /// open and asked of this one.
    pub fn take_back(&self, from: Source) -> bool {
        let is_asked_of = self.hop().state(self.ticket.generation(), from) == hop::HopState::Open;
        let is_taken = is_asked_of && self.hop().take_back();
        if is_taken {
            self.correlation.counters[usize::from(from.lane)].taken_back.add();
        }
        is_taken
    }

    /// Tells the root that the hop has its lane; true if the owner sleeps and must be woken.
    pub fn moved(&self) -> bool {
        self.correlation.roots[self.root.index as usize].moved()
    }
}

impl Drop for Branch<'_> {
    fn drop(&mut self) {
        self.correlation.roots[self.root.index as usize].unpin();
    }
}

/// Everything of an identity but its trace id, as one word.
fn tags(identity: &Identity) -> u64 {
    u64::from(identity.reply_to) | u64::from(identity.run) << 32 | u64::from(identity.scenario) << 48
}
