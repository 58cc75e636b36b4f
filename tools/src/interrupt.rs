//! Ctrl-C and SIGTERM: the first asks the demonstration to stop in order, the second has its usual effect.
//!
//! What is in flight is decided and written; what the drain does not wait for is cut off. Workers have process
//! groups of their own, so that no Ctrl-C reaches them: they end when their engine tells them to.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, SyncSender, channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use handbell::{Drain, Engine};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use rustix::process::Signal;

use crate::exit::{Exit, Problem};
use crate::input::Event;

/// What stops engines once a signal says so.
pub struct Interrupt {
    /// The name of the signal.
    came: Arc<OnceLock<&'static str>>,
    running: Sender<Running>,
    /// Ends with the stop, and tells how many requests it cut off.
    stop: JoinHandle<u64>,
}

/// What a signal stops.
struct Running {
    engines: Vec<Engine>,
    events: SyncSender<Event>,
}

impl Interrupt {
    /// Listens from now on. A signal that comes before there is anything to stop waits for that, for at most `drain`,
    /// and then ends the command: whoever has been started ends with it.
    pub fn listen(drain: Duration) -> Result<Self, Problem> {
        Self::try_listen(drain).map_err(|error| Problem {
            exit: Exit::Start,
            message: format!("start refused: no thread for signals ({error})"),
        })
    }

    fn try_listen(drain: Duration) -> io::Result<Self> {
        let mut first = First::register()?;
        let came = Arc::new(OnceLock::new());
        let said = Arc::clone(&came);
        let (running, handed_over) = channel();
        let stop = move || {
            let signal = said.get_or_init(|| first.wait());
            let Running { engines, events } = match handed_over.recv_timeout(drain) {
                Ok(running) => running,
                // The command is ending with a problem of its own.
                Err(RecvTimeoutError::Disconnected) => return 0,
                Err(RecvTimeoutError::Timeout) => std::process::exit(stopped_by(signal).tell() as i32),
            };
            thread::scope(|scope| {
                let stops: Vec<_> =
                    engines.iter().map(|engine| scope.spawn(|| engine.stop(Drain::within(drain)))).collect();
                // Who is not waiting there finds out by the next line that is refused.
                let _ = events.try_send(Event::Stopped);
                stops.into_iter().map(|stop| stop.join().map_or(0, |report| report.cut_off)).sum()
            })
        };
        let stop = thread::Builder::new().name("demo-stop".into()).spawn(stop)?;
        Ok(Self { came, running, stop })
    }

    /// From now on a signal stops these, and says so to whoever waits for `events`.
    pub fn hand_over(&self, engines: Vec<Engine>, events: SyncSender<Event>) {
        // The thread is there until it has taken this.
        let _ = self.running.send(Running { engines, events });
    }

    /// Waits until the engines have stopped, if a signal has come.
    pub fn finish(self) {
        if self.came.get().is_some() {
            // A panic there has said so on standard error.
            let _ = self.stop.join();
        }
    }

    /// Why the run has ended: because of `problem`, or of a signal that cut nothing off.
    pub fn explain(self, problem: Problem) -> Problem {
        let Some(signal) = self.came.get() else { return problem };
        let cut_off = self.stop.join().unwrap_or_default();
        if problem.exit == Exit::Shutdown && cut_off == 0 {
            return stopped_by(signal);
        }
        problem
    }
}

fn stopped_by(signal: &str) -> Problem {
    Problem { exit: Exit::Shutdown, message: format!("stopped by {signal} before the run was over") }
}

/// The first signal. Those that are ignored when the program starts stay so, as a shell wants it of what it starts in
/// the background.
struct First {
    number: Arc<AtomicUsize>,
    bell: UnixStream,
}

impl First {
    fn register() -> io::Result<Self> {
        let (number, has_come) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (bell, rung) = UnixStream::pair()?;
        let ignored = ignored();
        for signal in [SIGINT, SIGTERM].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0) {
            // In this order: what the first leaves behind is what the second finds; and the number is there from the
            // moment on in which the signal is caught.
            flag::register_usize(signal, Arc::clone(&number), signal as usize)?;
            flag::register_conditional_default(signal, Arc::clone(&has_come))?;
            flag::register(signal, Arc::clone(&has_come))?;
            low_level::pipe::register(signal, rung.try_clone()?)?;
        }
        // What came meanwhile may have found only some of them.
        if number.load(Ordering::SeqCst) != 0 {
            has_come.store(true, Ordering::SeqCst);
            (&rung).write_all(&[0])?;
        }
        Ok(Self { number, bell })
    }

    /// Waits for it; its name.
    fn wait(&mut self) -> &'static str {
        let mut byte = [0];
        // It cannot fail: this process has the other end, too.
        let _ = self.bell.read_exact(&mut byte);
        let number = self.number.load(Ordering::SeqCst);
        i32::try_from(number).ok().and_then(low_level::signal_name).unwrap_or("a signal")
    }
}

/// Lets a write beyond the limit of a file's size fail, in place of ending the command. What is caught, and not
/// ignored, is not so in programs that are started from here.
pub fn survive_file_limits() {
    const SIGXFSZ: i32 = Signal::XFSZ.as_raw();
    if ignored() >> (SIGXFSZ - 1) & 1 == 0 {
        // Where it cannot be caught, it has its usual effect.
        let _ = flag::register(SIGXFSZ, Arc::default());
    }
}

/// The signals that this process ignores, one bit each from SIGHUP on.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap_or_default();
    u64::from_str_radix(mask.trim(), 16).unwrap_or(0)
}
