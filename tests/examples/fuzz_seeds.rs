//! Writes the valid files that fuzzing begins with: `fuzz_seeds FOLDER` makes `FOLDER/TARGET/N` for each target.

use std::path::PathBuf;

fn main() -> std::io::Result<()> {
    let folder = PathBuf::from(std::env::args_os().nth(1).unwrap_or_else(|| "corpus".into()));
    for target in &patchgpt_tests::untrusted::TARGETS {
        let folder = folder.join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (i, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(folder.join(i.to_string()), seed)?;
        }
    }
    Ok(())
}
