use std::path::Path;
use std::sync::Once;

use anyhow::Result;
use tempfile::TempDir;

/// A temporary folder, named after what it is for and the process that owns it. Removed when dropped; those of test
/// processes that were killed are removed by the next one.
pub(crate) fn temp_folder(kind: &str) -> Result<TempDir> {
    static SWEPT: Once = Once::new();
    SWEPT.call_once(sweep);
    Ok(TempDir::with_prefix(format!("crossfade-{kind}-of-{}-", std::process::id()))?)
}

fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let Some((_, owner)) = name.strip_prefix("crossfade-").and_then(|rest| rest.split_once("-of-")) else {
            continue;
        };
        let pid = owner.split('-').next().unwrap_or_default();
        if !pid.is_empty() && !Path::new("/proc").join(pid).exists() {
            // Another user's, perhaps: that one's next process removes it.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
