//! `handbell bench`, run as a user runs it. What it measures is up to the machine; that it measures, and how it
//! tells, is looked at here.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;

use serde_json::Value;

mod common;
use common::{Folder, handbell, run, text, watched};

/// Fields of every case, in the words of its users.
const FIELDS: [&str; 13] = [
    "name",
    "payload",
    "wait",
    "pinned",
    "touched",
    "samples",
    "p50_ns",
    "p99_ns",
    "p999_ns",
    "max_ns",
    "limit",
    "limit_p50_ns",
    "ratio_p50",
];

fn number(case: &Value, name: &str) -> f64 {
    case[name].as_f64().unwrap_or_else(|| panic!("{name} is no number: {case}"))
}

/// One run, because it takes some seconds: the object, then the page.
#[test]
fn quick_figures_and_their_page() {
    watched("quick_figures_and_their_page", || {
        let folder = Folder::new("bench");
        let page = folder.path("report.html");
        let output = run(&["bench", "--quick", "--json", "--report", &page]);
        let stderr = text(&output.stderr);
        assert!(output.status.success() && !stderr.contains("panicked"), "{stderr}");
        let figures: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        let names: BTreeSet<&str> =
            figures.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(names, BTreeSet::from(["cases", "host"]));
        check_host(&figures["host"], stderr);
        let cases = figures["cases"].as_array().expect("a list");
        cases.iter().for_each(check_case);
        check_rows(cases, figures["host"]["pinned_to"].is_array());
        check_page(&fs::read_to_string(&page).expect("the page is written"));
    });
}

fn check_host(host: &Value, stderr: &str) {
    assert!(number(host, "clock_ns") > 0.0 && number(host, "memory_bytes") > 0.0, "{host}");
    let processors = host["processors"].as_array().expect("a list");
    assert!(!processors.is_empty() && host["cpu"].is_string() && host["date"].is_string(), "{host}");
    for warning in host["warnings"].as_array().expect("a list") {
        let line = format!("warning: {}\n", warning.as_str().expect("text"));
        assert!(stderr.contains(&line), "{line} is not told: {stderr}");
    }
}

fn check_case(case: &Value) {
    for field in FIELDS {
        assert!(case.get(field).is_some(), "no {field}: {case}");
    }
    assert!(case["pinned"].is_boolean() && case["touched"].is_boolean(), "{case}");
    let times = ["p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns"].map(|name| number(case, name));
    assert!(times.is_sorted(), "{case}");
    assert!(number(case, "samples") >= 5.0 && number(case, "rounds") >= 5.0, "{case}");
    assert_eq!(case["limit"].is_null(), case["ratio_p50"].is_null(), "{case}");
    if case["limit"].is_string() {
        assert!(number(case, "limit_p50_ns") <= number(case, "limit_p99_ns"), "{case}");
        let ratios = ["ratio_p50_least", "ratio_p50", "ratio_p50_most"].map(|name| number(case, name));
        assert!(ratios.is_sorted() && ratios[2] > 0.0, "{case}");
    }
    if case.get("per_s").is_some() {
        assert!(number(case, "per_s") > 0.0 && number(case, "limit_per_s") > 0.0, "{case}");
    }
}

/// All that is promised is there, as far as the machine has the processors.
fn check_rows(cases: &[Value], has_two: bool) {
    let has = |name: &str, payload: u64, wait: &str, place: &str, touched: bool| {
        let found = cases.iter().any(|case| {
            (case["name"] == name && case["payload"] == payload && case["wait"] == wait)
                && (case["place"] == place && case["touched"] == touched)
        });
        assert!(found, "no case {name}, {payload} bytes, {wait}, {place}, touched: {touched}");
    };
    let main = if has_two { "apart" } else { "one_processor" };
    for wait in ["spin", "adaptive", "block"] {
        has("handoff_round_trip", 64, wait, "one_processor", true);
        if has_two {
            has("handoff_round_trip", 64, wait, "apart", true);
            has("handoff_round_trip", 64, wait, "unpinned", true);
        }
    }
    for bytes in [64, 65_536, 1_048_576] {
        has("handoff_round_trip", bytes, "adaptive", main, false);
    }
    for bytes in [65_536, 1_048_576] {
        has("handoff_round_trip", bytes, "adaptive", main, true);
        has("memcpy", bytes, "none", main, true);
    }
    has("two_groups", 1_048_576, "adaptive", main, true);
    has("pipelined_window_64", 64, "spin", main, true);
    has("pipelined_window_64", 64, "adaptive", main, true);
    has("four_threads", 64, "adaptive", "unpinned", true);
    has("one_of_64", 64, "adaptive", main, true);
    has("memory_call", 64, "none", "one_processor", true);
    if has_two {
        has("handoff_after_quiet", 64, "block", "apart", true);
        has("handoff_after_quiet", 64, "adaptive", "apart", true);
        has("adaptive_beside_spin", 64, "adaptive", "apart", true);
        has("with_listeners", 64, "adaptive", "apart", true);
    }
}

