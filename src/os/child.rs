//! Spawning, watching, signalling and reaping child processes.
//!
//! Owns the process descriptor from the moment of the spawn. Never waits by
//! number and never blocks for an exit; never decides that a child has to die.
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::io;
#[cfg(test)]
use std::os::fd::AsRawFd;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Rlimit, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, prlimit, waitid,
};

use crate::base::resource::Resource;

/// What to run.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The executable, as a path: it is not searched for.
    pub program: &'a Path,
    /// The arguments after the program's name.
    pub args: &'a [OsString],
    /// The whole environment: nothing is inherited.
    pub env: &'a [(OsString, OsString)],
    /// The working directory; `None` for this process's own.
    pub cwd: Option<&'a Path>,
    /// Becomes the child's descriptor 0 and is closed here.
    pub stdin: OwnedFd,
}

/// A child that runs, or has ended and was not reaped yet.
#[derive(Debug)]
pub struct Spawned {
    /// Its process number, which is also its process group.
    pub pid: i32,
    /// Refers to this very process whatever becomes of the number; readable
    /// once it has ended.
    pub pidfd: OwnedFd,
    /// The reading end of its standard output.
    pub stdout: OwnedFd,
    /// The reading end of its standard error.
    pub stderr: OwnedFd,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this status.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

/// Starts a child as the leader of its own process group.
///
/// The standard library keeps to `posix_spawn` for what is asked for here, so
/// the cost does not grow with the memory of this process. A death signal the
/// child asks for follows the calling *thread*: it has to outlive the child.
///
/// Dropping the result neither ends nor reaps the child.
///
/// # Errors
/// Whatever the spawn reports (no such program, no process or descriptor left)
/// or `pidfd_open` does, in which case the child has been killed and reaped.
pub fn spawn(spec: Spawn<'_>) -> io::Result<Spawned> {
    let mut command = Command::new(spec.program);
    if let Some(cwd) = spec.cwd {
        command.current_dir(cwd);
    }
    let mut child = command
        .args(spec.args)
        .env_clear()
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::from(spec.stdin))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let pid = child.id() as i32;
    let pidfd = open(pid).inspect_err(|error| abandon(&mut child, *error))?;
    // The handle on the child holds nothing else, and its drop only forgets:
    // reaping is up to the owner of the process descriptor.
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        unreachable!("both were asked to be pipes")
    };
    let (stdout, stderr) = (stdout.into(), stderr.into());
    Ok(Spawned { pid, pidfd, stdout, stderr })
}

/// The program that this process runs, even if its file was replaced or
/// deleted since.
pub fn exec_path() -> &'static Path {
    Path::new("/proc/self/exe")
}

/// How the child ended, or `None` if it has not; leaves it unreaped, so that
/// its number and its group stay its own.
///
/// # Errors
/// Whatever `waitid` reports: not a child of this process, or reaped already.
pub fn exit_of(pidfd: BorrowedFd) -> io::Result<Option<Exit>> {
    status(pidfd, WaitIdOptions::NOWAIT)
}

/// Whether the process is stopped, by a signal or by a debugger. False if that
/// cannot be told.
pub fn is_stopped(pid: i32) -> bool {
    matches!(stat(pid, 0).as_deref(), Some("T" | "t"))
}

/// Whether the process has begun to end. Its descriptors are closed a moment
/// before [`exit_of`] can tell how it ended; on a busy machine that moment may
/// be long. False if that cannot be told.
pub fn is_ending(pid: i32) -> bool {
    /// The kernel's `PF_EXITING`.
    const EXITING: u64 = 4;
    stat(pid, 6).and_then(|flags| flags.parse().ok()).is_some_and(|flags: u64| flags & EXITING != 0)
}

/// Whether the process would go on if it had a processor, or what it reads from a disk. False if that cannot be
/// told.
pub fn wants_processor(pid: i32) -> bool {
    matches!(stat(pid, 0).as_deref(), Some("R" | "D"))
}

