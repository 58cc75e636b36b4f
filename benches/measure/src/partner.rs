//! The other side of a limit: a second process of this program, which does as it is told.
//!
//! It maps the region that it finds as its standard input, sleeps until it gets a job, does that until it is
//! stopped, and sleeps again. So it costs nothing while something else is measured, and it dies with whoever
//! started it.

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::{env, io};

use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use rustix::thread::futex::{Flags, wait, wake};
use rustix::thread::sched_yield;

use crate::processors::{allowed, pin};
use crate::region::Region;

const MARK: &str = "HANDBELL_MEASURE_PARTNER";

/// Bytes that cross with a turn, its own word included: two cache lines.
pub const LINES: usize = 128;
/// Buffers in each direction; neighbouring turns use neighbouring ones.
pub const BUFFERS: u64 = 4;
/// Bytes of the largest buffer.
pub const BUFFER_BYTES: usize = 1 << 20;
/// Slots of the longest ring.
pub const MOST_SLOTS: u64 = 1024;

// Places in the region; what the two sides write lies on lines of its own.
const COMMAND: usize = 0;
const KIND: usize = 8;
const DETAIL: usize = 16;
const PROCESSOR: usize = 24;
const DONE: usize = 128;
const STOP: usize = 256;
/// Where a turn stands that the caller gives, two lines long.
pub const THERE: usize = 512;
/// Where a turn stands that comes back.
pub const BACK: usize = 768;
/// The futex words of a turn.
pub const FUTEX_THERE: usize = 1024;
/// The way back.
pub const FUTEX_BACK: usize = 1280;
const SLOTS_THERE: usize = 4096;
const SLOTS_BACK: usize = SLOTS_THERE + MOST_SLOTS as usize * LINES;
const BUFFERS_THERE: usize = 1 << 20;
const BUFFERS_BACK: usize = BUFFERS_THERE + BUFFERS as usize * BUFFER_BYTES;
const BYTES: usize = BUFFERS_BACK + BUFFERS as usize * BUFFER_BYTES;

const LAST_TURN: u64 = u64::MAX;
/// Looks between two questions whether the partner lives, and between two looks at the word that stops it.
const LOOKS: u32 = 1 << 16;

/// What to do between two looks that find nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// So many pauses.
    Pauses(u32),
    /// Give the processor away.
    Yield,
}

impl Look {
    #[inline(always)]
    fn idle(self) {
        match self {
            Self::Pauses(pauses) => (0..pauses).for_each(|_| std::hint::spin_loop()),
            Self::Yield => sched_yield(),
        }
    }
}

/// What the partner is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Job {
    /// Give back each turn with its two lines.
    Lines(Look),
    /// The same, asleep in between.
    Futex,
    /// With each turn, copy so many bytes from buffer to buffer.
    Buffers(u64),
    /// Give back what comes in each slot of rings with so many.
    Slots(u64),
}

impl Job {
    fn to_words(self) -> (u64, u64) {
        match self {
            Self::Lines(Look::Pauses(pauses)) => (0, pauses.into()),
            Self::Lines(Look::Yield) => (1, 0),
            Self::Futex => (2, 0),
            Self::Buffers(bytes) => (3, bytes),
            Self::Slots(slots) => (4, slots),
        }
    }

    fn from_words(kind: u64, detail: u64) -> Self {
        match kind {
            0 => Self::Lines(Look::Pauses(detail as u32)),
            1 => Self::Lines(Look::Yield),
            2 => Self::Futex,
            3 => Self::Buffers(detail),
            _ => Self::Slots(detail),
        }
    }
}

/// The buffer of a turn on its way there.
#[inline(always)]
pub fn buffer_there(turn: u64) -> usize {
    BUFFERS_THERE + (turn % BUFFERS) as usize * BUFFER_BYTES
}

/// The buffer of a turn on its way back.
#[inline(always)]
pub fn buffer_back(turn: u64) -> usize {
    BUFFERS_BACK + (turn % BUFFERS) as usize * BUFFER_BYTES
}

