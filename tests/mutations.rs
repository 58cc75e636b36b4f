//! Guards, each taken away in a copy of this repository, and the tests that must notice.
//!
//! `cargo test --test mutations [-- NAME ...]`: not part of `cargo test`, because each mutant is a build. The copy and
//! its builds lie in `target/mutations`. A guard whose text is not found exactly once is an error, and so is a
//! mutant that does not build or that no test notices.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

struct Mutant {
    name: &'static str,
    file: &'static str,
    guard: &'static str,
    without: &'static str,
    /// Arguments of `cargo test` that select what must notice.
    tests: &'static [&'static str],
}

const SIMULATION: &[&str] = &["--test", "simulation"];
const WAKES: &[&str] = &["--test", "wakes"];

const MUTANTS: [Mutant; 53] = [
    Mutant {
        name: "bounds-of-every-level",
        file: "src/engine/correlation/deadlines.rs",
        guard: "for level in &self.levels {",
        without: "for level in self.levels.iter().take(1) {",
        tests: &["--lib", "deadlines"],
    },
    Mutant {
        name: "what-is-left-below-a-bound",
        file: "src/engine/correlation/deadlines.rs",
        guard: "                bound.fetch_min(lower, Ordering::SeqCst);\n",
        without: "",
        tests: SIMULATION,
    },
    Mutant {
        name: "small-loans-begin-empty",
        file: "src/engine/loan.rs",
        guard: "sheet.staged[..len].fill(0)",
        without: "sheet.staged[..0].fill(0)",
        tests: &["--test", "memory", "memory_01_a_small_loan"],
    },
    Mutant {
        name: "first-terminal-wins",
        file: "src/engine/correlation/root.rs",
        guard: "if state >> GENERATION_SHIFT != generation || state & PHASE != OPEN {",
        without: "if state >> GENERATION_SHIFT != generation {",
        tests: SIMULATION,
    },
    Mutant {
        name: "generation-of-the-hop",
        file: "src/engine/correlation/hop.rs",
        guard: "} else if generation != current || word & HOP_OPEN == 0 {",
        without: "} else if word & HOP_OPEN == 0 {",
        tests: SIMULATION,
    },
    Mutant {
        name: "never-issued",
        file: "src/engine/correlation/hop.rs",
        guard: "if is_later(generation, current) {",
        without: "if false {",
        tests: SIMULATION,
    },
    Mutant {
        name: "lane-of-the-hop",
        file: "src/engine/correlation/hop.rs",
        guard: "self.lane.load(Ordering::Relaxed) == source.to_word()",
        without: "self.lane.load(Ordering::Relaxed) >> 16 == source.incarnation",
        tests: SIMULATION,
    },
    Mutant {
        name: "incarnation-of-the-hop",
        file: "src/engine/correlation/hop.rs",
        guard: "self.lane.load(Ordering::Relaxed) == source.to_word()",
        without: "self.lane.load(Ordering::Relaxed) as u16 == source.lane",
        tests: SIMULATION,
    },
    Mutant {
        name: "identity-of-the-root",
        file: "src/engine/correlation/ends.rs",
        guard: "if self.is_identity(root, frame) {",
        without: "if self.is_identity(root, frame) || frame.flags < 4 {",
        tests: SIMULATION,
    },
    Mutant {
        name: "first-terminal-wins-of-an-own-reply",
        file: "src/engine/correlation/root.rs",
        guard: "self.state.compare_exchange(free | OPEN, free, Ordering::SeqCst, Ordering::Relaxed).is_ok()",
        without: "{\n            self.state.store(free, Ordering::SeqCst);\n            true\n        }",
        tests: SIMULATION,
    },
    Mutant {
        name: "id-of-an-own-reply",
        file: "src/engine/correlation/own.rs",
        guard: "&& admitted.trace_id.to_words() == trace_id",
        without: "&& trace_id != [0; 2]",
        tests: SIMULATION,
    },
    Mutant {
        name: "tags-of-an-own-reply",
        file: "src/engine/correlation/own.rs",
        guard: "&& tags(identity) == word;",
        without: "&& word | tags(identity) != u64::MAX;",
        tests: SIMULATION,
    },
    Mutant {
        name: "others-in-a-bucket",
        file: "src/engine/correlation/index.rs",
        guard: "let is_alone = head & (CLAIMED | MORE) == 0",
        without: "let is_alone = head & CLAIMED == 0",
        tests: &["--lib", "index"],
    },
    Mutant {
        name: "ticket-of-an-own-reply",
        file: "src/lane/own_reply.rs",
        guard: "let is_usual = of == ticket &&",
        without: "let is_usual = of | ticket != 0 &&",
        tests: &["--test", "lying"],
    },
    Mutant {
        name: "length-of-an-own-reply",
        file: "src/lane/own_reply.rs",
        guard: "let is_inline = payload <= self.inline_bytes() as u64;",
        without: "let is_inline = payload <= 4096;",
        tests: &["--test", "lying"],
    },
    Mutant {
        name: "sweep-of-the-open-hops",
        file: "src/engine/correlation/ends.rs",
        guard: "        open.into_iter().filter_map(end).collect()",
        without: "        open.into_iter().take(1).filter_map(end).collect()",
        tests: SIMULATION,
    },
    Mutant {
        name: "sweep-of-former-lives",
        file: "src/engine/correlation/ends.rs",
        guard: "false => hop.lane() == Some(source.lane),",
        without: "false => hop.is_asked_of(source),",
        tests: SIMULATION,
    },
    Mutant {
        name: "sweep-of-the-reply-ring",
        file: "src/engine/ward.rs",
        guard: "        read_to_the_end(shared, link);\n",
        without: "        if now_ns == 0 {\n            read_to_the_end(shared, link);\n        }\n",
        tests: &["--test", "failure_map"],
    },
    Mutant {
        name: "precedence-of-causes",
        file: "src/engine/link.rs",
        guard: "let _ = self.cause.compare_exchange(NO_CAUSE, word, Ordering::AcqRel, Ordering::Acquire);",
        without: "self.cause.store(word, Ordering::Release);",
        tests: &["--test", "supervision", "hung_01"],
    },
    Mutant {
        name: "kernels-kill-for-want-of-memory",
        file: "src/engine/ward.rs",
        guard: "&& !asked_to && was_oom(now_ns) => {",
        without: "&& !asked_to && was_oom(now_ns) && now_ns == 0 => {",
        // Where a memory control group can be made.
        tests: &["--test", "out_of_memory"],
    },
    Mutant {
        name: "one-kill-explains-one-death",
        file: "src/supervisor/toll.rs",
        guard: "        self.open -= u64::from(is_explained);\n",
        without: "",
        tests: &["--test", "out_of_memory"],
    },
    Mutant {
        name: "broken-rule-before-the-kernels-word",
        file: "src/engine/link.rs",
        guard: "let _ = self.cause.fetch_update(Ordering::AcqRel, Ordering::Acquire, outranked);",
        without: "let _ = outranked(NO_CAUSE - 1);",
        tests: &["--test", "lying", "--test", "failure_map"],
    },
    Mutant {
        name: "history-bound",
        file: "src/engine/correlation/history.rs",
        guard: "if age >= self.size.min(latest) {",
        without: "if age >= (self.size + 1).min(latest) {",
        tests: SIMULATION,
    },
    Mutant {
        name: "history-keeps-the-newer",
        file: "src/engine/correlation/history.rs",
        guard: "            < Ticket::GENERATIONS / 2\n",
        without: "            < Ticket::GENERATIONS\n",
        tests: SIMULATION,
    },
    Mutant {
        name: "last-before-reuse",
        file: "src/lane/reader.rs",
        guard: "if envelope.flags & flags::LAST == 0 { LastMark::No }",
        without: "if envelope.flags & flags::LAST == 0 && envelope.kind != kind::TERMINAL { LastMark::No }",
        tests: &["--test", "lying", "last"],
    },
    Mutant {
        name: "rerun-once",
        file: "src/engine/correlation/hop.rs",
        guard: "if way & RERUN != 0 || taken == COUNT {",
        without: "if taken == COUNT {",
        tests: SIMULATION,
    },
    Mutant {
        name: "rerun-repeats-nothing",
        file: "src/engine/correlation/hop.rs",
        guard: "if way >> SKIP != 0 {",
        without: "if way >> SKIP > COUNT {",
        tests: SIMULATION,
    },
    Mutant {
        name: "order-of-deadlines",
        file: "src/engine/correlation/ends.rs",
        guard: "(*deadline_ns, *number)",
        without: "(*number, *deadline_ns)",
        tests: SIMULATION,
    },
    Mutant {
        name: "answered-with-the-last-branch",
        file: "src/engine/correlation/kept.rs",
        guard: "|| last == LastMark::Ended && root.is_alone(key.generation, entry)",
        without: "|| last == LastMark::Ended && (root.is_alone(key.generation, entry) || entry < 64)",
        tests: SIMULATION,
    },
    Mutant {
        name: "answered-when-its-branch-ends",
        file: "src/engine/correlation/kept.rs",
        guard: "|| last == LastMark::Ended && root.is_alone(key.generation, entry)",
        without: "|| last != LastMark::Stray && root.is_alone(key.generation, entry)",
        tests: SIMULATION,
    },
    Mutant {
        name: "kept-answers-before-the-last-one",
        file: "src/engine/correlation/root.rs",
        guard: "word & (BRANCHES | KEPT) == 1 << entry",
        without: "word & BRANCHES == 1 << entry",
        tests: SIMULATION,
    },
    Mutant {
        name: "first-in-place-before-the-latest",
        file: "src/engine/order.rs",
        guard: "if self.stands_before(mark, parent) {",
        without: "if self.stands_before(mark, parent) && input == u64::MAX {",
        tests: SIMULATION,
    },
    Mutant {
        name: "first-in-place-before-the-first-to-come",
        file: "src/engine/answer.rs",
        guard: "let later = if is_first {",
        without: "let later = if is_first && lane == u16::MAX {",
        tests: SIMULATION,
    },
    Mutant {
        name: "kept-answers-have-a-deadline",
        file: "src/engine/correlation/kept.rs",
        guard: "if has_passed(root.deadline_ns.load(Ordering::Relaxed), now_ns) {",
        without: "if has_passed(root.deadline_ns.load(Ordering::Relaxed), 0) {",
        tests: SIMULATION,
    },
    Mutant {
        name: "kept-answers-count-by-lane",
        file: "src/engine/correlation/kept.rs",
        guard: "let others = count - u64::from(*lane == winner.lane);",
        without: "let others = count - 1;",
        tests: SIMULATION,
    },
    Mutant {
        name: "kept-for-nothing-is-late",
        file: "src/engine/correlation/kept.rs",
        guard: "counters.late_reply_drop.add_many(*count);",
        without: "counters.late_reply_drop.add_many(0);",
        tests: SIMULATION,
    },
    Mutant {
        name: "no-entry-for-what-has-ended",
        file: "src/engine/correlation/root.rs",
        guard: "if self.open_generation() != Some(generation) {",
        without: "if generation == u64::MAX {",
        tests: SIMULATION,
    },
    Mutant {
        name: "dead-inputs-leave-with-all-frames",
        file: "src/engine/in_order.rs",
        guard: "need not wait for that.\n            leave_with(shared, state, held.ticket);",
        without: "need not wait for that.\n            state.order.end(held.ticket.0);",
        tests: &["--test", "away"],
    },
    Mutant {
        name: "own-reply-that-has-gone-on",
        file: "src/engine/short_way.rs",
        guard: "let is_here = self.correlation.moves(admitted.index) == sent.moves;",
        without: "let is_here = sent.moves != u64::MAX;",
        tests: &["--test", "flow", "flow_01_callers_who"],
    },
    Mutant {
        name: "own-reply-sends-what-waits-in-front",
        file: "src/engine/short_way.rs",
        guard: "if link.forwards.waiting() != 0 {\n                self.flush_behind_fence(link);",
        without: "if link.forwards.waiting() == u64::MAX {\n                self.flush_behind_fence(link);",
        tests: WAKES,
    },
    Mutant {
        name: "own-reply-leaves-the-lane",
        file: "src/engine/short_way.rs",
        guard: "            link.stop_looking_after_read(&self.correlation);\n",
        without: "",
        tests: WAKES,
    },
    Mutant {
        name: "no-own-reply-leaves-the-lane",
        file: "src/engine/short_way.rs",
        guard: "            link.stop_looking(&self.correlation);\n",
        without: "",
        tests: WAKES,
    },
    Mutant {
        name: "own-reply-makes-room",
        file: "src/engine/short_way.rs",
        guard: "            self.room_came_free();\n",
        without: "",
        tests: WAKES,
    },
    Mutant {
        name: "short-way-behind-what-waits-in-front",
        file: "src/engine/short_way.rs",
        guard: "            && link.forwards.waiting() == 0\n",
        without: "",
        tests: WAKES,
    },
    Mutant {
        name: "short-way-beside-too-much",
        file: "src/engine/short_way.rs",
        guard: "            && !self.holds_too_much();",
        without: "            && bytes.len() < usize::MAX;",
        tests: &["--test", "flow", "flow_01_forward_bytes"],
    },
    Mutant {
        name: "short-way-of-a-loan-beside-too-much",
        file: "src/engine/block_way.rs",
        guard: "link.is_live() && !self.holds_too_much();",
        without: "link.is_live();",
        tests: &["--test", "flow", "flow_01_forward_bytes"],
    },
    Mutant {
        name: "own-block-that-is-left-alone",
        file: "src/lane/own_reply.rs",
        guard: "                self.hold_not(block);\n",
        without: "                let _ = Self::hold_not;\n",
        tests: &["--lib", "own_reply"],
    },
    Mutant {
        name: "own-block-beside-one-in-the-other-half",
        file: "src/lane/own_reply.rs",
        guard: "if self.holds_in_both_halves() || !ends(usual.trace_id, usual.tags) {",
        without: "if !ends(usual.trace_id, usual.tags) {",
        tests: &["--lib", "own_reply"],
    },
    Mutant {
        name: "kept-block-beside-one-in-the-other-half",
        file: "src/engine/reader.rs",
        guard: "FramePayload::Block(_) if link.end.holds_in_both_halves() => Outcome::Heap,",
        without: "FramePayload::Block(block) if block.len == u32::MAX => Outcome::Heap,",
        tests: &["--test", "memory", "memory_01_half"],
    },
    Mutant {
        name: "half-of-a-kept-block",
        file: "src/lane/held_blocks.rs",
        guard: "u64::from(begin < middle) | u64::from(end > middle) << HALF_SHIFT",
        without: "u64::from(begin < middle) | u64::from(end > middle && begin >= middle) << HALF_SHIFT",
        tests: &["--lib", "own_reply"],
    },
    Mutant {
        name: "own-reply-gives-a-block-back",
        file: "src/lane/reader.rs",
        guard: "            self.arena.take_back(block).expect(\"a sent block is published until its LAST\");\n",
        without: "",
        tests: &["--lib", "own_reply"],
    },
    Mutant {
        name: "a-slot-for-the-worker",
        file: "src/lane/reader.rs",
        guard: "        self.next.store(next, Ordering::Release);\n        self.offer_room();\n",
        without: "        self.next.store(next, Ordering::Release);\n        fence(Ordering::SeqCst);\n",
        tests: WAKES,
    },
    Mutant {
        name: "a-block-for-the-worker",
        file: "src/lane/held_blocks.rs",
        guard: "        self.offer_room();\n",
        without: "",
        tests: WAKES,
    },
];

