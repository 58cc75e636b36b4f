//! Waiting for the end of a request: who waits looks at its own root and at the next reply of each lane that the
//! root has a hop in, reads for everybody, runs what stands before it in this process, and sleeps when that
//! takes long.

use super::correlation::{Phase, RootKey};
use super::link::{self, Link, Sleeper};
use super::shared::{Lane, Shared};
use crate::base::limits::{BRANCHES, LONGEST_SLEEP_NS};
use crate::shm::spin::{Next, Spinner};

const MOST_LANES: usize = *BRANCHES.end();

/// What somebody who waits has left of its time for looking, before it sleeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Budget {
    /// All of it.
    Whole,
    /// Nothing: it has looked for as long as it may already.
    Spent,
}

/// The lanes that one who waits looks at.
struct Watch<'s> {
    shared: &'s Shared,
    key: RootKey,
    /// Those that the root has a hop in.
    lanes: [u16; MOST_LANES],
    count: usize,
    /// Those of the root's run: while it stands in one group, the inputs behind it must come on to the next.
    run: &'s [u16],
    /// How often hops of the root had got a lane when the list was made.
    moves: u64,
    /// The last thing done at the lane was to read it.
    has_read: bool,
}

impl<'s> Watch<'s> {
    #[inline(always)]
    fn new(shared: &'s Shared, key: RootKey, run: &'s [u16]) -> Self {
        let lanes = [0; MOST_LANES];
        let mut watch = Self { shared, key, lanes, count: 0, run, moves: 0, has_read: false };
        watch.begin();
        watch
    }

    #[inline(always)]
    fn begin(&mut self) {
        self.moves = self.shared.correlation.moves(self.key.index);
        self.count = 0;
        for lane in self.shared.correlation.lanes_of(self.key) {
            // A place of the list for each hop entry; the same lane twice does no harm, but costs a look.
            if self.count < MOST_LANES && !self.lanes[..self.count].contains(&lane) {
                self.lanes[self.count] = lane;
                self.count += 1;
            }
        }
        self.resume();
    }

    /// Looks on at the same lanes after a sleep. If the root has moved on meanwhile, they are left in order: whoever
    /// sleeps on there counts on one who looks, or watches.
    #[inline(always)]
    fn resume(&mut self) {
        self.has_read = false;
        self.links().for_each(Link::begin_looking);
    }

    fn all(&self) -> impl Iterator<Item = &'s Lane> {
        self.lanes[..self.count].iter().map(|lane| &self.shared.lanes[usize::from(*lane)])
    }

    fn links(&self) -> impl Iterator<Item = &'s Link> {
        self.all().filter_map(Lane::link)
    }

    /// Whether the root has moved on.
    #[inline(always)]
    fn is_stale(&self) -> bool {
        self.shared.correlation.moves(self.key.index) != self.moves
    }

    #[inline(always)]
    fn has_ended(&self) -> bool {
        self.shared.correlation.phase(self.key) == Phase::Ended
    }

    /// Reads what is there, or runs what may be run; whether there was anything.
    #[inline(always)]
    fn look(&mut self) -> bool {
        let mut found = false;
        for lane in self.all() {
            found |= match lane {
                Lane::Worker(seat) => self.shared.read(seat.link()),
                // Who has got what it waits for runs nothing more.
                Lane::Local(local) => !self.has_ended() && local.help(self.shared),
            };
        }
        self.has_read |= found;
        found || self.look_along_the_run()
    }

    /// Reads or runs what the root does not wait for itself.
    #[inline(always)]
    fn look_along_the_run(&self) -> bool {
        let mut found = false;
        if !self.run.is_empty() {
            for lane in self.others() {
                // As above: who has got what it waits for need not look further.
                found |= !self.has_ended() && self.shared.look_at(lane);
            }
        }
        found
    }

    fn others(&self) -> impl Iterator<Item = &'s Lane> {
        let others = self.run.iter().filter(|lane| !self.lanes[..self.count].contains(lane));
        others.map(|lane| &self.shared.lanes[usize::from(*lane)])
    }

    /// Leaves the lanes to others.
    #[inline(always)]
    fn end(&mut self) {
        for link in self.links() {
            // With one lane the fence of the last read is this one's.
            if self.has_read && self.count == 1 {
                link.stop_looking_after_read(&self.shared.correlation);
            } else {
                link.stop_looking(&self.shared.correlation);
            }
            self.shared.arm_for_awaited(link);
        }
    }

    #[inline(always)]
    fn spinner(&self) -> Option<Spinner> {
        self.links().next().map(|link| link.end.spinner(self.shared.waiting))
    }
}

