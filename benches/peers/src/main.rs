//! Handbell side by side with others that do a part of the same: a round trip of 64 bytes, and a stream of them.
//!
//! `cargo run --release [-- --rounds N] [--slice-ms N] [--only WORD] [--json]`. All take turns, pinned to the same two
//! processors, each started for its turn and ended after it; figures are those of all rounds together, ratios the
//! medians of the rounds' ratios to Handbell's, with the least and the largest.

#[cfg(feature = "aeron")]
mod aeron;
mod channels;
mod descriptors;
mod iceoryx;
mod ipc;
mod link;
mod own;
mod zero;

use std::rc::Rc;
use std::time::Duration;

use handbell::{App, Waiting};
use handbell_measure::{Beside, Contest, Facts, Figures, FutexPingPong, Meter, Partner, PingPong, Place};
use serde_json::json;

use descriptors::Descriptors;
use link::{Peer, Problem, Running, Task, serve};
use own::Own;

fn main() -> Result<(), Problem> {
    handbell_measure::serve_if_partner();
    let app = own::app();
    app.serve_if_worker();
    if let Some(name) = link::is_child() {
        return serve_as(&name);
    }
    let args = Args::read()?;
    let facts = Facts::now();
    println!("{} · {} · {}", facts.date, facts.cpu, facts.kernel);
    for warning in facts.warnings() {
        println!("warning: {warning}");
    }
    let pair = facts.pair.ok_or("this takes two processors, and the right to pin threads to them")?;
    println!("caller on processor {}, other side on {}", pair.0, pair.1);
    let (place, meter) = (Place::apart(pair), Meter::start());
    compare(&app, &place, &args, Task::Echo)?;
    compare(&app, &place, &args, Task::Stream)?;
    println!("\n{:.2} % of the processor time stolen meanwhile", meter.stolen() * 100.0);
    Ok(())
}

struct Args {
    rounds: usize,
    slice: Duration,
    only: Option<String>,
    json: bool,
}

impl Args {
    fn read() -> Result<Self, Problem> {
        let mut read = Self { rounds: 7, slice: Duration::from_millis(40), only: None, json: false };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} takes a value"));
            match arg.as_str() {
                "--rounds" => read.rounds = value()?.parse::<usize>()?.max(1),
                "--slice-ms" => read.slice = Duration::from_millis(value()?.parse()?),
                "--only" => read.only = Some(value()?),
                "--json" => read.json = true,
                _ => return Err(format!("{arg} is no option: --rounds, --slice-ms, --only, --json").into()),
            }
        }
        Ok(read)
    }
}

/// What starts a peer under its name, for one of the tasks.
type Start = fn(&str, &Place) -> Result<Running, Problem>;

const BUSY: &str = "busy";
const ASLEEP: &str = "asleep";

/// Name, how it waits, and how it starts for a round trip and for a stream, where it has such.
const PEERS: [(&str, &str, Option<Start>, Option<Start>); 13] = [
    (
        "iceoryx2 publish-subscribe",
        BUSY,
        Some(|name, place| iceoryx::pub_sub(name, place, Task::Echo)),
        Some(|name, place| iceoryx::pub_sub(name, place, Task::Stream)),
    ),
    ("iceoryx2 request-response", BUSY, Some(iceoryx::request_response), None),
    #[cfg(feature = "aeron")]
    ("Aeron IPC", BUSY, Some(aeron::start), Some(aeron::start)),
    #[cfg(not(feature = "aeron"))]
    ("Aeron IPC (not built)", BUSY, None, None),
    ("ipc-channel", BUSY, Some(|n, p| ipc::start(n, p, true)), Some(|n, p| ipc::start(n, p, true))),
    ("ipc-channel", ASLEEP, Some(|n, p| ipc::start(n, p, false)), Some(|n, p| ipc::start(n, p, false))),
    ("ZeroMQ", BUSY, Some(|n, p| zero::start(n, p, true)), Some(|n, p| zero::start(n, p, true))),
    ("ZeroMQ", ASLEEP, Some(|n, p| zero::start(n, p, false)), Some(|n, p| zero::start(n, p, false))),
    (
        "Unix sockets",
        BUSY,
        Some(|n, p| descriptors::sockets(n, p, true)),
        Some(|n, p| descriptors::sockets(n, p, true)),
    ),
    (
        "Unix sockets",
        ASLEEP,
        Some(|n, p| descriptors::sockets(n, p, false)),
        Some(|n, p| descriptors::sockets(n, p, false)),
    ),
    ("pipes", BUSY, Some(|n, p| descriptors::pipes(n, p, true)), Some(|n, p| descriptors::pipes(n, p, true))),
    (
        "pipes",
        ASLEEP,
        Some(|n, p| descriptors::pipes(n, p, false)),
        Some(|n, p| descriptors::pipes(n, p, false)),
    ),
    (
        "crossbeam-channel, threads",
        BUSY,
        Some(|_, place| channels::crossbeam(place, true)),
        Some(|_, place| channels::crossbeam(place, true)),
    ),
    ("rtrb, threads", BUSY, Some(|_, place| channels::rtrb(place)), Some(|_, place| channels::rtrb(place))),
];

