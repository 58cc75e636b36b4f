//! What the machine charges: the same cache lines, wake-ups and bytes without an engine.

use std::collections::VecDeque;
use std::hint::black_box;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::figures::{Figures, Pace, Slice, record};
use crate::partner::{
    BACK, BUFFER_BYTES, FUTEX_BACK, FUTEX_THERE, Gone, Job, LINES, Look, MOST_SLOTS, Partner, THERE,
    buffer_back, buffer_there, slot_back, slot_there,
};
use crate::rounds::Subject;

/// How often a copy is repeated for one sample, if it is too short for the clock.
const SHORT: u32 = 16;
const SHORT_BYTES: usize = 4096;

/// Two cache lines there and back between two processes, both looking all the time.
pub struct PingPong {
    partner: Rc<Partner>,
    processor: Option<usize>,
    look: Look,
}

impl PingPong {
    /// With so many pauses between two looks.
    pub fn pausing(partner: &Rc<Partner>, processor: Option<usize>, pauses: u32) -> Self {
        Self { partner: Rc::clone(partner), processor, look: Look::Pauses(pauses) }
    }

    /// The best of no pause, one, and four.
    pub fn best(partner: &Rc<Partner>, processor: Option<usize>) -> BestOf<Self> {
        BestOf([0, 1, 4].map(|pauses| Self::pausing(partner, processor, pauses)).into(), Best::Time)
    }

    /// Giving the processor away between two looks.
    pub fn yielding(partner: &Rc<Partner>, processor: Option<usize>) -> Self {
        Self { partner: Rc::clone(partner), processor, look: Look::Yield }
    }
}

impl<E: From<Gone>> Subject<E> for PingPong {
    fn slice(&mut self, time: Duration) -> Result<Slice, E> {
        let (mut turn, mut rest) = (0_u64, [7; LINES - 8]);
        let measured = self.partner.during(Job::Lines(self.look), self.processor, |side| {
            Slice::of(time, || {
                let begin = Instant::now();
                turn += 1;
                rest[..8].copy_from_slice(&turn.to_le_bytes());
                side.give(THERE, &rest, turn);
                side.turn_after(BACK, turn - 1, self.look)?;
                let back = side.take(BACK);
                let took = begin.elapsed();
                assert_eq!(back, rest, "the lines came back as they went");
                Ok(took)
            })
        });
        Ok(measured?)
    }
}

/// One futex word there and back between two processes, both asleep each time.
pub struct FutexPingPong {
    partner: Rc<Partner>,
    processor: Option<usize>,
    quiet: Duration,
}

impl FutexPingPong {
    /// With so much quiet before each.
    pub fn new(partner: &Rc<Partner>, processor: Option<usize>, quiet: Duration) -> Self {
        Self { partner: Rc::clone(partner), processor, quiet }
    }
}

impl<E: From<Gone>> Subject<E> for FutexPingPong {
    fn slice(&mut self, time: Duration) -> Result<Slice, E> {
        let mut turn = 0;
        let measured = self.partner.during(Job::Futex, self.processor, |side| {
            Slice::of(time, || {
                if !self.quiet.is_zero() {
                    std::thread::sleep(self.quiet);
                }
                let begin = Instant::now();
                turn += 1;
                side.give_and_wake(FUTEX_THERE, turn);
                side.woken_after(FUTEX_BACK, turn - 1);
                Ok(begin.elapsed())
            })
        });
        Ok(measured?)
    }
}

/// Bytes written here, copied there, read here: two writes and two reads, in buffers that take turns.
pub struct WriteRead {
    partner: Rc<Partner>,
    processor: Option<usize>,
    sent: Vec<u8>,
    taken: Vec<u8>,
}

impl WriteRead {
    /// Of so many bytes.
    pub fn new(partner: &Rc<Partner>, processor: Option<usize>, bytes: usize) -> Self {
        assert!(bytes <= BUFFER_BYTES);
        Self { partner: Rc::clone(partner), processor, sent: vec![7; bytes], taken: vec![0; bytes] }
    }
}

