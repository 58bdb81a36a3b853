//! Prints what a program is started with.

fn main() {
    println!("Hello from Wasm!");
    println!("args: {}", std::env::args().collect::<Vec<_>>().join(" "));
    for (key, value) in std::env::vars() {
        println!("env: {key}={value}");
    }
    match std::env::current_dir() {
        Ok(path) => println!("cwd: {}", path.display()),
        Err(error) => println!("cwd: {error}"),
    }
}
