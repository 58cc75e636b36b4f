//! Runs the nodes of one group: the target of a request and, by plain calls, what follows it in the group.
//!
//! Owns: the nodes' states, the outputs that wait for their node. Never: knows what carries its frames.
//!
//! Order: the outputs of a node are run in the order in which it emitted them, each with all that follows
//! from it before the next (depth first). Exactly one last frame ends each request: written after the node
//! has returned, so that the request's bytes may be reused only then.

use super::Node;
use super::output::{EmitError, Output};
use super::registry::Built;
use super::request::{Cancellation, Request};
use crate::base::contain::contain;
use crate::base::failure::{ExecutionClass, NodeError};
use crate::base::ids::{GroupId, Identity, NodeId};
use crate::plan::placement::Placement;

/// Outputs that one request may have waiting inside its group.
const MAX_WAITING: usize = 65_536;

/// An edge that leads to another group, and the key that chooses the process there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Way {
    /// The node that emits.
    pub source: NodeId,
    /// The node that the output is for.
    pub target: NodeId,
    pub key: Option<u64>,
}

/// Where the frames of a request go. One request at a time. `source` is the node that speaks.
pub(crate) trait Port {
    /// The largest payload that can be sent.
    fn max_payload(&self) -> usize;
    /// The largest payload that another group can take.
    fn max_onward(&self) -> usize;
    /// Sends a terminal with this payload.
    fn reply(&mut self, source: NodeId, payload: &[u8]) -> Result<(), EmitError>;
    /// Sends a terminal whose payload is written in place.
    fn reply_with(
        &mut self,
        source: NodeId,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), EmitError>;
    /// Sends an output on to another group.
    fn pass_on(&mut self, way: Way, payload: &[u8]) -> Result<(), EmitError>;
    /// Sends an error terminal. Waits for room for as long as it takes.
    fn fail(&mut self, source: NodeId, class: ExecutionClass, code: u32, text: &str);
    /// Counts a node call.
    fn progress(&mut self);
}

/// Outputs that wait for their node, and the buffers that they wait in.
#[derive(Default)]
pub(crate) struct Pending {
    /// Outputs of the node that is running, in the order emitted.
    emitted: Vec<(NodeId, Vec<u8>)>,
    /// Outputs of nodes that have returned; the next one to run is the last.
    stack: Vec<(NodeId, Vec<u8>)>,
    /// Buffers to be used again, so that a chain allocates nothing once it is warm.
    spare: Vec<Vec<u8>>,
}

impl Pending {
    pub(super) fn add(&mut self, to: NodeId, payload: &[u8]) {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(payload);
        self.emitted.push((to, buffer));
    }

    fn node_returned(&mut self) {
        while let Some(output) = self.emitted.pop() {
            self.stack.push(output);
        }
    }

    fn clear(&mut self) {
        while let Some((_, buffer)) = self.emitted.pop().or_else(|| self.stack.pop()) {
            self.spare.push(buffer);
        }
    }
}

/// A request as it reaches its group.
pub(crate) struct Incoming<'a> {
    pub target: u16,
    pub identity: &'a Identity,
    pub deadline_ns: u64,
    pub payload: &'a [u8],
}

/// The nodes of one group.
pub(crate) struct Executor {
    placement: Placement,
    group: GroupId,
    /// For each node of the plan, the index of its state, if this group has it.
    state_of: Vec<Option<usize>>,
    states: Vec<Box<dyn Node>>,
    pending: Pending,
}

impl Executor {
    /// An executor for `group`, over states built in the order of the group's nodes.
    pub fn new(placement: Placement, group: GroupId, built: Built) -> Self {
        let mut indices = built.state_of.into_iter();
        let state_of = placement
            .nodes
            .iter()
            .map(|node| if node.group == group { indices.next() } else { None })
            .collect();
        Self { placement, group, state_of, states: built.states, pending: Pending::default() }
    }