impl Shared {
    /// Waits until the root has ended; its deadline is watched meanwhile.
    #[inline]
    pub fn wait(&self, key: RootKey) {
        self.wait_on(key, Budget::Whole);
    }

    /// Waits on until the root has ended, with what is left for looking.
    #[inline]
    pub fn wait_on(&self, key: RootKey, budget: Budget) {
        self.wait_with(key, &[], budget);
    }

    /// Waits until the root has ended, and meanwhile keeps the others of its run moving through these lanes.
    #[inline]
    pub fn wait_in_run(&self, key: RootKey, run: &[u16]) {
        self.wait_with(key, run, Budget::Whole);
    }

    #[inline]
    fn wait_with(&self, key: RootKey, run: &[u16], mut budget: Budget) {
        if self.correlation.phase(key) == Phase::Ended {
            return;
        }
        let mut watch = Watch::new(self, key, run);
        let mut spinner = watch.spinner();
        while !watch.has_ended() {
            if watch.is_stale() {
                watch.end();
                watch.begin();
                spinner = watch.spinner();
                budget = Budget::Whole;
            }
            if watch.look() {
                continue;
            }
            let next = match (&mut spinner, watch.links().next()) {
                (Some(spinner), Some(link)) if budget == Budget::Whole => spinner.step(link.end.processors()),
                _ => Next::Sleep,
            };
            match next {
                Next::Look => {}
                Next::LookAt(now_ns) => {
                    self.note_clock(now_ns);
                    self.expire_if_due(key, now_ns);
                }
                Next::Sleep => {
                    self.expire_if_due(key, self.read_clock());
                    self.sleep(&watch);
                    watch.resume();
                    spinner = watch.spinner();
                    budget = Budget::Whole;
                }
            }
        }
        if let (Some(spinner), Some(link)) = (&spinner, watch.links().next()) {
            link.end.end_wait(spinner);
        }
        watch.end();
    }

    #[cold]
    fn sleep(&self, watch: &Watch<'_>) {
        let key = watch.key;
        let deadline_ns = self.correlation.deadline_ns(key.index);
        let until_ns = if deadline_ns == 0 { u64::MAX } else { deadline_ns };
        let links: Vec<&Link> = watch.links().chain(watch.others().filter_map(Lane::link)).collect();
        if links.is_empty() {
            return self.sleep_alone(watch, until_ns);
        }
        if self.correlation.fall_asleep(key.index) {
            link::sleep(&links, &self.correlation, &Sleeper::Root(key.index), until_ns, || {
                self.correlation.phase(key) != Phase::Ended && !watch.is_stale()
            });
        }
        self.correlation.wake_up(key.index);
    }

    /// Somebody else runs or hands on what the root waits for.
    fn sleep_alone(&self, watch: &Watch<'_>, until_ns: u64) {
        let index = watch.key.index;
        let word = self.correlation.wake_word(index);
        let expected = word.load();
        let until_ns = until_ns.min(crate::os::clock::monotonic_ns() + LONGEST_SLEEP_NS);
        if self.correlation.fall_asleep(index) && !watch.is_stale() {
            word.wait(expected, Some(until_ns));
        }
        self.correlation.wake_up(index);
    }
}
