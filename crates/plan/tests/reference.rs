//! docs/plan.md knows every key.

#[test]
fn every_key_of_the_template_stands_in_docs_plan_under_its_section() {
    let document = include_str!("../../../docs/plan.md");
    let mut section = "Top of the file".to_owned();
    let mut keys = 0;
    for line in crossfade_plan::template().lines() {
        // A key that is commented out follows its # at once, prose does not.
        let line = line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line);
        if let Some(name) = line.strip_prefix('[') {
            let named = ["sources.", "stages."].into_iter().find(|prefix| name.starts_with(prefix));
            section = named.map_or(line.to_owned(), |prefix| format!("[{prefix}NAME]"));
        } else if let Some((key, _)) = line.split_once(" = ").filter(|(key, _)| !key.starts_with(['#', '"'])) {
            let start = document.find(&format!("\n## {section}\n")).expect("each section has its part");
            let part = document[start + 1..].split("\n## ").next().unwrap_or_default();
            assert!(
                part.lines().any(|row| row.starts_with("| ") && row.contains(&format!("`{key}` "))),
                "{section} in docs/plan.md lacks `{key}`"
            );
            keys += 1;
        }
    }
    assert!(keys >= 30, "only {keys} keys were found in the template");
}