    /// Runs one request to its end.
    pub fn execute<P: Port>(
        &mut self,
        incoming: &Incoming<'_>,
        cancellation: &dyn Cancellation,
        port: &mut P,
    ) {
        let Some(node) = self.placement.nodes.get(usize::from(incoming.target)) else {
            let text = format!("no node has number {}", incoming.target);
            return port.fail(
                NodeId(incoming.target),
                ExecutionClass::UnknownTarget,
                u32::from(incoming.target),
                &text,
            );
        };
        if node.group != self.group {
            let source = NodeId(incoming.target);
            return port.fail(source, ExecutionClass::Misrouted, u32::from(incoming.target), &node.name);
        }
        self.run(NodeId(incoming.target), incoming.payload, incoming, cancellation, port);
        while let Some((node, buffer)) = self.pending.stack.pop() {
            self.run(node, &buffer, incoming, cancellation, port);
            self.pending.spare.push(buffer);
        }
    }

    /// Calls one node, and sends its error if it fails.
    fn run<P: Port>(
        &mut self,
        id: NodeId,
        payload: &[u8],
        incoming: &Incoming<'_>,
        cancellation: &dyn Cancellation,
        port: &mut P,
    ) {
        let node = &self.placement.nodes[usize::from(id.0)];
        let state = self.state_of[usize::from(id.0)].expect("a node of this group has a state");
        let state = &mut self.states[state];
        let request = Request {
            payload,
            identity: incoming.identity,
            deadline_ns: incoming.deadline_ns,
            node: &node.name,
            group: self.placement.group_name(node.group),
            cancellation,
        };
        port.progress();
        let placement = &self.placement;
        let mut output =
            Output { placement, node, id: id.into(), pending: &mut self.pending, port, refused: None };
        // A node's state after a panic is the node's own affair: it is called again, as documented.
        let result = contain(|| state.handle(&request, &mut output));
        // Looked at in place: copying the results of the common case costs more than all else here.
        if !matches!((&result, &output.refused), (Some(Ok(())), None)) {
            let refused = output.refused;
            Self::fail(port, id, result, refused);
        }
        self.pending.node_returned();
        if self.pending.stack.len() > MAX_WAITING {
            self.pending.clear();
            port.fail(id, ExecutionClass::TooManyOutputs, 0, "");
        }
    }

