//! Nodes that do what their payload says, for plans of many groups.
//!
//! A payload is `script#trail`. The script has a section for each node that shall do something special,
//! `node:word word`, with `;` between sections. Every node adds its name to the trail; one without a section
//! emits along its only edge, or replies if it has none. Words, in their order:
//!
//! | word | does |
//! |---|---|
//! | `>n`, `>n@7` | emits along the edge `n`; with key 7 |
//! | `=` | replies |
//! | `z20` | sleeps 20 ms |
//! | `g3` | waits until gate 3 is open |
//! | `wait` | returns once the request is not wanted any more, without a word behind it |
//! | `pid`, `group`, `id` | adds it to the trail |
//! | `!7`, `panic`, `exit9` | fails with code 7, panics, exits with code 9 |

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use handbell::{App, Node, NodeError, Output, Reply, Request};

pub const NODES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// The nodes `a` to `h`, and `log` with `told`: one state, to which every request that enters `log` is added, and
/// of which `told` replies all.
pub fn app() -> App {
    let app = NODES.into_iter().fold(App::new(), |app, name| app.node(name, follow));
    app.nodes_with(["log", "told"], || Log(Vec::new()))
}

/// What a request with this script begins with.
pub fn script(script: &str) -> Vec<u8> {
    format!("{script}#").into_bytes()
}

/// The trail of a reply.
pub fn trail(reply: &Reply) -> String {
    let text = String::from_utf8_lossy(&reply.bytes()).into_owned();
    let (_, trail) = text.split_once('#').expect("every reply has a trail");
    trail.trim().to_owned()
}

/// Holds requests up at a node, whichever process that is in, until it is opened. Keep it until they have passed.
pub struct Gate(u64);

impl Gate {
    pub fn new() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Self(COUNT.fetch_add(1, Ordering::Relaxed))
    }

    /// The word that waits for it.
    pub fn word(&self) -> String {
        format!("g{}", self.0)
    }

    pub fn open(&self) {
        std::fs::write(gate(self.0), []).expect("a file in the directory for temporary files");
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(gate(self.0));
    }
}

fn gate(number: u64) -> PathBuf {
    std::env::temp_dir().join(format!("{}-gate-{number}", super::token()))
}

/// Waits until the gate of this word is open.
pub fn wait_at(word: &str) {
    let number = word.strip_prefix('g').and_then(|number| number.parse().ok()).expect("a gate's word");
    while !gate(number).exists() {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Does what its section of the script says.
pub fn follow(request: &Request<'_>, output: &mut Output<'_>) -> Result<(), NodeError> {
    let text = String::from_utf8_lossy(request.payload());
    let (script, trail) = text.split_once('#').unwrap_or((&text, ""));
    let mut said = format!("{script}#{trail} {}", request.node_name());
    let section = script.split(';').find_map(|section| {
        let (node, words) = section.split_once(':')?;
        (node == request.node_name()).then_some(words)
    });
    let Some(words) = section else { return Ok(output.emit(said.as_bytes())?) };
    for word in words.split_whitespace() {
        match word {
            "=" => output.reply(said.as_bytes())?,
            "wait" => {
                while !request.is_cancelled() {
                    std::thread::sleep(Duration::from_micros(200));
                }
                return Ok(());
            }
            "pid" => said += &format!(" {}", std::process::id()),
            "group" => said += &format!(" {}", request.group_name()),
            "id" => {
                let tags = [request.reply_to(), request.run().into(), request.scenario().into()];
                said += &format!(" {}/{tags:?}", request.trace_id()).replace(", ", ",");
            }
            "panic" => panic!("wanted"),
            _ => match (word.split_at(1), word.strip_prefix("exit")) {
                (_, Some(code)) => std::process::exit(number(code) as i32),
                ((">", to), _) => match to.split_once('@') {
                    Some((to, key)) => output.key(number(key)).emit_to(to, said.as_bytes())?,
                    None => output.emit_to(to, said.as_bytes())?,
                },
                (("g", _), _) => wait_at(word),
                (("z", ms), _) => std::thread::sleep(Duration::from_millis(number(ms))),
                (("!", code), _) => return Err(NodeError::new(number(code) as u32, "")),
                _ => panic!("no such word: {word}"),
            },
        }
    }
    Ok(())
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}

struct Log(Vec<String>);

impl Node for Log {
    fn handle(&mut self, request: &Request<'_>, output: &mut Output<'_>) -> Result<(), NodeError> {
        if request.node_name() == "told" {
            return Ok(output.reply(self.0.join("\n").as_bytes())?);
        }
        let text = String::from_utf8_lossy(request.payload());
        self.0.push(text.split_once('#').unwrap_or(("", &text)).1.trim().to_owned());
        follow(request, output)
    }
}
