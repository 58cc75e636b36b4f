//! One worker's lane as the engine uses it: the worker's fate, and the threads that wait on it.
//!
//! Who waits looks at the next reply itself, and reads for everybody. Those who have looked long enough
//! sleep: one of them, the *watcher*, on the lane's wake word and its own; the others on their own word,
//! which whoever reads their reply raises. Who waits for several lanes sleeps at all of them. Whoever stops looking makes sure that the watcher waits for the
//! right position, or that one of the sleepers becomes the watcher.
//!
//! Invariant: while anybody sleeps here, either somebody looks who will do one of the two on leaving, or the
//! lane's `sleeping` word announces the next position and the watcher sleeps on the wake word (or is about to
//! look again).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::correlation::{Correlation, Source, cause_from_word, cause_to_word};
use super::forward::Forwards;
use crate::base::failure::{Cause, KilledFor, Rule};
use crate::base::ids::GroupId;
use crate::base::limits::LONGEST_SLEEP_NS;
use crate::base::sync::{AtomicU32, AtomicU64, Ordering, fence};
use crate::lane::{EngineEnd, REPLY_SIGNAL};
use crate::os::clock;
use crate::os::futex::{self, Word};
use crate::shm::view::Memory;
use crate::wire::control::reply;

/// Without `futex_waitv` a watcher sleeps on one word only, and looks at the others this often.
const OWN_LOOK_NS: u64 = 10_000_000;

/// Who sleeps.
#[derive(Clone)]
pub(super) enum Sleeper {
    /// The owner of a root, on the root's word.
    Root(u32),
    /// Somebody who waits for room, on a word of its own.
    Room(Arc<Word>),
}

