//! Requests in a program's own event loop: one descriptor becomes readable when any of them ends.
//!
//! `cargo run --example epoll`

use std::os::fd::AsFd;
use std::time::Duration;

use handbell::{App, Deadline, Drain, EventBell, Pending, Plan};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::retry_on_intr;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

const BELL: u64 = 0;
const TIMER: u64 = 1;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let app = App::new().node("sleep", |request, output| {
        std::thread::sleep(Duration::from_millis(request.payload()[0].into()));
        Ok(output.reply(request.payload())?)
    });
    app.serve_if_worker();
    let engine = app.engine(Plan::new().group("sleepers", ["sleep"]).stateless().processes(4)).start()?;
    let sleep = engine.node("sleep")?;

    let loop_ = epoll::create(CreateFlags::CLOEXEC)?;
    let bell = EventBell::new()?;
    epoll::add(&loop_, bell.as_fd(), EventData::new_u64(BELL), EventFlags::IN)?;
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    let every = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
    let every = Itimerspec { it_interval: every, it_value: every };
    rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &every)?;
    epoll::add(&loop_, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;

    let deadline = Deadline::after(Duration::from_secs(5));
    let dispatch = |ms: u8| engine.request(sleep).deadline(deadline).dispatch(&[ms]);
    let mut pending = (1..=20).map(dispatch).collect::<Result<Vec<Pending>, _>>()?;
    let (mut ended, mut ticks) = (0, 0);
    // Asked once at the beginning, so that the bell is to ring for each.
    let mut ask = |pending: &mut Vec<Pending>| {
        pending.retain_mut(|request| match request.try_take_or_ring(&bell) {
            Some(result) => {
                ended += usize::from(result.is_ok());
                false
            }
            None => true,
        });
        ended
    };
    ask(&mut pending);
    let mut events = Vec::with_capacity(8);
    while !pending.is_empty() {
        events.clear();
        retry_on_intr(|| epoll::wait(&loop_, rustix::buffer::spare_capacity(&mut events), None))?;
        for event in &events {
            if event.data.u64() == BELL {
                bell.clear();
                ask(&mut pending);
            } else {
                rustix::io::read(&timer, &mut [0; 8])?;
                ticks += 1;
            }
        }
    }
    println!("{ended} requests ended; the loop's own timer ticked meanwhile: {}", ticks > 0);
    engine.stop(Drain::within(Duration::from_secs(5)));
    Ok(())
}
