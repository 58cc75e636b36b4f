//! The thread that starts children.
//!
//! A child's parent-death signal is tied to the *thread* that started it, so that thread must not end before
//! its children: there is one for the process, and it never ends.

use std::io;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

type Job = Box<dyn FnOnce() + Send>;

/// Runs `job` on the spawner thread and returns its result.
pub(super) fn on_spawner<T: Send + 'static>(
    job: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    static JOBS: OnceLock<Option<Sender<Job>>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (jobs, todo) = channel::<Job>();
        let run = move || todo.into_iter().for_each(|job| job());
        std::thread::Builder::new().name("handbell-spawn".into()).spawn(run).ok().map(|_| jobs)
    });
    let gone = || io::Error::other("the spawner thread could not be started");
    let (done, result) = channel();
    let jobs = jobs.as_ref().ok_or_else(gone)?;
    jobs.send(Box::new(move || drop(done.send(job())))).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}
