//! Random plans of stateful nodes, and a model of what comes out of a run over them.
//!
//! What a node does with a frame follows from the frame's bytes and from all that its state has taken in before. So
//! one frame that enters somewhere in another order, or not at all, changes what comes after it.

use std::time::{Duration, SystemTime};

use handbell::{App, Node, NodeError, Output, Plan, Request};

use super::Numbers;

const NODES: usize = 6;
/// Bytes before a frame's own: for each node where it leads to, and which nodes keep no state.
const HEAD: usize = NODES + 1;

/// A plan: nodes `n0` to `n5`, edges from lower to higher numbers only.
#[derive(Clone, Debug)]
pub struct Play {
    seed: u64,
    /// For each node a bit for each that it leads to.
    edges: [u8; NODES],
    /// Of each node; ascending.
    groups: [usize; NODES],
    /// Bits of the nodes without state, whose groups have two processes.
    stateless: u8,
}

impl Play {
    pub fn new(seed: u64) -> Self {
        let mut numbers = Numbers(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let (mut edges, mut groups) = ([0; NODES], [0; NODES]);
        for node in 0..NODES {
            for to in node + 1..NODES {
                // Each can be reached, and most can be in several ways.
                if to == node + 1 && node == 0 || numbers.below(2) == 0 {
                    edges[node] |= 1 << to;
                }
            }
            if node > 0 {
                let shares = node > 1 && numbers.below(4) == 0;
                groups[node] = groups[node - 1] + usize::from(!shares);
            }
        }
        let alone = |node: usize| groups.iter().filter(|group| **group == groups[node]).count() == 1;
        let stateless = (0..NODES).filter(|node| alone(*node) && numbers.below(4) == 0);
        let stateless = stateless.fold(0, |bits, node| bits | 1 << node);
        Self { seed, edges, groups, stateless }
    }

    pub fn plan(&self) -> Plan {
        let mut plan = Plan::new();
        for group in 0..=self.groups[NODES - 1] {
            let nodes = (0..NODES).filter(|node| self.groups[*node] == group);
            plan = plan.group(format!("g{group}"), nodes.clone().map(name));
            if nodes.clone().all(|node| self.stateless >> node & 1 != 0) {
                plan = plan.processes(2).stateless();
            }
        }
        for from in 0..NODES {
            plan = leads_to(self.edges[from]).fold(plan, |plan, to| plan.edge(name(from), name(to)));
        }
        plan
    }

    pub fn input(&self, number: u64) -> Vec<u8> {
        let word = Numbers((self.seed << 32) + number + 1).below(u64::MAX).to_le_bytes();
        // As many branches as the frame may have, itself included.
        [&self.edges[..], &[self.stateless], &[16], &word].concat()
    }

    pub fn model(&self) -> Model {
        let states = Default::default();
        Model { play: self.clone(), states, terminals: 0, outputs: 0, answered: 0, failed: 0, silent: 0 }
    }
}

fn name(node: usize) -> String {
    format!("n{node}")
}

fn leads_to(edges: u8) -> impl Iterator<Item = usize> {
    (0..NODES).filter(move |to| edges >> to & 1 != 0)
}

/// What a node does, one after the other.
#[derive(Clone, Debug)]
enum Act {
    Emit(usize, Vec<u8>),
    Reply(Vec<u8>),
    Fail(u32),
}

/// What a node with this state does with a frame.
fn acts(node: usize, state: &mut u64, frame: &[u8]) -> Vec<Act> {
    let (head, own) = frame.split_at(HEAD);
    let (branches, words) = own.split_first().expect("the number of branches");
    if head[NODES] >> node & 1 != 0 {
        *state = 0;
    }
    for byte in words {
        *state = (*state ^ u64::from(*byte) ^ (node as u64) << 32).wrapping_mul(0x0100_0000_01b3);
    }
    let mut numbers = Numbers(*state | 1);
    let mut left = branches - 1;
    let mut acts = Vec::new();
    for _ in 0..numbers.below(5) {
        let word = (*state ^ numbers.below(1 << 20)).to_le_bytes();
        let ways: Vec<usize> = leads_to(head[node]).collect();
        match numbers.below(3) {
            0 => acts.push(Act::Reply(word.to_vec())),
            _ if left > 0 && !ways.is_empty() => {
                let to = ways[numbers.below(ways.len() as u64) as usize];
                let branches = 1 + numbers.below(u64::from(left)) as u8;
                left -= branches;
                acts.push(Act::Emit(to, [head, &[branches], &word].concat()));
            }
            _ => {}
        }
    }
    if numbers.below(8) == 0 {
        acts.push(Act::Fail(numbers.below(100) as u32));
    }
    acts
}

/// The nodes, for real.
pub fn add_to(app: App) -> App {
    (0..NODES).fold(app, |app, node| app.node_with(name(node), move || Ok(Player { node, state: 0 })))
}

struct Player {
    node: usize,
    state: u64,
}

impl Node for Player {
    fn handle(&mut self, request: &Request<'_>, output: &mut Output<'_>) -> Result<(), NodeError> {
        // What it does is always the same; how long it takes is not.
        let now = SystemTime::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64 | 1);
        let mut numbers = Numbers(now);
        for act in acts(self.node, &mut self.state, request.payload()) {
            if numbers.below(8) == 0 {
                std::thread::sleep(Duration::from_micros(numbers.below(200)));
            }
            match act {
                Act::Emit(to, frame) => output.emit_to(&name(to), &frame)?,
                Act::Reply(bytes) => output.reply(&bytes)?,
                Act::Fail(code) => return Err(NodeError::new(code, "")),
            }
        }
        Ok(())
    }
}

/// The same in one thread: depth first, everything runs, the first answer on the way counts.
pub struct Model {
    play: Play,
    states: [u64; NODES],
    pub terminals: u64,
    pub outputs: u64,
    pub answered: u64,
    pub failed: u64,
    pub silent: u64,
}

impl Model {
    pub fn run(&mut self, input: &[u8]) -> Result<Vec<u8>, String> {
        let mut answer = None;
        self.enter(0, input, &mut answer);
        match &answer {
            Some(Ok(_)) => self.answered += 1,
            Some(Err(_)) => self.failed += 1,
            None => self.silent += 1,
        }
        answer.unwrap_or(Ok(Vec::new()))
    }

    /// A frame enters its group, and all that it leads to follows.
    fn enter(&mut self, node: usize, frame: &[u8], answer: &mut Option<Result<Vec<u8>, String>>) {
        for act in self.execute(node, frame) {
            let said = match act {
                Act::Emit(to, frame) => {
                    self.outputs += 1;
                    self.enter(to, &frame, answer);
                    continue;
                }
                Act::Reply(bytes) => Ok(bytes),
                Act::Fail(code) => Err(format!(
                    "remote handoff failed for group 'g{}' Execution {{ class: NodeError, code: {code} }}",
                    self.play.groups[node]
                )),
            };
            self.terminals += 1;
            answer.get_or_insert(said);
        }
    }

    /// What leaves the group: an output within it is called once its node has returned.
    fn execute(&mut self, node: usize, frame: &[u8]) -> Vec<Act> {
        let (mut out, mut calls) = (Vec::new(), Vec::new());
        for act in acts(node, &mut self.states[node], frame) {
            match act {
                Act::Emit(to, frame) if self.play.groups[to] == self.play.groups[node] => {
                    calls.push((to, frame));
                }
                act => out.push(act),
            }
        }
        for (to, frame) in calls {
            out.extend(self.execute(to, &frame));
        }
        out
    }
}
