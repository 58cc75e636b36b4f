//! Nodes for runs over many groups: what they emit has a place, and logs keep in which order it came.

use std::collections::BTreeMap;
use std::time::Duration;

use handbell::{App, Node, NodeError, Output, Request};

use super::Numbers;

/// What travels: number of the input, frames that its last log is to get, path of emissions, filling.
pub struct Frame {
    pub input: u64,
    pub total: u64,
    pub path: Vec<u8>,
    pub filling: usize,
}

impl Frame {
    pub fn of(bytes: &[u8]) -> Self {
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let path = bytes[25..][..usize::from(bytes[24])].to_vec();
        let frame = Self { input: word(0), total: word(8), path, filling: word(16) as usize };
        let expected = super::pattern(frame.input as u32, frame.filling);
        assert!(bytes[25 + frame.path.len()..] == expected, "wanted: the filling of {}", frame.input);
        frame
    }

    pub fn bytes(&self) -> Vec<u8> {
        let words = [self.input, self.total, self.filling as u64];
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let filling = super::pattern(self.input as u32, self.filling);
        [&words[..], &[self.path.len() as u8], &self.path, &filling].concat()
    }

    fn child(&self, index: u8) -> Vec<u8> {
        let path = [&self.path[..], &[index]].concat();
        Self { path, ..*self }.bytes()
    }

    fn name(&self) -> String {
        format!("{} {:?}", self.input, self.path)
    }
}

/// Takes a while, differently for each frame, and seldom long.
fn dawdle(frame: &Frame, salt: u64) {
    let mut numbers = Numbers(frame.input * 31 + frame.path.len() as u64 + salt);
    match numbers.below(40) {
        0 => std::thread::sleep(Duration::from_micros(500)),
        1..10 => (0..numbers.below(3000)).for_each(|_| std::hint::spin_loop()),
        _ => {}
    }
}

/// Emits `count` times along each of these edges, one edge after the other.
fn emits(
    labels: &'static [&'static str],
    count: u8,
) -> impl Fn(&Request<'_>, &mut Output<'_>) -> Result<(), NodeError> + Clone {
    move |request, output| {
        let frame = Frame::of(request.payload());
        dawdle(&frame, labels.len() as u64 + u64::from(count));
        let mut index = 0;
        for label in labels {
            for _ in 0..count {
                output.emit_to(label, &frame.child(index))?;
                index += 1;
            }
        }
        Ok(())
    }
}

pub fn app() -> App {
    App::new()
        .node("next", emits(&["on"], 1))
        .node("after", emits(&["on"], 1))
        .node("three", emits(&["on"], 3))
        .node("two", emits(&["on"], 2))
        .node("two_by_key", |request, output| {
            let frame = Frame::of(request.payload());
            (0..2).try_for_each(|index| {
                let key = frame.input % 5 + u64::from(index);
                Ok(output.key(key).emit(&frame.child(index))?)
            })
        })
        .node("fork", emits(&["left", "right"], 1))
        .node("fork_twice", emits(&["left", "right"], 2))
        .node("slow", |request, output| {
            std::thread::sleep(Duration::from_millis(1));
            Ok(output.emit(&Frame::of(request.payload()).child(0))?)
        })
        .node("moody", |request, output| {
            let frame = Frame::of(request.payload());
            match frame.input % 10 {
                3 => Err(NodeError::new(3, "three")),
                4 => panic!("wanted"),
                5 => Ok(()),
                _ => Ok(output.emit(&frame.child(0))?),
            }
        })
        .node("sleepy", |request, output| {
            let frame = Frame::of(request.payload());
            if frame.input == 7 {
                while !request.is_cancelled() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                // Until those that were sent a little later are late, too.
                std::thread::sleep(Duration::from_millis(300));
            }
            Ok(output.emit(&frame.child(0))?)
        })
        .node("doomed", |request, output| {
            let frame = Frame::of(request.payload());
            if frame.input == 0 {
                loop {
                    std::thread::park();
                }
            }
            Ok(output.emit(&frame.child(0))?)
        })
        // Logs: at the end of the ways, and on them.
        .nodes_with(["log", "log_told"], Log::default)
        .nodes_with(["through", "through_told"], Log::default)
}

/// Everything that has entered, in order.
#[derive(Default)]
struct Log {
    lines: Vec<String>,
    missing: BTreeMap<u64, u64>,
    digest: u64,
}

impl Node for Log {
    fn handle(&mut self, request: &Request<'_>, output: &mut Output<'_>) -> Result<(), NodeError> {
        if request.node_name().ends_with("told") {
            return Ok(output.reply(self.lines.join("\n").as_bytes())?);
        }
        let frame = Frame::of(request.payload());
        for byte in frame.name().bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.lines.push(frame.name());
        if request.node_name() == "through" {
            return Ok(output.emit(&frame.child(0))?);
        }
        let missing = self.missing.entry(frame.input).or_insert(frame.total);
        *missing -= 1;
        if *missing > 0 {
            return Ok(());
        }
        self.missing.remove(&frame.input);
        let said = [&self.digest.to_le_bytes()[..], request.payload()].concat();
        Ok(output.reply(&said)?)
    }
}
