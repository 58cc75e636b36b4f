//! Requests as futures without a runtime, and in a program's own event loop.

use std::future::poll_fn;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use handbell::testing;
use handbell::{CallError, Category, Engine, EngineBuilder, EventBell, Pending, Plan, Profile, Reply};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;

mod common;
use common::alarm::{Alarm, block_on};
use common::scripted::{self, Gate, script, trail};
use common::{TOKEN, failure, far, kill, patiently, sent_within, stop, token, transport, until};

program![
    of scripted::app;
    futures_resolve_over_hops,
    many_futures_in_one_thread,
    a_future_resolves_while_others_read_its_lanes,
    only_the_latest_waker_is_woken,
    a_future_may_move_to_another_thread,
    a_waker_that_panics_harms_nobody,
    a_waker_may_own_what_it_wakes,
    a_dropped_future_is_cancelled,
    a_deadline_resolves_a_future_that_nobody_reads_for,
    a_death_and_a_stop_resolve_futures,
    one_bell_serves_many_requests_in_epoll,
    a_bell_rings_in_poll,
    latency_and_idle_time_are_printed,
];

fn chain() -> Plan {
    Plan::new().group("A", ["a"]).group("B", ["b"]).group("C", ["c"]).edge("a", "b").edge("b", "c")
}

fn over(plan: Plan) -> EngineBuilder {
    scripted::app().engine(plan).env(TOKEN, token()).on_output(|_| {})
}

fn both() -> [Engine; 2] {
    [Profile::ProcessSupervisor, Profile::Memory]
        .map(|profile| over(chain()).profile(profile).start().expect("the engine starts"))
}

fn ask(engine: &Engine, words: &str) -> Pending {
    let node = engine.node("a").expect("the plan has it");
    engine.request(node).deadline(far()).dispatch(&script(words)).expect("it is taken")
}

/// Polls once.
fn poll_once(pending: &mut Pending, waker: &Waker) -> Option<Result<Reply, CallError>> {
    match Pin::new(pending).poll(&mut Context::from_waker(waker)) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

fn futures_resolve_over_hops() {
    for engine in both() {
        for _ in 0..200 {
            assert_eq!(trail(&block_on(ask(&engine, "")).unwrap()), "a b c");
        }
        // Slow at each node: the sleep is real, and each hop wakes who must read on.
        for _ in 0..5 {
            assert_eq!(trail(&block_on(ask(&engine, "a:z15 >b;b:z15 >c;c:z15 =")).unwrap()), "a b c");
        }
        let failed = block_on(ask(&engine, "b:z5 !4")).unwrap_err();
        assert_eq!(failure(failed, Category::Execution).group(), "B");
        stop(&engine);
    }
}

fn many_futures_in_one_thread() {
    for engine in both() {
        let mut pending: Vec<Option<Pending>> =
            (0..500).map(|i| Some(ask(&engine, if i % 50 == 0 { "b:z1 >c" } else { "" }))).collect();
        let mut ended = 0;
        block_on(poll_fn(|context| {
            for place in &mut pending {
                let Some(future) = place else { continue };
                if let Poll::Ready(result) = Pin::new(future).poll(context) {
                    assert_eq!(trail(&result.unwrap()), "a b c");
                    (*place, ended) = (None, ended + 1);
                }
            }
            if ended == pending.len() { Poll::Ready(()) } else { Poll::Pending }
        }));
        stop(&engine);
    }
}

/// Callers that wait for their own replies read its lanes meanwhile, and hand it on to a lane that they never
/// look at.
fn a_future_resolves_while_others_read_its_lanes() {
    let engine = over(chain()).start().unwrap();
    let [a, b] = ["a", "b"].map(|name| engine.node(name).unwrap());
    let is_over = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for (node, words) in [(a, "a:="), (b, "b:=")] {
            let (engine, is_over) = (&engine, &is_over);
            scope.spawn(move || {
                while is_over.load(Ordering::Relaxed) == 0 {
                    engine.call(node, &script(words), far()).expect("it answers");
                }
            });
        }
        let begin = Instant::now();
        for _ in 0..300 {
            assert_eq!(trail(&block_on(ask(&engine, "")).unwrap()), "a b c");
        }
        println!("300 futures over three groups beside two busy callers: {:.1?}", begin.elapsed());
        is_over.store(1, Ordering::Relaxed);
    });
    stop(&engine);
}

