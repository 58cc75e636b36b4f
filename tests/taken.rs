//! A program that takes the exit statuses of all its children, as the first process of a container does: STOP-IPC-02,
//! RESTART-01. By itself, because it takes those of every test beside it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use handbell::{Cause, Plan, Restart};
use rustix::process::{Signal, WaitOptions};

mod common;
use common::{engine, engine_over, far, kill, started, stop, transport, until, worker_pid};

program![restart_01_a_death_is_seen_though_its_status_is_taken];

fn restart_01_a_death_is_seen_though_its_status_is_taken() {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let restart = Restart::on_failure(9).delay(Duration::from_millis(1), Duration::from_millis(1));
        let (again, echo) = started(engine_over(Plan::new().group("g", ["echo"]).restart(restart)), "echo");
        let (once, stuck) = started(engine(&["stuck"]), "stuck");
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = rustix::process::wait(WaitOptions::NOHANG);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let pid = worker_pid(&again);
        kill(pid, Signal::KILL);
        until("another worker is there", || again.worker_pids().iter().any(|now| *now != pid));
        assert_eq!(*again.call(echo, b"once more", far()).unwrap().bytes(), *b"once more");
        let pending = once.request(stuck).deadline(far()).dispatch(b"").unwrap();
        kill(worker_pid(&once), Signal::KILL);
        // Whoever is first has the status.
        let cause = transport(pending.wait().unwrap_err());
        assert!([Cause::Exit(-1), Cause::Signal(9)].contains(&cause), "{cause:?}");
        assert_eq!(stop(&again).workers.len() + stop(&once).workers.len(), 2);
        done.store(true, Ordering::Relaxed);
    });
}
