//! A first engine and its worker. One program is both.

use std::time::Duration;

use handbell::{App, Deadline, Drain, Plan};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // What this program can run. In a worker, `serve_if_worker` serves it and never returns.
    let app = App::new().node("upper", |request, output| {
        let upper = request.payload().to_ascii_uppercase();
        Ok(output.reply(&upper)?)
    });
    app.serve_if_worker();

    // Starts the worker, a child process, and waits until it is ready.
    let engine = app.engine(Plan::new().group("text", ["upper"])).start()?;
    let upper = engine.node("upper")?;

    let reply = engine.call(upper, b"ding", Deadline::after(Duration::from_secs(1)))?;
    println!("{}", String::from_utf8_lossy(&reply.bytes()));

    engine.stop(Drain::within(Duration::from_secs(5)));
    Ok(())
}
