//! What the source must look like: levels, unsafe code, atomics, file sizes.
//!
//! Each check reads the files of this repository and names file, line and rule. Each is also run on a small
//! sample that breaks its rule, so that it is seen to be able to fail.

mod source;

use std::fmt::Write as _;

use source::{Source, Token, blank, is_word, sources, tokens};

/// Folders and files of `src/` in dependency order: a level uses itself and those before it.
const LEVELS: [&str; 14] = [
    "base",
    "os",
    "wire",
    "shm",
    "auth",
    "plan",
    "doorbell",
    "lane",
    "node",
    "worker",
    "supervisor",
    "engine",
    "observe",
    "app",
];

/// Files of `src/` that may use every level.
const ABOVE_ALL: [&str; 2] = ["lib", "testing"];

/// Files outside `src/os/` that may contain unsafe code: raw access to mapped memory.
const UNSAFE_FILES: [&str; 4] = [
    "src/shm/view.rs",
    "src/shm/block.rs",
    "src/shm/arena.rs",
    // What the machine charges for the same, without an engine.
    "benches/measure/src/region.rs",
];

/// Files outside `src/os/` that may name `std::sync::atomic`.
const ATOMIC_FILES: [&str; 15] = [
    // The one door for everybody else.
    "src/base/sync.rs",
    // Words in mapped memory.
    "src/shm/view.rs",
    // Flags (`AtomicBool`) and what stands beside them, which no model checks.
    "src/engine/dispatch.rs",
    "src/engine/in_order.rs",
    "src/engine/local.rs",
    "src/engine/reader.rs",
    "src/engine/run.rs",
    "src/engine/shared.rs",
    "src/engine/start.rs",
    "src/engine/stop.rs",
    "src/engine/thread.rs",
    "src/engine/ward.rs",
    "src/supervisor/spec.rs",
    "src/worker/birth.rs",
    "src/worker/line.rs",
];

/// What a request's way there and back goes through: nobody is waited for in here. Elsewhere a lock is taken by who
/// sleeps, or wakes somebody who does.
const WITHOUT_LOCKS: [&str; 14] = [
    "src/base/",
    "src/wire/",
    "src/shm/",
    "src/lane/",
    "src/node/",
    "src/worker/serve.rs",
    "src/engine/correlation/",
    "src/engine/block_way.rs",
    "src/engine/dispatch.rs",
    "src/engine/loan.rs",
    "src/engine/pending.rs",
    "src/engine/reply.rs",
    "src/engine/request.rs",
    "src/engine/short_way.rs",
];
/// The model that stands for memory under a model checker.
const MODEL: &str = "src/shm/model.rs";

const MAX_LINES: usize = 600;

/// Files that are longer for now, and how long they may be.
const LONG_FILES: [(&str, usize); 0] = [];

/// A SAFETY comment stands at most this many lines before its block.
const SAFETY_LINES: usize = 8;

// ---- levels ----

/// Where a file stands: `None` if it may use everything.
fn level_of(path: &str) -> Result<Option<usize>, String> {
    let inside = path.strip_prefix("src/").expect("only files of src/ have a level");
    let name = inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs");
    if ABOVE_ALL.contains(&name) {
        return Ok(None);
    }
    match LEVELS.iter().position(|level| *level == name) {
        Some(level) => Ok(Some(level)),
        None => Err(format!("{path}: '{name}' has no level; give it one in tests/structure/main.rs")),
    }
}

/// Names directly below the crate's root that the code of a file uses, with their lines.
fn root_names<'a>(path: &str, code: &'a str) -> Vec<Token<'a>> {
    let tokens = tokens(code);
    let inside = path.trim_start_matches("src/").trim_end_matches(".rs");
    let file_depth = inside.split('/').filter(|part| !matches!(*part, "mod" | "lib")).count();
    let mut names = Vec::new();
    // Depths of braces at which inline modules began.
    let mut modules: Vec<usize> = Vec::new();
    let mut braces = 0;
    for (at, token) in tokens.iter().enumerate() {
        let text = |i: usize| tokens.get(i).map_or("", |token| token.text);
        match token.text {
            "{" => {
                braces += 1;
                if at >= 2 && text(at - 2) == "mod" {
                    modules.push(braces);
                }
            }
            "}" => {
                if modules.last() == Some(&braces) {
                    modules.pop();
                }
                braces -= 1;
            }
            "crate" if text(at + 1) == "::" => first_names(&tokens, at + 2, 0, &mut names),
            "super" if text(at + 1) == "::" => {
                let follows = at >= 1 && text(at - 1) == "::" && !(at >= 2 && text(at - 2) == "self");
                let in_a_group = is_in_super_group(&tokens, at);
                if !follows && !in_a_group {
                    first_names(&tokens, at, file_depth + modules.len(), &mut names);
                }
            }
            _ => {}
        }
    }
    names
}

