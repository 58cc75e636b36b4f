//! The nodes that are measured, and their plans.

use handbell::{App, Node, NodeError, Output, Plan, Request};

/// Replies with what it got.
pub const ECHO: &str = "bench_echo";
/// Replies with as many bytes, and reads and writes none.
pub const UNTOUCHED: &str = "bench_untouched";
/// Replies with as many bytes, of which it copies the first 8 and leaves the others alone.
pub const MARKED: &str = "bench_marked";
/// Passes on what it got.
pub const PASS: &str = "bench_pass";
/// Reads what it got, and replies with the first 8 bytes.
pub const READ: &str = "bench_read";
/// Bytes that say which request a payload belongs to.
pub const MARK_BYTES: usize = 8;

/// Adds them.
pub fn with_nodes(app: App) -> App {
    app.node(ECHO, |request, output| Ok(output.reply(request.payload())?))
        .node(UNTOUCHED, |request, output| Ok(output.reply_with(request.payload().len(), |_| ())?))
        .node(MARKED, |request, output| {
            let payload = request.payload();
            let mark = |room: &mut [u8]| room[..MARK_BYTES].copy_from_slice(&payload[..MARK_BYTES]);
            Ok(output.reply_with(payload.len(), mark)?)
        })
        .node(PASS, |request, output| Ok(output.emit(request.payload())?))
        .nodes_with([READ], || Reader(Vec::new()))
}

/// Has the bytes of the latest request.
struct Reader(Vec<u8>);

impl Node for Reader {
    fn handle(&mut self, request: &Request<'_>, output: &mut Output<'_>) -> Result<(), NodeError> {
        let payload = request.payload();
        self.0.resize(payload.len(), 0);
        self.0.copy_from_slice(payload);
        Ok(output.reply(&std::hint::black_box(&self.0)[..MARK_BYTES])?)
    }
}

/// One group of one node, in so many processes.
pub fn plan(processes: usize) -> Plan {
    Plan::new().group("bench", [ECHO, UNTOUCHED, MARKED]).stateless().processes(processes)
}

/// Two groups, one after the other, each kept to its processor.
pub fn two_groups(first: Option<usize>, second: Option<usize>) -> Plan {
    let pinned = |plan: Plan, processor: Option<usize>| match processor {
        Some(processor) => plan.pin(processor),
        None => plan,
    };
    let plan = pinned(Plan::new().group("first", [PASS]), first);
    pinned(plan.group("second", [READ]), second).edge(PASS, READ)
}
