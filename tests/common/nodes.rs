//! A node of every kind.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use handbell::{App, BuildError, EmitError, Node, NodeError, Output, Plan, Request};
use rustix::process::{Signal, getpid, kill_process};

use super::scripted;

type Result = std::result::Result<(), NodeError>;

pub fn app() -> App {
    let app = App::new()
        .node("echo", |request, output| Ok(output.reply(request.payload())?))
        .node("upper", |request, output| Ok(output.reply(&request.payload().to_ascii_uppercase())?))
        .node("pid", |_, output| Ok(output.reply(&std::process::id().to_le_bytes())?))
        .node("group", |request, output| Ok(output.reply(request.group_name().as_bytes())?))
        .node("sleep", |request, output| {
            std::thread::sleep(Duration::from_millis(number(request)));
            Ok(output.reply(request.payload())?)
        })
        .node("dawdle", |_, output| {
            std::thread::sleep(Duration::from_millis(100));
            Ok(output.reply(b"done")?)
        })
        .node("stuck", |_, _| {
            loop {
                std::thread::park();
            }
        })
        .node("nothing", |_, _| Ok(()))
        .node("reply_twice", |request, output| {
            output.reply(request.payload())?;
            Ok(output.reply(b"second")?)
        })
        .node("fail", |request, _| Err(NodeError::new(7, &String::from_utf8_lossy(request.payload()))))
        .node("identity", identity)
        .node("env", |request, output| {
            let value = std::env::var(text(request)).unwrap_or_else(|_| "(unset)".into());
            Ok(output.reply(value.as_bytes())?)
        })
        .node("env_names", |_, output| {
            let names: Vec<String> = std::env::vars().map(|(name, _)| name).collect();
            Ok(output.reply(names.join(" ").as_bytes())?)
        })
        .node("print", print)
        .node("grandchild", grandchild)
        .node("engine_inside", |_, output| {
            let started = app().engine(Plan::new().group("g", ["echo"])).start();
            let said = started.map_or_else(|error| error.to_string(), |_| "it started".into());
            Ok(output.reply(said.as_bytes())?)
        });
    let app = dying(app);
    let app = sized(app);
    chain(app)
        .nodes_with(["count", "counted"], || Counter(0))
        .node_with("tally", || Ok(Tally(Vec::new())))
        .node("burst_and_wait", |request, output| {
            let said = text(request);
            let (bytes, gate) = said.split_once(' ').expect("bytes and a gate");
            bytes.bytes().try_for_each(|byte| output.emit(&[byte]))?;
            scripted::wait_at(gate);
            Ok(())
        })
        .node("gated", |request, output| {
            scripted::wait_at(&text(request));
            Ok(output.reply(request.payload())?)
        })
        .nodes_with(["until_cancelled", "cancelled_seen"], || Cancelled(0))
        .node_with("unbuildable", || Err::<Counter, _>(BuildError::new("no model file canary-4111")))
        .node_with("exit_in_factory", || -> std::result::Result<Counter, BuildError> {
            std::process::exit(3)
        })
        .node_with("stuck_in_factory", || -> std::result::Result<Counter, BuildError> {
            loop {
                std::thread::park();
            }
        })
}

pub fn text(request: &Request<'_>) -> String {
    String::from_utf8_lossy(request.payload()).into_owned()
}

fn number(request: &Request<'_>) -> u64 {
    text(request).parse().expect("a number")
}

fn dying(app: App) -> App {
    let signal = |signal| {
        move |_: &Request<'_>, _: &mut Output<'_>| -> Result {
            // The runtime's own handler of SIGSEGV lets the first one pass.
            loop {
                kill_process(getpid(), signal).expect("signals itself");
            }
        }
    };
    app.node_with("slow_to_build", || {
        std::thread::sleep(Duration::from_millis(super::number_from(super::BUILD_MS, 0)));
        Ok(|_: &Request<'_>, output: &mut Output<'_>| Ok(output.reply(b"built")?))
    })
    .node("panic", |request, _| panic!("{}", text(request).escape_default().take(40).collect::<String>()))
    .node("abort", |_, _| std::process::abort())
    .node("exit", |request, _| std::process::exit(number(request) as i32))
    .node("segv", signal(Signal::SEGV))
    .node("kill_self", signal(Signal::KILL))
}

