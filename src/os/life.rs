//! What a child does to itself before it serves: signals, descriptors, parent.
//!
//! Owns the tie between a worker's life and its parent's, and the clean-up of
//! what it inherited. Never runs in the parent, and never decides anything
//! about other processes than the group the caller leads.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{SocketType, sockopt};

use super::limits;

/// Unblocks every signal in the calling thread. A child inherits what the
/// spawning thread blocked, and would otherwise be deaf to its death signal
/// and to polite termination.
pub fn reset_signal_mask() {
    // SAFETY: the set is initialised by the first call; neither can fail with
    // these arguments.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Makes the whole process group of this worker die when its parent does, and
/// says whether `parent_pid` is still the parent: if not, it died before this
/// call and the caller has to end by itself.
///
/// The kernel's death signal reaches this process alone, so it is a reserved
/// signal whose handler kills the group. It is raised when the *thread* that
/// spawned this process ends. Programs started by this process do not inherit
/// the tie, but share the group. While this process is stopped it runs no
/// handler: see [`be_continued_at_the_end`].
///
/// # Errors
/// Whatever `sigaction` or `prctl` reports; there is no tie then.
pub fn bind_life_to(parent_pid: i32) -> io::Result<bool> {
    let signal = death_signal();
    // SAFETY: the structure is valid when zeroed and completed below; the
    // handler only makes async-signal-safe calls and does not return. The mask
    // is initialised before it is used.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_parent_death as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigemptyset(&mut action.sa_mask);
        check(libc::sigaction(signal, &action, std::ptr::null_mut()))?;
        let mut only = std::mem::zeroed();
        libc::sigemptyset(&mut only);
        libc::sigaddset(&mut only, signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &only, std::ptr::null_mut());
        check(libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong))?;
    }
    // Looked at after the tie is made: a parent that died before is seen here,
    // one that dies from now on raises the signal.
    Ok(self::parent_pid() == parent_pid)
}

/// Has this process continued when its parent dies, in case that it is stopped
/// then: so the handler of [`bind_life_to`] runs. By another thread than the one
/// that called that, for each thread has one death signal.
///
/// SIGCONT has no handler here: one would end a node's sleep early each time
/// that somebody continues its process.
pub fn be_continued_at_the_end() {
    // SAFETY: the call takes numbers. It cannot fail with a signal that there is.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGCONT as libc::c_ulong) };
}

/// Ends this process at once with this exit code; nothing that is registered
/// for an exit runs, so no thread that does not return can hold it up.
pub fn leave(code: i32) -> ! {
    // SAFETY: the call takes a number, and does not return.
    unsafe { libc::_exit(code) }
}

/// Kills whoever else is in the process group that this process leads, so that
/// it can end by itself without leaving them to a parent that may be dead by
/// then. It joins the group of its parent for that.
///
/// Best effort: nothing happens if it leads no group, or its parent is gone.
pub fn kill_rest_of_group() {
    // SAFETY: the calls take and return numbers.
    unsafe {
        let own = libc::getpid();
        let parents = libc::getpgid(libc::getppid());
        if libc::getpgrp() == own && parents > 0 && libc::setpgid(0, parents) == 0 {
            libc::kill(-own, libc::SIGKILL);
        }
    }
}

/// Kills this process and, if it leads its process group as a worker does, the
/// whole group. Async-signal-safe.
pub fn kill_own_group() -> ! {
    // SAFETY: no memory is passed, and each call is async-signal-safe.
    unsafe {
        let own = libc::getpid();
        // A group of this number is its own, though it may have just left it;
        // any other group is not its own to kill.
        libc::kill(-own, libc::SIGKILL);
        libc::kill(own, libc::SIGKILL);
        // Not reached: the kill takes effect before the call returns.
        libc::_exit(128 + libc::SIGKILL)
    }
}

/// Closes every descriptor from `first` on; those that cannot be closed are
/// passed over.
///
/// # Safety
/// No live value of this process may own or borrow a descriptor from `first`
/// on, and no other thread may open one during the call.
pub unsafe fn close_descriptors_from(first: i32) {
    let first = first.max(0);
    // SAFETY: no memory is passed; that nobody owns the descriptors is the
    // caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, c_int::MAX, 0) };
    if result != 0 {
        // Hidden by a system call filter.
        // SAFETY: the caller's promise is passed on.
        unsafe { close_one_by_one(first) };
    }
}

/// The first step of a worker's `main`: signals as they are by default, every descriptor but the
/// standard three closed, the bootstrap socket taken from descriptor 0.
///
/// Call it in a process that was started as a worker, before anything opens a descriptor or starts a thread.
///
/// # Errors
/// As [`take_stdin`].
pub fn become_worker() -> io::Result<OwnedFd> {
    reset_signal_mask();
    // SAFETY: the process has just been started as a worker and this is the first line of its `main` that
    // touches descriptors, as the caller documents: nothing in it owns one from 3 on, and no thread runs
    // beside this one.
    unsafe { close_descriptors_from(3) };
    take_stdin()
}