/// The slot of a position on its way there.
#[inline(always)]
pub fn slot_there(position: u64, slots: u64) -> usize {
    SLOTS_THERE + (position & (slots - 1)) as usize * LINES
}

/// The slot of a position on its way back.
#[inline(always)]
pub fn slot_back(position: u64, slots: u64) -> usize {
    SLOTS_BACK + (position & (slots - 1)) as usize * LINES
}

/// The partner has ended before its time.
#[derive(Debug)]
pub struct Gone;

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the second process of the bare measurements has ended")
    }
}

impl std::error::Error for Gone {}

/// The second process, as the first sees it.
pub struct Partner {
    region: Region,
    child: Mutex<Child>,
}

impl Partner {
    /// Starts one. It dies with the calling thread at the latest.
    pub fn start() -> io::Result<Self> {
        let (region, file) = Region::create(BYTES)?;
        let mut command = Command::new("/proc/self/exe");
        command.env(MARK, std::process::id().to_string()).stdin(Stdio::from(file)).stdout(Stdio::null());
        Ok(Self { region, child: Mutex::new(command.spawn()?) })
    }

    /// Has the partner do `job` on `processor` while `measure` runs.
    pub fn during<T>(
        &self,
        job: Job,
        processor: Option<usize>,
        measure: impl FnOnce(&Side<'_>) -> Result<T, Gone>,
    ) -> Result<T, Gone> {
        let region = &self.region;
        for at in [STOP, THERE, BACK] {
            region.word(at).store(0, Relaxed);
        }
        for at in [FUTEX_THERE, FUTEX_BACK] {
            region.futex(at).store(0, Relaxed);
        }
        let slots = if matches!(job, Job::Slots(_)) { MOST_SLOTS } else { 0 };
        for position in 0..slots {
            region.word(slot_there(position, MOST_SLOTS)).store(0, Relaxed);
            region.word(slot_back(position, MOST_SLOTS)).store(0, Relaxed);
        }
        let (kind, detail) = job.to_words();
        region.word(KIND).store(kind, Relaxed);
        region.word(DETAIL).store(detail, Relaxed);
        region.word(PROCESSOR).store(processor.map_or(0, |processor| processor as u64 + 1), Relaxed);
        let done = region.futex(DONE).load(Acquire);
        region.futex(COMMAND).fetch_add(1, Release);
        let _ = wake(region.futex(COMMAND), Flags::empty(), 1);

        let measured = measure(&Side { region, partner: Some(self) });

        region.word(STOP).store(1, Relaxed);
        region.word(THERE).store(LAST_TURN, Release);
        region.futex(FUTEX_THERE).store(u32::MAX, Release);
        let _ = wake(region.futex(FUTEX_THERE), Flags::empty(), 1);
        while region.futex(DONE).load(Acquire) == done {
            self.lives()?;
            sched_yield();
        }
        measured
    }

    fn lives(&self) -> Result<(), Gone> {
        let mut child = self.child.lock().expect("nobody panics with it");
        match child.try_wait() {
            Ok(None) => Ok(()),
            _ => Err(Gone),
        }
    }
}

impl Drop for Partner {
    fn drop(&mut self) {
        let child = self.child.get_mut().expect("nobody panics with it");
        // It holds nothing but the region; there is nothing to end in order.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// What either side uses to take turns.
pub struct Side<'a> {
    /// The shared memory.
    pub region: &'a Region,
    /// Whose life is looked after; none in the partner.
    partner: Option<&'a Partner>,
}

impl Side<'_> {
    /// Waits until the word at `at` is not `before`, and gives it.
    #[inline(always)]
    pub fn turn_after(&self, at: usize, before: u64, look: Look) -> Result<u64, Gone> {
        let mut looks = 0_u32;
        loop {
            let turn = self.region.word(at).load(Acquire);
            if turn != before {
                return Ok(turn);
            }
            look.idle();
            looks += 1;
            if looks == LOOKS {
                looks = 0;
                self.partner.map_or(Ok(()), Partner::lives)?;
            }
        }
    }