/// Whether the `super` at `at` is an entry of a group that another path opened; it is read with that.
fn is_in_super_group(tokens: &[Token<'_>], at: usize) -> bool {
    let mut depth = 0;
    for i in (0..at).rev() {
        match tokens[i].text {
            "}" => depth += 1,
            "{" if depth == 0 => return i >= 1 && tokens[i - 1].text == "::",
            "{" => depth -= 1,
            ";" => return false,
            _ => {}
        }
    }
    false
}

/// Reads the path (or group of paths) at `at`, `up` modules below the crate's root, and notes the names that
/// it takes from the root.
fn first_names<'a>(tokens: &[Token<'a>], at: usize, up: usize, names: &mut Vec<Token<'a>>) {
    let Some(token) = tokens.get(at) else { return };
    match token.text {
        "super" if up > 0 && tokens.get(at + 1).is_some_and(|next| next.text == "::") => {
            first_names(tokens, at + 2, up - 1, names);
        }
        "{" => {
            let mut depth = 0;
            let mut is_first = true;
            for (i, token) in tokens.iter().enumerate().skip(at) {
                match token.text {
                    "{" => depth += 1,
                    "}" => depth -= 1,
                    "," if depth == 1 => is_first = true,
                    _ if depth == 1 && is_first => {
                        is_first = false;
                        first_names(tokens, i, up, names);
                    }
                    _ => {}
                }
                if depth == 0 {
                    return;
                }
            }
        }
        _ if up == 0 => names.push(*token),
        _ => {}
    }
}

fn level_faults(sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for source in sources {
        let own = match level_of(&source.path) {
            Ok(Some(own)) => own,
            Ok(None) => continue,
            Err(fault) => {
                faults.push(fault);
                continue;
            }
        };
        for name in root_names(&source.path, &source.code) {
            let Source { path, .. } = source;
            let Token { text, line } = name;
            match LEVELS.iter().position(|level| *level == text) {
                Some(used) if used <= own => {}
                Some(_) => faults.push(format!("{path}:{line}: '{}' must not use '{text}'", LEVELS[own])),
                None => faults.push(format!("{path}:{line}: 'crate::{text}' is no level; name its module")),
            }
        }
    }
    faults
}

// ---- unsafe code and atomics ----

fn is_of_os(path: &str) -> bool {
    path.starts_with("src/os/")
}

fn unsafe_faults(sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for Source { path, code, .. } in sources {
        if is_of_os(path) || UNSAFE_FILES.contains(&path.as_str()) {
            continue;
        }
        for token in tokens(code) {
            // `#![deny(unsafe_code)]` would be welcome anywhere, but the manifest says it for all.
            if matches!(token.text, "unsafe" | "unsafe_code") {
                faults.push(format!(
                    "{path}:{}: '{}' outside src/os/ and {UNSAFE_FILES:?}",
                    token.line, token.text
                ));
            }
        }
    }
    faults
}

fn lock_faults(sources: &[Source]) -> Vec<String> {
    let is_bound = |path: &str| path != MODEL && WITHOUT_LOCKS.iter().any(|place| path.starts_with(place));
    let mut faults = Vec::new();
    for Source { path, code, .. } in sources.iter().filter(|source| is_bound(&source.path)) {
        let locks =
            tokens(code).into_iter().filter(|token| matches!(token.text, "Mutex" | "RwLock" | "Condvar"));
        faults
            .extend(locks.map(|token| format!("{path}:{}: '{}' on a request's way", token.line, token.text)));
    }
    faults
}

