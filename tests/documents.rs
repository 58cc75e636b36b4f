//! The documents say what the source says: the first example, the settings, the layouts, and names of files and
//! functions.

use std::path::PathBuf;

fn read(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// The text of the first block of this language.
fn first_block<'a>(document: &'a str, language: &str) -> &'a str {
    let (_, rest) = document.split_once(&format!("```{language}\n")).expect("the document has such a block");
    rest.split_once("```").expect("the block ends").0
}

/// What stands between single backticks, outside of blocks.
fn quoted(document: &str) -> Vec<&str> {
    let outside = document.split("```").step_by(2);
    outside.flat_map(|text| text.split('`').skip(1).step_by(2)).collect()
}

/// The cells of the rows of all tables.
fn rows(document: &str) -> Vec<Vec<&str>> {
    let rows = document.lines().filter(|line| line.starts_with('|'));
    rows.map(|row| row.trim_matches('|').split('|').map(str::trim).collect()).collect()
}

/// The names behind `pub` in the body of a struct of `source`.
fn fields(source: &str, structure: &str) -> Vec<String> {
    let (_, rest) = source.split_once(&format!("struct {structure} {{")).expect("the struct is there");
    let body = rest.split_once("\n}").expect("it ends").0;
    let names = body.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(':'));
    names.map(|(name, _)| name.to_owned()).collect()
}

/// All Rust files below `folder`, one after the other.
fn all_code(folder: &str) -> String {
    let mut text = String::new();
    let mut folders = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder of the repository") {
            let path = entry.expect("readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text.push_str(&std::fs::read_to_string(&path).expect("readable"));
            }
        }
    }
    text
}

#[test]
fn the_readme_shows_the_first_example_in_under_30_lines() {
    let example = read("examples/first.rs");
    assert_eq!(first_block(&read("README.md"), "rust"), example, "README.md shows another examples/first.rs");
    assert!(example.lines().count() < 30);
}

#[test]
fn the_readme_lists_every_setting() {
    let readme = read("README.md");
    let rows = rows(&readme);
    let settings = fields(&read("src/plan/settings.rs"), "Settings");
    assert!(settings.len() > 10);
    for setting in &settings {
        let name = format!("`{setting}`");
        assert!(
            rows.iter().any(|row| row.len() == 4 && row[0] == name),
            "README.md lacks the setting {name}"
        );
    }
}

#[test]
fn the_architecture_gives_the_real_offsets() {
    let architecture = read("ARCHITECTURE.md");
    let rows = rows(&architecture);
    // Offsets stand alone in their cell, so that 4 is not found in 40.
    let stands = |offset: &str, name: &str| {
        rows.iter().any(|row| row.contains(&offset) && row.iter().any(|cell| cell.starts_with(name)))
    };
    for line in read("tests/golden/layout.txt").lines() {
        let (name, value) = line.rsplit_once(' ').expect("name and value");
        match name.split_once('.') {
            Some((
                "Envelope" | "SegmentHeader" | "DoorbellMessage" | "Hello" | "Challenge" | "request"
                | "reply" | "doorbell",
                field,
            )) => {
                assert!(stands(value, &format!("`{field}`")), "ARCHITECTURE.md lacks {name} at {value}");
            }
            Some(("sample request" | "sample reply", section)) => {
                let section = if section == "total" { "end" } else { section };
                assert!(stands(value, section), "ARCHITECTURE.md lacks the section {name} at {value}");
            }
            _ => {}
        }
    }
    assert!(stands("128", "`sleeping`") && !stands("129", "`sleeping`"), "the check can fail");
}

#[test]
fn what_the_architecture_names_exists() {
    let architecture = read("ARCHITECTURE.md");
    let code = all_code("src");
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let (mut files, mut functions) = (0, 0);
    for name in quoted(&architecture) {
        if name.ends_with(".rs") || name.ends_with(".txt") {
            let found = root.join(name).exists() || root.join("src").join(name).exists();
            assert!(found, "ARCHITECTURE.md names the file {name}, which is not there");
            files += 1;
        } else if let Some((of, function)) = name.split_once("::")
            && function.starts_with(|c: char| c.is_lowercase())
        {
            assert!(
                code.contains(&format!("fn {function}")),
                "ARCHITECTURE.md names {name}: no such function"
            );
            assert!(code.contains(&format!(" {of} ")), "ARCHITECTURE.md names {name}: no such type");
            functions += 1;
        }
    }
    assert!(files > 20 && functions > 20, "found {files} files and {functions} functions to check");
}
