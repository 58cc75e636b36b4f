//! Requests as futures, in a runtime of the program's choice: here tokio, with one thread.
//!
//! `cargo run --example tokio`

use std::time::Duration;

use handbell::{App, Deadline, Drain, Plan};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let app = App::new()
        .node("split", |request, output| Ok(output.emit(request.payload())?))
        .node("count", |request, output| Ok(output.reply(&(request.payload().len() as u64).to_le_bytes())?));
    app.serve_if_worker();

    let plan = Plan::new().group("front", ["split"]).group("back", ["count"]).stateless().processes(2);
    let engine = app.engine(plan.edge("split", "count")).start()?;
    let split = engine.node("split")?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let total: u64 = runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for len in 1..=100 {
            let engine = engine.clone();
            tasks.spawn(async move {
                let request = engine.request(split).deadline(Deadline::after(Duration::from_secs(5)));
                // Waits for room if the rings are full; `try_dispatch` never waits and gives the request back.
                let reply = request.dispatch(&vec![b'x'; len]).map_err(handbell::CallError::from)?.await?;
                Ok::<u64, handbell::CallError>(reply.to_value().unwrap_or(0))
            });
        }
        let mut total = 0;
        while let Some(count) = tasks.join_next().await {
            total += count.expect("no task panics").expect("no request fails");
        }
        total
    });
    println!("{total} bytes counted");
    engine.stop(Drain::within(Duration::from_secs(5)));
    Ok(())
}
