//! What the `handbell` command decides and prints, run as a user runs it.

use std::fs;

mod common;
use common::{Folder, GROUPS, SAMPLE, decisions, run, text, watched};

const PROFILES: [&str; 2] = ["memory", "process_supervisor"];

/// Windows with numbers of ingress processes: each value of both occurs.
const SOME: [(&str, &str); 3] = [("1", "1"), ("16", "2"), ("512", "3")];
const RULES: [&str; 2] = ["baseline", "experiment"];

/// What the memory profile decides is what workers decide in all these manners, one reply per line.
#[track_caller]
fn same_bytes(input: &str, lines: usize, manners: &[(&str, &str)], more: &[&str]) -> Vec<u8> {
    let expected = decisions(input, &[&["--profile", "memory", "--window", "1"], more].concat());
    assert_eq!(expected.iter().filter(|byte| **byte == b'\n').count(), lines);
    assert!(expected.is_empty() || expected.ends_with(b"}\n"));
    for (window, ingress) in manners {
        // Writes what the workers decide, and compares it with the memory profile once more.
        let both = [&["--window", window, "--ingress-processes", ingress], more].concat();
        assert!(decisions(input, &both) == expected, "{both:?}");
    }
    for profile in PROFILES {
        let one = [&["--profile", profile, "--ingress-processes", "2"], more].concat();
        assert!(decisions(input, &one) == expected, "{one:?}");
    }
    expected
}

/// The same under all rules, with and without reasons; returns the decisions of the experiment with reasons.
#[track_caller]
fn identical(input: &str, lines: usize) -> Vec<u8> {
    RULES.iter().for_each(|rules| drop(same_bytes(input, lines, &SOME, &["--rules", rules])));
    same_bytes(input, lines, &SOME[1..], &["--rules", "baseline", "--reasons"]);
    same_bytes(input, lines, &SOME[1..], &["--rules", "experiment", "--reasons"])
}

fn json_summary(stderr: &[u8]) -> serde_json::Value {
    assert_eq!(text(stderr).lines().count(), 1, "{}", text(stderr));
    serde_json::from_slice(stderr).expect("one JSON object")
}

// ---- what it decides ----

#[test]
fn parity_01_the_sample_in_every_manner() {
    watched("parity_01_the_sample_in_every_manner", || {
        let folder = Folder::new("sample");
        let input = folder.file("in", SAMPLE);
        let windows = ["1", "16", "512"].into_iter();
        let all: Vec<_> =
            windows.flat_map(|window| ["1", "2", "3"].map(|ingress| (window, ingress))).collect();
        let mut with_reasons = Vec::new();
        for rules in RULES {
            same_bytes(&input, 1200, &all, &["--rules", rules]);
            with_reasons = same_bytes(&input, 1200, &all, &["--rules", rules, "--reasons"]);
        }
        for reason in ["PRIME_DAILY_GLOBAL_LIMIT", "WEEKLY_AMOUNT_LIMIT", "ID_DUPLICATE_REPLAY"] {
            assert!(text(&with_reasons).contains(reason), "{reason}");
        }
        let bundled = run(&["demo", "--output", "-", "--rules", "experiment", "--reasons"]);
        assert!(bundled.stdout == with_reasons, "the bundled sample is the file");
    });
}

const MALFORMED: &[u8] = b"\n   \nnull\n[1]\n{\n{}\n\"text\"\n12\n\xff\xfe\n\xef\xbb\xbf{}\n{\"id\":\"\xff\"}\n{\"id\":1}\n\
    {\"id\":\"1\",\"customer_id\":\"2\",\"load_amount\":3,\"time\":\"2000-01-01T00:00:00Z\"}\n\
    {\"id\":\" 7 \",\"customer_id\":\"x\"}\n{\"id\":\"a\\nb\\u0000\\\"\",\"customer_id\":\"\\u001f\"}\n\
    {\"id\":\"\",\"customer_id\":\"2\",\"load_amount\":\"$3.00\",\"time\":\"2000-01-01T00:00:00Z\"}\n\
    {\"id\":\"1234567890123456789\",\"customer_id\":\"2\",\"load_amount\":\"$3.00\",\"time\":\"2000-01-01T00:00:00Z\"}\n\
    {\"id\":\"1\",\"customer_id\":\"2\",\"load_amount\":\"$3.00\",\"time\":\"2000-01-01T00:00:00\"}\n\
    {\"id\":\"1\",\"customer_id\":\"2\",\"load_amount\":\"$3.00\",\"time\":\"2000-02-30T00:00:00Z\"}\n\
    {\"id\":\"1\",\"customer_id\":\"2\",\"load_amount\":\"$3.00\",\"time\":\"2000-01-01T00:00:60Z\"}\n\
    {\"id\":\"1\",\"customer_id\":\"2\",\"load_amount\":\"-3.00\",\"time\":\"2000-01-01T00:00:00Z\"}\n\
    {\"id\":\"1\",\"customer_id\":\"2\",\"load_amount\":\"3.0\",\"time\":\"2000-01-01T00:00:00Z\"}\n\
    {\"id\":\"1\",\"customer_id\":\"2\",\"load_amount\":\"1000000000000000.00\",\"time\":\"2000-01-01T00:00:00Z\"}\n\
    {\"id\":\"1\",\"customer_id\":\"2\",\"load_amount\":\"$3.00\",\"time\":\"2000-01-01T00:00:00Z\"}\n";

