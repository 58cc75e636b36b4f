//! The system calls of two threads, seen by tracing them.
#![allow(unsafe_code)]

use std::ptr::null_mut;

/// The system call that stands for a mark: no test program needs it otherwise.
const MARK: u64 = libc::SYS_getpgid as u64;
/// Set in the signal of a stop at a system call.
const AT_CALL: i32 = 0x80;

/// System calls between two marks of the first thread, by their numbers: of the first thread, and of the second.
#[derive(Default, Debug)]
pub struct Round {
    pub calls: [Vec<u64>; 2],
}

/// Begins or ends a round.
pub fn mark() {
    // SAFETY: it takes a number and changes nothing.
    unsafe { libc::getpgid(0) };
}

fn ptrace(request: libc::c_uint, thread: i32, address: usize, data: usize) -> bool {
    // SAFETY: with these requests the kernel writes nothing here.
    unsafe { libc::ptrace(request, thread, address, data) != -1 }
}

/// The number of the system call that the thread is about to make; `None`: it has made it.
fn entered(thread: i32) -> Option<u64> {
    let mut info = std::mem::MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    // SAFETY: `info` has room for `size` bytes, which the kernel writes at most; all of its values are valid.
    let info = unsafe {
        libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, size, info.as_mut_ptr());
        info.assume_init()
    };
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: at an entry it is that one of the union's.
    Some(unsafe { info.u.entry.nr })
}

/// Waits for the next stop or end of a thread that this one traces, and of no other child.
fn wait(thread: i32) -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: `status` has room for what the kernel writes.
    let thread = unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
    (thread > 0).then_some((thread, status))
}

fn let_go(thread: i32) {
    ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0);
    if wait(thread).is_some_and(|(_, status)| libc::WIFSTOPPED(status)) {
        ptrace(libc::PTRACE_DETACH, thread, 0, 0);
    }
}

/// Traces both until so many rounds are over; `begin` once it does. `None`: it is not allowed here.
pub fn rounds(threads: [i32; 2], count: usize, begin: impl FnOnce()) -> Option<Vec<Round>> {
    let seized = threads.map(|thread| {
        ptrace(libc::PTRACE_SEIZE, thread, 0, libc::PTRACE_O_TRACESYSGOOD as usize)
            && ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0)
    });
    begin();
    if seized != [true; 2] {
        threads.iter().zip(seized).filter(|(_, seized)| *seized).for_each(|(thread, _)| let_go(*thread));
        return None;
    }
    let mut rounds = Vec::new();
    let mut round: Option<Round> = None;
    while let Some((thread, status)) = wait(-1) {
        if !libc::WIFSTOPPED(status) {
            panic!("{thread} ended in round {}: {status:#x}", rounds.len());
        }
        let (signal, is_event) = (libc::WSTOPSIG(status), status >> 16 != 0);
        let mut passed_on = 0;
        if signal == libc::SIGTRAP | AT_CALL {
            let is_first = thread == threads[0];
            match (entered(thread), &mut round) {
                (Some(MARK), open) if is_first => match open.take() {
                    Some(round) => rounds.push(round),
                    None => *open = Some(Round::default()),
                },
                (Some(number), Some(round)) => round.calls[usize::from(!is_first)].push(number),
                _ => {}
            }
        } else if !is_event {
            passed_on = signal as usize;
        }
        if rounds.len() == count {
            ptrace(libc::PTRACE_DETACH, thread, 0, 0);
            let_go(threads[1]);
            return Some(rounds);
        }
        // SAFETY: as in `ptrace`; nothing is read or written here.
        unsafe { libc::ptrace(libc::PTRACE_SYSCALL, thread, null_mut::<u8>(), passed_on) };
    }
    panic!("nobody is left to trace after {} rounds", rounds.len());
}