/// How long the main thread of the process has had a processor so far, in nanoseconds. `None` if that cannot be
/// told.
pub fn processor_ns(pid: i32) -> Option<u64> {
    let schedstat = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
    schedstat.split(' ').next()?.parse().ok()
}

/// One of the words that the kernel tells of a process, from its state on.
fn stat(pid: i32, number: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // They stand behind the name, which may hold anything, in parentheses.
    stat.rsplit_once(") ")?.1.split(' ').nth(number).map(str::to_owned)
}

/// How the child ended, or `None` if it has not; reaps it, after which its
/// number may belong to another process.
///
/// # Errors
/// Whatever `waitid` reports: not a child of this process, or reaped already.
pub fn reap(pidfd: BorrowedFd) -> io::Result<Option<Exit>> {
    status(pidfd, WaitIdOptions::empty())
}

/// Bounds what the child may use from now on, in the resource's own unit, soft
/// and hard limit; `u64::MAX` is no limit.
///
/// Only to be called while the child is unreaped: afterwards the number may
/// name a stranger.
///
/// # Errors
/// `PermissionDenied` if that would raise the hard limit and this process may
/// not do so.
pub fn limit(pid: i32, resource: Resource, value: u64) -> io::Result<()> {
    use rustix::process::Resource as Kernels;
    let resource = match resource {
        Resource::OpenFiles => Kernels::Nofile,
        Resource::AddressSpace => Kernels::As,
        Resource::Data => Kernels::Data,
        Resource::Stack => Kernels::Stack,
        Resource::Core => Kernels::Core,
        Resource::CpuSeconds => Kernels::Cpu,
        Resource::FileSize => Kernels::Fsize,
        Resource::Processes => Kernels::Nproc,
    };
    // 0 would mean this very process.
    let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    let value = (value != u64::MAX).then_some(value);
    prlimit(Some(pid), resource, Rlimit { current: value, maximum: value })?;
    Ok(())
}