impl<E: From<Gone>> Subject<E> for WriteRead {
    fn slice(&mut self, time: Duration) -> Result<Slice, E> {
        let Self { partner, processor, sent, taken } = self;
        let mut turn = 0_u64;
        let measured = partner.during(Job::Buffers(sent.len() as u64), *processor, |side| {
            Slice::of(time, || {
                turn += 1;
                sent[..8].copy_from_slice(&turn.to_le_bytes());
                let begin = Instant::now();
                side.region.write(buffer_there(turn), sent);
                side.region.word(THERE).store(turn, std::sync::atomic::Ordering::Release);
                side.turn_after(BACK, turn - 1, Look::Pauses(1))?;
                side.region.read(buffer_back(turn), taken);
                let took = begin.elapsed();
                assert!(sent == taken, "the bytes came back as they went");
                Ok(took)
            })
        });
        Ok(measured?)
    }
}

/// Bytes copied within this process.
pub struct Memcpy {
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Memcpy {
    /// Of so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { from: vec![7; bytes], to: vec![0; bytes] }
    }
}

impl<E> Subject<E> for Memcpy {
    fn slice(&mut self, time: Duration) -> Result<Slice, E> {
        let times = if self.from.len() < SHORT_BYTES { SHORT } else { 1 };
        Slice::of(time, || {
            let begin = Instant::now();
            for _ in 0..times {
                black_box(&mut self.to).copy_from_slice(black_box(&self.from));
            }
            Ok(begin.elapsed() / times)
        })
    }
}

/// Requests and replies of 64 bytes through two bare rings of slots, so many in flight.
pub struct SlotRing {
    partner: Rc<Partner>,
    processor: Option<usize>,
    slots: u64,
    window: u64,
}

impl SlotRing {
    /// The best of a short and a long ring.
    pub fn best(partner: &Rc<Partner>, processor: Option<usize>, window: u64) -> BestOf<Self> {
        let ring = |slots| Self { partner: Rc::clone(partner), processor, slots, window };
        BestOf(vec![ring(window.next_power_of_two()), ring(MOST_SLOTS)], Best::Rate)
    }
}

impl<E: From<Gone>> Subject<E> for SlotRing {
    fn slice(&mut self, time: Duration) -> Result<Slice, E> {
        let Self { slots, window, .. } = *self;
        let measured = self.partner.during(Job::Slots(slots), self.processor, |side| {
            let (mut slice, mut rest) = (Slice::empty(), [7; LINES - 8]);
            let (mut sent, mut taken) = (0_u64, 0_u64);
            let mut begun = VecDeque::new();
            let (begin, mut pace) = (Instant::now(), Pace::start(16 * SAMPLED));
            loop {
                while sent < taken + window {
                    if sent % SAMPLED == 0 {
                        begun.push_back(Instant::now());
                    }
                    rest[..8].copy_from_slice(&sent.to_le_bytes());
                    side.give(slot_there(sent, slots), &rest, sent + 1);
                    sent += 1;
                }
                // What the slot says of a lap before is as good as nothing.
                let at = slot_back(taken, slots);
                let mut seen = 0;
                while seen != taken + 1 {
                    seen = side.turn_after(at, seen, Look::Pauses(1))?;
                }
                let back = side.take(at);
                assert_eq!(back[..8], taken.to_le_bytes(), "the slots came back in order");
                if taken % SAMPLED == 0
                    && let Some(begun) = begun.pop_front()
                {
                    let now = Instant::now();
                    record(&mut slice.latency, now - begun);
                    pace.note(taken + 1, now);
                    if now - begin >= time {
                        slice.steady_per_s = pace.per_s();
                        (slice.count, slice.took) = (taken + 1, now - begin);
                        return Ok(slice);
                    }
                }
                taken += 1;
            }
        });
        Ok(measured?)
    }
}

/// Of a stream, every so many-th time is taken: the clock costs as much as the rest.
pub const SAMPLED: u64 = 64;

enum Best {
    Time,
    Rate,
}

/// Of several limits the one that does best in each round.
pub struct BestOf<S>(Vec<S>, Best);

impl<E, S: Subject<E>> Subject<E> for BestOf<S> {
    fn slice(&mut self, time: Duration) -> Result<Slice, E> {
        let Self(subjects, best) = self;
        let time = time / subjects.len() as u32;
        let slices = subjects.iter_mut().map(|subject| subject.slice(time)).collect::<Result<Vec<_>, _>>()?;
        let found = match best {
            Best::Time => slices.into_iter().min_by_key(|slice| Figures::of(&slice.latency).p50_ns),
            Best::Rate => slices.into_iter().max_by(|a, b| a.per_s().total_cmp(&b.per_s())),
        };
        Ok(found.expect("there is at least one"))
    }
}