/// The other side of a peer, by its name, way of waiting and task.
fn serve_as(which: &str) -> Result<(), Problem> {
    let (name, rest) = which.split_once('|').ok_or("a child without a name")?;
    let (waits, task) = rest.split_once('|').ok_or("a child without a task")?;
    let spins = waits == BUSY;
    let task = if task == "stream" { Task::Stream } else { Task::Echo };
    match name {
        "iceoryx2 publish-subscribe" => serve(&mut iceoryx::join_pub_sub(task)?),
        "iceoryx2 request-response" => serve(&mut iceoryx::join_request_response()?),
        #[cfg(feature = "aeron")]
        "Aeron IPC" => serve(&mut aeron::join()?),
        "ipc-channel" => serve(&mut ipc::join(spins)?),
        "ZeroMQ" => serve(&mut zero::join(spins)?),
        "Unix sockets" => serve(&mut Descriptors::inherited(true, spins)?),
        "pipes" => serve(&mut Descriptors::inherited(false, spins)?),
        _ => Err(format!("{name} has no other side").into()),
    }
}

fn compare(app: &App, place: &Place, args: &Args, task: Task) -> Result<(), Problem> {
    let wanted = |name: &str| args.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    let mut contest = Contest::default();
    let mut rows = Vec::new();
    for (waits, waiting) in
        [("spin", Waiting::Spin), ("adaptive", Waiting::Adaptive), ("block", Waiting::Block)]
    {
        rows.push(("Handbell", waits, contest.add(place, Own::new(app, waiting, place, task))));
    }
    if task == Task::Echo {
        let partner = Rc::new(Partner::start()?);
        let ping_pong = contest.add(place, PingPong::best(&partner, place.partner));
        let futex = contest.add(place, FutexPingPong::new(&partner, place.partner, Duration::ZERO));
        rows.push(("limit: two lines, bare", BUSY, ping_pong));
        rows.push(("limit: futex, bare", ASLEEP, futex));
    }
    for (name, waits, echo, stream) in PEERS {
        let start = if task == Task::Echo { echo } else { stream };
        let Some(start) = start.filter(|_| wanted(name)) else { continue };
        let (of, place_of) = (place.clone(), place);
        let task_name = if task == Task::Stream { "stream" } else { "echo" };
        let which = format!("{name}|{waits}|{task_name}");
        let peer = Peer::new(task, move || start(&which, &of));
        rows.push((name, waits, contest.add(place_of, peer)));
    }
    contest.run(Duration::ZERO, args.slice, args.rounds)?;
    let title = if task == Task::Echo { "round trip, 64 bytes, ns" } else { "stream, 64 bytes" };
    println!("\n{title}, {} rounds of {} ms each", args.rounds, args.slice.as_millis());
    match task {
        Task::Echo => println!(
            "{:<28}{:<9}{:>9}{:>9}{:>9}{:>10}  p50 beside Handbell waiting alike",
            "", "", "p50", "p99", "p99.9", "samples"
        ),
        Task::Stream => {
            println!("{:<28}{:<9}{:>12}  rate beside Handbell waiting alike", "", "", "messages/s");
        }
    }
    for (name, waits, index) in &rows {
        // Who sleeps is compared with who sleeps, all others with who always looks.
        let reference = if matches!(*waits, "asleep" | "block") { rows[2].2 } else { rows[0].2 };
        let beside = if task == Task::Echo { Beside::Time } else { Beside::Rate };
        let measured = contest.measured(*index, Some(reference), beside);
        let ratio = measured.ratio.map_or(String::new(), |ratio| {
            format!("{:.2} ({:.2} to {:.2})", ratio.median, ratio.least, ratio.most)
        });
        let figures = Figures::of(&measured.latency);
        match task {
            Task::Echo => println!(
                "{name:<28}{waits:<9}{:>9}{:>9}{:>9}{:>10}  {ratio}",
                figures.p50_ns, figures.p99_ns, figures.p999_ns, figures.samples
            ),
            Task::Stream => println!("{name:<28}{waits:<9}{:>12.0}  {ratio}", measured.per_s),
        }
        if args.json {
            let rounds: Vec<u64> = measured.figures.iter().map(|figure| figure.round() as u64).collect();
            eprintln!("{}", json!({"task": title, "name": name, "waits": waits, "rounds": rounds}));
        }
    }
    Ok(())
}
