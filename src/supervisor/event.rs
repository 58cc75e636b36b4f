//! What happens to workers, for whoever listens.

use std::sync::Arc;

use super::event_thread::EventQueue;
use crate::base::contain::contain;
use crate::base::failure::Cause;
use crate::base::refusal::{RefusedFor, StartStep};

/// Something that happened to a worker.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum WorkerEvent {
    /// Its process has been started.
    Started,
    /// Its nodes are built, and it serves.
    Ready,
    /// It has been silent for two seconds.
    Suspect,
    /// It has been stopped by a signal or a debugger: nothing is expected of it until it goes on.
    StoppedBySignal,
    /// It speaks again.
    Recovered,
    /// It has ended what was in flight, as it was told to.
    Drained,
    /// Its doorbell refused what came; for what reason, by a stable name. While it is born, once for each reason.
    DoorbellReject(&'static str),
    /// It has ended without being told to.
    Crashed(Cause),
    /// Its successor serves; the notice bears the successor's process number.
    Restarted,
    /// A successor could not be started. Another try follows, or [`WorkerEvent::GivenUp`]; the notice bears the
    /// process number of the one that died.
    StartRefused {
        /// How far its start came.
        step: StartStep,
        /// What was in the way.
        reason: RefusedFor,
    },
    /// It has died more often than its group allows, or its successor could not be started: there is to be none.
    /// The notice bears the process number of the one that died.
    GivenUp,
    /// It has been stopped; gracefully if it ended by itself, with everything done.
    Stopped {
        /// It did what it was told to.
        gracefully: bool,
    },
}

/// A [`WorkerEvent`] and whose it is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerNotice {
    /// The worker's group.
    pub group: Arc<str>,
    /// Which of the group's processes, from 0 on.
    pub process: u16,
    /// Its process number.
    pub pid: i32,
    /// Monotonic clock, in ns.
    pub at_ns: u64,
    /// What happened.
    pub event: WorkerEvent,
}

/// Takes the notices, in one thread. A panic in it is caught; blocking in it holds up further notices, and a stop for a
/// time.
pub(crate) type Listener = Arc<dyn Fn(&WorkerNotice) + Send + Sync>;

/// Who listens, and the way there. By default nobody does.
#[derive(Clone, Default)]
pub(crate) struct Telling {
    pub listener: Option<Listener>,
    pub queue: EventQueue,
}

impl Telling {
    /// Hands a notice to whoever listens. Never blocks.
    pub fn tell(&self, notice: WorkerNotice) {
        let listener = self.listener.clone();
        let is_end = matches!(notice.event, WorkerEvent::Stopped { .. });
        let telling = move || {
            // Subscribers and listeners are the user's; what they do changes nothing here.
            #[cfg(feature = "tracing")]
            contain(|| {
                tracing::info!(
                    target: "handbell",
                    group = &*notice.group,
                    process = notice.process,
                    pid = notice.pid,
                    event = ?notice.event,
                    "worker"
                );
            });
            if let Some(listener) = listener {
                contain(|| listener(&notice));
            }
        };
        if is_end { self.queue.push_in_any_case(telling) } else { self.queue.push(telling) }
    }
}