#[test]
fn parity_01_malformed_lines_of_every_kind() {
    watched("parity_01_malformed_lines_of_every_kind", || {
        let folder = Folder::new("malformed");
        let replies = identical(&folder.file("in", MALFORMED), 24);
        let replies: Vec<&str> = text(&replies).lines().collect();
        let reason = |line: usize| replies[line].split("\"reason\":").nth(1).unwrap_or("accepted");
        assert!((0..15).all(|line| reason(line) == "\"INPUT_PARSE_ERROR\"}"), "{replies:#?}");
        assert!((15..17).all(|line| reason(line) == "\"INVALID_ID_FORMAT\"}"), "{replies:#?}");
        assert!((17..20).all(|line| reason(line) == "\"INVALID_TIMESTAMP\"}"), "{replies:#?}");
        assert!((20..23).all(|line| reason(line) == "\"INVALID_AMOUNT_FORMAT\"}"), "{replies:#?}");
        // None of the malformed lines claimed the id or counted as an attempt.
        assert_eq!(replies[23], r#"{"id":"1","customer_id":"2","accepted":true}"#);
        assert!(replies[13].starts_with(r#"{"id":"7","customer_id":"x","#), "{}", replies[13]);
    });
}

#[test]
fn parity_01_ends_of_lines_and_of_files() {
    watched("parity_01_ends_of_lines_and_of_files", || {
        let folder = Folder::new("ends");
        assert!(identical(&folder.file("empty", b""), 0).is_empty());
        let newline = decisions(&folder.file("newline", SAMPLE), &[]);
        let with_end = [SAMPLE, b"\n"].concat();
        assert!(decisions(&folder.file("end", &with_end), &[]) == newline, "a final newline is no line");
        let plain = text_without_returns(SAMPLE);
        let plain_replies = identical(&folder.file("plain", &plain), 1200);
        let returns: Vec<u8> =
            plain.split(|byte| *byte == b'\n').collect::<Vec<_>>().join(&b"\r\n"[..]).to_vec();
        assert!(identical(&folder.file("returns", &returns), 1200) == plain_replies, "CRLF");
    });
}

fn text_without_returns(bytes: &[u8]) -> Vec<u8> {
    let lines = bytes.split(|byte| *byte == b'\n');
    lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect::<Vec<_>>().join(&b"\n"[..])
}

#[test]
fn parity_01_random_bytes() {
    watched("parity_01_random_bytes", || {
        let folder = Folder::new("random");
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let bytes: Vec<u8> = (0..100_000)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 24) as u8
            })
            .collect();
        let newlines = bytes.iter().filter(|byte| **byte == b'\n').count();
        let lines = newlines + usize::from(!bytes.ends_with(b"\n"));
        identical(&folder.file("in", &bytes), lines);
    });
}

#[test]
fn parity_01_generated_lines() {
    watched("parity_01_generated_lines", || {
        let folder = Folder::new("generated");
        let input = folder.path("in");
        let made = run(&["generate", "--lines", "3000", "--seed", "11", "--output", &input]);
        assert!(made.status.success() && made.stdout.is_empty() && made.stderr.is_empty());
        let again = run(&["generate", "--lines", "3000", "--seed", "11"]);
        assert!(again.stdout == fs::read(&input).expect("it was written"), "the same bytes again");
        identical(&input, 3000);
    });
}

