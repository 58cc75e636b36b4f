//! The six nodes and their plan: where load limits meets the engine.
//!
//! Owns nothing but the way from a request's bytes to a step and back. `gate` to `update` share one
//! [`Policy`], so they belong into one group of one process. `parse` and `format` know nothing beyond
//! their line: it does not matter which process runs them, as long as the lines enter the policy in
//! their order.

use std::time::Duration;

use handbell::{App, Node, NodeError, Output, Plan, Request, Restart};

use super::policy::{Decision, Policy};
use super::record::parse_line;
use super::reply::write_reply;
use super::wire::{Draft, Stage, WireError};
use super::{Options, Step};

/// The node that takes the input lines.
pub const ENTRY: &str = "parse";
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

/// What a process that serves these nodes runs.
pub fn app() -> App {
    App::new()
        .node(ENTRY, parse)
        .nodes_with(Step::ALL.map(Step::name), PolicyNode::default)
        .node(EXIT, format)
}

/// The six nodes in a row, in three groups: `ingress` parses lines, in so many processes, `policy` decides,
/// `egress` writes replies. With `restarts` a dead worker of the first or the last group gets a successor, and what
/// it had in flight runs again: there the same line always makes the same output. What the policy knew dies with it.
pub fn plan(ingress: usize, restarts: bool) -> Plan {
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
    stateless(plan.group(POLICY, [gate, features, evaluate, update]).group(EGRESS, [EXIT]))
        .edge(ENTRY, gate)
        .edge(gate, features)
        .edge(features, evaluate)
        .edge(evaluate, update)
        .edge(update, EXIT)
}

fn parse(request: &Request<'_>, output: &mut Output<'_>) -> Result<(), NodeError> {
    let parsed = parse_line(request.payload());
    let mut bytes = Vec::with_capacity(128);
    parsed.draft().encode(&mut bytes);
    Ok(output.emit(&bytes)?)
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
        .ok_or_else(|| NodeError::new(BAD_SCENARIO, "the scenario tag has unknown bits"))
}

fn bad_draft(error: WireError) -> NodeError {
    NodeError::new(BAD_DRAFT, &error.to_string())
}