fn check_page(page: &str) {
    assert!(page.starts_with("<!DOCTYPE html>") && page.trim_end().ends_with("</html>"));
    assert!(page.matches("<svg viewBox=\"0 0 720").count() >= 2, "curves, and latency against size");
    assert!(page.contains("<polyline") && page.contains("prefers-color-scheme: dark"));
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
        assert!(!page.contains(outside), "the page refers to something else: {outside}");
    }
    assert!(page.contains("<h2>The host</h2>") && page.contains("handoff_round_trip"));
}

#[test]
fn gate_03_bench_refuses_what_it_cannot_do() {
    watched("gate_03_bench_refuses_what_it_cannot_do", || {
        let refused = |args: &[&str], code: i32, words: &[&str]| {
            let output = run(args);
            let stderr = text(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{stderr}");
            assert!(stderr.ends_with('\n') && stderr.lines().count() == 1, "{stderr}");
            assert!(words.iter().all(|word| stderr.contains(word)), "{stderr}");
            assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
        };
        refused(&["bench", "--seconds", "0"], 2, &["--seconds", "'0'", "1..=86400"]);
        refused(&["bench", "--seconds", "soon"], 2, &["--seconds", "'soon'"]);
        refused(&["bench", "--quick", "--seconds", "5"], 2, &["--quick", "--seconds"]);
        refused(&["bench", "--report"], 2, &["--report"]);
        refused(&["bench", "--loud"], 2, &["--loud"]);
        let folder = Folder::new("bench-ends");
        let (directory, nowhere) = (folder.path(""), folder.path("missing/page"));
        refused(&["bench", "--quick", "--report", &directory], 4, &["report = ", &directory]);
        refused(&["bench", "--quick", "--report", &nowhere], 4, &["report = ", &nowhere]);
        let help = run(&["bench", "--help"]);
        let shown = text(&help.stdout);
        for word in ["--quick", "--seconds", "--json", "--report", "EXAMPLES", "Exit codes"] {
            assert!(help.status.success() && shown.contains(word), "{shown}");
        }
    });
}

/// Nobody who ends the command leaves its processes behind: the other side of the limits, and the workers.
#[test]
fn gate_03_bench_takes_its_processes_along() {
    watched("gate_03_bench_takes_its_processes_along", || {
        let mut child = handbell(&["bench", "--seconds", "600"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the command starts");
        let children = loop {
            let found = children(child.id());
            if found.len() >= 2 {
                break found;
            }
            std::thread::yield_now();
        };
        child.kill().and_then(|()| child.wait()).expect("it is ours");
        while children.iter().any(Process::is_running) {
            std::thread::yield_now();
        }
    });
}

/// One process, told from a later one with its number by when it began.
struct Process {
    pid: u32,
    began: String,
}

impl Process {
    fn is_running(&self) -> bool {
        // Nobody may have taken the dead one in.
        stat(self.pid).is_some_and(|stat| stat[19] == self.began && stat[0] != "Z" && stat[0] != "X")
    }
}

/// The fields behind the name.
fn stat(pid: u32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

fn children(parent: u32) -> Vec<Process> {
    let pids = fs::read_dir("/proc").expect("it is there").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let child = |pid| {
        let stat = stat(pid)?;
        (stat[1] == parent.to_string()).then(|| Process { pid, began: stat[19].clone() })
    };
    pids.filter_map(child).collect()
}
