//! The Rust files of this repository as the checks read them: text, code without comments and literals, tokens.

use std::path::{Path, PathBuf};

pub struct Source {
    /// From the root of the repository, with `/`.
    pub path: String,
    pub text: String,
    /// The text with comments, strings and character literals blanked; the same lines.
    pub code: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.into(), code: blank(text) }
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files under the folders that exist.
pub fn sources(folders: &[&str]) -> Vec<Source> {
    let mut paths = Vec::new();
    folders.iter().for_each(|folder| gather(&root().join(folder), &mut paths));
    paths.sort();
    let sources: Vec<Source> = paths
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            let relative = path.strip_prefix(root()).expect("gathered below the root");
            Source::new(&relative.to_string_lossy().replace('\\', "/"), &text)
        })
        .collect();
    assert!(!sources.is_empty(), "no Rust file under {folders:?}");
    sources
}

fn gather(folder: &Path, paths: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.expect("a readable folder").path()) {
        if path.is_dir() {
            // What a package outside of the workspace has built.
            if !path.ends_with("target") {
                gather(&path, paths);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

/// Replaces comments, strings and character literals by blanks; keeps the line ends.
pub fn blank(text: &str) -> String {
    let text: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let end = match text[at] {
            '/' if text.get(at + 1) == Some(&'/') => {
                (at..text.len()).find(|&i| text[i] == '\n').unwrap_or(text.len())
            }
            '/' if text.get(at + 1) == Some(&'*') => end_of_block_comment(&text, at),
            '"' => end_of_string(&text, at),
            'r' if !continues_a_word(&text, at) => end_of_raw_string(&text, at).unwrap_or(at),
            '\'' => end_of_char(&text, at).unwrap_or(at),
            _ => at,
        };
        if end == at {
            out.push(text[at]);
            at += 1;
        } else {
            out.extend(text[at..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
            at = end;
        }
    }
    out
}

pub fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether the `r` at `at` ends a longer word; `br"` and `cr"` begin raw strings, too.
fn continues_a_word(text: &[char], at: usize) -> bool {
    let before = |n: usize| at.checked_sub(n).map(|i| text[i]);
    match before(1) {
        Some('b' | 'c') => before(2).is_some_and(is_word),
        Some(c) => is_word(c),
        None => false,
    }
}

fn end_of_block_comment(text: &[char], begin: usize) -> usize {
    let mut depth = 0;
    let mut at = begin;
    while at + 1 < text.len() {
        match (text[at], text[at + 1]) {
            ('/', '*') => (depth, at) = (depth + 1, at + 2),
            ('*', '/') => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

fn end_of_string(text: &[char], begin: usize) -> usize {
    let mut at = begin + 1;
    while at < text.len() && text[at] != '"' {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

fn end_of_raw_string(text: &[char], begin: usize) -> Option<usize> {
    let hashes = text[begin + 1..].iter().take_while(|c| **c == '#').count();
    let quote = begin + 1 + hashes;
    if text.get(quote) != Some(&'"') {
        return None;
    }
    let closes = |at: usize| {
        let rest = text.get(at + 1..at + 1 + hashes);
        text[at] == '"' && rest.is_some_and(|rest| rest.iter().all(|c| *c == '#'))
    };
    Some((quote + 1..text.len()).find(|&at| closes(at)).map_or(text.len(), |at| at + 1 + hashes))
}

/// The end of a character literal; `None` for a lifetime.
fn end_of_char(text: &[char], begin: usize) -> Option<usize> {
    match text.get(begin + 1)? {
        '\\' => {
            let close = (begin + 3..text.len()).find(|&at| text[at] == '\'')?;
            Some(close + 1)
        }
        _ => (text.get(begin + 2) == Some(&'\'')).then_some(begin + 3),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token<'a> {
    /// A word, `::`, or one other character.
    pub text: &'a str,
    pub line: usize,
}

pub fn tokens(code: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for (line, row) in code.lines().enumerate() {
        let mut rest = row;
        while let Some(first) = rest.chars().next() {
            let bytes = if is_word(first) {
                rest.find(|c| !is_word(c)).unwrap_or(rest.len())
            } else if rest.starts_with("::") {
                2
            } else {
                first.len_utf8()
            };
            let (text, behind) = rest.split_at(bytes);
            if !first.is_whitespace() {
                tokens.push(Token { text, line: line + 1 });
            }
            rest = behind;
        }
    }
    tokens
}