/// Every unsafe block and implementation has a `SAFETY:` comment of its own shortly before it, every unsafe
/// function says what its caller must promise.
fn safety_faults(sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for Source { path, text, code } in sources {
        let rows: Vec<&str> = text.lines().collect();
        let all = tokens(code);
        let mut previous = 0;
        for (at, token) in all.iter().enumerate().filter(|(_, token)| token.text == "unsafe") {
            let next = all.get(at + 1).map_or("", |next| next.text);
            let (marks, wanted, reach): (&[&str], _, _) = match next {
                "fn" | "extern" => (&["# Safety", "SAFETY:"], "a '# Safety' section", 3 * SAFETY_LINES),
                _ => (&["SAFETY:"], "a 'SAFETY:' comment", SAFETY_LINES),
            };
            // Two in one line share their comment.
            let first = if token.line == previous { continue } else { token.line.saturating_sub(reach + 1) };
            let before = &rows[first.max(previous)..token.line - 1];
            let says =
                |row: &&str| row.trim_start().starts_with("//") && marks.iter().any(|m| row.contains(m));
            if !before.iter().any(says) {
                faults.push(format!("{path}:{}: 'unsafe {next}' without {wanted} before it", token.line));
            }
            previous = token.line;
        }
    }
    faults
}

fn names_std_atomics(code: &str) -> Option<usize> {
    let tokens = tokens(code);
    let texts: Vec<&str> = tokens.iter().map(|token| token.text).collect();
    let direct = |i: &usize| texts[*i..].starts_with(&["sync", "::", "atomic"]);
    // `use std::sync::{Arc, atomic::…}`
    let grouped = |i: &usize| {
        texts[*i..].starts_with(&["sync", "::", "{"])
            && texts[*i..].iter().take_while(|text| **text != ";").any(|text| *text == "atomic")
    };
    let of_std = |i: &usize| *i >= 2 && matches!(texts[i - 2], "std" | "core");
    (0..texts.len()).filter(of_std).find(|i| direct(i) || grouped(i)).map(|i| tokens[i].line)
}

fn atomic_faults(sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for Source { path, code, .. } in sources {
        if is_of_os(path) || ATOMIC_FILES.contains(&path.as_str()) {
            continue;
        }
        if let Some(line) = names_std_atomics(code) {
            faults.push(format!(
                "{path}:{line}: std::sync::atomic; use crate::base::sync, which loom can model"
            ));
        }
    }
    faults
}

// ---- size, leftovers ----

fn length_faults(sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for Source { path, text, .. } in sources {
        let lines = text.lines().count();
        let exception = LONG_FILES.iter().find(|(long, _)| long == path);
        let limit = exception.map_or(MAX_LINES, |(_, limit)| *limit);
        if lines > limit {
            faults.push(format!("{path}: {lines} lines, the limit is {limit}; split it"));
        }
    }
    faults
}

fn leftover_faults(sources: &[Source]) -> Vec<String> {
    // In two parts, so that this file passes.
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let mut faults = Vec::new();
    for Source { path, text, .. } in sources {
        for (line, row) in text.lines().enumerate() {
            if let Some(word) = row.split(|c| !is_word(c)).find(|word| words.contains(word)) {
                faults.push(format!(
                    "{path}:{}: {word}; do it, or say in the documents what is missing",
                    line + 1
                ));
            }
        }
    }
    faults
}

fn expect_none(rule: &str, faults: &[String]) {
    let mut message = format!("{rule}\n");
    faults.iter().for_each(|fault| {
        let _ = writeln!(message, "  {fault}");
    });
    assert!(faults.is_empty(), "{message}");
}

// ---- the tests ----

const UNSAFE_CODE: [&str; 3] = ["src", "tools/src", "benches"];
const ALL_CODE: [&str; 4] = ["src", "tools", "tests", "benches"];

#[test]
fn no_file_uses_a_level_above_its_own() {
    let rule = format!("a file uses its own level and those before it: {}", LEVELS.join(", "));
    expect_none(&rule, &level_faults(&sources(&["src"])));
}