    /// Sends the error of a node that did not do well. A panic comes before what was refused, and that before
    /// what the node returned.
    #[cold]
    fn fail(
        port: &mut dyn Port,
        source: NodeId,
        result: Option<Result<(), NodeError>>,
        refused: Option<EmitError>,
    ) {
        match (result, refused) {
            (None, _) => port.fail(source, ExecutionClass::Panic, 0, ""),
            (Some(_), Some(refused)) => port.fail(source, refused.class(), 0, ""),
            (Some(Err(error)), None) => {
                port.fail(source, ExecutionClass::NodeError, error.code(), error.text());
            }
            (Some(Ok(())), None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::registry::Registry;
    use crate::plan::plan::Plan;
    use std::sync::Arc;

    #[derive(Default)]
    struct Log(Vec<String>);

    impl Port for Log {
        fn max_payload(&self) -> usize {
            100
        }
        fn max_onward(&self) -> usize {
            50
        }
        fn reply(&mut self, source: NodeId, payload: &[u8]) -> Result<(), EmitError> {
            self.0.push(format!("{} replies {}", source.0, String::from_utf8_lossy(payload)));
            Ok(())
        }
        fn pass_on(&mut self, way: Way, payload: &[u8]) -> Result<(), EmitError> {
            let key = way.key.map_or(String::new(), |key| format!(" by key {key}"));
            let payload = String::from_utf8_lossy(payload);
            self.0.push(format!("{} to {}{key}: {payload}", way.source.0, way.target.0));
            Ok(())
        }
        fn reply_with(
            &mut self,
            source: NodeId,
            len: usize,
            fill: &mut dyn FnMut(&mut [u8]),
        ) -> Result<(), EmitError> {
            let mut room = vec![0; len];
            fill(&mut room);
            self.reply(source, &room)
        }
        fn fail(&mut self, source: NodeId, class: ExecutionClass, code: u32, _text: &str) {
            self.0.push(format!("{} fails {class:?} {code}", source.0));
        }
        fn progress(&mut self) {}
    }

    struct Never;
    impl Cancellation for Never {
        fn is_cancelled(&self) -> bool {
            false
        }
    }

    fn run(target: u16, payload: &str) -> Vec<String> {
        let plan = Plan::new().group("g", ["fan", "twice", "end"]).edge("fan", "twice").edge("twice", "end");
        run_in(plan, target, payload)
    }

    /// Runs the request in the group of its target.
    fn run_in(plan: Plan, target: u16, payload: &str) -> Vec<String> {
        let mut registry = Registry::default();
        let mut node = |name: &str, run: fn(&Request<'_>, &mut Output<'_>) -> Result<(), NodeError>| {
            registry.add([name.to_owned()], Arc::new(move || Ok(Box::new(run) as Box<dyn Node>)));
        };
        node("fan", |request, output| {
            for part in request.payload().chunks(1) {
                output.emit_to("twice", part)?;
            }
            if request.payload() == b"bad" { Err(NodeError::new(4, "bad")) } else { Ok(()) }
        });
        node("twice", |request, output| {
            output.emit(request.payload())?;
            output.emit(&request.payload().to_ascii_uppercase())?;
            Ok(())
        });
        node("end", |request, output| match request.payload() {
            b"!" => panic!("as told"),
            b"?" => output.emit_to("nowhere", b"").map_err(Into::into),
            payload => Ok(output.emit(payload)?),
        });
        node("keyed", |request, output| Ok(output.key(9).emit(request.payload())?));
        let placement = plan.check().unwrap();
        let group = placement.group_of(NodeId(target)).unwrap_or(GroupId(0));
        let nodes = placement.nodes.iter().filter(|node| node.group == group);
        let built = registry.build(nodes.map(|node| node.name.as_str())).unwrap();
        let mut executor = Executor::new(placement, group, built);
        let mut log = Log::default();
        let incoming =
            Incoming { target, identity: &Identity::default(), deadline_ns: 0, payload: payload.as_bytes() };
        executor.execute(&incoming, &Never, &mut log);
        log.0
    }

    #[test]
    fn handoff_02_a_chain_runs_depth_first_in_the_order_emitted() {
        assert_eq!(run(0, "ab"), ["2 replies a", "2 replies A", "2 replies b", "2 replies B"]);
    }

    #[test]
    fn what_was_emitted_before_a_failure_goes_on() {
        let log = run(0, "bad");
        assert_eq!(log[0], "0 fails NodeError 4");
        assert_eq!(log[1..], run(0, "ba").into_iter().chain(run(0, "d")).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_and_a_missing_edge_fail_the_request() {
        assert_eq!(run(2, "!"), ["2 fails Panic 0"]);
        assert_eq!(run(2, "?"), ["2 fails NoSuchEdge 0"]);
        assert_eq!(run(9, ""), ["9 fails UnknownTarget 9"]);
    }

    #[test]
    fn placement_02_an_edge_inside_is_a_call_and_an_edge_between_groups_a_hop() {
        let plan = Plan::new()
            .group("g", ["fan", "twice"])
            .group("h", ["end"])
            .edge("fan", "twice")
            .edge("twice", "end");
        assert_eq!(run_in(plan.clone(), 0, "a"), ["1 to 2: a", "1 to 2: A"]);
        assert_eq!(run_in(plan.clone(), 2, "a"), ["2 replies a"]);
        assert_eq!(run_in(plan, 0, &"a".repeat(51))[..2], ["1 to 2: a", "1 to 2: A"]);
    }

    #[test]
    fn placement_03_a_keyed_group_is_not_reached_without_a_key() {
        let plan = Plan::new()
            .group("g", ["twice"])
            .group("h", ["keyed"])
            .group("i", ["end"])
            .keyed()
            .edge("twice", "end")
            .edge("keyed", "end");
        assert_eq!(run_in(plan.clone(), 0, "a"), ["0 fails KeyMissing 0"]);
        assert_eq!(run_in(plan, 1, "a"), ["1 to 2 by key 9: a"]);
    }
}