/// What a build needs; `target` would be copied into itself.
const PARTS: [&str; 8] =
    ["src", "tests", "benches", "examples", "tools", "Cargo.toml", "Cargo.lock", "README.md"];

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let tree = root.join("target/mutations/tree");
    // What earlier runs left there may be gone from the repository.
    let _ = fs::remove_dir_all(&tree);
    PARTS.iter().for_each(|part| copy(&root.join(part), &tree.join(part)));
    let mut survivors = 0;
    for mutant in MUTANTS.iter().filter(|mutant| wanted.is_empty() || wanted.iter().any(|n| n == mutant.name))
    {
        let begin = Instant::now();
        match try_out(mutant, &tree) {
            Ok(noticed_by) => {
                println!("{}: noticed by {} ({:.0?})", mutant.name, noticed_by.join(", "), begin.elapsed());
            }
            Err(why) => {
                survivors += 1;
                println!("{}: {why}", mutant.name);
            }
        }
    }
    println!("{survivors} of the mutants were not noticed");
    if survivors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The tests that notice.
fn try_out(mutant: &Mutant, tree: &Path) -> Result<Vec<String>, String> {
    let file = tree.join(mutant.file);
    let source = fs::read_to_string(&file).map_err(|error| format!("{}: {error}", mutant.file))?;
    let places = source.matches(mutant.guard).count();
    if places != 1 {
        return Err(format!("its guard stands {places} times in {}", mutant.file));
    }
    fs::write(&file, source.replace(mutant.guard, mutant.without)).expect("the copy is ours");
    let noticed = noticed_by(mutant, tree);
    fs::write(&file, source).expect("the copy is ours");
    noticed
}