#[test]
fn unsafe_code_stands_in_the_named_files_only() {
    expect_none("unsafe code has its place", &unsafe_faults(&sources(&UNSAFE_CODE)));
}

#[test]
fn a_requests_way_takes_no_lock() {
    let seen = sources(&["src"]);
    let is_there = |place: &&str| seen.iter().any(|source| source.path.starts_with(*place));
    assert_eq!(WITHOUT_LOCKS.iter().filter(|place| !is_there(place)).count(), 0, "a place that is no more");
    expect_none("a request's way takes no lock", &lock_faults(&seen));
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    expect_none("unsafe code gives its reason", &safety_faults(&sources(&UNSAFE_CODE)));
}

#[test]
fn atomics_come_through_their_door() {
    expect_none("atomics come from base::sync", &atomic_faults(&sources(&["src"])));
}

#[test]
fn no_file_is_too_long() {
    expect_none("one noun, one file", &length_faults(&sources(&ALL_CODE)));
}

#[test]
fn nothing_is_left_to_be_done() {
    expect_none("no leftovers", &leftover_faults(&sources(&ALL_CODE)));
}

#[test]
fn every_exception_is_there_and_needed() {
    let all = sources(&UNSAFE_CODE);
    let find = |path: &str| {
        let found = all.iter().find(|source| source.path == path);
        found.unwrap_or_else(|| panic!("{path} is gone: take it off its list in tests/structure/main.rs"))
    };
    for path in UNSAFE_FILES {
        let used = tokens(&find(path).code).iter().any(|token| token.text == "unsafe");
        assert!(used, "{path} has no unsafe code: take it off UNSAFE_FILES");
    }
    for path in ATOMIC_FILES {
        assert!(!find(path).text.is_empty());
    }
    for (path, _) in LONG_FILES {
        let lines = find(path).text.lines().count();
        assert!(lines > MAX_LINES, "{path} has {lines} lines: take it off LONG_FILES");
    }
}

// ---- each check can fail ----

/// The lines that a check complains about in a sample file.
fn complaints(check: fn(&[Source]) -> Vec<String>, path: &str, text: &str) -> Vec<String> {
    let faults = check(&[Source::new(path, text)]);
    faults.iter().map(|fault| fault.trim_start_matches(path).to_owned()).collect()
}

#[test]
fn a_level_above_is_seen_in_every_form_of_path() {
    let uses = |path, text| complaints(level_faults, path, text).len();
    assert_eq!(
        complaints(level_faults, "src/wire/a.rs", "use crate::engine::Engine;"),
        [":1: 'wire' must not use 'engine'"]
    );
    assert_eq!(uses("src/wire/a.rs", "use crate::base::limits::X; use crate::{base::ids, os};"), 0);
    assert_eq!(uses("src/wire/a.rs", "use crate::{\n    base::{ids, engine},\n    lane::Lane,\n};"), 1);
    assert_eq!(uses("src/wire/a.rs", "fn f() { let x = crate::shm::view::X; }"), 1);
    assert_eq!(uses("src/wire/a.rs", "pub(crate) fn f(x: &'static crate::plan::P) {}"), 1);
    assert_eq!(uses("src/wire/mod.rs", "use super::engine;"), 1);
    assert_eq!(uses("src/wire/a.rs", "use super::engine;"), 0, "a module of its own folder");
    assert_eq!(uses("src/wire/a.rs", "use super::super::engine;"), 1);
    assert_eq!(uses("src/wire/a.rs", "use super::{b, super::{base, lane}};"), 1);
    assert_eq!(uses("src/wire/b/mod.rs", "use super::super::{lane::Lane, base};"), 1);
    let inline = "mod tests { use super::super::engine; } use super::super::app;";
    assert_eq!(complaints(level_faults, "src/wire/a.rs", inline), [":1: 'wire' must not use 'app'"]);
    assert_eq!(uses("src/base/mod.rs", "use crate::App;"), 1, "a name of the crate's root hides its level");
    assert_eq!(uses("src/sockets/mod.rs", ""), 1, "a folder without a level");
    assert_eq!(uses("src/app.rs", "use crate::engine::Engine;"), 0);
    assert_eq!(uses("src/testing.rs", "use crate::app::App; use crate::Anything;"), 0);
}

