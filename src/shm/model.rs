//! Model checks of the signal and the ring with loom, futex included: `RUSTFLAGS="--cfg loom" cargo test --lib`.

use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::arena::UnitMap;
use super::ring::{Look, Place, Ring};
use super::signal::Signal;
use super::view::{Memory, OwnSlot, Slot, Slots};
use crate::os::futex::Woke;
use crate::wire::envelope::{ENVELOPE_BYTES, ENVELOPE_WORDS, Envelope};

/// Words of loom, and a futex made of a mutex and a condition variable: the kernel's promise that the
/// comparison and the falling asleep are one step with regard to a wake.
struct ModelMemory {
    words: Vec<AtomicU64>,
    futex: Mutex<()>,
    sleepers: Condvar,
}

impl ModelMemory {
    fn new(words: usize) -> Self {
        Self {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            futex: Mutex::new(()),
            sleepers: Condvar::new(),
        }
    }
}

impl Memory for ModelMemory {
    fn load_acquire(&self, at: usize) -> u64 {
        let value = self.words[at / 8].load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        value
    }
    fn load(&self, at: usize) -> u64 {
        self.words[at / 8].load(Ordering::Relaxed)
    }
    fn store_release(&self, at: usize, value: u64) {
        self.words[at / 8].store(value, Ordering::Release);
    }
    fn store(&self, at: usize, value: u64) {
        self.words[at / 8].store(value, Ordering::Relaxed);
    }
    fn raise(&self, at: usize, value: u64) {
        self.words[at / 8].fetch_max(value, Ordering::Release);
    }
    fn fence_behind_commit(&self) {
        self.fence_full();
    }

    fn fence_full(&self) {
        fence(Ordering::SeqCst);
    }
    fn futex_load(&self, at: usize) -> u32 {
        self.load_acquire(at) as u32
    }
    fn futex_wake(&self, at: usize) {
        self.words[at / 8].fetch_add(1, Ordering::Release);
        let _held = self.futex.lock().unwrap();
        self.sleepers.notify_all();
    }
    fn futex_wait(&self, at: usize, expected: u32, _until_ns: u64) -> Woke {
        let held = self.futex.lock().unwrap();
        if self.words[at / 8].load(Ordering::Relaxed) as u32 != expected {
            return Woke::Changed;
        }
        // No time-out: a lost wake is a deadlock, which loom reports.
        drop(self.sleepers.wait(held).unwrap());
        Woke::Woken
    }
}

/// Slots at the end of the model's words.
struct ModelSlots<'m>(&'m ModelMemory);

#[derive(Clone, Copy)]
struct ModelSlot<'m>(&'m ModelMemory, usize);

impl<'m> Slots for ModelSlots<'m> {
    type Slot<'a>
        = ModelSlot<'m>
    where
        Self: 'a;

    fn slot(&self, number: u64) -> ModelSlot<'m> {
        ModelSlot(self.0, RING + number as usize % CAPACITY * ENVELOPE_BYTES)
    }
}

impl Slot for ModelSlot<'_> {
    fn commit_word(self) -> u64 {
        self.0.load_acquire(self.1)
    }
    fn words(self) -> [u64; ENVELOPE_WORDS] {
        std::array::from_fn(|i| self.0.load(self.1 + 8 * i))
    }
}

impl OwnSlot for ModelSlot<'_> {
    fn publish(self, words: [u64; ENVELOPE_WORDS]) {
        (1..ENVELOPE_WORDS).for_each(|i| self.0.store(self.1 + 8 * i, words[i]));
        self.0.store_release(self.1, words[0]);
    }
}

const CAPACITY: usize = 2;
const SIGNAL: Signal = Signal { sleeping_at: 0, wake_at: 8 };
const RING: usize = 64;

fn place(memory: &ModelMemory, position: u64) -> Place<ModelSlot<'_>> {
    Ring::new(ModelSlots(memory), CAPACITY).place(position)
}

fn memory() -> Arc<ModelMemory> {
    Arc::new(ModelMemory::new(RING / 8 + CAPACITY * ENVELOPE_WORDS))
}

fn publish(theirs: &ModelMemory, mine: &ModelMemory, position: u64) {
    let [_, words @ ..] = Envelope { ticket: 100 + position, ..Envelope::default() }.to_words();
    place(mine, position).publish(words);
    SIGNAL.wake(mine, theirs, position);
}

