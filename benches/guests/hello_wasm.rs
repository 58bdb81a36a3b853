//! The Wasm counterpart of `hello.rs`: a WASI 0.1 command.
fn main() {
    println!("hello");
}