fn only_the_latest_waker_is_woken() {
    for engine in both() {
        let gate = Gate::new();
        let [first, second] = [(); 2].map(|()| Arc::new(Alarm::default()));
        let mut pending = ask(&engine, &format!("b:{} >c", gate.word()));
        for alarm in [&first, &second, &first, &second] {
            assert!(poll_once(&mut pending, &Waker::from(Arc::clone(alarm))).is_none());
        }
        gate.open();
        second.wait_beyond(0);
        assert_eq!(first.rings(), 0);
        let waker = Waker::from(Arc::clone(&second));
        assert_eq!(trail(&poll_once(&mut pending, &waker).expect("it has ended").unwrap()), "a b c");
        // A future that has resolved stays pending, and keeps no waker.
        assert!(poll_once(&mut pending, &waker).is_none());
        drop((waker, pending));
        until("no waker is kept", || (Arc::strong_count(&first), Arc::strong_count(&second)) == (1, 1));
        stop(&engine);
    }
}

fn a_future_may_move_to_another_thread() {
    for engine in both() {
        for _ in 0..20 {
            let gate = Gate::new();
            let mut pending = ask(&engine, &format!("b:{} >c", gate.word()));
            let left_behind = Arc::new(Alarm::default());
            let early = poll_once(&mut pending, &Waker::from(Arc::clone(&left_behind)));
            assert!(early.is_none());
            gate.open();
            let ended = std::thread::spawn(move || block_on(pending)).join().expect("it ends");
            assert_eq!(trail(&ended.unwrap()), "a b c");
        }
        stop(&engine);
    }
}

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("wanted");
    }
}

fn a_waker_that_panics_harms_nobody() {
    for engine in both() {
        let waker = Waker::from(Arc::new(Panics));
        for _ in 0..10 {
            let gate = Gate::new();
            let mut bad = ask(&engine, &format!("b:{} >c", gate.word()));
            assert!(poll_once(&mut bad, &waker).is_none());
            let good = ask(&engine, "b:z1 >c");
            gate.open();
            assert_eq!(trail(&block_on(good).unwrap()), "a b c");
            assert_eq!(trail(&bad.wait().unwrap()), "a b c");
        }
        stop(&engine);
    }
}

/// A task that owns its future, and is owned by the waker that it leaves there.
struct Task {
    future: Mutex<Option<Pending>>,
    done: AtomicU64,
}

impl Task {
    fn go(self: &Arc<Self>) {
        let mut future = self.future.lock().unwrap();
        let ended = future.as_mut().and_then(|future| poll_once(future, &Waker::from(Arc::clone(self))));
        if let Some(result) = ended {
            self.done.store(1 + u64::from(result.is_ok()), Ordering::Release);
            *future = None;
        }
    }
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        // Polls right here, in the thread that read the reply.
        self.go();
    }
}

fn a_waker_may_own_what_it_wakes() {
    for engine in both() {
        let tasks: Vec<Arc<Task>> = (0..50)
            .map(|_| {
                let future = Mutex::new(Some(ask(&engine, "b:z1 >c")));
                Arc::new(Task { future, done: AtomicU64::new(0) })
            })
            .collect();
        tasks.iter().for_each(Task::go);
        until("every task is done", || tasks.iter().all(|task| task.done.load(Ordering::Acquire) == 2));
        for task in tasks {
            until("the engine has forgotten it", || Arc::strong_count(&task) == 1);
        }
        stop(&engine);
    }
}

fn a_dropped_future_is_cancelled() {
    for engine in both() {
        let alarm = Arc::new(Alarm::default());
        for _ in 0..10 {
            let mut pending: Vec<_> = (0..10).map(|_| ask(&engine, "b:wait")).collect();
            for pending in &mut pending {
                assert!(poll_once(pending, &Waker::from(Arc::clone(&alarm))).is_none());
            }
        }
        // Nodes that had not been told would still be waiting.
        assert_eq!(trail(&block_on(ask(&engine, "")).unwrap()), "a b c");
        until("they have ended", || engine.audit().free == 1024);
        assert_eq!(engine.counters().cancelled, 100);
        until("no waker is kept", || Arc::strong_count(&alarm) == 1);
        stop(&engine);
    }
}

fn a_deadline_resolves_a_future_that_nobody_reads_for() {
    for which in 0..2 {
        patiently(200, |half_ms| {
            let engine = both().into_iter().nth(which).expect("one of two");
            let came_far = two_deadlines(&engine, 2 * half_ms, 3 * half_ms);
            stop(&engine);
            came_far.then_some(())
        });
    }
}

