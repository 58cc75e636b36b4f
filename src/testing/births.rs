//! The workers of a plan of any number of groups, born like an engine's, with nobody to ask them anything.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use crate::base::ids::GroupId;
use crate::base::waiting::Waiting;
use crate::os::cpu;
use crate::os::owner::Owner;
use crate::os::poll::EventFd;
use crate::plan::loopback::Loopback;
use crate::plan::plan::Plan;
use crate::plan::settings::Settings;
use crate::supervisor::{self, Capture, OutputLine, OutputSink, StartError, Started, Telling, WorkerSpec};

/// What is to be started, to be stated further.
pub struct Births {
    plan: Plan,
    env: Vec<(OsString, OsString)>,
    pin: Option<u16>,
    start_timeout: Duration,
    sink: Option<OutputSink>,
}

impl Births {
    /// All workers of `plan`.
    pub fn of(plan: Plan) -> Self {
        Self { plan, env: Vec::new(), pin: None, start_timeout: Duration::from_secs(30), sink: None }
    }

    /// A variable for the workers of all groups.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// A processor for the workers of all groups.
    pub fn pin(mut self, processor: u16) -> Self {
        self.pin = Some(processor);
        self
    }

    /// How long all of them together may take.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// Who gets the lines that they print.
    pub fn on_output(mut self, sink: impl Fn(OutputLine<'_>) + Send + Sync + 'static) -> Self {
        self.sink = Some(Arc::new(sink));
        self
    }

    /// Starts them and waits until all are ready.
    pub fn start(self) -> Result<Workers, StartError> {
        let placement = self.plan.check()?;
        placement.check_pins(&cpu::allowed())?;
        let geometry = Settings { slots: 2, ..Settings::default() }.check()?;
        let bell = EventFd::new().expect("a descriptor is left");
        let nobody = Telling::default();
        let rung = bell.as_fd();
        let mut specs = Vec::with_capacity(placement.workers());
        for (number, group) in placement.groups.iter().enumerate() {
            let first = specs.len() as u16;
            specs.extend((0..group.workers()).map(|process| WorkerSpec {
                worker: first + process,
                owner: Owner::new(),
                doorbell: Loopback::default(),
                secret: None,
                stop_grace_ms: 1000,
                group: GroupId(number as u16),
                process,
                placement: &placement,
                geometry,
                waiting: Waiting::Block,
                pin: self.pin,
                incarnation: 1,
                env: &self.env,
                start_timeout: self.start_timeout,
                bell: rung.as_fd(),
                sink: self.sink.clone(),
                telling: &nobody,
                cancelled: None,
            }));
        }
        let (started, capture) = supervisor::start(&specs)?;
        Ok(Workers { started, _capture: capture })
    }
}

/// Workers that are ready. They are killed and reaped when this is dropped.
pub struct Workers {
    started: Vec<Started>,
    /// Dropped last: their last words are taken.
    _capture: Capture,
}

impl Workers {
    /// Their processes, in the plan's order.
    pub fn pids(&self) -> Vec<i32> {
        self.started.iter().map(|started| started.worker.pid()).collect()
    }

    /// Bytes mapped for all of them together.
    pub fn mapped_bytes(&self) -> usize {
        self.started.iter().map(|started| started.lane.geometry().total()).sum()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for Started { worker, .. } in &self.started {
            worker.end();
        }
    }
}
