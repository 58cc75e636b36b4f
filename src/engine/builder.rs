//! Stating an engine: the plan, and every setting with a default.

use std::ffi::OsString;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::handle::Engine;
use super::shared::FailureListener;
use super::start;
use crate::auth::{SECRET_BYTES, Secret};
use crate::base::failure::Failure;
use crate::base::waiting::Waiting;
use crate::node::registry::Registry;
use crate::plan::plan::Plan;
use crate::plan::settings::{Profile, Settings};
use crate::supervisor::{Listener, OutputLine, OutputSink, StartError, WorkerNotice};

/// States an engine: the plan, and every setting with a default.
#[must_use = "an engine builder does nothing until it is started"]
pub struct EngineBuilder {
    pub(super) registry: Registry,
    pub(super) plan: Plan,
    pub(super) settings: Settings,
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) sink: Option<OutputSink>,
    pub(super) secret: Option<Arc<Secret>>,
    pub(super) listener: Option<Listener>,
    pub(super) failure_listener: Option<FailureListener>,
    /// Groups of the plan that nobody serves.
    #[cfg(feature = "testing")]
    pub(crate) unserved: Vec<(String, Vec<String>)>,
}

macro_rules! setting {
    ($(#[$doc:meta])* $name:ident: $type:ty) => {
        $(#[$doc])*
        pub fn $name(mut self, $name: $type) -> Self {
            self.settings.$name = $name;
            self
        }
    };
}

impl EngineBuilder {
    pub(crate) fn new(registry: Registry, plan: Plan) -> Self {
        Self {
            registry,
            plan,
            settings: Settings::default(),
            env: Vec::new(),
            sink: None,
            secret: None,
            listener: None,
            failure_listener: None,
            #[cfg(feature = "testing")]
            unserved: Vec::new(),
        }
    }

    setting!(
        /// Where the groups run. Default: [`Profile::ProcessSupervisor`].
        profile: Profile
    );
    setting!(
        /// How both sides wait. Default: [`Waiting::Adaptive`].
        waiting: Waiting
    );
    setting!(
        /// Slots of each ring: a power of two, 2 to 65,536. Default: 1,024.
        slots: usize
    );
    setting!(
        /// Bytes of a slot, envelope (64) included: a power of two, 128 to 4,096. Default: 256.
        slot_bytes: usize
    );
    setting!(
        /// Bytes for requests that do not fit a slot: a power of two, 4 KiB to 64 GiB. Also the largest request.
        /// Default: 256 KiB.
        request_arena_bytes: usize
    );
    setting!(
        /// Bytes for replies that do not fit a slot: a power of two, 4 KiB to 64 GiB. Also the largest reply.
        /// Default: 256 KiB.
        reply_arena_bytes: usize
    );
    setting!(
        /// Requests that may be in flight or wait to be taken: 1 to 1,048,576. Default: 1,024.
        max_in_flight: usize
    );
    setting!(
        /// Branches of one request in its life: 1 to 16. It has one at first, and one more with each output that is not
        /// the last word of the node that emits it. Default: 8.
        max_branches: usize
    );
    setting!(
        /// Payload bytes that may wait between two groups before new requests are refused: 4 KiB to 64 GiB. What is
        /// in flight goes on. Default: 16 MiB.
        forward_bytes: usize
    );
    setting!(
        /// Latest requests among which a second answer is known as a duplicate: 1 to 16,777,216. Default: 65,536.
        completed_history: usize
    );
    setting!(
        /// How long all workers together may take to start and build their nodes; so may a successor. A second and
        /// more in which this process itself stood still does not count. Default: 30 s.
        start_timeout: Duration
    );
    setting!(
        /// Silence after which a worker is killed, unless it is stopped by a signal or a debugger. Default: 10 s.
        heartbeat_timeout: Duration
    );
    setting!(
        /// A worker is killed that stands still, with a request begun, this long after the request's deadline.
        /// Default: 60 s.
        hung_after: Duration
    );
    setting!(
        /// Where the listeners for the workers' control connections are opened: an address of 127.0.0.0/8, or ::1.
        /// Default: 127.0.0.1.
        doorbell_address: IpAddr
    );
    setting!(
        /// How long a worker may take to obey each step of a stop. Default: 2 s.
        term_timeout: Duration
    );

    /// For development only: this secret in place of random bytes, so that a recorded session can be read. The
    /// start summary says so. It is wiped after the start, or with the engine if a group may be restarted; the
    /// caller's own copy is not touched.
    pub fn development_secret(mut self, secret: &[u8; SECRET_BYTES]) -> Self {
        self.secret = Some(Arc::new(Secret::take(&mut secret.clone())));
        self
    }

    /// Refuses to start when the plan would map more bytes than this. Default: no limit but the machine's.
    pub fn memory_limit(mut self, bytes: usize) -> Self {
        self.settings.memory_limit = Some(bytes);
        self
    }

    /// Keeps the workers' serving threads to this processor, where their group states no other. Default: any.
    pub fn pin(mut self, processor: usize) -> Self {
        self.settings.pin = Some(processor);
        self
    }

    /// An environment variable for the workers. They inherit only a short list (PATH, HOME, LANG, TZ and the like).
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Who gets the lines that workers print. Default: this process's standard error, behind the group's name. Blocking
    /// in it holds up further lines, in the end the workers that print them, and a stop for at most `term_timeout`.
    pub fn on_output(mut self, sink: impl Fn(OutputLine<'_>) + Send + Sync + 'static) -> Self {
        self.sink = Some(Arc::new(sink));
        self
    }

    /// Who is told of what happens to workers: a start, silence, a crash, a stop. Called in one thread of the engine's,
    /// in order; what is told before [`EngineBuilder::start`] or [`Engine::stop`](crate::Engine::stop) returns has been
    /// heard then. A panic in it is caught. Blocking in it holds up what is to be told next, of which 4,096 may wait
    /// ([`Engine::events_dropped`](crate::Engine::events_dropped)), a start for at most `start_timeout`, and a stop for at
    /// most `term_timeout`.
    pub fn on_worker_event(mut self, listener: impl Fn(&WorkerNotice) + Send + Sync + 'static) -> Self {
        self.listener = Some(Arc::new(listener));
        self
    }

    /// Who is told of each failure as it is handed to its caller, in the caller's thread: any number at a time. And of
    /// each worker that a stop had to force ([`KilledFor::StopOverrun`](crate::KilledFor)), where worker events are
    /// told. A panic in it is caught.
    pub fn on_failure(mut self, listener: impl Fn(&Failure) + Send + Sync + 'static) -> Self {
        self.failure_listener = Some(Arc::new(listener));
        self
    }

    /// Checks everything, then starts the workers and waits until all are ready.
    ///
    /// # Errors
    ///
    /// A setting or the plan breaks a rule, something is lacking, or a worker does not start. Whatever was started
    /// has been ended again.
    pub fn start(self) -> Result<Engine, StartError> {
        start::start(self)
    }
}