/// Sends `signal` to the process; 0 only checks that it could be sent. An
/// ended child that is not reaped takes it without effect.
///
/// # Errors
/// `ESRCH` if the process was reaped; `InvalidInput` if there is no such
/// signal; `PermissionDenied` if the process belongs to somebody else.
#[cfg(test)]
pub fn signal(pidfd: BorrowedFd, signal: i32) -> io::Result<()> {
    let (call, fd) = (libc::SYS_pidfd_send_signal, pidfd.as_raw_fd());
    let plain = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: no memory is passed; the descriptor is open for the call.
    match unsafe { libc::syscall(call, fd, signal, plain, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Kills `pid` and every process of the group that it leads or has led; an
/// empty group is fine.
///
/// Only to be called while the leader is unreaped: afterwards the number may
/// name the group of a stranger.
pub fn kill_group(pid: i32) {
    signal_group(pid, libc::SIGKILL);
    // One that ends by itself has left its group.
    if pid > 1 {
        // SAFETY: no memory is passed.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
}

/// Sends `signal` to every process of the group that `pid` leads; an empty
/// group is fine. Only to be called while the leader is unreaped, as with
/// [`kill_group`].
pub fn signal_group(pid: i32, signal: i32) {
    if let Some(group) = group_led_by(pid) {
        // SAFETY: no memory is passed.
        unsafe { libc::kill(group, signal) };
    }
}

/// How many descriptors this process has open.
///
/// # Errors
/// If `/proc/self/fd` cannot be read.
pub fn descriptors_open() -> io::Result<usize> {
    // The listing shows the descriptor it is read through.
    Ok(std::fs::read_dir("/proc/self/fd")?.count() - 1)
}

/// What `kill` takes for the group of `pid`. Negated, 0 would mean this
/// process's own group, and 1 every process there is.
fn group_led_by(pid: i32) -> Option<i32> {
    (pid > 1).then(|| -pid)
}

fn open(pid: i32) -> Result<OwnedFd, Errno> {
    pidfd_open(Pid::from_raw(pid).ok_or(Errno::SRCH)?, PidfdFlags::empty())
}

/// Gets rid of a child that cannot be watched.
fn abandon(child: &mut Child, error: Errno) {
    // A process that is gone was reaped by somebody else: its number is not
    // ours to signal.
    if error != Errno::SRCH {
        kill_group(child.id() as i32);
    }
    let _ = child.wait();
}

fn status(pidfd: BorrowedFd, how: WaitIdOptions) -> io::Result<Option<Exit>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | how;
    let status = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(pidfd), options))?;
    Ok(status.as_ref().and_then(exit_in))
}

fn exit_in(status: &WaitIdStatus) -> Option<Exit> {
    let code = status.exit_status().map(Exit::Code);
    code.or_else(|| status.terminating_signal().map(Exit::Signal))
}

#[cfg(test)]
mod tests {
    use super::super::poll::readable_within;
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;

    const LATE_MS: u32 = 20_000;

    fn start(program: &str, args: &[OsString]) -> io::Result<Spawned> {
        spawn(Spawn {
            program: Path::new(program),
            args,
            env: &[("ONLY".into(), "this".into())],
            cwd: None,
            stdin: File::open("/dev/null").unwrap().into(),
        })
    }

    fn shell(script: &str) -> Spawned {
        start("/bin/sh", &["-c".into(), script.into()]).unwrap()
    }

    /// Waits for the end, checks that looking leaves the zombie, and reaps.
    fn end_of(child: &Spawned) -> Exit {
        let pidfd = child.pidfd.as_fd();
        assert!(readable_within(pidfd, Some(LATE_MS)).unwrap());
        let seen = exit_of(pidfd).unwrap().unwrap();
        assert_eq!(exit_of(pidfd).unwrap(), Some(seen));
        signal(pidfd, 0).unwrap();
        assert_eq!(reap(pidfd).unwrap(), Some(seen));
        let code = |error: io::Error| error.raw_os_error();
        assert_eq!(code(reap(pidfd).unwrap_err()), Some(libc::ECHILD));
        assert_eq!(code(signal(pidfd, 0).unwrap_err()), Some(libc::ESRCH));
        seen
    }

    fn text(fd: OwnedFd) -> String {
        let mut text = String::new();
        File::from(fd).read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn codes_and_outputs_arrive() {
        let child = shell("echo out; echo err >&2; exit 42");
        assert_eq!(end_of(&child), Exit::Code(42));
        assert_eq!(text(child.stdout), "out\n");
        assert_eq!(text(child.stderr), "err\n");
    }

    #[test]
    fn the_environment_is_only_what_was_given() {
        let child = start("/usr/bin/env", &[]).unwrap();
        assert_eq!(end_of(&child), Exit::Code(0));
        assert_eq!(text(child.stdout), "ONLY=this\n");
        let error = start("/nowhere/at all", &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_child_begins_where_it_is_told() {
        let stdin = File::open("/dev/null").unwrap().into();
        let (program, cwd) = (Path::new("/bin/pwd"), Some(Path::new("/proc")));
        let child = spawn(Spawn { program, args: &[], env: &[], cwd, stdin }).unwrap();
        assert_eq!(end_of(&child), Exit::Code(0));
        assert_eq!(text(child.stdout), "/proc\n");
    }

    #[test]
    fn each_resource_is_bounded_by_its_own_name() {
        let child = shell("sleep 1000 & echo up; wait");
        // It runs: while it is being replaced by another program, its stack limit may be put back.
        File::from(child.stdout.try_clone().unwrap()).read_exact(&mut [0; 3]).unwrap();
        let all = [
            (Resource::OpenFiles, 20, "Max open files"),
            (Resource::AddressSpace, 1 << 40, "Max address space"),
            (Resource::Data, 1 << 39, "Max data size"),
            (Resource::Stack, 1 << 20, "Max stack size"),
            (Resource::Core, 0, "Max core file size"),
            (Resource::CpuSeconds, 1000, "Max cpu time"),
            (Resource::FileSize, 5000, "Max file size"),
            (Resource::Processes, 500, "Max processes"),
        ];
        for (resource, value, _) in all {
            limit(child.pid, resource, value).unwrap();
        }
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.pid)).unwrap();
        for (_, value, name) in all {
            let row = limits.lines().find_map(|row| row.strip_prefix(name)).unwrap();
            let shown: Vec<&str> = row.split_whitespace().take(2).collect();
            assert_eq!(shown, [value.to_string(), value.to_string()], "{name}");
        }
        assert!(limit(0, Resource::Core, 0).is_err(), "0 is not this process");
        kill_group(child.pid);
        end_of(&child);
    }

    #[test]
    fn signals_arrive_and_are_told_from_codes() {
        let child = shell("exec sleep 1000");
        assert_eq!(exit_of(child.pidfd.as_fd()).unwrap(), None);
        assert_eq!(reap(child.pidfd.as_fd()).unwrap(), None);
        assert!(signal(child.pidfd.as_fd(), 1000).is_err());
        signal(child.pidfd.as_fd(), libc::SIGTERM).unwrap();
        assert_eq!(end_of(&child), Exit::Signal(libc::SIGTERM));
    }

    #[test]
    fn one_that_ends_is_told_from_one_that_lives() {
        let child = shell("exec sleep 1000");
        assert!(!is_ending(child.pid) && !is_stopped(child.pid));
        signal(child.pidfd.as_fd(), libc::SIGKILL).unwrap();
        assert!(readable_within(child.pidfd.as_fd(), Some(LATE_MS)).unwrap());
        assert!(is_ending(child.pid) && !is_stopped(child.pid) && !wants_processor(child.pid));
        // Where the kernel tells it at all.
        assert!(processor_ns(child.pid).is_none_or(|ns| ns > 0));
        end_of(&child);
        assert!(!is_ending(child.pid), "it is gone");
    }

    #[test]
    fn a_group_dies_whole_even_after_its_leader() {
        for leader_first in [false, true] {
            let child = shell("sleep 1000 & echo up; wait");
            let mut stdout = File::from(child.stdout.try_clone().unwrap());
            stdout.read_exact(&mut [0; 3]).unwrap();
            if leader_first {
                signal(child.pidfd.as_fd(), libc::SIGKILL).unwrap();
                assert!(readable_within(child.pidfd.as_fd(), Some(LATE_MS)).unwrap());
                assert!(!readable_within(stdout.as_fd(), Some(0)).unwrap());
            }
            kill_group(child.pid);
            // Closed only when the sleeper, which holds a copy, is gone too.
            assert!(readable_within(stdout.as_fd(), Some(LATE_MS)).unwrap());
            assert_eq!(stdout.read(&mut [0; 8]).unwrap(), 0);
            assert_eq!(end_of(&child), Exit::Signal(libc::SIGKILL));
        }
    }

    #[test]
    fn numbers_that_name_more_than_a_group_are_ignored() {
        for pid in [i32::MIN, -1, 0, 1] {
            assert_eq!(group_led_by(pid), None);
        }
        assert_eq!(group_led_by(2), Some(-2));
    }

    #[test]
    fn an_abandoned_child_is_reaped() {
        let mut sleeper = Command::new("/bin/sleep");
        let mut child = sleeper.arg("1000").process_group(0).spawn().unwrap();
        let pidfd = open(child.id() as i32).unwrap();
        abandon(&mut child, Errno::MFILE);
        assert!(reap(pidfd.as_fd()).is_err());
    }

    #[test]
    fn open_descriptors_are_counted() {
        let held: Vec<File> = (0..200).map(|_| File::open("/dev/null").unwrap()).collect();
        assert!(descriptors_open().unwrap() >= held.len() + 3);
        assert!(exec_path().exists());
    }
}
