//! Generates the wire types from `proto/`.

fn main() -> std::io::Result<()> {
    let root = "../../proto";
    let file = "../../proto/crossfade/v1/log.proto";
    println!("cargo:rerun-if-changed={file}");
    prost_build::Config::new().bytes(["."]).compile_protos(&[file], &[root])
}