fn noticed_by(mutant: &Mutant, tree: &Path) -> Result<Vec<String>, String> {
    let cargo = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command
            .current_dir(tree)
            .args(["test", "--features", "testing,tracing"])
            .args(mutant.tests)
            .args(more);
        command.env("CARGO_TARGET_DIR", tree.with_file_name("target")).env("HANDBELL_TEST_LIMIT_S", "60");
        command.output().expect("cargo runs")
    };
    let build = cargo(&["--no-run"]);
    if !build.status.success() {
        return Err(format!("it does not build:\n{}", String::from_utf8_lossy(&build.stderr)));
    }
    let run = cargo(&[]);
    if run.status.success() {
        return Err(format!("nothing in {:?} notices", mutant.tests));
    }
    let said = String::from_utf8_lossy(&run.stdout);
    let failed = said.lines().filter(|line| line.starts_with("test ") && line.ends_with("FAILED"));
    let mut failed: Vec<String> =
        failed.filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned).collect();
    if failed.is_empty() {
        // The program ended before it could say which: a watchdog, or an abort.
        failed.push(format!("the end of the program ({})", run.status));
    }
    Ok(failed)
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).expect("target is ours");
        for entry in fs::read_dir(from).expect("a folder of this repository") {
            let name: PathBuf = entry.expect("it can be read").file_name().into();
            copy(&from.join(&name), &to.join(&name));
        }
    } else {
        fs::create_dir_all(to.parent().expect("it has a folder")).expect("target is ours");
        fs::copy(from, to).expect("a file of this repository");
    }
}
