//! The course of a stop, as a state machine: refuse new, finish, cut off, then stop, terminate and kill what is left.
//! Pure: the clock, what is in flight and who lives come in as arguments, and what is to be done goes out.
//!
//! ```text
//!            drain                     cut off            tell to stop                terminate           kill
//!  Begun ──────────▶ Finishing ──────────────────▶ CutOff ────────────▶ Stopping ──────────────▶ Terminating ──────▶ Killing
//!                    nothing in flight, or the                              │ nobody lives            │              │  ▲ │ again
//!                    drain is over                                          ▼                         ▼              ▼  └─┘
//!                                                                          Gone ◀────────────────────────────────────┘
//! ```
//!
//! Each state but the last two has an end that does not depend on any worker: the drain's, or `term_timeout`. What
//! SIGKILL does not end at once is in the hands of the kernel, which is asked again each second.

/// Between two SIGKILLs.
const KILL_AGAIN_NS: u64 = 1_000_000_000;

/// What is to be done now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Refuse new requests, and tell the workers to end what is in flight.
    Drain,
    /// Let what is in flight end; at most until then.
    Finish { until_ns: u64 },
    /// End what is still in flight.
    CutOff,
    /// Tell the workers to end.
    Stop,
    /// SIGTERM, to each process group.
    Terminate,
    /// SIGKILL, to each process group.
    Kill,
    /// Wait for the ends of workers; at most until then.
    Await { until_ns: u64 },
    /// Nobody is left.
    Gone,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Begun,
    Finishing,
    CutOff,
    Stopping,
    Terminating,
    Killing,
    Gone,
}

/// How long each part may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub drain_ns: u64,
    pub term_ns: u64,
}

/// A stop on its way.
#[derive(Clone, Debug)]
pub(super) struct Course {
    patience: Patience,
    state: State,
    /// When the state is over by itself.
    until_ns: u64,
}

impl Course {
    pub fn new(patience: Patience) -> Self {
        Self { patience, state: State::Begun, until_ns: 0 }
    }

    /// What follows. `in_flight` requests have not ended, `living` workers have not been reaped.
    pub fn step(&mut self, now_ns: u64, in_flight: u64, living: usize) -> Step {
        let is_over = now_ns >= self.until_ns;
        match self.state {
            State::Begun => self.enter(State::Finishing, now_ns, self.patience.drain_ns, Step::Drain),
            State::Finishing if in_flight != 0 && !is_over => Step::Finish { until_ns: self.until_ns },
            State::Finishing => self.enter(State::CutOff, now_ns, 0, Step::CutOff),
            State::CutOff => self.enter(State::Stopping, now_ns, self.patience.term_ns, Step::Stop),
            State::Stopping | State::Terminating | State::Killing if living == 0 => {
                self.enter(State::Gone, now_ns, 0, Step::Gone)
            }
            State::Stopping | State::Terminating | State::Killing if !is_over => {
                Step::Await { until_ns: self.until_ns }
            }
            State::Stopping => self.enter(State::Terminating, now_ns, self.patience.term_ns, Step::Terminate),
            State::Terminating | State::Killing => {
                self.enter(State::Killing, now_ns, KILL_AGAIN_NS, Step::Kill)
            }
            State::Gone => Step::Gone,
        }
    }