#[test]
fn comments_and_strings_are_no_code() {
    let text = r####"
// use crate::engine;  unsafe {}
/* crate::engine /* nested */ unsafe */
/// [`crate::engine::Engine`]
const A: &str = "crate::engine \" unsafe";
const B: &[u8] = br#"crate::engine " unsafe"#;
const C: [char; 3] = ['"', '\'', '\u{22}']; fn f<'a>(x: &'a str) {}
use crate::engine;
"####;
    assert_eq!(complaints(level_faults, "src/wire/a.rs", text), [":8: 'wire' must not use 'engine'"]);
    assert_eq!(complaints(unsafe_faults, "src/wire/a.rs", text), Vec::<String>::new());
    assert_eq!(blank(text).lines().count(), text.lines().count());
}

#[test]
fn unsafe_code_in_another_file_is_seen() {
    for text in ["fn f() { unsafe { g() } }", "#![allow(unsafe_code)]", "unsafe impl Send for X {}"] {
        assert_eq!(complaints(unsafe_faults, "src/engine/a.rs", text).len(), 1, "{text}");
        assert_eq!(complaints(unsafe_faults, "tools/src/a.rs", text).len(), 1, "{text}");
        assert_eq!(complaints(unsafe_faults, "src/os/a.rs", text).len(), 0, "{text}");
        assert_eq!(complaints(unsafe_faults, "src/shm/view.rs", text).len(), 0, "{text}");
        assert_eq!(complaints(unsafe_faults, "src/shm/ring.rs", text).len(), 1, "{text}");
    }
}

#[test]
fn unsafe_code_without_a_reason_is_seen() {
    let lacks = |text| complaints(safety_faults, "src/os/a.rs", text).len();
    assert_eq!(lacks("fn f() {\n    // SAFETY: checked.\n    let x = unsafe { g() };\n}"), 0);
    assert_eq!(lacks("fn f() {\n    // Checked.\n    unsafe { g() }\n}"), 1);
    assert_eq!(lacks("fn f() {\n    // SAFETY: one.\n    unsafe { g() }\n    unsafe { h() }\n}"), 1);
    assert_eq!(lacks("fn f() {\n    let x = \"SAFETY: no comment\";\n    unsafe { g() }\n}"), 1);
    assert_eq!(lacks("unsafe impl Send for X {}"), 1);
    assert_eq!(lacks("/// # Safety\n///\n/// Say when.\npub unsafe fn f() {}"), 0);
    assert_eq!(lacks("/// Says nothing.\npub unsafe fn f() {}"), 1);
    let far = format!("// SAFETY: far away.\n{}unsafe impl Send for X {{}}", "\n".repeat(SAFETY_LINES + 1));
    assert_eq!(lacks(&far), 1);
}

#[test]
fn atomics_past_their_door_are_seen() {
    let passes = |path, text| complaints(atomic_faults, path, text).is_empty();
    assert!(!passes("src/engine/link.rs", "use std::sync::atomic::AtomicU64;"));
    assert!(!passes("src/engine/link.rs", "use std::sync::{Arc, atomic::{AtomicU64, Ordering}};"));
    assert!(!passes("src/engine/link.rs", "fn f() { core::sync::atomic::fence(x) }"));
    assert!(passes("src/engine/link.rs", "use std::sync::{Arc, Mutex}; use crate::base::sync::AtomicU64;"));
    assert!(passes("src/os/futex.rs", "use std::sync::atomic::AtomicU32;"));
}

#[test]
fn a_long_file_and_a_leftover_are_seen() {
    let lines = |count| complaints(length_faults, "src/os/a.rs", &"\n".repeat(count)).len();
    assert_eq!((lines(MAX_LINES), lines(MAX_LINES + 1)), (0, 1));
    let left = |text: &str| complaints(leftover_faults, "src/os/a.rs", text).len();
    assert_eq!(left(concat!("// TO", "DO: more")), 1);
    assert_eq!(left(concat!("let x = 1; // FIX", "ME")), 1);
    assert_eq!(left(concat!("let TO", "DOS = 1;")), 0);
}
