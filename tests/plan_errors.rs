//! Every way in which a plan is refused, with its message: GATE-01, PLACEMENT-01.
//!
//! The table `docs/plan-errors.md` is made here and compared. `HANDBELL_BLESS=1 cargo test --test plan_errors`
//! writes it anew.

use std::path::PathBuf;

use handbell::{App, Plan, PlanError, Resource, Restart, StartError};

const HEAD: &str = "\
# What is wrong with a plan

Every way in which a plan is refused, before anything is started, and what `StartError` says then behind
`plan: `. `App` here has code for the nodes `a` to `e` and no others.

Made and checked by `tests/plan_errors.rs`.

| kind | stated | message |
|---|---|---|
";

macro_rules! kinds {
    ($($kind:ident),* $(,)?) => {
        /// All kinds.
        const KINDS: &[&str] = &[$(stringify!($kind)),*];

        /// The name of an error's kind. A new kind does not compile until it stands in the list below.
        fn kind(error: &PlanError) -> &'static str {
            match error { $(PlanError::$kind { .. } => stringify!($kind)),* }
        }
    };
}

kinds!(
    NoGroup,
    NothingToModify,
    Name,
    DuplicateGroup,
    EmptyGroup,
    NodeTwice,
    TooMany,
    Range,
    StatedTwice,
    Contradiction,
    Text,
    Pin,
    UnknownNode,
    DuplicateEdge,
    NotAHop,
    Circle,
    GroupCircle,
    TooLarge,
    NotRegistered,
);

/// The plans as they are written, and as they are.
macro_rules! plans {
    ($($plan:expr),* $(,)?) => { vec![$((stringify!($plan), $plan)),*] };
}

#[rustfmt::skip] // a line a plan, as in the table
fn plans() -> Vec<(&'static str, Plan)> {
    let plan = Plan::new;
    plans![
        plan(),
        plan().processes(2).group("g", ["a"]),
        plan().group("g", ["a"]).max_hops(3),
        plan().group("g g", ["a"]),
        plan().group("g", [""]),
        plan().group("g", ["a", "b"]).labelled_edge("a", "to b", "b"),
        plan().group("g", ["a"]).group("g", ["b"]),
        plan().group("g", [""; 0]),
        plan().group("g", ["a", "a"]),
        plan().group("g", ["a"]).group("h", ["b", "a"]),
        plan().group("g", ["a"; 1025]),
        (0..4097).fold(plan().group("g", ["a", "b"]), |plan, _| plan.edge("a", "b")),
        (0..5).fold(plan(), |plan, i| plan.group(format!("g{i}"), [format!("n{i}")]).processes(256)),
        plan().group("g", ["a"]).processes(0),
        plan().group("g", ["a"]).processes(257),
        plan().group("g", ["a"]).group("h", ["b"]).edge("a", "b").max_hops(0),
        plan().group("g", ["a"]).group("h", ["b"]).edge("a", "b").max_hops(1025),
        plan().group("g", ["a"]).group("h", ["b"]).edge("a", "b").max_hops(1).max_hops(2),
        plan().group("g", ["a"]).processes(2).processes(3),
        plan().group("g", ["a"]).command(["x"]).command(["y"]),
        plan().group("g", ["a"]).env("A", "1").env("A", "2"),
        plan().group("g", ["a"]).cwd("/x").cwd("/y"),
        plan().group("g", ["a"]).limit(Resource::Core, 0).limit(Resource::Core, 1),
        plan().group("g", ["a"]).pin(0).pin(1),
        plan().group("g", ["a"]).local().processes(2),
        plan().group("g", ["a"]).local().command(["x"]),
        plan().group("g", ["a"]).local().env("A", "1"),
        plan().group("g", ["a"]).local().inherit_env("A"),
        plan().group("g", ["a"]).local().cwd("/x"),
        plan().group("g", ["a"]).local().limit(Resource::Core, 0),
        plan().group("g", ["a"]).local().pin(0),
        plan().group("g", ["a"]).local().restart(Restart::on_failure(1)),
        plan().group("g", ["a"]).env("A", "1").inherit_env("A"),
        plan().group("g", ["a"]).command([""; 0]),
        plan().group("g", ["a"]).command(["", "--fast"]),
        plan().group("g", ["a"]).command(["x", "\0"]),
        plan().group("g", ["a"]).env("A=B", "1"),
        plan().group("g", ["a"]).env("A", "\0"),
        plan().group("g", ["a"]).inherit_env(""),
        plan().group("g", ["a"]).cwd(""),
        plan().group("g", ["a"]).pin(99999),
        plan().group("g", ["a"]).edge("a", "z"),
        plan().group("g", ["a"]).edge("z", "a"),
        plan().group("g", ["a", "b"]).edge("a", "b").edge("a", "b"),
        plan().group("g", ["a", "b"]).edge("a", "b").max_hops(2),
        plan().group("g", ["a"]).edge("a", "a"),
        plan().group("g", ["a", "b"]).edge("a", "b").edge("b", "a"),
        plan().group("g", ["a"]).group("h", ["b"]).edge("a", "b").edge("b", "a"),
        plan().group("g", ["a", "b"]).group("h", ["c"]).edge("a", "c").edge("c", "b"),
        (1..1024).fold(
            plan().group("g", (0..1024).map(|i| format!("{i:064}"))).command(["x"]),
            |plan, i| plan.edge(format!("{:064}", i - 1), format!("{i:064}"))
        ),
        plan().group("g", ["a", "z"]),
    ]
}

fn refusal(plan: Plan) -> PlanError {
    let node = |app: App, name| app.node(name, |_, _| Ok(()));
    let app = ["a", "b", "c", "d", "e"].into_iter().fold(App::new(), node);
    match app.engine(plan.clone()).start().map(drop) {
        Err(StartError::Plan(error)) => error,
        other => panic!("{plan:?} is not refused as a plan: {other:?}"),
    }
}

/// The processors of this machine are not those of another.
fn anywhere(message: &str) -> String {
    match message.split_once("may use: [") {
        Some((rule, _)) => format!("{rule}may use: […]"),
        None => message.to_owned(),
    }
}

fn table() -> String {
    let mut found: Vec<&str> = Vec::new();
    let mut table = HEAD.to_owned();
    for (stated, plan) in plans() {
        let error = refusal(plan);
        found.push(kind(&error));
        let stated = stated.split_whitespace().collect::<Vec<_>>().join(" ").replace("plan()", "Plan::new()");
        let cell = |text: &str| text.replace('|', "\\|");
        let message = cell(&anywhere(&error.to_string()));
        table += &format!("| {} | `{}` | {message} |\n", kind(&error), cell(&stated));
    }
    for kind in KINDS {
        assert!(found.contains(kind), "no plan of the table is refused as {kind}");
    }
    table
}

#[test]
fn gate_01_placement_01_the_table_of_plan_errors_is_what_the_code_says() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/plan-errors.md");
    let table = table();
    if std::env::var_os("HANDBELL_BLESS").is_some_and(|bless| bless == "1") {
        std::fs::write(&path, &table).expect("the repository can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        written, table,
        "docs/plan-errors.md is not what the code says: HANDBELL_BLESS=1 writes it anew"
    );
}