/// Replies of a wanted size.
fn sized(app: App) -> App {
    app.node("large", |request, output| {
        let len = number(request) as usize;
        Ok(output.reply_with(len, |room| room.copy_from_slice(&super::pattern(len as u32, len)))?)
    })
    .node("large_emit", |request, output| {
        let len = number(request) as usize;
        Ok(output.emit(&super::pattern(len as u32, len))?)
    })
    .nodes_with(["checked", "changed"], || Checked(0))
    .nodes_with(["guarded", "refused"], || Guarded(0))
    .node("gush", |_, output| gush(output))
    .node("gush_and_stay", |_, output| {
        let _ = gush(output);
        loop {
            std::thread::park();
        }
    })
    .node("burst", |request, output| request.payload().iter().try_for_each(|byte| Ok(output.emit(&[*byte])?)))
}

/// `first` → `second` → `third`, each adding its letter.
fn chain(app: App) -> App {
    app.node("first", |request, output| Ok(output.emit(&[request.payload(), b"1"].concat())?))
        .node("second", |request, output| Ok(output.emit(&[request.payload(), b"2"].concat())?))
        .node("third", |request, output| Ok(output.emit(&[request.payload(), b"3"].concat())?))
}

/// Says something until there is no room for it, which there never is if nobody reads.
fn gush(output: &mut Output<'_>) -> Result {
    loop {
        output.reply(b"more")?;
    }
}

fn identity(request: &Request<'_>, output: &mut Output<'_>) -> Result {
    let tags = [request.reply_to(), u32::from(request.run()), u32::from(request.scenario())];
    let tags: Vec<u8> = tags.iter().flat_map(|tag| tag.to_le_bytes()).collect();
    Ok(output.reply(&[&request.trace_id().0[..], &tags].concat())?)
}

fn print(request: &Request<'_>, output: &mut Output<'_>) -> Result {
    println!("out {}", text(request));
    eprintln!("err {}", text(request));
    std::io::stdout().flush().expect("the pipe is drained");
    Ok(output.reply(b"")?)
}

/// Starts a process of its own that would outlive everybody, and replies its pid.
fn grandchild(_: &Request<'_>, output: &mut Output<'_>) -> Result {
    let child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn();
    Ok(output.reply(&child.expect("sleep starts").id().to_le_bytes())?)
}

/// Keeps what it is given, and replies it all to a question.
struct Tally(Vec<u8>);

impl Node for Tally {
    fn handle(&mut self, request: &Request<'_>, output: &mut Output<'_>) -> Result {
        match request.payload() {
            b"?" => Ok(output.reply(&self.0)?),
            bytes => {
                self.0.extend_from_slice(bytes);
                Ok(())
            }
        }
    }
}

/// `count` counts its calls; `counted` only tells.
struct Counter(u32);

impl Node for Counter {
    fn handle(&mut self, request: &Request<'_>, output: &mut Output<'_>) -> Result {
        if request.node_name() != "counted" {
            self.0 += 1;
        }
        Ok(output.reply(&self.0.to_le_bytes())?)
    }
}

/// `until_cancelled` returns once it sees that it is not wanted; `cancelled_seen` tells how often.
struct Cancelled(u32);

impl Node for Cancelled {
    fn handle(&mut self, request: &Request<'_>, output: &mut Output<'_>) -> Result {
        if request.node_name() == "cancelled_seen" {
            return Ok(output.reply(&self.0.to_le_bytes())?);
        }
        while !request.is_cancelled() {
            std::thread::yield_now();
        }
        self.0 += 1;
        Ok(output.reply(b"too late")?)
    }
}

/// `checked` looks at its bytes twice, some time apart; `changed` tells how often they were not the same.
struct Checked(u32);

impl Node for Checked {
    fn handle(&mut self, request: &Request<'_>, output: &mut Output<'_>) -> Result {
        if request.node_name() == "changed" {
            return Ok(output.reply(&self.0.to_le_bytes())?);
        }
        let first = request.payload().to_vec();
        std::thread::sleep(Duration::from_millis(20));
        let same = first == request.payload() && first.iter().all(|byte| *byte == first[0]);
        self.0 += u32::from(!same);
        Ok(output.reply(&first)?)
    }
}

/// `guarded` replies so many bytes if it can; `refused` tells how often there was no room.
struct Guarded(u32);

impl Node for Guarded {
    fn handle(&mut self, request: &Request<'_>, output: &mut Output<'_>) -> Result {
        if request.node_name() == "refused" {
            return Ok(output.reply(&self.0.to_le_bytes())?);
        }
        let sent = output.reply(&super::pattern(1, number(request) as usize));
        self.0 += u32::from(sent == Err(EmitError::NoRoom));
        Ok(sent?)
    }
}
