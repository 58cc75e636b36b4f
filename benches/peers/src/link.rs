//! What every peer is asked to do: carry messages of 64 bytes between two sides, there and back or one way.
//!
//! The other side is a second process of this program (or a thread, for what knows threads only), pinned like every
//! other one. A message says in its first byte what becomes of it.

use std::env;
use std::error::Error;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use handbell_measure::{Pace, Place, Slice, Subject, pin};
use rustix::process::{Signal, set_parent_process_death_signal};

/// What travels.
pub type Message = [u8; 64];
/// Whatever goes wrong ends the comparison.
pub type Problem = Box<dyn Error>;

/// Which peer a child is, and where it runs.
pub const CHILD: &str = "HANDBELL_PEERS_CHILD";
/// How it finds the other side, where that is not by its descriptors.
pub const ADDRESS: &str = "HANDBELL_PEERS_ADDRESS";
const PROCESSOR: &str = "HANDBELL_PEERS_PROCESSOR";

const ECHO: u8 = 0;
const STREAM: u8 = 1;
const FLUSH: u8 = 2;
const QUIT: u8 = 3;
/// Messages of a stream between two readings of the clock.
const SAMPLED: u64 = 64;
/// No peer here has room for so many.
pub const STRETCH: u64 = 8192;

/// One end.
pub trait Link {
    /// Sends, waiting for room as the peer does.
    fn send(&mut self, message: &Message) -> Result<(), Problem>;
    /// Receives, waiting as the peer does.
    fn receive(&mut self) -> Result<Message, Problem>;
}

/// The other side: sends back what asks for it, until it is told to go.
pub fn serve(link: &mut impl Link) -> Result<(), Problem> {
    let mut counted = 0_u64;
    loop {
        let mut message = link.receive()?;
        match message[0] {
            ECHO => link.send(&message)?,
            STREAM => {
                if number(&message) != counted {
                    return Err(format!("message {} came as number {counted}", number(&message)).into());
                }
                counted += 1;
            }
            FLUSH => {
                message[8..16].copy_from_slice(&counted.to_le_bytes());
                counted = 0;
                link.send(&message)?;
            }
            _ => return Ok(()),
        }
    }
}

fn number(message: &Message) -> u64 {
    u64::from_le_bytes(message[8..16].try_into().expect("eight bytes"))
}

fn message(kind: u8, number: u64) -> Message {
    let mut message = [7; 64];
    message[0] = kind;
    message[8..16].copy_from_slice(&number.to_le_bytes());
    message
}

/// What is measured of a peer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// There and back, one at a time.
    Echo,
    /// One way, as many as there is room for.
    Stream,
}

/// A peer as a subject: started for its turn, and ended after it.
pub struct Peer {
    task: Task,
    start: Box<dyn FnMut() -> Result<Running, Problem>>,
    running: Option<Running>,
    sent: u64,
}

/// Both sides.
pub struct Running {
    link: Box<dyn Link>,
    other: Other,
}

enum Other {
    Process(Child),
    Thread(std::thread::JoinHandle<()>),
}

impl Peer {
    /// Started by `start`.
    pub fn new(task: Task, start: impl FnMut() -> Result<Running, Problem> + 'static) -> Self {
        Self { task, start: Box::new(start), running: None, sent: 0 }
    }
}

impl Running {
    /// With a process that [`child`] has started.
    pub fn with_process(link: impl Link + 'static, child: Child) -> Self {
        Self { link: Box::new(link), other: Other::Process(child) }
    }

    /// With a thread on this processor that serves `other`.
    pub fn with_thread(
        link: impl Link + 'static,
        mut other: impl Link + Send + 'static,
        place: &Place,
    ) -> Self {
        let processor = place.partner;
        let thread = std::thread::spawn(move || {
            processor.inspect(|processor| {
                pin(&[*processor]);
            });
            serve(&mut other).expect("the other side of a thread stays");
        });
        Self { link: Box::new(link), other: Other::Thread(thread) }
    }
}

/// This program once more, as the other side of `peer`.
pub fn child(peer: &str, place: &Place) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env(CHILD, peer);
    if let Some(processor) = place.partner {
        command.env(PROCESSOR, processor.to_string());
    }
    command
}

/// In such a process: which peer it is. It dies with its parent, and keeps to its processor.
pub fn is_child() -> Option<String> {
    let peer = env::var(CHILD).ok()?;
    set_parent_process_death_signal(Some(Signal::KILL)).expect("the system has it");
    if let Some(processor) = env::var(PROCESSOR).ok().and_then(|text| text.parse().ok()) {
        pin(&[processor]);
    }
    Some(peer)
}

/// What the parent has left for it.
pub fn address() -> Result<String, Problem> {
    Ok(env::var(ADDRESS)?)
}

impl Subject<Problem> for Peer {
    fn wake(&mut self) -> Result<(), Problem> {
        let mut running = (self.start)()?;
        // Both sides are there when this has come back.
        running.link.send(&message(FLUSH, 0))?;
        running.link.receive()?;
        self.running = Some(running);
        Ok(())
    }

    fn slice(&mut self, time: Duration) -> Result<Slice, Problem> {
        let link = &mut self.running.as_mut().expect("it is awake").link;
        let sent = &mut self.sent;
        match self.task {
            Task::Echo => Slice::of(time, || {
                *sent += 1;
                let message = message(ECHO, *sent);
                let begin = Instant::now();
                link.send(&message)?;
                let back = link.receive()?;
                let took = begin.elapsed();
                if back == message { Ok(took) } else { Err("another message came back".into()) }
            }),
            Task::Stream => stream(link.as_mut(), time),
        }
    }

    fn rest(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        // Who does not hear it is gone already, or goes with this process.
        let _ = running.link.send(&message(QUIT, 0));
        match running.other {
            Other::Process(mut child) => {
                let _ = child.wait();
            }
            Other::Thread(thread) => drop(thread.join()),
        }
    }
}

fn stream(link: &mut dyn Link, time: Duration) -> Result<Slice, Problem> {
    let mut slice = Slice::empty();
    let (begin, mut pace) = (Instant::now(), Pace::start(STRETCH));
    loop {
        if slice.count.is_multiple_of(SAMPLED) {
            let now = Instant::now();
            pace.note(slice.count, now);
            if now - begin >= time {
                break;
            }
        }
        link.send(&message(STREAM, slice.count))?;
        slice.count += 1;
    }
    link.send(&message(FLUSH, 0))?;
    let counted = number(&link.receive()?);
    slice.took = begin.elapsed();
    slice.steady_per_s = pace.per_s();
    if counted == slice.count { Ok(slice) } else { Err(format!("{counted} of {} came", slice.count).into()) }
}
