//! The `sluice` program: everything is in the library, where tests reach it.

fn main() -> std::process::ExitCode {
    sluice_daemon::cli::main()
}
