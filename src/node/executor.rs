//! Runs the nodes of one group: the target of a request and, by plain calls, what follows it in the group.
//!
//! Owns: the nodes' states, the outputs that wait for their node. Never: knows what carries its frames.
//!
//! Order: the outputs of a node are run in the order in which it emitted them, each with all that follows
//! from it before the next (depth first). Exactly one last frame ends each request: written after the node
//! has returned, so that the request's bytes may be reused only then.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Node;
use super::output::{EmitError, Output};
use super::registry::Built;
use super::request::{Cancellation, Request};
use crate::base::failure::{ExecutionClass, NodeError};
use crate::base::ids::{GroupId, Identity, NodeId};
use crate::plan::placement::Placement;

/// Outputs that one request may have waiting inside its group.
const MAX_WAITING: usize = 65_536;

/// What a reply frame says beside its payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reply {
    /// The node that replies.
    pub source: NodeId,
}

/// Where the frames of a request go. One request at a time.
pub(crate) trait Port {
    /// The largest payload that can be sent.
    fn max_payload(&self) -> usize;
    /// Sends a terminal with this payload.
    fn reply(&mut self, reply: Reply, payload: &[u8]) -> Result<(), EmitError>;
    /// Sends a terminal whose payload is written in place.
    fn reply_with(
        &mut self,
        reply: Reply,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), EmitError>;
    /// Sends an error terminal. Waits for room for as long as it takes.
    fn fail(&mut self, reply: Reply, class: ExecutionClass, code: u32, text: &str);
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
    pub identity: Identity,
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
    pub fn execute(&mut self, incoming: &Incoming<'_>, cancellation: &dyn Cancellation, port: &mut dyn Port) {
        let Some(node) = self.placement.nodes.get(usize::from(incoming.target)) else {
            let reply = Reply { source: NodeId(incoming.target) };
            let text = format!("no node has number {}", incoming.target);
            return port.fail(reply, ExecutionClass::UnknownTarget, u32::from(incoming.target), &text);
        };
        if node.group != self.group {
            let reply = Reply { source: NodeId(incoming.target) };
            return port.fail(reply, ExecutionClass::Misrouted, u32::from(incoming.target), &node.name);
        }
        self.run(NodeId(incoming.target), incoming.payload, incoming, cancellation, port);
        while let Some((node, buffer)) = self.pending.stack.pop() {
            self.run(node, &buffer, incoming, cancellation, port);
            self.pending.spare.push(buffer);
        }
    }

    /// Calls one node, and sends its error if it fails.
    fn run(
        &mut self,
        id: NodeId,
        payload: &[u8],
        incoming: &Incoming<'_>,
        cancellation: &dyn Cancellation,
        port: &mut dyn Port,
    ) {
        let node = &self.placement.nodes[usize::from(id.0)];
        let state = self.state_of[usize::from(id.0)].expect("a node of this group has a state");
        let state = &mut self.states[state];
        let reply = Reply { source: id };
        let request = Request {
            payload,
            identity: incoming.identity,
            deadline_ns: incoming.deadline_ns,
            node: &node.name,
            group: self.placement.group_name(node.group),
            cancellation,
        };
        port.progress();
        let mut output = Output { node, pending: &mut self.pending, port, reply, refused: None };
        // A node's state after a panic is the node's own affair: it is called again, as documented.
        let result = catch_unwind(AssertUnwindSafe(|| state.handle(&request, &mut output)));
        let refused = output.refused;
        self.pending.node_returned();
        match (result, refused) {
            (Ok(Ok(())), None) => {}
            (Err(_), _) => port.fail(reply, ExecutionClass::Panic, 0, ""),
            (_, Some(refused)) => port.fail(reply, refused.class(), 0, ""),
            (Ok(Err(error)), None) => Self::fail_with(port, reply, &error),
        }
        if self.pending.stack.len() > MAX_WAITING {
            self.pending.clear();
            port.fail(reply, ExecutionClass::TooManyOutputs, 0, "");
        }
    }

    fn fail_with(port: &mut dyn Port, reply: Reply, error: &NodeError) {
        port.fail(reply, ExecutionClass::NodeError, error.code(), error.text());
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
        fn reply(&mut self, reply: Reply, payload: &[u8]) -> Result<(), EmitError> {
            self.0.push(format!("{} replies {}", reply.source.0, String::from_utf8_lossy(payload)));
            Ok(())
        }
        fn reply_with(
            &mut self,
            reply: Reply,
            len: usize,
            fill: &mut dyn FnMut(&mut [u8]),
        ) -> Result<(), EmitError> {
            let mut room = vec![0; len];
            fill(&mut room);
            self.reply(reply, &room)
        }
        fn fail(&mut self, reply: Reply, class: ExecutionClass, code: u32, _text: &str) {
            self.0.push(format!("{} fails {class:?} {code}", reply.source.0));
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
        let plan = Plan::new().group("g", ["fan", "twice", "end"]).edge("fan", "twice").edge("twice", "end");
        let placement = plan.check().unwrap();
        let built = registry.build(placement.nodes.iter().map(|node| node.name.as_str())).unwrap();
        let mut executor = Executor::new(placement, GroupId(0), built);
        let mut log = Log::default();
        let incoming =
            Incoming { target, identity: Identity::default(), deadline_ns: 0, payload: payload.as_bytes() };
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
}
