//! What has been counted: per lane, and the sums over all lanes.

use crate::base::sync::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of an engine or of one lane.
        ///
        /// Whenever no call is inside the engine:
        /// `registered = completed + failed + cancelled + expired + in_flight`,
        /// `completed = completed_by_terminal + completed_by_last` and
        /// `terminals_received = terminals_that_ended + duplicate_terminal + late_reply_drop + rejected_terminal`.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The counters of one lane, as they grow.
        #[derive(Default)]
        #[repr(align(128))]
        pub(crate) struct LaneCounters {
            $(pub(super) $name: Counter,)*
        }

        impl LaneCounters {
            pub fn read(&self) -> Counters {
                Counters { $($name: self.$name.read(),)* }
            }
        }

        impl Counters {
            /// Every counter with its stable name, in order.
            pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }

        impl std::ops::Add for Counters {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self { $($name: self.$name + other.$name,)* }
            }
        }
    };
}

counters! {
    /// Requests admitted.
    registered,
    /// Requests that a success terminal ended.
    completed_by_terminal,
    /// Requests whose last branch ended without a terminal.
    completed_by_last,
    /// Requests that ended with category execution, transport or shutdown.
    failed,
    /// Requests that their caller gave up.
    cancelled,
    /// Requests that their deadline ended.
    expired,
    /// Terminal frames read from workers. An answer that a run keeps until the other branches of its input have
    /// ended is counted then.
    terminals_received,
    /// Terminal frames that ended their request.
    terminals_that_ended,
    /// Terminal frames for a request that had completed, or, in a run, had another that counted.
    duplicate_terminal,
    /// Terminal frames for a request that had ended otherwise, or was never known to have completed.
    late_reply_drop,
    /// Frames whose hop or identity was not theirs.
    rejected,
    /// Of these, terminals.
    rejected_terminal,
    /// Outputs that went on to another group.
    forwarded,
    /// Hops that were taken back from a dead worker, for its successor to run.
    taken_back,
    /// Outputs of a request that ran again, which had gone on before.
    replayed_output_drop,
    /// Outputs for a request that had ended.
    late_output_drop,
    /// Error terminals that refused a frame of another group.
    misrouted,
}

impl Counters {
    /// Requests that completed.
    pub fn completed(&self) -> u64 {
        self.completed_by_terminal + self.completed_by_last
    }

    /// Requests that have ended in any way.
    pub fn ended(&self) -> u64 {
        self.completed() + self.failed + self.cancelled + self.expired
    }

    /// Whether the books balance with `in_flight` requests in the table.
    pub fn balances(&self, in_flight: u64) -> bool {
        self.registered == self.ended() + in_flight
            && self.terminals_received
                == self.terminals_that_ended
                    + self.duplicate_terminal
                    + self.late_reply_drop
                    + self.rejected_terminal
    }
}

/// One counter.
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self) {
        // Relaxed: counters order nothing; they are exact once whoever counts has come to rest.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn add_many(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub fn take_back(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// As [`Counter::add_as_reader`].
    pub fn take_back_as_reader(&self) {
        self.0.store(self.0.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }

    /// For counters that only the holder of a lane's reader role changes.
    pub fn add_as_reader(&self) {
        self.0.store(self.0.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