/// Two requests that meet their deadlines; false if the machine is so slow that they did so on their way.
fn two_deadlines(engine: &Engine, early_ms: u64, late_ms: u64) -> bool {
    let a = engine.node("a").unwrap();
    let begin = Instant::now();
    let late = sent_within(engine, a, late_ms, &script("c:wait"));
    until("it runs or has ended", || testing::has_begun_at(engine, 2, 0) || engine.audit().not_taken == 1);
    let early = sent_within(engine, a, early_ms, &script("c:wait"));
    let [early, late] = [(early, early_ms), (late, late_ms)].map(|(pending, limit_ms)| {
        let failed = failure(block_on(pending).unwrap_err(), Category::Timeout);
        // Long deadlines are counted from the coarse clock, which on some machines lags by more than it says.
        assert!(begin.elapsed() >= Duration::from_millis(limit_ms - 20));
        failed.group().to_owned()
    });
    println!("two deadlines of {early_ms} and {late_ms} ms: {:.1?}", begin.elapsed());
    // In memory one thread runs what nobody waits for, and that is in C with the other one.
    let group = if engine.summary().profile == Profile::Memory { "A" } else { "C" };
    (&*early, &*late) == (group, "C")
}

fn a_death_and_a_stop_resolve_futures() {
    let engine = over(chain()).start().unwrap();
    let in_b = ask(&engine, "b:wait");
    let pid = engine.summary().groups[1].worker_pids[0];
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| block_on(in_b));
        std::thread::sleep(Duration::from_millis(30));
        kill(pid, rustix::process::Signal::KILL);
        assert_eq!(transport(waiting.join().unwrap().unwrap_err()), handbell::Cause::Signal(9));
    });
    stop(&engine);
    for engine in both() {
        let pending = ask(&engine, "b:wait");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| block_on(pending));
            std::thread::sleep(Duration::from_millis(30));
            engine.stop(handbell::Drain::within(Duration::ZERO));
            failure(waiting.join().unwrap().unwrap_err(), Category::Shutdown);
        });
    }
}

fn one_bell_serves_many_requests_in_epoll() {
    for engine in both() {
        let (bell, set) = (EventBell::new().unwrap(), epoll::create(CreateFlags::CLOEXEC).unwrap());
        epoll::add(&set, bell.as_fd(), EventData::new_u64(7), EventFlags::IN).unwrap();
        let ask_all = |pending: &mut Vec<Pending>| {
            pending.retain_mut(|request| match request.try_take_or_ring(&bell) {
                Some(result) => {
                    assert_eq!(trail(&result.unwrap()), "a b c");
                    false
                }
                None => true,
            });
        };
        let mut pending: Vec<_> = (0..100).map(|i| ask(&engine, &format!("b:z{} >c", i % 10 / 9))).collect();
        ask_all(&mut pending);
        let mut events = Vec::with_capacity(4);
        while !pending.is_empty() {
            events.clear();
            // Being stopped and continued interrupts it.
            retry_on_intr(|| epoll::wait(&set, rustix::buffer::spare_capacity(&mut events), None)).unwrap();
            assert!(events.iter().all(|event| event.data.u64() == 7));
            bell.clear();
            ask_all(&mut pending);
        }
        stop(&engine);
    }
}

fn a_bell_rings_in_poll() {
    for engine in both() {
        let bell = EventBell::new().unwrap();
        let clone = bell.clone();
        for _ in 0..20 {
            let mut pending = ask(&engine, "b:z2 >c");
            let mut taken = pending.try_take_or_ring(&bell);
            while taken.is_none() {
                retry_on_intr(|| poll(&mut [PollFd::new(&clone, PollFlags::IN)], None)).unwrap();
                clone.clear();
                taken = pending.try_take_or_ring(&bell);
            }
            assert_eq!(trail(&taken.unwrap().unwrap()), "a b c");
        }
        // Cleared, and nothing in flight: it is silent.
        let quiet = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        // The reply may have been taken before the bell was rung for it.
        until("it is silent", || {
            bell.clear();
            poll(&mut [PollFd::new(&bell, PollFlags::IN)], Some(&quiet)).unwrap() == 0
        });
        stop(&engine);
    }
}

fn latency_and_idle_time_are_printed() {
    let engine = over(chain()).start().unwrap();
    let mut took: Vec<Duration> = Vec::new();
    for _ in 0..500 {
        let begin = Instant::now();
        block_on(ask(&engine, "")).unwrap();
        took.push(begin.elapsed());
    }
    took.sort_unstable();
    println!("a future over three groups: median {:.1?}, of 100 the worst {:.1?}", took[250], took[495]);
    // The engine's thread goes to sleep for good after half a second without anything.
    std::thread::sleep(Duration::from_millis(700));
    let pids: Vec<i32> = engine.summary().worker_pids.clone();
    let ticks =
        || pids.iter().chain([&(std::process::id() as i32)]).map(|pid| processor_ticks(*pid)).sum::<u64>();
    let before = ticks();
    std::thread::sleep(Duration::from_secs(2));
    println!("idle for two seconds, engine and three workers: {} ms of processor", (ticks() - before) * 10);
    stop(&engine);
}

/// Processor time of a process, in hundredths of a second.
fn processor_ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("a stat line").1.split(' ').collect();
    fields[11].parse::<u64>().expect("a number") + fields[12].parse::<u64>().expect("a number")
}
