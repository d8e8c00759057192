use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use model::{Code, Problem};
use serde_json::json;

use crate::report::Output;

/// Writes the commented plan; never over a file that is there.
pub(crate) fn run(path: &Path, output: Output) -> Result<u8, Problem> {
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)
        .and_then(|mut file| file.write_all(plan::template().as_bytes()));
    match written {
        Ok(()) if output.json => output.print(&json!({ "plan": path.display().to_string() })),
        Ok(()) => output.text(&format!(
            "{} is written. Fill it in, then run `crossfade survey --plan {}`.\n",
            path.display(),
            path.display()
        )),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let next = "name another file with --plan FILE, or remove this one";
            return Err(Problem::new(Code::PlanInvalid, path.display().to_string(), "it is there already", next));
        }
        Err(error) => {
            let next = "name a file in a folder that this user may write: --plan FILE";
            return Err(Problem::new(Code::StateNotWritable, path.display().to_string(), error.to_string(), next));
        }
    }
    Ok(0)
}
