//! What goes on while the owner of a run does something else between two items: FLOW-01.

use std::time::Duration;

use handbell::{App, OnError, Plan};

mod common;
use common::{balanced, far, stop};

program![of app; flow_01_a_death_in_a_run_holds_up_nobody_else];

fn app() -> App {
    common::app()
        .node("pass", |request, output| Ok(output.emit(request.payload())?))
        .node("mortal", |request, output| {
            if request.payload()[0] == 0 {
                std::thread::sleep(Duration::from_millis(50));
                std::process::exit(3);
            }
            Ok(output.emit(request.payload())?)
        })
        .node("end", |request, output| Ok(output.reply(request.payload())?))
        .node("beside", |request, output| Ok(output.reply(request.payload())?))
}

fn flow_01_a_death_in_a_run_holds_up_nobody_else() {
    let plan = Plan::new()
        .group("a", ["pass"])
        .group("b", ["mortal"])
        .stateless()
        .processes(2)
        .group("c", ["end"])
        .group("d", ["beside"])
        .edge("pass", "mortal")
        .edge("mortal", "end");
    // Fewer bytes than the window has: what the dead input holds up would keep everybody else out.
    let engine = app().engine(plan).forward_bytes(4096).start().unwrap();
    let [pass, beside] = ["pass", "beside"].map(|name| engine.node(name).unwrap());
    let inputs: Vec<Vec<u8>> = (0..40).map(|number| vec![number; 1000]).collect();
    let run = engine.run(pass, inputs).window(16).on_error(OnError::Record).start().unwrap();
    let mut fates = Vec::new();
    for (_, result) in run {
        fates.push(result.is_ok());
        assert_eq!(*engine.call(beside, b"x", far()).unwrap().bytes(), *b"x");
    }
    assert_eq!(fates.len(), 40);
    assert!(!fates[0] && fates[39], "{fates:?}");
    balanced(&engine);
    stop(&engine);
}
