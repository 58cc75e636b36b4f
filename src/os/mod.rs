//! The system calls, one file per family.
//!
//! The lowest effectful level: it turns the kernel's interfaces into typed,
//! owned values and knows nothing of rings, lanes or requests. It never logs,
//! never retries a policy decision and never keeps state of its own beyond a
//! probed kernel capability and the owner of each thread.

/// Spawning, watching, signalling and reaping child processes.
pub mod child;
/// The monotonic clocks, in nanoseconds.
pub mod clock;
/// Processor affinity and yielding.
pub mod cpu;
/// Sleeping on and waking 32-bit words.
pub mod futex;
/// What a child does to itself before it serves: signals, descriptors, parent.
pub mod life;
/// Memory and descriptor limits of this process.
pub mod limits;
/// Shared mappings and their lifetime.
pub mod map;
/// Sealable anonymous files.
pub mod memfd;
/// Which engine a thread belongs to.
pub mod owner;
/// Waiting for descriptors to become readable.
pub mod poll;
/// Finding a program by name.
pub mod program;
/// Randomness from the kernel.
pub mod random;
/// The bootstrap socket pair and descriptor passing.
pub mod socket;
/// Large tables in this process's own memory.
pub mod table;
/// Loopback TCP: a listener with a backlog, a socket that knows its port first.
pub mod tcp;
/// Threads whose end is awaited for a time only.
pub mod thread;