/// Moves descriptor 0 to a number of at least 3, close-on-exec, and puts
/// `/dev/null` in its place, so that nothing that reads standard input can
/// take a message from the connection to the parent.
///
/// # Errors
/// If descriptor 0 is closed, no descriptor is left, or `/dev/null` cannot be
/// opened; descriptor 0 is as it was then.
pub fn take_stdin() -> io::Result<OwnedFd> {
    let taken = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let null = File::open("/dev/null")?;
    // SAFETY: descriptor 0 is open, belongs to the standard library's handle,
    // which does not mind what it refers to, and stays open throughout.
    check(unsafe { libc::dup2(null.as_raw_fd(), 0) })?;
    Ok(taken)
}

/// Whether descriptor 0 is a socket of the bootstrap's kind: what tells a
/// worker from a program that a person started.
pub fn stdin_is_seqpacket() -> bool {
    sockopt::socket_type(io::stdin()) == Ok(SocketType::SEQPACKET)
}

/// The number of this process.
#[cfg(test)]
pub fn pid() -> i32 {
    std::process::id() as i32
}

/// The number of the parent at this moment: another one once the parent died,
/// and 0 if it is not visible from here.
pub fn parent_pid() -> i32 {
    std::os::unix::process::parent_id() as i32
}

/// Reserved for the end of the parent: real-time, so that no program uses it by
/// habit, and not the very last, which some tools take.
fn death_signal() -> c_int {
    libc::SIGRTMAX() - 1
}

extern "C" fn on_parent_death(_signal: c_int) {
    kill_own_group()
}

