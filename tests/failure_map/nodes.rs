//! What the workers of these tests do, and engines over them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use handbell::testing::{self, Envelope, RawRequest, RawWorker, flags, kind, status};
use handbell::{App, BuildError, EngineBuilder, NodeError, Output, Plan, Profile, Request, Rule};
use rustix::process::{Signal, getpid, kill_process};

use crate::common::{self, TOKEN, scripted, token};
use crate::seen::RULES;

/// Set in workers that are to be raw.
pub const RAW: &str = "HANDBELL_TEST_RAW";

pub fn app() -> App {
    common::app()
        .node("act", act)
        .node("inside", |_, _| Ok(()))
        .node("back", |_, output| Ok(output.emit(b"=")?))
        .node("idle", scripted::follow)
        .node("keyed", |_, _| Ok(()))
        .node_with("fragile", || {
            let way = std::env::var_os(BROKEN).and_then(|file| std::fs::read_to_string(file).ok());
            match way.as_deref() {
                None => Ok(|_: &Request<'_>, output: &mut Output<'_>| Ok(output.reply(b"")?)),
                Some("exits") => std::process::exit(3),
                Some("is killed") => loop {
                    kill_process(getpid(), Signal::KILL).expect("signals itself");
                },
                Some("is never built") => loop {
                    std::thread::park();
                },
                Some(_) => Err(BuildError::new("wanted")),
            }
        })
}

/// Names a file to `fragile` nodes; while it is there, none can be built.
pub const BROKEN: &str = "HANDBELL_TEST_BROKEN";

/// A place in the directory for temporary files that is empty again when this is dropped.
pub struct Place(pub PathBuf);

impl Place {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        Self(std::env::temp_dir().join(format!("{}-place-{number}", token())))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Does what the words say, one after the other.
pub fn act(request: &Request<'_>, output: &mut Output<'_>) -> Result<(), NodeError> {
    let text = String::from_utf8_lossy(request.payload());
    let mut words = text.split_whitespace();
    while let Some(word) = words.next() {
        match word {
            "=" => output.reply(b"replied")?,
            "error" => return Err(NodeError::new(7, "card 4111")),
            "panic" => panic!("wanted"),
            "large" => output.reply(&[0; ARENA + 1])?,
            "half" => output.reply(&[0; ARENA / 2])?,
            "room" => output.reply(&[0; ARENA])?,
            "edge" => output.emit_to("nowhere", b"")?,
            "key" => output.emit_to("keyed", b"")?,
            "outputs" => (0..65_537).try_for_each(|_| output.emit_to("inside", b""))?,
            // Each stays open until the gate is.
            "branches" => {
                let script = scripted::script(&format!("idle:{}", words.next().expect("a gate")));
                (0..9).try_for_each(|_| output.emit_to("idle", &script))?;
            }
            "hops" => output.emit_to("back", b"")?,
            "wait" => wait(request)?,
            _ => panic!("no such word: {word}"),
        }
    }
    Ok(())
}

/// Returns once nobody wants the request any more.
pub fn wait(request: &Request<'_>) -> Result<(), NodeError> {
    while !request.is_cancelled() {
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

pub const ARENA: usize = 4096;

/// Group `g`, whose node `act` has an edge of each kind.
pub fn acting(profile: Profile) -> EngineBuilder {
    let plan = Plan::new()
        .group("g", ["act", "inside", "echo"])
        .group("other", ["back", "idle"])
        .group("keys", ["keyed"])
        .keyed()
        .edge("act", "inside")
        .edge("act", "keyed")
        .edge("act", "idle")
        .edge("act", "back")
        .edge("back", "act")
        .max_hops(1);
    over(plan).profile(profile).reply_arena_bytes(ARENA)
}

pub fn over(plan: Plan) -> EngineBuilder {
    app().engine(plan).env(TOKEN, token()).on_output(|_| {})
}

pub fn group(nodes: &[&str]) -> EngineBuilder {
    over(Plan::new().group("g", nodes.iter().copied())).term_timeout(Duration::from_millis(100))
}

/// A worker that breaks the rule of this number, or leaves, when it is told to.
pub fn raw(raw: &mut RawWorker) {
    let mut block = None;
    while let Some(request) = raw.receive() {
        let text = String::from_utf8_lossy(&request.payload).into_owned();
        let mut words = text.split(' ');
        raw.begin(&request);
        match (words.next(), words.next()) {
            (Some("rule"), Some(number)) => {
                lie(raw, &request, RULES[number.parse::<usize>().expect("a number")], block);
                if words.next() == Some("abort") {
                    std::process::abort();
                }
            }
            (Some("mute"), _) => raw.mute(),
            (Some("leave"), _) => raw.leave(),
            (Some("stay"), _) => continue,
            // An answer that lies in the arena.
            (Some("block"), _) => {
                raw.send(Envelope { payload_at: 1, payload_len: 300, ..request.answer(0) }, b"");
                block = Some(1);
                continue;
            }
            _ => {
                raw.reply(&request, &request.payload);
                continue;
            }
        }
        loop {
            std::thread::park();
        }
    }
}

/// Says what is impossible.
pub fn lie(raw: &mut RawWorker, request: &RawRequest, rule: Rule, block: Option<u32>) {
    let honest = Envelope { flags: 0, ..request.answer(0) };
    let lie = match rule {
        Rule::CommitWord => return raw.poker().poke(raw.commit_word_at(0), 57_005),
        Rule::Kind => Envelope { kind: 77, ..honest },
        Rule::Status => Envelope { status: 9, ..honest },
        Rule::Flags => Envelope { flags: 1 << 14, ..honest },
        Rule::PayloadLength => Envelope { payload_len: 4000, ..honest },
        Rule::PayloadPlace => Envelope { payload_at: u32::MAX, payload_len: 1, ..honest },
        Rule::BlockHeld => Envelope { payload_at: block.expect("given"), payload_len: 300, ..honest },
        Rule::Ticket => Envelope { ticket: testing::ticket(0, (honest.ticket >> 24) + 1000), ..honest },
        // The one behind it, which is not the oldest.
        Rule::LastOutOfOrder => raw.receive().expect("there is another").answer(0),
        Rule::ErrorPayload => Envelope { status: status::ERROR, payload_len: 3, ..honest },
        Rule::Edge => Envelope { kind: kind::OUTPUT, target: 7, ..honest },
    };
    assert_eq!(lie.flags & flags::LAST != 0, rule == Rule::LastOutOfOrder);
    raw.send(lie, b"");
}
