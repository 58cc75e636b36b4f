//! The six nodes and their plan: where load limits meets the engine.
//!
//! Owns nothing but the way from a request's bytes to a step and back. `gate` to `update` share one
//! [`Policy`], so they belong into one group of one process. `parse` and `format` know nothing beyond
//! their line: it does not matter which process runs them, as long as the lines enter the policy in
//! their order.

use std::time::Duration;

use handbell::{App, Node, NodeError, Output, Plan, Request, Restart};

use super::parts::{Join, split};
use super::policy::{Decision, Policy};
use super::record::parse_line;
use super::reply::write_reply;
use super::wire::{Draft, Stage, WireError};
use super::{Options, Step};

/// The node that takes the input lines.
pub const ENTRY: &str = "parse";
const JOIN: &str = "join";
const EXIT: &str = "format";
const INGRESS: &str = "ingress";
const POLICY: &str = "policy";
const EGRESS: &str = "egress";

/// How often a process may be started anew within a minute, and how long after its end.
const RESTARTS: usize = 10;
const SOON: Duration = Duration::from_millis(10);
const LATER: Duration = Duration::from_secs(1);

const BAD_DRAFT: u32 = 1;
const BAD_SCENARIO: u32 = 2;
const OUT_OF_ORDER: u32 = 3;
const UNKNOWN_STEP: u32 = 4;
const TOO_MANY_IDS: u32 = 5;
const BAD_PART: u32 = 6;

/// What a process that serves these nodes runs.
pub fn app() -> App {
    App::new()
        .node(ENTRY, parse)
        .node_with(JOIN, || Ok(JoinNode::default()))
        .nodes_with(Step::ALL.map(Step::name), PolicyNode::default)
        .node(EXIT, format)
}

/// The six nodes in a row, in three groups: `ingress` parses lines, in so many processes, `policy` decides,
/// `egress` writes replies. With `restarts` a dead worker of the first or the last group gets a successor, and what
/// it had in flight runs again: there the same line always makes the same output. What the policy knew dies with it.
/// With `split` drafts come to the policy in parts, and a seventh node puts them together.
pub fn plan(ingress: usize, restarts: bool, split: bool) -> Plan {
    let [gate, features, evaluate, update] = Step::ALL.map(Step::name);
    let stateless = |plan: Plan| {
        let plan = plan.stateless();
        if restarts {
            plan.restart(Restart::on_failure(RESTARTS).delay(SOON, LATER)).idempotent()
        } else {
            plan
        }
    };
    let plan = stateless(Plan::new().group(INGRESS, [ENTRY]).processes(ingress));
    let policy = split.then_some(JOIN).into_iter().chain([gate, features, evaluate, update]);
    let plan = stateless(plan.group(POLICY, policy).group(EGRESS, [EXIT]));
    let plan = if split { plan.edge(ENTRY, JOIN).edge(JOIN, gate) } else { plan.edge(ENTRY, gate) };
    plan.edge(gate, features).edge(features, evaluate).edge(evaluate, update).edge(update, EXIT)
}

fn parse(request: &Request<'_>, output: &mut Output<'_>) -> Result<(), NodeError> {
    let parsed = parse_line(request.payload());
    let mut bytes = Vec::with_capacity(128);
    parsed.draft().encode(&mut bytes);
    let Some(split_ms) = options(request)?.split_ms else { return Ok(output.emit(&bytes)?) };
    let [first, second, last] = split(&bytes);
    output.emit(&first)?;
    output.emit(&second)?;
    // An output goes out with the one behind it, or with the end: by now the first is gone, the second is not.
    std::thread::sleep(Duration::from_millis(split_ms.into()));
    Ok(output.emit(&last)?)
}

/// Puts together what came in parts.
#[derive(Default)]
struct JoinNode(Join);

impl Node for JoinNode {
    fn handle(&mut self, request: &Request<'_>, output: &mut Output<'_>) -> Result<(), NodeError> {
        match self.0.take(request.trace_id(), request.payload()) {
            Ok(Some(draft)) => Ok(output.emit(draft)?),
            Ok(None) => Ok(()),
            Err(error) => Err(NodeError::new(BAD_PART, &error.to_string())),
        }
    }
}

/// The four steps that share the windows.
#[derive(Default)]
struct PolicyNode {
    policy: Policy,
    /// The run that the windows belong to.
    run: Option<u16>,
    bytes: Vec<u8>,
}

impl Node for PolicyNode {
    fn handle(&mut self, request: &Request<'_>, output: &mut Output<'_>) -> Result<(), NodeError> {
        let Options { rules, max_ids, .. } = options(request)?;
        let step = Step::from_name(request.node_name())
            .ok_or_else(|| NodeError::new(UNKNOWN_STEP, "no step has this node's name"))?;
        let draft = Draft::decode(request.payload()).map_err(bad_draft)?;
        // One stream of lines is one run: another one must not meet this one's windows.
        if self.run.replace(request.run()) != Some(request.run()) {
            self.policy = Policy::default();
        }
        if let (Step::Gate, Stage::Parsed(record), Some(max_ids)) = (step, &draft.stage, max_ids)
            && !self.policy.has_room_for(record, max_ids)
        {
            return Err(NodeError::new(TOO_MANY_IDS, "the policy keeps no more ids"));
        }
        let draft = step
            .advance(draft, &mut self.policy, rules)
            .ok_or_else(|| NodeError::new(OUT_OF_ORDER, "the draft is not at this step"))?;
        self.bytes.clear();
        draft.encode(&mut self.bytes);
        Ok(output.emit(&self.bytes)?)
    }
}

fn format(request: &Request<'_>, output: &mut Output<'_>) -> Result<(), NodeError> {
    let reasons = options(request)?.reasons;
    let draft = Draft::decode(request.payload()).map_err(bad_draft)?;
    let declined = match draft.stage {
        Stage::Refused(reason) | Stage::Decided(_, _, Decision::Declined(reason)) => Some(reason),
        Stage::Decided(_, _, Decision::Accepted) => None,
        Stage::Parsed(_) | Stage::Measured(..) => {
            return Err(NodeError::new(OUT_OF_ORDER, "the draft is not decided"));
        }
    };
    let mut reply = Vec::with_capacity(128);
    write_reply(&mut reply, draft.id, draft.customer_id, declined, reasons);
    Ok(output.reply(&reply)?)
}

fn options(request: &Request<'_>) -> Result<Options, NodeError> {
    Options::from_scenario(request.scenario())
        .ok_or_else(|| NodeError::new(BAD_SCENARIO, "the scenario tag says what nobody defined"))
}

fn bad_draft(error: WireError) -> NodeError {
    NodeError::new(BAD_DRAFT, &error.to_string())
}
