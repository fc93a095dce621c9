//! The command-line tool; see `fwupdated::ctl`.

fn main() -> std::process::ExitCode {
    fwupdated::ctl::main()
}
