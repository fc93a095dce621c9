//! The daemon. Everything is in `fwupdated::daemon`.

fn main() -> std::process::ExitCode {
    fwupdated::daemon::main()
}