    fn enter(&mut self, state: State, now_ns: u64, lasts_ns: u64, step: Step) -> Step {
        self.state = state;
        self.until_ns = now_ns.saturating_add(lasts_ns);
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience { drain_ns: 100, term_ns: 10 };

    /// A course that was begun at 1,000 and has got so far.
    fn at(state: State) -> Course {
        let mut course = Course::new(PATIENCE);
        for (now_ns, in_flight, living) in
            [(1000, 5, 3), (1100, 5, 3), (1100, 0, 3), (1110, 0, 3), (1120, 0, 3), (1130, 0, 0)]
        {
            if course.state == state {
                break;
            }
            course.step(now_ns, in_flight, living);
        }
        assert_eq!(course.state, state);
        course
    }

    /// From a state, at a time, with so much in flight and so many alive: to which state, and by which step.
    #[track_caller]
    fn edge(from: State, (now_ns, in_flight, living): (u64, u64, usize), to: State, step: Step) -> Course {
        let mut course = at(from);
        assert_eq!(course.step(now_ns, in_flight, living), step);
        assert_eq!(course.state, to);
        course
    }

    #[test]
    fn stop_ipc_01_new_requests_are_refused_first() {
        edge(State::Begun, (1000, 5, 3), State::Finishing, Step::Drain);
        // Also where there is nothing to be done.
        edge(State::Begun, (1000, 0, 0), State::Finishing, Step::Drain);
    }

    #[test]
    fn stop_ipc_01_what_is_in_flight_may_finish() {
        edge(State::Finishing, (1000, 1, 3), State::Finishing, Step::Finish { until_ns: 1100 });
        edge(State::Finishing, (1099, 1, 3), State::Finishing, Step::Finish { until_ns: 1100 });
        edge(State::Finishing, (1000, 0, 3), State::CutOff, Step::CutOff);
    }

    #[test]
    fn stop_ipc_02_the_drain_is_over_when_its_time_is() {
        edge(State::Finishing, (1100, 1, 3), State::CutOff, Step::CutOff);
        edge(State::Finishing, (u64::MAX, 1, 0), State::CutOff, Step::CutOff);
        // Dead workers do not shorten it: a group of the engine's own may be at work.
        edge(State::Finishing, (1050, 1, 0), State::Finishing, Step::Finish { until_ns: 1100 });
    }

    #[test]
    fn stop_ipc_02_nobody_is_told_to_stop_before_the_rest_is_cut_off() {
        let course = edge(State::CutOff, (1107, 0, 3), State::Stopping, Step::Stop);
        assert_eq!(course.until_ns, 1117);
        edge(State::CutOff, (1107, 0, 0), State::Stopping, Step::Stop);
    }

    #[test]
    fn stop_ipc_02_who_does_not_stop_is_terminated_and_then_killed() {
        for (state, ends_ns, step, next) in [
            (State::Stopping, 1110, Step::Terminate, State::Terminating),
            (State::Terminating, 1120, Step::Kill, State::Killing),
            (State::Killing, 1120 + KILL_AGAIN_NS, Step::Kill, State::Killing),
        ] {
            edge(state, (ends_ns - 1, 0, 1), state, Step::Await { until_ns: ends_ns });
            let mut course = edge(state, (ends_ns, 0, 1), next, step);
            assert!(matches!(course.step(ends_ns, 0, 1), Step::Await { until_ns } if until_ns > ends_ns));
        }
    }

    #[test]
    fn stop_ipc_01_it_is_over_when_nobody_lives() {
        for state in [State::Stopping, State::Terminating, State::Killing] {
            // Also when its time is over too.
            for now_ns in [1110, u64::MAX] {
                edge(state, (now_ns, 0, 0), State::Gone, Step::Gone);
            }
        }
        edge(State::Gone, (u64::MAX, 7, 7), State::Gone, Step::Gone);
    }

    #[test]
    fn stop_ipc_02_it_ends_whatever_happens_and_in_bounded_time() {
        // Nothing ever ends, until SIGKILL has been sent so often.
        for kills in 1..4 {
            let (mut course, mut now_ns, mut sent) = (Course::new(PATIENCE), 0, 0);
            let mut steps = Vec::new();
            loop {
                match course.step(now_ns, 1, usize::from(sent < kills)) {
                    Step::Finish { until_ns } | Step::Await { until_ns } => now_ns = until_ns,
                    Step::Gone => break,
                    step => {
                        sent += usize::from(step == Step::Kill);
                        steps.push(step);
                    }
                }
            }
            let ladder = [Step::Drain, Step::CutOff, Step::Stop, Step::Terminate];
            assert_eq!(steps, [&ladder[..], &vec![Step::Kill; kills]].concat());
            assert_eq!(now_ns, 120 + (kills as u64 - 1) * KILL_AGAIN_NS);
        }
    }

    #[test]
    fn stop_ipc_02_patience_without_end_does_not_overflow() {
        let mut course = Course::new(Patience { drain_ns: u64::MAX, term_ns: u64::MAX });
        assert_eq!(course.step(1000, 1, 1), Step::Drain);
        assert_eq!(course.step(2000, 1, 1), Step::Finish { until_ns: u64::MAX });
    }
}