    /// The same, asleep until it is so.
    #[inline(always)]
    pub fn woken_after(&self, at: usize, before: u32) -> u32 {
        loop {
            let word = self.region.futex(at);
            let turn = word.load(Acquire);
            if turn != before {
                return turn;
            }
            // Woken, changed or interrupted: the word tells.
            let _ = wait(word, Flags::empty(), before, None);
        }
    }

    /// Gives a turn to whoever sleeps for it.
    #[inline(always)]
    pub fn give_and_wake(&self, at: usize, turn: u32) {
        self.region.futex(at).store(turn, Release);
        let _ = wake(self.region.futex(at), Flags::empty(), 1);
    }

    /// Writes the two lines of a turn, its word last.
    #[inline(always)]
    pub fn give(&self, at: usize, rest: &[u8; LINES - 8], turn: u64) {
        self.region.write(at + 8, rest);
        self.region.word(at).store(turn, Release);
    }

    /// Reads what stands behind a turn's word.
    #[inline(always)]
    pub fn take(&self, at: usize) -> [u8; LINES - 8] {
        let mut rest = [0; LINES - 8];
        self.region.read(at + 8, &mut rest);
        rest
    }
}

/// In a process that [`Partner::start`] started: does its jobs and never returns. Elsewhere: nothing.
pub fn serve_if_partner() {
    let Some(parent) = env::var_os(MARK) else { return };
    serve(parent.to_string_lossy().parse().unwrap_or(0)).expect("the region can be mapped");
    std::process::exit(0);
}

fn serve(parent: i32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(parent) {
        return Ok(());
    }
    // The region is open as standard input.
    let region = Region::open(&File::from(io::stdin().as_fd().try_clone_to_owned()?))?;
    let side = Side { region: &region, partner: None };
    let mut command = 0;
    loop {
        command = side.woken_after(COMMAND, command);
        match region.word(PROCESSOR).load(Relaxed) {
            0 => pin(&allowed()),
            processor => pin(&[processor as usize - 1]),
        };
        let (kind, detail) = (region.word(KIND).load(Relaxed), region.word(DETAIL).load(Relaxed));
        // Its own life is the only one that it looks after.
        let _ = work(&side, Job::from_words(kind, detail));
        region.futex(DONE).fetch_add(1, Release);
    }
}

fn work(side: &Side<'_>, job: Job) -> Result<(), Gone> {
    let region = side.region;
    match job {
        Job::Lines(look) => {
            let mut turn = 0;
            loop {
                turn = side.turn_after(THERE, turn, look)?;
                if turn == LAST_TURN {
                    return Ok(());
                }
                let rest = side.take(THERE);
                side.give(BACK, &rest, turn);
            }
        }
        Job::Futex => {
            let mut turn = 0;
            loop {
                turn = side.woken_after(FUTEX_THERE, turn);
                if turn == u32::MAX {
                    return Ok(());
                }
                side.give_and_wake(FUTEX_BACK, turn);
            }
        }
        Job::Buffers(bytes) => {
            let mut turn = 0;
            loop {
                turn = side.turn_after(THERE, turn, Look::Pauses(1))?;
                if turn == LAST_TURN {
                    return Ok(());
                }
                region.copy(buffer_there(turn), buffer_back(turn), bytes as usize);
                region.word(BACK).store(turn, Release);
            }
        }
        Job::Slots(slots) => {
            for position in 0.. {
                let at = slot_there(position, slots);
                while region.word(at).load(Acquire) != position + 1 {
                    if region.word(STOP).load(Relaxed) != 0 {
                        return Ok(());
                    }
                    std::hint::spin_loop();
                }
                let rest = side.take(at);
                side.give(slot_back(position, slots), &rest, position + 1);
            }
            Ok(())
        }
    }
}