fn wait_for(mine: &ModelMemory, theirs: &ModelMemory, position: u64) -> Envelope {
    loop {
        match place(theirs, position).look() {
            Look::Ready => return place(theirs, position).envelope(),
            Look::Corrupt => panic!("corrupt"),
            Look::Empty => {}
        }
        let expected = SIGNAL.prepare(theirs);
        SIGNAL.announce(mine, position);
        if place(theirs, position).look() == Look::Empty {
            theirs.futex_wait(SIGNAL.wake_at, expected, 0);
        }
        SIGNAL.withdraw(mine);
    }
}

#[test]
fn loom_no_wake_is_lost_and_frames_arrive_whole() {
    loom::model(|| {
        let (worker, engine) = (memory(), memory());
        let publisher = {
            let (worker, engine) = (Arc::clone(&worker), Arc::clone(&engine));
            thread::spawn(move || {
                publish(&engine, &worker, 0);
                publish(&engine, &worker, 1);
            })
        };
        assert_eq!(wait_for(&engine, &worker, 0).ticket, 100);
        assert_eq!(wait_for(&engine, &worker, 1).ticket, 101);
        publisher.join().unwrap();
    });
}

#[test]
fn loom_announcing_for_a_sleeper_moves_it_without_a_wake() {
    // The sleeper announced position 0; another thread of its process reads 0 and announces 1 on its
    // behalf. The publication of 1 must wake the sleeper, which then looks at where reading has got to.
    loom::model(|| {
        let (worker, engine) = (memory(), memory());
        let read_to = Arc::new(AtomicU64::new(0));
        let sleeper = {
            let (worker, engine, read_to) = (Arc::clone(&worker), Arc::clone(&engine), Arc::clone(&read_to));
            thread::spawn(move || {
                loop {
                    let next = read_to.load(Ordering::SeqCst);
                    if place(&worker, 1).look() == Look::Ready {
                        return;
                    }
                    let expected = SIGNAL.prepare(&*worker);
                    SIGNAL.announce(&*engine, next);
                    // Whoever reads on meanwhile announces later than this, or is seen here.
                    if read_to.load(Ordering::SeqCst) == next && place(&worker, next).look() == Look::Empty {
                        worker.futex_wait(SIGNAL.wake_at, expected, 0);
                    } else if place(&worker, next).look() == Look::Ready {
                        read_to.fetch_max(next + 1, Ordering::SeqCst);
                    }
                }
            })
        };
        let publisher = {
            let (worker, engine) = (Arc::clone(&worker), Arc::clone(&engine));
            thread::spawn(move || {
                publish(&engine, &worker, 0);
                publish(&engine, &worker, 1);
            })
        };
        if place(&worker, 0).look() == Look::Ready {
            read_to.fetch_max(1, Ordering::SeqCst);
            SIGNAL.announce(&*engine, 1);
            if place(&worker, 1).look() == Look::Ready {
                // Ready before the announcement was seen: wake the sleeper by hand.
                worker.futex_wake(SIGNAL.wake_at);
            }
        }
        publisher.join().unwrap();
        sleeper.join().unwrap();
    });
}

#[test]
fn loom_arena_units_are_given_to_one_thread_at_a_time() {
    loom::model(|| {
        let map = Arc::new(UnitMap::new(64));
        let owners = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (map, owners) = (Arc::clone(&map), Arc::clone(&owners));
                thread::spawn(move || {
                    if let Some(first) = map.take(32) {
                        let bit = 1 << (first / 32);
                        assert_eq!(owners.fetch_or(bit, Ordering::Relaxed) & bit, 0, "taken twice");
                        owners.fetch_and(!bit, Ordering::Relaxed);
                        map.give(first, 32);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(map.take(64).is_some(), "all room came back");
    });
}

#[test]
fn loom_arena_units_are_closed_by_one_thread_and_for_one_thread() {
    loom::model(|| {
        let map = Arc::new(UnitMap::new(64));
        // Split, and empty: one thread wants it as it is, the other whole.
        let first = map.take(1).unwrap();
        map.give(first, 1);
        let owned = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = [1, 64]
            .into_iter()
            .map(|units| {
                let (map, owned) = (Arc::clone(&map), Arc::clone(&owned));
                thread::spawn(move || {
                    if let Some(first) = map.take(units) {
                        assert_eq!(owned.swap(1, Ordering::Relaxed), 0, "taken twice");
                        owned.store(0, Ordering::Relaxed);
                        map.give(first, units);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let whole = map.take(64).expect("all room came back");
        map.give(whole, 64);
        assert!(map.take(32).is_some(), "and can be split again");
    });
}
