//! What of the machine a process can be kept from using up.

/// A resource whose use by a process the operating system bounds (`setrlimit(2)`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Resource {
    /// Open descriptors: one more than the largest number that one can have.
    OpenFiles,
    /// Bytes of address space, the mapped segments included.
    AddressSpace,
    /// Bytes of data: initialised, not initialised, heap, private writable mappings.
    Data,
    /// Bytes of the main thread's stack.
    Stack,
    /// Bytes of a core file; 0 for none.
    Core,
    /// Seconds of processor time; beyond them the process is killed.
    CpuSeconds,
    /// Bytes of a file that the process writes.
    FileSize,
    /// Processes and threads of the process's *user*, whoever started them.
    Processes,
}