#[test]
fn lines_that_are_long_and_too_long_get_one_reply_each() {
    watched("lines_that_are_long_and_too_long_get_one_reply_each", || {
        const LIMIT: usize = 4 << 20;
        let folder = Folder::new("long");
        let around = br#"{"id":"","customer_id":"2"}"#.len();
        let mut input = Vec::new();
        for id_bytes in [70_000, LIMIT - around, LIMIT - around + 1, 300_000, 5 * LIMIT] {
            let id = "7".repeat(id_bytes);
            input.extend_from_slice(format!("{{\"id\":\"{id}\",\"customer_id\":\"2\"}}\n").as_bytes());
        }
        // Escapes stay as long as they are.
        let escapes = "\\u0001".repeat(LIMIT / 6 - around);
        for _ in 0..20 {
            input.extend_from_slice(format!("{{\"id\":\"{escapes}\"}}\n").as_bytes());
        }
        let input = folder.file("in", &input);
        let replies = decisions(&input, &["--reasons", "--window", "512"]);
        for profile in PROFILES {
            let one = ["--reasons", "--window", "3", "--profile", profile];
            assert!(decisions(&input, &one) == replies, "{profile}");
        }
        let replies: Vec<&str> = text(&replies).lines().collect();
        assert_eq!(replies.len(), 25);
        let unread = r#"{"id":"","customer_id":"","accepted":false,"reason":"INPUT_PARSE_ERROR"}"#;
        assert_eq!([replies[2], replies[4]], [unread; 2]);
        assert!(replies[1].len() > LIMIT && replies[0].len() > 70_000 && replies[5].len() > LIMIT - 1000);
    });
}

// ---- what it prints ----

#[test]
fn the_summary_goes_where_decisions_do_not() {
    watched("the_summary_goes_where_decisions_do_not", || {
        let folder = Folder::new("summary");
        let plain = run(&["demo"]);
        assert!(plain.status.success() && plain.stderr.is_empty(), "{}", text(&plain.stderr));
        let shown = text(&plain.stdout);
        let plan = "ingress (parse) → policy (gate → features → evaluate → update) → egress (format)";
        for words in [plan, "in 3 lanes", "policy   worker pid ", "2,400 from group to group", "lines/s"] {
            assert!(shown.contains(words), "{words}: {shown}");
        }
        for words in
            ["p99.9", "balance", "registered", "accepted    682", "declined    518", "identical   yes"]
        {
            assert!(shown.contains(words), "{words}: {shown}");
        }

        let output = folder.path("out");
        let to_file = run(&["demo", "--output", &output]);
        assert!(to_file.status.success() && text(&to_file.stdout).contains("identical   yes"));
        let to_stdout = run(&["demo", "--output", "-"]);
        assert!(to_stdout.stdout == fs::read(&output).expect("decisions were written"));
        assert!(text(&to_stdout.stderr).contains("identical   yes"));
        assert!(text(&to_stdout.stdout).lines().all(|line| line.starts_with("{\"id\":")));
    });
}

#[test]
fn the_json_summary_is_one_object() {
    watched("the_json_summary_is_one_object", || {
        let both = run(&["demo", "--json", "--ingress-processes", "3"]);
        assert!(both.status.success() && both.stdout.is_empty());
        let summary = json_summary(&both.stderr);
        assert_eq!(summary["lines"], 1200);
        assert_eq!(summary["identical"], true);
        assert_eq!(summary["accepted"], 682);
        let profiles = summary["profiles"].as_array().expect("a list");
        assert_eq!(profiles.len(), 2);
        for profile in profiles {
            assert_eq!(profile["counters"]["registered"], 1200);
            assert_eq!(profile["balances"], true);
            assert_eq!(profile["in_flight"], 0);
            assert_eq!(profile["handoff"]["count"], 1200);
            // Each line enters three groups, wherever they run.
            assert_eq!(profile["counters"]["forwarded"], 2400);
            assert_eq!(
                profile["hops"],
                serde_json::json!({"from_caller": 1200, "from_group_to_group": 2400})
            );
        }
        let mut pids = vec![summary["engine_pid"].as_i64()];
        for (name, processes) in GROUPS.into_iter().zip([3, 1, 1]) {
            let groups = profiles[0]["groups"].as_array().expect("a list");
            let group = groups.iter().find(|group| group["name"] == name).expect("the plan has it");
            let workers = group["worker_pids"].as_array().expect("a list");
            assert!(workers.len() == processes && group["processes"] == processes, "{group}");
            pids.extend(workers.iter().map(serde_json::Value::as_i64));
        }
        pids.sort_unstable();
        pids.dedup();
        assert!(pids.len() == 6 && pids[0].is_some(), "each a process of its own: {pids:?}");
        let one = run(&["demo", "--json", "--profile", "memory", "--output", "-", "--input", "/dev/null"]);
        let summary = json_summary(&one.stderr);
        assert!(one.stdout.is_empty() && summary["identical"].is_null() && summary["lines"] == 0);
    });
}