fn check(result: c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// # Safety
/// As [`close_descriptors_from`].
unsafe fn close_one_by_one(first: i32) {
    let numbers: Vec<i32> = match std::fs::read_dir("/proc/self/fd") {
        // Gathered first, as closing while listing would end the listing. Its
        // own descriptor is among them and closed by then.
        Ok(entries) => entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|number| *number >= first)
            .collect(),
        Err(_) => (first..limits::descriptor_limit().min(1 << 20) as i32).collect(),
    };
    for number in numbers {
        // SAFETY: nobody owns the descriptor, as the caller promised.
        unsafe { libc::close(number) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::child::{self, Exit, Spawn, Spawned};
    use super::super::poll::readable_within;
    use super::super::socket::{self, Received};
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    const ROLE: &str = "LIFE_TEST_ROLE";
    const LATE_MS: u32 = 20_000;

    /// The arguments that make this test program run [`in_child`] alone.
    fn child_args() -> Vec<std::ffi::OsString> {
        let (_, path) = module_path!().split_once("::").unwrap();
        let name = format!("{path}::in_child");
        ["--exact", &name, "--nocapture"].map(Into::into).to_vec()
    }

    fn start_alone(role: &str) -> Spawned {
        start(role, File::open("/dev/null").unwrap().into())
    }

    fn start(role: &str, stdin: OwnedFd) -> Spawned {
        child::spawn(Spawn {
            program: child::exec_path(),
            args: &child_args(),
            env: &[(ROLE.into(), role.into())],
            cwd: None,
            stdin,
        })
        .unwrap()
    }

    fn end_of(child: &Spawned) -> Exit {
        assert!(readable_within(child.pidfd.as_fd(), Some(LATE_MS)).unwrap());
        child::reap(child.pidfd.as_fd()).unwrap().unwrap()
    }

    /// Not a test of its own: what the tests below run in another process.
    #[test]
    fn in_child() {
        match std::env::var(ROLE).as_deref() {
            Ok("connected") => connected(),
            Ok("parent") => parent(|_| ()),
            Ok("parent that stops it") => parent(stop),
            Ok("parent of one that is stopped") => parent(|worker| {
                stop(worker);
                let mut status = 0;
                // SAFETY: the status is a number of this function's.
                assert_eq!(unsafe { libc::waitpid(worker, &mut status, libc::WUNTRACED) }, worker);
                assert!(libc::WIFSTOPPED(status));
            }),
            Ok("reaper") => reaper(),
            Ok("bound") => bound(),
            Ok("orphan") => assert!(!bind_life_to(pid()).unwrap()),
            Ok("suicide") => kill_own_group(),
            Ok("last") => last(),
            _ => {}
        }
    }

    fn connected() {
        assert!(stdin_is_seqpacket());
        let taken = take_stdin().unwrap();
        assert!(taken.as_raw_fd() >= 3);
        let flags = rustix::io::fcntl_getfd(&taken).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        assert!(!stdin_is_seqpacket());
        assert_eq!(io::stdin().read(&mut [0; 8]).unwrap(), 0);
        assert_eq!(socket::peer_pid(taken.as_fd()).unwrap(), parent_pid());
        for by_hand in [false, true] {
            let high = rustix::io::fcntl_dupfd_cloexec(&taken, 500).unwrap();
            let number = std::os::fd::IntoRawFd::into_raw_fd(high);
            // SAFETY: nobody owns a descriptor from 500 on, and no other thread
            // of this child opens any.
            unsafe {
                match by_hand {
                    true => close_one_by_one(number),
                    false => close_descriptors_from(number),
                }
                assert_eq!(libc::fcntl(number, libc::F_GETFD), -1);
            }
        }
        let own = pid().to_string();
        socket::send(taken.as_fd(), own.as_bytes(), &[]).unwrap();
    }

    /// Starts a bound worker on its own output and ends once that is bound.
    fn parent(first: impl FnOnce(i32)) {
        let mut worker = Command::new(child::exec_path());
        worker.args(child_args()).env(ROLE, "bound");
        worker.process_group(0).stderr(Stdio::piped());
        let mut worker = worker.spawn().unwrap();
        worker.stderr.as_mut().unwrap().read_exact(&mut [0; 5]).unwrap();
        first(worker.id() as i32);
        std::process::exit(7);
    }

    fn stop(worker: i32) {
        // SAFETY: the call takes numbers; the worker is a child that nobody has waited for.
        assert_eq!(unsafe { libc::kill(worker, libc::SIGSTOP) }, 0);
    }

    /// Takes in what parents leave behind, so that the kernel has no reason of its own to continue it; ends when
    /// nothing is left.
    fn reaper() {
        // SAFETY: the call takes numbers.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) }, 0);
        for role in ["parent that stops it", "parent of one that is stopped"] {
            let mut parent = Command::new(child::exec_path());
            parent.args(child_args()).env(ROLE, role).process_group(0);
            assert_eq!(parent.status().unwrap().code(), Some(7));
            // SAFETY: nobody else here waits for a child.
            while unsafe { libc::waitpid(-1, std::ptr::null_mut(), 0) } > 0 {}
        }
    }

    /// Ties itself and a sleeper of its group to the parent.
    fn bound() {
        reset_signal_mask();
        assert!(bind_life_to(parent_pid()).unwrap());
        let (tied, is_tied) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            be_continued_at_the_end();
            tied.send(()).unwrap();
            std::thread::park();
        });
        is_tied.recv().unwrap();
        let mut sleeper = Command::new("/bin/sleep");
        let mut sleeper = sleeper.arg("1000").stderr(Stdio::null()).spawn().unwrap();
        io::stderr().write_all(b"bound").unwrap();
        sleeper.wait().unwrap();
    }

    /// Ends by itself, and the sleeper of its group with it.
    fn last() {
        let mut sleeper = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
        kill_rest_of_group();
        sleeper.wait().unwrap();
        // There is nobody left, and it is not killed by what it does to others.
        kill_rest_of_group();
    }

    #[test]
    fn who_ends_by_itself_takes_its_group_along() {
        let child = start_alone("last");
        assert_eq!(end_of(&child), Exit::Code(0));
    }

    #[test]
    fn a_worker_takes_its_connection_and_closes_the_rest() {
        let (ours, theirs) = socket::pair().unwrap();
        let child = start("connected", theirs);
        let mut buffer = [0; 16];
        let received = socket::receive_within(ours.as_fd(), &mut buffer, 0, LATE_MS);
        match received.unwrap() {
            Received::Message { bytes, .. } => {
                assert_eq!(buffer[..bytes], *child.pid.to_string().as_bytes());
            }
            Received::End => panic!("{:?}", io::read_to_string(File::from(child.stderr))),
        }
        assert_eq!(end_of(&child), Exit::Code(0));
    }

    #[test]
    fn a_dead_parent_takes_the_whole_group_along() {
        let child = start_alone("parent");
        assert_eq!(end_of(&child), Exit::Code(7));
        // The worker and its sleeper hold copies of the output: its end shows
        // that both are gone.
        let mut stdout = File::from(child.stdout);
        let mut more = true;
        while more {
            assert!(readable_within(stdout.as_fd(), Some(LATE_MS)).unwrap());
            more = stdout.read(&mut [0; 256]).unwrap() > 0;
        }
    }

    #[test]
    fn stop_ipc_04_a_stopped_worker_ends_with_its_parent() {
        assert_eq!(end_of(&start_alone("reaper")), Exit::Code(0));
    }

    #[test]
    fn an_orphan_learns_it_and_can_kill_its_group() {
        assert_eq!(end_of(&start_alone("orphan")), Exit::Code(0));
        let killed = Exit::Signal(libc::SIGKILL);
        assert_eq!(end_of(&start_alone("suicide")), killed);
    }

    #[test]
    fn a_blocked_signal_is_unblocked() {
        // SAFETY: the sets are initialised before use; only this thread's mask
        // changes.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGUSR2);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
            reset_signal_mask();
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut set);
            assert_eq!(libc::sigismember(&set, libc::SIGUSR2), 0);
        }
    }
}