impl Sleeper {
    fn word<'a>(&'a self, correlation: &'a Correlation) -> &'a Word {
        match self {
            Self::Root(index) => correlation.wake_word(*index),
            Self::Room(word) => word,
        }
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Root(a), Self::Root(b)) => a == b,
            (Self::Room(a), Self::Room(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

#[derive(Default)]
struct Sleepers {
    list: VecDeque<Sleeper>,
    watcher: Option<Sleeper>,
}

const LIVE: u32 = 0;
const DEAD: u32 = 1;
/// No cause is latched.
const NO_CAUSE: u64 = u64::MAX;

/// A lane, its worker's fate, its sleepers.
pub(super) struct Link {
    pub end: EngineEnd,
    pub source: Source,
    pub group: GroupId,
    state: AtomicU32,
    /// The first cause of death, as a word.
    cause: AtomicU64,
    sleepers: Mutex<Sleepers>,
    /// Length of the list, for those who only want to know whether it is empty.
    asleep: AtomicU32,
    /// Frames of other groups that wait for room here, or for a successor.
    pub forwards: Arc<Forwards>,
    /// 1 while the worker, should it die, or if it has, gets a successor.
    has_successor: AtomicU32,
    /// Why it gets none after all, as a word.
    given_up_for: AtomicU64,
}

impl Link {
    pub fn new(
        end: EngineEnd,
        source: Source,
        group: GroupId,
        forwards: Arc<Forwards>,
        has_successor: bool,
    ) -> Self {
        Self {
            end,
            source,
            group,
            state: AtomicU32::new(LIVE),
            cause: AtomicU64::new(NO_CAUSE),
            sleepers: Mutex::default(),
            asleep: AtomicU32::new(0),
            forwards,
            has_successor: AtomicU32::new(u32::from(has_successor)),
            given_up_for: AtomicU64::new(NO_CAUSE),
        }
    }

    // ---- the worker's fate ----

    /// Whether requests may still be sent. A sender publishes, fences, then looks here; who declares the lane
    /// dead does that, fences, then ends what is registered.
    pub fn is_live(&self) -> bool {
        self.state.load(Ordering::Acquire) == LIVE
    }

    /// Whether nothing can come of a request here any more: it is dead, and there is to be no successor.
    pub fn is_lost(&self) -> bool {
        !self.is_live() && self.has_successor.load(Ordering::Acquire) == 0
    }

    /// Whether there is no successor, whatever happens.
    pub fn is_final(&self) -> bool {
        self.has_successor.load(Ordering::Acquire) == 0
    }

    /// There will be no successor; why, if it is not the death itself. Wake everybody after this.
    pub fn give_up(&self, cause: Option<Cause>) {
        // Before what shows that it is lost: whoever sees that sees why.
        self.given_up_for.store(cause.map_or(NO_CAUSE, cause_to_word), Ordering::Relaxed);
        self.has_successor.store(0, Ordering::Release);
    }

    /// Why nothing can come of a request to a lane that is lost.
    pub fn cause_of_loss(&self) -> Option<Cause> {
        let given_up_for = Some(self.given_up_for.load(Ordering::Acquire)).filter(|word| *word != NO_CAUSE);
        given_up_for.map(cause_from_word).or_else(|| self.cause())
    }

    /// Declares the lane dead. The first cause stays.
    pub fn die(&self, cause: Cause) {
        let word = cause_to_word(cause);
        let _ = self.cause.compare_exchange(NO_CAUSE, word, Ordering::AcqRel, Ordering::Acquire);
        self.state.store(DEAD, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Declares the lane dead by a broken rule. The worker wrote what breaks it before whatever else may have been
    /// latched of its end by now; so it takes the place of what it outranks.
    pub fn die_of(&self, rule: Rule) {
        let cause = Cause::Killed(KilledFor::Corruption(rule));
        self.die(cause);
        let outranked = |word| cause.outranks(cause_from_word(word)).then(|| cause_to_word(cause));
        let _ = self.cause.fetch_update(Ordering::AcqRel, Ordering::Acquire, outranked);
    }

    /// Why the lane is dead.
    pub fn cause(&self) -> Option<Cause> {
        Some(self.cause.load(Ordering::Acquire)).filter(|word| *word != NO_CAUSE).map(cause_from_word)
    }

    /// The rule that the worker broke, if that is why.
    pub fn broken_rule(&self) -> Option<Rule> {
        match self.cause() {
            Some(Cause::Killed(KilledFor::Corruption(rule))) => Some(rule),
            _ => None,
        }
    }

    // ---- waiting ----

    fn lock(&self) -> MutexGuard<'_, Sleepers> {
        // Nothing in here panics half-way; a poisoned lock still guards a whole list.
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody begins to look: while it does, the worker need not wake the watcher.
    #[inline(always)]
    pub fn begin_looking(&self) {
        if self.asleep.load(Ordering::Relaxed) != 0 {
            REPLY_SIGNAL.withdraw(self.end.request_segment());
        }
    }

    /// Somebody stops looking, or has read and goes. Call it after the last read.
    #[inline(always)]
    pub fn stop_looking(&self, correlation: &Correlation) {
        fence(Ordering::SeqCst);
        self.stop_looking_after_read(correlation);
    }

    /// The same for who has read last, and so stands behind the fence in [`EngineEnd::read`] already.
    ///
    /// That fence stands between the reader's publication of its position and this load, as the sleeper's
    /// stands between its entry in the list and its load of the position: one of the two sees the other.
    #[inline(always)]
    pub fn stop_looking_after_read(&self, correlation: &Correlation) {
        if self.asleep.load(Ordering::Relaxed) != 0 {
            self.hand_over(correlation);
        }
    }

    #[cold]
    fn hand_over(&self, correlation: &Correlation) {
        let sleepers = self.lock();
        match (&sleepers.watcher, sleepers.list.front()) {
            (Some(watcher), _) => {
                REPLY_SIGNAL.announce(self.end.request_segment(), self.end.next());
                if self.end.has_reply() {
                    wake(watcher.word(correlation));
                }
            }
            (None, Some(first)) => wake(first.word(correlation)),
            (None, None) => {}
        }
    }

    /// How many sleep here, or are about to.
    #[cfg(feature = "testing")]
    pub fn asleep(&self) -> u32 {
        self.asleep.load(Ordering::SeqCst)
    }

    /// Enters a sleeper into the list; true if it is to watch the lane.
    fn enlist(&self, me: &Sleeper) -> bool {
        let mut sleepers = self.lock();
        sleepers.list.push_back(me.clone());
        self.asleep.store(sleepers.list.len() as u32, Ordering::SeqCst);
        let watches = sleepers.watcher.is_none();
        if watches {
            sleepers.watcher = Some(me.clone());
        }
        watches
    }

    fn delist(&self, me: &Sleeper) {
        let mut sleepers = self.lock();
        if let Some(at) = sleepers.list.iter().position(|sleeper| sleeper.is(me)) {
            sleepers.list.remove(at);
        }
        self.asleep.store(sleepers.list.len() as u32, Ordering::SeqCst);
        if sleepers.watcher.as_ref().is_some_and(|watcher| watcher.is(me)) {
            sleepers.watcher = None;
            REPLY_SIGNAL.withdraw(self.end.request_segment());
        }
    }

    /// Announces the next position for the watcher; false if it is there already.
    fn announce(&self) -> bool {
        loop {
            let next = self.end.next();
            // Fences between the announcement and the look below.
            REPLY_SIGNAL.announce(self.end.request_segment(), next);
            if self.end.has_reply() {
                return false;
            }
            // Somebody may have read on meanwhile; the announcement must name the position that is next.
            if self.end.next() == next {
                return true;
            }
        }
    }

    /// Requests that stand in the lane or wait for it.
    pub fn load(&self) -> u64 {
        self.end.outstanding() + self.forwards.waiting()
    }

    /// Wakes those who wait for room.
    pub fn wake_for_room(&self, correlation: &Correlation) {
        self.wake_all(correlation, |sleeper| matches!(sleeper, Sleeper::Room(_)));
    }

    /// Wakes everybody: the lane is dead, or the engine stops.
    pub fn wake_everybody(&self, correlation: &Correlation) {
        self.wake_all(correlation, |_| true);
    }

    #[cold]
    fn wake_all(&self, correlation: &Correlation, which: impl Fn(&Sleeper) -> bool) {
        let sleepers = self.lock();
        sleepers
            .list
            .iter()
            .filter(|sleeper| which(sleeper))
            .for_each(|sleeper| wake(sleeper.word(correlation)));
    }
}

/// Sleeps until the next reply of one of `links`, the sleeper's own word, or `until_ns`. `is_wanted` is asked
/// once more after everybody can know of the sleeper; when it says no, there is no sleep.
pub(super) fn sleep(
    links: &[&Link],
    correlation: &Correlation,
    me: &Sleeper,
    until_ns: u64,
    is_wanted: impl Fn() -> bool,
) {
    let until_ns = until_ns.min(clock::monotonic_ns() + LONGEST_SLEEP_NS);
    let own = me.word(correlation);
    let own_expected = own.load();
    // The links that this sleeper watches, with what their wake words hold now.
    let enlist = |link: &&Link| link.enlist(me).then(|| REPLY_SIGNAL.prepare(link.end.reply_segment()));
    let watched: Vec<Option<u32>> = links.iter().map(enlist).collect();
    let mut quiet = true;
    for (link, watched) in links.iter().zip(&watched) {
        quiet &= if watched.is_some() {
            link.announce()
        } else {
            // I looked until now; the watcher must know how far reading has got.
            link.stop_looking(correlation);
            !link.end.has_reply()
        };
    }
    if quiet && is_wanted() {
        let words = || {
            let watched =
                links.iter().zip(&watched).filter_map(|(link, expected)| Some((link, (*expected)?)));
            watched.map(|(link, expected)| (link.end.reply_segment().futex_word(reply::WAKE), expected))
        };
        match words().count() {
            0 => futex::note_sleep(own.wait(own_expected, Some(until_ns))),
            _ if futex::waitv_supported() => {
                futex::note_sleep(futex::wait_any(words(), own, own_expected, Some(until_ns)));
            }
            count => {
                let until_ns = until_ns.min(clock::monotonic_ns() + OWN_LOOK_NS);
                match links.iter().zip(&watched).find_map(|(link, expected)| Some((link, (*expected)?))) {
                    Some((link, expected)) if count == 1 => {
                        link.end.reply_segment().futex_wait(reply::WAKE, expected, until_ns);
                    }
                    _ => drop(own.wait(own_expected, Some(until_ns))),
                }
            }
        }
    }
    links.iter().for_each(|link| link.delist(me));
}

/// Raises a word and wakes who sleeps on it.
pub(super) fn wake(word: &Word) {
    word.bump();
    word.wake_all();
}
